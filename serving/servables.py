"""Versions of a model on disk and in memory: loading, warming up, switching, answering."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import get_model_status_pb2, model_pb2, predict_pb2, prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving.batching import Call, batched, callable_of
from serving.status import CODES, StatusError, invalid_argument, status_of
from serving.tensors import read_tensor, write_tensor

WARMUP_REQUESTS = Path("assets.extra", "tf_serving_warmup_requests")

_MAX_WARMUP_RECORDS = 1_000
_TAGS = ["serve"]
_State = get_model_status_pb2.ModelVersionStatus.State

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Servable:
    """One loaded version of a model.

    Args:
        version: its number.
        signature_defs: the signatures as the SavedModel describes them.
        calls: for each signature a function of its inputs in order of their names, which returns its outputs so too.
    """

    version: int
    signature_defs: Mapping[str, meta_graph_pb2.SignatureDef]
    calls: Mapping[str, Call]

    @classmethod
    def load(cls, path: Path, version: int, batching: Any = None) -> Servable:
        """Loads a SavedModel and replays its warm-up requests.

        Args:
            path: directory of the SavedModel.
            version: its number.
            batching: BatchingParameters; without them requests are not joined.

        Raises:
            StatusError: if the directory holds no SavedModel with the tag `serve`, or its warm-up file is corrupt.
            Exception: whatever TensorFlow raises for a broken SavedModel or a warm-up request that fails.
        """
        try:
            saved_model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        except DecodeError as error:
            raise StatusError(grpc.StatusCode.DATA_LOSS, f"{path / 'saved_model.pb'} is corrupt: {error}") from error
        graphs = [graph for graph in saved_model.meta_graphs if list(graph.meta_info_def.tags) == _TAGS]
        if not graphs:
            raise StatusError(grpc.StatusCode.NOT_FOUND, f"The SavedModel in {path} has no graph with the tag 'serve'.")
        # As in TensorFlow Serving a session of its own, which takes variables, tables, threads and batch queues with
        # it when it goes; what eager functions leave behind would add up from version to version.
        with tf.Graph().as_default():
            session = tf.compat.v1.Session()
            loaded = tf.saved_model.load(str(path), tags=_TAGS)
            calls = {name: _call(session, name, function, batching) for name, function in loaded.signatures.items()}
            session.run(
                [
                    tf.compat.v1.global_variables_initializer(),
                    tf.compat.v1.local_variables_initializer(),
                    tf.compat.v1.tables_initializer(),
                ]
            )
        servable = cls(version, dict(graphs[0].signature_def), calls)
        servable._warm_up(path / WARMUP_REQUESTS)
        return servable

    def _warm_up(self, path: Path) -> None:
        if not path.exists():
            return
        replayed = 0
        try:
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                if replayed == _MAX_WARMUP_RECORDS:
                    raise invalid_argument(f"More than {_MAX_WARMUP_RECORDS} warm-up records at {path}")
                log = prediction_log_pb2.PredictionLog.FromString(record)
                kind = log.WhichOneof("log_type")
                if kind != "predict_log":
                    raise StatusError(grpc.StatusCode.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
                self.predict(log.predict_log.request)
                replayed += 1
        except tf.errors.DataLossError as error:
            _, message = status_of(error)
            raise StatusError(
                grpc.StatusCode.DATA_LOSS, f"{message}. Please verify your warmup data is in TFRecord format: {path}"
            ) from error
        except DecodeError as error:
            raise invalid_argument(f"Failed to parse warmup record {replayed} from {path}") from error
        _log.info("Replayed %d warm-up requests of %s", replayed, path)

    def predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
        """Answers a Predict request as TensorFlow Serving does, up to the choice of the model, which is the caller's.

        Raises:
            StatusError: if the request does not fit the signature.
            tf.errors.OpError: if the graph refuses it.
        """
        name = request.model_spec.signature_name or tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
        if name not in self.calls:
            raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        signature = self.signature_defs[name]
        _check_names(request, signature)
        columns = []
        for index, (key, wanted) in enumerate(sorted(signature.inputs.items())):
            column = read_tensor(key, request.inputs[key], wanted.dtype, index)
            # A graph that was traced for one rank is not safe with another.
            if not tf.TensorShape(wanted.tensor_shape).is_compatible_with(column.shape):
                raise invalid_argument(
                    f"input `{key}` must have shape {tf.TensorShape(wanted.tensor_shape)}. Received: {column.shape}"
                )
            columns.append(column)
        outputs = dict(zip(sorted(signature.outputs), self.calls[name](*columns), strict=True))
        response = predict_pb2.PredictResponse()
        response.model_spec.CopyFrom(
            model_pb2.ModelSpec(name=request.model_spec.name, version={"value": self.version}, signature_name=name)
        )
        for key in request.output_filter or signature.outputs:
            response.outputs[key].CopyFrom(write_tensor(outputs[key]))
        return response


def _call(session: tf.compat.v1.Session, name: str, function: Any, batching: Any) -> Call:
    """A signature as a function of arrays, run by a session whose graph is the default."""
    specs = sorted(function.structured_input_signature[1].items())

    def outputs(*columns: tf.Tensor) -> list[tf.Tensor]:
        answered = function(**{key: column for (key, _), column in zip(specs, columns, strict=True)})
        return [value for _, value in sorted(answered.items())]

    inputs = [tf.compat.v1.placeholder(spec.dtype, spec.shape) for _, spec in specs]
    direct = callable_of(session, outputs(*inputs), inputs)
    return direct if batching is None else batched(session, name, outputs, inputs, direct, batching)


def _check_names(request: predict_pb2.PredictRequest, signature: meta_graph_pb2.SignatureDef) -> None:
    sent, wanted = set(request.inputs), set(signature.inputs)
    if sent != wanted:
        raise invalid_argument(
            f"input size does not match signature: {len(sent)}!={len(wanted)} "
            f"len({_set(sent)}) != len({_set(wanted)}). "
            f"Sent extra: {_set(sent - wanted)}. Missing but required: {_set(wanted - sent)}."
        )
    for position, alias in enumerate(request.output_filter):
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {_set(signature.outputs)}."
            )
        if alias in request.output_filter[:position]:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")


def _set(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


class Model:
    """A base path whose subdirectories named by integers are versions, and those of them that are loaded.

    The newest versions that the policy asks for are served; without a policy that is the newest one. A version is
    loaded and warmed up before it takes traffic, and the one it replaces answers the calls that it has. A version that
    can't be loaded is logged and passed over, so that older ones go on serving and newer ones are not held up; it is
    tried again once its files change. When nothing on disk can be loaded, what is in memory goes on serving.

    Args:
        config: TensorFlow Serving's own message: name, base path, version policy, version labels.
        batching: BatchingParameters, or None.
        previous: the model until now, whose versions this one takes over where the base path is the same.

    Raises:
        StatusError: if the base path is no directory.
    """

    def __init__(
        self, config: model_server_config_pb2.ModelConfig, batching: Any = None, previous: Model | None = None
    ) -> None:
        self.name = config.name
        self.config = config
        self._batching = batching
        self._base_path = Path(config.base_path)
        if not self._base_path.is_dir():
            raise StatusError(
                grpc.StatusCode.NOT_FOUND,
                f"Could not find base path {config.base_path!r} for servable {config.name}.",
            )
        # Replaced, never changed: calls read it without a lock.
        self._available: Mapping[int, Servable] = {}
        self._states: dict[int, get_model_status_pb2.ModelVersionStatus] = {}
        self._failed: dict[int, object] = {}
        self._last_seen: object = None
        if previous is not None and previous.config.base_path == config.base_path:
            self._available, self._states = previous._available, dict(previous._states)
            self._failed = dict(previous._failed)

    @property
    def versions(self) -> list[int]:
        """The versions that answer."""
        return sorted(self._available)

    @property
    def failures(self) -> list[str]:
        """What is wrong with each version that could not be loaded."""
        return [
            f"version {version}: {CODES[status.status.error_code].name}: {status.status.error_message}"
            for version, status in sorted(self._states.items())
            if status.status.error_code
        ]

    def servable(self, spec: model_pb2.ModelSpec) -> Servable:
        """The version that a request asks for: by number, by label, or the newest.

        Raises:
            StatusError: if there is no such version.
        """
        available = self._available
        if not available:
            raise StatusError(grpc.StatusCode.UNAVAILABLE, f"No version of model {self.name} is loaded yet.")
        choice = spec.WhichOneof("version_choice")
        if choice is None:
            return available[max(available)]
        if choice == "version_label":
            if spec.version_label not in self.config.version_labels:
                raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
            version = self.config.version_labels[spec.version_label]
        else:
            version = spec.version.value
        if version not in available:
            raise StatusError(
                grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Specific({self.name}, {version})"
            )
        return available[version]

    def statuses(self) -> list[get_model_status_pb2.ModelVersionStatus]:
        """What has become of every version seen so far, in order of their numbers."""
        return [status for _, status in sorted(dict(self._states).items())]

    def poll(self) -> None:
        """Looks at the base path once, loads what is new and lets go of what is no longer wanted."""
        on_disk = self._versions_on_disk()
        policy = self.config.model_version_policy
        count = policy.latest.num_versions or 1
        if policy.WhichOneof("policy_choice") in ("all", "specific"):
            count = len(on_disk)
        wanted: list[int] = []
        for version in sorted(on_disk, reverse=True):
            if len(wanted) < count and (version in self._available or self._load(version, on_disk[version])):
                wanted.append(version)
        news = on_disk.keys() != self._last_seen
        self._last_seen = on_disk.keys()
        if not wanted:
            if news:
                _log.warning(
                    "No version of servable %s found under base path %s that can be loaded; %s",
                    self.name,
                    self._base_path,
                    "what is in memory goes on serving." if self._available else "waiting for one in a directory '1/'.",
                )
            return
        unwanted = set(self._available) - set(wanted)
        self._available = {version: self._available[version] for version in wanted}
        for version in unwanted:
            self._set_state(version, _State.END)
            _log.info("Unloaded version %d of model %s", version, self.name)
        if unwanted:
            # TensorFlow's functions hold each other in cycles; without this, unloaded variables linger.
            gc.collect()

    def _versions_on_disk(self) -> dict[int, Path]:
        policy = self.config.model_version_policy
        wanted = policy.specific.versions if policy.HasField("specific") else None
        paths = [path for path in self._base_path.iterdir() if path.name.isascii() and path.name.isdigit()]
        return {
            int(path.name): path for path in paths if path.is_dir() and (wanted is None or int(path.name) in wanted)
        }

    def _load(self, version: int, path: Path) -> bool:
        files = _files(path)
        if self._failed.get(version) == files:
            return False
        self._set_state(version, _State.LOADING)
        try:
            servable = Servable.load(path, version, self._batching)
        except Exception as error:  # a broken SavedModel can raise anything, and must not end the server
            self._failed[version] = files
            code, message = status_of(error)
            _log.error("Version %d of model %s is not served: %s: %s", version, self.name, code.name, message)
            self._set_state(version, _State.END, code, message)
            return False
        self._failed.pop(version, None)
        self._available = {**self._available, version: servable}
        self._set_state(version, _State.AVAILABLE)
        _log.info("Loaded version %d of model %s from %s", version, self.name, path)
        return True

    def _set_state(
        self, version: int, state: int, code: grpc.StatusCode = grpc.StatusCode.OK, message: str = ""
    ) -> None:
        status = get_model_status_pb2.ModelVersionStatus(version=version, state=state)
        status.status.error_code, status.status.error_message = code.value[0], message
        self._states[version] = status


def _files(path: Path) -> object:
    """What the files of a version look like; it changes when someone goes on copying or repairs them."""
    found = []
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder, name)
            if file.exists():
                found.append((str(file), file.stat().st_size, file.stat().st_mtime_ns))
    return sorted(found)
