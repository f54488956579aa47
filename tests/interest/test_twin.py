"""What is TWIN's own: behaviours taken from the heads in turn, cross features, and tables of projected keys."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import Ranker
from keras_eta.interest import TWIN
from keras_eta.interest.twin import take_in_turn
from keras_eta.ops import project
from tests import reference
from tests.interest.unit_check import CANDIDATES, FEATURES, make_batch, make_ranker


def _interest(model: Any, batch: Any) -> Any:
    return model.score(batch).interests["twin"]


def test_take_in_turn_by_hand() -> None:
    # Head 0 finds 5, 2, 7 and head 1 finds 5, 9, 2: 5 of head 0, the same of head 1, 2 of head 0, 9 of head 1.
    positions, mask = take_in_turn(tf.constant([[5, 2, 7], [5, 9, 2]]), tf.ones([2, 3], tf.bool))
    assert positions.numpy().tolist() == [5, 2, 9]
    assert mask.numpy().tolist() == [True] * 3
    # Only two behaviours are real.
    real = tf.constant([[True, True, False], [True, True, False]])
    positions, mask = take_in_turn(tf.constant([[1, 0, 0], [0, 1, 0]]), real)
    assert positions.numpy().tolist() == [1, 0, 0]
    assert mask.numpy().tolist() == [True, True, False]


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(("heads", "top_k", "length"), [(1, 4, 9), (3, 4, 5), (4, 5, 3), (4, 7, 40)])
def test_take_in_turn_as_in_loops(heads: int, top_k: int, length: int, jit_compile: bool) -> None:
    rng, real = np.random.default_rng(heads), min(length, top_k)
    rankings = np.zeros([6, 2, heads, top_k], np.int32)
    for index in np.ndindex(6, 2, heads):
        rankings[index][:real] = rng.permutation(length)[:real]
    mask = np.broadcast_to(np.arange(top_k) < real, rankings.shape)
    take = tf.function(take_in_turn, jit_compile=jit_compile)
    positions, found = (x.numpy() for x in take(tf.constant(rankings), tf.constant(mask)))
    for index in np.ndindex(6, 2):
        expected = reference.take_in_turn(rankings[index][:, :real].tolist(), top_k)
        assert positions[index][found[index]].tolist() == expected
        assert positions[index][~found[index]].tolist() == [0] * (top_k - len(expected))


def test_behaviours_are_retrieved_once() -> None:
    model = make_ranker(TWIN(9, num_heads=4))
    retrieved = _interest(model, make_batch(12, [12, 12, 5])).retrieved
    for r, real in enumerate([9, 9, 5]):
        for c in range(CANDIDATES):
            found = retrieved.positions[r, c].numpy()[retrieved.mask[r, c].numpy()]
            assert len(set(found.tolist())) == len(found) == real


def test_a_cross_feature_is_a_scalar_per_behaviour() -> None:
    model = make_ranker(TWIN(12, num_heads=2))
    unit, batch = model.interests[0], make_batch(12, [12, 12, 12])
    dwell = batch["history_dwell"].numpy()
    dwell[:, 3] += 2.0
    before, after = (_interest(model, x).weights.numpy() for x in (batch, {**batch, "history_dwell": dwell}))
    # All 12 are retrieved, so log-odds against another behaviour move by the scalar's change in each head.
    positions = [_interest(model, x).retrieved.positions.numpy() for x in (batch, {**batch, "history_dwell": dwell})]
    kernel, scale = unit.cross_kernel.numpy()[2], unit.cross_scale.numpy()[1]
    for r, c in np.ndindex(3, CANDIDATES):
        moved = []
        for weights, order in zip((before, after), positions, strict=True):
            at = [order[r, c].tolist().index(position) for position in (3, 7)]
            moved.append(np.log(weights[r, c][:, at[0]] / weights[r, c][:, at[1]]))
        np.testing.assert_allclose(moved[1] - moved[0], 2.0 * kernel * scale, 1e-3, 1e-4)


def test_without_cross_features() -> None:
    features = dataclasses.replace(FEATURES, behaviour_attributes=(), age=None)
    model, batch = make_ranker(TWIN(3, num_heads=2), features), make_batch(12, [12, 0, 5])
    unit, interest = model.interests[0], _interest(model, batch)
    assert [weight.name for weight in unit.trainable_weights if "cross" in weight.name] == []
    kernels = {name: getattr(unit, f"{name}_kernel").numpy() for name in ("query", "key", "value", "output")}
    tables = {name: model.embeddings[name].embeddings.numpy() for name in ("item_id", "category_id")}

    def vectors(prefix: str, *index: Any) -> np.ndarray:
        ids = [tables[name][batch[f"{prefix}{name}"].numpy()[index]] for name in tables]
        return np.concatenate([*ids, batch[f"{prefix}price"].numpy()[index][..., np.newaxis]], axis=-1)

    for r, length in enumerate([12, 0, 5]):
        for c in range(CANDIDATES):
            query, behaviours = vectors("", r, c), vectors("history_", r, slice(0, length))
            vector, positions, scores, _ = reference.twin(query, behaviours, [], {**kernels, "cross": []}, 2, 3)
            np.testing.assert_allclose(interest.vector[r, c], vector, 1e-4, 1e-5)
            assert interest.retrieved.positions[r, c].numpy().tolist() == positions + [0] * (3 - len(positions))
            np.testing.assert_allclose(interest.retrieved.scores[r, c][: len(scores)], scores, 1e-4, 1e-5)


def _assert_exact(model: Any, unit: TWIN) -> None:
    assert list(unit.projected) == ["item_id", "category_id"]
    starts = {"item_id": slice(0, 8), "category_id": slice(8, 12)}
    for name, table in unit.projected.items():
        expected = project(model.embeddings[name].embeddings, unit.key_kernel[starts[name]])
        assert np.any(table.numpy())
        assert np.array_equal(table, expected), name


@pytest.mark.parametrize("legacy", [False, True])
def test_projected_tables_are_exact_after_every_step(legacy: bool) -> None:
    model = Ranker(FEATURES, interests=[TWIN(3, projected_table=True)], hidden_units=(4,))
    model.compile(tf.keras.optimizers.legacy.Adam(0.1) if legacy else None)
    model.build()
    unit: Any = model.interests[0]
    _assert_exact(model, unit)
    batch = make_batch(12, [12, 0, 5])
    rows = {name: x[:, 0] if name in ("item_id", "category_id", "price") else x for name, x in batch.items()}
    for step in range(3):
        before = unit.key_kernel.numpy()
        model.train_on_batch(rows, np.array([1.0, 0.0, 1.0]) if step != 1 else np.array([0.0, 1.0, 0.0]))
        assert not np.array_equal(before, unit.key_kernel)
        _assert_exact(model, unit)


def test_projected_tables_change_no_bit() -> None:
    model = make_ranker(TWIN(3, projected_table=True))
    unit: Any = model.interests[0]
    plain = make_ranker(TWIN(3))
    for source, target in zip(model.trainable_variables, plain.trainable_variables, strict=True):
        target.assign(source)
    batch = make_batch(12, [12, 0, 5])
    history = model.feature_embedding.sequence(batch, "history")
    for run in (lambda f: f, tf.function):
        tables, on_the_fly = (run(x.interests[0].projected_keys)(history).numpy() for x in (model, plain))
        assert np.array_equal(tables, on_the_fly)
        tables, on_the_fly = (run(lambda x=x: _interest(x, batch))() for x in (model, plain))
        assert np.array_equal(tables.vector, on_the_fly.vector)
        assert np.array_equal(tables.retrieved.positions, on_the_fly.retrieved.positions)
    # The tables are what is read.
    for table in unit.projected.values():
        table.assign(tf.zeros_like(table))
    assert not np.array_equal(_interest(model, batch).retrieved.positions, on_the_fly.retrieved.positions)
    unit.refresh()
    assert np.array_equal(_interest(model, batch).retrieved.positions, on_the_fly.retrieved.positions)


def test_projected_tables_are_saved_with_the_weights(tmp_path: Any) -> None:
    model = make_ranker(TWIN(3, projected_table=True))
    model.save_weights(tmp_path / "weights.h5")
    twin = copy.deepcopy(Ranker.from_config(model.get_config()))
    twin.build()
    twin.load_weights(tmp_path / "weights.h5")
    _assert_exact(twin, twin.interests[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "`top_k` must be a positive integer. Received: top_k=0"),
        ({"num_heads": 0}, "`num_heads` must be a positive integer. Received: num_heads=0"),
        ({"key_dim": 0}, "`key_dim` must be a positive integer. Received: key_dim=0"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TWIN(**arguments)
