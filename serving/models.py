"""All models of a server: which there are, kept up to date with their base paths and their configuration."""

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

from serving import memory
from serving.config import Configs, Options, check_models
from serving.servables import Model, Servable
from serving.status import StatusError, invalid_argument

_log = logging.getLogger(__name__)


class Models:
    """The models of a server.

    Args:
        configs: one a model.
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
        self._models: Mapping[str, Model] = {config.name: Model(config, options) for config in configs}
        self._changing = threading.Lock()

    def load(self) -> None:
        """Loads what there is at the start.

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
        """Puts other models in place of all there are, once each has a version that answers. Else nothing changes.

        As in TensorFlow Serving labels come first: what one stands for must be loaded before this call. With
        `allow_version_labels_for_unavailable_models` that does not hold for labels that are new.

        Args:
            configs: one a model.
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
            models = {config.name: Model(config, self._options, self._models.get(config.name)) for config in configs}
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
        """What has become of every version of a model; none of a model that is not there."""
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

    def _load(self, model: Model, *, required: bool) -> None:
        """Loads a model's versions; raises StatusError if there is none that answers."""
        model.poll()
        failures = "; ".join(filter(None, (status.status.error_message for status in model.states.values())))
        if not model.available and (required or failures):
            message = f"No version of model {model.config.name} can be loaded: {failures or 'there is none'}"
            raise StatusError(StatusCode.UNKNOWN, message)
