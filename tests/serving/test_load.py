"""The load tool: what it sends, how it counts, and that an open loop hides no waiting."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from benchmarks.serving import load, overhead, requests, runs
from benchmarks.serving.__main__ import main
from benchmarks.serving.runs import Call, Run
from serving.client.answers import Signature, TensorSpec
from serving.server.embedded import EmbeddedServer

OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
SHORT = ["--duration", "0.3", "--warmup", "0", "--users", "3", "--candidates", "4", "--history", "6"]


@pytest.fixture
def fake() -> Iterator[Callable[..., grpc.Channel]]:
    """Servers that answer one call at a time, by a function of the request's bytes and the context."""
    servers = []

    def start(answer: Callable[[bytes, Any], bytes]) -> grpc.Channel:
        handler = grpc.unary_unary_rpc_method_handler(answer)
        generic = grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", {"Predict": handler})
        server = grpc.server(futures.ThreadPoolExecutor(1))
        server.add_generic_rpc_handlers((generic,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        channel = load.connect(f"127.0.0.1:{port}")
        grpc.channel_ready_future(channel).result(10)
        servers.append((server, channel))
        return channel

    yield start
    for server, channel in servers:
        channel.close()
        server.stop(0)


def slow(request: bytes, context: object) -> bytes:
    time.sleep(0.2)
    return request


def test_percentiles_of_known_samples() -> None:
    latencies = np.arange(1.0, 1001.0)
    assert [runs.percentile(latencies, q) for q in (*runs.PERCENTILES, 100)] == [500, 900, 990, 999, 1000]
    assert [runs.percentile(np.array([1.0, 2.0, 9.0]), q) for q in (1, 50, 67, 99.9)] == [1, 2, 9, 9]
    assert runs.percentile(np.array([]), 50) is None


def test_curve_has_ten_points_a_nine_and_ends_where_samples_end() -> None:
    points = runs.curve(np.arange(1.0, 1001.0))
    assert len(points) == 31
    np.testing.assert_allclose([points[i] for i in (0, 10, 20, 30)], [(0, 1), (90, 900), (99, 990), (99.9, 999)])
    assert runs.curve(np.array([7.0])) == [(0, 7)]
    assert runs.curve(np.array([])) == []


def test_run_leaves_the_warm_up_out_and_counts_latency_from_when_a_call_was_due() -> None:
    calls = [
        Call(0.5, 0.5, 1.9, OK),
        Call(1.0, 1.4, 1.5, OK),
        Call(2.0, 2.0, 2.25, OK),
        Call(2.0, 2.0, 3.0, UNAVAILABLE),
    ]
    report = Run.of("run", calls, warmup=1.0, client_cpu=0.25).report()
    assert report["requests"] == 3
    assert report["ok"] == 2
    assert report["errors"] == {"UNAVAILABLE": 1}
    assert (report["seconds"], report["ok_per_second"]) == (2.0, 1.0)
    assert report["latency_ms"] == {"p50": 250, "p90": 500, "p99": 500, "p99.9": 500, "max": 500}
    assert report["sent_late_p99_ms"] == pytest.approx(400)
    assert report["client_cpu"] == 0.25


def test_run_without_calls_has_no_latencies() -> None:
    report = Run.of("run", [Call(0.5, 0.5, 0.6, OK)], warmup=1.0).report()
    assert (report["requests"], report["ok"], report["ok_per_second"], report["curve"]) == (0, 0, 0, [])
    assert set(report["latency_ms"].values()) == {None}


def test_random_inputs_fit_the_metadata() -> None:
    columns = {
        "user_id": ("int64", 1),
        "item_id": ("string", 2),
        "price": ("float32", 2),
        "timestamp": ("int64", 1),
        "history_item_id": ("string", 2),
        "history_timestamp": ("int64", 2),
        "history_length": ("int32", 1),
    }
    signature = Signature({name: TensorSpec(dtype, (None,) * rank) for name, (dtype, rank) in columns.items()}, {})
    one, again = (
        requests.random_inputs(signature, candidates=40, history=6, ids=9, rng=np.random.default_rng(1))
        for _ in range(2)
    )
    assert {name: values.shape for name, values in one.items()} == {
        **{"user_id": (1,), "timestamp": (1,), "history_length": (1,), "item_id": (1, 40), "price": (1, 40)},
        **{"history_item_id": (1, 6), "history_timestamp": (1, 6)},
    }
    assert {name: values.dtype.name for name, values in one.items()} == {
        name: dtype.replace("string", "object") for name, (dtype, _) in columns.items()
    }
    assert one["history_length"] == 6
    assert set(one["item_id"].flat) == {b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9"}
    moments = [*one["timestamp"], *one["history_timestamp"][0]]
    assert moments == sorted(set(moments), reverse=True)
    for name, values in one.items():
        np.testing.assert_array_equal(values, again[name])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TensorSpec("int64", (None, None, 3)), r"`x` has shape \(None, None, 3\)"),
        (TensorSpec("bool", (None,)), "`x` has dtype bool"),
    ],
)
def test_random_inputs_name_an_input_that_fits_no_request(spec: TensorSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        requests.random_inputs(Signature({"x": spec}, {}), candidates=1, history=1, ids=1, rng=np.random.default_rng(0))


def test_arrivals() -> None:
    rng = np.random.default_rng(0)
    assert load.arrivals(4, 1.5, "fixed", rng).tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25]
    moments = load.arrivals(1_000, 10, "poisson", rng)
    # Both within 5 standard deviations of a Poisson process: 10,000 of them, with exponential gaps of 1 ms.
    assert abs(len(moments) - 10_000) < 500
    gaps = np.diff(moments)
    assert gaps.min() >= 0
    assert abs(gaps.std() - 0.001) < 0.00008


