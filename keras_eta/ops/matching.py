"""Finds the behaviours that have a candidate's value."""

from __future__ import annotations

import tensorflow as tf


def matches(wanted: tf.Tensor, present: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Counts the behaviours with each candidate's value, and finds the most recent of them.

    Args:
        wanted: int32 [R, C], the candidates' values.
        present: int32 [R, L], the behaviours' values, most recent first, L of at least 1.
        mask: bool [R, L], false at padding, which matches nothing.

    Returns:
        int32 [R, C] each: numbers of matching behaviours, and the position of the first of them; 0 where there is none.
    """
    if wanted.shape[1] == 1:
        # For one candidate per row, sorting its history would not pay.
        same = (wanted == present) & mask
        count = tf.math.count_nonzero(same, axis=1, keepdims=True, dtype=tf.int32)
        length = tf.shape(present)[1]
        latest = tf.reduce_min(tf.where(same, tf.range(length), length), axis=1, keepdims=True)
    else:
        order, first, end = inverted_index(wanted, present, mask)
        count = end - first
        latest = tf.gather(order, tf.minimum(first, tf.shape(order)[1] - 1), batch_dims=1)
    return count, tf.where(count > 0, latest, 0)


def inverted_index(wanted: tf.Tensor, present: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Sorts the behaviours by value, and finds each candidate's among them.

    Args:
        wanted: int32 [R, C], the candidates' values, below the largest int32.
        present: int32 [R, L], the behaviours' values.
        mask: bool [R, L], false at padding, which is in no range.

    Returns:
        Positions int32 [R, L] in order of value, those of one value ascending; and where each candidate's begin and
        end in that order, int32 [R, C] each.
    """
    present = tf.where(mask, present, present.dtype.max)
    order = tf.argsort(present, stable=True)
    present = tf.gather(present, order, batch_dims=1)
    return order, tf.searchsorted(present, wanted), tf.searchsorted(present, wanted, side="right")
