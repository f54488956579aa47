"""Makes the ranker of a configuration and trains it on transformed impressions."""

from __future__ import annotations

import logging

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from keras_eta import Ranker
from keras_eta.datasets.batches import batch_bounds
from keras_eta.names import scope_name
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.ranker import make_ranker
from tfx_pipeline.training.backups import MONITORED, Backups, Progress, State
from tfx_pipeline.training.batches import Part
from tfx_pipeline.training.packing import part_batches
from tfx_pipeline.transform import read_scales

_logger = logging.getLogger(__name__)


def make_model(config: PipelineConfig, transform_output: tft.TFTransformOutput) -> Ranker:
    """The model, built and compiled, with a lookup that holds the vocabularies of Transform.

    How popular items are it is yet to be told, by `set_popularity`.

    Args:
        config: what it is.
        transform_output: of Transform.
    """
    training = config.training
    features = config.layout.features.with_scales(read_scales(transform_output, config.layout.features))
    vocabularies = {
        # As objects: NumPy's own strings of bytes lose zero bytes at the end.
        feature.name: np.array(transform_output.vocabulary_by_name(scope_name(feature.name)), object)
        for feature in features.all_features
        if feature.is_id
    }
    model = make_ranker(config.model, features, vocabularies)
    optimizer = model.default_optimizer(training.embedding_learning_rate, training.dense_learning_rate)
    # Before the first step, so that every restored checkpoint is checked against the optimisers' variables too.
    optimizer.build(model.trainable_variables)
    model.compile(optimizer)
    return model


def set_popularity(model: Ranker, train: Part) -> None:
    """Tells a model that reads it how often the training part has each item as a positive."""
    if model.popularity is not None:
        counts = np.zeros(model.features.item_id.num_indices, "int64")
        counts[: len(train.positives)] = train.positives
        model.popularity.set_counts(counts)


def fit(
    model: Ranker,
    state: State,
    backups: Backups,
    train: Part,
    validation_batches: tf.data.Dataset,
    config: PipelineConfig,
    *,
    log_dir: str,
    max_steps: int | None = None,
) -> None:
    """Trains from `state` until the epochs or steps are over or the validation AUC gets worse; keeps the best epoch.

    Args:
        model: built and compiled.
        state: where the training stands; it is moved on.
        backups: of both.
        train: what to train on.
        validation_batches: what tells the best epoch.
        config: how to train.
        log_dir: for TensorBoard.
        max_steps: after which to stop; none or 0: at the end of the epochs.

    Raises:
        FloatingPointError: if the loss is not finite.
    """
    training, features = config.training, config.layout.features
    # Not the optimiser's: it may be one of an interrupted training, which had fallen.
    rate = training.dense_learning_rate
    tensorboard = tf.keras.callbacks.TensorBoard(log_dir, write_graph=False)
    # One call of `fit` an epoch: each has an order of its own, which a resumed training takes up where it stopped.
    while not state.finished:
        sizes = np.diff(batch_bounds(train.num_examples, training.batch_size))
        num_steps = len(sizes)
        all_steps = max_steps or training.epochs * num_steps
        if max_steps:
            num_steps = min(num_steps, max_steps - state.steps + state.step)
        batches = part_batches(train, features, training.batch_size, seed=training.seed + state.epoch, first=state.step)
        remaining = num_steps - state.step
        logs = model.fit(
            # Where the end comes unexpected, Keras counts one more step, of no batch, which Adam's corrections read.
            batches.take(remaining).apply(tf.data.experimental.assert_cardinality(remaining)),
            validation_data=validation_batches,
            initial_epoch=state.epoch,
            epochs=state.epoch + 1,
            callbacks=[
                *([Decay(state, rate, all_steps)] if training.decay else []),
                Progress(state, backups, num_steps, sizes),
                tf.keras.callbacks.TerminateOnNaN(),
                tensorboard,
            ],
            verbose=2,
        ).history
        if not np.isfinite(logs["loss"][-1]):
            backups.delete()
            raise FloatingPointError(
                f"The loss is not finite in epoch {state.epoch + 1}. Lower the learning rates: "
                f"embedding_learning_rate={training.embedding_learning_rate}, "
                f"dense_learning_rate={training.dense_learning_rate}"
            )
        state.history = {name: [*state.history.get(name, []), *map(float, values)] for name, values in logs.items()}
        state.step = 0
        if state.best_epoch == state.epoch - 1:
            backups.save_best()
        state.finished = (
            state.epoch >= training.epochs
            or state.epoch - 1 - state.best_epoch >= training.patience
            or state.steps == max_steps
        )
        backups.save_last()
    if state.best_epoch < state.epoch - 1:
        backups.restore_best()
    # Whoever trains on decides anew.
    model.optimizer.learning_rate = rate
    _logger.info(
        "Trained %d epochs; the best is epoch %d with %s=%.4f.",
        state.epoch,
        state.best_epoch + 1,
        MONITORED,
        state.history[MONITORED][state.best_epoch],
    )


class Decay(tf.keras.callbacks.Callback):
    """Lets both learning rates of a model fall to zero, linearly, over all steps.

    A schedule of Keras would count the optimiser's own steps, which a warm start may carry over.

    Args:
        state: where the training stands.
        rate: the learning rate of the first step.
        num_steps: of all epochs.
    """

    def __init__(self, state: State, rate: float, num_steps: int) -> None:
        super().__init__()
        self._state, self._rate, self._num_steps = state, rate, num_steps

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        left = 1 - self._state.steps / self._num_steps
        self.model.optimizer.learning_rate = self._rate * max(left, 0.0)
