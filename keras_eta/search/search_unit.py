"""The interface of search units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from keras_eta.features import Feature, scope_name

Ids = Mapping[str, tf.Tensor]


class Retrieved(NamedTuple):
    """The behaviours that a search unit retrieved for each candidate, in any order.

    Attributes:
        positions: int32 [R, C, K], indices into the history; 0 where `mask` is false.
        mask: bool [R, C, K], false where the history has fewer than K behaviours.
        distances: int32 [R, C, K] Hamming distances; `None` for a unit without such distances.
    """

    positions: tf.Tensor
    mask: tf.Tensor
    distances: tf.Tensor | None = None


class SearchUnit(tf.keras.layers.Layer):
    """Picks the behaviours of a long history that are worth attending to (GSU, the general search unit).

    A unit makes and owns the embeddings that it searches by, so that it can keep more than floats in them.

    Attributes:
        similarity_bias: whether `similarity` gives a term for the attention's logits.
        embeddings: the unit's embedding layers by feature name; filled by `make_embeddings`.
    """

    similarity_bias = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embeddings: dict[str, tf.keras.layers.Embedding] = {}

    def make_embeddings(self, features: Sequence[Feature], regularizer: Any = None) -> None:
        """Creates the embedding of each feature that is searched by.

        Args:
            features: id features with known vocabulary sizes.
            regularizer: of the embedding tables.
        """
        self.embeddings = {
            feature.name: tf.keras.layers.Embedding(
                feature.num_indices,
                feature.embedding_dim,
                embeddings_regularizer=regularizer,
                name=scope_name(feature.name),
            )
            for feature in features
        }

    def call(self, candidate: Ids, history: Ids, mask: tf.Tensor, jit_compile: bool = False) -> Retrieved | None:
        """Searches the history of each row for each of its candidates.

        Args:
            candidate: int32 [R, C] embedding rows of the candidates, by feature name.
            history: int32 [R, L] embedding rows of the behaviours, by feature name, most recent first.
            mask: bool [R, L], false at padding.
            jit_compile: whether XLA may compile the search, where the unit gains by it.

        Returns:
            What was retrieved; `None`: every behaviour.
        """
        raise NotImplementedError

    def similarity(
        self, candidate: Ids, retrieved: Ids, distances: tf.Tensor | None, training: bool
    ) -> tf.Tensor | None:
        """Similarity of each retrieved behaviour to its candidate, for the attention's logits.

        Args:
            candidate: float32 [R, C, D] embeddings, by feature name.
            retrieved: float32 [R, C, K, D] embeddings, by feature name; read in training only.
            distances: as the unit returned them.
            training: whether gradients must flow.

        Returns:
            float32 [R, C, K], or `None` without a similarity bias.
        """
        return None

    def refresh(self) -> None:
        """Derives whatever the unit keeps beside its embeddings from them again; most units keep nothing."""

    def after_step(self, step: tf.Tensor) -> None:
        """Called by `Ranker.train_step` with the number of steps taken; most units do nothing."""
