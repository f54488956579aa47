"""Calls to a server: their order, their retries, and which version answers."""

from __future__ import annotations

import copy
import dataclasses
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

import grpc
import numpy as np

from keras_eta.validation import check_positive_integers
from serving.client import protocol
from serving.client.answers import Metadata, ServingError, VersionStatus
from serving.client.channel import MAX_ATTEMPTS, channel_options
from serving.client.metadata import read_metadata

# The pauses before parts of a request that a busy server turned away are sent again.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
# Versions that come and go while one list is asked for.
_MAX_SWAPS = 5
# Versions whose signatures are remembered.
_MAX_KNOWN = 4
_READY_POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Calls:
    """Calls to make at the same time.

    Args:
        requests: name of the method and its request, for each call.
        deadline: the `time.monotonic()` by which all have to be over.
        patient: whether a server that is too busy for a call fails that call alone: its ServingError is then given in
            place of its response.
    """

    requests: Sequence[tuple[str, Any]]
    deadline: float
    patient: bool = False

    def fails_alone(self, error: ServingError) -> bool:
        """Whether the other calls continue after one of them fails with this error."""
        # gRPC gives the same code to a message that is too large, which no waiting makes smaller.
        busy = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" not in error.details
        return self.patient and busy


# Is given the version that answered, and the inputs and outputs by name.
Observe = Callable[[int, Mapping[str, np.ndarray], Mapping[str, np.ndarray]], None]

_T = TypeVar("_T")
# What a method says and hears, whichever way it travels: it yields calls and is sent a list of their responses, or
# thrown a ServingError; it yields seconds to pause for, and is sent nothing.
Conversation = Generator["Calls | float", Any, _T]


