"""All models of a server: which there are, kept up to date with their base paths and their configuration."""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
from tensorflow_serving.apis import model_pb2

from serving.config import Configs, check_inside, check_models
from serving.servables import Model, Servable
from serving.status import StatusError, invalid_argument

_log = logging.getLogger(__name__)


class Models:
    """The models of a server.

    Args:
        configs: one a model.
        batching: BatchingParameters, or None for no batching.
        reload_base_path: directory in which requests may choose base paths, beside those of `configs`.
        labels_may_wait: whether version labels may stand for versions that are not loaded.

    Raises:
        StatusError: if a name or a base path is missing or wrong.
    """

    def __init__(
        self,
        configs: Configs,
        *,
        batching: Any = None,
        reload_base_path: str | None = None,
        labels_may_wait: bool = False,
    ) -> None:
        check_models(configs)
        self._batching = batching
        self._labels_may_wait = labels_may_wait
        paths = [*(config.base_path for config in configs), reload_base_path]
        self._roots = [Path(os.path.realpath(path)) for path in paths if path]
        # Replaced, never changed: calls read it without a lock.
        self._models: Mapping[str, Model] = {config.name: Model(config, batching) for config in configs}
        self._changing = threading.Lock()

    def load(self) -> None:
        """Loads what there is at the start.

        Raises:
            StatusError: if a model has versions and none of them can be loaded, or a label stands for none.
        """
        with self._changing:
            for model in self._models.values():
                model.poll()
                if model.versions:
                    self._check_labels(model)
                elif model.failures:
                    raise StatusError(
                        grpc.StatusCode.UNKNOWN,
                        f"No version of model {model.name} can be loaded: {'; '.join(model.failures)}",
                    )

    def poll(self) -> None:
        """Looks at every base path once."""
        with self._changing:
            for model in self._models.values():
                try:
                    model.poll()
                except OSError as error:
                    _log.error("Could not look for versions of model %s: %s", model.name, error)

    def reload(self, configs: Configs, *, by_request: bool = False) -> None:
        """Puts other models in place of all there are, once each has a version that answers. Else nothing changes.

        Args:
            configs: one a model.
            by_request: whether a caller asks, who may not point models anywhere.

        Raises:
            StatusError: PERMISSION_DENIED for a base path that callers may not name, FAILED_PRECONDITION for a label of
                a version that is not loaded, UNKNOWN for a model without a version that can be loaded.
        """
        check_models(configs)
        if by_request:
            check_inside(configs, self._roots)
        with self._changing:
            models = {}
            for config in configs:
                models[config.name] = model = Model(config, self._batching, self._models.get(config.name))
                model.poll()
                if not model.versions:
                    raise StatusError(
                        grpc.StatusCode.UNKNOWN,
                        f"1 servable(s) did not become available: {config.name}: "
                        f"{'; '.join(model.failures) or 'it has no version'}",
                    )
                self._check_labels(model)
            gone = self._models.keys() - models
            self._models = models
        _log.info("Configuration replaced; models are now: %s", ", ".join(models))
        if gone:
            gc.collect()

    def find(self, name: str) -> Model | None:
        """The model of a name."""
        return self._models.get(name)

    def servable(self, spec: model_pb2.ModelSpec) -> Servable:
        """The model version that a request asks for.

        Raises:
            StatusError: if there is none.
        """
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        model = self._models.get(spec.name)
        if model is not None:
            return model.servable(spec)
        if spec.HasField("version_label"):
            raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
        choice = f"Specific({spec.name}, {spec.version.value})" if spec.HasField("version") else f"Latest({spec.name})"
        raise StatusError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {choice}")

    def versions(self) -> dict[str, list[int]]:
        """The versions that answer, by model."""
        return {name: model.versions for name, model in self._models.items()}

    def _check_labels(self, model: Model) -> None:
        for label, version in model.config.version_labels.items():
            if version not in model.versions and not self._labels_may_wait:
                raise StatusError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"Request to assign label {label!r} to version {version} of model {model.name}, which is not "
                    "currently available for inference",
                )
