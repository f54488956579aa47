"""What is MIMN's own: a state that events update, and the regularisation of its writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta.columns import HISTORY_AGE, HISTORY_LENGTH
from keras_eta.interest import MIMN
from tests import reference
from tests.interest.test_units import mimn_weights
from tests.interest.unit_check import make_batch, make_ranker

SIZES: dict[str, Any] = {"memory_dim": 5, "controller_units": 6, "induction_slots": 2}


@pytest.fixture(scope="module")
def model() -> Any:
    return make_ranker(MIMN(3, utilization_weight=0.5, **SIZES))


def _columns(model: Any, batch: Any, start: int = 0, stop: int = 12) -> Any:
    """Columns [start:stop] of a history."""
    history = model.feature_embedding.sequence(batch, "history")
    positions = tf.broadcast_to(tf.range(start, stop), [len(history.mask), stop - start])
    return history.take(positions, tf.gather(history.mask, positions, batch_dims=1))


def _oldest_first(model: Any, batch: Any, row: int) -> np.ndarray:
    history = _columns(model, batch)
    vectors = np.concatenate([x[row] for name, x in history.by_name.items() if name != HISTORY_AGE], axis=-1)
    return vectors[: batch[HISTORY_LENGTH][row]][::-1]


def test_state_and_row_loss_are_those_of_the_loops(model: Any) -> None:
    unit, lengths = model.interests[0], [12, 0, 5]
    batch = make_batch(12, lengths)
    state = unit.user_state(_columns(model, batch))
    loss = model.score(batch, training=True).interests["mimn"].row_loss
    assert loss.shape == [3]
    for r in range(3):
        expected = reference.mimn(_oldest_first(model, batch, r), mimn_weights(unit), unit.induction_slots)
        assert tuple(state) == tuple(expected) == unit.state_names
        for name, value in expected.items():
            np.testing.assert_allclose(state[name][r], value, 1e-4, 1e-5, err_msg=f"{name}, row {r}")
        mean = sum(expected["writes"]) / 3
        np.testing.assert_allclose(loss[r], 0.5 * sum((write - mean) ** 2 for write in expected["writes"]), 1e-4, 1e-7)
    assert model.score(batch).interests["mimn"].row_loss is None


@pytest.mark.parametrize("new", [0, 3, 12])
def test_update_state_equals_the_whole_history(model: Any, new: int) -> None:
    unit, batch = model.interests[0], make_batch(12, [12, 12, 12])
    old, recent = _columns(model, batch, new), _columns(model, batch, 0, new)
    whole = unit.user_state(_columns(model, batch))
    updated = unit.update_state(unit.user_state(old), recent)
    for name in unit.state_names:
        np.testing.assert_allclose(updated[name], whole[name], 1e-5, 1e-5, err_msg=name)
    # One by one, in a graph, as a service of events does.
    step = tf.function(unit.update_state, reduce_retracing=True)
    state = unit.user_state(old)
    for position in reversed(range(new)):
        state = step(state, _columns(model, batch, position, position + 1))
    for name in unit.state_names:
        np.testing.assert_allclose(state[name], whole[name], 1e-5, 1e-5, err_msg=name)


def test_update_state_with_padded_behaviours_writes_the_real_ones(model: Any) -> None:
    unit, lengths, new = model.interests[0], [12, 7, 3], [2, 0, 3]
    batch = make_batch(12, lengths)
    history = model.feature_embedding.sequence(batch, "history")
    starts = tf.constant(new)[:, tf.newaxis]
    later = tf.minimum(tf.range(12) + starts, 11)
    old = history.take(later, tf.range(12) + starts < tf.constant(lengths)[:, tf.newaxis])
    # Padded in front as well as behind: only the mask says what is real.
    shifted = tf.constant([[0, 0, 1, 5], [3, 4, 5, 6], [0, 1, 2, 9]])
    mask = tf.constant([[False, True, True, False], [False] * 4, [True, True, True, False]])
    updated = unit.update_state(unit.user_state(old), history.take(shifted, mask))
    whole = unit.user_state(history)
    for name in unit.state_names:
        np.testing.assert_allclose(updated[name], whole[name], 1e-5, 1e-5, err_msg=name)


def test_ages_do_not_enter_the_state(model: Any) -> None:
    unit, batch = model.interests[0], make_batch(12, [12, 7, 3])
    later = {**batch, HISTORY_AGE: tf.ones_like(batch[HISTORY_AGE]) * 3}
    states = [unit.user_state(_columns(model, x)) for x in (batch, later)]
    for name in unit.state_names:
        assert np.array_equal(states[0][name], states[1][name])


def test_reads_the_most_recent_ones_up_to_its_maximum() -> None:
    model = make_ranker(MIMN(3, max_length=4, **SIZES))
    unit, batch = model.interests[0], make_batch(12, [12, 7, 3])
    state = unit.user_state(_columns(model, batch))
    recent = unit.user_state(_columns(model, batch, 0, 4))
    for name in unit.state_names:
        np.testing.assert_allclose(state[name], recent[name], 1e-6, 1e-6, err_msg=name)


def test_every_slot_goes_to_the_ranker_and_no_candidate_into_it(model: Any) -> None:
    unit, batch = model.interests[0], make_batch(12, [12, 7, 3])
    candidate, state = model.feature_embedding.candidates(batch), unit.user_state(_columns(model, batch))
    vector = unit.from_state(candidate, state).vector.numpy()
    assert np.array_equal(vector, np.broadcast_to(vector[:, :1], vector.shape))
    for index, name in enumerate(("memory", "induction")):
        for slot in range(3):
            changed = state[name].numpy()
            changed[:, slot] += 1.0
            moved = unit.from_state(candidate, {**state, name: changed}).vector.numpy() - vector
            first = 5 * (3 * index + slot)
            expected = np.zeros(vector.shape)
            expected[..., first : first + 5] = 1.0
            np.testing.assert_allclose(moved, expected, 1e-5, 1e-5)


def test_rows_do_not_depend_on_the_batch(model: Any) -> None:
    unit, batch = model.interests[0], make_batch(12, [12, 7, 3])
    together = unit.user_state(_columns(model, batch))
    for r in range(3):
        alone = unit.user_state(_columns(model, {name: x[r : r + 1] for name, x in batch.items()}))
        for name in unit.state_names:
            np.testing.assert_allclose(alone[name][0], together[name][r], 1e-5, 1e-6, err_msg=name)


def test_state_is_float32_under_mixed_precision() -> None:
    policy = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = make_ranker(MIMN(3, **SIZES))
        state = model.interests[0].user_state(_columns(model, make_batch(12, [12, 7, 3])))
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)
    assert {x.dtype for x in state.values()} == {tf.float32}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_slots": 0}, "`num_slots` must be a positive integer. Received: num_slots=0"),
        ({"max_length": 0}, "`max_length` must be a positive integer. Received: max_length=0"),
        (
            {"induction_slots": 5},
            "`induction_slots` must be at most `num_slots`. Received: induction_slots=5, num_slots=4",
        ),
        (
            {"utilization_weight": -1.0},
            "`utilization_weight` must be a number of at least 0. Received: utilization_weight=-1.0",
        ),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MIMN(**arguments)
