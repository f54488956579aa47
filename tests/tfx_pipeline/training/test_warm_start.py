"""Warm starts of rankers of any units, where ids come, go and change places."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import Age, Feature, Features, Positives, ops
from keras_eta.interest import (
    MIMN,
    SDIM,
    TWIN,
    ETAInterest,
    InnerProductInterest,
    InterestUnit,
    RecentInterest,
    SIMSoft,
)
from keras_eta.layers import ActivationUnit
from tests.tfx_pipeline.training.bare_export import export_bare
from tfx_pipeline.model_config import Model
from tfx_pipeline.ranker import make_ranker
from tfx_pipeline.training.accumulators import accumulators, save_accumulators
from tfx_pipeline.training.warm_start import warm_start

FEATURES = Features(
    item_id=Feature("item_id", embedding_dim=8, num_oov_indices=2),
    item_attributes=(Feature("category", "string", embedding_dim=4),),
    behaviour_attributes=(Feature("action", embedding_dim=2),),
    user=(Feature("user_id", embedding_dim=4),),
    age=Age((60, 3600), embedding_dim=2),
    max_history_length=6,
)
OLD: dict[str, list[Any]] = {
    "item_id": [10, 11, 12, 13],
    "category": ["a", "b", "c"],
    "action": [0, 1],
    "user_id": [1, 2],
}
# 11 and "b" are gone, 99 and "new" have come, and the others have changed places.
NEW: dict[str, list[Any]] = {
    "item_id": [13, 99, 10, 12],
    "category": ["c", "new", "a"],
    "action": [1, 0],
    "user_id": [3, 2, 1],
}
SLOT = "accumulator"


def make(
    units: Sequence[InterestUnit],
    vocabularies: dict[str, list[Any]],
    retrieval_weight: float = 1.0,
    features: Features = FEATURES,
) -> Any:
    ids = {name: np.array(values, object) for name, values in vocabularies.items()}
    configuration = Model(
        units,  # type: ignore[arg-type]
        hidden_units=(4,),
        activation="keras_eta>Dice",
        retrieval_weight=retrieval_weight,
    )
    model = make_ranker(configuration, features, ids)
    optimizer = model.default_optimizer()
    optimizer.build(model.trainable_variables)
    model.compile(optimizer)
    return model


def randomize(model: Any) -> None:
    """Gives every float variable, and every accumulator, values of its own."""
    generator = np.random.default_rng(0)
    variables = [x for x in model.variables if isinstance(x, tf.Variable) and x.dtype == tf.float32]
    for variable in [*variables, *accumulators(model).values()]:
        variable.assign(generator.uniform(0.2, 3.0, variable.shape).astype(np.float32))
    for unit in model.interests:
        unit.refresh()


def expected(fresh: np.ndarray, base: np.ndarray, name: str, num_oov: int) -> np.ndarray:
    """What a table must hold: the base's row of each id that it knows, else the row that was there."""
    result = fresh.copy()
    reserved = 1 + num_oov
    result[:reserved] = base[:reserved]
    for place, id_ in enumerate(NEW[name]):
        if id_ in OLD[name]:
            result[reserved + place] = base[reserved + OLD[name].index(id_)]
    return result


def tables(model: Any) -> dict[tuple[str, str], np.ndarray]:
    """Tables and their accumulators by (name of the variable, name of the feature)."""
    found, slots = {}, accumulators(model)
    for embedding in (model.feature_embedding, *model.own_embeddings.values()):
        for name, table in embedding.tables.items():
            found[table.embeddings.name, name] = table.embeddings.numpy()
            found[SLOT + table.embeddings.name, name] = slots[table.embeddings.name].numpy()
    return found


UNITS: dict[str, Any] = {
    "own tables": lambda: [
        ETAInterest(2, similarity_bias=True, trainable_planes=True),
        SDIM(own_embeddings=True),
        MIMN(max_length=2, own_embeddings=True),
    ],
    "state by row": lambda: [
        SIMSoft(2, index_period=3),
        InnerProductInterest(2, index_period=3, own_embeddings=True),
        TWIN(2, projected_table=True),
        RecentInterest(2, attention=ActivationUnit()),
    ],
}


@pytest.fixture(scope="module", params=UNITS)
def started(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, dict[tuple[str, str], Any]]:
    """A base, the model that was started from it, and the model's tables before that."""
    base = make(UNITS[request.param](), OLD)
    randomize(base)
    directory = tmp_path_factory.mktemp("served")
    save_accumulators(base, export_bare(base, directory, 5))
    model = make(UNITS[request.param](), NEW)
    before = tables(model)
    assert warm_start(model, str(directory)) == 5
    return base, model, before


@pytest.mark.slow
def test_rows_and_accumulators_follow_their_ids(started: Any) -> None:
    base, model, before = started
    old, new = tables(base), tables(model)
    assert set(old) == set(new) == set(before)
    num_oov = {feature.name: feature.num_oov_indices for feature in FEATURES.all_features}
    for (variable, name), values in new.items():
        wanted = old[variable, name]
        if name in NEW:
            wanted = expected(before[variable, name], wanted, name, num_oov[name])
        np.testing.assert_array_equal(values, wanted, err_msg=variable)
        assert not np.array_equal(values, before[variable, name])
    fresh = new[SLOT + "embeddings/item_id/embeddings:0", "item_id"][3 + NEW["item_id"].index(99)]
    np.testing.assert_array_equal(fresh, np.full(8, 0.1, np.float32))


