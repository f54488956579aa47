"""Baselines that count: scores by hand, and ties."""

from __future__ import annotations

import re

import numpy as np
import pytest

from keras_eta import Feature, Features
from keras_eta.datasets import Impressions, Interactions, baseline_scores
from keras_eta.datasets.counting import BASELINES, counting_scores, repeats_and_recency


def test_repeats_and_recency_by_hand() -> None:
    # The third history ends after one behaviour, the fourth is empty.
    histories = np.array([[7, 8, 7], [9, 9, 7], [8, 7, 7], [7, 7, 7]])
    repeats, recency = repeats_and_recency(np.full(4, 7), histories, np.array([3, 3, 1, 0]))
    assert repeats.tolist() == [2, 1, 0, 0]
    assert recency.tolist() == [1, 1 / 3, 0, 0]


def test_repeats_of_bytes_and_of_histories_without_columns() -> None:
    candidates = np.array([b"a\0", b"b"], object)
    repeats, recency = repeats_and_recency(candidates, np.array([[b"a"], [b"b"]], object), np.array([1, 1]))
    assert (repeats.tolist(), recency.tolist()) == ([0, 1], [0, 1])
    repeats, recency = repeats_and_recency(candidates, np.empty([2, 0], object), np.array([0, 0]))
    assert (repeats.tolist(), recency.tolist()) == ([0, 0], [0, 0])


def test_scores_by_hand() -> None:
    scores = counting_scores([0, 3, 40], [0, 3, 90], 0.25, [1, 0, 1], [0.5, 0, 1])
    assert tuple(scores) == BASELINES
    assert scores["popularity"].tolist() == [0, 3, 40]
    np.testing.assert_allclose(scores["click-rate"], [0.25, 5.5 / 13, 42.5 / 100])
    assert scores["repeat-count"].tolist() == [1, 0, 1]
    assert scores["recency"].tolist() == [0.5, 0, 1]


def test_popularity_breaks_ties_of_repeats_however_large_both_are() -> None:
    repeats, positives = [0, 1, 1, 99_999, 99_999], [4_000_000_000, 0, 1, 3_999_999_999, 4_000_000_000]
    scores = counting_scores(positives, positives, 1.0, repeats, np.zeros(5))["repeat-popularity"]
    assert (np.diff(scores) > 0).all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    message = "`candidates` and `lengths` must be [n] and `histories` [n, L]. Received: (2,), (2,) and (3, 4)"
    with pytest.raises(ValueError, match=re.escape(message)):
        repeats_and_recency(np.zeros(2), np.zeros([3, 4]), np.zeros(2))


def test_counts_of_the_item_among_users_and_behaviours() -> None:
    log = Interactions.from_columns(
        {"user_id": [1, 1, 1, 1, 2, 2], "item_id": [7, 8, 7, 9, 7, 8], "timestamp": [1, 2, 3, 4, 1, 2]}
    )
    impressions = Impressions.from_columns(
        log,
        {"user_id": [1, 1, 2, 2], "item_id": [7, 8, 8, 0], "timestamp": [5, 5, 5, 5]},
        np.array([1, 0, 1, 0]),
    )
    # Other columns, which the log even lacks, are not read.
    features = Features(Feature("item_id"), item_attributes=(Feature("brand"),), max_history_length=3)
    scores = baseline_scores(impressions, impressions, features)
    # Of the last three behaviours: the first 7 is out of reach, and padding is no item 0.
    assert scores["repeat-count"].tolist() == [1, 1, 1, 0]
    assert scores["popularity"].tolist() == [1, 1, 1, 0]
    np.testing.assert_allclose(scores["click-rate"], [6 / 11, 6 / 12, 6 / 12, 5 / 11])
    assert scores["recency"].tolist() == [1 / 2, 1 / 3, 1, 0]
