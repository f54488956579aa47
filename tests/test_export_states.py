"""The signatures of an export about user states."""

from __future__ import annotations

import functools
from collections.abc import Callable
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
MIMN_STATES = {f"mimn_{name}" for name in MIMN.state_names}
ITEMS = np.array([f"item {number}" for number in range(30)])


# Units of rankers by the name of the export: those with a state, and one without.
UNITS: dict[str, list[Callable[[], InterestUnit]]] = {
    "sdim": [SDIM],
    "mimn": [MIMN],
    "two states": [SDIM, lambda: MIMN(memory_dim=4, controller_units=4)],
    "pooling": [PoolingInterest],
    "recent and sdim": [lambda: RecentInterest(3), SDIM],
}

Exported = Callable[[str, Features], Any]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The signatures of a ranker of `UNITS`, by its name and features; each is exported once."""

    @functools.cache
    def signatures(name: str, aged: bool) -> Any:
        tf.keras.utils.set_random_seed(4)
        lookup = FeatureLookup(AGED if aged else FEATURES)
        lookup.adapt({"item_id": ITEMS, "action": np.arange(4), "user_id": np.arange(5)})
        model = Ranker(lookup=lookup, interests=[unit() for unit in UNITS[name]], hidden_units=(6,))
        model.build()
        for variable in model.trainable_variables:
            variable.assign(tf.random.normal(variable.shape, stddev=0.5))
        # Kept whole, since signatures do not keep their variables.
        return tf.saved_model.load(str(export_model(model, tmp_path_factory.mktemp("export"))))

    return lambda name, features: signatures(name, features is AGED).signatures


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
    ("name", "features", "states"),
    [
        ("sdim", FEATURES, {"sdim_buckets"}),
        ("pooling", AGED, {"pooling_interest_mean"}),
        ("mimn", FEATURES, MIMN_STATES),
        ("two states", AGED, {"sdim_buckets", *MIMN_STATES}),
        ("recent and sdim", FEATURES, {"sdim_buckets"}),
        ("recent and sdim", AGED, {"sdim_buckets"}),
    ],
    ids=lambda value: {id(FEATURES): "without age", id(AGED): "with age"}.get(id(value)),
)
def test_ranking_from_a_state_equals_ranking(
    exported: Exported, name: str, features: Features, states: set[str]
) -> None:
    signatures = exported(name, features)
    request = _request([8, 0, 1, 5], age=features is AGED)
    state = _call(signatures, "user_state", request)
    assert set(state) == states
    assert all(len(value) == 4 for value in state.values())
    taken = set(signatures["rank_from_state"].structured_input_signature[1])
    reads_history = name == "recent and sdim"
    assert any(column.startswith("history") for column in taken) == reads_history
    assert ("timestamp" in taken) == (reads_history and features is AGED)
    expected = _call(signatures, "rank", request)["probability"]
    found = _call(signatures, "rank_from_state", {**request, **state})["probability"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.std(expected) > 0.01


@pytest.mark.parametrize("new", [0, 1, 3, 8])
def test_updated_state_equals_that_of_the_whole_history(exported: Exported, new: int) -> None:
    signatures = exported("mimn", FEATURES)
    request = _request([8, 8, 8])
    history = {name: x for name, x in request.items() if name.startswith("history_") and name != "history_length"}
    older = {name: x[:, new:] for name, x in history.items()} | {"history_length": np.full(3, 8 - new)}
    newer = {name: x[:, :new] for name, x in history.items()} | {"history_length": np.full(3, new)}
    state = _call(signatures, "user_state", {**request, **older})
    updated = _call(signatures, "update_state", {**newer, **state})
    for name, expected in _call(signatures, "user_state", request).items():
        np.testing.assert_allclose(updated[name], expected, atol=1e-5, err_msg=name)
    assert new == 0 or any(np.abs(updated[name] - state[name]).max() > 1e-3 for name in state)


@pytest.mark.parametrize(
    ("name", "features", "others"),
    [
        ("sdim", FEATURES, set()),
        ("recent and sdim", FEATURES, {"explain"}),
        ("two states", AGED, set()),
        ("mimn", FEATURES, {"update_state"}),
    ],
)
def test_signatures_exist_where_a_unit_has_a_state(
    exported: Exported, name: str, features: Features, others: set[str]
) -> None:
    always = {"serving_default", "rank", "examples", "user_state", "rank_from_state"}
    assert set(exported(name, features)) == always | others


def test_bad_states_are_refused_by_name(exported: Exported) -> None:
    signatures = exported("sdim", FEATURES)
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
