"""Ids that training takes for unknown ones: how many, which, when, and what it is good for."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import Feature, Features, Ranker
from keras_eta.interest import RecentInterest
from keras_eta.models.id_dropout import IdDropout
from tests.paper import paper_eta

ROWS = 4_000
FEATURES = Features(
    item_id=Feature("item_id", vocabulary_size=20, embedding_dim=4, num_oov_indices=3),
    item_attributes=(Feature("price", "float32"), Feature("tags", vocabulary_size=9, embedding_dim=2, max_values=2)),
    user=(Feature("user_id", vocabulary_size=30, embedding_dim=4),),
    max_history_length=3,
)


def _columns() -> dict[str, tf.Tensor]:
    return {
        "item_id": tf.constant(np.full([ROWS, 1], 7), tf.int32),
        "user_id": tf.constant(np.full([ROWS], 9), tf.int32),
        "price": tf.ones([ROWS, 1]),
        "tags": tf.constant(np.tile([[[5, 0]]], [ROWS, 1, 1]), tf.int32),
        "history_item_id": tf.constant(np.full([ROWS, 3], 8), tf.int32),
    }


def _layer(rate: Any) -> IdDropout:
    layer = IdDropout(FEATURES, rate)
    layer.build()
    return layer


def test_replaces_a_share_of_the_ids_of_rows_by_any_bucket_and_nothing_else() -> None:
    columns = _columns()
    replaced = {name: np.asarray(column) for name, column in _layer(0.3)(columns).items()}
    items, users, tags = replaced["item_id"][:, 0], replaced["user_id"], replaced["tags"][:, 0]
    # Three standard deviations of a share of 4,000 rows are .022.
    assert abs((items != 7).mean() - 0.3) < 0.022
    assert abs((users != 9).mean() - 0.3) < 0.022
    assert abs((tags[:, 0] != 5).mean() - 0.3) < 0.022
    # Whether one id of a row is replaced says nothing of the others: .09 of the rows lose both, by .014.
    assert abs(((items != 7) & (users != 9)).mean() - 0.09) < 0.014
    buckets = [(items == bucket).mean() for bucket in (1, 2, 3)]
    np.testing.assert_allclose(buckets, 0.1, atol=0.015)
    assert set(items) == {1, 2, 3, 7}
    assert set(users) == {1, 9}
    assert not tags[:, 1].any(), "padding is no id"
    for name in ("price", "history_item_id"):
        np.testing.assert_array_equal(replaced[name], columns[name])


def test_rates_by_feature_and_none_at_all() -> None:
    columns = _columns()
    of_users = _layer({"user_id": 0.5})(columns)
    assert abs((of_users["user_id"].numpy() != 9).mean() - 0.5) < 0.024
    np.testing.assert_array_equal(of_users["item_id"], columns["item_id"])
    layer = _layer(0)
    for name, column in layer(columns).items():
        np.testing.assert_array_equal(column, columns[name])
    assert not layer.weights


def test_draws_follow_from_the_number_of_steps() -> None:
    first, other = _layer(0.5), _layer(0.5)
    draws = [first(_columns())["item_id"].numpy() for _ in range(2)]
    assert (draws[0] != draws[1]).any()
    other.steps.assign(1)
    np.testing.assert_array_equal(other(_columns())["item_id"], draws[1])


@pytest.mark.parametrize("rate", [1, -0.1, "0.1", float("nan"), {"item_id": 1.0}, {"price": 0.1}, {"shop": 0.1}])
def test_refuses_rates_out_of_range_and_features_without_ids(rate: Any) -> None:
    text = (
        "`id_dropout` must be a number from 0 to below 1, or such numbers by name of an id feature of users, contexts "
        f"or items, which are ['user_id', 'item_id', 'tags']. Received: id_dropout={rate!r}"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        Ranker(FEATURES, interests=[RecentInterest(2)], id_dropout=rate)


def test_only_training_drops_ids() -> None:
    features = Features(item_id=Feature("item_id", vocabulary_size=20, embedding_dim=4), max_history_length=3)
    tf.keras.utils.set_random_seed(0)
    model = paper_eta(features, top_k=2, id_dropout=0.9)
    batch = {
        "item_id": tf.constant(np.arange(2, 18), tf.int32),
        "history_item_id": tf.constant(np.arange(48).reshape(16, 3) % 19 + 2, tf.int32),
        "history_length": tf.fill([16], 3),
    }
    evaluated, trained = model(batch), model(batch, training=True)
    np.testing.assert_array_equal(model(batch), evaluated)
    assert (trained.numpy() != evaluated.numpy()).mean() > 0.5
    again = Ranker.from_config(
        Ranker(features, interests=[RecentInterest(2)], id_dropout={"item_id": 0.2}).get_config()
    )
    assert again.id_dropout.rate == {"item_id": 0.2}


@pytest.mark.parametrize(("rate", "learns"), [(0.0, False), (0.05, True)])
def test_what_a_model_says_of_unknown_items_is_near_the_mean_of_the_labels(rate: float, learns: bool) -> None:
    features = Features(item_id=Feature("item_id", vocabulary_size=20, embedding_dim=8), max_history_length=1)
    rng = np.random.default_rng(0)
    items = rng.integers(2, 22, 6_000).astype("int32")
    # Three quarters of the labels are positive, and the item tells which.
    label = ((items % 4 > 0) ^ (rng.random(6_000) < 0.02)).astype("int64")
    columns = {
        "item_id": items,
        "history_item_id": np.zeros([6_000, 1], "int32"),
        "history_length": np.zeros([6_000], "int32"),
    }
    tf.keras.utils.set_random_seed(0)
    model = Ranker(features, interests=[RecentInterest(1)], hidden_units=(8,), id_dropout=rate)
    model.compile(tf.keras.optimizers.Adam(0.01))
    # Where an untrained row begins decides what it says: make it something.
    model.build()
    model.embeddings["item_id"].embeddings[1].assign(tf.ones([8]))
    model.fit(tf.data.Dataset.from_tensor_slices((columns, label)).batch(100), epochs=5, verbose=0)
    unknown = {**columns, "item_id": np.ones_like(items)}
    logit = float(model(unknown)[0])
    off = abs(1 / (1 + np.exp(-logit)) - label.mean())
    assert (off < 0.1) == learns, off
