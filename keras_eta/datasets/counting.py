"""Baselines that count and learn nothing: what a ranker must beat to be worth training."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

POPULARITY = "popularity"
CLICK_RATE = "click-rate"
REPEAT_COUNT = "repeat-count"
REPEAT_POPULARITY = "repeat-popularity"
RECENCY = "recency"
BASELINES = (POPULARITY, CLICK_RATE, REPEAT_COUNT, REPEAT_POPULARITY, RECENCY)

# Impressions of the mean label that are added to each item, so that few do not count as much as many.
_PRIOR_IMPRESSIONS = 10.0
# Above any popularity, and small enough that float64 holds its multiples exactly up to 2**21 repeats.
_ONE_REPEAT = 2.0**32


def counting_scores(
    positives: npt.ArrayLike,
    shown: npt.ArrayLike,
    mean_label: float,
    repeats: npt.ArrayLike,
    recency: npt.ArrayLike,
) -> dict[str, np.ndarray]:
    """Scores of impressions by each of `BASELINES`.

    - `"popularity"`: positive training impressions of the candidate.
    - `"click-rate"`: its mean label in training, with ten impressions of the mean label of all added.
    - `"repeat-count"`: how often it is in the history.
    - `"repeat-popularity"`: the same, ties broken by popularity.
    - `"recency"`: how recently it was in the history.

    Args:
        positives: integers [n], positive training impressions of each candidate, 0 for new items.
        shown: integers [n], all training impressions of each candidate.
        mean_label: of all training impressions.
        repeats: integers [n], as `repeats_and_recency` gives them.
        recency: floats [n], likewise.

    Returns:
        Baseline -> float64 [n]. Only the order means something.
    """
    positives, shown, repeats, recency = (
        np.asarray(values, "float64") for values in (positives, shown, repeats, recency)
    )
    return {
        POPULARITY: positives,
        CLICK_RATE: (positives + _PRIOR_IMPRESSIONS * mean_label) / (shown + _PRIOR_IMPRESSIONS),
        REPEAT_COUNT: repeats,
        REPEAT_POPULARITY: repeats * _ONE_REPEAT + positives,
        RECENCY: recency,
    }


def repeats_and_recency(
    candidates: np.ndarray, histories: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How often, and how recently, each candidate is in its own history.

    Args:
        candidates: ids [n].
        histories: ids [n, L], most recent first.
        lengths: integers [n], how many of the L columns are real.

    Returns:
        Occurrences, int64 [n], and 1 / (1 + position of the most recent one), float64 [n], 0 where there is none.

    Raises:
        ValueError: if the shapes do not fit.
    """
    rows = candidates.shape
    if candidates.ndim != 1 or lengths.shape != rows or histories.ndim != 2 or histories.shape[:1] != rows:
        raise ValueError(
            "`candidates` and `lengths` must be [n] and `histories` [n, L]. "
            f"Received: {candidates.shape}, {lengths.shape} and {histories.shape}"
        )
    real = np.arange(histories.shape[1]) < lengths[:, np.newaxis]
    same = (histories == candidates[:, np.newaxis]) & real
    repeats = np.count_nonzero(same, axis=1)
    first = same.argmax(axis=1) if histories.shape[1] else np.zeros(len(candidates), "int64")
    return repeats, np.where(repeats > 0, 1.0 / (1.0 + first), 0.0)
