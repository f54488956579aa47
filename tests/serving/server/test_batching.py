"""Requests that are joined, and what each of them gets back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_grpc

from serving.client import RankingClient, ServingError
from serving.server import batching
from serving.server.config import BatchingParameters, check_batching
from serving.server.embedded import EmbeddedServer
from serving.tools.reference_model import rank_request, tensor

Push = Callable[..., Path]
Serve = Callable[..., EmbeddedServer]
Start = Callable[[str], RankingClient]

# Full at 4 rows; else it waits for longer than any test should take.
FOUR = "max_batch_size { value: 4 } batch_timeout_micros { value: 60000000 } num_batch_threads { value: 2 }"
SOON = "max_batch_size { value: 4 } batch_timeout_micros { value: 100000 } num_batch_threads { value: 2 }"


def parameters(text: str) -> Any:
    return text_format.Parse(text, BatchingParameters())


@pytest.fixture
def start(push: Push, serve: Serve, tmp_path: Path) -> Start:
    def started(text: str) -> RankingClient:
        push("batch", tmp_path, 1)
        return RankingClient(serve(tmp_path, server={"batching_parameters": parameters(text)}).address, timeout=30)

    return started


def ask_together(client: RankingClient, *columns: Any) -> list[Any]:
    """The answers, or the errors, to requests sent at the same time."""
    answers: list[Any] = [None] * len(columns)

    def ask(index: int) -> None:
        x = np.array(columns[index], np.int64)
        names = np.array([f"{index}.{row}".encode() for row in range(len(x))], object)
        try:
            answers[index] = client.predict({"x": x, "name": names})
        except ServingError as error:
            answers[index] = error

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(columns))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def rows(answer: dict[str, np.ndarray]) -> int:
    """How many rows the model had at once."""
    (number,) = set(answer["rows"].tolist())
    return number


def test_requests_of_equal_shapes_join(start: Start) -> None:
    with start(FOUR) as client:
        first, second, third = ask_together(client, [[1, 2]], [[3, 4], [5, 6]], [[7, 8]])
    assert [rows(answer) for answer in (first, second, third)] == [4, 4, 4]
    assert [answer["total"].tolist() for answer in (first, second, third)] == [[3], [7, 11], [15]]
    assert second["name"].tolist() == [b"1.0!", b"1.1!"]


def test_requests_of_unequal_shapes_do_not_join(start: Start) -> None:
    with start("max_batch_size { value: 2 } batch_timeout_micros { value: 60000000 }") as client:
        answers = ask_together(client, [[1, 2]], [[3, 4, 5]], [[1, 2]], [[3, 4, 5]])
    assert [rows(answer) for answer in answers] == [2, 2, 2, 2]
    assert [answer["total"].tolist() for answer in answers] == [[3], [12], [3], [12]]


def test_requests_of_unequal_shapes_that_meet_are_answered(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes share queues where there are more shapes than queues."""
    monkeypatch.setattr(batching, "_QUEUES", 1)
    with start("max_batch_size { value: 2 } batch_timeout_micros { value: 60000000 }") as client:
        first, second = ask_together(client, [[1, 2]], [[3, 4, 5]])
    assert (rows(first), rows(second)) == (1, 1)
    assert (first["total"].tolist(), second["total"].tolist()) == ([3], [12])


def test_bad_request_does_not_hit_its_neighbours(start: Start) -> None:
    with start(FOUR) as client:
        good, bad, also_good = ask_together(client, [[1, 2]], [[3, -4]], [[5, 6], [7, 8]])
    assert isinstance(bad, ServingError)
    assert bad.code.name == "INVALID_ARGUMENT"
    assert bad.details == "assertion failed: [`x` must not be negative. Received:] [[3 -4]]"
    assert (good["total"].tolist(), also_good["total"].tolist()) == ([3], [11, 15])
    assert (rows(good), rows(also_good)) == (1, 2)


def test_batch_is_filled_to_an_allowed_size(start: Start) -> None:
    with start(SOON + " allowed_batch_sizes: 2 allowed_batch_sizes: 4") as client:
        (answer,) = ask_together(client, [[1], [2], [3]])
    assert rows(answer) == 4
    assert answer["total"].tolist() == [1, 2, 3]


def test_request_larger_than_a_batch_is_refused(start: Start) -> None:
    with start(SOON) as client:
        fits, refused = ask_together(client, [[1]] * 4, [[1]] * 5)
    assert rows(fits) == 4
    assert refused.code.name == "INVALID_ARGUMENT"
    assert refused.details == "Task size 5 is larger than maximum input batch size 4"


