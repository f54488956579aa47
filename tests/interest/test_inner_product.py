from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import Feature, Features
from keras_eta.interest import Columns, InnerProductInterest, Retrieved
from tests import reference

Tables = dict[str, np.ndarray]

ITEM = Feature("item_id", vocabulary_size=28, embedding_dim=6)
CATEGORY = Feature("category_id", vocabulary_size=4, embedding_dim=3)


def _unit(*features: Feature, top_k: int) -> tuple[InnerProductInterest, Tables]:
    rng = np.random.default_rng(0)
    tables = {
        # Small integers: exact sums, and many ties.
        feature.name: rng.integers(-1, 2, (feature.num_indices, feature.embedding_dim)).astype(np.float32)
        for feature in features
    }
    unit = InnerProductInterest(top_k)
    hashed = tuple(tables)
    unit.bind(Features(item_id=features[0], item_attributes=features[1:], hashed=hashed), {})
    return unit, tables


def _columns(tables: Tables, ids: dict[str, np.ndarray], mask: np.ndarray | None = None) -> Columns:
    return Columns(ids, mask, lambda ids: {name: tf.gather(table, ids[name]) for name, table in tables.items()})


@pytest.mark.parametrize("features", [(ITEM,), (ITEM, CATEGORY)], ids=["item", "item and category"])
@pytest.mark.parametrize(
    ("rows", "candidates", "length", "top_k"),
    [(3, 5, 17, 4), (3, 1, 17, 4), (1, 5, 2, 4), (2, 2, 0, 3), (0, 2, 5, 3), (4, 1, 30, 30)],
)
def test_search_equals_reference(
    features: tuple[Feature, ...], rows: int, candidates: int, length: int, top_k: int
) -> None:
    (unit, tables), rng = _unit(*features, top_k=top_k), np.random.default_rng(1)
    candidate, history = (
        {feature.name: rng.integers(1, feature.num_indices, (rows, size)).astype(np.int32) for feature in features}
        for size in (candidates, length)
    )
    mask = np.arange(length) < np.array([length, 0, min(1, length), length // 2])[:rows, np.newaxis]
    retrieved = unit.search(_columns(tables, candidate), _columns(tables, history, mask), False)
    assert isinstance(retrieved, Retrieved)
    assert retrieved.positions.shape == (rows, candidates, top_k)
    for row in range(rows):
        vectors = [
            np.concatenate([table[ids[name][row]] for name, table in tables.items()], -1)
            for ids in (candidate, history)
        ]
        positions, found = reference.inner_product_top_k(vectors[0], vectors[1], top_k, mask[row])
        np.testing.assert_array_equal(retrieved.positions[row], positions, strict=True)
        np.testing.assert_array_equal(retrieved.mask[row], found, strict=True)
        for c in range(candidates):
            products = [float(vectors[0][c] @ vectors[1][i]) for i in positions[c][found[c]]]
            np.testing.assert_array_equal(retrieved.scores[row, c][found[c]], products)


def test_negative_products_rank_above_padding() -> None:
    unit, _ = _unit(ITEM, top_k=2)
    tables = {"item_id": np.ones([30, 6], np.float32)}
    tables["item_id"][3] = -1e30
    history = {"item_id": np.array([[1, 3]], np.int32)}
    candidate = _columns(tables, {"item_id": np.array([[1]], np.int32)})
    retrieved = unit.search(candidate, _columns(tables, history, np.array([[False, True]])), False)
    np.testing.assert_array_equal(retrieved.positions, [[[1, 0]]])
    np.testing.assert_array_equal(retrieved.mask, [[[True, False]]])


def test_config_holds_every_argument() -> None:
    config = tf.keras.utils.serialize_keras_object(InnerProductInterest(3, normalize=True, index_period=2))
    assert config["registered_name"] == "keras_eta>InnerProductInterest"
    unit = tf.keras.utils.deserialize_keras_object(config)
    assert (unit.top_k, unit.normalize, unit.index_period) == (3, True, 2)


@pytest.mark.parametrize("top_k", [0, 1.0, True, None])
def test_inner_product_interest_refuses_a_bad_top_k(top_k: Any) -> None:
    message = f"`top_k` must be a positive integer. Received: top_k={top_k!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        InnerProductInterest(top_k)
