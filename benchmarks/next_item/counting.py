"""Contestants that learn nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.next_item.protocols import Protocol
from keras_eta.columns import ITEM_ID
from keras_eta.datasets.impressions import Impressions

_BATCH_SIZE = 256


def popularity(data: Protocol, part: Impressions) -> Iterator[np.ndarray]:
    """How often each item was taken in the training part, float64 [b, items], of the rows of a part by batches."""
    popular = _popularity(data)
    for start in range(0, len(part), _BATCH_SIZE):
        yield np.repeat(popular, min(_BATCH_SIZE, len(part) - start), axis=0)


def co_occurrence(data: Protocol, part: Impressions) -> Iterator[np.ndarray]:
    """How often each item followed the user's last one in the training part, float64 [b, items], likewise.

    Of items that followed as often, the more popular goes first.
    """
    items = len(data.item_ids)
    pairs = _last(data, data.parts.train) * items + data.places(data.parts.train.columns[ITEM_ID])
    followed = np.bincount(pairs, minlength=items**2).reshape(items, items)
    popular, last = _popularity(data), _last(data, part)
    for start in range(0, len(part), _BATCH_SIZE):
        yield followed[last[start : start + _BATCH_SIZE]] + popular / (popular.max() + 1)


def _last(data: Protocol, part: Impressions) -> np.ndarray:
    """The place int64 [n] of each user's last item."""
    return data.places(part.log[ITEM_ID])[part.end - 1]


def _popularity(data: Protocol) -> np.ndarray:
    taken = data.places(data.parts.train.columns[ITEM_ID])
    return np.bincount(taken, minlength=len(data.item_ids))[np.newaxis].astype(float)
