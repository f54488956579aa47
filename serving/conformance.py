"""What TensorFlow Serving 2.16.1 answers, case by case, put to any server that speaks its API.

    python -m serving.conformance                          # the embedded server, without and with batching
    python -m serving.conformance --make_model DIR         # a model for another server, and the command to start it
    python -m serving.conformance --target 127.0.0.1:8500

Expected are status codes, texts and values that were read off a real tensorflow_model_server.
"""

from __future__ import annotations

import os
import warnings

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", category=FutureWarning, module="google.api_core")

import argparse
import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from serving.config import BatchingParameters, read_config
from serving.server import ModelServer
from serving.targets import proxy_option

BATCHING = Path(__file__).with_name("deploy") / "batching.config"
MODEL = "eta"
CANDIDATES = "candidates"
_CONNECT_SECONDS = 10
_ROWS, _TABLE = [None], [None, None]
_Code = grpc.StatusCode


class ReferenceModel(tf.Module):
    """The model that the cases are about: a candidate's score is how often the history holds it, plus the version.

    Args:
        version: number of the version.
    """

    def __init__(self, version: int) -> None:
        super().__init__()
        self.version = tf.Variable(float(version))

    @tf.function(
        input_signature=[
            tf.TensorSpec(_TABLE, tf.int64, "history"),
            tf.TensorSpec(_ROWS, tf.int64, "history_length"),
            tf.TensorSpec(_TABLE, tf.int64, CANDIDATES),
        ]
    )
    def rank(self, history: tf.Tensor, history_length: tf.Tensor, candidates: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scores [R, C]."""
        real = tf.sequence_mask(history_length, tf.shape(history)[1])
        hits = tf.equal(candidates[:, :, None], history[:, None, :]) & real[:, None, :]
        return {"probability": tf.reduce_sum(tf.cast(hits, tf.float32), axis=2) + self.version}

    @tf.function(
        input_signature=[
            tf.TensorSpec(_TABLE, tf.int64, "history"),
            tf.TensorSpec(_ROWS, tf.int64, "history_length"),
            tf.TensorSpec(_ROWS, tf.int64, "candidate"),
        ]
    )
    def pointwise(self, history: tf.Tensor, history_length: tf.Tensor, candidate: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scores [N]."""
        return {"probability": self.rank(history, history_length, candidate[:, None])["probability"][:, 0]}

    def save(self, base_path: Path) -> None:
        """Writes the version under a base path."""
        signatures = {"serving_default": self.pointwise, "rank": self.rank}
        tf.saved_model.save(self, str(base_path / str(int(self.version.numpy()))), signatures=signatures)


def server_command(models_config: Path) -> str:
    """How to start TensorFlow Serving on models with labels: nothing is loaded yet when it looks at them first."""
    return (
        f"tensorflow_model_server --port=8500 --model_config_file={models_config} --grpc_max_threads=64 "
        "--allow_version_labels_for_unavailable_models"
    )


def make_model(folder: Path) -> model_server_config_pb2.ModelConfig:
    """Writes versions 1 and 2 under `folder`/eta, and `folder`/models.config, which serves both under labels."""
    base_path = folder.absolute() / MODEL
    for version in (1, 2):
        ReferenceModel(version).save(base_path)
    config = model_server_config_pb2.ModelServerConfig()
    model = config.model_config_list.config.add(name=MODEL, base_path=str(base_path), model_platform="tensorflow")
    model.model_version_policy.specific.versions.extend([1, 2])
    model.version_labels.update({"stable": 1, "canary": 2})
    (folder / "models.config").write_text(text_format.MessageToString(config), encoding="utf-8")
    return model


HISTORY = np.arange(200).reshape(2, 100) % 50
LENGTHS = np.array([100, 40])
# Row 0 has all of 0..49 twice; the first 40 behaviours of row 1 are 0..39, once each.
IDS = np.array([[0, 39, 40, 49, 50, -1, 7]] * 2)
HITS = np.array([[2, 2, 2, 2, 0, 0, 2], [1, 1, 0, 0, 0, 0, 1]], np.float32)


def tensor(values: Any, dtype: tf.DType = tf.int64) -> tensor_pb2.TensorProto:
    """A TensorProto as clients make it."""
    return tf.make_tensor_proto(values, dtype=dtype)


def raw_tensor(sizes: Sequence[int], dtype: int = types_pb2.DT_INT64, **values: Any) -> tensor_pb2.TensorProto:
    """A TensorProto whose parts need not fit together."""
    return tensor_pb2.TensorProto(dtype=dtype, tensor_shape={"dim": [{"size": size} for size in sizes]}, **values)


def rank_request(
    drop: str = "", spec: dict[str, Any] | None = None, filters: Sequence[str] = (), **changes: Any
) -> predict_pb2.PredictRequest:
    """A good request to `rank`, but for what is dropped or changed."""
    request = predict_pb2.PredictRequest(model_spec={"name": MODEL, "signature_name": "rank", **(spec or {})})
    inputs = {"history": tensor(HISTORY), "history_length": tensor(LENGTHS), CANDIDATES: tensor(IDS)}
    for name, value in (inputs | changes).items():
        if name != drop:
            request.inputs[name].CopyFrom(value)
    request.output_filter.extend(filters)
    return request


@dataclasses.dataclass(frozen=True)
class Case:
    """One request and what must come back.

    Args:
        name: what is special about the request.
        request: of any method of PredictionService or ModelService.
        code: the status code.
        text: what the error's message, or the answer in short, must contain.
        probability: the scores, for a Predict request that must succeed.
        timeout: deadline in seconds.
    """

    name: str
    request: Any
    code: grpc.StatusCode = _Code.OK
    text: str = ""
    probability: np.ndarray | None = None
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
        Case("good rank request", rank_request(), text=ranked, probability=HITS + 2),
        Case(
            "empty signature name",
            default,
            text="probability(2,) version=2 sig='serving_default'",
            probability=np.array([4, 2]),
        ),
        Case("version 1", rank_request(spec={"version": {"value": 1}}), text="version=1", probability=HITS + 1),
        Case("version 2", rank_request(spec={"version": {"value": 2}}), text="version=2", probability=HITS + 2),
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
        Case("zero rows", rank_request(**no_rows), text="probability(0, 7)", probability=np.zeros((0, 7))),
        Case(
            "zero rows, pointwise",
            rank_request(CANDIDATES, {"signature_name": ""}, **no_rows_at_all),
            text="probability(0,)",
            probability=np.zeros(0),
        ),
        Case(
            "zero candidates",
            rank_request(candidates=tensor(np.zeros((2, 0)))),
            text="probability(2, 0)",
            probability=np.zeros((2, 0)),
        ),
        Case("zero history columns", rank_request(**no_history), text=ranked, probability=np.full((2, 7), 2)),
        Case(
            "negative ids",
            rank_request(candidates=tensor(np.full((2, 7), -5))),
            text=ranked,
            probability=np.full((2, 7), 2),
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
        Case("output_filter known", rank_request(filters=["probability"]), text=ranked, probability=HITS + 2),
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
            probability=np.array([[3_000_002]]),
        ),
    ]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came back for a case.

    Args:
        code: the status code.
        message: the error's message, or the answer in short.
        fault: what is not as expected; empty if nothing.
    """

    code: grpc.StatusCode
    message: str
    fault: str


def run(case: Case, channel: grpc.Channel) -> Outcome:
    """Puts one case to a server."""
    method = type(case.request).__name__.removesuffix("Request")
    method = {"Classification": "Classify", "Regression": "Regress"}.get(method, method)
    service: Any = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    if method == "GetModelStatus":
        service = model_service_pb2_grpc.ModelServiceStub(channel)
    response: Any = None
    try:
        response = getattr(service, method)(case.request, timeout=case.timeout)
        code, message = _Code.OK, _summary(response)
    except grpc.RpcError as error:
        code, message = error.code(), error.details()
    fault = ""
    if code is not case.code:
        fault = f"expected {case.code.name}"
    elif case.text not in message:
        fault = f"expected the text {case.text!r}"
    elif case.probability is not None:
        answered = tf.make_ndarray(response.outputs["probability"])
        if not np.array_equal(answered, case.probability):
            fault = f"expected probability {case.probability.tolist()}. Received: {answered.tolist()}"
    return Outcome(code, message, fault)


def _summary(response: Any) -> str:
    """An answer in short."""
    if isinstance(response, predict_pb2.PredictResponse):
        outputs = ", ".join(f"{name}{tf.make_ndarray(proto).shape}" for name, proto in response.outputs.items())
        return f"{outputs} version={response.model_spec.version.value} sig={response.model_spec.signature_name!r}"
    if isinstance(response, get_model_status_pb2.GetModelStatusResponse):
        states = response.DESCRIPTOR.file.message_types_by_name["ModelVersionStatus"].enum_types_by_name["State"]
        statuses = sorted(response.model_version_status, key=lambda status: status.version)
        return ", ".join(
            f"{each.version} {states.values_by_number[each.state].name} "
            + ("OK" if not each.status.error_code else each.status.error_message)
            for each in statuses
        )
    if isinstance(response, get_model_metadata_pb2.GetModelMetadataResponse):
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return ", ".join(f"{name}({','.join(sorted(s.inputs))})" for name, s in signatures.signature_def.items())
    return type(response).__name__


@contextlib.contextmanager
def _embedded_server(*, batching: bool) -> Iterator[str]:
    """The address of an embedded server of the model."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ModelServer(
            [make_model(Path(folder))],
            port=0,
            file_system_poll_wait_seconds=0,
            allow_version_labels_for_unavailable_models=True,
            batching_parameters=read_config(BATCHING, BatchingParameters) if batching else None,
        ) as server,
    ):
        yield server.address


