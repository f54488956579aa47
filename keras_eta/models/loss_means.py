"""The losses that `fit` and `evaluate` report."""

from __future__ import annotations

import tensorflow as tf

from keras_eta.distribution import sum_over_replicas


class LossMeans(tf.keras.layers.Layer):
    """Means of the steps' losses, weighted by their rows; over all replicas the values of one.

    A layer, since Keras takes the variables of a model's own metrics for weights.
    """

    def __init__(self) -> None:
        super().__init__(name="loss_means")
        self._means = [tf.keras.metrics.Mean(name=name) for name in ("loss", "regularization_loss")]

    def update(self, labels: tf.Tensor, loss: tf.Tensor, regularization_loss: tf.Tensor) -> None:
        """Takes a step in.

        Args:
            labels: [n], those of this replica.
            loss: this replica's part of the global batch's mean; the parts add up to it.
            regularization_loss: likewise.
        """
        rows = tf.size(labels)
        for mean, value in zip(self._means, sum_over_replicas([loss, regularization_loss]), strict=True):
            mean.update_state(value, sample_weight=rows)
