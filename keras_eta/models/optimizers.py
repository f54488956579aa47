"""Optimisers of rankers: two at once, and what training must know of any."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from keras_eta.validation import is_number

Part = tuple[tf.keras.optimizers.Optimizer, Callable[[], Sequence[tf.Variable]]]


class EmbeddingsAndDense(tfrs.experimental.optimizers.CompositeOptimizer):
    """One optimiser for the embedding tables and one for the rest, with a learning rate that callbacks can set.

    `learning_rate` (`lr`) is that of `dense`. Setting it sets both rates, in the ratio they were made with, so
    `LearningRateScheduler` and `ReduceLROnPlateau` move both by the same factor. Where one is a schedule, which sets
    its rate at every step, setting is refused. `optimizers` are the two, whose own rates can be set one by one.

    Args:
        embeddings: an optimiser and a function that returns the embedding tables.
        dense: an optimiser and a function that returns all other trainable variables.
        name: of the optimiser.
    """

    def __init__(self, embeddings: Part, dense: Part, name: str = "EmbeddingsAndDense") -> None:
        super().__init__([embeddings, dense], name=name)
        self._trained = (embeddings, dense)
        self._initial_rates = [_rate(part) for part in self.optimizers]

    def build(self, variables: Iterable[tf.Variable]) -> None:
        """Creates the variables of both parts, as Keras's optimisers do; legacy parts create theirs at the first step.

        Args:
            variables: the trainable variables.
        """
        variables = list(variables)
        for optimizer, trained in self._trained:
            if isinstance(optimizer, tf.keras.optimizers.Optimizer):
                own = {variable.ref() for variable in trained()}
                optimizer.build([variable for variable in variables if variable.ref() in own])

    def apply_gradients(self, grads_and_vars: Iterable[Any], *args: Any, **kwargs: Any) -> tf.Operation:
        """As every optimiser; returns an operation, as a LossScaleOptimizer needs."""
        super().apply_gradients(grads_and_vars, *args, **kwargs)
        if tf.__internal__.distribute.strategy_supports_no_merge_call():
            return tf.no_op()
        # One for all replicas: a LossScaleOptimizer has no use for several.
        return tf.distribute.get_replica_context().merge_call(lambda _: tf.no_op())

    @property
    def learning_rate(self) -> LearningRate:
        return LearningRate(self)

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        if has_schedule(self):
            raise ValueError(
                "The learning rate follows a schedule and can't be set. Give the optimisers numbers in place of "
                f"schedules, or change the schedules. Received: learning_rate={value}"
            )
        embeddings, dense = self._initial_rates
        if not dense:
            raise ValueError(
                "Both learning rates are set in the ratio they were made with, which needs a dense learning rate above "
                f"0. Set them one by one, on `optimizers`. Received: learning_rate={value}"
            )
        for part, rate in zip(self.optimizers, (value * embeddings / dense, value), strict=True):
            part.learning_rate = rate

    lr = learning_rate


class LearningRate(float):
    """The learning rate of an `EmbeddingsAndDense` as a number, with what Keras's callbacks use of a variable."""

    dtype = tf.float32

    def __new__(cls, optimizer: EmbeddingsAndDense) -> LearningRate:
        rate = super().__new__(cls, _rate(optimizer.optimizers[1]))
        rate._optimizer = optimizer
        return rate

    _optimizer: EmbeddingsAndDense

    def assign(self, value: Any) -> None:
        """Sets the optimiser's `learning_rate`."""
        self._optimizer.learning_rate = float(value)

    def numpy(self) -> np.float32:
        """The value."""
        return np.float32(self)


def check_rates(**rates: Any) -> None:
    """Raises ValueError unless every learning rate is a schedule of Keras or a finite number of at least 0."""
    for name, rate in rates.items():
        schedule = isinstance(rate, tf.keras.optimizers.schedules.LearningRateSchedule)
        if not schedule and not (is_number(rate) and rate >= 0):
            raise ValueError(f"`{name}` must be a number of at least 0 or a Keras schedule. Received: {name}={rate!r}")


def check_callbacks(optimizer: Any, callbacks: Any) -> None:
    """Refuses callbacks that set a learning rate where there is none, before an epoch is trained for nothing.

    Args:
        optimizer: what the model was compiled with.
        callbacks: as given to `fit`.

    Raises:
        ValueError: if the learning rate follows a schedule, or the optimiser is a composite without one rate.
    """
    callbacks = callbacks.callbacks if isinstance(callbacks, tf.keras.callbacks.CallbackList) else callbacks
    setters = (tf.keras.callbacks.LearningRateScheduler, tf.keras.callbacks.ReduceLROnPlateau)
    for callback in tf.nest.flatten(callbacks):
        if isinstance(callback, setters) and has_schedule(optimizer):
            raise ValueError(
                f"{type(callback).__name__} can't set a learning rate that follows a schedule. Leave the callback out, "
                f"or give the optimiser a number in place of the schedule. Received: {type(optimizer).__name__}"
            )
        if isinstance(callback, setters) and not hasattr(optimizer, "learning_rate"):
            raise ValueError(
                f"{type(callback).__name__} needs an optimiser with a `learning_rate`. Compile with "
                f"`default_optimizer()`, which has one for both of its parts. Received: {type(optimizer).__name__}"
            )


def writes_to_handles(optimizer: Any) -> bool:
    """Whether an optimiser changes variables behind the back of their Python methods, as Keras's legacy ones do."""
    return any(not isinstance(part, tf.keras.optimizers.Optimizer) for part in _parts(optimizer))


def has_schedule(optimizer: Any) -> bool:
    """Whether a schedule sets a learning rate of the optimiser at every step."""
    schedule = tf.keras.optimizers.schedules.LearningRateSchedule
    # The public property of a new optimiser gives the present value; only the legacy ones give the schedule itself.
    return any(
        isinstance(getattr(part, "_learning_rate", getattr(part, "learning_rate", None)), schedule)
        for part in _parts(optimizer)
    )


def _parts(optimizer: Any) -> list[Any]:
    """The optimisers that apply gradients, inside of loss scaling and composition."""
    if isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer):
        return _parts(optimizer.inner_optimizer)
    if isinstance(optimizer, tfrs.experimental.optimizers.CompositeOptimizer):
        return [part for each in optimizer.optimizers for part in _parts(each)]
    return [optimizer]


def _rate(optimizer: Any) -> float:
    return float(tf.keras.backend.get_value(optimizer.learning_rate))
