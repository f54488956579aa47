"""The models of a server, kept up to date with their base paths and their configuration."""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from grpc import StatusCode
from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig

from keras_eta.versions import versions
from serving.server import memory
from serving.server.config import Configs, Options, check_models
from serving.server.errors import status_of
from serving.server.servables import Servable
from serving.server.status import StatusError, invalid_argument

_log = logging.getLogger(__name__)


class ServedModel:
    """A model's versions: subdirectories of its base path with numeric names, and those of them that are loaded.

    The newest versions that the policy asks for are served; without a policy that is the newest one. A version is
    loaded and warmed up before it takes traffic, and the one it replaces answers the calls that it has. A version that
    can't be loaded is logged and skipped, so that older ones keep serving and newer ones are not held up; it is tried
    again once its files change. When nothing on disk can be loaded, what is in memory keeps serving.

    Args:
        config: TensorFlow Serving's own message: name, base path, version policy, version labels.
        options: the server's.
        previous: the model until now, whose versions this one takes over where the base path is the same.

    Raises:
        StatusError: if the base path is no directory.
    """

    def __init__(self, config: ModelConfig, options: Options, previous: ServedModel | None = None) -> None:
        self.config = config
        same = previous if previous is not None and previous.config.base_path == config.base_path else None
        # The versions that answer. Replaced, never changed: calls read it without a lock.
        self.available: Mapping[int, Servable] = same.available if same else {}
        self.states: dict[int, ModelVersionStatus] = dict(same.states) if same else {}
        self._failed: dict[int, object] = dict(same._failed) if same else {}
        self._last_seen: object = None
        self._options = options
        self._base_path = Path(config.base_path)
        if not self._base_path.is_dir():
            message = f"Could not find base path {config.base_path!r} for servable {config.name}."
            raise StatusError(StatusCode.NOT_FOUND, message)

    def poll(self) -> None:
        """Looks at the base path once, loads new versions and unloads those no longer wanted."""
        policy = self.config.model_version_policy
        names = [path.name for path in self._base_path.iterdir() if path.is_dir()]
        on_disk = {version: self._base_path / name for version, name in versions(names).items()}
        if policy.HasField("specific"):
            on_disk = {version: on_disk[version] for version in policy.specific.versions if version in on_disk}
        latest_only = policy.WhichOneof("policy_choice") in (None, "latest")
        count = (policy.latest.num_versions or 1) if latest_only else len(on_disk)
        wanted: list[int] = []
        for version in sorted(on_disk, reverse=True):
            if len(wanted) < count and (version in self.available or self._load(version, on_disk[version])):
                wanted.append(version)
        if not wanted and on_disk.keys() != self._last_seen:
            path = self._base_path
            nothing = f"No version of servable {self.config.name} found under base path {path}, such as {path / '1'}"
            _log.warning("%s, that can be loaded; what is in memory goes on serving: %s", nothing, list(self.available))
        self._last_seen = on_disk.keys()
        unwanted = self.available.keys() - wanted
        if not wanted or not unwanted:
            return
        self.available = {version: self.available[version] for version in wanted}
        for version in unwanted:
            self._set_state(version, ModelVersionStatus.END)
            _log.info("Unloaded version %d of model %s", version, self.config.name)
        # TensorFlow's functions hold each other in cycles; without this, unloaded variables linger.
        gc.collect()
        memory.give_back()

    def _load(self, version: int, path: Path) -> bool:
        # These change when someone goes on copying the version, or repairs it.
        stats = [(str(file), file.stat()) for file in path.rglob("*") if file.is_file()]
        files = sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
        if self._failed.get(version) == files:
            return False
        self._set_state(version, ModelVersionStatus.LOADING)
        try:
            servable = Servable.load(
                path,
                version,
                self._options.batching_parameters,
                vocabularies=self._options.rest_api_port is not None,
            )
        except Exception as error:  # a broken SavedModel can raise anything, and must not end the server
            self._failed[version] = files
            code, message = status_of(error)
            _log.error("Version %d of model %s is not served: %s: %s", version, self.config.name, code.name, message)
            self._set_state(version, ModelVersionStatus.END, code, message)
            return False
        self.available = {**self.available, version: servable}
        self._set_state(version, ModelVersionStatus.AVAILABLE)
        _log.info("Loaded version %d of model %s from %s", version, self.config.name, path)
        return True

    def _set_state(self, version: int, state: int, code: StatusCode = StatusCode.OK, message: str = "") -> None:
        status = {"error_code": code.value[0], "error_message": message}
        self.states[version] = ModelVersionStatus(version=version, state=state, status=status)


