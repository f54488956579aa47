"""The signatures of an export about user states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import Age, Feature, FeatureLookup, Features, Ranker
from keras_eta.export import export_model
from keras_eta.interest import MIMN, SDIM, InterestUnit, PoolingInterest, RecentInterest

Columns = dict[str, np.ndarray]

FEATURES = Features(
    item_id=Feature("item_id", "string", embedding_dim=8),
    behaviour_attributes=(Feature("action", embedding_dim=3), Feature("dwell", "float32", mean=0.0, std=1.0)),
    user=(Feature("user_id", embedding_dim=4),),
    context=(Feature("hour", "float32", mean=0.0, std=1.0),),
    max_history_length=10,
)
AGED = Features(**{**vars(FEATURES), "age": Age((10, 100))})
ITEMS = np.array([f"item {number}" for number in range(30)])


def _exported(path: Path, features: Features, *units: InterestUnit) -> Any:
    tf.keras.utils.set_random_seed(4)
    lookup = FeatureLookup(features)
    lookup.adapt({"item_id": ITEMS, "action": np.arange(4), "user_id": np.arange(5)})
    model = Ranker(lookup=lookup, interests=list(units), hidden_units=(6,))
    model.build()
    for variable in model.trainable_variables:
        variable.assign(tf.random.normal(variable.shape, stddev=0.5))
    return tf.saved_model.load(str(export_model(model, path))).signatures


def _request(lengths: list[int], length: int = 8, candidates: int = 5, age: bool = False) -> Columns:
    rng, rows = np.random.default_rng(1), len(lengths)
    columns = {
        "item_id": rng.choice(ITEMS, (rows, candidates)),
        "user_id": rng.integers(0, 6, rows),
        "hour": rng.random(rows).astype(np.float32),
        "history_item_id": rng.choice(ITEMS, (rows, length)),
        "history_action": rng.integers(0, 5, (rows, length)),
        "history_dwell": rng.random((rows, length)).astype(np.float32),
        "history_length": np.array(lengths),
    }
    if age:
        columns["timestamp"] = np.full(rows, 1_000)
        columns["history_timestamp"] = 1_000 - np.sort(rng.integers(0, 300, (rows, length)))
    return columns


def _call(signatures: Any, name: str, columns: Columns) -> Columns:
    wanted = signatures[name].structured_input_signature[1]
    answer = signatures[name](**{key: tf.constant(columns[key]) for key in wanted})
    return {key: value.numpy() for key, value in answer.items()}


@pytest.mark.parametrize(
    ("units", "states"),
    [
        ([SDIM], {"sdim_buckets"}),
        ([PoolingInterest, SDIM], {"pooling_interest_mean", "sdim_buckets"}),
        ([MIMN], {f"mimn_{name}" for name in MIMN.state_names}),
        ([lambda: RecentInterest(3), SDIM], {"sdim_buckets"}),
    ],
)
@pytest.mark.parametrize("features", [FEATURES, AGED], ids=["without age", "with age"])
def test_ranking_from_a_state_equals_ranking(tmp_path: Path, features: Features, units: Any, states: set[str]) -> None:
    signatures = _exported(tmp_path, features, *(unit() for unit in units))
    request = _request([8, 0, 1, 5], age=features is AGED)
    state = _call(signatures, "user_state", request)
    assert set(state) == states
    assert all(len(value) == 4 for value in state.values())
    taken = set(signatures["rank_from_state"].structured_input_signature[1])
    reads_history = len(units) > 1 and units[-1] is SDIM and units[0] is not PoolingInterest
    assert any(name.startswith("history") for name in taken) == reads_history
    expected = _call(signatures, "rank", request)["probability"]
    found = _call(signatures, "rank_from_state", {**request, **state})["probability"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.std(expected) > 0.01


@pytest.mark.parametrize("new", [0, 1, 3, 8])
def test_updated_state_equals_that_of_the_whole_history(tmp_path: Path, new: int) -> None:
    signatures = _exported(tmp_path, FEATURES, MIMN())
    request = _request([8, 8, 8])
    history = {name: x for name, x in request.items() if name.startswith("history_") and name != "history_length"}
    older = {name: x[:, new:] for name, x in history.items()} | {"history_length": np.full(3, 8 - new)}
    newer = {name: x[:, :new] for name, x in history.items()} | {"history_length": np.full(3, new)}
    state = _call(signatures, "user_state", {**request, **older})
    updated = _call(signatures, "update_state", {**newer, **state})
    for name, expected in _call(signatures, "user_state", request).items():
        np.testing.assert_allclose(updated[name], expected, atol=1e-5, err_msg=name)
    assert new == 0 or any(np.abs(updated[name] - state[name]).max() > 1e-3 for name in state)


def test_signatures_exist_where_a_unit_has_a_state(tmp_path: Path) -> None:
    always = {"serving_default", "rank", "examples"}
    of_states = {"user_state", "rank_from_state"}
    for number, (units, expected) in enumerate(
        [
            ([RecentInterest()], always | {"explain"}),
            ([SDIM()], always | of_states),
            ([SDIM(), MIMN()], always | of_states),
            ([MIMN()], always | of_states | {"update_state"}),
        ]
    ):
        assert set(_exported(tmp_path / str(number), FEATURES, *units)) == expected


def test_bad_states_are_refused_by_name(tmp_path: Path) -> None:
    signatures = _exported(tmp_path, FEATURES, SDIM())
    request = _request([8, 0])
    request |= _call(signatures, "user_state", request)
    buckets = request["sdim_buckets"]
    assert buckets.shape == (2, 16, 8, 12)
    nan = buckets.copy()
    nan[1, 2, 3, 4] = np.nan
    for wrong, message in (
        (buckets[:, :15], r"`sdim_buckets` must have shape \[R, 16, 8, 12\]"),
        (buckets[0], r"`sdim_buckets` must have shape \[R, 16, 8, 12\]"),
        (buckets[:1], "must have as many rows as"),
        (nan, "`sdim_buckets` must be finite"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            _call(signatures, "rank_from_state", {**request, "sdim_buckets": wrong})
