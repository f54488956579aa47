"""Retrievers that count and learn nothing: what a trained one must beat."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

from tfx_pipeline.retrieval.positives import FIRST_ROW, Positives

POPULARITY = "popularity"
CO_OCCURRENCE = "co-occurrence"


def by_popularity(train: Positives, judged: Positives, num_rows: int, k: int) -> np.ndarray:
    """The items that were taken most often in training and are not in the history, of equal ones the first row.

    Args:
        train: what is counted.
        judged: the histories.
        num_rows: of items, the first two included, which are none.
        k: how many to find.

    Returns:
        Rows int32 [n, k]; 0 where there are fewer.
    """
    ranked = _by_count(_popularity(train, num_rows)).tolist()
    return _first([ranked] * len(judged.items), judged, k)


def by_co_occurrence(train: Positives, judged: Positives, num_rows: int, k: int) -> np.ndarray:
    """The items that followed the history's last one most often in training, of equally many the more popular.

    Behind them those that never did, by popularity. Arguments and result are those of `by_popularity`.
    """
    popularity = _popularity(train, num_rows)
    ranked = _by_count(popularity).tolist()
    after = (train.lengths > 0) & (train.items >= FIRST_ROW)
    pairs, counts = np.unique(
        train.histories[after, 0].astype(np.int64) * num_rows + train.items[after], return_counts=True
    )
    last, item = np.divmod(pairs, num_rows)
    order = np.lexsort((item, -popularity[item], -counts, last))
    last, item = last[order], item[order]
    lists = []
    for history, length in zip(judged.histories, judged.lengths, strict=True):
        start, end = np.searchsorted(last, [history[0], history[0] + 1]) if length else (0, 0)
        lists.append(itertools.chain(item[start:end].tolist(), ranked))
    return _first(lists, judged, k)


def _popularity(train: Positives, num_rows: int) -> np.ndarray:
    counts = np.bincount(train.items, minlength=num_rows)
    counts[:FIRST_ROW] = 0
    return counts


def _by_count(counts: np.ndarray) -> np.ndarray:
    """The rows that were counted at all, the most frequent first."""
    order = np.argsort(-counts, kind="stable")
    return order[counts[order] > 0]


def _first(lists: Iterable[Iterable[int]], judged: Positives, k: int) -> np.ndarray:
    """The first k different items of each list that are not in the history."""
    found = np.zeros([len(judged.items), k], np.int32)
    for row, items in enumerate(lists):
        seen, place = set(judged.histories[row].tolist()), 0
        for item in items:
            if place == k:
                break
            if item not in seen:
                found[row, place] = item
                seen.add(item)
                place += 1
    return found
