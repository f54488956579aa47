"""What TensorFlow Serving 2.16.1 answers of an exported retriever, case by case.

Status codes and texts are those that it was seen to give a ranker for the same faults, or those of the graph's own
checks; the items and their log probabilities are those of scoring all items in Python.
"""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from keras_eta.export.examples import make_example
from serving.tools.cases import Case
from serving.tools.reference_model import predict_request, raw_tensor, tensor
from serving.tools.reference_retriever import (
    EXCLUDED,
    EXCLUDED_LENGTHS,
    HISTORIES,
    ITEMS,
    LENGTHS,
    NUM_RESULTS,
    RETRIEVER,
    retrieve_request,
)

_Code = grpc.StatusCode
Answer = dict[str, np.ndarray]

# Of the good request, and of two without a history.
GOOD: Answer = {
    "item_id": np.array([[108, 101, 105, 106], [101, 109, 107, 112]]),
    "log_probability": np.array([[-2.30794, -4.47948, -4.60908, -5.16758], [-3.49254, -4.87614, -5.19668, -5.50484]]),
}
EMPTY: Answer = {
    "item_id": np.array([[108, 101, 112, 105]] * 2),
    "log_probability": np.array([[-3.00647, -3.45622, -4.82943, -5.1765]] * 2),
}
# The last two items that are not excluded, of the first history.
TWO_LEFT: Answer = {
    "item_id": np.array([[112, 111, 0, 0]]),
    "log_probability": np.array([[-5.61555, -6.19349, -np.inf, -np.inf]]),
}


def _rows(answer: Answer, rows: Any) -> Answer:
    return {name: values[rows] for name, values in answer.items()}


def _examples_request(examples: Any, spec: dict[str, Any] | None = None) -> Any:
    spec = {"name": RETRIEVER, "signature_name": "examples", **(spec or {})}
    return predict_request(spec, {"examples": tensor(examples, tf.string)})


def _good_examples() -> list[bytes]:
    lists = zip(HISTORIES, LENGTHS, EXCLUDED, EXCLUDED_LENGTHS, strict=True)
    return [
        make_example({"history_item_id": history[:length], "excluded_item_id": excluded[:number]}).SerializeToString()
        for history, length, excluded, number in lists
    ]


