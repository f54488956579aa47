"""Units that retrieve K behaviours for each candidate and attend to those."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_eta.interest.attention import AttentionUnit
from keras_eta.interest.base import Columns, Interest, Retrieved
from keras_eta.validation import check_positive_integers


class TopKUnit(AttentionUnit):
    """Retrieves K behaviours for each candidate and attends to those. Subclasses implement `search`.

    Only what was retrieved is gathered as floats.

    Args:
        top_k: K, behaviours to retrieve.
        **kwargs: as `AttentionUnit`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, top_k: int = 48, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive_integers(top_k=top_k)
        self.top_k = top_k

    def search(self, candidate: Columns, history: Columns, jit_compile: bool) -> Retrieved:
        """Picks at most K behaviours of the history for each candidate.

        Args:
            candidate: as in the call.
            history: as in the call.
            jit_compile: as in the call.

        Returns:
            Positions, mask and scores [R, C, K].
        """
        raise NotImplementedError

    def similarity(
        self, candidate: Columns, behaviours: Columns, retrieved: Retrieved, training: bool
    ) -> tf.Tensor | None:
        """A term for the attention's logits, scaled by a learned factor per head; needs `similarity_bias`.

        Args:
            candidate: columns [R, C].
            behaviours: columns [R, C, K] of what was retrieved.
            retrieved: what `search` returned.
            training: whether gradients must flow.

        Returns:
            float32 [R, C, K]; `None` without a similarity bias.
        """
        return None

    def call(self, candidate: Columns, history: Columns, training: bool = False, jit_compile: bool = False) -> Interest:
        retrieved = self.search(candidate, history, jit_compile)
        behaviours = history.take(retrieved.positions, retrieved.mask)
        similarity = self.similarity(candidate, behaviours, retrieved, training)
        vector, weights = self.attend(candidate, behaviours, similarity)
        return Interest(vector, retrieved, weights)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "top_k": self.top_k}


def largest_k(scores: tf.Tensor, mask: tf.Tensor, top_k: int) -> Retrieved:
    """The K behaviours of the largest scores, ties to the more recent; padding is never among them.

    Args:
        scores: float [R, C, L].
        mask: bool, broadcast against `scores`.
        top_k: K.

    Returns:
        Positions, mask and scores [R, C, K], largest first; scores are 0 where the mask is false.
    """
    scores = tf.where(mask, scores, scores.dtype.min)
    missing = tf.maximum(top_k - tf.shape(scores)[-1], 0)
    scores = tf.pad(scores, [[0, 0], [0, 0], [0, missing]], constant_values=scores.dtype.min)
    values, positions = tf.math.top_k(scores, top_k)
    found = values > scores.dtype.min
    return Retrieved(tf.where(found, positions, 0), found, tf.where(found, values, tf.zeros_like(values)))
