"""The command lines of the client and of the server."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.client.__main__ import main
from serving.server.config import SSLConfig

REQUEST: dict[str, Any] = {
    "user": {"user_id": 8},
    "context": {"hour": 20},
    "history": {"item_id": ["c", "a", "c"], "category_id": [3, 1, 3], "rating": [5, 4, 2]},
    "candidates": {"item_id": ["a", "b", "c"], "category_id": [1, 2, 3]},
}


@pytest.fixture
def run(contract_servers: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command against the model with string ids; gives its exit code and what it printed."""

    def run_(command: str, *arguments: str, request: Any = None) -> tuple[int, str, str]:
        if request is not None:
            path = tmp_path / "request.json"
            path.write_text(request if isinstance(request, str) else json.dumps(request))
            arguments = ("--request", str(path), *arguments)
        code = main([command, "--target", contract_servers["string"], *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_


def cells(table: str) -> list[list[str]]:
    """The cells of every line of a printed table that has some."""
    lines = [re.split("[│┃]", line)[1:-1] for line in table.splitlines()]
    return [[cell.strip() for cell in line] for line in lines if line]


def test_rank_table(run: Callable[..., Any]) -> None:
    code, out, err = run("rank", request=REQUEST)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].strip() == "version 7"
    assert cells(out) == [
        ["item_id", "category_id", "probability"],
        ["c", "3", "8.2080"],
        ["a", "1", "4.7080"],
        ["b", "2", "0.2080"],
    ]


def test_rank_top(run: Callable[..., Any]) -> None:
    _, out, _ = run("rank", "--top", "1", request=REQUEST)
    assert cells(out)[1:] == [["c", "3", "8.2080"]]


def test_rank_from_stdin(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(REQUEST)))
    code, out, _ = run("rank", "--json")
    assert code == 0
    answer = json.loads(out)
    assert answer["model_version"] == 7
    assert [entry["item_id"] for entry in answer["rankings"][0]] == ["c", "a", "b"]
    assert answer["rankings"][0][1]["probability"] == pytest.approx(4.708)


def test_explain_table(run: Callable[..., Any]) -> None:
    _, out, _ = run("explain", "--top", "1", request=REQUEST)
    assert "1. rests on" in out
    assert cells(out)[2:] == [
        ["position", "item_id", "category_id", "rating", "distance", "weight"],
        ["0", "c", "3", "5", "0", "5.0000"],
        ["2", "c", "3", "2", "0", "2.0000"],
    ]


def test_explain_json_of_several_requests(run: Callable[..., Any]) -> None:
    request = {
        "user": {"user_id": [8, 9]},
        "context": {"hour": [20, 0]},
        "history": {"item_id": [["c", "a", "c"], ["b"]], "category_id": [[3, 1, 3], [2]], "rating": [[5, 4, 2], [1]]},
        "candidates": {"item_id": [["a", "b"], ["b", "c"]], "category_id": [[1, 2], [2, 3]]},
    }
    _, out, _ = run("explain", "--json", request=request)
    first, second = json.loads(out)["rankings"]
    assert "others" not in first[0]
    assert [entry["item_id"] for entry in first] == ["a", "b"]
    best = {"position": 0, "item_id": "b", "category_id": 2, "rating": 1, "distance": 0, "weight": 1.0}
    assert second[0] == {
        "item_id": "b",
        "category_id": 2,
        "probability": pytest.approx(1.509),
        "retrieved": [best],  # the second place is empty: this user has one behaviour
    }


