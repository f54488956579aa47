"""The client: what it sends, what it hands back, and what it says when something is wrong."""

from __future__ import annotations

import dataclasses
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.config import model_server_config_pb2

from keras_eta import ETA, Age, Feature, Features
from keras_eta.export import export_model
from serving.client import RankingClient
from serving.client.answers import Explanation, Ranking, ServingError, TensorSpec
from serving.server.config import SSLConfig
from serving.server.embedded import EmbeddedServer
from tests.paper import paper_eta

Ask = Callable[..., Any]

# Item 30 of category 3 is in the history with ratings 5 and 2, item 10 of category 1 with rating 4.
ITEMS = [10, 20, 30, 40]
REQUEST: dict[str, Any] = {
    "candidates": {"item_id": ITEMS, "category_id": [1, 2, 3, 3]},
    "history": {"item_id": [30, 10, 30], "category_id": [3, 1, 3], "rating": [5.0, 4.0, 2.0]},
    "user": {"user_id": 8},
    "context": {"hour": 20},
}
# rating of the item + 0.5 for each of its category + 8 / 1,000 + 20 / 100
SCORES = [4 + 0.5 + 0.208, 0.208, 7 + 1 + 0.208, 1 + 0.208]


def changed(**roles: Any) -> dict[str, Any]:
    """The request with columns replaced; `None` takes a column out."""
    request = dict(REQUEST)
    for role, columns in roles.items():
        if isinstance(columns, dict):
            columns = {name: column for name, column in (REQUEST[role] | columns).items() if column is not None}
        request[role] = columns
    return request


def fake_request(candidates: Any, history: Any = (7,)) -> dict[str, Any]:
    return {"candidates": {"item_id": candidates}, "history": {"item_id": list(history)}}


def scores(candidates: list[int], version: int = 1) -> list[float]:
    return [float(1_000 * version + candidate) for candidate in candidates]


@pytest.fixture
def client(contract_servers: dict[str, str]) -> Iterator[RankingClient]:
    with RankingClient(contract_servers["int64"]) as client:
        yield client


def test_rank_one_request(client: RankingClient) -> None:
    ranking = client.rank(**REQUEST)
    assert type(ranking) is Ranking
    assert ranking.probability.dtype == np.float32
    assert ranking.probability.shape == (4,)
    np.testing.assert_allclose(ranking.probability, SCORES, rtol=1e-6)
    assert ranking.model_version == 7
    assert ranking.order.tolist() == [2, 0, 3, 1]


def test_rank_string_ids(contract_servers: dict[str, str]) -> None:
    request = changed(
        candidates={"item_id": ["a", "b", b"c", "Amélie (2001)"]},
        history={"item_id": ["c", "a", "Amélie (2001)"]},
    )
    with RankingClient(contract_servers["string"]) as client:
        ranking = client.rank(**request)
    np.testing.assert_allclose(ranking.probability, [4.708, 0.208, 6.208, 3.208], rtol=1e-6)


def test_rank_arrays(client: RankingClient) -> None:
    request: dict[str, Any] = {
        role: {name: np.array(values) for name, values in columns.items()} for role, columns in REQUEST.items()
    }
    np.testing.assert_allclose(client.rank(**request).probability, SCORES, rtol=1e-6)


def test_rank_ragged_histories(client: RankingClient) -> None:
    """Each row of a batch of three users is what the user's own request gives."""
    histories: list[dict[str, list]] = [
        {"item_id": [30, 10, 30], "category_id": [3, 1, 3], "rating": [5.0, 4.0, 2.0]},
        {"item_id": [], "category_id": [], "rating": []},
        {"item_id": [0], "category_id": [0], "rating": [3]},
    ]
    # An id of 0 among the candidates would meet the padding if lengths were not sent.
    candidates: dict[str, list] = {"item_id": [[10, 20, 0, 30]] * 3, "category_id": [[1, 2, 0, 3]] * 3}
    users, hours = [1, 2, 3], [10, 11, 12]
    ranking = client.rank(
        candidates=candidates,
        history={name: [history[name] for history in histories] for name in histories[0]},
        user={"user_id": users},
        context={"hour": hours},
    )
    expected = np.array([[4.5, 0, 0, 8], [0, 0, 0, 0], [0, 0, 3.5, 0]]) + np.array([[0.101], [0.112], [0.123]])
    np.testing.assert_allclose(ranking.probability, expected, rtol=1e-5)
    assert ranking.order.tolist() == [[3, 0, 1, 2], [0, 1, 2, 3], [2, 0, 1, 3]]
    for row, history in enumerate(histories):
        alone = client.rank(
            candidates={name: values[row] for name, values in candidates.items()},
            history=history,
            user={"user_id": users[row]},
            context={"hour": hours[row]},
        )
        np.testing.assert_array_equal(alone.probability, ranking.probability[row])


def test_rank_history_length(client: RankingClient) -> None:
    ranking = client.rank(**REQUEST, history_length=1)
    np.testing.assert_allclose(ranking.probability, [0.208, 0.208, 5 + 0.5 + 0.208, 0.5 + 0.208], rtol=1e-6)


def test_rank_no_candidates(client: RankingClient) -> None:
    """Answered without the server: one that joins calls fails all of a batch in which one has no candidates."""
    ranking = client.rank(**changed(candidates={"item_id": [], "category_id": []}))
    assert (ranking.probability.shape, ranking.probability.dtype) == ((0,), np.float32)
    assert ranking.order.tolist() == []
    assert ranking.model_version == 7
    explanation = client.explain(**changed(candidates={"item_id": [], "category_id": []}))
    assert explanation.probability.shape == (0,)
    assert (explanation.positions.shape, explanation.positions.dtype) == ((0, 2), np.int32)
    assert explanation.scores is not None
    assert (explanation.scores.shape, explanation.scores.dtype) == ((0, 2), np.int32)
    assert (explanation.weights.shape, explanation.weights.dtype) == ((0, 2), np.float32)
    several = client.explain(
        candidates={"item_id": [[], [], []], "category_id": [[], [], []]},
        history={name: [[], [1], []] for name in REQUEST["history"]},
        user={"user_id": [1, 2, 3]},
        context={"hour": [1, 2, 3]},
    )
    assert (several.probability.shape, several.positions.shape) == ((3, 0), (3, 0, 2))


