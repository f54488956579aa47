"""Units that attend to behaviours."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_eta.features import Features
from keras_eta.interest.base import Columns, InterestUnit, Tables
from keras_eta.layers.target_attention import TargetAttention
from keras_eta.validation import check_positive_integers


class AttentionUnit(InterestUnit):
    """The common part of units that attend to behaviours, all of them or the ones they retrieve.

    Args:
        num_heads: heads of the attention.
        key_dim: width of a head. `None`: the candidate's width divided by the heads, rounded up.
        cosine: whether the attention's logits are scaled cosines; see `TargetAttention`.
        attention: layer in place of `TargetAttention(num_heads, key_dim)`, e.g. `ActivationUnit()`, DIN's.
        **kwargs: as `InterestUnit`.

    Raises:
        ValueError: if an argument is out of its range, or `cosine` is set beside an `attention`.
    """

    explains = True
    similarity_bias = False

    def __init__(
        self,
        *,
        num_heads: int = 2,
        key_dim: int | None = None,
        cosine: bool = False,
        attention: tf.keras.layers.Layer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_positive_integers(num_heads=num_heads, **({} if key_dim is None else {"key_dim": key_dim}))
        if cosine and attention is not None:
            raise ValueError(
                "`cosine` is for the attention that the unit makes itself; give it to `attention` instead. "
                f"Received: cosine={cosine}, attention={attention!r}"
            )
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.cosine = cosine
        self._given_attention = attention
        self.attention: Any = attention

    def bind(self, features: Features, tables: Tables) -> None:
        super().bind(features, tables)
        self._candidate_width = sum(feature.width for feature in features.item_features)
        if self.attention is None:
            key_dim = self.key_dim or -(-self._candidate_width // self.num_heads)
            self.attention = TargetAttention(
                self.num_heads, key_dim, self.similarity_bias, self.cosine, name="attention"
            )
        if self.attention.similarity_bias != self.similarity_bias:
            raise ValueError(
                "`attention` and its unit must agree on the similarity bias. Received: "
                f"attention.similarity_bias={self.attention.similarity_bias}, "
                f"{self.name}.similarity_bias={self.similarity_bias}"
            )

    def build(self, input_shape: Any = None) -> None:
        if not self.attention.built:
            # Keras scopes names only where it builds by itself; H5 files need them to differ.
            with tf.name_scope(self.attention.name):
                self.attention.build([None, self._candidate_width])
        super().build(input_shape)

    def attend(
        self, candidate: Columns, behaviours: Columns, similarity: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Interest vectors [R, C, D] and attention weights [R, C, H, K] of behaviours [R, K] or [R, C, K]."""
        return self.attention.attend(candidate.vectors, behaviours.vectors, behaviours.mask, similarity)

    def get_config(self) -> dict[str, Any]:
        given = self._given_attention
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "cosine": self.cosine,
            "attention": None if given is None else tf.keras.utils.serialize_keras_object(given),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        if config.get("attention") is not None:
            config = {**config, "attention": tf.keras.utils.deserialize_keras_object(config["attention"])}
        return cls(**config)
