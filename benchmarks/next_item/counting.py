"""Contestants that learn nothing."""

from __future__ import annotations

import numpy as np

from benchmarks.next_item.protocols import Protocol
from keras_eta.datasets.impressions import Impressions


def item_rows(data: Protocol, impressions: Impressions) -> np.ndarray:
    """The places int64 [n] of the impressions' items among `item_ids`."""
    order = np.argsort(data.item_ids)
    return order[np.searchsorted(data.item_ids[order], np.asarray(impressions.columns["item_id"]))]


def log_rows(data: Protocol) -> np.ndarray:
    """The places int64 [n] of the items of the whole log, in its order."""
    log = data.parts.train.log
    order = np.argsort(data.item_ids)
    return order[np.searchsorted(data.item_ids[order], log["item_id"])]


def popularity(data: Protocol) -> np.ndarray:
    """How often each item was taken in the training part: float64 [1, items], the same for everybody."""
    return np.bincount(item_rows(data, data.parts.train), minlength=len(data.item_ids))[np.newaxis].astype(float)


def co_occurrence(data: Protocol, part: Impressions) -> np.ndarray:
    """How often each item followed the user's last one in the training part: float64 [n, items].

    Of items that followed as often, the more popular goes first.
    """
    items = len(data.item_ids)
    rows = log_rows(data)
    train = data.parts.train
    followed = np.zeros([items, items], np.float32)
    np.add.at(followed, (rows[train.end - 1], item_rows(data, train)), 1)
    popular = popularity(data)
    return followed[rows[part.end - 1]] + popular / (popular.max() + 1)
