"""Saturation and reliability: values by hand, tenths at any click rate, what is no number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.tfx_pipeline.test_grouped_auc import element, run
from tfx_pipeline.probabilities import Reliability, SaturatedShare

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")


def elements_of(labels: Any, scores: Any) -> list[Any]:
    return [element(*row) for row in zip(labels, scores, strict=True)]


def test_saturated_share_counts_exact_zeros_and_ones() -> None:
    scores = [0.0, 1.0, 1.0, 1e-38, np.nextafter(np.float32(1), np.float32(0)), 0.5, np.nan, 0.25]
    assert run(SaturatedShare(), elements_of([0] * 8, scores)) == 3 / 8
    assert run(SaturatedShare(), elements_of([0, 1], [0.1, 0.9])) == 0


@pytest.mark.parametrize("rate", [0.3, 1e-5])
def test_reliability_has_even_tenths_at_any_click_rate(rate: float) -> None:
    random = np.random.default_rng(0)
    scores = (rate * random.uniform(0.5, 1.5, 2_000)).astype("float32")
    labels = (random.random(2_000) < 0.2 + 0.6 * (scores > rate)).astype(int)
    found = run(Reliability(), elements_of(labels, scores))
    order = np.argsort(scores)
    expected = [[200, scores[rows].astype("float64").mean(), labels[rows].mean()] for rows in np.split(order, 10)]
    # Impressions that share a bucket of log-odds with the border stay together.
    np.testing.assert_allclose(found[:, 0], 200, atol=10)
    np.testing.assert_allclose(found[:, 1], np.array(expected)[:, 1], rtol=0.01)
    np.testing.assert_allclose(found[:, 2], np.array(expected)[:, 2], atol=0.05)
    assert found[:, 0].sum() == 2_000
    assert found[:, 0] @ found[:, 2] == pytest.approx(labels.sum())


def test_equal_probabilities_stay_together() -> None:
    found = run(Reliability(), elements_of([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.75]))
    assert found[found[:, 0] > 0].tolist() == [[3, 0.5, 1 / 3], [1, 0.75, 1]]
    assert np.flatnonzero(found[:, 0]).tolist() == [3, 8]


def test_reliability_of_what_is_not_a_number_is_none() -> None:
    assert not run(Reliability(), elements_of([0, 1], [0.5, np.nan])).any()
