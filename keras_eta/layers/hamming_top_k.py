"""Hamming top-k as a Keras layer."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_eta import ops
from keras_eta.validation import check_positive_integers


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class HammingTopK(tf.keras.layers.Layer):
    """Finds the `top_k` behaviours of a history nearest to each candidate by Hamming distance.

    Ties go to the more recent behaviour; padding is never found. See `keras_eta.ops.hamming_top_k`.

    Args:
        top_k: K, the number of behaviours to find.

    Call arguments:
        candidate: int64 [..., C, W] fingerprints of the candidates.
        history: int64 [..., L, W] fingerprints of the behaviours, most recent first.
        mask: bool [..., L], false at padding. `None`: every behaviour is real.
        sorted: whether the nearest come first.
        jit_compile: whether XLA may compile the search, which pays where many candidates share a long history.

    Returns:
        `ops.TopK(positions, distances, mask)`, each [..., C, K], nearest first if `sorted`.

    Raises:
        ValueError: if `top_k` is not a positive integer.

    Example:
        >>> candidate, history = tf.constant([[[0]]], tf.int64), tf.constant([[[7], [0], [1]]], tf.int64)
        >>> found = keras_eta.layers.HammingTopK(2)(candidate, history)
        >>> found.positions.numpy().tolist(), found.distances.numpy().tolist()
        ([[[1, 2]]], [[[0, 1]]])

    Reference:
        ETA, arXiv 2108.04468, Section 3.3.
    """

    def __init__(self, top_k: int = 48, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive_integers(top_k=top_k)
        self.top_k = top_k

    def call(
        self,
        candidate: tf.Tensor,
        history: tf.Tensor,
        mask: tf.Tensor | None = None,
        sorted: bool = True,
        jit_compile: bool = False,
    ) -> ops.TopK:
        return ops.hamming_top_k(candidate, history, self.top_k, mask, sorted, jit_compile)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "top_k": self.top_k}
