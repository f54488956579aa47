"""The retrieval task: its loss against loops, what it draws from, what it moves, and where it runs."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import ETA, Feature, FeatureLookup, Features, Positives, Ranker
from keras_eta.interest import FullInterest, RecentInterest
from keras_eta.models import RetrievalTask
from tests import reference
from tests.paper import paper_eta

ROWS, LENGTH = 9, 6
LABELS = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1], np.float32)
# One row without a history, and one of a single behaviour.
LENGTHS = np.array([6, 1, 4, 6, 0, 3, 2, 6, 5], np.int32)
WEIGHTS = np.array([1.0, 2.0, 0.5, 0.0, 1.5, 3.0, 1.0, 0.25, 1.0], np.float32)
ACTIONS = ["view", "buy", "cart"]

Columns = dict[str, np.ndarray]


def _features(positives: Positives | None = None, hashed: tuple[str, ...] = ()) -> Features:
    return Features(
        item_id=Feature("item_id", vocabulary_size=10, embedding_dim=5),
        item_attributes=(Feature("category_id", vocabulary_size=3, embedding_dim=2),),
        behaviour_attributes=(
            Feature("action", "string", embedding_dim=2, vocabulary_size=3, num_oov_indices=2),
            Feature("rating", "float32"),
        ),
        user=(Feature("user_id", vocabulary_size=4, embedding_dim=3),),
        hashed=hashed,
        max_history_length=LENGTH,
        positives=positives,
    )


def _lookup(features: Features) -> FeatureLookup:
    lookup = FeatureLookup(features)
    for name, size in (("item_id", 10), ("category_id", 3), ("user_id", 4)):
        lookup.set_vocabulary(name, list(range(size)))
    lookup.set_vocabulary("action", ACTIONS)
    return lookup


def _model(task: RetrievalTask | None, features: Features | None = None, **arguments: Any) -> Any:
    features = features or _features()
    tf.keras.utils.set_random_seed(1)
    model = Ranker(
        features,
        lookup=_lookup(features),
        interests=[FullInterest()],
        hidden_units=(4,),
        retrieval_task=task,
        **arguments,
    )
    model.build()
    for table in model.embeddings.values():
        table.embeddings.assign(tf.random.normal(table.embeddings.shape))
    return model


def _batch(seed: int = 0) -> Columns:
    rng = np.random.default_rng(seed)
    return {
        # Few items, so that rows draw the same one.
        "item_id": rng.integers(1, 8, ROWS).astype(np.int32),
        "category_id": rng.integers(1, 5, ROWS).astype(np.int32),
        "user_id": rng.integers(1, 6, ROWS).astype(np.int32),
        "history_item_id": rng.integers(1, 8, (ROWS, LENGTH)).astype(np.int32),
        "history_category_id": rng.integers(1, 5, (ROWS, LENGTH)).astype(np.int32),
        "history_action": rng.integers(1, 6, (ROWS, LENGTH)).astype(np.int32),
        "history_rating": rng.integers(1, 6, (ROWS, LENGTH)).astype(np.float32),
        "history_length": LENGTHS,
    }


def _loss(model: Any, batch: Columns, labels: np.ndarray = LABELS, *weights: Any, training: bool = True) -> float:
    return float(model.compute_losses((batch, labels, *weights), training=training)["retrieval_loss"])


def _expected(
    model: Any, batch: Columns, drawn: dict[int, int], weights: np.ndarray, positions: np.ndarray | None = None
) -> float:
    """The reference of the task for given draws; by default the most recent behaviour."""
    positions = np.zeros(ROWS, int) if positions is None else positions
    rows = np.arange(ROWS)
    candidates, behaviours = (
        np.concatenate(
            [
                model.embeddings[name].embeddings.numpy()[
                    batch[f"{prefix}{name}"] if not prefix else batch[f"{prefix}{name}"][rows, positions]
                ]
                for name in model.features.hashed
            ],
            axis=-1,
        )
        for prefix in ("", "history_")
    )
    items = batch["history_item_id"][rows, positions].tolist()
    task = model.retrieval_task
    takes_part = (LABELS > 0) & (LENGTHS > 0)
    return task.weight * reference.retrieval_loss(
        candidates, behaviours, items, np.where(takes_part, weights, 0.0).tolist(), drawn, task.temperature
    )


@pytest.mark.parametrize("hashed", [("item_id",), ("category_id", "item_id")])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_loss_equals_reference(weights: np.ndarray | None, hashed: tuple[str, ...]) -> None:
    model = _model(RetrievalTask(0.5, temperature=0.3, recent=1), _features(hashed=hashed))
    given = () if weights is None else (weights,)
    batch = _batch()
    factors = np.ones(ROWS) if weights is None else weights
    first = _expected(model, batch, {}, factors)
    assert first > 0.1
    assert _loss(model, batch, LABELS, *given) == pytest.approx(first, rel=1e-5)
    # The second step knows what the first one drew.
    takes_part = (LABELS > 0) & (LENGTHS > 0) & (factors > 0)
    items = batch["history_item_id"][takes_part, 0].tolist()
    drawn = {item: items.count(item) for item in items}
    assert max(drawn.values()) > 1
    other = _batch(1)
    assert _loss(model, other, LABELS, *given) == pytest.approx(_expected(model, other, drawn, factors), rel=1e-5)
    assert _expected(model, other, drawn, factors) != pytest.approx(_expected(model, other, {}, factors), rel=1e-3)


def test_counts_are_those_of_rows_that_take_part() -> None:
    model, batch = _model(RetrievalTask(recent=1)), _batch()
    expected = np.zeros(12, np.int64)
    for row in range(ROWS):
        if LABELS[row] > 0 and LENGTHS[row] > 0 and WEIGHTS[row] > 0:
            expected[batch["history_item_id"][row, 0]] += 1
    for times in (1, 2):
        _loss(model, batch, LABELS, WEIGHTS)
        np.testing.assert_array_equal(model.retrieval_task.drawn, times * expected, strict=True)
    model.compute_losses((batch, LABELS), training=False)
    np.testing.assert_array_equal(model.retrieval_task.drawn, 2 * expected)


def test_rows_of_weight_zero_are_as_if_absent() -> None:
    model, batch = _model(RetrievalTask(recent=1)), _batch()
    kept = WEIGHTS > 0
    weighted = _loss(model, batch, LABELS, WEIGHTS)
    model.retrieval_task.drawn.assign(tf.zeros_like(model.retrieval_task.drawn))
    alone = _loss(model, {name: x[kept] for name, x in batch.items()}, LABELS[kept], WEIGHTS[kept])
    assert weighted == pytest.approx(alone, rel=1e-6)


def test_other_behaviours_of_the_same_item_are_left_out() -> None:
    """Worked by hand: two rows draw one item, so that only the third competes, and neither with the other."""
    model = _model(RetrievalTask(temperature=1.0, recent=1))
    table = np.zeros((12, 5), np.float32)
    table[3, 0], table[4, 1] = 2.0, 3.0
    model.embeddings["item_id"].embeddings.assign(table)
    batch = {name: x[:3].copy() for name, x in _batch().items()}
    batch["item_id"] = np.array([3, 3, 4], np.int32)
    batch["history_item_id"][:, 0] = [3, 3, 4]
    batch["history_length"] = np.array([1, 1, 1], np.int32)
    # Cosines are 1 and 0. Item 3 was drawn twice, so exp(logit) is e / 2 or 1 / 2 for it, and e or 1 for item 4.
    two = -math.log((math.e / 2) / (math.e / 2 + 1))
    one = -math.log(math.e / (math.e + 1 / 2 + 1 / 2))
    assert _loss(model, batch, np.ones(3, np.float32)) == pytest.approx((2 * two + one) / 3, rel=1e-5)


@pytest.mark.parametrize(
    ("positives", "recent", "allowed"),
    [
        (None, 3, lambda batch: np.ones((ROWS, LENGTH), bool)),
        (Positives("rating", minimum=4), 5, lambda batch: batch["history_rating"] >= 4),
        # Row 0 is padding, rows 1 and 2 are of unknown actions: "buy" is 4 and "cart" 5.
        (Positives("action", ("buy", "cart")), 6, lambda batch: batch["history_action"] >= 4),
        (Positives("action", ("gone", "cart")), 6, lambda batch: batch["history_action"] == 5),
    ],
    ids=["all", "minimum", "values", "one value is unknown"],
)
def test_draws_are_from_the_positive_of_the_recent(positives: Positives | None, recent: int, allowed: Any) -> None:
    features = _features(positives)
    model, batch = _model(RetrievalTask(recent=recent), features), _batch()
    eligible = allowed(batch) & (np.arange(LENGTH) < np.minimum(LENGTHS, recent)[:, np.newaxis])
    assert eligible.any(axis=1).sum() not in (0, ROWS)
    columns = model.batch_columns({name: tf.constant(x) for name, x in batch.items()})
    history = model.feature_embedding.sequence(columns, "history")
    counts = np.zeros((ROWS, LENGTH), int)
    draws = 300
    for _ in range(draws):
        positions, found = model.retrieval_task._draw(history)
        np.testing.assert_array_equal(found, eligible.any(axis=1))
        counts[np.arange(ROWS), positions.numpy()] += found.numpy()
    assert not counts[~eligible].any()
    # Uniform: 300 draws of at most 6, within five standard deviations.
    share = 1.0 / np.maximum(eligible.sum(axis=1, keepdims=True), 1)
    deviation = 5 * np.sqrt(draws * share * (1 - share)) + 1e-9
    assert (np.abs(counts - draws * share) <= deviation)[eligible].all()


def test_loss_is_that_of_what_was_drawn() -> None:
    """One positive each, at a place of its own."""
    model, batch = _model(RetrievalTask(recent=LENGTH), _features(Positives("rating", minimum=5))), _batch()
    positions = np.array([5, 0, 3, 2, 0, 1, 0, 4, 3])
    batch["history_rating"] = np.where(np.arange(LENGTH) == positions[:, np.newaxis], 5.0, 4.5).astype(np.float32)
    expected = _expected(model, batch, {}, np.ones(ROWS), positions)
    assert _loss(model, batch) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("case", ["labels", "histories", "positives", "rows"])
def test_without_rows_to_learn_from_loss_and_gradients_are_zero(case: str) -> None:
    model, batch = _model(RetrievalTask(), _features(Positives("rating", minimum=5.5))), _batch()
    labels = np.zeros(ROWS, np.float32) if case == "labels" else LABELS
    if case != "positives":
        batch["history_rating"] += 5
    if case == "histories":
        batch["history_length"] = np.zeros(ROWS, np.int32)
    if case == "rows":
        batch, labels = {name: x[:0] for name, x in batch.items()}, labels[:0]
    with tf.GradientTape() as tape:
        loss = model.compute_losses((batch, labels), training=True)["retrieval_loss"]
    assert float(loss) == 0.0
    for gradient in tape.gradient(loss, model.trainable_variables):
        assert gradient is None or not np.asarray(tf.convert_to_tensor(gradient)).any()
    assert not model.retrieval_task.drawn.numpy().any()


def test_gradients_reach_the_hashed_tables_alone() -> None:
    model, batch = _model(RetrievalTask(recent=1)), _batch()
    with tf.GradientTape() as tape:
        loss = model.compute_losses((batch, LABELS), training=True)["retrieval_loss"]
    gradients = tape.gradient(loss, model.trainable_variables)
    reached = {
        variable.name: np.asarray(tf.convert_to_tensor(gradient))
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True)
        if gradient is not None and np.asarray(tf.convert_to_tensor(gradient)).any()
    }
    assert list(reached) == [model.embeddings["item_id"].embeddings.name]
    takes_part = (LABELS > 0) & (LENGTHS > 0)
    touched = {*batch["item_id"][takes_part].tolist(), *batch["history_item_id"][takes_part, 0].tolist()}
    assert set(np.flatnonzero(np.abs(reached[model.embeddings["item_id"].embeddings.name]).sum(axis=1))) == touched


@pytest.mark.slow
def test_training_brings_items_of_one_taste_together() -> None:
    """Users like items below 7 or from 7 on; a click loss can't know, as all rows are clicks."""
    features = _features()
    model = _model(RetrievalTask(), features)
    model.compile(run_eagerly=False)
    rng = np.random.default_rng(0)
    rows = 512
    taste = rng.integers(0, 2, rows)
    batch = {name: np.repeat(x[:1], rows, axis=0) for name, x in _batch().items()}
    batch["item_id"] = (2 + 5 * taste + rng.integers(0, 5, rows)).astype(np.int32)
    batch["history_item_id"] = (2 + 5 * taste[:, np.newaxis] + rng.integers(0, 5, (rows, LENGTH))).astype(np.int32)
    data = tf.data.Dataset.from_tensor_slices((batch, np.ones(rows, np.float32))).batch(64)
    history = model.fit(data, epochs=8, verbose=0).history
    assert history["retrieval_loss"][-1] < history["retrieval_loss"][0]
    table = model.embeddings["item_id"].embeddings.numpy()[2:]
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    cosines = table @ table.T
    assert min(cosines[:5, :5].mean(), cosines[5:, 5:].mean()) > cosines[:5, 5:].mean() + 0.5


