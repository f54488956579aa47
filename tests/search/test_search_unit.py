from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import Feature
from keras_eta.search import FullSearch, SearchUnit


def test_base_class_makes_plain_embeddings_and_searches_nothing() -> None:
    unit = SearchUnit()
    unit.make_embeddings([Feature("item_id", vocabulary_size=5, embedding_dim=3)], tf.keras.regularizers.L2(0.5))
    layer = unit.embeddings["item_id"]
    layer.build(None)
    assert layer.embeddings.shape == (7, 3)
    np.testing.assert_allclose(layer.losses, [0.5 * np.sum(layer.embeddings.numpy() ** 2)], rtol=1e-5)
    with pytest.raises(NotImplementedError):
        unit({"item_id": tf.zeros([1, 1], tf.int32)}, {"item_id": tf.zeros([1, 1], tf.int32)}, tf.ones([1, 1], tf.bool))
    assert unit.similarity({}, {}, None, training=True) is None


def test_full_search_retrieves_everything() -> None:
    config = tf.keras.utils.serialize_keras_object(FullSearch())
    assert config["registered_name"] == "keras_eta>FullSearch"
    unit = tf.keras.utils.deserialize_keras_object(config)
    assert isinstance(unit, FullSearch)
    assert not unit.similarity_bias
    ids = {"item_id": tf.zeros([1, 1], tf.int32)}
    assert unit(ids, ids, tf.ones([1, 1], tf.bool)) is None
