"""Blocks of an encoder-decoder with normalisation before each part."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from keras_eta.layers.cached_attention import CachedAttention


class Memory(NamedTuple):
    """What a decoder block attends to: keys and values [R, S, H, d] of the encoder's output, and bool [R, 1, S]."""

    keys: tf.Tensor
    values: tf.Tensor
    mask: tf.Tensor


class Cache(NamedTuple):
    """Keys and values [R, B, t, H, d] of the tokens that each of B beams has so far."""

    keys: tf.Tensor
    values: tf.Tensor


class _FeedForward(tf.keras.layers.Layer):
    """Two dense layers with a residual connection around them."""

    def __init__(self, units: int, dropout: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm = tf.keras.layers.LayerNormalization(epsilon=1e-6)
        self.inner = tf.keras.layers.Dense(units, activation="relu")
        self.dropout = tf.keras.layers.Dropout(dropout)
        self.units = units

    def build(self, shape: Any) -> None:
        self.outer = tf.keras.layers.Dense(shape[-1])
        super().build(shape)

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        inner = self.dropout(self.inner(self.norm(x)), training=training)
        return x + self.dropout(self.outer(inner), training=training)


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class EncoderBlock(tf.keras.layers.Layer):
    """Self-attention and a feed-forward network.

    Args:
        num_heads: H.
        key_dim: width of a head.
        feed_forward_units: width of the feed-forward network's hidden layer.
        dropout: rate, after each part and of the attention's weights.

    Call arguments:
        x: float [R, S, D].
        mask: bool [R, 1, S], which positions are real.
        training: whether values are dropped.

    Returns:
        float [R, S, D].
    """

    def __init__(
        self, num_heads: int, key_dim: int, feed_forward_units: int, dropout: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._arguments = {"num_heads": num_heads, "key_dim": key_dim, "dropout": dropout}
        self.norm = tf.keras.layers.LayerNormalization(epsilon=1e-6)
        self.attention = tf.keras.layers.MultiHeadAttention(num_heads, key_dim, dropout=dropout)
        self.dropout = tf.keras.layers.Dropout(dropout)
        self.feed_forward = _FeedForward(feed_forward_units, dropout)

    def call(self, x: tf.Tensor, mask: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        normed = self.norm(x)
        attended = self.attention(normed, normed, attention_mask=mask, training=training)
        return self.feed_forward(x + self.dropout(attended, training=training), training=training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._arguments, "feed_forward_units": self.feed_forward.units}


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class DecoderBlock(tf.keras.layers.Layer):
    """Causal self-attention, attention to the encoder's output, and a feed-forward network.

    Args:
        num_heads: H.
        key_dim: width of a head.
        feed_forward_units: width of the feed-forward network's hidden layer.
        dropout: rate, after each part and of the attentions' weights.

    Call arguments:
        x: float [R, T, D], all tokens at once, as in training.
        memory: of `remember`.
        training: whether values are dropped.

    Returns:
        float [R, T, D].
    """

    def __init__(
        self, num_heads: int, key_dim: int, feed_forward_units: int, dropout: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._arguments = {"num_heads": num_heads, "key_dim": key_dim, "dropout": dropout}
        self.self_norm = tf.keras.layers.LayerNormalization(epsilon=1e-6)
        self.self_attention = CachedAttention(num_heads, key_dim, dropout, name="self_attention")
        self.cross_norm = tf.keras.layers.LayerNormalization(epsilon=1e-6)
        self.cross_attention = CachedAttention(num_heads, key_dim, dropout, name="cross_attention")
        self.dropout = tf.keras.layers.Dropout(dropout)
        self.feed_forward = _FeedForward(feed_forward_units, dropout)

    def remember(self, encoded: tf.Tensor, mask: tf.Tensor) -> Memory:
        """What the block attends to of the encoder's output [R, S, D] and its mask [R, 1, S]."""
        return Memory(*self.cross_attention.project(encoded), mask)

    def call(self, x: tf.Tensor, memory: Memory, training: bool | None = None) -> tf.Tensor:
        normed = self.self_norm(x)
        length = tf.shape(x)[1]
        causal = tf.linalg.band_part(tf.ones([1, length, length], tf.bool), -1, 0)
        attended = self.self_attention(normed, *self.self_attention.project(normed), causal, training=training)
        return self._rest(x + self.dropout(attended, training=training), memory, training)

    def step(self, x: tf.Tensor, memory: Memory, cache: Cache | None) -> tuple[tf.Tensor, Cache]:
        """One more token of each beam.

        Args:
            x: float [R, B, D], the token's.
            memory: of `remember`; the same for all beams.
            cache: the tokens before. `None`: there are none.

        Returns:
            float [R, B, D], and the cache with this token.
        """
        normed = self.self_norm(x)
        requests, beams, width = tf.unstack(tf.shape(x))
        new = [part[:, :, tf.newaxis] for part in self.self_attention.project(normed)]
        if cache is not None:
            new = [tf.concat(parts, axis=2) for parts in zip(cache, new, strict=True)]
        of_beams = [tf.reshape(part, tf.concat([[requests * beams], tf.shape(part)[2:]], axis=0)) for part in new]
        attended = self.self_attention(tf.reshape(normed, [requests * beams, 1, width]), *of_beams)
        return self._rest(x + tf.reshape(attended, tf.shape(x)), memory, False), Cache(*new)

    def _rest(self, x: tf.Tensor, memory: Memory, training: bool | None) -> tf.Tensor:
        attended = self.cross_attention(self.cross_norm(x), *memory, training=training)
        return self.feed_forward(x + self.dropout(attended, training=training), training=training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._arguments, "feed_forward_units": self.feed_forward.units}
