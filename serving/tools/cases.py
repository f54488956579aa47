"""What TensorFlow Serving 2.16.1 answers, case by case, as it was read off a real tensorflow_model_server."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
    regression_pb2,
)

from serving.tools.reference_model import CANDIDATES, HISTORY, HITS, IDS, MODEL, rank_request, raw_tensor, tensor

_Code = grpc.StatusCode


@dataclasses.dataclass(frozen=True)
class Case:
    """One request and what must come back.

    Args:
        name: what is special about the request.
        request: of any method of PredictionService or ModelService.
        code: the status code.
        text: what the error's message, or the summary of the answer, must contain.
        outputs: what a Predict request that must succeed gives, by name; floats up to 1e-4.
        timeout: deadline in seconds.
    """

    name: str
    request: Any
    code: grpc.StatusCode = _Code.OK
    text: str = ""
    outputs: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    timeout: float = 30


def _metadata(*fields: str) -> get_model_metadata_pb2.GetModelMetadataRequest:
    return get_model_metadata_pb2.GetModelMetadataRequest(model_spec={"name": MODEL}, metadata_field=fields)


def _status(**spec: Any) -> get_model_status_pb2.GetModelStatusRequest:
    return get_model_status_pb2.GetModelStatusRequest(model_spec=spec)


def cases(*, batching: bool = False) -> list[Case]:
    """All cases; built when asked for, as one of them holds 24 MB.

    Args:
        batching: whether the server joins requests; then it compares their rows before the graph does.
    """
    invalid, missing = _Code.INVALID_ARGUMENT, _Code.NOT_FOUND
    ranked = "probability(2, 7) version=2 sig='rank'"
    of_version_1, of_version_2 = ({"probability": HITS + version} for version in (1, 2))
    no_hits = {"probability": np.full((2, 7), 2)}
    spec = {"name": MODEL}
    examples = {"example_list": {"examples": [tf.train.Example()]}}
    wrong_ids = {dtype: tensor(IDS, dtype) for dtype in (tf.int32, tf.float32)}
    strings = tensor(IDS.astype(str).astype(object), tf.string)
    unreadable = f"tensor parsing error: {CANDIDATES}"
    # In place of three rows, the values of which do not matter.
    three = tensor(np.zeros((3, 7)))
    default = rank_request(CANDIDATES, {"signature_name": ""}, candidate=tensor([39, 40]))
    no_rows = {"history": tensor(np.zeros((0, 5))), "history_length": tensor([]), CANDIDATES: tensor(np.zeros((0, 7)))}
    no_rows_at_all = {"history": tensor(np.zeros((0, 5))), "history_length": tensor([]), "candidate": tensor([])}
    no_history = {"history": tensor(np.zeros((2, 0))), "history_length": tensor([0, 0])}
    long = np.ones((1, 3_000_000), np.int64)
    long_history = {"history": tensor(long), "history_length": tensor([3_000_000]), CANDIDATES: tensor([[1]])}
    names = "len({history,history_length}) != len({candidates,history,history_length})"
    return [
        Case("good rank request", rank_request(), text=ranked, outputs=of_version_2),
        Case(
            "empty signature name",
            default,
            text="probability(2,) version=2 sig='serving_default'",
            outputs={"probability": np.array([4, 2])},
        ),
        Case(
            "version 1",
            rank_request(spec={"version": {"value": 1}}),
            text="version=1",
            outputs=of_version_1,
        ),
        Case(
            "version 2",
            rank_request(spec={"version": {"value": 2}}),
            text="version=2",
            outputs=of_version_2,
        ),
        Case("version label known", rank_request(spec={"version_label": "stable"}), text="version=1"),
        Case(
            "unknown version 99",
            rank_request(spec={"version": {"value": 99}}),
            missing,
            "Servable not found for request: Specific(eta, 99)",
        ),
        Case(
            "unknown label",
            rank_request(spec={"version_label": "nope"}),
            invalid,
            "Unrecognized servable version label: nope",
        ),
        Case(
            "unknown model",
            rank_request(spec={"name": "nope"}),
            missing,
            "Servable not found for request: Latest(nope)",
        ),
        Case("empty model name", rank_request(spec={"name": ""}), invalid, "ModelSpec has no name specified."),
        Case(
            "unknown signature",
            rank_request(spec={"signature_name": "nope"}),
            _Code.FAILED_PRECONDITION,
            'Serving signature key "nope" not found.',
        ),
        Case(
            "missing input",
            rank_request(CANDIDATES),
            invalid,
            f"input size does not match signature: 2!=3 {names}. "
            f"Sent extra: {{}}. Missing but required: {{{CANDIDATES}}}.",
        ),
        Case(
            "unknown extra input",
            rank_request(extra=tensor([1])),
            invalid,
            "input size does not match signature: 4!=3 len({candidates,extra,history,history_length}) != "
            "len({candidates,history,history_length}). Sent extra: {extra}. Missing but required: {}.",
        ),
        Case(
            "wrong dtype int32",
            rank_request(candidates=wrong_ids[tf.int32]),
            invalid,
            "Expects arg[0] to be int64 but int32 is provided",
        ),
        Case(
            "wrong dtype float",
            rank_request(candidates=wrong_ids[tf.float32]),
            invalid,
            "Expects arg[0] to be int64 but float is provided",
        ),
        Case(
            "wrong dtype string",
            rank_request(candidates=strings),
            invalid,
            "Expects arg[0] to be int64 but string is provided",
        ),
        Case("wrong rank", rank_request(history=tensor(HISTORY[0])), invalid),
        Case(
            "inconsistent rows",
            rank_request(candidates=three),
            invalid,
            "" if batching else "Incompatible shapes: [3,7,1] vs. [2,1,100]",
        ),
        Case("zero rows", rank_request(**no_rows), text="probability(0, 7)", outputs={"probability": np.zeros((0, 7))}),
        Case(
            "zero rows, pointwise",
            rank_request(CANDIDATES, {"signature_name": ""}, **no_rows_at_all),
            text="probability(0,)",
            outputs={"probability": np.zeros(0)},
        ),
        Case(
            "zero candidates",
            rank_request(candidates=tensor(np.zeros((2, 0)))),
            text="probability(2, 0)",
            outputs={"probability": np.zeros((2, 0))},
        ),
        Case("zero history columns", rank_request(**no_history), text=ranked, outputs=no_hits),
        Case(
            "negative ids",
            rank_request(candidates=tensor(np.full((2, 7), -5))),
            text=ranked,
            outputs=no_hits,
        ),
        Case(
            "malformed tensor_content",
            rank_request(candidates=raw_tensor([2, 7], tensor_content=b"abc")),
            invalid,
            unreadable,
        ),
        Case("negative dim", rank_request(candidates=raw_tensor([2, -7], int64_val=[1])), invalid, unreadable),
        Case("giant shape, no data", rank_request(candidates=raw_tensor([1 << 40, 7])), invalid, unreadable),
        Case("unknown dtype", rank_request(candidates=raw_tensor([2, 7], dtype=12345)), invalid, unreadable),
        Case(
            "output_filter unknown",
            rank_request(filters=["nope"]),
            invalid,
            "output tensor alias not found in signature: nope Outputs expected to be in the set {probability}.",
        ),
        Case("output_filter known", rank_request(filters=["probability"]), text=ranked, outputs=of_version_2),
        Case("nothing at all", predict_pb2.PredictRequest(), invalid, "Missing ModelSpec"),
        # A large one: a fast server answers a small one before gRPC's clock has ticked.
        Case(
            "deadline of 1 us", rank_request(**long_history), _Code.DEADLINE_EXCEEDED, "Deadline Exceeded", timeout=1e-6
        ),
        Case(
            "metadata without field",
            _metadata(),
            invalid,
            "GetModelMetadataRequest must specify at least one metadata_field",
        ),
        Case("metadata signature_def", _metadata("signature_def"), text="rank(candidates,history,history_length)"),
        Case("metadata unknown field", _metadata("nope"), invalid, "Metadata field nope is not supported"),
        Case("status all versions", _status(name=MODEL), text="1 AVAILABLE OK, 2 AVAILABLE OK"),
        Case(
            "status unknown version",
            _status(name=MODEL, version={"value": 99}),
            missing,
            "Could not find version 99 of model eta",
        ),
        Case("status unknown model", _status(name="nope"), missing, "Could not find any versions of model nope"),
        Case(
            "Classify without examples",
            classification_pb2.ClassificationRequest(model_spec=spec),
            invalid,
            "Expected one input Tensor.",
        ),
        Case(
            "Classify on a predict signature",
            classification_pb2.ClassificationRequest(model_spec=spec, input=examples),
            invalid,
            "Expected one input Tensor.",
        ),
        Case(
            "Regress on a predict signature",
            regression_pb2.RegressionRequest(model_spec=spec, input=examples),
            invalid,
            "Expected one input Tensor.",
        ),
        Case(
            "24 MB request",
            rank_request(**long_history),
            text="probability(1, 1) version=2 sig='rank'",
            outputs={"probability": np.array([[3_000_002]])},
        ),
    ]
