"""Where a training stands, so that an interrupted one goes on."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from typing import Any

import numpy as np
import tensorflow as tf

from keras_eta import Ranker

MONITORED = "val_auc"
_BACKUP_SECONDS = 120.0
_REPORT_SECONDS = 30.0

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class State(tf.train.experimental.PythonState):
    """Where a training stands; it is saved together with the weights."""

    step: int = 0  # in the epoch that is being trained
    steps: int = 0
    examples: int = 0
    seconds: float = 0.0  # of training, without validation
    finished: bool = False
    base_version: int | None = None
    resumed_at_step: int | None = None
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """The epoch that is being trained, from 0."""
        return len(self.history.get(MONITORED, []))

    @property
    def best_epoch(self) -> int:
        """The first epoch with the highest validation AUC, from 0."""
        return int(np.argmax(self.history[MONITORED]))

    def serialize(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    def deserialize(self, string_value: str | bytes) -> None:
        for name, value in json.loads(string_value).items():
            setattr(self, name, value)


class Backups:
    """What an interrupted training goes on from: the latest weights with the state, and the best epoch's weights.

    `tf.keras.callbacks.BackupAndRestore` keeps neither the best weights and the patience of early stopping, nor which
    impressions of the epoch were seen.
    """

    def __init__(self, model: Ranker, state: State, directory: str) -> None:
        def manager(name: str, **parts: Any) -> tf.train.CheckpointManager:
            checkpoint = tf.train.Checkpoint(model=model, **parts)
            return tf.train.CheckpointManager(checkpoint, os.path.join(directory, name), max_to_keep=1)

        self._directory = directory
        self._last, self._best = manager("last", state=state), manager("best")

    def restore_last(self) -> bool:
        """Gives model and state what the interrupted training had reached. False if there was none."""
        return self._restore(self._last)

    def restore_best(self) -> None:
        """Gives the model the best epoch's weights."""
        self._restore(self._best)

    def save_last(self) -> None:
        """Replaces the latest weights and state."""
        self._last.save()

    def save_best(self) -> None:
        """Keeps the weights as the best epoch's."""
        self._best.save()

    def delete(self) -> None:
        """Removes everything."""
        if tf.io.gfile.exists(self._directory):
            tf.io.gfile.rmtree(self._directory)

    def _restore(self, manager: tf.train.CheckpointManager) -> bool:
        if manager.latest_checkpoint is None:
            return False
        manager.checkpoint.restore(manager.latest_checkpoint).assert_existing_objects_matched()
        return True


class Progress(tf.keras.callbacks.Callback):
    """Counts the steps of an epoch, reports them to the log, and saves backups.

    Args:
        state: what is counted up.
        backups: where it is saved.
        num_steps: of the epoch.
        sizes: impressions in each of its batches.
    """

    def __init__(self, state: State, backups: Backups, num_steps: int, sizes: np.ndarray) -> None:
        super().__init__()
        self._state, self._backups = state, backups
        self._num_steps, self._sizes = num_steps, sizes

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._counted = self._reported = self._saved = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        state, now = self._state, time.monotonic()
        state.examples += int(self._sizes[state.step])
        state.step, state.steps = state.step + 1, state.steps + 1
        state.seconds, self._counted = state.seconds + now - self._counted, now
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            values = " - ".join(f"{name}: {value:.4f}" for name, value in (logs or {}).items())
            _logger.info("Epoch %d, step %d/%d - %s", state.epoch + 1, state.step, self._num_steps, values)
        # After the last step comes the validation, and the end of the epoch is saved after that.
        if now - self._saved >= _BACKUP_SECONDS and state.step < self._num_steps:
            self._backups.save_last()
            self._saved = time.monotonic()
