"""The gates: what each refuses, in which words, and what they leave to noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tfx_pipeline.continuous.gates import Window, refusals
from tfx_pipeline.continuous.judging import Judged, measured
from tfx_pipeline.continuous.settings import Gates


def judged(
    auc: float = 0.75, log_loss: float = 0.5, rate: float = 0.3, probability: float = 0.3, rows: int = 4_000
) -> Judged:
    return Judged(rows, int(rows * rate), auc, auc, log_loss, probability, 0.005)


BEFORE = [judged()] * 5
GOOD = Window(judged(log_loss=0.52), judged(), judged(log_loss=0.525))


def test_measures_are_those_of_the_definitions() -> None:
    labels, users = np.array([1, 0, 1, 0]), np.array([0, 0, 1, 1])
    found = measured(labels, np.array([0.8, 0.4, 0.6, 0.7], "float32"), users)
    assert (found.rows, found.positives, found.auc, found.grouped_auc) == (4, 2, 0.75, 0.5)
    losses = -np.log([0.8, 0.6, 0.6, 0.3])
    assert found.log_loss == pytest.approx(losses.mean(), abs=1e-6)
    assert found.log_loss_error == pytest.approx(losses.std() / 2, abs=1e-6)
    assert found.calibration == pytest.approx(0.625 / 0.5, abs=1e-6)
    assert Judged.from_json(found.to_json()) == found


def test_error_of_the_auc_is_that_of_hanley_and_mcneil() -> None:
    # Q1 = .75 / 1.25 = .6, Q2 = 1.125 / 1.75 = .642857; 10 positives, 20 negatives.
    variance = (0.1875 + 9 * (0.6 - 0.5625) + 19 * (0.642857 - 0.5625)) / 200
    assert judged(rate=1 / 3, rows=30).auc_error == pytest.approx(math.sqrt(variance), rel=1e-5)
    assert math.isnan(judged(rate=0.0).auc_error)


def test_good_rounds_pass() -> None:
    assert refusals(Gates(), judged(), BEFORE, GOOD) == []
    assert refusals(Gates(), None, [], None) == []


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (
            judged(auc=0.6),
            "The AUC of the served version on the new events is 0.6000, against a median of 0.7500 in the rounds "
            "before; `max_auc_fall` is 0.05, which makes 0.7000 the least.",
        ),
        (
            judged(log_loss=0.6),
            "The log loss of the served version on the new events is 0.6000, against a median of 0.5000 in the rounds "
            "before; `max_loss_rise` is 0.1, which makes 0.5500 the most.",
        ),
        (
            judged(rate=0.5),
            "50.00% of the new impressions are positive, against a median of 30.00% in the rounds before: a ratio of "
            "1.67; `max_label_drift` is 1.5.",
        ),
    ],
)
def test_worse_than_the_rounds_before_is_refused(now: Judged, message: str) -> None:
    assert refusals(Gates(), now, BEFORE, GOOD) == [message]
    assert refusals(Gates(max_auc_fall=0.2, max_loss_rise=0.3, max_label_drift=2), now, BEFORE, GOOD) == []


def test_small_rounds_are_not_refused_for_noise() -> None:
    """Of 30 impressions the AUC has a standard error of .1, and the label rate one of .09."""
    assert refusals(Gates(), judged(auc=0.6, rate=0.5, rows=30), BEFORE, None) == []


def test_one_poisoned_round_moves_no_median_and_lasting_change_does() -> None:
    poisoned = judged(auc=0.3)
    assert len(refusals(Gates(), poisoned, [*BEFORE, poisoned], None)) == 1
    assert refusals(Gates(compared_rounds=4), poisoned, [*BEFORE, *[poisoned] * 3], None) == []


def test_without_earlier_rounds_worse_than_chance_is_refused() -> None:
    (reason,) = refusals(Gates(), judged(auc=0.3), BEFORE[:2], None)
    assert reason == (
        "The AUC of the served version on the new events is 0.3000, worse than chance by more than 3 standard errors."
    )
    assert refusals(Gates(), judged(auc=0.48), [], None) == []
    assert refusals(Gates(), judged(auc=0.5), [], None) == []


def test_new_model_is_held_against_versions_on_the_last_pushed_round() -> None:
    unseen = judged(log_loss=0.52)
    (reason,) = refusals(Gates(), judged(), BEFORE, Window(unseen, judged(), judged(log_loss=0.54)))
    assert reason == (
        "The new model's log loss on the last pushed round is 0.5400, against 0.5200 of a version that had not seen "
        "it; `max_window_loss` is 0.02, which makes 0.5304 the most."
    )
    assert refusals(Gates(), judged(), BEFORE, Window(unseen, judged(log_loss=0.54), judged(log_loss=0.54))) == []
    noisy = judged(log_loss=0.54)._replace(log_loss_error=0.03)
    assert refusals(Gates(), judged(), BEFORE, Window(unseen, judged(), noisy)) == []


def test_new_model_is_calibrated_on_the_last_pushed_round() -> None:
    (reason,) = refusals(Gates(), judged(), BEFORE, Window(judged(), judged(), judged(probability=0.45)))
    assert reason == (
        "The new model's mean probability on the last pushed round is 0.4500, against a mean label of 0.3000: a ratio "
        "of 1.50; `max_miscalibration` is 1.25."
    )
    # It makes nothing worse.
    worse = Window(judged(), judged(probability=0.5), judged(probability=0.45))
    assert refusals(Gates(), judged(), BEFORE, worse) == []


def test_arguments_are_checked() -> None:
    with pytest.raises(
        ValueError, match=r"`max_label_drift` must be a number of at least 1. Received: max_label_drift=0"
    ):
        Gates(max_label_drift=0)
    with pytest.raises(ValueError, match="`compared_rounds` must be a positive integer"):
        Gates(compared_rounds=0)
