"""The client of the embedded server and of TensorFlow Serving alike, in Python and on the command line.

python -m serving.client rank --target 127.0.0.1:8500 --request request.json
"""

from __future__ import annotations

import os
import warnings

if __name__ == "__main__":
    # TensorFlow's notes on stderr would bury the answer.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", category=FutureWarning, module="google.api_core")

import asyncio
import dataclasses
import json
import queue
import sys
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
from serving.answers import (
    Explanation,
    Metadata,
    Ranking,
    ServingError,
    Signature,
    TensorSpec,
    VersionStatus,
)
from serving.inputs import Columns, ranking_inputs, typed_array

_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # gRPC does not try again what does not fit in here, and by default that is 256 KiB.
    ("grpc.per_rpc_retry_buffer_size", 1 << 30),
    # Finds a dead peer under a call: by a ping, and on Linux sooner, when data stay unacknowledged for the timeout. An
    # idle connection is not pinged, which servers take for an attack, but let go before a firewall forgets it.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # 60 s by default, whatever the line above says.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.client_idle_timeout_ms", 180_000),
    # gRPC would wait up to two minutes before it looks for a server again.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
# gRPC's own limit.
_MAX_ATTEMPTS = 5
# gRPC adds the jitter.
_RETRY_POLICY = {
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# One long list must not fill a server's queue.
_MAX_PARALLEL_CALLS = 8
# Versions that come and go while one list is asked for.
_MAX_SWAPS = 5
_READY_POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class _Calls:
    """Calls to make at the same time.

    Args:
        requests: name of the method and its request, for each call.
        deadline: the `time.monotonic()` by which all have to be over.
    """

    requests: Sequence[tuple[str, Any]]
    deadline: float


_T = TypeVar("_T")
# What a method says and hears, whichever way it travels: it yields calls and is sent a list of their responses, or
# thrown a ServingError; it yields seconds to pause for, and is sent nothing.
_Conversation = Generator["_Calls | float", Any, _T]


class _Conversations:
    """What the two clients have in common: all but the channel and the waiting."""

    def __init__(
        self,
        target: str = "127.0.0.1:8500",
        model_name: str = "eta",
        *,
        timeout: float = 10.0,
        max_attempts: int = _MAX_ATTEMPTS,
        max_candidates: int = 1_000,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        if not timeout > 0:
            raise ValueError(f"`timeout` must be a positive number of seconds. Received: timeout={timeout}")
        check_positive_integers(max_attempts=max_attempts, max_candidates=max_candidates)
        if max_attempts > _MAX_ATTEMPTS:
            raise ValueError(
                f"`max_attempts` must be at most {_MAX_ATTEMPTS}, gRPC's limit. Received: max_attempts={max_attempts}"
            )
        self.target = target
        self.model_name = model_name
        self.timeout = timeout
        self.max_candidates = max_candidates
        self._channel = self._open(credentials, _channel_options(max_attempts))
        predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._methods = {
            "Predict": predictions.Predict,
            "GetModelMetadata": predictions.GetModelMetadata,
            "GetModelStatus": model_service_pb2_grpc.ModelServiceStub(self._channel).GetModelStatus,
        }
        # Replaced, never changed: calls read it without a lock.
        self._signatures: Mapping[str, Signature] | None = None

    def _open(self, credentials: grpc.ChannelCredentials | None, options: list[tuple[str, Any]]) -> Any:
        raise NotImplementedError

    def _rank(self, *columns: Any) -> _Conversation[Ranking]:
        outputs, version = yield from self._ask("rank", ("probability",), *columns)
        return Ranking(**outputs, model_version=version)

    def _explain(self, *columns: Any) -> _Conversation[Explanation]:
        names = ("probability", "positions", "distances", "weights")
        outputs, version = yield from self._ask("explain", names, *columns)
        return Explanation(**outputs, model_version=version)

    def _predict(self, inputs: Columns, signature_name: str) -> _Conversation[dict[str, np.ndarray]]:
        deadline = self._deadline()
        named = {name: (f"inputs[{name!r}]", values) for name, values in inputs.items()}
        arrays = yield from self._arrays(signature_name, named, (), deadline)
        request = self._predict_request(signature_name, (), _tensors(arrays))
        (response,) = yield from self._answers([request], deadline)
        return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}

    def _metadata(self, deadline: float) -> _Conversation[Metadata]:
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self.model_name
        (response,) = yield _Calls([("GetModelMetadata", request)], deadline)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        self._signatures = {
            name: Signature(_specs(signature.inputs), _specs(signature.outputs))
            for name, signature in sorted(signatures.signature_def.items())
            # The SavedModel's initialiser, which is no signature to call.
            if name != "__saved_model_init_op"
        }
        return Metadata(response.model_spec.version.value, self._signatures)

    def _status(self) -> _Conversation[list[VersionStatus]]:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self.model_name
        (response,) = yield _Calls([("GetModelStatus", request)], self._deadline())
        state_name = get_model_status_pb2.ModelVersionStatus.State.Name
        return [
            VersionStatus(status.version, state_name(status.state), status.status.error_message)
            for status in sorted(response.model_version_status, key=lambda status: status.version)
        ]

    def _ready(self, timeout: float) -> _Conversation[None]:
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
        self, signature_name: str, outputs: Sequence[str], *columns: Any
    ) -> _Conversation[tuple[dict[str, np.ndarray], int]]:
        deadline = self._deadline()
        inputs, several = ranking_inputs(*columns)
        arrays = yield from self._arrays(signature_name, inputs, outputs, deadline)
        candidates = {name: arrays.pop(name) for name in columns[0]}
        shared = _tensors(arrays)
        num_candidates = next(iter(candidates.values())).shape[1]
        requests, sizes = [], []
        for start in range(0, max(num_candidates, 1), self.max_candidates):
            part = {name: array[:, start : start + self.max_candidates] for name, array in candidates.items()}
            requests.append(self._predict_request(signature_name, outputs, shared | _tensors(part)))
            sizes.append(min(self.max_candidates, num_candidates - start))
        responses = yield from self._answers_of_one_version(requests, deadline)
        joined = {
            # A batching server fills candidates up to the longest list of the batch, and leaves the answers so.
            name: np.concatenate(
                [
                    tf.make_ndarray(response.outputs[name])[:, :size]
                    for response, size in zip(responses, sizes, strict=True)
                ],
                axis=1,
            )
            for name in outputs
        }
        answers = {name: answer if several else answer[0] for name, answer in joined.items()}
        return answers, responses[0].model_spec.version.value

    def _answers_of_one_version(
        self, requests: list[predict_pb2.PredictRequest], deadline: float
    ) -> _Conversation[list[predict_pb2.PredictResponse]]:
        """The responses, all by the newest version that gave any: scores of two versions can't be compared."""
        responses = yield from self._answers(requests, deadline)
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
                again = yield from self._answers(pinned, deadline)
            except ServingError as error:
                if error.code is not grpc.StatusCode.NOT_FOUND:
                    raise
                # Rolled back, or replaced by a newer one yet.
                responses = yield from self._answers(requests, deadline)
            else:
                for part, response in zip(older, again, strict=True):
                    responses[part] = response
        raise self._error(
            grpc.StatusCode.ABORTED, f"no version stayed long enough to answer all {len(requests)} parts of a request"
        )

    def _answers(
        self, requests: list[predict_pb2.PredictRequest], deadline: float
    ) -> _Conversation[list[predict_pb2.PredictResponse]]:
        responses: list[predict_pb2.PredictResponse] = []
        try:
            for start in range(0, len(requests), _MAX_PARALLEL_CALLS):
                calls = [("Predict", request) for request in requests[start : start + _MAX_PARALLEL_CALLS]]
                responses += yield _Calls(calls, deadline)
        except ServingError as error:
            if error.code is grpc.StatusCode.INVALID_ARGUMENT:
                self._signatures = None  # the new version of the model may want other dtypes
            raise
        return responses

    def _arrays(
        self, signature_name: str, inputs: Mapping[str, tuple[str, Any]], outputs: Sequence[str], deadline: float
    ) -> _Conversation[dict[str, np.ndarray]]:
        """The inputs in the dtypes of the signature."""
        signature = yield from self._signature(signature_name, inputs, outputs, deadline)
        return {
            name: typed_array(argument, values, np.dtype(tf.as_dtype(signature.inputs[name].dtype).as_numpy_dtype))
            for name, (argument, values) in inputs.items()
        }

    def _signature(
        self, name: str, inputs: Mapping[str, Any], outputs: Sequence[str], deadline: float
    ) -> _Conversation[Signature]:
        """The signature, if it takes these inputs and gives these outputs by what is known or else by what is new."""
        problem = ""
        for known in (self._signatures, None):
            signatures = known if known is not None else (yield from self._metadata(deadline)).signatures
            signature = signatures.get(name)
            if signature is None:
                problem = f"Model {self.model_name!r} has no signature {name!r}. It has: {', '.join(signatures)}"
                continue
            missing = sorted({*signature.inputs} - {*inputs})
            unknown = sorted({*inputs} - {*signature.inputs})
            absent = sorted({*outputs} - {*signature.outputs})
            if not (missing or unknown or absent):
                return signature
            problem = f"Signature {name!r} of model {self.model_name!r} does not fit."
            problem += f" Missing: {', '.join(missing)}." if missing else ""
            problem += f" Unknown: {', '.join(unknown)}." if unknown else ""
            problem += f" It takes: {', '.join(sorted(signature.inputs))}."
            problem += f" It does not give: {', '.join(absent)}." if absent else ""
        raise ValueError(problem)

    def _predict_request(
        self, signature_name: str, outputs: Sequence[str], tensors: Mapping[str, tensor_pb2.TensorProto]
    ) -> predict_pb2.PredictRequest:
        spec = model_pb2.ModelSpec(name=self.model_name, signature_name=signature_name)
        return predict_pb2.PredictRequest(model_spec=spec, inputs=tensors, output_filter=outputs)

    def _deadline(self) -> float:
        return time.monotonic() + self.timeout

    def _error(self, code: grpc.StatusCode, details: str | None) -> ServingError:
        return ServingError(self.target, self.model_name, code, details or "")