def _run_all(target: str, *, batching: bool) -> int:
    """Puts every case to a server and prints what came back.

    Returns:
        How many cases are not as expected.

    Raises:
        ConnectionError: if nothing answers.
    """
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        proxy_option(target),
    ]
    failed = 0
    with grpc.insecure_channel(target, options=options) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            raise ConnectionError(f"nothing answers at {target}") from None
        all_cases = cases(batching=batching)
        print(f"{'':4} {'case':32} {'expected':20} {'got':20} message")
        for case in all_cases:
            outcome = run(case, channel)
            failed += bool(outcome.fault)
            print(
                f"{'FAIL' if outcome.fault else 'ok':4} {case.name:32} {case.code.name:20} {outcome.code.name:20} "
                f"{outcome.message}{'; ' if outcome.fault else ''}{outcome.fault}"
            )
    number = f"{len(all_cases) - failed} of {len(all_cases)}"
    print(f"{number} cases as expected at {target}, {'with' if batching else 'without'} batching")
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """Puts every case to a server and prints what came back.

    Returns:
        The exit code: 1 if anything is not as expected.
    """
    parser = argparse.ArgumentParser(
        prog="python -m serving.conformance",
        description="Compare a server's answers with those of TensorFlow Serving 2.16.1, case by case.",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--target",
        metavar="HOST:PORT",
        help="a server of the model that --make_model writes (default: embedded servers, started for it)",
    )
    where.add_argument(
        "--make_model", type=Path, metavar="DIR", help="write the model and its models.config, and do nothing else"
    )
    parser.add_argument("--batching", action="store_true", help="the server of --target runs with --enable_batching")
    flags = parser.parse_args(argv)
    if flags.batching and not flags.target:
        parser.error("--batching is about the server of --target")
    if flags.make_model:
        make_model(flags.make_model)
        print(f"Serve it with: {server_command(flags.make_model / 'models.config')}")
        more = f"--enable_batching --batching_parameters_file={BATCHING}"
        print(f"or, to check it with --batching, the same and: {more}")
        return 0
    if flags.target:
        try:
            return min(1, _run_all(flags.target, batching=flags.batching))
        except ConnectionError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    failed = 0
    for batching in (False, True):
        with _embedded_server(batching=batching) as target:
            failed += _run_all(target, batching=batching)
    return min(1, failed)


if __name__ == "__main__":
    sys.exit(main())
