"""The embedding tables of a ranker: those that interest units share, and a unit's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from keras_eta.features import Features
from keras_eta.interest.base import InterestUnit
from keras_eta.models.feature_embedding import FeatureEmbedding


def make_embeddings(
    interests: Iterable[InterestUnit], features: Features, regularizer: Any = None
) -> tuple[FeatureEmbedding, dict[str, FeatureEmbedding]]:
    """The shared tables, and by name of unit the tables of those with `own_embeddings`; none is built.

    Args:
        interests: the units, each of which may make tables of its own kind: hashed ones, say.
        features: the columns, with known vocabulary sizes.
        regularizer: of all tables, a Keras regularizer or `None`.
    """
    shared: dict[str, tf.keras.layers.Embedding] = {}
    own: dict[str, FeatureEmbedding] = {}
    for unit in interests:
        tables = unit.make_tables(features, regularizer)
        if unit.own_embeddings:
            name = f"{unit.name}_embeddings"
            own[unit.name] = FeatureEmbedding(features, tables, regularizer, sequence=unit.sequence, name=name)
        else:
            # The first unit that needs a table of its own kind makes it for all.
            shared = {**tables, **shared}
    return FeatureEmbedding(features, shared, regularizer, name="embeddings"), own


class UnitEmbeddings:
    """The part of a ranker that looks columns up.

    Attributes:
        feature_embedding: the tables that units share, and those of users and contexts.
        own_embeddings: by name of unit, the tables of those with tables of their own.
    """

    feature_embedding: FeatureEmbedding
    own_embeddings: dict[str, FeatureEmbedding]

    @property
    def embeddings(self) -> dict[str, tf.keras.layers.Embedding]:
        """The embedding tables that the units share, by feature name."""
        return self.feature_embedding.tables

    def build_embeddings(self) -> None:
        """Creates the tables: before any unit runs, as what a unit keeps beside them is derived from them."""
        for embedding in (self.feature_embedding, *self.own_embeddings.values()):
            if not embedding.built:
                with tf.init_scope():
                    embedding.build()

    def embedding_of(self, unit: InterestUnit) -> FeatureEmbedding:
        """The embedding tables in which the columns of a unit are looked up, built: the shared ones or its own."""
        self.build_embeddings()
        return self.own_embeddings.get(unit.name, self.feature_embedding)

    def embedding_variables(self) -> list[tf.Variable]:
        """The variables of all tables."""
        embeddings = (self.feature_embedding, *self.own_embeddings.values())
        return [table.embeddings for embedding in embeddings for table in embedding.tables.values()]
