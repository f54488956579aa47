"""Inner-product search."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_eta.search.search_unit import Ids, Retrieved, SearchUnit
from keras_eta.validation import check_positive_integers


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class InnerProductSearch(SearchUnit):
    """Retrieves the K behaviours whose embeddings have the largest inner product with the candidate's.

    The exact search that SimHash approximates; it gathers the whole history as floats. A baseline of the ETA paper
    (arXiv 2108.04468, Section 4.5). Ties go to the more recent behaviour; padding is never retrieved.

    Args:
        top_k: K, behaviours to retrieve.

    Raises:
        ValueError: if `top_k` is not a positive integer.
    """

    def __init__(self, top_k: int = 48, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive_integers(top_k=top_k)
        self.top_k = top_k

    def call(self, candidate: Ids, history: Ids, mask: tf.Tensor, jit_compile: bool = False) -> Retrieved:
        scores = tf.add_n(
            [
                tf.linalg.matmul(layer(candidate[name]), layer(history[name]), transpose_b=True)
                for name, layer in self.embeddings.items()
            ]
        )
        scores = tf.where(mask[:, tf.newaxis, :], scores, scores.dtype.min)
        missing = tf.maximum(self.top_k - tf.shape(scores)[-1], 0)
        scores = tf.pad(scores, [[0, 0], [0, 0], [0, missing]], constant_values=scores.dtype.min)
        values, positions = tf.math.top_k(scores, self.top_k)
        found = values > scores.dtype.min
        return Retrieved(tf.where(found, positions, tf.zeros_like(positions)), found)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "top_k": self.top_k}
