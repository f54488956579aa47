"""Rivals that learn nothing: counts of the item among all users and among the user's own behaviours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.quality.protocols import Protocol
from keras_eta.columns import HISTORY_LENGTH

_BATCH_SIZE = 4_096


def popularity(data: Protocol) -> np.ndarray:
    """How many positives of the training part each test impression's item has, float64 [n]."""
    return _of_items(data, data.train.label.astype("float64"))


def click_rate(data: Protocol) -> np.ndarray:
    """The mean label of each test impression's item in the training part, float64 [n].

    Ten impressions of the mean label of all are added to each item, so that few do not count as much as many.
    """
    prior = 10.0
    positives, shown = _of_items(data, data.train.label), _of_items(data, np.ones(len(data.train)))
    return (positives + prior * data.train.label.mean()) / (shown + prior)


def repeat_count(data: Protocol) -> np.ndarray:
    """How often the item is among the user's last L behaviours, float64 [n]."""
    import tensorflow as tf

    item, history = data.features.item_id.name, f"history_{data.features.item_id.name}"
    counts = []
    for columns, _ in data.test.to_dataset(data.features, _BATCH_SIZE):
        behaviours = columns[history]
        real = tf.sequence_mask(columns[HISTORY_LENGTH], tf.shape(behaviours)[1])
        same = (behaviours == columns[item][:, tf.newaxis]) & real
        counts.append(tf.math.count_nonzero(same, axis=1).numpy())
    return np.concatenate(counts).astype("float64")


def repeat_popularity(data: Protocol) -> np.ndarray:
    """The repeat count, and among equal ones the popularity, float64 [n]."""
    popular = popularity(data)
    return repeat_count(data) + popular / (popular.max() + 1)


COUNTING: dict[str, Callable[[Protocol], np.ndarray]] = {
    "popularity": popularity,
    "click-rate": click_rate,
    "repeat-count": repeat_count,
    "repeat-popularity": repeat_popularity,
}


def _of_items(data: Protocol, weights: np.ndarray) -> np.ndarray:
    """The sum of the weights of the training impressions [m] of each test impression's item, 0 for new items."""
    name = data.features.item_id.name
    items, codes = np.unique(np.asarray(data.train.columns[name]), return_inverse=True)
    sums = np.bincount(codes, weights)
    wanted = np.asarray(data.test.columns[name])
    found = np.minimum(np.searchsorted(items, wanted), len(items) - 1)
    return np.where(items[found] == wanted, sums[found], 0.0)
