"""How the models of keras_eta train, report losses and are saved."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_recommenders as tfrs

from keras_eta.models.loss_means import LossMeans
from keras_eta.models.optimizers import EmbeddingsAndDense, check_callbacks, check_rates, writes_to_handles

LOSS, REGULARIZATION_LOSS = "loss", "regularization_loss"


class TrainableModel(tfrs.Model):
    """A model with two optimisers, exact losses, and files that reload compiled.

    Subclasses implement `build`, `call`, `compute_losses` and `embedding_variables`.

    Args:
        part_names: names of the parts of the loss that `compute_losses` gives in training.
        **kwargs: as `tf.keras.Model`.
    """

    # Keras's BackupAndRestore deletes what Keras's constructor sets, and a second `fit` misses it.
    _training_state = None

    def __init__(self, *, part_names: Sequence[str] = (), **kwargs: Any) -> None:
        # Under mixed precision Keras would round raw floats, which models scale in float32, to 16 bits.
        super().__init__(**{"autocast": False, **kwargs})
        # Every replica's step returns what holds for all; the default would sum it over workers once more.
        self.distribute_reduction_method = "first"
        self._part_names = tuple(part_names)
        self._loss_means = LossMeans((LOSS, REGULARIZATION_LOSS, *part_names))

    def get_build_config(self) -> dict[str, Any] | None:
        """Whether Keras's native format has variables to create again; their shapes follow from the configuration."""
        return {"input_shape": None} if self.built else None

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Creates all variables."""
        self.build(config["input_shape"])

    def compile(self, optimizer: Any = None, **kwargs: Any) -> None:
        """Configures training; under a `tf.distribute` strategy it also creates all variables.

        Args:
            optimizer: any Keras optimiser. `None`: `default_optimizer()`.
            **kwargs: as `tf.keras.Model.compile`.
        """
        if not self.built:
            with self.distribute_strategy.scope():
                if tf.distribute.has_strategy():
                    self.build()
        optimizer = self.default_optimizer() if optimizer is None else optimizer
        super().compile(optimizer=optimizer, **kwargs)

    def fit(self, *args: Any, **kwargs: Any) -> tf.keras.callbacks.History:
        """Trains the model, as `tf.keras.Model.fit` does.

        Raises:
            ValueError: if a callback sets the learning rate of an optimiser that has none to set.
        """
        arguments = inspect.signature(tf.keras.Model.fit).bind(self, *args, **kwargs).arguments
        check_callbacks(self.optimizer, arguments.get("callbacks"))
        try:
            return super().fit(*args, **kwargs)
        except Exception:
            # A function whose first trace failed can never create the optimiser's variables.
            self.train_function = None
            raise

    def make_train_function(self, force: bool = False) -> Any:
        """What `fit` and `train_on_batch` run for a step, as in Keras; all variables are created first."""
        if not self.built:
            # Built inside the step, layers with moving averages would take in the zeros that they are built with, and
            # the step would be traced twice.
            with self.distribute_strategy.scope():
                self.build()
        # Variables that the first step creates make TensorFlow trace the step twice.
        self._build_optimizer()
        return super().make_train_function(force)

    def default_optimizer(self, embedding_learning_rate: Any = 0.1, dense_learning_rate: Any = 1e-3) -> Any:
        """Adagrad for embeddings, whose steps move only the rows that a batch touches, and Adam for the rest.

        Args:
            embedding_learning_rate: Adagrad's, for `embedding_variables`; a number or a Keras schedule.
            dense_learning_rate: Adam's, for `dense_variables`; likewise.

        Returns:
            A `keras_eta.models.optimizers.EmbeddingsAndDense` of the two. Callbacks that set its `learning_rate` set
            both rates, in this ratio.

        Raises:
            ValueError: if a rate is neither a schedule nor a finite number of at least 0.
        """
        check_rates(embedding_learning_rate=embedding_learning_rate, dense_learning_rate=dense_learning_rate)
        return EmbeddingsAndDense(
            (tf.keras.optimizers.Adagrad(embedding_learning_rate), self.embedding_variables),
            (tf.keras.optimizers.Adam(dense_learning_rate), self.dense_variables),
        )

    def save(self, filepath: Any, overwrite: bool = True, save_format: str | None = None, **kwargs: Any) -> None:
        """Saves the model as `tf.keras.Model.save` does; for TF Serving, use `keras_eta.export`.

        `CompositeOptimizer`, the default, has no configuration that a file could hold, so its state is left out unless
        `include_optimizer` is given. `save_weights`, checkpoints and `tf.keras.callbacks.BackupAndRestore` keep it.
        """
        if self._has_composite_optimizer() and not is_native(filepath, save_format):
            kwargs.setdefault("include_optimizer", False)
        super().save(filepath, overwrite, save_format, **kwargs)

    def get_compile_config(self) -> Any:
        """The arguments of `compile` for Keras's native format; `None` where the optimiser has no configuration."""
        if self._has_composite_optimizer():
            return None
        # Keras reads the state of a built optimiser back, and fails on that of another in a loss-scale wrapper.
        self._build_optimizer()
        return super().get_compile_config()

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as `get_compile_config` says, and creates the optimiser's variables."""
        self.compile(**tf.keras.utils.deserialize_keras_object(config))
        self._build_optimizer()

    def _build_optimizer(self) -> None:
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if self.built and isinstance(optimizer, (tf.keras.optimizers.Optimizer, EmbeddingsAndDense)):
            with self.distribute_strategy.scope():
                optimizer.build(self.trainable_variables)

    def _has_composite_optimizer(self) -> bool:
        """Whether there is one, in a loss-scale wrapper or without."""
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        return isinstance(optimizer, tfrs.experimental.optimizers.CompositeOptimizer)

    @property
    def losses(self) -> list[tf.Tensor]:
        """The regularisation losses; of several replicas each has its share, since their gradients are summed."""
        replica = tf.distribute.get_replica_context()
        replicas = 1 if replica is None else replica.num_replicas_in_sync
        return [loss / replicas for loss in super().losses] if replicas > 1 else super().losses

    def compute_losses(self, inputs: tuple[Any, ...], training: bool = False) -> dict[str, tf.Tensor]:
        """The loss of a batch, and the parts of it that are reported by a name of their own.

        Args:
            inputs: features, labels [n] and, optionally, sample weights [n].
            training: whether the model is being trained.

        Returns:
            Scalars: this replica's part of the global batch's mean, by name; `loss` is the sum to minimise.
        """
        raise NotImplementedError

    def compute_loss(self, inputs: tuple[Any, ...], training: bool = False) -> tf.Tensor:
        return self.compute_losses(inputs, training)[LOSS]

    def num_rows(self, inputs: tuple[Any, ...]) -> tf.Tensor:
        """How many rows a batch has, as `compute_losses` takes it."""
        return tf.size(inputs[1])

    def train_step(self, inputs: tuple[Any, ...]) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            losses = {**self.compute_losses(inputs, training=True), REGULARIZATION_LOSS: self._regularization_loss()}
            total_loss = losses[LOSS] + losses[REGULARIZATION_LOSS]
        # Unlike tfrs.Model, `minimize` scales the loss where the optimiser is a LossScaleOptimizer.
        self.optimizer.minimize(total_loss, self.trainable_variables, tape=tape)
        if writes_to_handles(self.optimizer):
            self.refresh()
        self.after_step(self.optimizer.iterations)
        self._loss_means.update(self.num_rows(inputs), losses)
        return self._logs()

    def test_step(self, inputs: tuple[Any, ...]) -> dict[str, tf.Tensor]:
        losses = {**self.compute_losses(inputs), REGULARIZATION_LOSS: self._regularization_loss()}
        self._loss_means.update(self.num_rows(inputs), losses)
        logs = self._logs()
        return {name: value for name, value in logs.items() if name not in self._part_names}

    def _regularization_loss(self) -> tf.Tensor:
        return tf.reduce_sum([tf.reduce_sum(loss) for loss in self.losses])

    def _logs(self) -> dict[str, tf.Tensor]:
        logs = {metric.name: metric.result() for metric in self.metrics}
        return {**logs, "total_loss": logs[LOSS] + logs[REGULARIZATION_LOSS]}

    def embedding_variables(self) -> list[tf.Variable]:
        """The embedding tables, whose gradients are sparse."""
        raise NotImplementedError

    def dense_variables(self) -> list[tf.Variable]:
        """All other trainable variables, learned planes included."""
        embeddings = {variable.ref() for variable in self.embedding_variables()}
        return [variable for variable in self.trainable_variables if variable.ref() not in embeddings]

    def refresh(self) -> None:
        """Derives again what the model keeps beside its variables."""

    def after_step(self, step: tf.Tensor) -> None:
        """Called by `train_step` with the number of steps taken."""


def is_native(filepath: Any, save_format: str | None) -> bool:
    """Whether `tf.keras.Model.save` writes Keras's native format, a `.keras` file."""
    return str(filepath).endswith(".keras") or save_format == "keras"
