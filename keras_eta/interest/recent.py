"""The short history."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_eta.interest.attention import AttentionUnit
from keras_eta.interest.base import Columns, Interest, Retrieved
from keras_eta.validation import check_positive_integers


def attend_to_all(unit: AttentionUnit, candidate: Columns, history: Columns) -> Interest:
    """The interest of a unit that attends to every behaviour, without a score of its own."""
    vector, weights = unit.attend(candidate, history)
    shape = tf.concat([tf.shape(weights)[:2], tf.shape(weights)[3:]], axis=0)
    positions = tf.broadcast_to(tf.range(shape[-1]), shape)
    found = tf.broadcast_to(history.mask[:, tf.newaxis, :], shape)
    return Interest(vector, Retrieved(tf.where(found, positions, 0), found), weights)


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class RecentInterest(AttentionUnit):
    """Attends to the S most recent behaviours: the short history.

    With `attention=ActivationUnit()` it is DIN over the last S.

    Args:
        length: S.
        **kwargs: as `AttentionUnit`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        ETA, arXiv 2108.04468, Section 3.2; DIN, arXiv 1706.06978, Section 4.3.
    """

    def __init__(self, length: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive_integers(length=length)
        self.length = length

    def call(self, candidate: Columns, history: Columns, training: bool = False, jit_compile: bool = False) -> Interest:
        return attend_to_all(self, candidate, history.first(self.length))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "length": self.length}
