"""Puts the cases of the table to a server, and compares."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.server.config import BatchingParameters, read_config
from serving.server.embedded import EmbeddedServer
from serving.targets import proxy_option
from serving.tools.cases import Case, cases
from serving.tools.reference_retriever import make_models
from serving.tools.retriever_cases import retriever_cases

BATCHING = Path(__file__).parents[2] / "deploy" / "batching.config"
_CONNECT_SECONDS = 10
# Of log probabilities, which kernels of other machines sum in another order.
_TOLERANCE = 1e-4
_Code = grpc.StatusCode


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The answer to a case.

    Args:
        code: the status code.
        message: the error's message, or a summary of the answer.
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
    else:
        for name, expected in case.outputs.items():
            answered = tf.make_ndarray(response.outputs[name])
            if answered.shape != expected.shape or not np.allclose(answered, expected, rtol=0, atol=_TOLERANCE):
                fault = f"expected {name} {expected.tolist()}. Received: {answered.tolist()}"
    return Outcome(code, message, fault)


def _summary(response: Any) -> str:
    """A summary of an answer."""
    if isinstance(response, predict_pb2.PredictResponse):
        outputs = ", ".join(f"{name}{tf.make_ndarray(proto).shape}" for name, proto in sorted(response.outputs.items()))
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
def embedded_server(*, batching: bool) -> Iterator[str]:
    """Starts an embedded server of the reference models and yields its address."""
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer(
            make_models(Path(folder)),
            port=0,
            file_system_poll_wait_seconds=0,
            allow_version_labels_for_unavailable_models=True,
            batching_parameters=read_config(BATCHING, BatchingParameters) if batching else None,
        ) as server,
    ):
        yield server.address


def run_all(target: str, *, batching: bool) -> int:
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
        all_cases = [*cases(batching=batching), *retriever_cases(batching=batching)]
        print(f"{'':4} {'case':36} {'expected':20} {'got':20} message")
        for case in all_cases:
            outcome = run(case, channel)
            failed += bool(outcome.fault)
            print(
                f"{'FAIL' if outcome.fault else 'ok':4} {case.name:36} {case.code.name:20} {outcome.code.name:20} "
                f"{outcome.message}{'; ' if outcome.fault else ''}{outcome.fault}"
            )
    number = f"{len(all_cases) - failed} of {len(all_cases)}"
    print(f"{number} cases as expected at {target}, {'with' if batching else 'without'} batching")
    return failed
