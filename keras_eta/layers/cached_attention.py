"""Multi-head attention whose keys and values are made once and kept, as decoding wants them."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_eta.validation import check_positive_integers


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class CachedAttention(tf.keras.layers.Layer):
    """Multi-head attention in two steps: `project` makes keys and values, the call attends to them.

    Keras's own `MultiHeadAttention` projects keys and values at each call, which in beam search is most of the work:
    those of the encoder's output are the same at every step, and for all beams.

    Args:
        num_heads: H.
        key_dim: d, width of a head.
        dropout: rate at which weights are dropped in training.

    Call arguments:
        query: float [N, Q, D].
        keys: float [N, S, H, d], of `project`.
        values: float [N, S, H, d].
        mask: bool, broadcast to [N, Q, S]: which keys each query may attend to; at least one.
        training: whether weights are dropped.

    Returns:
        float [N, Q, D].

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        Vaswani et al., "Attention Is All You Need", arXiv 1706.03762, Section 3.2.2.
    """

    def __init__(self, num_heads: int, key_dim: int, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive_integers(num_heads=num_heads, key_dim=key_dim)
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.dropout = tf.keras.layers.Dropout(dropout)

    def build(self, query_shape: Any) -> None:
        width = query_shape[-1]
        heads = (None, self.num_heads, self.key_dim)
        into_heads: dict[str, Any] = {"equation": "nsd,dhk->nshk", "output_shape": heads, "bias_axes": "hk"}
        self._query = tf.keras.layers.EinsumDense(**into_heads, name="query")
        self._key = tf.keras.layers.EinsumDense(**into_heads, name="key")
        self._value = tf.keras.layers.EinsumDense(**into_heads, name="value")
        self._output = tf.keras.layers.EinsumDense("nqhk,hkd->nqd", (None, width), bias_axes="d", name="output")
        for layer in (self._query, self._key, self._value):
            layer.build([None, None, width])
        self._output.build([None, *heads])
        super().build(query_shape)

    def project(self, memory: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Keys and values [N, S, H, d] of float [N, S, D]."""
        if not self.built:
            self.build(memory.shape)
        return self._key(memory), self._value(memory)

    def call(
        self,
        query: tf.Tensor,
        keys: tf.Tensor,
        values: tf.Tensor,
        mask: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        scaled = self._query(query) * tf.cast(self.key_dim**-0.5, query.dtype)
        logits = tf.cast(tf.einsum("nqhk,nshk->nhqs", scaled, keys), tf.float32)
        if mask is not None:
            logits = tf.where(mask[:, tf.newaxis], logits, logits.dtype.min)
        weights = self.dropout(tf.cast(tf.nn.softmax(logits), query.dtype), training=training)
        return self._output(tf.einsum("nhqs,nshk->nqhk", weights, values))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "dropout": self.dropout.rate,
        }
