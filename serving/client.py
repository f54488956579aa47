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

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.inputs import Columns, ranking_inputs, typed_array

_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Finds a dead peer under a call; between calls a server may take pings for an attack.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # gRPC would wait up to two minutes before it looks for a server again.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
_READY_POLL_SECONDS = 0.2


class ServingError(RuntimeError):
    """A call that the server refused or that did not reach it.

    Args:
        target: address of the server.
        model_name: the model that was asked.
        code: the gRPC status code.
        details: the server's own message.
    """

    def __init__(self, target: str, model_name: str, code: grpc.StatusCode, details: str) -> None:
        message = f"Model {model_name!r} at {target} answered {code.name}: {details}"
        if code is grpc.StatusCode.UNAVAILABLE:
            port = target.rpartition(":")[2]
            message += (
                "\nIf no server is running there, start one: python -m serving.server "
                f"--port {port} --model_name {model_name} --model_base_path DIR"
            )
        super().__init__(message)
        self.code = code
        self.details = details


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """The scores of the candidates of one request, or of R requests.

    Args:
        probability: float32 [C] or [R, C], in the order in which the candidates were sent.
        model_version: the version of the model that answered.
    """

    probability: np.ndarray
    model_version: int

    @property
    def order(self) -> np.ndarray:
        """Positions of the candidates, best first, int64 [C] or [R, C]; of equals the one sent first comes first."""
        return np.argsort(-self.probability, axis=-1, kind="stable")


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation(Ranking):
    """A ranking with the K behaviours that each score rests on.

    Args:
        positions: int [C, K] or [R, C, K], index into the history that was sent; -1 where there were fewer than K.
        distances: [C, K] or [R, C, K], Hamming distances of the fingerprints.
        weights: float32 [C, K] or [R, C, K], attention weights.
    """

    positions: np.ndarray
    distances: np.ndarray
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One input or output: its dtype as TensorFlow names it, and its shape, `None` where anything goes."""

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Signature:
    """Inputs and outputs of one signature, by name."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a model version can be asked."""

    model_version: int
    signatures: Mapping[str, Signature]


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """The state of one version: `AVAILABLE`, `LOADING`, `END` ..., and what went wrong, if anything did."""

    version: int
    state: str
    error: str = ""