def test_no_candidates_are_not_sent(fake: Any, ask: Ask) -> None:
    assert ask(fake.address, "rank", fake_request([])).probability.shape == (0,)
    with pytest.raises(ValueError, match="Unknown: hour"):
        ask(fake.address, "rank", fake_request([]) | {"context": {"hour": 3}})
    assert fake.requests == []


def test_no_requests_are_not_sent(fake: Any, ask: Ask) -> None:
    request = {"candidates": {"item_id": np.zeros((0, 3), int)}, "history": {"item_id": np.zeros((0, 2), int)}}
    with pytest.raises(ValueError, match="Every column must have one row per request, and there must be a request"):
        ask(fake.address, "rank", request)
    assert fake.requests == []


def test_empty_history_is_sent_as_one_behaviour_that_does_not_count(fake: Any, ask: Ask) -> None:
    assert ask(fake.address, "explain", fake_request([5, 6], history=[])).probability.tolist() == scores([5, 6])
    inputs = {"item_id": [[5], [6]], "history_item_id": [[], []], "history_length": [0, 0]}
    ask(fake.address, "predict", {"inputs": inputs, "signature_name": "rank"})
    sent = [
        [tf.make_ndarray(request.inputs[name]).tolist() for name in ("history_item_id", "history_length")]
        for request in fake.requests
    ]
    assert sent == [[[[0]], [0]], [[[0], [0]], [0, 0]]]


def test_rank_without_history(client: RankingClient) -> None:
    ranking = client.rank(**changed(history={"item_id": [], "category_id": [], "rating": []}))
    np.testing.assert_allclose(ranking.probability, [0.208] * 4, rtol=1e-6)


def test_order_of_equals_is_the_order_sent() -> None:
    ranking = Ranking(np.array([[0.5, 0.9, 0.5, 0.9], [0.1, np.nan, 0.2, 0.1]], np.float32), 1)
    assert ranking.order.tolist() == [[1, 3, 0, 2], [2, 0, 3, 1]]
    many = Ranking(np.tile(np.array([0.5, 0.9], np.float32), 100), 1)
    assert many.order.tolist() == [*range(1, 200, 2), *range(0, 200, 2)]


def test_explain(client: RankingClient) -> None:
    explanation = client.explain(**REQUEST)
    assert type(explanation) is Explanation
    np.testing.assert_allclose(explanation.probability, SCORES, rtol=1e-6)
    assert explanation.positions.tolist() == [[1, 0], [0, 1], [0, 2], [0, 1]]
    assert (explanation.score_name, explanation.score_label) == ("distances", "distance")
    assert explanation.scores is not None
    assert explanation.scores.tolist() == [[0, 1], [1, 1], [0, 0], [1, 1]]
    assert explanation.weights.tolist() == [[4, 5], [5, 4], [5, 2], [5, 4]]
    assert explanation.others == {}
    assert explanation.order.tolist() == [2, 0, 3, 1]


def test_explain_fewer_behaviours_than_retrieved(client: RankingClient) -> None:
    request = changed(history={"item_id": [20], "category_id": [2], "rating": [1.0]})
    assert client.explain(**request).positions.tolist() == [[0, -1]] * 4


# Name of the scores, and what `positions`, `weights` and scores are beyond the item id. "" is the unit without prefix.
Unit = tuple[str | None, list[int]]


@pytest.mark.parametrize(
    ("explained", "units"),
    [
        ({"positions": 0, "weights": 2}, {"": (None, [0, 2])}),
        ({"positions": 0, "weights": 2, "inner_products": 5}, {"": ("inner_products", [0, 2, 5])}),
        (
            {"positions": 0, "weights": 2, "relevances": 4, "recent_positions": 6, "recent_weights": 7}
            | {"recent_interest_positions": 8, "recent_interest_weights": 9, "recent_interest_cosines": 10},
            {"": ("relevances", [0, 2, 4]), "recent": (None, [6, 7]), "recent_interest": ("cosines", [8, 9, 10])},
        ),
    ],
)
@pytest.mark.parametrize("items", [[5, 6, 8], []])
def test_explain_every_unit(
    fake: Any, ask: Ask, explained: dict[str, int], units: dict[str, Unit], items: list[int]
) -> None:
    """Whatever the scores are called and however many units attend, in one part or several."""
    fake.explained, fake.counted = explained, {"match_item_id_count": 20, "recent_count": 30}
    explanation = ask(fake.address, "explain", fake_request(items), max_candidates=2)
    assert explanation.probability.tolist() == scores(items)
    counts = {name: array.tolist() for name, array in explanation.counts.items()}
    assert counts == {"match_item_id": [item + 20 for item in items], "recent": [item + 30 for item in items]}
    assert {"", *explanation.others} == {*units}
    for name, (score_name, numbers) in units.items():
        unit = explanation.others[name] if name else explanation
        assert unit.score_name == score_name
        arrays = [unit.positions, unit.weights, *([] if score_name is None else [unit.scores])]
        assert (unit.scores is None) == (score_name is None)
        for array, number in zip(arrays, numbers, strict=True):
            # The signature of the fake does not say how many behaviours there are.
            assert array.tolist() == ([[item + number] for item in items] if items else [])


@pytest.mark.parametrize(
    ("explained", "message"),
    [
        ({}, "history_length, item_id. It does not give: positions, weights."),
        ({"positions": 0}, "history_length, item_id. It does not give: weights."),
        (
            {"positions": 0, "weights": 2, "cosines": 1, "distances": 3},
            "Signature 'explain' of model 'eta' gives one unit several scores: cosines, distances.",
        ),
    ],
)
def test_explain_refuses_outputs_that_it_can_not_read(
    fake: Any, ask: Ask, explained: dict[str, int], message: str
) -> None:
    fake.explained = explained
    with pytest.raises(ValueError, match=re.escape(message)):
        ask(fake.address, "explain", fake_request([5]))