class Models:
    """The models of a server.

    Args:
        configs: one per model.
        options: the server's.

    Raises:
        StatusError: if a name or a base path is missing or wrong.
    """

    def __init__(self, configs: Configs, options: Options) -> None:
        check_models(configs)
        self._options = options
        paths = [*(config.base_path for config in configs), options.reload_base_path]
        self._roots = [Path(os.path.realpath(path)) for path in paths if path]
        # Replaced, never changed: calls read it without a lock.
        self._models: Mapping[str, ServedModel] = {config.name: ServedModel(config, options) for config in configs}
        self._changing = threading.Lock()

    def load(self) -> None:
        """Loads the versions present at the start.

        Raises:
            StatusError: if a model has versions and none of them can be loaded, or if there are labels, which nothing
                is loaded for yet, without `allow_version_labels_for_unavailable_models`.
        """
        with self._changing:
            self._check_labels([model.config for model in self._models.values()])
            for model in self._models.values():
                self._load(model, required=False)

    def poll(self) -> None:
        """Looks at every base path once."""
        with self._changing:
            for model in self._models.values():
                try:
                    model.poll()
                except OSError as error:
                    _log.error("Could not look for versions of model %s: %s", model.config.name, error)

    def reload(self, configs: Configs, *, by_request: bool = False) -> None:
        """Replaces all models, once each new one has a version that answers. Otherwise nothing changes.

        As in TensorFlow Serving labels come first: what one stands for must be loaded before this call. With
        `allow_version_labels_for_unavailable_models` that does not hold for labels that are new.

        Args:
            configs: one per model.
            by_request: whether a caller asks, who may not point models anywhere.

        Raises:
            StatusError: PERMISSION_DENIED for a base path that callers may not name, FAILED_PRECONDITION for a label of
                a version that is not loaded, UNKNOWN for a model without a version that can be loaded.
        """
        check_models(configs)
        for config in configs if by_request else ():
            path = Path(os.path.realpath(config.base_path))
            if not any(path.is_relative_to(root) for root in self._roots):
                message = f"base_path of model {config.name} is outside the directories that requests may name"
                raise StatusError(StatusCode.PERMISSION_DENIED, f"{message}; --reload_base_path allows another.")
        with self._changing:
            self._check_labels(configs)
            models = {
                config.name: ServedModel(config, self._options, self._models.get(config.name)) for config in configs
            }
            for model in models.values():
                self._load(model, required=True)
            gone = self._models.keys() - models
            self._models = models
        _log.info("Configuration replaced; models are now: %s", ", ".join(models))
        if gone:
            gc.collect()
            memory.give_back()

    def servable(self, spec: ModelSpec) -> Servable:
        """The model version that a request asks for: by number, by label, or the newest.

        Raises:
            StatusError: if there is none.
        """
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        model = self._models.get(spec.name)
        available = model.available if model else {}
        if model and not available:
            raise StatusError(StatusCode.UNAVAILABLE, f"No version of model {spec.name} is loaded yet.")
        if spec.HasField("version_label"):
            if not model or spec.version_label not in model.config.version_labels:
                raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
            version = model.config.version_labels[spec.version_label]
        else:
            version = spec.version.value if spec.HasField("version") else max(available, default=None)
        if version not in available:
            choice = f"Latest({spec.name})" if version is None else f"Specific({spec.name}, {version})"
            raise StatusError(StatusCode.NOT_FOUND, f"Servable not found for request: {choice}")
        return available[version]

    def versions(self) -> dict[str, list[int]]:
        """The versions that answer, by model."""
        return {name: sorted(model.available) for name, model in self._models.items()}

    def statuses(self, name: str) -> list[ModelVersionStatus]:
        """The state of every version of a model; empty if there is no such model."""
        model = self._models.get(name)
        return [status for _, status in sorted(dict(model.states).items())] if model else []

    def _check_labels(self, configs: Configs) -> None:
        for config in configs:
            model = self._models.get(config.name)
            for label, version in config.version_labels.items():
                stands_for = model.config.version_labels.get(label, version) if model else version
                may_wait = self._options.allow_version_labels_for_unavailable_models and stands_for == version
                if not may_wait and (model is None or version not in model.available):
                    wanted = f"label {label!r} to version {version} of model {config.name}"
                    message = f"Request to assign {wanted}, which is not currently available for inference"
                    raise StatusError(StatusCode.FAILED_PRECONDITION, message)

    def _load(self, model: ServedModel, *, required: bool) -> None:
        """Loads a model's versions; raises StatusError if none can be loaded."""
        model.poll()
        failures = "; ".join(filter(None, (status.status.error_message for status in model.states.values())))
        if not model.available and (required or failures):
            message = f"No version of model {model.config.name} can be loaded: {failures or 'there is none'}"
            raise StatusError(StatusCode.UNKNOWN, message)
