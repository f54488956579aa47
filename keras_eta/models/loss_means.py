"""The losses that `fit` and `evaluate` report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import tensorflow as tf

from keras_eta.distribution import sum_over_replicas


class LossMeans(tf.keras.layers.Layer):
    """Means of the steps' losses, weighted by their rows; over all replicas the values of one.

    A layer, since Keras takes the variables of a model's own metrics for weights.

    Args:
        names: names of the losses.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(name="loss_means")
        self._means = {name: tf.keras.metrics.Mean(name=name) for name in names}

    def update(self, rows: tf.Tensor, losses: Mapping[str, tf.Tensor]) -> None:
        """Takes a step in.

        Args:
            rows: how many this replica has.
            losses: this replica's parts of the global batch's means, by name; the parts of all replicas add up to them.
        """
        for name, value in sum_over_replicas(dict(losses)).items():
            self._means[name].update_state(value, sample_weight=rows)
