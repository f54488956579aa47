"""Planted interests: what depends on what, and whether the stated AUCs hold."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from keras_eta import Feature, Features
from keras_eta.datasets import Impressions, synthetic

from . import reference

SHORT = 16


@pytest.fixture(scope="module")
def data() -> synthetic.Synthetic:
    return synthetic.generate(num_users=6000, history_length=40, impressions_per_user=10, test_fraction=0.5, seed=7)


def clusters_of_history(data: synthetic.Synthetic, impressions: Impressions) -> tuple[np.ndarray, np.ndarray]:
    """The clusters of the behaviours beyond the short history and within it, [n, old] and [n, SHORT]."""
    position = impressions.start[:, None] + np.arange(40)
    clusters = data.item_cluster[impressions.log["item_id"][position] - 1]
    return clusters[:, :-SHORT], clusters[:, -SHORT:]


def candidate_clusters(data: synthetic.Synthetic, impressions: Impressions) -> np.ndarray:
    return data.item_cluster[impressions.columns["item_id"] - 1]


def test_generate_sizes_ids_and_clusters(data):
    assert (len(data.train), len(data.test)) == (30000, 30000)
    assert (data.train.log.num_users, len(data.train.log)) == (6000, 240000)
    assert data.train.history_counts.tolist() == [40] * 30000
    assert sorted(set(data.train.log["item_id"].tolist())) == list(range(1, 1001))
    assert np.bincount(data.item_cluster).tolist() == [50] * 20
    assert data.test.columns["cluster"].tolist() == candidate_clusters(data, data.test).tolist()
    assert data.test.log["cluster"].tolist() == data.item_cluster[data.test.log["item_id"] - 1].tolist()


def test_generate_probability_depends_on_the_behaviours_beyond_the_short_history_only(data):
    for impressions, probability in ((data.train, data.train_probability), (data.test, data.test_probability)):
        old, _ = clusters_of_history(data, impressions)
        among = (old == candidate_clusters(data, impressions)[:, None]).any(axis=1)
        assert probability.tolist() == np.where(among, 0.9, 0.1).tolist()
        assert {len(set(row)) for row in old[:200].tolist()} == {4}
        # Half and half: 15,000 of 30,000, standard deviation 87.
        assert abs(among.sum() - 15000) < 450


def test_generate_test_users_are_new_and_later(data):
    train, test = data.train.columns, data.test.columns

    assert not set(train["user_id"].tolist()) & set(test["user_id"].tolist())
    assert train["timestamp"].max() < test["timestamp"].min()


def test_oracle_auc_is_what_the_probabilities_reach(data):
    assert data.oracle_auc == pytest.approx(0.9)
    # Standard error of an AUC of .9 from 30,000 rows: .002.
    assert reference.auc(data.test.label, data.test_probability) == pytest.approx(0.9, abs=0.008)


@pytest.mark.parametrize(
    ("high", "low", "expected"),
    [
        # a = h / (h + l), b = (1 - h) / (2 - h - l), AUC = (1 + a - b) / 2.
        (0.8, 0.2, 0.8),  # a = .8, b = .2
        (0.6, 0.15, 0.74),  # a = .8, b = .32
        (1.0, 0.0, 1.0),  # a = 1, b = 0
        (0.5, 0.0, 5 / 6),  # a = 1, b = 1/3
    ],
)
def test_oracle_auc_closed_form_and_sample_agree(high, low, expected):
    data = synthetic.generate(
        num_users=4000, history_length=24, high_probability=high, low_probability=low, test_fraction=0.5, seed=1
    )

    assert data.oracle_auc == pytest.approx(expected)
    assert reference.auc(data.test.label, data.test_probability) == pytest.approx(expected, abs=0.012)


def test_short_auc_is_what_statistics_of_the_short_history_reach(data):
    _, recent = clusters_of_history(data, data.test)
    candidate = candidate_clusters(data, data.test)
    matches = (recent == candidate[:, None]).sum(axis=1)
    last_match = np.where(matches > 0, (recent[:, ::-1] == candidate[:, None]).argmax(axis=1), SHORT)
    # The share of clicks of each cluster and each item on the training users.
    train_candidate = candidate_clusters(data, data.train)
    cluster_rate = np.bincount(train_candidate, data.train.label, 20) / np.bincount(train_candidate, minlength=20)
    items = data.train.columns["item_id"]
    item_rate = np.bincount(items, data.train.label, 1001) / np.maximum(np.bincount(items, minlength=1001), 1)

    assert data.short_auc == 0.5
    for score in (matches, last_match, cluster_rate[candidate], item_rate[data.test.columns["item_id"]]):
        # Standard error of an AUC of .5 from 30,000 rows: .0033.
        assert reference.auc(data.test.label, score) == pytest.approx(0.5, abs=0.014)


def test_long_history_with_known_clusters_reaches_the_oracle(data):
    old, recent = clusters_of_history(data, data.test)
    matches = (np.concatenate([old, recent], axis=1) == candidate_clusters(data, data.test)[:, None]).sum(axis=1)

    assert reference.auc(data.test.label, matches) > 0.85


def test_generate_is_seeded():
    small: dict[str, Any] = {"num_users": 10, "num_items": 40, "history_length": 20}
    first, again, other = (synthetic.generate(**small, seed=seed) for seed in (5, 5, 6))

    assert first.train.log["item_id"].tolist() == again.train.log["item_id"].tolist()
    assert first.test.label.tolist() == again.test.label.tolist()
    assert first.train.log["item_id"].tolist() != other.train.log["item_id"].tolist()


def test_features_are_item_ids_over_the_whole_history(data):
    assert data.features(embedding_dim=8) == Features(item_id=Feature("item_id", "int64", 8), max_history_length=40)
    ((inputs, _),) = data.train.to_dataset(data.features(), 2).take(1).as_numpy_iterator()
    assert sorted(inputs) == ["history_item_id", "history_length", "item_id"]
    assert inputs["history_length"].tolist() == [40, 40]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_users": 1}, "`num_users` must be an integer of at least 2. Received: num_users=1"),
        ({"num_items": 19}, "`num_items` must be an integer of at least 20. Received: num_items=19"),
        ({"history_length": 19}, "`history_length` must be an integer of at least 20. Received: history_length=19"),
        ({"num_interests": 20}, "`num_interests` must be below `num_clusters`=20. Received: num_interests=20"),
        (
            {"low_probability": 0.9},
            "`low_probability` and `high_probability` must satisfy 0 <= low < high <= 1. "
            "Received: low_probability=0.9, high_probability=0.9",
        ),
        (
            {"test_fraction": 1.0},
            "`test_fraction` must leave at least one of 4000 users in each part. Received: test_fraction=1.0",
        ),
    ],
)
def test_generate_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        synthetic.generate(**arguments)
