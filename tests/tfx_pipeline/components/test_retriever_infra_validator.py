"""What is asked of a retriever on a model server, and which answers do not pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta.contract import Contract
from tests.tfx_pipeline import servable
from tfx_pipeline.components.model_server import Signature, UnservableModelError
from tfx_pipeline.components.retriever_infra_validator import check_retrieval, retrieval_requests
from tfx_pipeline.custom_layout import custom
from tfx_pipeline.layouts import Label

Answer = dict[str, np.ndarray]
RECORDS = [servable.serialized(impression) for impression in servable.impressions(3)]
REQUESTS = retrieval_requests(Contract(servable.LAYOUT.features, {}), RECORDS)
NUM_REQUESTS = 5


class Server:
    """Answers both signatures with two items that nobody knows, as `change` changes them."""

    def __init__(self, change: Callable[[str, Answer], Any] = lambda name, answer: None, lacks: str = "") -> None:
        self._change, self._lacks = change, lacks

    def signatures(self) -> dict[str, Signature]:
        return {name: Signature((), ()) for name in ("examples", "retrieve") if name != self._lacks}

    def predict(self, name: str, inputs: Answer) -> Answer:
        log_probability = np.tile(np.array([-1.0, -2.0, -np.inf], np.float32), [NUM_REQUESTS, 1])
        items = np.tile(np.array([b"one", b"two", b""], object), [NUM_REQUESTS, 1])
        answer = {"item_id": items, "log_probability": log_probability}
        self._change(name, answer)
        return answer


def test_requests_have_the_histories_an_empty_one_and_an_unknown_item() -> None:
    inputs = REQUESTS["retrieve"]
    lengths = inputs["history_length"]
    histories = [tf.train.Example.FromString(record).features.feature["history_item_id"] for record in RECORDS]
    expected = [[*history.bytes_list.value] for history in histories] + [[], [b""]]
    assert lengths.tolist() == inputs["excluded_length"].tolist() == [0, 6, len(expected[2]), 0, 1]
    for name in ("history_item_id", "excluded_item_id"):
        assert [row[:length].tolist() for row, length in zip(inputs[name], lengths, strict=True)] == expected
        of_examples = [tf.train.Example.FromString(example) for example in REQUESTS["examples"]["examples"]]
        assert [[*example.features.feature[name].bytes_list.value] for example in of_examples] == expected
    numbers = custom("log.csv", Label("clicked")).features
    with pytest.raises(ValueError, match=r"Column `history_item_id` .* of kind int64_list\. Received: bytes_list"):
        retrieval_requests(Contract(numbers, {}), RECORDS)
    empty = tf.train.Example(features=tf.train.Features(feature={"history_item_id": tf.train.Feature()}))
    inputs = retrieval_requests(Contract(numbers, {}), [empty.SerializeToString()])["retrieve"]
    assert (inputs["history_item_id"].tolist(), inputs["history_length"].tolist()) == ([[-1]] * 3, [0, 0, 1])
    with pytest.raises(ValueError, match="Received: nothing"):
        retrieval_requests(Contract(numbers, {}), [b""])


def test_right_answers_pass() -> None:
    check_retrieval(Server(), REQUESTS)  # type: ignore[arg-type]


def _only(name: str, change: Callable[[Answer], Any]) -> Callable[[str, Answer], Any]:
    return lambda of, answer: change(answer) if of == name else None


def _set(column: str, place: tuple[int, int], value: Any, name: str = "examples") -> Callable[[str, Answer], Any]:
    return _only(name, lambda answer: answer[column].__setitem__(place, value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _only("retrieve", lambda answer: answer.pop("item_id")),
            "`retrieve` gives ['log_probability'], not ['item_id'",
        ),
        (
            _only("retrieve", lambda answer: answer.update(item_id=answer["item_id"][:4])),
            "`retrieve` gives `item_id` of shape [4, 3] and `log_probability` of shape [5, 3] for 5 requests.",
        ),
        (
            _only("examples", lambda answer: answer.update(item_id=answer["item_id"][:, :2])),
            "`examples` gives `item_id` of shape [5, 2] and `log_probability` of shape [5, 3] for 5 requests.",
        ),
        (
            _only("examples", lambda answer: answer["log_probability"].__setitem__((2, slice(None)), -np.inf)),
            "`examples` finds nothing for a request.",
        ),
        (_set("log_probability", (1, 0), np.nan), "`examples` gives answers that are wrong: {'not_numbers': 1}."),
        (_set("log_probability", (4, 1), -0.5), "`examples` gives answers that are wrong: {'out_of_order': 1}."),
        (_set("item_id", (0, 1), b"one"), "`examples` gives answers that are wrong: {'repeated_items': 1}."),
        (
            _set("item_id", (1, 1), REQUESTS["retrieve"]["history_item_id"][1, 5], "retrieve"),
            "`retrieve` gives answers that are wrong: {'excluded_items': 1}.",
        ),
        (_set("item_id", (1, 1), b"three"), "`retrieve` and `examples` do not find the same."),
        (_set("log_probability", (1, 1), -2.001), "`retrieve` and `examples` do not find the same."),
    ],
)
def test_wrong_answers_do_not_pass(change: Callable[[str, Answer], Any], message: str) -> None:
    with pytest.raises(UnservableModelError, match="^" + re.escape(message)):
        check_retrieval(Server(change), REQUESTS)  # type: ignore[arg-type]


def test_a_model_without_a_signature_does_not_pass() -> None:
    message = "The model lacks the signatures ['examples']. It has ['retrieve']."
    with pytest.raises(UnservableModelError, match=re.escape(message)):
        check_retrieval(Server(lacks="examples"), REQUESTS)  # type: ignore[arg-type]
