"""A training that learns nothing says so."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import Feature, Features, Ranker
from keras_eta.interest import PoolingInterest


@pytest.mark.parametrize(("rate", "validated"), [(0.0, True), (0.0, False), (0.05, True)])
def test_training_that_learns_nothing_says_so(rate: float, validated: bool, caplog: pytest.LogCaptureFixture) -> None:
    features = Features(item_id=Feature("item_id", vocabulary_size=4, embedding_dim=4), max_history_length=1)
    tf.keras.utils.set_random_seed(0)
    model = Ranker(features, interests=[PoolingInterest()], hidden_units=(4,))
    model.compile(tf.keras.optimizers.Adam(rate))
    items = np.arange(400) % 4 + 2
    columns = {
        "item_id": items.astype("int32"),
        "history_item_id": np.zeros([400, 1], "int32"),
        "history_length": np.zeros([400], "int32"),
    }
    # A quarter of the labels are positive: the entropy of the mean label is .5623.
    batches = tf.data.Dataset.from_tensor_slices((columns, (items == 2).astype("int64"))).batch(100)
    with caplog.at_level(logging.WARNING, logger="keras_eta.models.prior"):
        model.fit(batches, validation_data=batches if validated else None, epochs=2, verbose=0)
    if rate:
        assert not caplog.messages
    else:
        (message,) = caplog.messages
        assert message.startswith(f"The model has learned nothing so far: its best {'val_' * validated}log_loss is ")
        assert "saying the mean label, 0.2500, for every impression gives 0.5623." in message
