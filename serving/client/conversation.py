"""What both clients have in common: the calls that a method makes and how it joins their answers."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any, TypeVar

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from keras_eta.validation import check_positive_integers
from serving.client.answers import (
    Explanation,
    Metadata,
    Ranking,
    ServingError,
    Signature,
    TensorSpec,
    VersionStatus,
)
from serving.client.channel import MAX_ATTEMPTS, channel_options
from serving.client.explanations import read_explanation
from serving.client.metadata import read_metadata
from serving.client.requests import Columns, ranking_inputs, shape_text, signature_arrays

# The pauses before parts of a request that a busy server turned away are sent again.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
# Versions that come and go while one list is asked for.
_MAX_SWAPS = 5
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


_T = TypeVar("_T")
# What a method says and hears, whichever way it travels: it yields calls and is sent a list of their responses, or
# thrown a ServingError; it yields seconds to pause for, and is sent nothing.
Conversation = Generator["Calls | float", Any, _T]


class Conversations:
    """The methods of both clients, without the channel and the waiting."""

    def __init__(
        self,
        target: str = "127.0.0.1:8500",
        model_name: str = "eta",
        *,
        timeout: float = 10.0,
        max_attempts: int = MAX_ATTEMPTS,
        max_candidates: int = 1_000,
        max_rows: int = 32,
        max_parallel_calls: int = 4,
        credentials: grpc.ChannelCredentials | None = None,
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
        self._channel = self._open(credentials, channel_options(target, max_attempts))
        predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._methods = {
            "Predict": predictions.Predict,
            "GetModelMetadata": predictions.GetModelMetadata,
            "GetModelStatus": model_service_pb2_grpc.ModelServiceStub(self._channel).GetModelStatus,
        }
        # Replaced, never changed: calls read it without a lock.
        self._known: Metadata | None = None

    def _open(self, credentials: grpc.ChannelCredentials | None, options: list[tuple[str, Any]]) -> Any:
        raise NotImplementedError

    def _rank(self, *columns: Any) -> Conversation[Ranking]:
        outputs, version = yield from self._ask("rank", ("probability",), *columns)
        return Ranking(outputs["probability"], version)

    def _explain(self, *columns: Any) -> Conversation[Explanation]:
        names = ("probability", "positions", "weights")
        outputs, version = yield from self._ask("explain", names, *columns, all_outputs=True)
        return read_explanation(outputs, version, self.model_name)

    def _predict(self, inputs: Columns, signature_name: str) -> Conversation[dict[str, np.ndarray]]:
        deadline = self._deadline()
        named = {name: (f"inputs[{name!r}]", values) for name, values in inputs.items()}
        _, arrays = yield from self._checked(signature_name, named, (), deadline)
        for name, array in arrays.items():
            if not array.size:
                # One such call fails its whole batch on TensorFlow Serving, or ends the server.
                raise ValueError(
                    f"`inputs[{name!r}]` must have at least one value. Received shape: {shape_text(array.shape)}"
                )
        request = self._predict_request(signature_name, (), _tensors(arrays))
        (response,) = yield from self._answers([request], deadline)
        return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}

    def _metadata(self, deadline: float) -> Conversation[Metadata]:
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self.model_name
        (response,) = yield Calls([("GetModelMetadata", request)], deadline)
        self._known = read_metadata(response)
        return self._known

    def _status(self) -> Conversation[list[VersionStatus]]:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self.model_name
        (response,) = yield Calls([("GetModelStatus", request)], self._deadline())
        state_name = get_model_status_pb2.ModelVersionStatus.State.Name
        return [
            VersionStatus(status.version, state_name(status.state), status.status.error_message)
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

    def _ask(
        self, signature_name: str, outputs: Sequence[str], *columns: Any, all_outputs: bool = False
    ) -> Conversation[tuple[dict[str, np.ndarray], int]]:
        """The `outputs`, or all of which these must be a part, and the version that gave them."""
        deadline = self._deadline()
        inputs, several = ranking_inputs(*columns)
        signature, arrays = yield from self._checked(signature_name, inputs, outputs, deadline)
        num_rows, num_candidates = arrays[next(iter(columns[0]))].shape
        if num_candidates:
            requests = self._parts(signature_name, () if all_outputs else outputs, arrays, {*columns[0]})
            responses = yield from self._answers_of_one_version(requests, deadline)
            # A version newer than the metadata may give others.
            joined = {name: self._joined(name, responses, num_candidates) for name in responses[0].outputs}
            version = responses[0].model_spec.version.value
        else:
            # TensorFlow Serving fails the other calls of a batch in which one has no candidates.
            version = (yield from self._metadata(deadline)).model_version
            names = signature.outputs if all_outputs else outputs
            joined = {name: _no_answers(signature.outputs[name], num_rows) for name in names}
        return {name: answer if several else answer[0] for name, answer in joined.items()}, version

    def _parts(
        self, signature_name: str, outputs: Sequence[str], arrays: Mapping[str, np.ndarray], candidates: set[str]
    ) -> list[predict_pb2.PredictRequest]:
        """Splits the inputs into requests of at most `max_rows` rows and `max_candidates` candidates, row by row."""
        num_rows, num_candidates = arrays[next(iter(candidates))].shape
        rows_of_one = max(1, min(self.max_rows, self.max_candidates // num_candidates))
        requests = []
        for row in range(0, num_rows, rows_of_one):
            rows = {name: array[row : row + rows_of_one] for name, array in arrays.items()}
            shared = _tensors({name: array for name, array in rows.items() if name not in candidates})
            for start in range(0, num_candidates, self.max_candidates):
                part = {name: rows[name][:, start : start + self.max_candidates] for name in candidates}
                requests.append(self._predict_request(signature_name, outputs, shared | _tensors(part)))
        return requests

    def _joined(self, name: str, responses: Sequence[predict_pb2.PredictResponse], num_candidates: int) -> np.ndarray:
        """Joins one output of all parts, in the order in which `_parts` split the inputs."""
        starts = range(0, num_candidates, self.max_candidates)
        arrays = []
        for number, response in enumerate(responses):
            size = min(self.max_candidates, num_candidates - starts[number % len(starts)])
            # A batching server fills candidates up to the longest list of the batch, and leaves the answers so.
            arrays.append(tf.make_ndarray(response.outputs[name])[:, :size])
        rows = [np.concatenate(arrays[i : i + len(starts)], axis=1) for i in range(0, len(arrays), len(starts))]
        return np.concatenate(rows)

    def _answers_of_one_version(
        self, requests: list[predict_pb2.PredictRequest], deadline: float
    ) -> Conversation[list[predict_pb2.PredictResponse]]:
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
                request = predict_pb2.PredictRequest()
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

    def _answers(
        self, requests: Sequence[predict_pb2.PredictRequest], deadline: float, *, patient: bool = False
    ) -> Conversation[list[predict_pb2.PredictResponse]]:
        """The responses, `max_parallel_calls` at a time. If `patient`, what a busy server refused is sent again."""
        responses: dict[int, predict_pb2.PredictResponse] = {}
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
                self._known = None  # the new version of the model may want other dtypes
            raise
        return [responses[part] for part in range(len(requests))]

    def _checked(
        self, signature_name: str, inputs: Mapping[str, tuple[str, Any]], outputs: Sequence[str], deadline: float
    ) -> Conversation[tuple[Signature, dict[str, np.ndarray]]]:
        """The signature and its inputs, checked against the metadata known so far, or else against fresh ones."""

        def checked(metadata: Metadata) -> tuple[Signature, dict[str, np.ndarray]]:
            signature = self._signature(metadata, signature_name, inputs, outputs)
            return signature, signature_arrays(inputs, signature)

        if self._known is not None:
            with contextlib.suppress(ValueError):
                return checked(self._known)
        return checked((yield from self._metadata(deadline)))

    def _signature(self, metadata: Metadata, name: str, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Signature:
        signature = metadata.signatures.get(name)
        if signature is None:
            raise ValueError(
                f"Model {self.model_name!r} has no signature {name!r}. It has: {', '.join(metadata.signatures)}"
            )
        problem = ""
        for text, names in (
            ("Missing", {*signature.inputs} - {*inputs}),
            ("Unknown", {*inputs} - {*signature.inputs}),
            ("It takes", {*signature.inputs}),
            ("It does not give", {*outputs} - {*signature.outputs}),
        ):
            problem += f" {text}: {', '.join(sorted(names))}." if names else ""
        if {*inputs} != {*signature.inputs} or not {*outputs} <= {*signature.outputs}:
            raise ValueError(f"Signature {name!r} of model {self.model_name!r} does not fit.{problem}")
        return signature

    def _predict_request(
        self, signature_name: str, outputs: Sequence[str], tensors: Mapping[str, tensor_pb2.TensorProto]
    ) -> predict_pb2.PredictRequest:
        spec = model_pb2.ModelSpec(name=self.model_name, signature_name=signature_name)
        return predict_pb2.PredictRequest(model_spec=spec, inputs=tensors, output_filter=outputs)

    def _deadline(self) -> float:
        return time.monotonic() + self.timeout

    def _error(self, code: grpc.StatusCode, details: str | None) -> ServingError:
        return ServingError(self.target, self.model_name, code, details or "")


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, tensor_pb2.TensorProto]:
    return {
        name: tf.make_tensor_proto(array, dtype=tf.as_dtype(array.dtype), shape=array.shape)
        for name, array in arrays.items()
    }


def _no_answers(spec: TensorSpec, num_rows: int) -> np.ndarray:
    """An output for no candidates: [R, 0], or [R, 0, K] where the signature says what K is."""
    more = [size or 0 for size in (spec.shape or ())[2:]]
    return np.zeros([num_rows, 0, *more], tf.as_dtype(spec.dtype).as_numpy_dtype)