def test_explain_by_a_new_version_of_another_unit(fake: Any) -> None:
    """What the client knew of the signature does not matter once another version has answered."""
    with RankingClient(fake.address) as client:
        assert client.explain(**fake_request([5])).score_name == "distances"
        fake.explained = {"positions": 0, "weights": 2, "relevances": 4}
        explanation = client.explain(**fake_request([5]))
    assert explanation.score_name == "relevances"
    assert explanation.scores is not None
    assert explanation.scores.tolist() == [[9]]


def test_predict_pointwise_and_examples(client: RankingClient) -> None:
    inputs = {
        "user_id": [8, 8],
        "hour": [20, 20],
        "item_id": [10, 30],
        "category_id": [1, 3],
        "history_item_id": [[30, 10, 30]] * 2,
        "history_category_id": [[3, 1, 3]] * 2,
        "history_rating": [[5, 4, 2]] * 2,
        "history_length": [3, 3],
    }
    outputs = client.predict(inputs)
    assert list(outputs) == ["probability"]
    np.testing.assert_allclose(outputs["probability"], [SCORES[0], SCORES[2]], rtol=1e-6)
    feature = tf.train.Feature(int64_list=tf.train.Int64List(value=[5]))
    example = tf.train.Example(features=tf.train.Features(feature={"user_id": feature}))
    outputs = client.predict({"examples": [example.SerializeToString()]}, signature_name="examples")
    np.testing.assert_allclose(outputs["probability"], [0.005])


def test_metadata(client: RankingClient) -> None:
    metadata = client.metadata()
    assert metadata.model_version == 7
    assert list(metadata.signatures) == ["examples", "explain", "rank", "serving_default"]
    rank = metadata.signatures["rank"]
    assert rank.inputs["item_id"] == TensorSpec("int64", (None, None))
    assert rank.inputs["history_rating"] == TensorSpec("float32", (None, None))
    assert rank.inputs["user_id"] == TensorSpec("int64", (None,))
    assert rank.outputs == {"probability": TensorSpec("float32", (None, None))}
    assert metadata.signatures["examples"].inputs == {"examples": TensorSpec("string", (None,))}


WANTED = "category_id, history_category_id, history_item_id, history_length, history_rating, hour, item_id, user_id"


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (
            changed(history={"rating": None}, user={"age": 30}),
            "Signature 'rank' of model 'eta' does not fit. Missing: history_rating. Unknown: age. It takes: " + WANTED,
        ),
        (
            changed(history={}, user=None) | {"history": {}},
            "Missing: history_category_id, history_item_id, history_length, history_rating, user_id. It takes",
        ),
        (changed(history={"history_rating": [1, 2, 3]}), "Unknown: history_history_rating."),
        (
            changed(user={"hour": 3}),
            "`context['hour']` and `user['hour']` are the same input.",
        ),
        (changed() | {"candidates": {}}, "`candidates` must have at least one column. Received: candidates={}"),
        (
            changed(candidates={"category_id": [1, 2]}),
            "`candidates` must have as many values in every column and request. Received: [2, 4]",
        ),
        (
            changed(history={"rating": [5.0]}),
            "`history` must have one value per behaviour in every column. "
            "Received: [1] in `history['rating']`, [3] in `history['item_id']`",
        ),
        (changed(user={"user_id": [8]}), "`user['user_id']` must be one value. Received: [8]"),
        (changed(history={"item_id": 3}), "`history['item_id']` must be a list of values. Received: 3"),
        (changed(user={"user_id": "8"}), "`user['user_id']` must be int64. Received: ['8']"),
        (changed(user={"user_id": None}) | {"user": {"user_id": None}}, "`user['user_id']` must be int64. Received"),
        (
            changed(candidates={"item_id": [1, 2.5, 3, 4]}),
            "`candidates['item_id']` must be int64. Received: [[1, 2.5, 3, 4]]",
        ),
        (
            changed(user={"user_id": 1 << 63}),
            "`user['user_id']` must fit into int64. Received: [9223372036854775808]",
        ),
        (
            changed() | {"history_length": 4},
            "`history_length` must be between 0 and the number of behaviours, [3]. Received: [4]",
        ),
        (
            changed() | {"history_length": -1},
            "`history_length` must be between 0 and the number of behaviours, [3]. Received: [-1]",
        ),
    ],
)
def test_rank_wrong_request(client: RankingClient, request_: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the text is compared below
        client.rank(**request_)
    assert text in str(refused.value)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (
            {
                "candidates": {"item_id": [[1, 2], [3]], "category_id": [[1, 2], [3]]},
                "history": {"item_id": [[1], [1]]},
            },
            "`candidates` must have as many values in every column and request. Received: [1, 2]",
        ),
        (
            {"candidates": {"item_id": [[1], [2]]}, "history": {"item_id": [1]}},
            "`history['item_id']` must be a list of lists, one for each request. Received: [1]",
        ),
        (
            {"candidates": {"item_id": [[1], [2]]}, "history": {"item_id": [[1]]}},
            "Every column must have one row per request, and there must be a request. "
            "Received: {\"candidates['item_id']\": 2, \"history['item_id']\": 1, 'history_length': 1}",
        ),
        (
            {"candidates": {"item_id": [[1], [2]]}, "history": {"item_id": [[1], []]}, "history_length": [1]},
            "`history_length` must be between 0 and the number of behaviours, [1, 0]. Received: [1]",
        ),
    ],
)
def test_rank_wrong_batch(client: RankingClient, request_: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the text is compared below
        client.rank(**request_)
    assert text in str(refused.value)


def test_rank_numbers_for_string_ids(contract_servers: dict[str, str]) -> None:
    with (
        RankingClient(contract_servers["string"]) as client,
        pytest.raises(ValueError, match=r"`candidates\['item_id'\]` must be strings. Received: 10 \(int\)"),
    ):
        client.rank(**REQUEST)


def test_wrong_names_are_refused_before_any_call(fake: Any, ask: Ask) -> None:
    with pytest.raises(ValueError, match="Unknown: user_id"):
        ask(fake.address, "rank", fake_request([5]) | {"user": {"user_id": 5}})
    assert fake.requests == []


def test_predict_unknown_signature(client: RankingClient) -> None:
    text = "Model 'eta' has no signature 'nope'. It has: examples, explain, rank, serving_default"
    with pytest.raises(ValueError, match=text):
        client.predict({}, signature_name="nope")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"user_id": [[8]]}, "`inputs['user_id']` must have shape (?). Received shape: (1, 1)"),
        ({"user_id": [8.0]}, "`inputs['user_id']` must be int64. Received: [8.0]"),
        ({"hour": [1, 2]}, "`inputs['hour']` must have as many rows as `inputs['user_id']`, 1. Received: 2"),
        ({"history_length": [4]}, "`inputs['history_length']` must be between 0 and the number of behaviours, 3"),
        ({"history_rating": [[1.0, 2.0, float("nan")]]}, "`inputs['history_rating']` must be finite and fit into"),
        ({"item_id": None}, "Missing: item_id. It takes: " + WANTED),
        (
            {name: [] for name in ("user_id", "hour", "item_id", "category_id", "history_length")}
            | {f"history_{name}": np.zeros((0, 3)) for name in ("item_id", "category_id", "rating")},
            "`inputs['user_id']` must have at least one value. Received shape: (0)",
        ),
    ],
)
def test_predict_wrong_inputs(client: RankingClient, changes: dict[str, Any], text: str) -> None:
    inputs: dict[str, Any] = {"user_id": [8], "hour": [20], "item_id": [10], "category_id": [1], "history_length": [3]}
    inputs |= {f"history_{name}": np.array([values]) for name, values in REQUEST["history"].items()}
    inputs = {name: values for name, values in (inputs | changes).items() if values is not None}
    for name, values in inputs.items():
        if isinstance(values, np.ndarray) and not values.size and name != "history_rating":
            inputs[name] = values.astype(int)
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the text is compared below
        client.predict(inputs)
    assert text in str(refused.value)


