"""Multi-head target attention."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from keras_eta.validation import check_positive_integers

INITIAL_COSINE_SCALE = 8.0


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class TargetAttention(tf.keras.layers.Layer):
    """Attends from a candidate to the behaviours of a history, with several heads.

    For each head, weights = softmax(Q K^T / sqrt(key_dim) + bias) and interest = weights V, where Q projects the
    candidate and K and V the behaviours; the heads are concatenated and projected to `num_heads * key_dim` units. With
    `similarity_bias`, the bias is a learned scale for each head (starting at 1) times the `similarity` of each
    behaviour.

    With `cosine`, Q and K are L2-normalised per head: the logits are cosines times a learned scale for each head
    (starting at 8, an inverse temperature) in place of Q K^T / sqrt(key_dim). Long vectors then attract no attention by
    their length.

    Behaviours are either a candidate's own, or shared by all candidates of a row. A query's own behaviours are never
    projected: q . (W_K e) = (W_K^T q) . e, and the weighted sum of W_V e is W_V of the weighted sum of e, so that H
    vectors a query are projected in place of K behaviours. The bias of the keys adds the same to all logits of a head,
    which softmax cancels. Behaviours that many candidates share are projected once. Cosines need the length of each
    key: with `cosine` the keys, which then have no bias, are projected, and the values still are not.

    Args:
        num_heads: H.
        key_dim: width of a head.
        similarity_bias: whether `similarity` is added to the attention's logits.
        cosine: whether the logits are scaled cosines.

    Call arguments:
        query: float32 [..., D] with own behaviours, or [..., C, D] with shared ones.
        behaviours: float32 [..., K, D'], of one rank more than `query` (own) or of the same (shared).
        mask: bool [..., K] with the leading dimensions of `behaviours`; false where there is no behaviour. `None`: all
            real.
        similarity: float32 [..., K], one a query and behaviour. Required with `similarity_bias`.
        return_attention_weights: whether to return the weights too.

    Returns:
        float32 [..., H * key_dim], a vector for each query, zero where the mask leaves no behaviour; and with
        `return_attention_weights` float32 [..., H, K], zero at masked behaviours.

    Raises:
        ValueError: if an argument is out of its range, the ranks do not fit, or `similarity` is missing or not
            expected.

    Example:
        >>> layer = keras_eta.layers.TargetAttention(num_heads=2, key_dim=16)
        >>> layer(tf.random.normal([8, 32]), tf.random.normal([8, 48, 40])).shape
        TensorShape([8, 32])

    Reference:
        ETA, arXiv 2108.04468, Section 3.2 (multi-head target attention); Vaswani et al. 2017, Section 3.2; cosines:
        Henry et al., "Query-Key Normalization for Transformers", arXiv 2010.04245, Eq. (2).
    """

    def __init__(
        self,
        num_heads: int = 2,
        key_dim: int = 16,
        similarity_bias: bool = False,
        cosine: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_positive_integers(num_heads=num_heads, key_dim=key_dim)
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.similarity_bias = similarity_bias
        self.cosine = cosine
        width = num_heads * key_dim
        self.query_projection = tf.keras.layers.Dense(width, name="query")
        # Key and value side by side, so that one gather fetches both.
        self.key_value_projection = tf.keras.layers.Dense(2 * width, name="key_value")
        # No bias: an empty history must give a zero vector.
        self.output_projection = tf.keras.layers.Dense(width, use_bias=False, name="output")

    def build(self, input_shape: Any) -> None:
        if self.similarity_bias:
            self.similarity_scale = self.add_weight(name="similarity_scale", shape=[self.num_heads], initializer="ones")
        if self.cosine:
            self.cosine_scale = self.add_weight(
                name="cosine_scale",
                shape=[self.num_heads],
                initializer=tf.keras.initializers.Constant(INITIAL_COSINE_SCALE),
            )
        super().build(input_shape)

    def call(
        self,
        query: tf.Tensor,
        behaviours: tf.Tensor,
        mask: tf.Tensor | None = None,
        similarity: tf.Tensor | None = None,
        return_attention_weights: bool = False,
    ) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
        interest, weights = self.attend(query, behaviours, mask, similarity)
        return (interest, weights) if return_attention_weights else interest

    def attend(
        self,
        query: tf.Tensor,
        behaviours: tf.Tensor,
        mask: tf.Tensor | None = None,
        similarity: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """What the call computes, always with the weights.

        Args:
            query: as in the call.
            behaviours: as in the call.
            mask: as in the call.
            similarity: as in the call.

        Returns:
            float32 [..., H * key_dim] interest vectors and float32 [..., H, K] weights.
        """
        query, behaviours = tf.convert_to_tensor(query), tf.convert_to_tensor(behaviours)
        if self.similarity_bias != (similarity is not None):
            raise ValueError(
                f"`similarity` must be given with similarity_bias=True and only then. Received: "
                f"similarity_bias={self.similarity_bias}, similarity={similarity}"
            )
        shared = behaviours_are_shared(query, behaviours)
        if shared and query.shape[-2] == 1:
            # A single candidate shares with nobody.
            similarity = None if similarity is None else similarity[..., 0, :]
            interest, weights = self.attend(query[..., 0, :], behaviours, mask, similarity)
            return interest[..., tf.newaxis, :], weights[..., tf.newaxis, :, :]
        heads = [self.num_heads, self.key_dim]
        if not self.key_value_projection.built:
            # Its kernel is read below, and only a call makes it as Keras saves it.
            self.key_value_projection(behaviours)
        query = self.query_projection(query)
        if not self.cosine:
            query /= math.sqrt(self.key_dim)
        if shared:
            query = _split_last(query, heads)
            # `split`, not slices: its gradient is one concatenation.
            projected, value = tf.split(self.key_value_projection(behaviours), 2, -1)
            if self.cosine:
                projected -= tf.cast(tf.split(self.key_value_projection.bias, 2)[0], projected.dtype)
            key, value = _split_last(projected, heads), _split_last(value, heads)
            if self.cosine:
                query, key = self._scaled(query), _unit(key)
            logits = tf.einsum("...chd,...khd->...chk", query, key)
        else:
            behaviours = tf.cast(behaviours, query.dtype)
            kernel, bias = (tf.cast(x, query.dtype) for x in self.key_value_projection.weights)
            (key_kernel, value_kernel), value_bias = tf.split(kernel, 2, axis=-1), tf.split(bias, 2)[1]
            # [H, H * key_dim], each head's own units. One matmul with the units of the others at 0 beats one a head.
            own_units = tf.repeat(tf.eye(self.num_heads, dtype=query.dtype), self.key_dim, axis=-1)
            if self.cosine:
                width = [self.num_heads * self.key_dim]
                keys = _merge_last(_unit(_split_last(tf.tensordot(behaviours, key_kernel, axes=1), heads)), width)
                query = _merge_last(self._scaled(_split_last(query, heads)), width)
                logits = tf.linalg.matmul(query[..., tf.newaxis, :] * own_units, keys, transpose_b=True)
            else:
                projected = tf.tensordot(query[..., tf.newaxis, :] * own_units, tf.transpose(key_kernel), axes=1)
                logits = tf.linalg.matmul(projected, behaviours, transpose_b=True)
        if similarity is not None:
            similarity = tf.cast(similarity, logits.dtype)[..., tf.newaxis, :]
            logits += tf.cast(self.similarity_scale, logits.dtype)[:, tf.newaxis] * similarity
        if mask is None:
            weights = tf.nn.softmax(logits)
        else:
            # [..., K] -> [..., (C,) H, K]
            mask = mask[..., tf.newaxis, tf.newaxis, :] if shared else mask[..., tf.newaxis, :]
            weights = tf.nn.softmax(tf.where(mask, logits, logits.dtype.min))
            weights = tf.where(mask, weights, tf.zeros_like(weights))
        weights = tf.cast(weights, query.dtype)
        if shared:
            interest = tf.einsum("...chk,...khd->...chd", weights, value)
            interest = _merge_last(interest, [self.num_heads * self.key_dim])
        else:
            pooled = tf.tensordot(tf.linalg.matmul(weights, behaviours), value_kernel, axes=1)
            pooled += tf.reduce_sum(weights, axis=-1, keepdims=True) * value_bias
            interest = tf.reduce_sum(pooled * own_units, axis=-2)
        return self.output_projection(interest), weights

    def _scaled(self, query: tf.Tensor) -> tf.Tensor:
        """Queries [..., H, key_dim] as unit vectors times the scale of their head."""
        return _unit(query) * tf.cast(self.cosine_scale, query.dtype)[:, tf.newaxis]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "similarity_bias": self.similarity_bias,
            "cosine": self.cosine,
        }


def behaviours_are_shared(query: tf.Tensor, behaviours: tf.Tensor) -> bool:
    """Whether one history serves all queries of a row, by the ranks of the two."""
    extra = behaviours.shape.rank - query.shape.rank
    if extra not in (0, 1):
        raise ValueError(
            "`behaviours` must have the rank of `query` (shared by its candidates) or one more (a query's own). "
            f"Received: query.shape={query.shape}, behaviours.shape={behaviours.shape}"
        )
    return extra == 0


def _unit(x: tf.Tensor) -> tf.Tensor:
    """Vectors [..., D] of length 1, whose lengths are measured in float32."""
    return tf.cast(tf.math.l2_normalize(tf.cast(x, tf.float32), axis=-1), x.dtype)


def _split_last(x: tf.Tensor, sizes: list[int]) -> tf.Tensor:
    """Splits the last dimension in several of the given sizes."""
    return tf.reshape(x, tf.concat([tf.shape(x)[:-1], sizes], axis=0))


def _merge_last(x: tf.Tensor, size: list[int]) -> tf.Tensor:
    """Merges the last two dimensions into one of the given size."""
    return tf.reshape(x, tf.concat([tf.shape(x)[:-2], size], axis=0))
