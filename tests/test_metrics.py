"""Metrics against the counting of pairs."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from keras_eta import metrics
from tests import reference, retrieval_reference

# Few different scores and groups, so that ties and groups of one class abound.
ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(-2, 2), st.integers(0, 4)), min_size=1, max_size=40)


def test_auc_worked_by_hand() -> None:
    # Pairs (positive, negative): .4-.3 won, .4-.4 tied, .9-.3 won, .9-.4 won.
    assert metrics.auc([1, 0, 1, 0], [0.4, 0.3, 0.9, 0.4]) == 3.5 / 4


@given(ROWS)
def test_auc_equals_pair_counting(rows: list[tuple[int, int, int]]) -> None:
    labels, scores, _ = zip(*rows, strict=True)
    np.testing.assert_allclose(metrics.auc(labels, scores), reference.auc(labels, scores), rtol=1e-12)


@given(ROWS)
def test_grouped_auc_equals_pair_counting(rows: list[tuple[int, int, int]]) -> None:
    labels, scores, groups = zip(*rows, strict=True)
    expected = reference.grouped_auc(labels, scores, groups)
    np.testing.assert_allclose(metrics.grouped_auc(labels, scores, groups), expected, rtol=1e-12)


def test_grouped_auc_weights_groups_by_their_rows_and_leaves_out_single_classes() -> None:
    # Group a: 4 rows, AUC 3/4. Group b: 2 rows, AUC 0. Group c: one class.
    labels = [1, 0, 1, 0, 1, 0, 1, 1, 1]
    scores = [2, 1, 4, 3, 1, 2, 0, 0, 9]
    groups = ["a", "a", "a", "a", "b", "b", "c", "c", "c"]
    assert metrics.grouped_auc(labels, scores, groups) == pytest.approx((4 * 0.75 + 2 * 0.0) / 6, abs=1e-15)


def test_grouped_auc_of_unordered_rows_and_large_group_ids() -> None:
    order = np.random.default_rng(0).permutation(60)
    labels, scores = np.arange(60) % 2, np.arange(60) * 7 % 11
    groups = np.array([2**62, -5, 10**9])[np.arange(60) % 3]
    expected = reference.grouped_auc(labels.tolist(), scores.tolist(), groups.tolist())
    assert metrics.grouped_auc(labels[order], scores[order], groups[order]) == pytest.approx(expected, abs=1e-12)


def test_columns_of_one_value_a_row_count_as_rows() -> None:
    assert metrics.auc([[1], [0], [1]], [[0.3], [0.2], [0.1]]) == 0.5
    assert metrics.grouped_auc([[1], [0], [1]], [[0.3], [0.2], [0.1]], [[7], [7], [8]]) == 1.0


@pytest.mark.parametrize(("labels", "scores"), [([], []), ([1, 1], [0.2, 0.1]), ([0], [1.0])])
def test_auc_of_a_single_class_is_nan(labels: list[int], scores: list[float]) -> None:
    assert math.isnan(metrics.auc(labels, scores))
    assert math.isnan(metrics.grouped_auc(labels, scores, labels))


@given(ROWS)
def test_log_loss_equals_the_formula(rows: list[tuple[int, int, int]]) -> None:
    labels, logits, _ = zip(*rows, strict=True)
    np.testing.assert_allclose(metrics.log_loss(labels, logits), reference.log_loss(labels, logits), rtol=1e-12)


def test_log_loss_worked_by_hand_and_without_overflow() -> None:
    assert metrics.log_loss([1, 0], [0.0, 0.0]) == pytest.approx(math.log(2.0), abs=1e-15)
    assert metrics.log_loss([1, 0], [math.log(3.0), math.log(3.0)]) == pytest.approx(
        (math.log(4 / 3) + math.log(4.0)) / 2, abs=1e-15
    )
    assert metrics.log_loss([0, 1], [1000.0, -1000.0]) == 1000.0


@pytest.mark.parametrize(("label", "logit", "loss"), [(1, math.inf, 0), (0, -math.inf, 0), (1, -math.inf, math.inf)])
def test_log_loss_of_a_certain_score(label: int, logit: float, loss: float) -> None:
    assert metrics.log_loss([label], [logit]) == loss
    assert metrics.log_loss([1 - label], [-logit]) == loss


def test_agreement_at_k_worked_by_hand() -> None:
    retrieved = [[0, 5, 2], [7, 1, 0]]
    relevant = [[2, 0, 9], [0, 3, 0]]
    mask = [[True, True, True], [True, True, False]]
    # Row 0: 2 and 0 of three were found. Row 1: of 0 and 3 neither, as the retrieved 0 is no real entry.
    assert metrics.agreement_at_k(retrieved, relevant, mask) == 2 / 5


def test_agreement_at_k_of_equal_and_of_disjoint_searches() -> None:
    positions, mask = np.arange(24).reshape(2, 3, 4), np.ones([2, 3, 4], bool)
    assert metrics.agreement_at_k(positions, positions[..., ::-1], mask) == 1.0
    assert metrics.agreement_at_k(positions, positions + 100, mask) == 0.0


def test_agreement_at_k_of_nothing_is_nan() -> None:
    assert math.isnan(metrics.agreement_at_k([[0]], [[0]], [[False]]))


def _message(text: str) -> str:
    return f"^{re.escape(text)}$"


def test_metrics_refuse_different_lengths() -> None:
    with pytest.raises(ValueError, match=_message("`labels` and scores must be equally long. Received: 2 and 1")):
        metrics.auc([0, 1], [0.5])
    with pytest.raises(ValueError, match=_message("`labels` and scores must be equally long. Received: 1 and 2")):
        metrics.log_loss([1], [0.5, 0.5])
    message = "`groups` must be as long as `labels`. Received: 3 groups, 2 labels"
    with pytest.raises(ValueError, match=_message(message)):
        metrics.grouped_auc([0, 1], [0.5, 0.5], [1, 2, 3])


def test_metrics_refuse_labels_that_are_not_classes() -> None:
    with pytest.raises(ValueError, match=_message("`labels` must be 0 or 1. Received: [-1.0, 0.5, 2.0], ...")):
        metrics.auc([2, 0.5, -1, 3, 1], [0, 0, 0, 0, 0])
    with pytest.raises(ValueError, match=_message("`labels` must be 0 or 1. Received: [nan], ...")):
        metrics.log_loss([math.nan], [0.0])


@pytest.mark.parametrize("metric", [metrics.auc, metrics.log_loss])
def test_metrics_refuse_scores_that_are_nan(metric: object) -> None:
    # A diverged model must not get a number.
    assert callable(metric)
    try:
        value = metric([0, 1, 1], [0.1, math.nan, 0.2])
    except ValueError:
        return
    assert math.isnan(value)


def test_agreement_at_k_refuses_different_shapes() -> None:
    message = "`retrieved`, `relevant` and `mask` must have one shape. Received: (1, 2), (1, 3), (1, 2)"
    with pytest.raises(ValueError, match=_message(message)):
        metrics.agreement_at_k([[1, 2]], [[1, 2, 3]], [[True, True]])


# The metric of training


def _log_odds_auc(labels: np.ndarray, logits: np.ndarray, weights: np.ndarray | None = None) -> float:
    metric = metrics.LogOddsAUC()
    # Batches with a column axis, as Keras hands them over.
    for rows in np.array_split(np.arange(len(labels)), 3):
        metric.update_state(labels[rows, None], logits[rows, None], None if weights is None else weights[rows, None])
    return float(metric.result())


def test_log_odds_auc_worked_by_hand() -> None:
    # As above; the weights double the pairs that were won, and add half of one that was tied.
    labels, logits = np.array([1, 0, 1, 0]), np.array([-7.9, -8.0, 3.0, -7.9])
    assert _log_odds_auc(labels, logits) == 3.5 / 4
    assert _log_odds_auc(labels, logits, np.array([1.0, 1.0, 3.0, 1.0])) == (1 + 0.5 + 3 + 3) / 8
    assert _log_odds_auc(labels, -logits) == 0.5 / 4


@pytest.mark.parametrize("click_rate", [0.5, 0.01, 1e-3, 1e-4])
@pytest.mark.parametrize(
    "score",
    [
        lambda logits: logits,
        lambda logits: 0.01 * logits,
        lambda logits: 100.0 * logits,
        lambda logits: 1e4 * logits,
        lambda logits: -8.0 + 0.05 * (logits - logits.mean()),
        lambda logits: 14.0 + logits - logits.mean(),
        lambda logits: logits**3,
        lambda logits: np.exp(logits),
        np.round,
        np.sign,
    ],
)
def test_log_odds_auc_is_within_a_thousandth_of_the_exact_one(click_rate: float, score: Any) -> None:
    rng = np.random.default_rng(0)
    logits = np.log(click_rate / (1 - click_rate)) - 0.5 + 1.2 * rng.normal(size=200_000)
    labels = (rng.random(200_000) < 1 / (1 + np.exp(-logits))).astype("float32")
    scores = score(logits).astype("float32")
    assert _log_odds_auc(labels, scores) == pytest.approx(metrics.auc(labels, scores), abs=1e-3)


def test_log_odds_auc_of_weighted_rows_equals_pair_counting() -> None:
    rng = np.random.default_rng(0)
    labels, logits, weights = rng.integers(0, 2, 60), rng.integers(-9, 9, 60) / 4, rng.uniform(0, 2, 60)
    expected = reference.auc(labels.tolist(), logits.tolist(), weights.tolist())
    assert _log_odds_auc(labels, logits.astype("float32"), weights) == pytest.approx(expected, abs=1e-6)


def test_log_odds_auc_of_infinities_nan_and_one_class() -> None:
    logits = np.array([-math.inf, 3e38, math.inf, 0.0], "float32")
    assert _log_odds_auc(np.array([0, 1, 1, 0]), logits) == 1.0
    assert _log_odds_auc(np.array([1, 0, 0, 1]), logits) == 0.0
    assert math.isnan(_log_odds_auc(np.array([0, 1, 0, 1]), np.array([0.0, 1.0, math.nan, 2.0], "float32")))
    # As `tf.keras.metrics.AUC`.
    assert _log_odds_auc(np.ones(4), logits) == _log_odds_auc(np.zeros(4), logits) == 0.0


def test_log_odds_auc_starts_again_and_is_compiled() -> None:
    metric = metrics.LogOddsAUC(name="area")
    assert type(metric).from_config(metric.get_config()).name == "area"

    @tf.function(jit_compile=True)
    def area(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        metric.update_state(labels, logits)
        return metric.result()

    for labels in ([0.0, 1.0, 1.0], [1.0, 0.0, 1.0]):
        metric.reset_state()
        assert float(area(tf.constant(labels), tf.constant([-9.0, -8.9, -8.8]))) == metrics.auc(labels, [0, 1, 2])


def test_recall_and_ndcg_count_ranks_up_to_k() -> None:
    found = [[4, 2, 9], [7, 1, 3], [5, 6, 8], [1, 2, 3]]
    recall, ndcg = metrics.recall_and_ndcg(found, [2, 3, 5, 4], 3)
    assert (recall, ndcg) == pytest.approx((3 / 4, (1 / math.log2(3) + 1 / 2 + 1) / 4))
    assert metrics.recall_and_ndcg(found, [2, 3, 5, 4], 2) == pytest.approx((2 / 4, (1 / math.log2(3) + 1) / 4))
    assert all(map(math.isnan, metrics.recall_and_ndcg(np.zeros([0, 3]), [], 3)))
    with pytest.raises(ValueError, match=r"`found` must be \[n, at least k=4\] and `wanted` \[n\]. Received: \(4, 3\)"):
        metrics.recall_and_ndcg(found, [2, 3, 5, 4], 4)
    with pytest.raises(ValueError, match="`wanted`"):
        metrics.recall_and_ndcg(found, [2], 3)


def test_code_usage_and_perplexity_equal_counting() -> None:
    codes = np.random.default_rng(0).integers(0, 6, 50) ** 2
    usage, perplexity = metrics.CodeUsage(30), metrics.CodePerplexity(30)
    assert (usage.result(), perplexity.result()) == (0.0, 1.0)
    for batch in (codes[:20], codes[20:]):
        usage.update_state(batch)
        perplexity.update_state(tf.constant(batch, tf.int32))
    expected = retrieval_reference.usage_and_perplexity(codes.tolist(), 30)
    np.testing.assert_allclose([usage.result(), perplexity.result()], expected, rtol=1e-6)
    for metric, value in ((usage, 1 / 30), (perplexity, 1.0)):
        metric.reset_state()
        metric.update_state([29])
        assert metric.result().numpy() == pytest.approx(value)
        assert type(metric).from_config(metric.get_config()).codebook_size == 30


def test_codebook_size_of_code_metrics_is_checked() -> None:
    with pytest.raises(ValueError, match=r"`codebook_size` must be a positive integer. Received: codebook_size=0"):
        metrics.CodeUsage(0)
