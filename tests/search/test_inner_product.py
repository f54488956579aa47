from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import Feature
from keras_eta.search import InnerProductSearch, Retrieved
from tests import reference

ITEM = Feature("item_id", vocabulary_size=28, embedding_dim=6)
CATEGORY = Feature("category_id", vocabulary_size=4, embedding_dim=3)


def _unit(*features: Feature, top_k: int) -> InnerProductSearch:
    unit = InnerProductSearch(top_k)
    unit.make_embeddings(features)
    rng = np.random.default_rng(0)
    for layer in unit.embeddings.values():
        layer.build(None)
        # Small integers: exact sums, and many ties.
        layer.embeddings.assign(rng.integers(-1, 2, layer.embeddings.shape).astype(np.float32))
    return unit


@pytest.mark.parametrize("features", [(ITEM,), (ITEM, CATEGORY)], ids=["item", "item and category"])
@pytest.mark.parametrize(
    ("rows", "candidates", "length", "top_k"),
    [(3, 5, 17, 4), (3, 1, 17, 4), (1, 5, 2, 4), (2, 2, 0, 3), (0, 2, 5, 3), (4, 1, 30, 30)],
)
def test_search_equals_reference(
    features: tuple[Feature, ...], rows: int, candidates: int, length: int, top_k: int
) -> None:
    unit, rng = _unit(*features, top_k=top_k), np.random.default_rng(1)
    candidate, history = (
        {feature.name: rng.integers(1, feature.num_indices, (rows, size)).astype(np.int32) for feature in features}
        for size in (candidates, length)
    )
    mask = np.arange(length) < np.array([length, 0, min(1, length), length // 2])[:rows, np.newaxis]
    retrieved = unit(candidate, history, tf.constant(mask))
    assert isinstance(retrieved, Retrieved)
    assert retrieved.distances is None
    assert retrieved.positions.shape == (rows, candidates, top_k)
    for row in range(rows):
        vectors = [
            np.concatenate([layer.embeddings.numpy()[ids[name][row]] for name, layer in unit.embeddings.items()], -1)
            for ids in (candidate, history)
        ]
        positions, found = reference.inner_product_top_k(vectors[0], vectors[1], top_k, mask[row])
        np.testing.assert_array_equal(retrieved.positions[row], positions, strict=True)
        np.testing.assert_array_equal(retrieved.mask[row], found, strict=True)


def test_negative_products_rank_above_padding() -> None:
    unit = _unit(ITEM, top_k=2)
    layer = unit.embeddings["item_id"]
    layer.embeddings.assign(tf.ones_like(layer.embeddings))
    layer.embeddings[3].assign(tf.fill([6], -1e30))
    history = {"item_id": np.array([[1, 3]], np.int32)}
    retrieved = unit({"item_id": np.array([[1]], np.int32)}, history, tf.constant([[False, True]]))
    np.testing.assert_array_equal(retrieved.positions, [[[1, 0]]])
    np.testing.assert_array_equal(retrieved.mask, [[[True, False]]])


def test_config_holds_every_argument() -> None:
    config = tf.keras.utils.serialize_keras_object(InnerProductSearch(3))
    assert config["registered_name"] == "keras_eta>InnerProductSearch"
    assert tf.keras.utils.deserialize_keras_object(config).top_k == 3


@pytest.mark.parametrize("top_k", [0, 1.0, True, None])
def test_inner_product_search_refuses_a_bad_top_k(top_k: Any) -> None:
    message = f"`top_k` must be a positive integer. Received: top_k={top_k!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        InnerProductSearch(top_k)