def test_predict_without_values(client: RankingClient) -> None:
    with pytest.raises(ValueError, match=re.escape("`inputs['examples']` must have at least one value. Received")):
        client.predict({"examples": []}, signature_name="examples")


def test_predict_rows_of_different_lengths(client: RankingClient) -> None:
    rank: dict[str, Any] = {name: [[1]] for name in WANTED.split(", ")}
    rank |= {name: [1] for name in ("history_length", "hour", "user_id")}
    with pytest.raises(ValueError, match=r"`inputs\['item_id'\]` must have rows of one length. Received: \[\[1\]"):
        client.predict(rank | {"item_id": [[1], [1, 2]]}, signature_name="rank")


def test_rank_of_a_model_without_probability(
    push: Callable, serve: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    push("1", tmp_path, 1)
    with (
        RankingClient(serve(tmp_path).address) as client,
        pytest.raises(ValueError, match="It takes: candidates, history, history_length"),
    ):
        client.rank(candidates={"item_id": [1]}, history={"item_id": [1]})


def test_server_error_carries_code_and_details(client: RankingClient) -> None:
    with pytest.raises(ServingError) as refused:
        client.predict({"examples": [b"no example"]}, signature_name="examples")
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details.startswith("Could not parse example input, value: 'no example'")
    assert str(refused.value) == f"Model 'eta' at {client.target} answered INVALID_ARGUMENT: {refused.value.details}"


def test_unknown_model(contract_servers: dict[str, str], ask: Ask) -> None:
    with pytest.raises(ServingError, match="Servable not found for request: Latest\\(nope\\)") as refused:
        ask(contract_servers["int64"], "rank", REQUEST, model_name="nope")
    assert refused.value.code is grpc.StatusCode.NOT_FOUND


def test_server_unavailable(free_target: str, ask: Ask) -> None:
    with pytest.raises(ServingError) as refused:
        ask(free_target, "rank", REQUEST)
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    port = free_target.partition(":")[2]
    assert f"Model 'eta' at {free_target} answered UNAVAILABLE: " in str(refused.value)
    assert f"python -m serving.server --port {port} --model_name eta --model_base_path DIR" in str(refused.value)


def test_wait_until_ready_gives_up(free_target: str) -> None:
    with RankingClient(free_target) as client:
        started = time.monotonic()
        with pytest.raises(ServingError, match="If no server is running there, start one"):
            client.wait_until_ready(timeout=0.5)
        assert 0.5 <= time.monotonic() - started < 5


def test_deadline(contract_servers: dict[str, str], ask: Ask) -> None:
    with pytest.raises(ServingError, match="Deadline Exceeded") as refused:
        ask(contract_servers["int64"], "rank", REQUEST, timeout=1e-6)
    assert refused.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_concurrent_calls_get_their_own_answers(client: RankingClient) -> None:
    """Eight threads on one client, each with users of its own, which the scores give away."""
    wrong: list[Any] = []

    def ask(first_user: int) -> None:
        for user_id in range(first_user, first_user + 25):
            ranking = client.rank(**changed(user={"user_id": user_id}))
            expected = np.array(SCORES) + (user_id - 8) / 1000
            if not np.allclose(ranking.probability, expected, rtol=1e-5, atol=0):
                wrong.append((user_id, ranking.probability))

    threads = [threading.Thread(target=ask, args=(1000 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_new_version_with_another_signature(
    push: Callable, serve: Callable[..., EmbeddedServer], saved_models: dict[str, Path], tmp_path: Path
) -> None:
    """A client that knows the old version's inputs learns those of the new one: other dtypes, then other names."""
    push("int64", tmp_path, 1)
    server = serve(tmp_path)

    def swap(name: str, version: int) -> None:
        push(name, tmp_path, version)
        with RankingClient(server.address) as other:
            end = time.monotonic() + 20
            while other.metadata().model_version != version:
                assert time.monotonic() < end
                time.sleep(0.02)

    with RankingClient(server.address) as client:
        assert client.rank(**REQUEST).model_version == 1
        swap("string", 2)
        with pytest.raises(ServingError, match="to be string but int64 is provided"):
            client.rank(**REQUEST)
        texts = changed(candidates={"item_id": ["10", "20", "30", "40"]}, history={"item_id": ["30", "10", "30"]})
        np.testing.assert_allclose(client.rank(**texts).probability, SCORES, rtol=1e-6)
        swap("int64", 3)
        # What the client knows is of version 2: it looks again before it refuses.
        assert client.rank(**REQUEST).model_version == 3
        swap("3", 4)
        reference = {"history": [[1, 1]], "history_length": [2], "candidates": [[1]]}
        assert client.predict(reference, "rank")["probability"].tolist() == [[5.0]]


@pytest.mark.parametrize(("max_candidates", "sizes"), [(3, [3]), (2, [2, 1])])
def test_answers_are_cut_to_the_candidates(fake: Any, ask: Ask, max_candidates: int, sizes: list[int]) -> None:
    """TensorFlow Serving with `pad_variable_length_inputs` answers for the longest list of candidates of a batch."""
    fake.padding = 2
    for method in ("rank", "explain"):
        answer = ask(fake.address, method, fake_request([5, 6, 8]), max_candidates=max_candidates)
        assert answer.probability.tolist() == scores([5, 6, 8])
    assert answer.scores.tolist() == [[6], [7], [9]]
    assert [len(part) for part in fake.candidates()] == [size for size in sizes for _ in range(2)]


# Retries


@pytest.mark.parametrize("method", ["rank", "explain"])
def test_unavailable_is_tried_again(fake: Any, ask: Ask, method: str) -> None:
    fake.failures = [grpc.StatusCode.UNAVAILABLE] * 4
    assert ask(fake.address, method, fake_request([5])).probability.tolist() == scores([5])
    assert len(fake.requests) == 5


@pytest.mark.parametrize("max_attempts", [1, 2, 5])
def test_unavailable_for_too_long(fake: Any, ask: Ask, max_attempts: int) -> None:
    fake.failures = [grpc.StatusCode.UNAVAILABLE] * 9
    with pytest.raises(ServingError, match="answered UNAVAILABLE: told so") as refused:
        ask(fake.address, "rank", fake_request([5]), max_attempts=max_attempts)
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    assert "\n" not in str(refused.value)
    assert len(fake.requests) == max_attempts


def test_large_request_is_tried_again(fake: Any, ask: Ask) -> None:
    """gRPC forgets what does not fit into its buffer, 256 KiB by default, and can't send it again."""
    fake.failures = [grpc.StatusCode.UNAVAILABLE] * 2
    request = fake_request([5], np.arange(200_000))
    assert ask(fake.address, "rank", request).probability.tolist() == scores([5])
    assert len(fake.requests) == 3
    assert fake.requests[0].ByteSize() > 1 << 20


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.name not in ("OK", "UNAVAILABLE")])
def test_other_errors_are_not_tried_again(fake: Any, ask: Ask, code: grpc.StatusCode) -> None:
    fake.failures = [code]
    with pytest.raises(ServingError, match=f"answered {code.name}: told so") as refused:
        ask(fake.address, "rank", fake_request([5]))
    assert (refused.value.code, refused.value.details) == (code, "told so")
    assert len(fake.requests) == 1


def test_deadline_covers_all_attempts(fake: Any, ask: Ask) -> None:
    fake.failures = [grpc.StatusCode.UNAVAILABLE] * 9
    fake.seconds = 0.4
    began = time.monotonic()
    with pytest.raises(ServingError) as refused:
        ask(fake.address, "rank", fake_request([5]), timeout=1)
    assert refused.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0.9 <= time.monotonic() - began < 2
    assert 2 <= len(fake.requests) <= 3


def test_deadline_covers_metadata_too(fake: Any, ask: Ask) -> None:
    fake.metadata_seconds = fake.seconds = 0.7
    with pytest.raises(ServingError) as refused:
        ask(fake.address, "rank", fake_request([5]), timeout=1)
    assert refused.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_attempts": 0}, "`max_attempts` must be a positive integer. Received: max_attempts=0"),
        ({"max_attempts": 6}, "`max_attempts` must be at most 5, gRPC's limit. Received: max_attempts=6"),
        ({"max_attempts": 2.0}, "`max_attempts` must be a positive integer. Received: max_attempts=2.0"),
        ({"max_rows": 0}, "`max_rows` must be a positive integer. Received: max_rows=0"),
        ({"max_parallel_calls": 0}, "`max_parallel_calls` must be a positive integer. Received: max_parallel_calls=0"),
        ({"max_candidates": 0}, "`max_candidates` must be a positive integer. Received: max_candidates=0"),
        ({"timeout": 0}, "`timeout` must be a positive number of seconds. Received: timeout=0"),
        ({"timeout": float("nan")}, "`timeout` must be a positive number of seconds. Received: timeout=nan"),
    ],
)
def test_options_are_checked(ask: Ask, free_target: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        ask(free_target, "status", **options)


# Long lists of candidates


@pytest.mark.parametrize("method", ["rank", "explain"])
def test_long_list_is_split_over_parallel_calls(fake: Any, ask: Ask, method: str) -> None:
    fake.together = threading.Barrier(3)
    items = [30, 10, 50, 20, 40, 60, 80, 70, 90, 15]
    answer = ask(fake.address, method, fake_request(items), max_candidates=4)
    assert fake.candidates() == sorted([[30, 10, 50, 20], [40, 60, 80, 70], [90, 15]])
    assert answer.probability.tolist() == scores(items)
    assert answer.model_version == 1
    if method == "explain":
        assert answer.positions.tolist() == [[item] for item in items]
        assert answer.scores.tolist() == [[item + 1] for item in items]
        assert answer.weights.tolist() == [[item + 2] for item in items]


def test_long_lists_of_several_requests(fake: Any, ask: Ask) -> None:
    rows = [[1, 2, 3, 4, 5], [10, 20, 30, 40, 50]]
    request = fake_request(rows) | {"history": {"item_id": [[7, 8], []]}}
    answer = ask(fake.address, "explain", request, max_candidates=2)
    assert answer.probability.tolist() == [scores(row) for row in rows]
    assert answer.positions.tolist() == [[[item] for item in row] for row in rows]
    assert fake.candidates() == [[1, 2], [3, 4], [5], [10, 20], [30, 40], [50]]
    histories = sorted(tf.make_ndarray(request.inputs["history_item_id"]).tolist() for request in fake.requests)
    assert histories == [[[0, 0]]] * 3 + [[[7, 8]]] * 3


@pytest.mark.parametrize(("count", "calls"), [(0, 0), (999, 1), (1_000, 1), (1_001, 2)])
def test_lists_are_split_from_1001_candidates_on(fake: Any, ask: Ask, count: int, calls: int) -> None:
    items = list(range(count))
    assert ask(fake.address, "rank", fake_request(items)).probability.tolist() == scores(items)
    assert len(fake.requests) == calls


@pytest.mark.parametrize(("options", "most"), [({}, 4), ({"max_parallel_calls": 3}, 3), ({"max_parallel_calls": 1}, 1)])
def test_parallel_calls_are_limited(fake: Any, ask: Ask, options: dict[str, int], most: int) -> None:
    fake.seconds = 0.05
    items = list(range(10))
    answer = ask(fake.address, "rank", fake_request(items), max_candidates=1, **options)
    assert answer.probability.tolist() == scores(items)
    assert len(fake.requests) == 10
    assert fake.most_running == most


@pytest.mark.parametrize("method", ["rank", "explain"])
@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({"max_rows": 2}, [(10, 11, 20, 21), (30, 31, 40, 41), (50, 51)]),
        # Candidates are counted over all rows of a call.
        ({"max_candidates": 5}, [(10, 11, 20, 21), (30, 31, 40, 41), (50, 51)]),
        ({"max_candidates": 3}, [(10, 11), (20, 21), (30, 31), (40, 41), (50, 51)]),
        ({"max_rows": 3, "max_candidates": 1}, [(10 * row + number,) for row in range(1, 6) for number in range(2)]),
    ],
)
def test_rows_over_the_limit_are_split(
    fake: Any, ask: Ask, method: str, options: dict[str, int], calls: list[tuple[int, ...]]
) -> None:
    """Five requests of two candidates; the history of request r is r behaviours of item r."""
    rows = [[10 * row, 10 * row + 1] for row in range(1, 6)]
    request = {"candidates": {"item_id": rows}, "history": {"item_id": [[row] * row for row in range(1, 6)]}}
    answer = ask(fake.address, method, request, **options)
    assert answer.probability.tolist() == [scores(row) for row in rows]
    if method == "explain":
        assert answer.positions.tolist() == [[[item] for item in row] for row in rows]
        assert answer.weights.tolist() == [[[item + 2] for item in row] for row in rows]
    sent = {}
    for request in fake.requests:
        items, history, lengths = (
            tf.make_ndarray(request.inputs[name]) for name in ("item_id", "history_item_id", "history_length")
        )
        sent[tuple(items.ravel().tolist())] = lengths.tolist()
        assert history.tolist() == [[length] * length + [0] * (5 - length) for length in lengths]
    assert sent == {call: sorted({item // 10 for item in call}) for call in calls}
    assert len(fake.requests) == len(calls)


@pytest.mark.parametrize(("count", "calls"), [(32, 1), (33, 2)])
def test_rows_are_split_from_33_on(fake: Any, ask: Ask, count: int, calls: int) -> None:
    request = {"candidates": {"item_id": np.arange(count)[:, None]}, "history": {"item_id": np.ones((count, 2), int)}}
    answer = ask(fake.address, "rank", request)
    assert answer.probability.tolist() == [scores([row]) for row in range(count)]
    assert len(fake.requests) == calls


def test_rows_of_an_older_version_are_asked_again(fake: Any, ask: Ask) -> None:
    fake.versions = [1, 2, 1, 2]
    request = {"candidates": {"item_id": [[5], [6], [7]]}, "history": {"item_id": [[1]] * 3}}
    answer = ask(fake.address, "rank", request, max_rows=1)
    assert answer.probability.tolist() == [[2_005.0], [2_006.0], [2_007.0]]
    assert answer.model_version == 2
    assert sorted(request.model_spec.version.value for request in fake.requests) == [0, 0, 0, 2, 2]


def test_split_rows_equal_the_whole(contract_servers: dict[str, str], ask: Ask) -> None:
    request = {
        "candidates": {"item_id": [ITEMS] * 3, "category_id": [[1, 2, 3, 3]] * 3},
        "history": {
            "item_id": [[30, 10, 30], [], [20]],
            "category_id": [[3, 1, 3], [], [2]],
            "rating": [[5, 4, 2], [], [1]],
        },
        "user": {"user_id": [1, 2, 3]},
        "context": {"hour": [10, 11, 12]},
    }
    explanation = ask(contract_servers["int64"], "explain", request, max_rows=2, max_candidates=3)
    expected = np.array([[4.5, 0, 8, 1], [0, 0, 0, 0], [0, 1.5, 0, 0]]) + np.array([[0.101], [0.112], [0.123]])
    np.testing.assert_allclose(explanation.probability, expected, rtol=1e-5)
    assert explanation.positions.tolist() == [[[1, 0], [0, 1], [0, 2], [0, 1]], [[-1, -1]] * 4, [[0, -1]] * 4]


# A busy server


@pytest.mark.parametrize("method", ["rank", "explain"])
def test_parts_turned_away_are_sent_again(fake: Any, ask: Ask, method: str) -> None:
    fake.failures = [grpc.StatusCode.RESOURCE_EXHAUSTED] * 3
    began = time.monotonic()
    answer = ask(fake.address, method, fake_request([5, 6, 7, 8, 9]), max_candidates=1, max_parallel_calls=2)
    assert answer.probability.tolist() == scores([5, 6, 7, 8, 9])
    assert len(fake.requests) == 5 + 3
    # Two pauses: after the first two parts were turned away, and after one of them was again.
    assert time.monotonic() - began >= 0.05 + 0.1


def test_long_lists_of_many_callers_on_a_small_server(
    push: Callable, serve: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """Six callers, four calls each, at a server that takes three calls."""
    push("int64", tmp_path, 7)
    address = serve(tmp_path, threads=1, server={"max_queued_calls": 2}).address
    request = changed(candidates={"item_id": ITEMS * 10, "category_id": [1, 2, 3, 3] * 10})

    def call(_: int) -> np.ndarray:
        with RankingClient(address, max_candidates=4, timeout=30) as client:
            return client.rank(**request).probability

    with futures.ThreadPoolExecutor(6) as pool:
        for probability in pool.map(call, range(6)):
            np.testing.assert_allclose(probability, SCORES * 10, rtol=1e-6)


def test_parts_turned_away_until_the_deadline(fake: Any, ask: Ask) -> None:
    fake.failures = [grpc.StatusCode.RESOURCE_EXHAUSTED] * 1_000
    began = time.monotonic()
    with pytest.raises(ServingError, match="answered RESOURCE_EXHAUSTED: told so"):
        ask(fake.address, "rank", fake_request([5, 6]), max_candidates=1, timeout=1.0)
    assert 0.3 <= time.monotonic() - began < 2
    assert 2 * 3 <= len(fake.requests) <= 2 * 6


def test_parts_that_are_too_large_are_not_sent_again(fake: Any, ask: Ask) -> None:
    fake.failures = [grpc.StatusCode.RESOURCE_EXHAUSTED] * 9
    fake.details = "SERVER: Received message larger than max (5242880 vs. 4194304)"
    with pytest.raises(ServingError, match="answered RESOURCE_EXHAUSTED: SERVER: Received message larger than max"):
        ask(fake.address, "rank", fake_request([5, 6]), max_candidates=1)
    assert len(fake.requests) <= 2


def test_one_part_refused(fake: Any, ask: Ask) -> None:
    """The answer is there at once, whatever the other parts are at."""
    fake.failures = [grpc.StatusCode.INTERNAL]
    fake.seconds, fake.fails_at_once = 3.0, True
    began = time.monotonic()
    with pytest.raises(ServingError, match="answered INTERNAL: told so"):
        ask(fake.address, "rank", fake_request([1, 2, 3]), max_candidates=1)
    assert time.monotonic() - began < 2


def test_one_part_refused_cancels_the_others(fake: Any) -> None:
    fake.failures = [grpc.StatusCode.INTERNAL]
    fake.seconds, fake.fails_at_once = 3.0, True
    with RankingClient(fake.address, max_candidates=1) as client:
        began = time.monotonic()
        with pytest.raises(ServingError):
            client.rank(**fake_request([1, 2, 3]))
        while fake.ended < len(fake.requests):
            assert time.monotonic() - began < 2
            time.sleep(0.01)


def test_parts_of_an_older_version_are_asked_again(fake: Any, ask: Ask) -> None:
    fake.versions = [1, 2, 1, 2, 3]
    answer = ask(fake.address, "explain", fake_request([1, 2, 3, 4]), max_candidates=1)
    assert answer.probability.tolist() == scores([1, 2, 3, 4], version=2)
    assert answer.positions.tolist() == [[1], [2], [3], [4]]
    assert answer.model_version == 2
    assert sorted(request.model_spec.version.value for request in fake.requests) == [0, 0, 0, 0, 2, 2]


def test_parts_of_a_version_rolled_back_meanwhile(fake: Any, ask: Ask) -> None:
    """Version 2 has answered one part and is gone when the other is to be asked again."""
    fake.versions, fake.gone = [2, 1], {2}
    answer = ask(fake.address, "rank", fake_request([1, 2]), max_candidates=1)
    assert answer.probability.tolist() == scores([1, 2], version=1)
    assert answer.model_version == 1
    assert [request.model_spec.version.value for request in fake.requests] == [0, 0, 2, 0, 0]


def test_versions_that_never_settle(fake: Any, ask: Ask) -> None:
    fake.versions, fake.gone = [1, 2] * 20, {1, 2}
    with pytest.raises(ServingError, match="answered ABORTED: no version stayed long enough to answer all 2 parts"):
        ask(fake.address, "rank", fake_request([1, 2]), max_candidates=1)
    assert len(fake.requests) == 2 + 5 * 3


def test_split_explanation_equals_the_whole(contract_servers: dict[str, str], ask: Ask) -> None:
    explanation = ask(contract_servers["int64"], "explain", REQUEST, max_candidates=3)
    np.testing.assert_allclose(explanation.probability, SCORES, rtol=1e-6)
    assert explanation.positions.tolist() == [[1, 0], [0, 1], [0, 2], [0, 1]]
    assert explanation.scores.tolist() == [[0, 1], [1, 1], [0, 0], [1, 1]]
    assert explanation.weights.tolist() == [[4, 5], [5, 4], [5, 2], [5, 4]]


# TLS


def credentials(root: str, key: str | None = None, certificate: str | None = None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(root.encode(), key and key.encode(), certificate and certificate.encode())


def test_tls(
    push: Callable, serve: Callable[..., EmbeddedServer], tmp_path: Path, authority: Any, stranger: Any, ask: Ask
) -> None:
    push("int64", tmp_path, 7)
    key, certificate = authority.issue("server")
    ssl_config = SSLConfig(server_key=key, server_cert=certificate)
    address = serve(tmp_path, server={"ssl_config": ssl_config}).address
    trusting = credentials(authority.certificate)
    np.testing.assert_allclose(ask(address, "rank", REQUEST, credentials=trusting).probability, SCORES, rtol=1e-6)
    for wrong in (None, credentials(stranger.certificate)):
        with pytest.raises(ServingError) as refused:
            ask(address, "rank", REQUEST, credentials=wrong, max_attempts=1)
        assert refused.value.code is grpc.StatusCode.UNAVAILABLE


def test_mutual_tls(
    push: Callable, serve: Callable[..., EmbeddedServer], tmp_path: Path, authority: Any, stranger: Any, ask: Ask
) -> None:
    push("int64", tmp_path, 7)
    key, certificate = authority.issue("server")
    ssl_config = SSLConfig(server_key=key, server_cert=certificate, custom_ca=authority.certificate, client_verify=True)
    address = serve(tmp_path, server={"ssl_config": ssl_config}).address
    known = credentials(authority.certificate, *authority.issue("client"))
    np.testing.assert_allclose(ask(address, "rank", REQUEST, credentials=known).probability, SCORES, rtol=1e-6)
    for keys in ((), stranger.issue("client")):
        with pytest.raises(ServingError) as refused:
            ask(address, "rank", REQUEST, credentials=credentials(authority.certificate, *keys), max_attempts=1)
        assert refused.value.code is grpc.StatusCode.UNAVAILABLE


def test_results_are_frozen(client: RankingClient) -> None:
    ranking = client.rank(**REQUEST)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ranking.model_version = 1  # type: ignore[misc]


def test_server_started_after_the_client(
    saved_models: dict[str, Path], serve: Callable[..., EmbeddedServer], tmp_path: Path
) -> None:
    """The channel finds a server that was not there at the first call."""
    shutil.copytree(saved_models["int64"], tmp_path / "7")
    server = serve(tmp_path)
    server.stop(grace=0)
    with RankingClient(server.address) as client:
        with pytest.raises(ServingError):
            client.status()
        config = model_server_config_pb2.ModelConfig(name="eta", base_path=str(tmp_path))
        again = EmbeddedServer([config], port=int(server.address.rpartition(":")[2]))
        with again:
            client.wait_until_ready(timeout=20)
            np.testing.assert_allclose(client.rank(**REQUEST).probability, SCORES, rtol=1e-6)


# A model that reads the age of each behaviour

NOW = 1_700_000_000


@pytest.fixture(scope="module")
def aged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ETA, str]]:
    """A model of keras_eta with ages, and the address of its server."""
    tf.keras.utils.set_random_seed(0)
    features = Features(item_id=Feature("item_id", vocabulary_size=20), age=Age((60, 3_600)), max_history_length=4)
    model = paper_eta(features, top_k=2)
    model.build()
    for layer in model.embeddings.values():
        layer.embeddings.assign(tf.random.normal(layer.embeddings.shape))
    base_path = tmp_path_factory.mktemp("aged")
    export_model(model, base_path)
    config = model_server_config_pb2.ModelConfig(name="eta", base_path=str(base_path))
    with EmbeddedServer([config], port=0, file_system_poll_wait_seconds=0) as server:
        yield model, server.address


def test_rank_with_timestamps(aged: tuple[ETA, str]) -> None:
    model, address = aged
    with RankingClient(address) as client:
        one = client.rank(
            candidates={"item_id": [5, 7, 9]},
            history={"item_id": [7, 5], "timestamp": [NOW - 60, NOW - 4_000]},
            context={"timestamp": NOW},
        )
        several = client.rank(
            candidates={"item_id": [[5, 7, 9], [5, 7, 9]]},
            history={"item_id": [[7, 5], []], "timestamp": [[NOW - 60, NOW - 4_000], []]},
            context={"timestamp": [NOW, NOW]},
        )
        explained = client.explain(
            candidates={"item_id": [5, 7, 9]},
            history={"item_id": [7, 5], "timestamp": [NOW - 60, NOW - 4_000]},
            context={"timestamp": NOW},
        )
        sooner = client.rank(
            candidates={"item_id": [5, 7, 9]},
            history={"item_id": [7, 5], "timestamp": [NOW - 59, NOW - 4_000]},
            context={"timestamp": NOW},
        )
    inputs = {
        "item_id": tf.constant([[5, 7, 9]] * 2),
        "history_item_id": tf.constant([[7, 5], [0, 0]]),
        "history_age": tf.constant([[2, 3], [0, 0]]),
        "history_length": tf.constant([2, 0]),
    }
    expected = tf.sigmoid(model.score(inputs).logits)
    np.testing.assert_allclose(several.probability, expected, atol=1e-6)
    np.testing.assert_allclose(one.probability, expected[0], atol=1e-6)
    np.testing.assert_allclose(explained.probability, expected[0], atol=1e-6)
    assert explained.positions.shape == (3, 2)
    assert (np.abs(sooner.probability - one.probability) > 1e-6).all()


@pytest.mark.parametrize(
    ("history", "context", "message"),
    [
        ({"item_id": [7]}, {"timestamp": NOW}, "Missing: history_timestamp."),
        ({"item_id": [7], "timestamp": [NOW]}, {}, "Missing: timestamp."),
        (
            {"item_id": [7, 5], "timestamp": [NOW]},
            {"timestamp": NOW},
            "`history` must have one value per behaviour in every column. "
            "Received: [1] in `history['timestamp']`, [2] in `history['item_id']`",
        ),
        (
            {"item_id": [7], "timestamp": [NOW - 0.5]},
            {"timestamp": NOW},
            f"`history['timestamp']` must be int64. Received: [[{NOW - 0.5}]]",
        ),
        (
            {"item_id": [7], "timestamp": [NOW]},
            {"timestamp": float(NOW)},
            f"`context['timestamp']` must be int64. Received: [{float(NOW)}]",
        ),
    ],
)
def test_rank_refuses_timestamps_that_do_not_fit(
    aged: tuple[ETA, str], history: dict[str, Any], context: dict[str, Any], message: str
) -> None:
    with RankingClient(aged[1]) as client, pytest.raises(ValueError, match=re.escape(message)):
        client.rank(candidates={"item_id": [5]}, history=history, context=context)
