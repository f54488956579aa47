"""What is SIM's own: the click loss behind its projections, and an index that lags."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta.columns import HISTORY_AGE
from keras_eta.interest import SIMSoft
from tests import reference
from tests.interest.unit_check import CANDIDATES, make_batch, make_ranker


def _interest(model: Any, batch: Any, training: bool = False) -> Any:
    return model.score(batch, training=training).interests["sim_soft"]


def test_auxiliary_logits_are_those_of_the_pooled_history() -> None:
    model = make_ranker(SIMSoft(3, search_dim=5, auxiliary_units=(4,)))
    unit, batch = model.interests[0], make_batch(12, [12, 0, 5])
    logits = _interest(model, batch, training=True).auxiliary_logits
    assert logits.shape == [3, CANDIDATES]
    table = model.embeddings["item_id"].embeddings.numpy()
    kernels = unit.candidate_projection.kernel.numpy(), unit.behaviour_projection.kernel.numpy()
    hidden, click = (layer.get_weights() for layer in unit.click_layers)
    for r, length in enumerate([12, 0, 5]):
        behaviours = table[batch["history_item_id"][r, :length]]
        for c in range(CANDIDATES):
            candidate = table[batch["item_id"][r, c]]
            _, pooled = reference.sim_soft(candidate, behaviours, *kernels)
            inputs = np.concatenate([pooled, candidate])
            expected = np.maximum(inputs @ hidden[0] + hidden[1], 0.0) @ click[0] + click[1]
            np.testing.assert_allclose(logits[r, c], expected[0], 1e-4, 1e-4)
    assert _interest(model, batch).auxiliary_logits is None


@pytest.mark.parametrize("index_period", [None, 2])
def test_projections_learn_by_the_click_loss_alone(index_period: int | None) -> None:
    model = make_ranker(SIMSoft(3, index_period=index_period))
    unit, batch = model.interests[0], make_batch(12, [12, 9, 5])
    kernels = [unit.candidate_projection.kernel, unit.behaviour_projection.kernel]
    with tf.GradientTape(persistent=True) as tape:
        interest = _interest(model, batch, training=True)
        ranking, click = tf.reduce_sum(interest.vector), tf.reduce_sum(interest.auxiliary_logits)
    assert tape.gradient(ranking, kernels) == [None, None]
    assert all(np.abs(gradient).max() > 1e-3 for gradient in tape.gradient(click, kernels))


def test_behaviours_of_negative_score_come_before_padding() -> None:
    model = make_ranker(SIMSoft(3))
    unit, batch = model.interests[0], make_batch(12, [2, 1, 3])
    unit.candidate_projection.kernel.assign(-tf.eye(8))
    unit.behaviour_projection.kernel.assign(tf.eye(8))
    model.embeddings["item_id"].embeddings.assign(tf.abs(model.embeddings["item_id"].embeddings))
    retrieved = _interest(model, batch).retrieved
    assert np.all(retrieved.scores.numpy()[retrieved.mask.numpy()] < 0)
    assert tf.reduce_sum(tf.cast(retrieved.mask, tf.int32), -1).numpy().tolist() == [
        [n] * CANDIDATES for n in (2, 1, 3)
    ]


def test_attends_to_the_age_that_it_does_not_search_by() -> None:
    model, batch = make_ranker(SIMSoft(3)), make_batch(12, [12, 9, 5])
    older = _interest(model, {**batch, HISTORY_AGE: tf.ones_like(batch[HISTORY_AGE]) * 3})
    younger = _interest(model, {**batch, HISTORY_AGE: tf.ones_like(batch[HISTORY_AGE])})
    assert np.array_equal(older.retrieved.positions, younger.retrieved.positions)
    assert np.all(np.abs(older.vector - younger.vector).max(axis=-1) > 1e-3)


def test_index_holds_tables_and_projections_of_one_moment() -> None:
    model = make_ranker(SIMSoft(3, index_period=3))
    unit = model.interests[0]
    sources = [model.embeddings["item_id"].embeddings, unit.candidate_projection.kernel]
    sources.append(unit.behaviour_projection.kernel)
    copies = [unit.snapshot.copies["item_id"], *(unit.snapshot.projections[x] for x in ("candidate", "behaviour"))]
    for step in (1, 2):
        unit.after_step(tf.constant(step))
        assert not any(np.array_equal(copy, source) for copy, source in zip(copies, sources, strict=True))
    unit.after_step(tf.constant(3))
    assert all(np.array_equal(copy, source) for copy, source in zip(copies, sources, strict=True))


def test_alpha_is_the_weight_of_the_auxiliary_loss() -> None:
    assert SIMSoft(alpha=0.25).auxiliary_weight == 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 0}, "`alpha` must be a positive number: without the click loss, no gradient .* Received: alpha=0$"),
        ({"alpha": float("inf")}, "`alpha` must be a positive number: .* Received: alpha=inf$"),
        ({"alpha": True}, "`alpha` must be a positive number: .* Received: alpha=True$"),
        ({"search_dim": 0}, "`search_dim` must be a positive integer. Received: search_dim=0"),
        ({"index_period": 1.5}, "`index_period` must be a positive integer. Received: index_period=1.5"),
        ({"auxiliary_units": ()}, r"`auxiliary_units` must be positive integers. Received: auxiliary_units=\(\)"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SIMSoft(**arguments)
