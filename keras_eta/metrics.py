"""Offline metrics of rankers and of retrieval, in NumPy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area under the ROC curve: the probability that a positive outscores a negative, ties counting one half.

    Exact, by ranks (Mann-Whitney U), where `tf.keras.metrics.AUC` interpolates over thresholds.

    Args:
        labels: [n], 0 or 1.
        scores: [n], any monotone score.

    Returns:
        The AUC, or NaN where only one class is present.

    Raises:
        ValueError: if the lengths differ, a label is neither 0 nor 1, or a score is NaN.
    """
    labels, scores = _checked(labels, scores)
    per_group, _ = _auc_by_group(labels, scores, np.zeros(len(labels), np.int64))
    return float(per_group[0]) if len(per_group) else float("nan")


def grouped_auc(labels: npt.ArrayLike, scores: npt.ArrayLike, groups: npt.ArrayLike) -> float:
    """AUC within each group (user), averaged with the groups' impressions as weights (GAUC).

    DIN, arXiv 1706.06978, Section 6.2, Eq. (9). Groups with one class only have no AUC and are left out.

    Args:
        labels: [n], 0 or 1.
        scores: [n].
        groups: [n], the group of each row, e.g. user ids.

    Returns:
        The grouped AUC, or NaN where no group has both classes.

    Raises:
        ValueError: if the lengths differ, a label is neither 0 nor 1, or a score is NaN.
    """
    labels, scores = _checked(labels, scores)
    groups = np.asarray(groups).ravel()
    if len(groups) != len(labels):
        raise ValueError(f"`groups` must be as long as `labels`. Received: {len(groups)} groups, {len(labels)} labels")
    _, group_numbers = np.unique(groups, return_inverse=True)
    per_group, sizes = _auc_by_group(labels, scores, group_numbers)
    valid = ~np.isnan(per_group)
    return float(np.average(per_group[valid], weights=sizes[valid])) if valid.any() else float("nan")


def log_loss(labels: npt.ArrayLike, logits: npt.ArrayLike) -> float:
    """Mean binary cross-entropy of logits, in nats.

    Args:
        labels: [n], 0 or 1.
        logits: [n], before the sigmoid.

    Returns:
        The mean over rows; infinite where an infinite logit is wrong.

    Raises:
        ValueError: if the lengths differ, a label is neither 0 nor 1, or a score is NaN.
    """
    labels, logits = _checked(labels, logits)
    return float(np.mean(np.logaddexp(0.0, np.where(labels == 1, -logits, logits))))


def agreement_at_k(retrieved: npt.ArrayLike, relevant: npt.ArrayLike, mask: npt.ArrayLike) -> float:
    """Share of the relevant positions that were retrieved, over all rows: how well one top-k stands in for another.

    Args:
        retrieved: int [..., K], positions found by one search.
        relevant: int [..., K], positions of another, e.g. those with the largest attention weights.
        mask: bool [..., K], which entries of both are real.

    Returns:
        Between 0 and 1; NaN where nothing is relevant.

    Raises:
        ValueError: if the shapes differ.
    """
    retrieved, relevant, mask = np.asarray(retrieved), np.asarray(relevant), np.asarray(mask, bool)
    if not retrieved.shape == relevant.shape == mask.shape:
        raise ValueError(
            "`retrieved`, `relevant` and `mask` must have one shape. "
            f"Received: {retrieved.shape}, {relevant.shape}, {mask.shape}"
        )
    equal = (relevant[..., :, None] == retrieved[..., None, :]) & mask[..., :, None] & mask[..., None, :]
    total = mask.sum()
    return float(equal.any(axis=-1).sum() / total) if total else float("nan")


def _checked(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels, np.float64).ravel(), np.asarray(scores, np.float64).ravel()
    if len(labels) != len(scores):
        raise ValueError(f"`labels` and scores must be equally long. Received: {len(labels)} and {len(scores)}")
    if np.isnan(scores).any():
        raise ValueError(f"Scores must be numbers. Received: NaN in {np.isnan(scores).sum()} of {len(scores)} rows")
    if not np.isin(labels, (0.0, 1.0)).all():
        raise ValueError(f"`labels` must be 0 or 1. Received: {np.setdiff1d(labels, (0.0, 1.0))[:3].tolist()}, ...")
    return labels, scores


def _auc_by_group(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUC (NaN with one class) and size of each group 0..G-1."""
    order = np.lexsort((scores, groups))
    labels, scores, groups = labels[order], scores[order], groups[order]
    first = np.r_[True, groups[1:] != groups[:-1]] if len(groups) else np.zeros(0, bool)
    group_start = np.flatnonzero(first)[groups] if len(groups) else np.zeros(0, np.int64)
    new_value = first | np.r_[True, scores[1:] != scores[:-1]] if len(groups) else first
    tie = np.cumsum(new_value) - 1
    tie_start, tie_size = np.flatnonzero(new_value), np.bincount(tie)
    # Mean rank of a run of ties, counted from 1 within the group.
    rank = tie_start[tie] - group_start + (tie_size[tie] + 1) / 2 if len(groups) else np.zeros(0)
    sizes = np.bincount(groups)
    positives = np.bincount(groups, labels)
    negatives = sizes - positives
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.bincount(groups, rank * labels) - positives * (positives + 1) / 2) / (positives * negatives), sizes
