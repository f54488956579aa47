"""Float features are read in standard deviations of the training data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import Feature, Features, Ranker
from keras_eta.interest import PoolingInterest


def _model(**scale: Any) -> Ranker:
    features = Features(
        item_id=Feature("item_id", vocabulary_size=5, embedding_dim=2),
        item_attributes=(Feature("price", "float32", **scale),),
        max_history_length=2,
    )
    tf.keras.utils.set_random_seed(0)
    model = Ranker(features, interests=[PoolingInterest()], hidden_units=(4,))
    model.build()
    return model


def _batch(price: list[float], behaviours: list[float]) -> dict[str, tf.Tensor]:
    return {
        "item_id": tf.constant([2, 3]),
        "price": tf.constant(price),
        "history_item_id": tf.constant([[4, 5], [6, 0]]),
        "history_price": tf.constant([behaviours[:2], behaviours[2:]]),
        "history_length": tf.constant([2, 1]),
    }


def test_candidates_and_behaviours_are_scaled_alike() -> None:
    scaled, plain = _model(mean=200.0, std=50.0), _model()
    expected = plain(_batch([-1.0, 2.0], [0.5, 0.0, 4.0, 9.0]))
    np.testing.assert_allclose(scaled(_batch([150.0, 300.0], [225.0, 200.0, 400.0, 7.0])), expected, rtol=1e-5)
    again = Ranker.from_config(scaled.get_config())
    again.build()
    again.set_weights(scaled.get_weights())
    np.testing.assert_allclose(again(_batch([150.0, 300.0], [225.0, 200.0, 400.0, 7.0])), expected, rtol=1e-5)


def test_outliers_are_cut_off_at_ten_deviations() -> None:
    model = _model(mean=2.0, std=0.5)
    expected = model(_batch([7.0, -3.0], [2.0, 2.0, 7.0, 0.0]))
    np.testing.assert_array_equal(model(_batch([1e30, -1e6], [2.0, 2.0, 7.01, 0.0])), expected)
    assert (model(_batch([6.9, -2.9], [2.0, 2.0, 7.0, 0.0])).numpy() != expected.numpy()).all()


def test_floats_are_scaled_before_they_are_rounded_to_16_bits() -> None:
    """In bfloat16 1,001.5 is 1,000."""
    policy = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = _model(mean=1000.0, std=1.0)
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)
    batch = _batch([1001.5, 998.5], [1000.0, 1000.0, 1001.5, 0.0])
    scored = model.score(model.batch_columns(batch)).logits[:, 0]
    np.testing.assert_array_equal(model(batch), scored)
    assert (model(batch).numpy() != model(_batch([1000.0] * 2, [1000.0] * 4)).numpy()).all()


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ({"mean": 1.0}, "mean=1.0, std=None, dtype='float32'"),
        ({"mean": float("nan"), "std": 1.0}, "mean=nan, std=1.0, dtype='float32'"),
        ({"mean": 0.0, "std": -1.0}, "mean=0.0, std=-1.0, dtype='float32'"),
        ({"mean": 0.0, "std": 1.0, "dtype": "int64"}, "mean=0.0, std=1.0, dtype='int64'"),
    ],
)
def test_refuses_scales_that_are_none(arguments: dict[str, Any], received: str) -> None:
    message = (
        "`mean` and `std` of feature 'price' must be finite numbers, `std` above 0, and the feature a float32, or both "
        f"None. Received: {received}"
    )
    with pytest.raises(ValueError, match=message):
        Feature("price", **{"dtype": "float32", **arguments})
