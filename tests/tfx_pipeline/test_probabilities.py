"""Metrics of labels and probabilities: values by hand, tenths at any click rate, what is no number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tensorflow_model_analysis.metrics.metric_types import registered_metrics
from tensorflow_model_analysis.proto import config_pb2

from tests.tfx_pipeline.test_grouped_auc import element, run
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.evaluation import eval_config
from tfx_pipeline.layouts import movielens
from tfx_pipeline.probabilities import (
    CalibrationRatio,
    ImpressionCount,
    LabelRate,
    LogLoss,
    LogOddsAUC,
    Reliability,
    SaturatedShare,
)

METRICS = (ImpressionCount, LogOddsAUC, LogLoss, CalibrationRatio, LabelRate, SaturatedShare, Reliability)
CONFIG = PipelineConfig(layout=movielens(), data="", schema="", output="", serving_dir="")

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")


def elements_of(labels: Any, scores: Any) -> list[Any]:
    return [element(*row) for row in zip(labels, scores, strict=True)]


def test_saturated_share_counts_exact_zeros_and_ones() -> None:
    scores = [0.0, 1.0, 1.0, 1e-38, np.nextafter(np.float32(1), np.float32(0)), 0.5, np.nan, 0.25]
    assert run(SaturatedShare(), elements_of([0] * 8, scores)) == 3 / 8
    assert run(SaturatedShare(), elements_of([0, 1], [0.1, 0.9])) == 0


def test_log_loss_calibration_and_mean_label_by_hand() -> None:
    elements = elements_of([0, 1, 1, 0], [0.25, 0.5, 1.0, 0.0])
    assert run(LogLoss(), elements) == pytest.approx((math.log(4 / 3) + math.log(2)) / 4, abs=1e-12)
    assert run(CalibrationRatio(), elements) == 1.75 / 2
    assert run(LabelRate(), elements) == 0.5
    assert run(ImpressionCount(), elements) == 4


def test_what_is_certain_and_wrong_has_no_bound() -> None:
    assert run(LogLoss(), elements_of([0, 1], [1.0, 0.5])) == math.inf
    assert run(LogLoss(), elements_of([1, 1], [0.0, 0.5])) == math.inf


def test_what_is_not_a_number_makes_all_but_labels_and_saturation_so() -> None:
    elements = elements_of([0, 1, 1, 0], [0.25, 0.5, np.nan, 0.0])
    values = [run(metric(), elements) for metric in (LogOddsAUC, LogLoss, CalibrationRatio)]
    assert np.isnan(values).all()
    assert run(LabelRate(), elements) == 0.5
    assert run(SaturatedShare(), elements) == 0.25


def test_calibration_without_a_positive_label_is_not_a_number() -> None:
    assert math.isnan(run(CalibrationRatio(), elements_of([0, 0], [0.25, 0.5])))


def test_metrics_of_an_evaluation_are_these_and_share_their_sums() -> None:
    specs = [
        spec for spec in eval_config(CONFIG).metrics_specs[0].metrics if spec.module == "tfx_pipeline.probabilities"
    ]
    # TensorFlow Model Analysis would take its own of the name.
    assert not {spec.class_name for spec in specs} & {*registered_metrics()}
    assert {spec.class_name for spec in specs} == {metric.__name__ for metric in METRICS}
    metrics = [metric() for metric in METRICS]
    computations = [one for metric in metrics for one in metric.computations(eval_config=config_pb2.EvalConfig())]
    assert len(set(computations)) == 1 + len(metrics)


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
