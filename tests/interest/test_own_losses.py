"""Losses of units' own in a ranker: what is minimised, what is reported and where they count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import Ranker
from keras_eta.interest import MIMN, InterestUnit, RecentInterest, SIMSoft
from tests import reference
from tests.interest.unit_check import CANDIDATES, FEATURES, make_batch

ROWS = 6
LABELS = np.array([0, 1, 1, 0, 1, 0])
WEIGHTS = np.array([1.0, 2.0, 0.5, 0.0, 1.5, 3.0], np.float32)


def _model(*units: InterestUnit) -> Ranker:
    tf.keras.utils.set_random_seed(2)
    model = Ranker(FEATURES, interests=[RecentInterest(3), *units], hidden_units=(4,))
    model.compile(run_eagerly=True)
    model.build()
    return model


def _rows() -> dict[str, tf.Tensor]:
    batch = make_batch(12, [12, 9, 5, 0, 1, 3])
    items = [feature.name for feature in FEATURES.item_features]
    return {name: x[:, CANDIDATES - 1] if name in items else x for name, x in batch.items()}


def _own(model: Ranker, rows: dict[str, tf.Tensor], name: str) -> Any:
    return model(rows, training=True, return_scores=True).interests[name]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_click_loss_of_a_unit_is_added_by_its_weight(weights: np.ndarray | None) -> None:
    model, rows = _model(SIMSoft(3, alpha=0.25)), _rows()
    scores = model(rows, training=True, return_scores=True)
    own_logits = scores.interests["sim_soft"].auxiliary_logits.numpy()[:, 0]
    sums = [
        reference.log_loss(LABELS.tolist(), logits.tolist(), None if weights is None else weights.tolist())
        * (ROWS if weights is None else weights.sum())
        for logits in (scores.logits.numpy()[:, 0], own_logits)
    ]
    losses = model.compute_losses((rows, LABELS, *(() if weights is None else (weights,))), training=True)
    assert list(losses) == ["loss", "sim_soft_loss"]
    np.testing.assert_allclose(losses["sim_soft_loss"], 0.25 * sums[1] / ROWS, rtol=1e-5)
    np.testing.assert_allclose(losses["loss"], (sums[0] + 0.25 * sums[1]) / ROWS, rtol=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_row_loss_of_a_unit_is_weighted_by_row(weights: np.ndarray | None) -> None:
    model, rows = _model(MIMN(3, utilization_weight=0.5)), _rows()
    own = _own(model, rows, "mimn").row_loss.numpy()
    assert (own > 0).any()
    losses = model.compute_losses((rows, LABELS, *(() if weights is None else (weights,))), training=True)
    expected = sum(own[i] * (1.0 if weights is None else weights[i]) for i in range(ROWS)) / ROWS
    np.testing.assert_allclose(losses["mimn_loss"], expected, rtol=1e-5)


def test_losses_are_logged_by_name_in_training_and_left_out_of_evaluation() -> None:
    model, rows = _model(SIMSoft(3), MIMN(3, utilization_weight=0.5)), _rows()
    before = {name: float(x) for name, x in model.compute_losses((rows, LABELS), training=True).items()}
    data = tf.data.Dataset.from_tensors((rows, LABELS))
    logs = {name: values[0] for name, values in model.fit(data, verbose=0).history.items()}
    for name in ("loss", "sim_soft_loss", "mimn_loss"):
        assert logs[name] == pytest.approx(before[name], rel=1e-5)
    assert logs["loss"] == pytest.approx(logs["log_loss"] + logs["sim_soft_loss"] + logs["mimn_loss"], rel=1e-5)
    evaluated = model.evaluate(data, return_dict=True, verbose=0)
    assert not {"sim_soft_loss", "mimn_loss"} & set(evaluated)
    assert evaluated["loss"] == pytest.approx(evaluated["log_loss"], rel=1e-6)


def test_own_loss_reaches_what_the_click_loss_can_not() -> None:
    model, rows = _model(SIMSoft(3)), _rows()
    unit = model.interests[1]
    kernels = [unit.candidate_projection.kernel, unit.behaviour_projection.kernel]
    before = [kernel.numpy() for kernel in kernels]
    model.train_step((rows, tf.constant(LABELS)))
    assert all((kernel.numpy() != old).any() for kernel, old in zip(kernels, before, strict=True))