@pytest.mark.parametrize("queues", [1, 16], ids=["in one queue", "in queues of their own"])
def test_empty_histories_and_candidates_do_not_hit_their_neighbours(
    push: Push, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queues: int
) -> None:
    """TensorFlow Serving fails all that meet such a request; here each gets its own answer, 20 rounds of them."""
    monkeypatch.setattr(batching, "_QUEUES", queues)
    push("1", tmp_path, 1)
    address = serve(tmp_path, server={"batching_parameters": parameters(SOON)}).address
    history = np.array([[3, 4, 3]])
    requests: list[tuple[dict[str, Any], Any]] = [
        ({"history": history, "history_length": [3], "candidates": [[3, 5]]}, [[2 + 1, 0 + 1]]),
        ({"history": history[:, :0], "history_length": [0], "candidates": [[3, 5]]}, [[1, 1]]),
        ({"history": history, "history_length": [2], "candidates": np.zeros((1, 0))}, np.zeros((1, 0))),
        ({"history": history[:0], "history_length": [], "candidates": np.zeros((0, 2))}, np.zeros((0, 2))),
    ] * 2
    with grpc.insecure_channel(address) as channel:
        for _ in range(20):
            calls = [
                prediction_grpc.PredictionServiceStub(channel).Predict.future(
                    rank_request(**{name: tensor(values) for name, values in inputs.items()}), timeout=20
                )
                for inputs, _ in requests
            ]
            for call, (_, expected) in zip(calls, requests, strict=True):
                np.testing.assert_array_equal(tf.make_ndarray(call.result().outputs["probability"]), expected)


@pytest.mark.parametrize(
    ("x", "name", "total"),
    [(np.zeros((0, 3)), [], []), ([[1], [2]], [b"one"], [1, 2])],
    ids=["no rows", "unequal rows"],
)
def test_what_has_no_number_of_rows_reaches_the_graph(
    push: Push, serve: Serve, tmp_path: Path, x: Any, name: list[bytes], total: list[int]
) -> None:
    """Which says what it thinks of them; this one has nothing against them."""
    push("batch", tmp_path, 1)
    address = serve(tmp_path, server={"batching_parameters": parameters(FOUR)}).address
    request = predict_pb2.PredictRequest(model_spec={"name": "eta"})
    request.inputs["x"].CopyFrom(tensor(x))
    request.inputs["name"].CopyFrom(tensor(np.array(name, object), tf.string))
    with grpc.insecure_channel(address) as channel:
        outputs = prediction_grpc.PredictionServiceStub(channel).Predict(request, timeout=20).outputs
    assert tf.make_ndarray(outputs["total"]).tolist() == total
    assert tf.make_ndarray(outputs["name"]).tolist() == [each + b"!" for each in name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size { value: 0 }", "`max_batch_size` must be at least 1. Received: max_batch_size=0"),
        ("num_batch_threads { value: -1 }", "`num_batch_threads` must be at least 1. Received: num_batch_threads=-1"),
        (
            "batch_timeout_micros { value: -1 }",
            "`batch_timeout_micros` must be at least 0. Received: batch_timeout_micros=-1",
        ),
        (
            "max_batch_size { value: 4 } allowed_batch_sizes: 2",
            r"`allowed_batch_sizes` must increase and end with `max_batch_size`. Received: \[2\]",
        ),
        (
            "max_batch_size { value: 4 } allowed_batch_sizes: 4 allowed_batch_sizes: 4",
            r"`allowed_batch_sizes` must increase and end with `max_batch_size`. Received: \[4, 4\]",
        ),
    ],
)
def test_parameters_that_contradict_each_other(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_batching(parameters(text))


def test_default_parameters_are_allowed() -> None:
    check_batching(BatchingParameters())


def test_full_queue_is_unavailable(tmp_path: Path) -> None:
    """As in TensorFlow Serving: the batch that runs, the one that waits, and no more."""
    release = threading.Event()
    running = threading.Event()

    def hold(x: np.ndarray) -> np.ndarray:
        running.set()
        release.wait(20)
        return x

    with tf.Graph().as_default():
        session = tf.compat.v1.Session()
        x = tf.compat.v1.placeholder(tf.int64, [None])
        call = batching.batched(
            session,
            "held",
            lambda column: [tf.ensure_shape(tf.numpy_function(hold, [column], tf.int64), [None])],
            [x],
            session.make_callable([x], feed_list=[x]),
            parameters("max_batch_size { value: 1 } num_batch_threads { value: 1 } max_enqueued_batches { value: 1 }"),
        )
    refused: list[str] = []
    done = threading.Event()

    def ask() -> None:
        try:
            call(np.array([1]))
        except tf.errors.UnavailableError as error:
            refused.append(error.message)
            done.set()

    threads = [threading.Thread(target=ask) for _ in range(3)]
    try:
        threads[0].start()
        assert running.wait(20)
        threads[1].start()
        threads[2].start()
        assert done.wait(20)
    finally:
        release.set()
        for thread in threads:
            thread.join()
    (message,) = refused
    assert "The batch scheduling queue to which this task was submitted is full" in message