class Calling:
    """What a client knows of its server, and the conversations that every method is made of."""

    def __init__(
        self,
        target: str = "127.0.0.1:8500",
        model_name: str = "eta",
        *,
        retriever: str | None = None,
        timeout: float = 10.0,
        max_attempts: int = MAX_ATTEMPTS,
        max_candidates: int = 1_000,
        max_rows: int = 32,
        max_parallel_calls: int = 4,
        credentials: grpc.ChannelCredentials | None = None,
        observe: Observe | None = None,
    ) -> None:
        if not timeout > 0:
            raise ValueError(f"`timeout` must be a positive number of seconds. Received: timeout={timeout}")
        check_positive_integers(
            max_attempts=max_attempts,
            max_candidates=max_candidates,
            max_rows=max_rows,
            max_parallel_calls=max_parallel_calls,
        )
        if max_attempts > MAX_ATTEMPTS:
            raise ValueError(
                f"`max_attempts` must be at most {MAX_ATTEMPTS}, gRPC's limit. Received: max_attempts={max_attempts}"
            )
        self.target = target
        self.model_name = model_name
        self.timeout = timeout
        self.max_candidates = max_candidates
        self.max_rows = max_rows
        self.max_parallel_calls = max_parallel_calls
        self._observe = observe
        self._channel = self._open(credentials, channel_options(target, max_attempts))
        self._methods = protocol.methods(self._channel)
        # By the version asked for, `None` for the newest. Replaced, never changed: calls read it without a lock.
        self._known: Mapping[int | None, Metadata] = {}
        self._retriever: Any = None
        if retriever is not None:
            # The same channel; what is known of the model is its own.
            self._retriever = copy.copy(self)
            self._retriever.model_name, self._retriever._observe = retriever, None

    def _open(self, credentials: grpc.ChannelCredentials | None, options: list[tuple[str, Any]]) -> Any:
        raise NotImplementedError

    def _metadata(self, deadline: float, version: int | None = None) -> Conversation[Metadata]:
        spec = _model_spec(self.model_name, version)
        request = protocol.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        (response,) = yield Calls([("GetModelMetadata", request)], deadline)
        metadata = read_metadata(response)
        others = [entry for entry in self._known.items() if entry[0] != version]
        self._known = dict([*others, (version, metadata)][-_MAX_KNOWN:])
        return metadata

    def _status(self) -> Conversation[list[VersionStatus]]:
        request = protocol.GetModelStatusRequest()
        request.model_spec.name = self.model_name
        (response,) = yield Calls([("GetModelStatus", request)], self._deadline())
        return [
            VersionStatus(status.version, protocol.state_name(status.state), status.status.error_message)
            for status in sorted(response.model_version_status, key=lambda status: status.version)
        ]

    def _ready(self, timeout: float) -> Conversation[None]:
        end = time.monotonic() + timeout
        while True:
            try:
                statuses = yield from self._status()
                if any(status.state == "AVAILABLE" for status in statuses):
                    return
                error = self._error(grpc.StatusCode.UNAVAILABLE, f"no version is available: {statuses}")
            except ServingError as refused:
                error = refused
            if time.monotonic() > end:
                raise error
            yield _READY_POLL_SECONDS

    def _answers_of_one_version(self, requests: list[Any], deadline: float) -> Conversation[list[Any]]:
        """The responses, all from the newest version that answered: scores of two versions can't be compared."""
        patient = len(requests) > 1  # what was split here is ours to slow down; whole requests are the caller's
        responses = yield from self._answers(requests, deadline, patient=patient)
        for _ in range(_MAX_SWAPS):
            versions = [response.model_spec.version.value for response in responses]
            older = [part for part, version in enumerate(versions) if version != max(versions)]
            if not older:
                return responses
            pinned = []
            for part in older:
                request = protocol.PredictRequest()
                request.CopyFrom(requests[part])
                request.model_spec.version.value = max(versions)
                pinned.append(request)
            try:
                again = yield from self._answers(pinned, deadline, patient=patient)
            except ServingError as error:
                if error.code is not grpc.StatusCode.NOT_FOUND:
                    raise
                # Rolled back, or replaced by a newer one yet.
                responses = yield from self._answers(requests, deadline, patient=patient)
            else:
                for part, response in zip(older, again, strict=True):
                    responses[part] = response
        raise self._error(
            grpc.StatusCode.ABORTED, f"no version stayed long enough to answer all {len(requests)} parts of a request"
        )

    def _answers(self, requests: Sequence[Any], deadline: float, *, patient: bool = False) -> Conversation[list[Any]]:
        """The responses, `max_parallel_calls` at a time. If `patient`, what a busy server refused is sent again."""
        responses: dict[int, Any] = {}
        waiting, pause = list(range(len(requests))), _FIRST_PAUSE
        try:
            while waiting:
                sent, waiting = waiting[: self.max_parallel_calls], waiting[self.max_parallel_calls :]
                calls = [("Predict", requests[part]) for part in sent]
                answers = yield Calls(calls, deadline, patient)
                answered = dict(zip(sent, answers, strict=True))
                errors = {part: answer for part, answer in answered.items() if isinstance(answer, ServingError)}
                responses |= {part: answer for part, answer in answered.items() if part not in errors}
                waiting = [*errors, *waiting]
                if not errors:
                    pause = _FIRST_PAUSE
                    continue
                if time.monotonic() + pause > deadline:
                    raise next(iter(errors.values()))
                # Jitter: those who were turned away together must not come back together.
                yield pause * random.uniform(0.5, 1)
                pause = min(2 * pause, _LONGEST_PAUSE)
        except ServingError as error:
            if error.code is grpc.StatusCode.INVALID_ARGUMENT:
                self._known = {}  # the new version of the model may want other dtypes
            raise
        return [responses[part] for part in range(len(requests))]

    def _predict_request(
        self,
        signature_name: str,
        outputs: Sequence[str],
        tensors: Mapping[str, Any],
        version: int | None = None,
    ) -> Any:
        spec = _model_spec(self.model_name, version, signature_name)
        return protocol.PredictRequest(model_spec=spec, inputs=tensors, output_filter=outputs)

    def _deadline(self) -> float:
        return time.monotonic() + self.timeout

    def _error(self, code: grpc.StatusCode, details: str | None) -> ServingError:
        return ServingError(self.target, self.model_name, code, details or "")


def _model_spec(model_name: str, version: int | None, signature_name: str = "") -> Any:
    spec = protocol.ModelSpec(name=model_name, signature_name=signature_name)
    if version is not None:
        spec.version.value = version
    return spec
