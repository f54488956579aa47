"""The fuzz tool: that its requests can be made again, what it calls a fault, and a short run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import predict_pb2

from serving.server.embedded import EmbeddedServer, read_models
from serving.server.status import StatusError
from serving.server.tensors import read_tensor
from serving.tools.fuzz import __main__ as fuzz
from serving.tools.fuzz import mutations, run
from serving.tools.fuzz.mutations import GOOD as GOOD_REQUEST
from serving.tools.fuzz.mutations import Requests
from serving.tools.fuzz.requests import PREDICT, RANKER, RELOAD, RawRequest, make_models, reference_scores
from serving.tools.reference_model import MODEL, raw_tensor

Code = grpc.StatusCode
SCORES = np.array([[2, 0]], np.float32)
MALFORMED = b"\xff"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.fixture(scope="module")
def requests(models: Path) -> Requests:
    return Requests(models, seed=3)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the longest histories short: what is large takes long."""
    monkeypatch.setattr(mutations, "_LONG", 50)
    monkeypatch.setattr(mutations, "_MANY_ROWS", 20)


@pytest.mark.usefixtures("short")
def test_requests_are_a_function_of_seed_and_index(
    models: Path, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Loading the ranker and tracing its signatures takes seconds, and it is the same one.
    monkeypatch.setattr(tf.saved_model, "load", lambda path: requests._ranker)
    first = [requests[index] for index in range(60)]
    again = Requests(models, seed=3)
    assert [again[index].data for index in reversed(range(60))] == [request.data for request in reversed(first)]
    assert again[7].mutation == first[7].mutation
    other = Requests(models, seed=4)
    assert sum(other[index].data == request.data for index, request in enumerate(first)) < 5


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("mutation", mutations.MUTATIONS)
def test_every_mutation_makes_requests(requests: Requests, mutation: str) -> None:
    made = [mutations.MUTATIONS[mutation][1](np.random.default_rng(seed), requests) for seed in range(3)]
    assert len({request.data for request in made}) == 3
    assert all(request.method.startswith("/") for request in made)


@pytest.mark.usefixtures("short")
def test_good_requests_come_between(requests: Requests) -> None:
    good = [requests[index] for index in range(0, 200, 5)]
    assert {request.mutation for request in good} == {GOOD_REQUEST}
    specs = [predict_pb2.PredictRequest.FromString(request.data).model_spec for request in good]
    assert {spec.signature_name for spec in specs} == {"", "serving_default", "rank", "explain", "examples"}
    assert {spec.name for spec in specs} == {MODEL, RANKER}
    assert {request.version for request in good} == {1, 2}


def test_expected_scores() -> None:
    """Row 0 counts its two first behaviours, row 1 none of them."""
    history, lengths = np.array([[1, 1, 2], [1, 2, 3]]), np.array([2, 0])
    scores = reference_scores(history, lengths, candidates=np.array([[1, 2], [1, 2]]))
    np.testing.assert_array_equal(scores, [[2, 0], [0, 0]])
    np.testing.assert_array_equal(reference_scores(history, lengths, candidate=np.array([1, 1])), [2, 0])


def request(**changes: Any) -> RawRequest:
    data = predict_pb2.PredictRequest(model_spec={"name": MODEL}).SerializeToString()
    return dataclasses.replace(RawRequest("m", PREDICT, data, predict_pb2.PredictRequest), **changes)


def answer(scores: np.ndarray = SCORES, version: int = 1, name: str = "probability") -> bytes:
    response = predict_pb2.PredictResponse(model_spec={"version": {"value": version}})
    response.outputs[name].CopyFrom(tf.make_tensor_proto(scores))
    return response.SerializeToString()


GOOD = request(expected={"probability": SCORES}, version=1)


@pytest.mark.parametrize(
    ("asked", "code", "answered", "fault"),
    [
        (GOOD, Code.OK, answer(), ""),
        (GOOD, Code.OK, answer(SCORES + 1), "wrong 'probability': [[3.0, 1.0]], not [[2.0, 0.0]]"),
        (GOOD, Code.OK, answer(SCORES[0]), "wrong 'probability': [2.0, 0.0], not [[2.0, 0.0]]"),
        (GOOD, Code.OK, answer(SCORES * np.nan), "wrong 'probability': [[nan, nan]]"),
        (GOOD, Code.OK, answer(version=2), "version 2 answered, not 1"),
        (GOOD, Code.OK, answer(name="p"), "outputs ['p'], not ['probability']"),
        (GOOD, Code.INVALID_ARGUMENT, "no", "a good request got INVALID_ARGUMENT: no"),
        (GOOD, None, "", "no answer after 62.0 s"),
        (request(), Code.OK, b"", ""),
        (request(), Code.INVALID_ARGUMENT, "no", ""),
        (request(), Code.NOT_FOUND, "no", ""),
        (request(), None, "", "no answer after 62.0 s"),
        (request(), Code.INTERNAL, "KeyError", "INTERNAL: KeyError"),
        (request(data=MALFORMED), Code.INTERNAL, "can't be parsed", ""),
        (request(), Code.UNKNOWN, "Exception", "UNKNOWN: Exception"),
        (request(method=RELOAD), Code.UNKNOWN, "did not become available", ""),
        (request(method=RELOAD), Code.PERMISSION_DENIED, "outside", ""),
        (request(), Code.PERMISSION_DENIED, "outside", "PERMISSION_DENIED: outside"),
        (request(), Code.UNAVAILABLE, "reset", "UNAVAILABLE: reset"),
        (request(), Code.DEADLINE_EXCEEDED, "late", "DEADLINE_EXCEEDED: late"),
        (request(timeout=0.001), Code.DEADLINE_EXCEEDED, "late", ""),
        (request(), Code.RESOURCE_EXHAUSTED, "OOM", "RESOURCE_EXHAUSTED: OOM"),
    ],
)
def test_fault_of(asked: RawRequest, code: grpc.StatusCode | None, answered: Any, fault: str) -> None:
    found = run.fault_of(asked, code, answered)
    assert found.startswith(fault)
    assert bool(found) == bool(fault)


def test_one_string_without_a_shape() -> None:
    """Found by this tool: INTERNAL, as it was no array."""
    array = read_tensor("name", tf.make_tensor_proto(b"one"), types_pb2.DT_STRING, 0)
    assert array.shape == ()
    assert array[()] == b"one"


def test_one_value_for_many() -> None:
    """Found by this tool: 146 bytes that the reference model made 4 GB of."""
    few, many = (raw_tensor([size], int64_val=[1]) for size in (1 << 10, (1 << 10) + 1))
    assert read_tensor("history", few, types_pb2.DT_INT64, 0).sum() == 1 << 10
    with pytest.raises(StatusError, match="tensor parsing error: history"):
        read_tensor("history", many, types_pb2.DT_INT64, 0)


class _Server:
    """In place of a process: its memory from call to call, and how it ends."""

    def __init__(self, *memory: int, exit_code: int | None = None) -> None:
        self._memory = list(memory)
        self.exit_code = exit_code

    @property
    def memory(self) -> int:
        return self._memory.pop(0)

    def last_words(self) -> str:
        return "Segmentation fault"


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[[grpc.StatusCode, Any], None]:
    """Has every request answered so, at once."""
    monkeypatch.setattr(run.time, "sleep", lambda seconds: None)

    def answer_all(code: grpc.StatusCode, answered: Any) -> None:
        monkeypatch.setattr(run, "ask", lambda channel, request: (code, answered))

    return answer_all


def test_run_names_the_request_of_a_fault(ask: Any, requests: Requests) -> None:
    ask(Code.UNKNOWN, "boom")
    report = run.run(None, requests, [5, 6])
    assert [index for index, _ in report.faults] == [5, 6]
    assert report.faults[0][1] == "none: a good request: a good request got UNKNOWN: boom"
    assert report.counts == {(GOOD_REQUEST, "UNKNOWN"): 1, (requests[6].mutation, "UNKNOWN"): 1}


def test_run_ends_when_the_server_does(ask: Any, requests: Requests) -> None:
    ask(Code.UNAVAILABLE, "reset")
    server: Any = _Server(1, 1, exit_code=-11)
    report = run.run(None, requests, [6, 7, 8], server)
    assert report.faults[-1] == (6, "the server ended with -11: Segmentation fault")
    assert sum(report.counts.values()) == 1


@pytest.mark.parametrize(("after", "faults"), [(110, []), (111, [(-1, "memory grew by more than 10%")])])
def test_run_memory(
    ask: Any, requests: Requests, monkeypatch: pytest.MonkeyPatch, after: int, faults: list[tuple[int, str]]
) -> None:
    monkeypatch.setattr(run, "_MIN_REQUESTS_FOR_MEMORY", 4)
    monkeypatch.setattr(run, "fault_of", lambda *_: "")
    ask(Code.NOT_FOUND, "no")
    server: Any = _Server(100, after)
    report = run.run(None, requests, [1, 2, 3, 4], server)
    assert report.memory == (100, after)
    assert report.faults == faults


@pytest.mark.usefixtures("short")
def test_reload_that_passes_is_taken_back(requests: Requests, monkeypatch: pytest.MonkeyPatch, ask: Any) -> None:
    sent = []

    def answer(channel: Any, request: RawRequest) -> tuple[grpc.StatusCode, bytes]:
        sent.append(request)
        return Code.OK, b""

    monkeypatch.setattr(run, "ask", answer)
    monkeypatch.setattr(run, "fault_of", lambda *_: "")
    index = next(index for index in range(10_000) if requests[index].method == RELOAD)
    run.run(None, requests, [index])
    assert [request.method for request in sent] == [RELOAD] * 2
    assert sent[1].data == requests.reload.SerializeToString(deterministic=True) != sent[0].data


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--requests", "0"], "--requests must be positive"),
        (["--seed", "-1"], "--seed not negative"),
        (["--target", "127.0.0.1:1"], "--target needs --models"),
    ],
)
def test_flags(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        fuzz.main(argv)
    assert message in capsys.readouterr().err


def test_nothing_at_target(models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "_CONNECT_SECONDS", 0.5)
    assert fuzz.main(["--target", "127.0.0.1:1", "--models", str(models)]) == 1
    assert "error: nothing answers at 127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.e2e
def test_embedded_server(models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole tool: 150 requests to a server in a process of its own."""
    # Loading models takes most of the time, and more often tells more of memory alone.
    monkeypatch.setattr(run, "_LOADS", 1)
    exit_code = fuzz.main(["--requests", "150", "--models", str(models)])
    output = capsys.readouterr().out
    assert "150 requests, 0 faults" in output
    assert exit_code == 0
    assert "bytes flipped" in output
    assert "Resident memory of the server: " in output


def test_only_one_request_to_a_target(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with EmbeddedServer(
        read_models(str(models / "models.config")),
        port=0,
        file_system_poll_wait_seconds=0,
        allow_version_labels_for_unavailable_models=True,
    ) as server:
        assert fuzz.main(["--only", "15", "--models", str(models), "--target", server.address]) == 0
    output = capsys.readouterr().out
    assert "none: a good request: /tensorflow.serving.PredictionService/Predict" in output
    assert "model_spec {" in output
    assert "1 requests, 0 faults" in output