def test_open_loop_counts_the_waiting_that_a_closed_loop_hides(fake: Callable[..., grpc.Channel]) -> None:
    channel = fake(slow)
    due = np.arange(5) / 100
    calls = sorted(load.open_loop(channel, [b"x"], due, 10.0))
    assert [call.due for call in calls] == due.tolist()
    assert calls[-1].sent < calls[0].answered
    # One at a time, 200 ms each: the fifth, due after 40 ms, is answered after 1,000 ms.
    least = [200, 390, 580, 770, 960]
    assert (Run.of("open", calls).latencies >= least).all()
    closed = load.closed_loop([load.caller(channel, [b"x"], 0, 10.0)], 0.5)
    assert len(closed) <= 3
    assert np.median(Run.of("closed", closed).latencies) < 390


def test_open_loop_sends_requests_in_turn_at_their_times(fake: Callable[..., grpc.Channel]) -> None:
    seen = []

    def answer(request: bytes, context: object) -> bytes:
        seen.append(request)
        return b""

    calls = load.open_loop(fake(answer), [b"a", b"b"], np.array([0.0, 0.2, 0.4]), 10.0)
    assert seen == [b"a", b"b", b"a"]
    assert all(call.sent >= call.due and call.answered > call.sent for call in calls)
    assert [call.due for call in calls] == [0.0, 0.2, 0.4]


def test_errors_are_counted_by_code(fake: Callable[..., grpc.Channel]) -> None:
    turns = itertools.count()

    def answer(request: bytes, context: Any) -> bytes:
        if next(turns) % 3 == 2:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return request

    channel = fake(answer)
    run = Run.of("open", load.open_loop(channel, [b"x"], np.zeros(9), 10.0)).report()
    assert (run["requests"], run["ok"], run["errors"]) == (9, 6, {"RESOURCE_EXHAUSTED": 3})
    closed = load.closed_loop([load.caller(channel, [b"x"], 0, 10.0)], 0.2)
    # A single caller: which call got which answer is certain.
    assert [call.code.name for call in closed[:4]] == ["OK", "OK", "RESOURCE_EXHAUSTED", "OK"]


def test_calls_over_their_deadline_are_errors(fake: Callable[..., grpc.Channel]) -> None:
    channel = fake(slow)
    for calls in (
        load.open_loop(channel, [b"x"], np.zeros(2), 0.02),
        load.closed_loop([load.caller(channel, [b"x"], 0, 0.02)], 0.2),
    ):
        assert {call.code for call in calls} == {grpc.StatusCode.DEADLINE_EXCEEDED}


def test_callers_start_at_requests_of_their_own(fake: Callable[..., grpc.Channel]) -> None:
    channel = fake(lambda request, context: request)
    ask = load.caller(channel, [b"a", b"b", b"c"], 4, 10.0)
    assert [ask() for _ in range(3)] == [b"b", b"c", b"a"]


