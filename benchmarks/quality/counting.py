"""Rivals that learn nothing, on the data sets of the benchmark."""

from __future__ import annotations

import numpy as np

from benchmarks.quality.protocols import Protocol
from keras_eta.columns import HISTORY_LENGTH
from keras_eta.datasets.counting import counting_scores, repeats_and_recency

_BATCH_SIZE = 4_096


def scores_of_test(data: Protocol) -> dict[str, np.ndarray]:
    """Scores of the test impressions by each of `keras_eta.datasets.counting.BASELINES`, float64 [n].

    Histories are the last L behaviours, as rankers read them.
    """
    item, history = data.features.item_id.name, f"history_{data.features.item_id.name}"
    found = [
        repeats_and_recency(*(columns[name].numpy() for name in (item, history, HISTORY_LENGTH)))
        for columns, _ in data.test.to_dataset(data.features, _BATCH_SIZE)
    ]
    repeats, recency = (np.concatenate(values) for values in zip(*found, strict=True))
    positives, shown = _of_items(data, data.train.label), _of_items(data, np.ones(len(data.train)))
    return counting_scores(positives, shown, float(data.train.label.mean()), repeats, recency)


def _of_items(data: Protocol, weights: np.ndarray) -> np.ndarray:
    """The sum of the weights of the training impressions [m] of each test impression's item, 0 for new items."""
    name = data.features.item_id.name
    items, codes = np.unique(np.asarray(data.train.columns[name]), return_inverse=True)
    sums = np.bincount(codes, weights)
    wanted = np.asarray(data.test.columns[name])
    found = np.minimum(np.searchsorted(items, wanted), len(items) - 1)
    return np.where(items[found] == wanted, sums[found], 0.0)