def test_explain_units(fake: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A unit without scores, then one with scores of its own; item 1 is at position 1 + 0 or 1 - 1."""
    fake.explained = {"positions": 0, "weights": 2, "recent_positions": -1, "recent_weights": 1, "recent_cosines": 5}
    fake.counted = {"match_item_id_count": 4}
    path = tmp_path / "request.json"
    path.write_text(json.dumps({"candidates": {"item_id": [1]}, "history": {"item_id": [7, 8]}}))
    command = ["explain", "--target", fake.address, "--request", str(path)]
    assert main([*command, "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["rankings"][0]
    assert entry["match_item_id_count"] == 5
    assert entry["retrieved"] == [{"position": 1, "item_id": 8, "weight": 3.0}]
    assert entry["others"] == {"recent": [{"position": 0, "item_id": 7, "cosine": 6, "weight": 2.0}]}
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "1. rests on, by recent" in out
    assert cells(out) == [
        ["item_id", "probability", "match_item_id_count"],
        ["1", "1001.0000", "5"],
        ["position", "item_id", "weight"],
        ["1", "8", "3.0000"],
        ["position", "item_id", "cosine", "weight"],
        ["0", "7", "6", "2.0000"],
    ]


def test_status(run: Callable[..., Any]) -> None:
    assert cells(run("status")[1]) == [["version", "state", "error"], ["7", "AVAILABLE", ""]]
    assert json.loads(run("status", "--json")[1]) == [{"version": 7, "state": "AVAILABLE", "error": ""}]


def test_metadata(run: Callable[..., Any]) -> None:
    _, out, _ = run("metadata")
    assert "rank, version 7" in out
    assert ["in", "history_item_id", "string", "(?, ?)"] in cells(out)
    signatures = json.loads(run("metadata", "--json")[1])["signatures"]
    assert signatures["rank"]["outputs"] == {"probability": {"dtype": "float32", "shape": [None, None]}}


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ("{", "request.json is not JSON: Expecting property name"),
        ([1], "must be a JSON object with `candidates` and `history`"),
        ({"candidates": {}}, "Received: ['candidates']"),
        (REQUEST | {"users": {}}, "Received: ['candidates', 'context', 'history', 'user', 'users']"),
        (REQUEST | {"user": 8}, "`user` must be an object of columns by name. Received: 8"),
        (REQUEST | {"user": {}}, "Missing: user_id."),
    ],
)
def test_wrong_request(run: Callable[..., Any], request_: Any, text: str) -> None:
    code, out, err = run("rank", request=request_)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert text in err


def test_request_file_missing(run: Callable[..., Any]) -> None:
    code, _, err = run("rank", "--request", "/nowhere.json")
    assert code == 1
    assert "No such file or directory: '/nowhere.json'" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--top", "0"], "--top must be a positive integer. Received: 0"),
        (["--candidates", "c.csv"], "--candidates and --history go together, and --user and --context go with them."),
        (["--user", "user_id=8"], "--candidates and --history go together, and --user and --context go with them."),
        (
            ["--request", "r.json", "--candidates", "c.csv", "--history", "h.csv"],
            "Give either --request or --candidates and --history.",
        ),
        (["--tls_cert", "c.pem"], "--tls_cert and --tls_key go together."),
    ],
)
def test_flags_that_do_not_fit(
    run: Callable[..., Any], capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run("rank", *arguments)
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


@pytest.fixture
def csv_files(tmp_path: Path) -> Callable[..., list[str]]:
    """The request as CSV files and flags; each file can be given another text."""

    def write(
        candidates: str | bytes = "item_id,category_id\na,1\nb,2\nc,3\n",
        history: str | bytes = "item_id,category_id,rating\nc,3,5\na,1,4\nc,3,2\n",
    ) -> list[str]:
        for name, text in (("candidates", candidates), ("history", history)):
            data = text.encode() if isinstance(text, str) else text
            (tmp_path / f"{name}.csv").write_bytes(data)
        flags = [f"--candidates={tmp_path / 'candidates.csv'}", f"--history={tmp_path / 'history.csv'}"]
        return [*flags, "--user=user_id=8", "--context=hour=20"]

    return write


def test_csv(run: Callable[..., Any], csv_files: Callable[..., list[str]]) -> None:
    """The same answer as the JSON request gets."""
    code, out, err = run("explain", "--json", *csv_files())
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(run("explain", "--json", request=REQUEST)[1])
    assert [entry["item_id"] for entry in json.loads(out)["rankings"][0]] == ["c", "a", "b"]


def test_csv_with_quotes_a_byte_order_mark_and_another_order(
    run: Callable[..., Any], csv_files: Callable[..., list[str]]
) -> None:
    candidates = '\ufeffcategory_id,item_id\r\n1,"Amélie, ""le film"""\r\n'
    history = 'rating,category_id,item_id\r\n1.5,2,"Amélie, ""le film"""'
    code, out, err = run("rank", "--json", *csv_files(candidates, history))
    assert (code, err) == (0, "")
    entry = {"category_id": 1, "item_id": 'Amélie, "le film"', "probability": pytest.approx(1.708)}
    assert json.loads(out)["rankings"] == [[entry]]


def test_csv_without_behaviours(run: Callable[..., Any], csv_files: Callable[..., list[str]]) -> None:
    code, out, _ = run("rank", "--json", *csv_files(history="item_id,category_id,rating\n"))
    assert code == 0
    assert [entry["probability"] for entry in json.loads(out)["rankings"][0]] == [pytest.approx(0.208)] * 3


@pytest.mark.parametrize(
    ("texts", "flags", "text"),
    [
        ({"candidates": "item_id,category_id\na,1\nb,x\n"}, [], "line 3: `category_id` must be int64. Received: 'x'"),
        ({"history": "item_id,category_id,rating\na,1,\n"}, [], "line 2: `rating` must be float32. Received: ''"),
        ({"candidates": "item_id,category_id\na,1\nb\n"}, [], "line 3: must have 2 values. Received: ['b']"),
        ({"candidates": "item_id,category_id\na,1\n\nb,1\n"}, [], "line 3: must have 2 values. Received: []"),
        ({"candidates": ""}, [], "must begin with a line of column names, each once. Received: []"),
        ({"candidates": "item_id,item_id\na,b\n"}, [], "each once. Received: ['item_id', 'item_id']"),
        ({"candidates": "item_id,\na,b\n"}, [], "each once. Received: ['item_id', '']"),
        ({"candidates": b"item_id,category_id\n\xff,1\n"}, [], "candidates.csv is not UTF-8 text: "),
        ({"candidates": 'item_id,category_id\n"a,1\n'}, [], "line 2: unexpected end of data"),
        ({"candidates": "item_id,price\na,1\n"}, [], "Missing: category_id. Unknown: price."),
        ({"history": "history_item_id,category_id,rating\n"}, [], "Unknown: history_history_item_id."),
        ({}, ["--user=age"], "--user must be name=value, each name once. Received: age"),
        ({}, ["--user=user_id=9"], "--user must be name=value, each name once. Received: user_id=9"),
        ({}, ["--context==9"], "--context must be name=value, each name once. Received: =9"),
        ({}, ["--context=user_id=9"], "`context['user_id']` and `user['user_id']` are the same input."),
        ({}, ["--context=day=x"], "Unknown: day."),
        ({}, ["--candidates=/nowhere.csv"], "No such file or directory: '/nowhere.csv'"),
    ],
)
def test_wrong_csv(
    run: Callable[..., Any], csv_files: Callable[..., list[str]], texts: dict[str, Any], flags: list[str], text: str
) -> None:
    code, out, err = run("rank", *csv_files(**texts), *flags)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert text in err


@pytest.mark.parametrize("command", ["rank", "explain", "status", "metadata"])
def test_no_server(free_target: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps(REQUEST))
    arguments = ["--request", str(request)] if command in ("rank", "explain") else []
    assert main([command, "--target", free_target, *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: Model 'eta' at {free_target} answered UNAVAILABLE: ")
    assert captured.err.count("\n") == 1


@pytest.fixture
def secure(
    push: Callable[..., Path], serve: Callable[..., Any], tmp_path: Path, authority: Any
) -> tuple[str, dict[str, Path]]:
    """Address of a server with mutual TLS, and the files that a client of it needs, by flag."""
    (tmp_path / "models").mkdir()
    push("string", tmp_path / "models", 7)
    key, certificate = authority.issue("server")
    ssl_config = SSLConfig(server_key=key, server_cert=certificate, custom_ca=authority.certificate, client_verify=True)
    files = {}
    key, certificate = authority.issue("client")
    for name, pem in (("tls_ca", authority.certificate), ("tls_cert", certificate), ("tls_key", key)):
        files[name] = tmp_path / f"{name}.pem"
        files[name].write_text(pem)
    return serve(tmp_path / "models", server={"ssl_config": ssl_config}).address, files


def test_mutual_tls(secure: tuple[str, dict[str, Path]], capsys: pytest.CaptureFixture[str]) -> None:
    address, files = secure
    flags = [f"--{name}={path}" for name, path in files.items()]
    assert main(["status", "--json", "--target", address, *flags]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "AVAILABLE"
    assert main(["status", "--json", "--target", address, flags[0]]) == 1
    assert "answered UNAVAILABLE" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["tls_ca", "tls_cert", "tls_key"])
def test_tls_files(secure: tuple[str, dict[str, Path]], capsys: pytest.CaptureFixture[str], flag: str) -> None:
    address, files = secure
    flags = [f"--{name}={path}" for name, path in files.items()]
    files[flag].write_text("no key")
    assert main(["status", "--target", address, *flags]) == 1
    assert capsys.readouterr().err == f"error: --{flag} must be a PEM file. Received: {files[flag]}\n"
    files[flag].unlink()
    assert main(["status", "--target", address, *flags]) == 1
    assert f"No such file or directory: '{files[flag]}'" in capsys.readouterr().err


def test_server_refuses(run: Callable[..., Any]) -> None:
    code, _, err = run("status", "--model_name", "nope")
    assert code == 1
    assert "answered NOT_FOUND: Could not find any versions of model nope" in err
    assert run("status", "--model_name", "no\npe")[2].count("\n") == 1


@pytest.mark.parametrize("command", ["rank", "explain", "recommend", "user-state", "status", "metadata"])
def test_help_has_examples(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    examples = capsys.readouterr().out.partition("examples:")[2]
    assert f"  python -m serving.client {command}" in examples
    assert ('"candidates": {"item_id": [260, 1193, 2571]}' in examples) == (
        command in ("rank", "explain", "user-state")
    )


@pytest.mark.e2e
def test_server_and_client_processes(push: Callable[..., Path], tmp_path: Path) -> None:
    push("string", tmp_path, 7)
    command = [sys.executable, "-m", "serving.server", "--port", "0", "--model_base_path", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            started = re.fullmatch(r"Running gRPC ModelServer at (127\.0\.0\.1:\d+) \.\.\.\n", line)
            assert started, line
            client = subprocess.run(
                [sys.executable, "-m", "serving.client", "rank", "--target", started[1], "--json"],
                input=json.dumps(REQUEST),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert client.returncode == 0, client.stderr
            assert [entry["item_id"] for entry in json.loads(client.stdout)["rankings"][0]] == ["c", "a", "b"]
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=20) == 0
        finally:
            server.kill()
