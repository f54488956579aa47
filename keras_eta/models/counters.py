"""Variables that count, and draws that follow from a count of steps."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from keras_eta.distribution import replica_number


def add_counter(layer: tf.keras.layers.Layer, name: str, shape: Sequence[int] = ()) -> tf.Variable:
    """An int64 variable of zeros that is counted up in training, alike on every replica."""
    return layer.add_weight(
        name=name,
        shape=list(shape),
        # A float32 stops counting at 2 ** 24.
        dtype=tf.int64,
        initializer="zeros",
        trainable=False,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        experimental_autocast=False,
    )


def draw(shape: tf.Tensor, seed: int, step: tf.Tensor) -> tf.Tensor:
    """Uniform numbers in [0, 1) that depend on the seed, the step and the replica alone."""
    return tf.random.stateless_uniform(shape, tf.stack([seed + tf.constant(2**32, tf.int64) * replica_number(), step]))