class RankingClient(_Conversations):
    """Asks one model of one server, over one channel that all calls share. Threads may share the client too.

    A call that finds the server UNAVAILABLE is tried again, after 0.1, 0.2, 0.4 and 0.8 s, give or take; no other
    error is. A candidate list longer than `max_candidates` is split over parallel calls, all answered by one version.

    Example:
        >>> with RankingClient("127.0.0.1:8500", model_name="eta") as client:
        ...     ranking = client.rank(
        ...         candidates={"item_id": [10, 20, 30]}, history={"item_id": [20, 7]}, user={"user_id": 5}
        ...     )
        ...     best_first = ranking.order

    Args:
        target: address of the server, `host:port`.
        model_name: name of the model.
        timeout: seconds that a method may take, with every attempt and part of it.
        max_attempts: how often a call is tried, from 1 to 5.
        max_candidates: candidates of a request that go into one call. A server needs memory for each of them.
        credentials: TLS, by `grpc.ssl_channel_credentials`. Default: plaintext.

    Raises:
        ValueError: if `timeout`, `max_attempts` or `max_candidates` is out of its range.
    """

    def __enter__(self) -> RankingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def rank(
        self,
        candidates: Columns,
        history: Columns,
        user: Columns | None = None,
        context: Columns | None = None,
        history_length: Any = None,
    ) -> Ranking:
        """Scores candidates for one user, or for R users at once.

        Columns go by the names of the data contract, those of the history without their prefix. One request has lists;
        R requests have a list more around everything, with as many candidates each and histories of any length.

        Args:
            candidates: by name, C values or R lists of C values.
            history: by name, the behaviours, most recent first, or R lists of them.
            user: by name, a value or R values.
            context: by name, a value or R values. A model with ages takes a `timestamp` here and one in the history.
            history_length: how many behaviours count, where the histories are padded already.

        Returns:
            The probabilities, [C] or [R, C].

        Raises:
            ValueError: if columns are missing, unknown, of the wrong kind or of different lengths. Nothing is sent.
            ServingError: if the server refuses the call or can't be reached, with the code and the server's message.
        """
        return self._run(self._rank(candidates, history, user, context, history_length))

    def explain(
        self,
        candidates: Columns,
        history: Columns,
        user: Columns | None = None,
        context: Columns | None = None,
        history_length: Any = None,
    ) -> Explanation:
        """As `rank`, with the behaviours that each score rests on."""
        return self._run(self._explain(candidates, history, user, context, history_length))

    def predict(self, inputs: Columns, signature_name: str = "serving_default") -> dict[str, np.ndarray]:
        """Calls any signature with the inputs as they are, in one call however many candidates there are.

        Args:
            inputs: by the signature's own names, arrays or lists; they are brought to the signature's dtypes.
            signature_name: name of the signature.

        Returns:
            The outputs by name; strings are bytes.

        Raises:
            ValueError: as `rank`.
            ServingError: as `rank`.
        """
        return self._run(self._predict(inputs, signature_name))

    def metadata(self) -> Metadata:
        """Asks for the signatures of the newest version."""
        return self._run(self._metadata(self._deadline()))

    def status(self) -> list[VersionStatus]:
        """Asks for the state of every version, in order of their numbers."""
        return self._run(self._status())

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Waits for a version that answers.

        Raises:
            ServingError: if there is none after `timeout` seconds; it says why.
        """
        self._run(self._ready(timeout))

    def _open(self, credentials: grpc.ChannelCredentials | None, options: list[tuple[str, Any]]) -> grpc.Channel:
        if credentials is None:
            return grpc.insecure_channel(self.target, options=options)
        return grpc.secure_channel(self.target, credentials, options=options)

    def _run(self, conversation: _Conversation[_T]) -> _T:
        try:
            step = next(conversation)
            while True:
                try:
                    answers = self._take(step)
                except ServingError as error:
                    step = conversation.throw(error)
                else:
                    step = conversation.send(answers)
        except StopIteration as end:
            return end.value

    def _take(self, step: _Calls | float) -> list[Any]:
        if not isinstance(step, _Calls):
            time.sleep(step)
            return []
        timeout = step.deadline - time.monotonic()
        if len(step.requests) == 1:
            ((name, request),) = step.requests
            try:
                # Half a millisecond faster than a future, for which gRPC has another thread wait.
                return [self._methods[name](request, timeout=timeout)]
            except grpc.RpcError as error:
                raise self._error(error.code(), error.details()) from error
        calls = [self._methods[name].future(request, timeout=timeout) for name, request in step.requests]
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        try:
            for call in calls:
                call.add_done_callback(done.put)
            # The first that fails fails them all at once.
            for _ in calls:
                call = done.get()
                if call.code() is not grpc.StatusCode.OK:
                    raise self._error(call.code(), call.details())
            return [call.result() for call in calls]
        finally:
            for call in calls:
                call.cancel()


class AsyncRankingClient(_Conversations):
    """`RankingClient` for asyncio: the same arguments and methods, to be awaited. Tasks may share it.

    Create it in a coroutine: it belongs to the event loop that runs then.

    Example:
        >>> async with AsyncRankingClient("127.0.0.1:8500", model_name="eta") as client:
        ...     ranking = await client.rank(
        ...         candidates={"item_id": [10, 20, 30]}, history={"item_id": [20, 7]}, user={"user_id": 5}
        ...     )

    Raises:
        ValueError: as `RankingClient`.
        RuntimeError: if no event loop is running.
    """

    async def __aenter__(self) -> AsyncRankingClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def rank(
        self,
        candidates: Columns,
        history: Columns,
        user: Columns | None = None,
        context: Columns | None = None,
        history_length: Any = None,
    ) -> Ranking:
        """As `RankingClient.rank`."""
        return await self._run(self._rank(candidates, history, user, context, history_length))

    async def explain(
        self,
        candidates: Columns,
        history: Columns,
        user: Columns | None = None,
        context: Columns | None = None,
        history_length: Any = None,
    ) -> Explanation:
        """As `RankingClient.explain`."""
        return await self._run(self._explain(candidates, history, user, context, history_length))

    async def predict(self, inputs: Columns, signature_name: str = "serving_default") -> dict[str, np.ndarray]:
        """As `RankingClient.predict`."""
        return await self._run(self._predict(inputs, signature_name))

    async def metadata(self) -> Metadata:
        """As `RankingClient.metadata`."""
        return await self._run(self._metadata(self._deadline()))

    async def status(self) -> list[VersionStatus]:
        """As `RankingClient.status`."""
        return await self._run(self._status())

    async def wait_until_ready(self, timeout: float = 60.0) -> None:
        """As `RankingClient.wait_until_ready`."""
        await self._run(self._ready(timeout))

    def _open(self, credentials: grpc.ChannelCredentials | None, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
        asyncio.get_running_loop()
        if credentials is None:
            return grpc.aio.insecure_channel(self.target, options=options)
        return grpc.aio.secure_channel(self.target, credentials, options=options)

    async def _run(self, conversation: _Conversation[_T]) -> _T:
        try:
            step = next(conversation)
            while True:
                try:
                    answers = await self._take(step)
                except ServingError as error:
                    step = conversation.throw(error)
                else:
                    step = conversation.send(answers)
        except StopIteration as end:
            return end.value

    async def _take(self, step: _Calls | float) -> list[Any]:
        if not isinstance(step, _Calls):
            await asyncio.sleep(step)
            return []
        timeout = step.deadline - time.monotonic()
        calls = [self._methods[name](request, timeout=timeout) for name, request in step.requests]
        try:
            return await asyncio.gather(*calls)
        except grpc.RpcError as error:
            raise self._error(error.code(), error.details()) from error
        finally:
            for call in calls:
                call.cancel()


def _channel_options(max_attempts: int) -> list[tuple[str, Any]]:
    if max_attempts == 1:
        return [*_CHANNEL_OPTIONS, ("grpc.enable_retries", 0)]
    # An empty name: for every method.
    method = {"name": [{}], "retryPolicy": {"maxAttempts": max_attempts, **_RETRY_POLICY}}
    return [
        *_CHANNEL_OPTIONS,
        ("grpc.enable_retries", 1),
        ("grpc.service_config", json.dumps({"methodConfig": [method]})),
    ]


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, tensor_pb2.TensorProto]:
    return {
        name: tf.make_tensor_proto(array, dtype=tf.as_dtype(array.dtype), shape=array.shape)
        for name, array in arrays.items()
    }


def _specs(infos: Mapping[str, Any]) -> dict[str, TensorSpec]:
    specs = {}
    for name, info in sorted(infos.items()):
        shape = tf.TensorShape(info.tensor_shape)
        specs[name] = TensorSpec(tf.as_dtype(info.dtype).name, None if shape.rank is None else tuple(shape.as_list()))
    return specs


if __name__ == "__main__":
    from serving.cli import main

    sys.exit(main())
