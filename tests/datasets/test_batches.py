"""What the sizes of batches do to a training."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import Feature, FeatureLookup, Features, Ranker
from keras_eta.datasets import Impressions, Interactions
from keras_eta.interest import RecentInterest

BATCH_SIZE = 512


@pytest.mark.parametrize("remainder", [1, 256])
def test_whatever_is_left_over_the_mean_probability_is_the_labels(remainder: int) -> None:
    rows = 12 * BATCH_SIZE + remainder
    rng = np.random.default_rng(remainder)
    item = rng.integers(0, 2_000, rows)
    log = Interactions.from_columns(
        {"user_id": rng.integers(0, 50, rows), "item_id": item, "timestamp": np.arange(rows)}
    )
    impressions = Impressions.from_interactions(log, lambda log: log["item_id"] * 7 % 10 < 5, min_history=0)
    features = Features(item_id=Feature("item_id", embedding_dim=16), max_history_length=16)
    lookup = FeatureLookup(features)
    lookup.adapt({"item_id": item})
    tf.keras.utils.set_random_seed(0)
    model = Ranker(lookup=lookup, interests=[RecentInterest(16)], hidden_units=(64, 32))
    model.compile()
    model.fit(impressions.to_dataset(features, BATCH_SIZE, lookup=lookup, shuffle=True, seed=0), epochs=3, verbose=0)
    # With one last batch of what is left over it is .014 off at a remainder of 1.
    logits = model.predict(impressions.to_dataset(features, BATCH_SIZE, lookup=lookup), verbose=0)
    assert np.mean(1 / (1 + np.exp(-logits))) == pytest.approx(impressions.label.mean(), abs=0.006)
