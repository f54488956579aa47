"""Scores of impressions by counting: what a ranker of one's own data must beat."""

from __future__ import annotations

import numpy as np

from keras_eta.columns import HISTORY_LENGTH, history_name
from keras_eta.datasets.counting import counting_scores, repeats_and_recency
from keras_eta.datasets.impressions import Impressions
from keras_eta.features import Features

_BATCH_SIZE = 4_096


def baseline_scores(train: Impressions, test: Impressions, features: Features) -> dict[str, np.ndarray]:
    """Scores by each of `keras_eta.datasets.counting.BASELINES`, e.g. "repeat-popularity".

    Args:
        train: impressions of the training part, which popularity is counted in.
        test: the impressions to score. Repeats are counted in the last `max_history_length` behaviours.
        features: the columns; the item's id and the maximum length are read.

    Returns:
        Baseline -> float64 [n]. Only the order means something.

    Example:
        >>> for name, scores in baseline_scores(train, test, features).items():
        ...     print(name, metrics.grouped_auc(test.label, scores, test.columns["user_id"]))
    """
    # Nothing else of the columns is read, and no vocabulary.
    features = Features(features.item_id, max_history_length=features.max_history_length)
    item = features.item_id.name
    found = [
        repeats_and_recency(*(columns[name].numpy() for name in (item, history_name(item), HISTORY_LENGTH)))
        for columns, _ in test.to_dataset(features, _BATCH_SIZE)
    ]
    repeats, recency = (np.concatenate(values) for values in zip(*found, strict=True))
    positives, shown = (_of_items(train, test, item, weights) for weights in (train.label, np.ones(len(train))))
    return counting_scores(positives, shown, float(train.label.mean()), repeats, recency)


def _of_items(train: Impressions, test: Impressions, item: str, weights: np.ndarray) -> np.ndarray:
    """The sum of the weights of the training impressions [m] of each test impression's item, 0 for new items."""
    items, codes = np.unique(np.asarray(train.columns[item]), return_inverse=True)
    sums = np.bincount(codes, weights)
    wanted = np.asarray(test.columns[item])
    found = np.minimum(np.searchsorted(items, wanted), len(items) - 1)
    return np.where(items[found] == wanted, sums[found], 0.0)
