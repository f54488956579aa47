"""Contestants that learn nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.next_item.protocols import Protocol
from keras_eta.datasets.impressions import Impressions

_BATCH_SIZE = 256


def item_rows(data: Protocol, impressions: Impressions) -> np.ndarray:
    """The places int64 [n] of the impressions' items among `item_ids`."""
    order = np.argsort(data.item_ids)
    return order[np.searchsorted(data.item_ids[order], np.asarray(impressions.columns["item_id"]))]


def log_rows(data: Protocol) -> np.ndarray:
    """The places int64 [n] of the items of the whole log, in its order."""
    log = data.parts.train.log
    order = np.argsort(data.item_ids)
    return order[np.searchsorted(data.item_ids[order], log["item_id"])]


def popularity(data: Protocol, part: Impressions) -> Iterator[np.ndarray]:
    """How often each item was taken in the training part, float64 [b, items], of the rows of a part by batches."""
    popular = _popularity(data)
    for start in range(0, len(part), _BATCH_SIZE):
        yield np.repeat(popular, min(_BATCH_SIZE, len(part) - start), axis=0)


def co_occurrence(data: Protocol, part: Impressions) -> Iterator[np.ndarray]:
    """How often each item followed the user's last one in the training part, float64 [b, items], likewise.

    Of items that followed as often, the more popular goes first.
    """
    items, rows, train = len(data.item_ids), log_rows(data), data.parts.train
    pairs = rows[train.end - 1] * items + item_rows(data, train)
    followed = np.bincount(pairs, minlength=items**2).reshape(items, items)
    popular = _popularity(data)
    for start in range(0, len(part), _BATCH_SIZE):
        yield followed[rows[part.end[start : start + _BATCH_SIZE] - 1]] + popular / (popular.max() + 1)


def _popularity(data: Protocol) -> np.ndarray:
    return np.bincount(item_rows(data, data.parts.train), minlength=len(data.item_ids))[np.newaxis].astype(float)
