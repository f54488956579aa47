"""Columns of several values."""

from __future__ import annotations

import tensorflow as tf


def mean_of_values(vectors: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """The mean of the vectors of several values.

    Args:
        vectors: floats [..., V, D].
        mask: bool [..., V], false at padding.

    Returns:
        [..., D] of the same dtype, zero where no value is real.
    """
    real = tf.cast(mask, vectors.dtype)
    total = tf.reduce_sum(vectors * real[..., tf.newaxis], axis=-2)
    return tf.math.divide_no_nan(total, tf.reduce_sum(real, axis=-1, keepdims=True))