@pytest.mark.parametrize(
    ("signature", "loop"),
    [("rank", ["--concurrency", "1", "2"]), ("explain", ["--rate", "20", "40", "--arrivals", "fixed"])],
)
def test_load_counts_what_the_server_answered(
    contract_servers: dict[str, str], tmp_path: Path, signature: str, loop: list[str], capsys: pytest.CaptureFixture
) -> None:
    # The ids of the one server are integers, those of the other strings.
    for ids, target in contract_servers.items():
        report, image = tmp_path / f"{ids}.json", tmp_path / f"{ids}.png"
        flags = [*loop, *SHORT, "--signature", signature, "--json", str(report), "--plot", str(image)]
        assert main(["load", "--target", target, *flags]) == 0
        runs = json.loads(report.read_text())["runs"]
        for run in runs:
            assert run["requests"] == run["ok"] > 0
            assert run["errors"] == {}
            assert 0 < run["latency_ms"]["p50"] <= run["latency_ms"]["max"] < 1e4
            assert run["ok_per_second"] == pytest.approx(run["ok"] / run["seconds"])
        if "--rate" in loop:
            assert [run["ok"] for run in runs] == [6, 12]
        assert image.read_bytes().startswith(b"\x89PNG")
        printed = capsys.readouterr().out
        assert "none" in printed
        assert f"{signature} of eta" in " ".join(printed.split())


def test_load_counts_each_call_once(
    serve: Callable[..., EmbeddedServer], push: Callable[..., Path], tmp_path: Path
) -> None:
    push("int64", tmp_path, 1)
    server = serve(tmp_path)
    flags = ["--signature", "explain", *SHORT, "--json", str(tmp_path / "run.json")]
    assert main(["load", "--target", server.address, *flags]) == 0
    run = json.loads((tmp_path / "run.json").read_text())["runs"][0]
    assert run["name"] == "8 callers"
    # The tool tries one request before it begins.
    labels = {"model": "eta", "version": "1", "signature": "explain"}
    registry = server._metrics.registry
    assert registry.get_sample_value("serving_request_latency_seconds_count", labels) == run["ok"] + 1


def test_swap_loads_a_server_with_and_without_pushes(
    serve: Callable[..., EmbeddedServer], push: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base_path = tmp_path / "eta"
    push("int64", base_path, 7)
    where = ["--target", serve(base_path).address, "--base_path", str(base_path)]
    files = ["--json", str(tmp_path / "swap.json"), "--plot", str(tmp_path / "swap.png")]
    flags = [*where, *SHORT[2:], "--duration", "3", "--concurrency", "2", "--every", "0.6", *files]
    assert main(["swap", *flags]) == 0
    report = json.loads((tmp_path / "swap.json").read_text())
    assert [run["name"] for run in report["runs"]] == ["no pushes", "a push every 0.6 s"]
    assert all(run["ok"] > 0 and not run["errors"] for run in report["runs"])
    p99s = [run["latency_ms"]["p99"] for run in report["runs"]]
    assert report["p99_ratio"] == p99s[1] / p99s[0]
    assert f"p99 with pushes over p99 without: {report['p99_ratio']:.2f}" in capsys.readouterr().out
    # The version that was there, and the last two of its own.
    assert report["pushes"] >= 2
    last = 7 + report["pushes"]
    assert {path.name for path in base_path.iterdir()} == {"7", str(last - 1), str(last)}
    assert (tmp_path / "swap.png").read_bytes().startswith(b"\x89PNG")

    assert main(["swap", *where, *SHORT, "--every", "60"]) == 1
    assert "`--every` must be below the 0.3 s of a load." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["swap", "--target", "127.0.0.1:1"])
    assert "--target and --base_path go together." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["swap", *where, "--concurrency", "2", "4"])
    assert "swap runs one load: give one --concurrency or one --rate." in capsys.readouterr().err


def test_unknown_model_is_an_error_before_and_counted_in_a_run(
    contract_servers: dict[str, str], capsys: pytest.CaptureFixture
) -> None:
    target = contract_servers["int64"]
    assert main(["load", "--target", target, "--model_name", "nope", *SHORT]) == 1
    assert "answered NOT_FOUND: Servable not found for request: Latest(nope)" in capsys.readouterr().err
    with load.connect(target) as channel:
        request = requests.serialize("nope", "rank", {"user_id": np.array([1])})
        calls = load.open_loop(channel, [request], np.zeros(4), 10.0)
    run = Run.of("4 at once", calls).report()
    assert (run["ok"], run["errors"]) == (0, {"NOT_FOUND": 4})