@pytest.mark.slow
def test_everything_else_is_the_bases_or_follows_from_the_weights(started: Any) -> None:
    base, model, _ = started
    with_rows = {id(table.embeddings) for table in model.feature_embedding.tables.values()}
    with_rows |= {id(t.embeddings) for own in model.own_embeddings.values() for t in own.tables.values()}
    compared = 0
    for ours, theirs in zip(model.weights, base.weights, strict=True):
        derived = ("fingerprints:0", "snapshot_0:0", "projected_0:0", "projected_1:0")
        if id(ours) not in with_rows and not ours.name.endswith(derived):
            np.testing.assert_array_equal(ours, theirs, err_msg=ours.name)
            compared += 1
    # Of the MLP alone: two kernels, two biases, and Dice's slope, mean and variance.
    assert compared > 7
    for embedding in (model.feature_embedding, *model.own_embeddings.values()):
        table = embedding.tables["item_id"]
        if hasattr(table, "fingerprints_table"):
            np.testing.assert_array_equal(table.fingerprints_table, ops.simhash(table.embeddings, table.hash.planes))
    for unit in model.interests:
        if isinstance(unit, TWIN):
            kernel = unit.key_kernel.numpy()
            projected = model.embeddings["item_id"].embeddings.numpy() @ kernel[:8]
            np.testing.assert_allclose(unit.projected["item_id"], projected, rtol=1e-4)

    snapshots = {unit.name: unit.snapshot.copies["item_id"].numpy() for unit in base.interests if _has_snapshot(unit)}
    for unit in filter(_has_snapshot, model.interests):
        table = model.embedding_of(unit).tables["item_id"].embeddings.numpy()
        copy = unit.snapshot.copies["item_id"].numpy()
        # A new id enters as it is, the others with the lag that they had.
        np.testing.assert_array_equal(copy, expected(table, snapshots[unit.name], "item_id", 2))
        assert not np.array_equal(copy, table)


def _has_snapshot(unit: Any) -> bool:
    return getattr(unit, "snapshot", None) is not None


@pytest.mark.slow
def test_what_the_base_lacks_is_made_anew(tmp_path: Path) -> None:
    base = make([InnerProductInterest(2)], OLD)
    randomize(base)
    export_bare(base, tmp_path, 5)
    model = make([InnerProductInterest(2, index_period=100)], NEW)
    assert warm_start(model, str(tmp_path)) == 5
    embeddings = model.embeddings["item_id"].embeddings
    np.testing.assert_array_equal(embeddings[3], base.embeddings["item_id"].embeddings[6])
    np.testing.assert_array_equal(model.interests[0].snapshot.copies["item_id"], embeddings)
    for accumulator in accumulators(model).values():
        np.testing.assert_array_equal(accumulator, np.full(accumulator.shape, 0.1, np.float32))


@pytest.mark.parametrize("base_has_task", [True, False])
def test_counts_of_the_retrieval_task_follow_their_ids(base_has_task: bool, tmp_path: Path) -> None:
    units = [RecentInterest(2)]
    base = make(units, OLD, retrieval_weight=float(base_has_task))
    drawn = np.array([0, 1, 2, 10, 11, 12, 13])
    if base_has_task:
        base.retrieval_task.drawn.assign(drawn)
    export_bare(base, tmp_path, 5)
    # Which behaviours are positive is no column: a base from before it was declared is warm.
    positives = dataclasses.replace(FEATURES, positives=Positives("action", (1,)))
    model = make([RecentInterest(2)], NEW, features=positives)
    assert warm_start(model, str(tmp_path)) == 5
    # 13, the new 99, 10 and 12 behind padding and two out-of-vocabulary buckets.
    expected_counts = [0, 1, 2, 13, 0, 10, 12] if base_has_task else [0] * 7
    np.testing.assert_array_equal(model.retrieval_task.drawn, expected_counts)
    np.testing.assert_array_equal(model.interests[0].attention.weights[0], base.interests[0].attention.weights[0])


def test_popularity_follows_its_ids_and_is_standardised_anew(tmp_path: Path) -> None:
    base, model = make([RecentInterest(2)], OLD), make([RecentInterest(2)], NEW)
    base.popularity.set_counts([0, 0, 0, 7, 11, 3, 1])
    export_bare(base, tmp_path, 1)
    assert warm_start(model, str(tmp_path)) == 1
    # 13, 99, 10 and 12; 99 is new.
    np.testing.assert_array_equal(model.popularity.counts, [0, 0, 0, 1, 0, 7, 3])
    logarithms = np.log([2, 1, 8, 4])
    standard = (logarithms - logarithms.mean()) / logarithms.std()
    np.testing.assert_allclose(model.popularity(tf.constant([[3, 4, 5, 6]]))[0, :, 0], standard, rtol=1e-5)


def test_accumulators_are_those_that_adagrad_adds_to() -> None:
    """One step on one row, worked by hand: the accumulator grows by the square of the gradient."""
    model = make([RecentInterest(2)], OLD)
    table = model.embeddings["user_id"].embeddings
    gradient = tf.IndexedSlices(tf.constant([[1.0, 2.0, 0.0, 3.0]]), tf.constant([3]), table.shape)
    model.optimizer.optimizers[0].apply_gradients([(gradient, table)])
    accumulator = accumulators(model)[table.name].numpy()
    np.testing.assert_allclose(accumulator[3], [1.1, 4.1, 0.1, 9.1], rtol=1e-6)
    np.testing.assert_allclose(accumulator[2], [0.1] * 4, rtol=1e-6)
