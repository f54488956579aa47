"""The infra validation of a round: the checks of the full pipeline's, without a server process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import numpy as np
import tensorflow as tf
from tfx.dsl.components.base import executor_spec

from tfx_pipeline.components.infra_validator import InfraValidatorExecutor, LocalInfraValidator
from tfx_pipeline.components.model_server import Signature, UnservableModelError
from tfx_pipeline.continuous.loaded import loaded


class LoadedModel:
    """Answers requests by a SavedModel in this process: a server would take longer to start than a round to train.

    Args:
        model_path: directory of the SavedModel.
        loading_seconds: not read.
        request_seconds: not read.

    Attributes:
        log: empty; what goes wrong is an exception.
    """

    log = ""

    def __init__(self, model_path: str, *, loading_seconds: float, request_seconds: float) -> None:
        self._model_path = model_path

    def __enter__(self) -> LoadedModel:
        """Loads the model.

        Raises:
            UnservableModelError: if it can't be loaded.
        """
        try:
            self._signatures = loaded(self._model_path).module.signatures
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise UnservableModelError(f"The model can't be loaded: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def signatures(self) -> dict[str, Signature]:
        """The model's signatures by name, sorted."""
        return {
            name: Signature(
                tuple(sorted(function.structured_input_signature[1])), tuple(sorted(function.structured_outputs))
            )
            for name, function in sorted(self._signatures.items())
        }

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of a signature.

        Args:
            signature: its name.
            inputs: by name; strings as arrays of objects.

        Raises:
            UnservableModelError: if the model refuses the request.
        """
        tensors = {name: tf.constant(values) for name, values in inputs.items()}
        try:
            return {name: output.numpy() for name, output in self._signatures[signature](**tensors).items()}
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise UnservableModelError(f"`{signature}` does not answer: {error}") from error


class LoadedInfraValidatorExecutor(InfraValidatorExecutor):
    """Loads the model and sends it real requests."""

    make_server = LoadedModel


class LoadedInfraValidator(LocalInfraValidator):
    """`LocalInfraValidator` with the model loaded in this process.

    Args:
        model: channel of the Model to try.
        examples: channel of Examples with impressions.
        config: says which columns they have.
    """

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(LoadedInfraValidatorExecutor)
