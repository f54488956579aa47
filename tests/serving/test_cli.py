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

from serving.cli import main

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
    assert [entry["item_id"] for entry in first] == ["a", "b"]
    best = {"position": 0, "item_id": "b", "category_id": 2, "rating": 1, "distance": 0, "weight": 1.0}
    assert second[0] == {
        "item_id": "b",
        "category_id": 2,
        "probability": pytest.approx(1.509),
        "retrieved": [best],  # the second place is empty: this user has one behaviour
    }


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
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert text in err


def test_request_file_missing(run: Callable[..., Any]) -> None:
    code, _, err = run("rank", "--request", "/nowhere.json")
    assert code == 2
    assert "No such file or directory: '/nowhere.json'" in err


def test_top_must_be_positive(run: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("rank", "--top", "0", request=REQUEST)
    assert ended.value.code == 2
    assert "--top must be a positive integer. Received: 0" in capsys.readouterr().err


def test_server_refuses(run: Callable[..., Any]) -> None:
    code, _, err = run("status", "--model_name", "nope")
    assert code == 1
    assert "answered NOT_FOUND: Could not find any versions of model nope" in err


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["rank", "--help"])
    assert ended.value.code == 0
    assert '"candidates": {"item_id": [260, 1193, 2571]}' in capsys.readouterr().out


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
