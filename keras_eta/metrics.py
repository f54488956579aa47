"""Metrics of rankers, of retrieval and of codes: offline ones in NumPy, and those that training reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_eta import _runtime
from keras_eta.validation import check_positive_integers

_runtime.prepare_tensorflow()

NUM_LOG_ODDS_BUCKETS = 65_536
# Most buckets lie where the logits of click rates do; the rest keep a relative resolution from 1e-7 to 1e8.
_BUCKET_SCALES = {8e-6: 1 / 16, 8e-3: 1 / 16, 8.0: 3 / 4, 8e3: 1 / 16, 8e6: 1 / 16}


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class LogOddsAUC(tf.keras.metrics.Metric):
    """Area under the ROC curve of logits, at any click rate: rows are counted in narrow buckets of log-odds.

    `tf.keras.metrics.AUC` spreads 200 thresholds evenly over the probabilities from 0 to 1, and where clicks are rare
    all rows lie between two of them. Here a bucket is 0.0013 wide at a logit of -8, a probability of 0.0003, narrower
    towards 0, and at most 2 % of a logit anywhere; only rows in one bucket count as ties. The value is within 0.001 of
    the exact one, `auc`, unless all logits lie within a few buckets (around -8: a standard deviation below 0.01).

    Args:
        name: of the metric.
        **kwargs: as `tf.keras.metrics.Metric`.

    Call arguments:
        y_true: [...], labels between 0 and 1.
        y_pred: [...], logits. A NaN makes the result NaN.
        sample_weight: as many weights, or `None`.

    Returns:
        float32 scalar; 0 where one class is missing, as `tf.keras.metrics.AUC`.
    """

    def __init__(self, name: str = "auc", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.negatives, self.positives = (
            self.add_weight(name, [NUM_LOG_ODDS_BUCKETS], initializer="zeros") for name in ("negatives", "positives")
        )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        sample_weight = tf.ones_like(y_pred) if sample_weight is None else sample_weight
        labels, logits, weights = (tf.reshape(tf.cast(x, tf.float32), [-1]) for x in (y_true, y_pred, sample_weight))
        weights = tf.where(tf.math.is_nan(logits), logits, weights)
        logits = tf.clip_by_value(tf.where(tf.math.is_nan(logits), 0.0, logits), -1e30, 1e30)
        buckets = tf.cast(log_odds_bucket(logits), tf.int32)
        for counts, counted in ((self.negatives, weights * (1.0 - labels)), (self.positives, weights * labels)):
            counts.assign_add(tf.math.unsorted_segment_sum(counted, buckets, NUM_LOG_ODDS_BUCKETS))

    def result(self) -> tf.Tensor:
        # Pairs are counted level by level: those that part in one of 16 children of a parent. A cumulative sum over all
        # buckets takes several times as long, and under XLA a hundred times.
        negatives, positives = tf.convert_to_tensor(self.negatives), tf.convert_to_tensor(self.positives)
        above = tf.linalg.band_part(tf.ones([16, 16]), 0, -1) - tf.eye(16)
        ordered = tf.reduce_sum(negatives * positives) / 2.0
        while positives.shape[0] > 1:
            negatives, positives = tf.reshape(negatives, [-1, 16]), tf.reshape(positives, [-1, 16])
            ordered += tf.reduce_sum((negatives @ above) * positives)
            negatives, positives = tf.reduce_sum(negatives, axis=1), tf.reduce_sum(positives, axis=1)
        return tf.math.divide_no_nan(ordered, negatives[0] * positives[0])

    def reset_state(self) -> None:
        for counts in (self.negatives, self.positives):
            counts.assign(tf.zeros_like(counts))


class _CodeCounts(tf.keras.metrics.Metric):
    """Counts how often each code of a codebook is given."""

    def __init__(self, codebook_size: int, name: str, **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        check_positive_integers(codebook_size=codebook_size)
        self.codebook_size = codebook_size
        self.counts = self.add_weight("counts", [codebook_size], initializer="zeros")

    def update_state(self, codes: Any, sample_weight: None = None) -> None:
        ones = tf.ones_like(codes, self.counts.dtype)
        self.counts.assign_add(tf.math.unsorted_segment_sum(ones, codes, self.codebook_size))

    def reset_state(self) -> None:
        self.counts.assign(tf.zeros_like(self.counts))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "codebook_size": self.codebook_size}


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class CodeUsage(_CodeCounts):
    """Share of the codes of a codebook that were given at least once.

    Args:
        codebook_size: K, codes of the codebook.
        name: of the metric.
        **kwargs: as `tf.keras.metrics.Metric`.

    Call arguments:
        codes: integers [N], from 0 to K - 1.

    Returns:
        float32 scalar from 0 to 1.
    """

    def __init__(self, codebook_size: int, name: str = "usage", **kwargs: Any) -> None:
        super().__init__(codebook_size, name, **kwargs)

    def result(self) -> tf.Tensor:
        return tf.reduce_mean(tf.cast(self.counts > 0, tf.float32))


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class CodePerplexity(_CodeCounts):
    """exp of the entropy of the codes: as many codes in even use would be as hard to guess.

    Args:
        codebook_size: K, codes of the codebook.
        name: of the metric.
        **kwargs: as `tf.keras.metrics.Metric`.

    Call arguments:
        codes: integers [N], from 0 to K - 1.

    Returns:
        float32 scalar from 1 to K.
    """

    def __init__(self, codebook_size: int, name: str = "perplexity", **kwargs: Any) -> None:
        super().__init__(codebook_size, name, **kwargs)

    def result(self) -> tf.Tensor:
        shares = tf.math.divide_no_nan(self.counts, tf.reduce_sum(self.counts))
        return tf.exp(-tf.reduce_sum(tf.math.multiply_no_nan(tf.math.log(shares), shares)))


def log_odds_bucket(logits: Any) -> Any:
    """The bucket that a logit falls in, of `NUM_LOG_ODDS_BUCKETS` that widen with the distance from 0.

    Args:
        logits: finite floats: a tensor or an array [...], or a number.

    Returns:
        Floats [...], whose integer part is the bucket.
    """
    # Softsigns of all scales, added up, moved from [-1, 1] to the buckets; the half takes the largest logits in.
    place = sum(share * logits / (abs(logits) + scale) for scale, share in _BUCKET_SCALES.items())
    return (place + 1.0) * (NUM_LOG_ODDS_BUCKETS / 2 - 0.5)


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
    labels, scores = checked_labels_and_scores(labels, scores)
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
    labels, scores = checked_labels_and_scores(labels, scores)
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
    labels, logits = checked_labels_and_scores(labels, logits)
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


def recall_and_ndcg(found: npt.ArrayLike, wanted: npt.ArrayLike, k: int) -> tuple[float, float]:
    """Recall@k and NDCG@k of retrieval where each row wants one item.

    Args:
        found: ids [n, at least k], the best first.
        wanted: ids [n].
        k: how many of those found count.

    Returns:
        The share of rows whose item is among the first k, and the mean of 1 / log2(1 + rank), 0 beyond rank k. NaN
        where there are no rows.

    Raises:
        ValueError: if the shapes do not fit, or fewer than k were found.
    """
    check_positive_integers(k=k)
    found, wanted = np.asarray(found), np.asarray(wanted)
    if wanted.ndim != 1 or found.ndim != 2 or len(found) != len(wanted) or found.shape[1] < k:
        raise ValueError(
            f"`found` must be [n, at least k={k}] and `wanted` [n]. Received: {found.shape} and {wanted.shape}"
        )
    if not len(wanted):
        return float("nan"), float("nan")
    hits = found[:, :k] == wanted[:, np.newaxis]
    gains = hits / np.log2(np.arange(2, k + 2))
    return float(hits.any(axis=1).mean()), float(gains.sum(axis=1).mean())


def checked_labels_and_scores(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores as float64 [n]; ValueError if lengths differ, a label is neither 0 nor 1, or a score is NaN."""
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
