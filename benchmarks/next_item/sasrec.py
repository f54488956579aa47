"""SASRec with the cross-entropy over all items, to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from keras_eta import Feature, FeatureLookup, Features
from keras_eta.columns import ITEM_ID
from keras_eta.datasets.impressions import Impressions
from keras_eta.layers.transformer_blocks import EncoderBlock
from keras_eta.models.optimizers import EmbeddingsAndDense
from keras_eta.models.trainable import TrainableModel

Inputs = Mapping[str, tf.Tensor]


def windows(impressions: Impressions, length: int) -> Impressions:
    """Of each user the last impression and, from it back, every `length`-th: their histories cover the log once."""
    counts = pd.Series(impressions.history_counts)
    back = counts.groupby(impressions.start).transform("max") - counts
    return impressions[np.flatnonzero(back % length == 0)]


class SASRec(TrainableModel):
    """Self-attention over the last items; each position predicts the next one among all.

    A row of training is a history and the item after it, and the loss is the mean over all positions of all rows. So
    one row for every `max_history_length` items of a user is enough: see `windows`. The item embeddings are the
    output's weights as well.

    Args:
        item_ids: all items [items].
        max_history_length: items that are read.
        dim: width of all vectors.
        num_layers: of self-attention.
        num_heads: of each.
        dropout: rate.

    Call arguments:
        inputs: `history_item_id` [N, L] rows, most recent first, and `history_length` [N].

    Returns:
        float32 [N, items] logits.

    Reference:
        Kang and McAuley, "Self-Attentive Sequential Recommendation", arXiv 1808.09781; Klenitskiy and Vasilev, "Turning
        Dross Into Gold Loss", RecSys 2023, for the loss.
    """

    def __init__(
        self,
        item_ids: np.ndarray,
        max_history_length: int = 50,
        dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(name="sasrec")
        dtype = "string" if item_ids.dtype == object else "int64"
        self.lookup = FeatureLookup(Features(Feature(ITEM_ID, dtype), max_history_length=max_history_length))
        self.lookup.set_vocabulary(ITEM_ID, item_ids)
        self.items = tf.keras.layers.Embedding(len(item_ids) + 2, dim)
        self.positions = tf.keras.layers.Embedding(max_history_length, dim)
        self.blocks = [EncoderBlock(num_heads, dim // num_heads, 4 * dim, dropout) for _ in range(num_layers)]
        self.norm = tf.keras.layers.LayerNormalization(epsilon=1e-6)
        self.dropout = tf.keras.layers.Dropout(dropout)
        # Embeddings begin small; without it all logits would begin at 0.
        self.scale = float(np.sqrt(dim))

    @property
    def features(self) -> Features:
        """The columns that the model reads."""
        return self.lookup.features

    def build(self, input_shape: Any = None) -> None:
        self.call({"history_item_id": tf.ones([1, 1], tf.int32), "history_length": tf.ones([1], tf.int32)})
        self.built = True

    def call(self, inputs: Inputs, training: bool | None = None) -> tf.Tensor:
        return self._logits(self._encoded(inputs, training)[:, 0])

    def _logits(self, encoded: tf.Tensor) -> tf.Tensor:
        return tf.matmul(encoded, self.items.embeddings[2:], transpose_b=True)

    def _encoded(self, inputs: Inputs, training: bool | None) -> tf.Tensor:
        """What each position [N, L, D] knows of itself and of what was before it."""
        rows = inputs["history_item_id"]
        length = tf.shape(rows)[1]
        x = self.scale * self.items(rows) + self.positions(tf.range(length))
        x = self.dropout(x, training=training)
        # The most recent one is at 0, and may look at all before it: at those behind it in the row.
        real = tf.sequence_mask(tf.reshape(inputs["history_length"], [-1]), length)[:, tf.newaxis]
        causal = tf.linalg.band_part(tf.ones([1, length, length], tf.bool), 0, -1)
        # What is padding may look at itself, as a softmax needs something.
        mask = (real & causal) | tf.eye(length, batch_shape=[1], dtype=tf.bool)
        for block in self.blocks:
            x = block(x, mask, training=training)
        return self.norm(x)

    def compute_losses(self, inputs: tuple[Any, ...], training: bool = False) -> dict[str, tf.Tensor]:
        features, *_ = inputs
        history = features["history_item_id"]
        # Most recent first: what follows a behaviour stands before it.
        targets = tf.concat([tf.reshape(features[ITEM_ID], [-1, 1]), history[:, :-1]], axis=1)
        real = tf.sequence_mask(tf.reshape(features["history_length"], [-1]), tf.shape(history)[1])
        if not training:
            # What the model is judged by is what follows the whole history.
            real &= tf.range(tf.shape(history)[1]) == 0
        logits = self._logits(tf.boolean_mask(self._encoded(features, training), real))
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.boolean_mask(targets, real) - 2, logits)
        return {"loss": tf.reduce_mean(losses)}

    def default_optimizer(self, embedding_learning_rate: Any = 1e-3, dense_learning_rate: Any = 1e-3) -> Any:
        embeddings, dense = map(tf.keras.optimizers.Adam, (embedding_learning_rate, dense_learning_rate))
        return EmbeddingsAndDense((embeddings, self.embedding_variables), (dense, self.dense_variables))

    def embedding_variables(self) -> list[tf.Variable]:
        return [self.items.embeddings, self.positions.embeddings]