def test_load_says_what_is_wrong_before_it_begins(
    serve: Callable[..., EmbeddedServer], push: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    push("1", tmp_path, 1)
    address = serve(tmp_path).address
    assert main(["load", "--target", address, "--signature", "explain", *SHORT]) == 1
    assert "Model 'eta' has no signature 'explain': rank, serving_default" in capsys.readouterr().err
    assert main(["load", "--target", "127.0.0.1:1", "--timeout", "2", *SHORT]) == 1
    assert "UNAVAILABLE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["load", "--concurrency", "0"])
    assert "must be an integer above 0. Received: 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["load", "--concurrency", "1", "--rate", "1"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_plot_lays_reports_over_each_other(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, latency in (("before", 0.2), ("after", 0.1)):
        runs = [Run.of("8 callers", [Call(0, 0, latency, OK)] * 100).report()]
        (tmp_path / f"{name}.json").write_text(json.dumps({"runs": runs}))
    files = [str(tmp_path / name) for name in ("before.json", "after.json", "both.svg")]
    assert main(["plot", *files]) == 0
    drawn = (tmp_path / "both.svg").read_text()
    # Matplotlib draws texts as curves, and says in a comment what they are.
    for text in ("before: 8 callers", "after: 8 callers", "50", "90", "99"):
        assert f"<!-- {text} -->" in drawn
    assert "<!-- 99.9 -->" not in drawn
    (tmp_path / "after.json").write_text("[]")
    capsys.readouterr()
    assert main(["plot", *files]) == 1
    assert "after.json is no report of `load --json`" in capsys.readouterr().err


def test_ratios_round_by_round() -> None:
    measured = {"signature in process": [10.0, 20.0, 30.0], "gRPC": [11.0, 24.0, 30.0]}
    table = overhead.ratios(measured)
    # 1.1, 1.2 and 1.0; the 10th percentile lies a fifth of the way from the least to the middle.
    assert table["gRPC"] == pytest.approx({"median": 24, "ratio": 1.1, "ratio_p10": 1.02, "ratio_p90": 1.18})
    assert table["signature in process"] == {"median": 20, "ratio": 1, "ratio_p10": 1, "ratio_p90": 1}


def test_in_process_calls_answer_as_the_model_does(saved_models: dict[str, Path]) -> None:
    # The third version scores how often the history holds a candidate, plus 3.
    inputs = {
        "history": np.array([[5, 5, 6]]),
        "history_length": np.array([3]),
        "candidates": np.array([[5, 6, 7]]),
    }
    calls = overhead.in_process(saved_models["3"], [inputs])
    assert list(calls) == [overhead.SIGNATURE, overhead.SESSION]
    for call in calls.values():
        answer: Any = call()
        assert np.reshape(answer, -1).tolist() == [5, 4, 3]


@pytest.mark.slow
@pytest.mark.e2e
def test_overhead_compares_the_server_with_calls_in_process(
    saved_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def export(model: object, base_path: Path, version: int) -> Path:
        return Path(shutil.copytree(saved_models["3"], base_path / str(version)))

    # The table's own model in place of ETA, whose export takes its time.
    monkeypatch.setattr(overhead, "export_model", export)
    together = []
    closed_loop = overhead.closed_loop

    def counted(callers: list[Callable[[], object]], *arguments: Any) -> list[Call]:
        together.append(len(callers))
        return closed_loop(callers, *arguments)

    monkeypatch.setattr(overhead, "closed_loop", counted)
    sizes = ["--candidates", "5", "--history", "20", "--rounds", "2", "--calls", "2", "--threads", "2"]
    assert main(["overhead", *sizes, "--seconds", "0.2", "--json", str(tmp_path / "run.json")]) == 0
    report = json.loads((tmp_path / "run.json").read_text())
    assert together == [2] * 6
    local = [overhead.SIGNATURE, overhead.SESSION]
    assert list(report["p50_ms"]) == [*local, overhead.GRPC, overhead.CLIENT]
    assert list(report["calls_per_second"]) == [*local, overhead.GRPC]
    for table in (report["p50_ms"], report["calls_per_second"]):
        assert all(row["median"] > 0 and row["ratio_p10"] <= row["ratio"] <= row["ratio_p90"] for row in table.values())
        assert table[overhead.SIGNATURE]["ratio"] == 1
    assert "asked of gRPC: <= 1.15" in capsys.readouterr().out
