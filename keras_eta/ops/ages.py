"""Ages of behaviours."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def age_bucket(
    timestamp: tf.Tensor, history_timestamp: tf.Tensor, boundaries: Sequence[int], mask: tf.Tensor | None = None
) -> tf.Tensor:
    """The bucket of each behaviour's age: 1 + the number of boundaries that the age has reached.

    An age below 0 counts as 0, so a real behaviour is in bucket 1 at least. Ages are compared as integers: float32 is
    too coarse for seconds since 1970, and for some boundaries beyond half a year.

    Args:
        timestamp: integers [...], of the impressions.
        history_timestamp: integers [..., L], of the behaviours, in the same unit.
        boundaries: ages at which a new bucket begins, in that unit, ascending; `Age.boundaries`.
        mask: bool [..., L], false at padding, whose bucket is 0. `None`: every behaviour is real.

    Returns:
        int32 [..., L], between 0 and `len(boundaries) + 1`.

    Raises:
        TypeError: if a timestamp is no integer that int64 holds.
    """
    timestamp, history_timestamp = tf.convert_to_tensor(timestamp), tf.convert_to_tensor(history_timestamp)
    for name, x in (("timestamp", timestamp), ("history_timestamp", history_timestamp)):
        if not x.dtype.is_integer or x.dtype == tf.uint64:
            raise TypeError(f"`{name}` must hold integers that int64 holds. Received: dtype={x.dtype.name}")
    timestamp, history_timestamp = tf.cast(timestamp, tf.int64)[..., tf.newaxis], tf.cast(history_timestamp, tf.int64)
    # Moments are cut off first, since int64 does not hold every difference.
    oldest = tf.maximum(timestamp, tf.int64.min + boundaries[-1]) - boundaries[-1]
    age = timestamp - tf.minimum(tf.maximum(history_timestamp, oldest), timestamp)
    reached = tf.searchsorted(tf.constant(boundaries, tf.int64), tf.reshape(age, [-1]), side="right")
    bucket = tf.ensure_shape(1 + tf.reshape(reached, tf.shape(age)), age.shape)
    return bucket if mask is None else tf.where(mask, bucket, 0)
