"""Float features whose values may be missing, from the log to an exported model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import ETA, Feature, FeatureLookup, Features
from keras_eta.datasets import Impressions, Interactions
from keras_eta.export import export_model
from keras_eta.models.feature_embedding import FeatureEmbedding

NAN = float("nan")
LOG = {
    "user_id": [1, 1, 1, 2, 2, 2],
    "item_id": [1, 2, 3, 2, 1, 3],
    "timestamp": [1, 2, 3, 1, 2, 3],
    "price": [2.0, None, 6.0, NAN, "", 4],
}


def _features(**price: Any) -> Features:
    return Features(
        item_id=Feature("item_id", embedding_dim=4),
        item_attributes=(Feature("price", "float32", **price),),
        max_history_length=3,
    )


def _impressions() -> Impressions:
    log = Interactions.from_columns(LOG, optional=["price"])
    return Impressions.from_interactions(log, label=lambda log: log["item_id"] % 2, min_history=0)


def test_no_row_is_left_out_for_a_missing_value(capsys: pytest.CaptureFixture[str]) -> None:
    log = Interactions.from_columns(LOG, optional=["price"])
    np.testing.assert_array_equal(log["price"], np.array([2, NAN, 6, NAN, NAN, 4], np.float32))
    assert capsys.readouterr().out == ""
    price = ["cheap", None, np.inf, 1e39, 3, NAN]
    log = Interactions.from_columns({**LOG, "price": price}, optional=["price"])
    assert "dropped: 1 non-numeric price (line 1), 2 non-finite price (lines 3, 4)" in str(log.report)
    np.testing.assert_array_equal(log["price"], np.array([NAN, 3, NAN], np.float32))


@pytest.mark.parametrize("name", ["item_id", "timestamp", "quantity"])
def test_ids_and_integers_are_not_optional(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"`optional` must name columns of floats. Received: ['{name}']")):
        Interactions.from_columns({**LOG, "quantity": [1] * 6}, integers=["quantity"], optional=[name])


@pytest.mark.parametrize("arguments", [{"optional": 1}, {"optional": True, "dtype": "int64"}])
def test_refuses_optional_features_that_can_not_be(arguments: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match="`optional` of feature 'price' must be True or False, and True only of a float"
    ):
        Feature("price", **{"dtype": "float32", **arguments})


def test_a_feature_that_is_not_optional_refuses_a_column_with_gaps() -> None:
    impressions = _impressions()
    lookup = FeatureLookup(_features(mean=0.0, std=1.0))
    lookup.adapt({"item_id": [1, 2, 3]})
    message = "Feature 'price' is not optional, but the column of the impressions lacks 3 values. Make it a Feature"
    with pytest.raises(ValueError, match=re.escape(message)):
        impressions.to_dataset(lookup.features, 6, lookup=lookup)


def test_scales_are_learned_of_the_values_that_are_there() -> None:
    lookup = FeatureLookup(_features(optional=True))
    lookup.adapt(_impressions().past_columns())
    price = lookup.features.item_attributes[0]
    assert (price.mean, price.std) == pytest.approx((4.0, np.std([2, 6, 4])))
    lookup.adapt(_impressions().to_dataset(lookup.features, 6))
    with pytest.raises(ValueError, match="`data` holds no value of feature 'price'"):
        FeatureLookup(_features(optional=True)).adapt({"item_id": [1, 2], "price": [NAN, NAN]})
    with pytest.raises(ValueError, match="Received: 1 that are not, of 1, the first of them inf"):
        FeatureLookup(_features(optional=True)).adapt({"item_id": [1, 2], "price": [NAN, np.inf]})


def test_the_model_reads_the_mean_and_that_a_value_is_missing() -> None:
    features = _features(optional=True, mean=4.0, std=2.0).with_vocabulary_sizes({"item_id": 3})
    embedded = FeatureEmbedding(features, {}).embed({"price": tf.constant([[2.0, NAN, 4.0]])})["price"]
    np.testing.assert_array_equal(embedded, [[[-1, 0], [0, 1], [0, 0]]])
    unscaled = _features(optional=True).with_vocabulary_sizes({"item_id": 3})
    embedded = FeatureEmbedding(unscaled, {}).embed({"price": tf.constant([7.0, NAN])})["price"]
    np.testing.assert_array_equal(embedded, [[7, 0], [0, 1]])


def test_training_and_export_with_missing_values(tmp_path: Path) -> None:
    lookup = FeatureLookup(_features(optional=True))
    impressions = _impressions()
    lookup.adapt(impressions.past_columns())
    tf.keras.utils.set_random_seed(0)
    model = ETA(lookup=lookup, top_k=2, hidden_units=(8,))
    model.compile()
    history = model.fit(impressions.to_dataset(lookup.features, 3, lookup=lookup), epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert all(np.isfinite(variable).all() for variable in model.get_weights())
    logits = model.predict(impressions.to_dataset(lookup.features, 6, lookup=lookup), verbose=0)

    signatures = tf.saved_model.load(str(export_model(model, tmp_path, warmup=False))).signatures
    raw = next(iter(impressions.to_dataset(lookup.features, 6)))[0]
    assert np.isnan(raw["price"]).any()
    assert np.isnan(raw["history_price"]).any()
    probability = signatures["serving_default"](**raw)["probability"]
    np.testing.assert_allclose(probability, tf.sigmoid(logits), rtol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape("`price` must be finite. Received:")):
        signatures["serving_default"](**{**raw, "price": tf.where(tf.math.is_nan(raw["price"]), np.inf, raw["price"])})
