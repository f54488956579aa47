"""The tables of fingerprints that units search by."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_eta.features import Features
from keras_eta.interest.base import Tables
from keras_eta.layers.fingerprinted_embedding import FingerprintedEmbedding
from keras_eta.names import scope_name


def make_fingerprinted_tables(features: Features, seed: int, **options: Any) -> dict[str, tf.keras.layers.Embedding]:
    """One `FingerprintedEmbedding` per feature in `features.hashed`, each with planes of its own.

    Args:
        features: the columns, with known vocabulary sizes.
        seed: seed of the first one's planes; the others count on from it.
        **options: of each `FingerprintedEmbedding`.

    Returns:
        Tables by feature name.
    """
    hashed = [feature for feature in features.item_features if feature.name in features.hashed]
    return {
        feature.name: FingerprintedEmbedding(
            feature.num_indices,
            feature.embedding_dim,
            seed=seed + index,
            name=scope_name(feature.name),
            **options,
        )
        for index, feature in enumerate(hashed)
    }


def fingerprinted_tables(features: Features, tables: Tables, unit: str) -> dict[str, FingerprintedEmbedding]:
    """The tables of `features.hashed`, all of which must keep fingerprints.

    Args:
        features: the columns.
        tables: the embedding tables in use, by feature name.
        unit: name of the unit that hashes, for the error.

    Raises:
        ValueError: if a table keeps no fingerprints.
    """
    hashed = {name: tables[name] for name in features.hashed}
    plain = [name for name, table in hashed.items() if not isinstance(table, FingerprintedEmbedding)]
    if plain:
        raise ValueError(f"The tables of {plain} keep no fingerprints, which interest unit {unit!r} searches by.")
    return hashed
