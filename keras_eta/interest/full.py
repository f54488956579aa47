"""Full attention."""

from __future__ import annotations

import tensorflow as tf

from keras_eta.interest.attention import AttentionUnit
from keras_eta.interest.base import Columns, Interest
from keras_eta.interest.recent import attend_to_all


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class FullInterest(AttentionUnit):
    """Attends to the whole history, which is what ETA approximates: DIN over a long history.

    Args:
        **kwargs: as `AttentionUnit`.

    Reference:
        ETA, arXiv 2108.04468, Section 4.5, where it is the model to approach.
    """

    def call(self, candidate: Columns, history: Columns, training: bool = False, jit_compile: bool = False) -> Interest:
        return attend_to_all(self, candidate, history)
