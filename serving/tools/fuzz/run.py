"""Sends the requests of a run and judges what comes back."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import Any

import grpc
import numpy as np
import pandas as pd
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import predict_pb2
from tqdm import tqdm

from serving.process import ServerProcess
from serving.tools.fuzz.mutations import Requests
from serving.tools.fuzz.requests import DEADLINE_SECONDS, RELOAD, RawRequest, raw_request

_LATE_SECONDS = 2.0
_MEMORY_FACTOR = 1.10
# Memory is first taken after this part of the run, and judged in runs of so many requests: until then threads, caches
# and the memory pools of malloc and TensorFlow fill.
_WARM_UP = 0.25
_MIN_REQUESTS_FOR_MEMORY = 10_000
_LOADS = 5
_Code = grpc.StatusCode
_REFUSALS = (_Code.OK, _Code.INVALID_ARGUMENT, _Code.NOT_FOUND, _Code.FAILED_PRECONDITION, _Code.UNIMPLEMENTED)


def ask(channel: grpc.Channel, request: RawRequest) -> tuple[grpc.StatusCode | None, Any]:
    """Sends a request.

    Returns:
        The status code, and the answer's bytes or the error's message; `None` and "" if nothing came in time.
    """
    call = channel.unary_unary(request.method).future(request.data, timeout=request.timeout)
    try:
        return _Code.OK, call.result(timeout=request.timeout + _LATE_SECONDS)
    except grpc.FutureTimeoutError:
        call.cancel()
        return None, ""
    except grpc.RpcError as error:
        return error.code(), error.details()


def fault_of(request: RawRequest, code: grpc.StatusCode | None, answer: Any) -> str:
    """What is wrong with an answer; empty if nothing is."""
    if code is None:
        return f"no answer after {request.timeout + _LATE_SECONDS} s"
    if request.expected is not None:
        return f"a good request got {code.name}: {answer}" if code is not _Code.OK else _difference(request, answer)
    allowed = [*_REFUSALS]
    if request.timeout < DEADLINE_SECONDS:
        allowed.append(_Code.DEADLINE_EXCEEDED)
    if request.method == RELOAD:
        allowed += [_Code.PERMISSION_DENIED, _Code.UNKNOWN]  # UNKNOWN: TensorFlow Serving's for what can't be loaded
    if code is _Code.INTERNAL and not _parses(request):
        return ""  # gRPC's own code for what can't be parsed
    return "" if code in allowed else f"{code.name}: {answer}"


def _parses(request: RawRequest) -> bool:
    try:
        request.message_class.FromString(request.data)
    except DecodeError:
        return False
    return True


def _difference(request: RawRequest, answer: bytes) -> str:
    response = predict_pb2.PredictResponse.FromString(answer)
    expected: Mapping[str, np.ndarray] = request.expected or {}
    if response.model_spec.version.value != request.version:
        return f"version {response.model_spec.version.value} answered, not {request.version}"
    if response.outputs.keys() != expected.keys():
        return f"outputs {sorted(response.outputs)}, not {sorted(expected)}"
    for name, values in expected.items():
        received = tf.make_ndarray(response.outputs[name])
        # Sums of floats in another order; integers are equal or not.
        if received.shape != values.shape or not np.allclose(received, values, rtol=1e-5, atol=1e-6, equal_nan=True):
            return f"wrong {name!r}: {received.tolist()}, not {values.tolist()}"[:1_000]
    return ""


@dataclasses.dataclass
class FuzzReport:
    """Results of a run.

    Args:
        counts: answers by mutation and code.
        faults: what went wrong, by index of the request; the run's own under -1.
        memory: the server's resident set in bytes after the warm-up and at the end; zeros if it was not to be seen.
    """

    counts: collections.Counter[tuple[str, str]]
    faults: list[tuple[int, str]]
    memory: tuple[int, int] = (0, 0)

    def table(self) -> str:
        """The counts as text."""
        return pd.Series(self.counts).unstack(fill_value=0).to_string()


def run(
    channel: grpc.Channel, requests: Requests, indices: Iterable[int], server: ServerProcess | None = None
) -> FuzzReport:
    """Sends requests one after the other.

    Args:
        channel: to the server.
        requests: where they are from.
        indices: which ones.
        server: the server, if it can be watched.

    Returns:
        The report; after a crash of the server, of what came before.
    """
    indices = list(indices)
    report = FuzzReport(collections.Counter(), [])
    before, warm = 0, int(len(indices) * _WARM_UP)
    for number, index in enumerate(tqdm(indices, unit="request", mininterval=1)):
        if number == warm and server:
            _load_again(channel, requests)
            before = _settled(server)
        request = requests[index]
        code, answer = ask(channel, request)
        report.counts[request.mutation, code.name if code else "none"] += 1
        if fault := fault_of(request, code, answer):
            report.faults.append((index, f"{request.mutation}: {fault}"))
        if server and server.exit_code is not None:
            report.faults.append((index, f"the server ended with {server.exit_code}: {server.last_words()}"))
            return report
        if request.method == RELOAD and code is _Code.OK:
            code, answer = ask(channel, raw_request(RELOAD, requests.reload))
            if code is not _Code.OK:
                report.faults.append((index, f"the reload of what was before got {code}: {answer}"))
    if server:
        report.memory = before, _settled(server)
        if len(indices) >= _MIN_REQUESTS_FOR_MEMORY and report.memory[1] > _MEMORY_FACTOR * before:
            report.faults.append((-1, f"memory grew by more than {_MEMORY_FACTOR - 1:.0%}"))
    return report


def _load_again(channel: grpc.Channel, requests: Requests) -> None:
    """Has models dropped and loaded a few times, until memory no longer grows from that."""
    alone = requests.reload
    del alone.config.model_config_list.config[1:]
    for _ in range(_LOADS):
        for message in (alone, requests.reload):
            ask(channel, raw_request(RELOAD, message))


def _settled(server: ServerProcess) -> int:
    time.sleep(1)  # what was asked with a short deadline may still be worked on
    return server.memory