# Where it runs


def test_loss_is_logged_by_fit_and_left_out_of_evaluation() -> None:
    model, batch = _model(RetrievalTask(recent=1)), _batch()
    model.compile(run_eagerly=True)
    expected = _expected(model, batch, {}, np.ones(ROWS))
    data = tf.data.Dataset.from_tensors((batch, LABELS))
    logs = {name: values[0] for name, values in model.fit(data, verbose=0).history.items()}
    assert logs["retrieval_loss"] == pytest.approx(expected, rel=1e-5)
    assert logs["loss"] == pytest.approx(logs["log_loss"] + logs["retrieval_loss"], rel=1e-5)
    evaluated = model.evaluate(data, return_dict=True, verbose=0)
    assert "retrieval_loss" not in evaluated
    assert evaluated["loss"] == pytest.approx(evaluated["log_loss"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_steps_equal_eager_ones(jit_compile: bool) -> None:
    features = _features(Positives("action", ("buy", "cart")))
    batch = _batch()
    # The most recent behaviours are bought, so that the draw has no choice.
    batch["history_action"][:, 0], batch["history_action"][:, 1:] = 4, 3
    results = []
    for compiled in (False, True):
        model = _model(RetrievalTask(), features)
        options = {"jit_compile": jit_compile} if compiled else {"run_eagerly": True}
        model.compile(**options)
        logs = [model.train_on_batch(batch, LABELS, return_dict=True)["retrieval_loss"] for _ in range(3)]
        results.append((logs, model.embeddings["item_id"].embeddings.numpy(), model.retrieval_task.drawn.numpy()))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-4)
    np.testing.assert_allclose(results[1][1], results[0][1], rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(results[1][2], results[0][2])
    assert results[0][2].sum() == 3 * ((LABELS > 0) & (LENGTHS > 0)).sum()


def test_half_precision_is_close_and_trains() -> None:
    single, batch = _model(RetrievalTask(recent=1)), _batch()
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        half = _model(RetrievalTask(recent=1))
        half.compile(run_eagerly=True)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    half.set_weights(single.get_weights())
    before = half.embeddings["item_id"].embeddings.numpy()
    logs = half.train_on_batch(batch, LABELS, return_dict=True)
    assert logs["retrieval_loss"] == pytest.approx(_expected(single, batch, {}, np.ones(ROWS)), rel=5e-3)
    assert isinstance(half.optimizer, tf.keras.mixed_precision.LossScaleOptimizer)
    after = half.embeddings["item_id"].embeddings.numpy()
    assert np.isfinite(after).all()
    assert (after != before).any()
    assert half.retrieval_task.drawn.dtype == tf.int64


@pytest.mark.parametrize("form", ["keras", pytest.param("saved model", marks=pytest.mark.slow), "weights"])
def test_model_travels_by_file_with_its_counts(form: str, tmp_path: Path) -> None:
    features, batch = _features(Positives("action", ("buy",))), _batch()
    batch["history_action"][:, 0], batch["history_action"][:, 1:] = 4, 3
    lookup = _lookup(features)
    model: Any = paper_eta(
        lookup=lookup, top_k=2, num_bits=8, hidden_units=(3,), retrieval_task=RetrievalTask(0.5, 0.2, 4)
    )
    model.compile("sgd", run_eagerly=True)
    model.train_on_batch(batch, LABELS)
    assert model.retrieval_task.drawn.numpy().any()
    path = str(tmp_path / {"keras": "model.keras", "saved model": "model", "weights": "weights.h5"}[form])
    if form == "weights":
        model.save_weights(path)
        loaded: Any = ETA.from_config(model.get_config())
        loaded.lookup.set_vocabulary("action", ACTIONS)
        loaded.build()
        loaded.load_weights(path)
        loaded.compile("sgd", run_eagerly=True)
    else:
        model.save(path)
        loaded = tf.keras.models.load_model(path)
        loaded.compile("sgd", run_eagerly=True)
    task = loaded.retrieval_task
    assert isinstance(task, RetrievalTask)
    assert (task.weight, task.temperature, task.recent) == (0.5, 0.2, 4)
    np.testing.assert_array_equal(task.drawn, model.retrieval_task.drawn)
    expected = model.train_on_batch(batch, LABELS, return_dict=True)["retrieval_loss"]
    assert loaded.train_on_batch(batch, LABELS, return_dict=True)["retrieval_loss"] == pytest.approx(expected, rel=1e-5)


def test_config_makes_the_same_task() -> None:
    task = RetrievalTask(0.25, temperature=0.2, recent=7)
    config = json.loads(json.dumps(tf.keras.utils.serialize_keras_object(task)))
    assert config["registered_name"] == "keras_eta>RetrievalTask"
    twin = tf.keras.utils.deserialize_keras_object(config)
    assert type(twin) is RetrievalTask
    assert (twin.weight, twin.temperature, twin.recent) == (0.25, 0.2, 7)
    model: Any = paper_eta(_features(), retrieval_task=task)
    again: Any = ETA.from_config(json.loads(json.dumps(model.get_config())))
    assert again.get_config()["retrieval_task"] == model.get_config()["retrieval_task"]
    # A warm start finds the counts by this name, in a process with other models too.
    for each in (model, again):
        each.build()
        assert each.retrieval_task.drawn.name == "retrieval_task/drawn:0"
    assert paper_eta(_features()).get_config()["retrieval_task"] is None


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": 0}, "`weight` must be a positive number. Received: weight=0"),
        ({"weight": float("nan")}, "`weight` must be a positive number. Received: weight=nan"),
        ({"temperature": -0.1}, "`temperature` must be a positive number. Received: temperature=-0.1"),
        ({"temperature": True}, "`temperature` must be a positive number. Received: temperature=True"),
        ({"recent": 0}, "`recent` must be a positive integer. Received: recent=0"),
    ],
)
def test_task_refuses_a_bad_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RetrievalTask(**arguments)


def test_ranker_refuses_what_is_no_task() -> None:
    message = "`retrieval_task` must be a RetrievalTask or None. Received: retrieval_task=1.0"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        Ranker(_features(), interests=[RecentInterest()], retrieval_task=1.0)  # type: ignore[arg-type]


def test_values_need_a_lookup() -> None:
    positives = Positives("action", ("buy",))
    message = (
        "A retrieval task by `Features.positives` with `values` needs the ranker's `lookup`, which knows their rows. "
        f"Received: positives={positives}, lookup=None"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Ranker(_features(positives), interests=[RecentInterest()], retrieval_task=RetrievalTask())
    Ranker(_features(positives), interests=[RecentInterest()])


def test_values_that_the_vocabulary_lacks_are_refused() -> None:
    positives = Positives("action", ("bought", "carted"))
    model = _model(RetrievalTask(), _features(positives))
    message = f"`Features.positives` must have a value of the vocabulary of 'action'. Received: {positives}"
    with pytest.raises(ValueError, match=re.escape(message)):
        _loss(model, _batch())