class RankingClient:
    """Asks one model of one server, over one channel that all calls share. Threads may share the client too.

    Example:
        >>> with RankingClient("127.0.0.1:8500", model_name="eta") as client:
        ...     ranking = client.rank(
        ...         candidates={"item_id": [10, 20, 30]}, history={"item_id": [20, 7]}, user={"user_id": 5}
        ...     )
        ...     best_first = ranking.order

    Args:
        target: address of the server, `host:port`.
        model_name: name of the model.
        timeout: deadline of every call, in seconds.

    Raises:
        ValueError: if `timeout` is not positive.
    """

    def __init__(self, target: str = "127.0.0.1:8500", model_name: str = "eta", *, timeout: float = 10.0) -> None:
        if timeout <= 0:
            raise ValueError(f"`timeout` must be a positive number of seconds. Received: timeout={timeout}")
        self.target = target
        self.model_name = model_name
        self.timeout = timeout
        self._channel = grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._signatures: Mapping[str, Signature] | None = None

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
            ServingError: if the server refuses the call or can't be reached.
        """
        outputs, version = self._ask("rank", ("probability",), candidates, history, user, context, history_length)
        return Ranking(**outputs, model_version=version)

    def explain(
        self,
        candidates: Columns,
        history: Columns,
        user: Columns | None = None,
        context: Columns | None = None,
        history_length: Any = None,
    ) -> Explanation:
        """As `rank`, with the behaviours that each score rests on."""
        names = ("probability", "positions", "distances", "weights")
        outputs, version = self._ask("explain", names, candidates, history, user, context, history_length)
        return Explanation(**outputs, model_version=version)

    def predict(self, inputs: Columns, signature_name: str = "serving_default") -> dict[str, np.ndarray]:
        """Calls any signature with the inputs as they are.

        Args:
            inputs: by the signature's own names, arrays or lists; they are brought to the signature's dtypes.
            signature_name: name of the signature.

        Returns:
            The outputs by name; strings are bytes.

        Raises:
            ValueError: as `rank`.
            ServingError: as `rank`.
        """
        named = {name: (f"inputs[{name!r}]", values) for name, values in inputs.items()}
        return self._predict(signature_name, named)[0]

    def metadata(self) -> Metadata:
        """Asks for the signatures of the newest version."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self.model_name
        response = self._call(self._predictions.GetModelMetadata, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        self._signatures = {
            name: Signature(_specs(signature.inputs), _specs(signature.outputs))
            for name, signature in sorted(signatures.signature_def.items())
            # The SavedModel's initialiser, which is no signature to call.
            if name != "__saved_model_init_op"
        }
        return Metadata(response.model_spec.version.value, self._signatures)

    def status(self) -> list[VersionStatus]:
        """Asks for the state of every version, in order of their numbers."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self.model_name
        response = self._call(self._models.GetModelStatus, request)
        state_name = get_model_status_pb2.ModelVersionStatus.State.Name
        return [
            VersionStatus(status.version, state_name(status.state), status.status.error_message)
            for status in sorted(response.model_version_status, key=lambda status: status.version)
        ]

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Waits for a version that answers.

        Raises:
            ServingError: if there is none after `timeout` seconds; it says why.
        """
        end = time.monotonic() + timeout
        while True:
            try:
                statuses = self.status()
                if any(status.state == "AVAILABLE" for status in statuses):
                    return
                error = self._error(grpc.StatusCode.UNAVAILABLE, f"no version is available: {statuses}")
            except ServingError as refused:
                error = refused
            if time.monotonic() > end:
                raise error
            time.sleep(_READY_POLL_SECONDS)

    def _ask(self, signature_name: str, outputs: Sequence[str], *columns: Any) -> tuple[dict[str, np.ndarray], int]:
        inputs, several = ranking_inputs(*columns)
        answers, version = self._predict(signature_name, inputs, outputs)
        # A batching server fills candidates up to the longest list of the batch, and leaves the answers so.
        requests = inputs[next(iter(columns[0]))][1]
        num_candidates = max(map(len, requests), default=0)
        cut = {name: answers[name][:, :num_candidates] for name in outputs}
        return {name: answer if several else answer[0] for name, answer in cut.items()}, version

    def _predict(
        self, signature_name: str, inputs: Mapping[str, tuple[str, Any]], outputs: Sequence[str] = ()
    ) -> tuple[dict[str, np.ndarray], int]:
        signature = self._signature(signature_name, inputs, outputs)
        request = predict_pb2.PredictRequest(
            model_spec=model_pb2.ModelSpec(name=self.model_name, signature_name=signature_name), output_filter=outputs
        )
        for name, (argument, values) in inputs.items():
            dtype = tf.as_dtype(signature.inputs[name].dtype)
            array = typed_array(argument, values, np.dtype(dtype.as_numpy_dtype))
            request.inputs[name].CopyFrom(tf.make_tensor_proto(array, dtype=dtype, shape=array.shape))
        try:
            response = self._call(self._predictions.Predict, request)
        except ServingError as error:
            if error.code is grpc.StatusCode.INVALID_ARGUMENT:
                self._signatures = None  # the new version of the model may want other dtypes
            raise
        arrays = {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}
        return arrays, response.model_spec.version.value

    def _signature(self, name: str, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Signature:
        """The signature, if it takes these inputs and gives these outputs by what is known or else by what is new."""
        problem = ""
        for signatures in (self._signatures, None):
            signatures = signatures if signatures is not None else self.metadata().signatures
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

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return method(request, timeout=self.timeout)
        except grpc.RpcError as error:
            raise self._error(error.code(), error.details()) from error

    def _error(self, code: grpc.StatusCode, details: str) -> ServingError:
        return ServingError(self.target, self.model_name, code, details)


def _specs(infos: Mapping[str, Any]) -> dict[str, TensorSpec]:
    specs = {}
    for name, info in sorted(infos.items()):
        shape = tf.TensorShape(info.tensor_shape)
        specs[name] = TensorSpec(tf.as_dtype(info.dtype).name, None if shape.rank is None else tuple(shape.as_list()))
    return specs


if __name__ == "__main__":
    from serving.cli import main

    sys.exit(main())