def retriever_cases(*, batching: bool = False) -> list[Case]:
    """All cases.

    Args:
        batching: whether the server joins requests; then it compares their rows before the graph does.
    """
    invalid = _Code.INVALID_ARGUMENT
    found = "item_id(2, 4), log_probability(2, 4) version=1 sig="
    one = {"history_item_id": tensor(HISTORIES[:1]), "history_length": tensor(LENGTHS[:1])}
    nothing_excluded = {"excluded_item_id": tensor(np.zeros((2, 0))), "excluded_length": tensor([0, 0])}
    longer = np.concatenate([HISTORIES, [[107, 110, 112]] * 2], axis=1)
    no_rows = {name: tensor(np.zeros((0, 2))) for name in ("history_item_id", "excluded_item_id")}
    no_rows |= {name: tensor([]) for name in ("history_length", "excluded_length")}
    none = {name: values[:0] for name, values in GOOD.items()}
    names = "excluded_item_id,excluded_length,history_item_id,history_length"
    strings = tensor(EXCLUDED.astype(str).astype(object), tf.string)
    floats = tf.train.Feature(float_list=tf.train.FloatList(value=[103]))
    of_floats = tf.train.Example(features={"feature": {"history_item_id": floats}}).SerializeToString()
    in_graph = "" if batching else "`excluded_item_id` must have as many rows as `history_"
    return [
        Case("retrieve", retrieve_request(), text=f"{found}'retrieve'", outputs=GOOD),
        Case("examples", _examples_request(_good_examples()), text=f"{found}'examples'", outputs=GOOD),
        Case("examples without lists", _examples_request([b"", b""]), outputs=EMPTY),
        Case(
            "empty history",
            retrieve_request(history_length=tensor([0, 0]), **nothing_excluded),
            outputs=EMPTY,
        ),
        Case(
            "no history columns",
            retrieve_request(
                history_item_id=tensor(np.zeros((2, 0))), history_length=tensor([0, 0]), **nothing_excluded
            ),
            outputs=EMPTY,
        ),
        Case(
            "history of unknown items",
            retrieve_request(
                history_item_id=tensor([[998, -1, 0], [999, 0, 0]]), history_length=tensor([3, 1]), **nothing_excluded
            ),
            outputs=EMPTY,
        ),
        Case(
            "history longer than trained",
            retrieve_request(history_item_id=tensor(longer), history_length=tensor([6, 2])),
            outputs=GOOD,
        ),
        Case(
            "excluded ids that are no items",
            retrieve_request(**one, excluded_item_id=tensor([[999, -5]]), excluded_length=tensor([2])),
            outputs=_rows(GOOD, slice(1)),
        ),
        Case(
            "all but two items excluded",
            retrieve_request(
                **one, excluded_item_id=tensor(ITEMS[np.newaxis, :-2]), excluded_length=tensor([len(ITEMS) - 2])
            ),
            outputs=TWO_LEFT,
        ),
        Case("retrieve, zero rows", retrieve_request(**no_rows), text="item_id(0, 4)", outputs=none),
        Case("examples, zero rows", _examples_request([]), text="item_id(0, 4)", outputs=none),
        Case(
            "retriever's unknown version 99",
            retrieve_request(spec={"version": {"value": 99}}),
            _Code.NOT_FOUND,
            "Servable not found for request: Specific(tiger, 99)",
        ),
        Case(
            "rank of a retriever",
            retrieve_request(spec={"signature_name": "rank"}),
            _Code.FAILED_PRECONDITION,
            'Serving signature key "rank" not found.',
        ),
        Case(
            "retriever, empty signature name",
            retrieve_request(spec={"signature_name": ""}),
            _Code.FAILED_PRECONDITION,
            'Serving signature key "serving_default" not found.',
        ),
        Case(
            "retrieve, missing input",
            retrieve_request("excluded_item_id"),
            invalid,
            "input size does not match signature: 3!=4 len({excluded_length,history_item_id,history_length}) != "
            f"len({{{names}}}). Sent extra: {{}}. Missing but required: {{excluded_item_id}}.",
        ),
        Case(
            "retrieve, number of results sent",
            retrieve_request(num_results=tensor([NUM_RESULTS])),
            invalid,
            f"input size does not match signature: 5!=4 len({{{names},num_results}}) != len({{{names}}}). "
            "Sent extra: {num_results}. Missing but required: {}.",
        ),
        Case(
            "retrieve, wrong dtype int32",
            retrieve_request(excluded_item_id=tensor(EXCLUDED, tf.int32)),
            invalid,
            "Expects arg[0] to be int64 but int32 is provided",
        ),
        Case(
            "retrieve, wrong dtype string",
            retrieve_request(excluded_item_id=strings),
            invalid,
            "Expects arg[0] to be int64 but string is provided",
        ),
        Case(
            "examples, wrong dtype int64",
            predict_request({"name": RETRIEVER, "signature_name": "examples"}, {"examples": tensor([1])}),
            invalid,
            "Expects arg[0] to be string but int64 is provided",
        ),
        Case(
            "retrieve, wrong rank",
            retrieve_request(history_item_id=tensor(HISTORIES[0])),
            invalid,
            "" if batching else "`history_item_id` must have shape",
        ),
        Case("examples, wrong rank", _examples_request([_good_examples()]), invalid),
        Case(
            "retrieve, inconsistent rows",
            retrieve_request(excluded_item_id=tensor(np.zeros((3, 2)))),
            invalid,
            in_graph,
        ),
        Case(
            "history_length past the columns",
            retrieve_request(history_length=tensor([4, 2])),
            invalid,
            "`history_length` must lie between 0 and the number of history columns",
        ),
        Case(
            "negative excluded_length",
            retrieve_request(excluded_length=tensor([0, -1])),
            invalid,
            "`excluded_length` must lie between 0 and the number of excluded columns",
        ),
        Case("bytes that are no example", _examples_request([b"no example"]), invalid, "Could not parse example input"),
        Case("example of floats", _examples_request([of_floats]), invalid, "Data types don't match"),
        Case(
            "retrieve, malformed tensor_content",
            retrieve_request(history_item_id=raw_tensor([2, 3], tensor_content=b"abc")),
            invalid,
            "tensor parsing error: history_item_id",
        ),
        Case(
            "retrieve, output_filter unknown",
            retrieve_request(filters=["probability"]),
            invalid,
            "output tensor alias not found in signature: probability "
            "Outputs expected to be in the set {item_id,log_probability}.",
        ),
        Case(
            "retrieve, output_filter known",
            retrieve_request(filters=["item_id"]),
            text="item_id(2, 4) version=1 sig='retrieve'",
            outputs={"item_id": GOOD["item_id"]},
        ),
        Case(
            "retriever's signature_def",
            get_model_metadata_pb2.GetModelMetadataRequest(
                model_spec={"name": RETRIEVER}, metadata_field=["signature_def"]
            ),
            text=f"retrieve({names})",
        ),
        Case(
            "retriever's status",
            get_model_status_pb2.GetModelStatusRequest(model_spec={"name": RETRIEVER}),
            text="1 AVAILABLE OK",
        ),
    ]
