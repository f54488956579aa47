"""Training: what `fit` and `evaluate` report, Keras's callbacks, mixed precision, and batches of raw ids."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs

from keras_eta import ETA, Age, Feature, FeatureLookup, Features, metrics
from keras_eta.columns import RawColumns
from keras_eta.datasets.impressions import Impressions
from keras_eta.datasets.interactions import Interactions
from keras_eta.models.optimizers import EmbeddingsAndDense
from tests.paper import paper_eta

callbacks = tf.keras.callbacks

ROWS = 61
FEATURES = Features(
    item_id=Feature("item_id", embedding_dim=4),
    context=(Feature("price", "float32"),),
    max_history_length=8,
)


@pytest.fixture(scope="module")
def impressions() -> Impressions:
    rng = np.random.default_rng(0)
    log = Interactions.from_columns(
        {
            "user_id": rng.integers(0, 9, ROWS),
            "item_id": rng.integers(0, 12, ROWS),
            "timestamp": np.arange(ROWS) + 10**9,
            "price": rng.normal(size=ROWS).astype("float32"),
            "clicked": rng.integers(0, 2, ROWS),
        }
    )
    return Impressions.from_interactions(log, lambda log: log["clicked"], min_history=0, outcomes=("clicked",))


@pytest.fixture(scope="module")
def lookup(impressions: Impressions) -> FeatureLookup:
    layer = FeatureLookup(FEATURES)
    layer.adapt(dict(impressions.log.columns))
    return layer


def _model(lookup: FeatureLookup, optimizer: Any = None, run_eagerly: bool = True, **arguments: Any) -> ETA:
    """A compiled model; eager by default, since a trace takes longer than the few steps of a test."""
    tf.keras.utils.set_random_seed(0)
    model = paper_eta(lookup=lookup, top_k=2, num_bits=8, short_history_length=2, hidden_units=(3,), **arguments)
    model.build()
    model.compile(optimizer, run_eagerly=run_eagerly)
    return model


def _batches(impressions: Impressions, lookup: FeatureLookup, batch_size: int = 60) -> tf.data.Dataset:
    """Full batches and a last one of what is left over, a single row."""
    return impressions.to_dataset(lookup.features, batch_size, lookup=lookup).unbatch().batch(batch_size)


def _rates(model: ETA) -> list[float]:
    return [float(part.learning_rate) for part in model.optimizer.optimizers]


# Reports


@pytest.mark.parametrize(("batch_size", "weighted"), [(60, False), (25, True)])
def test_reported_losses_are_means_over_all_rows(
    impressions: Impressions, lookup: FeatureLookup, batch_size: int, weighted: bool
) -> None:
    # A rate of 0: every step sees the same model.
    regularizer = tf.keras.regularizers.L2(0.5)
    model = _model(lookup, tf.keras.optimizers.SGD(0.0), weighted, embeddings_regularizer=regularizer)
    batches = _batches(impressions, lookup, batch_size)
    logits = model.predict(batches, verbose=0).astype("float64")
    weights = np.ones(ROWS, "float32")
    if weighted:
        weights = np.random.default_rng(1).uniform(0.0, 2.0, ROWS).astype("float32")
        rows = tf.data.Dataset.zip((batches.unbatch(), tf.data.Dataset.from_tensor_slices(weights)))
        batches = rows.map(lambda row, weight: (*row, weight)).batch(batch_size)
    expected = (weights * (np.logaddexp(0.0, logits) - impressions.label * logits)).mean()
    regularization = 0.5 * np.sum(model.embeddings["item_id"].embeddings.numpy() ** 2)
    history = model.fit(batches, validation_data=batches, epochs=2, verbose=0).history
    for epoch, prefix in itertools.product((0, 1), ("", "val_")):
        assert history[f"{prefix}loss"][epoch] == pytest.approx(expected, rel=1e-5)
        assert history[f"{prefix}regularization_loss"][epoch] == pytest.approx(regularization, rel=1e-5)
        assert history[f"{prefix}total_loss"][epoch] == pytest.approx(expected + regularization, rel=1e-5)


def test_loss_of_an_epoch_is_not_that_of_its_last_batch(impressions: Impressions, lookup: FeatureLookup) -> None:
    model = _model(lookup, tf.keras.optimizers.SGD(0.0))
    model.mlp.layers[-1].bias.assign([3.0])
    batches = _batches(impressions, lookup)
    last = model.evaluate(batches.skip(1), return_dict=True, verbose=0)["loss"]
    every = model.evaluate(batches, return_dict=True, verbose=0)["loss"]
    first = model.evaluate(batches.take(1), return_dict=True, verbose=0)["loss"]
    assert abs(first - last) > 0.5
    assert every == pytest.approx((60 * first + last) / 61, rel=1e-5)


@pytest.mark.parametrize("by", ["fit", "train_on_batch"])
@pytest.mark.parametrize("name", ["default", "adam"])
def test_a_step_is_traced_once(
    impressions: Impressions, lookup: FeatureLookup, monkeypatch: pytest.MonkeyPatch, name: str, by: str
) -> None:
    model = _model(lookup, None if name == "default" else tf.keras.optimizers.Adam(), run_eagerly=False)
    traces: list[int] = []
    step = model.train_step

    def train_step(inputs: Any) -> Any:
        traces.append(1)
        return step(inputs)

    monkeypatch.setattr(model, "train_step", train_step)
    batches = _batches(impressions, lookup)
    if by == "fit":
        model.fit(batches, epochs=2, verbose=0)
    else:
        ((columns, label),) = batches.take(1)
        model.train_on_batch(columns, label)
    assert len(traces) == 1


@pytest.mark.parametrize("bias", [0.0, -4.5, -8.0])
def test_reported_auc_is_exact_where_clicks_are_rare(lookup: FeatureLookup, bias: float) -> None:
    rng = np.random.default_rng(1)
    price = rng.normal(size=40_000).astype("float32")
    label = (rng.random(40_000) < 1 / (1 + np.exp(-bias - 1.5 * price))).astype("int64")
    model = _model(lookup, activation="linear")
    # The logit is bias + 1.5 * price.
    first, last = (layer for layer in model.mlp.layers if isinstance(layer, tf.keras.layers.Dense))
    first.kernel.assign(np.eye(first.kernel.shape[0])[:, [-1, 0, 0]] * [1, 0, 0])
    last.kernel.assign([[1.5], [0.0], [0.0]])
    last.bias.assign([bias])
    inputs = {
        "item_id": np.full(40_000, 2, "int32"),
        "history_item_id": np.zeros([40_000, 1], "int32"),
        "price": price,
        "history_length": np.zeros(40_000, "int32"),
    }
    found = model.evaluate(inputs, label, batch_size=4096, return_dict=True, verbose=0)["auc"]
    assert found == pytest.approx(metrics.auc(label, price), abs=1e-3)


# Callbacks


def test_default_optimizer_has_the_rates_it_is_given(lookup: FeatureLookup) -> None:
    model = _model(lookup)
    assert _rates(model) == pytest.approx([0.1, 1e-3])
    model.compile(model.default_optimizer(0.25, 0.125))
    assert _rates(model) == [0.25, 0.125]
    assert [type(part).__name__ for part in model.optimizer.optimizers] == ["Adagrad", "Adam"]


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), True, -0.1, "0.1"])
@pytest.mark.parametrize("name", ["embedding_learning_rate", "dense_learning_rate"])
def test_default_optimizer_refuses_what_is_no_rate(lookup: FeatureLookup, name: str, rate: Any) -> None:
    model = _model(lookup)
    message = f"`{name}` must be a number of at least 0 or a Keras schedule. Received: {name}={rate!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.default_optimizer(**{name: rate})


def test_callbacks_move_both_learning_rates(impressions: Impressions, lookup: FeatureLookup, tmp_path: Path) -> None:
    model = _model(lookup)
    model.compile(model.default_optimizer(0.5, 0.25), run_eagerly=True)
    batches = _batches(impressions, lookup)
    model.fit(batches, epochs=2, verbose=0, callbacks=[callbacks.LearningRateScheduler(lambda _, rate: rate * 0.5)])
    assert _rates(model) == [0.125, 0.0625]
    # No loss improves by 9: the second epoch cuts.
    plateau = callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=1, min_delta=9.0, min_lr=0.03)
    history = model.fit(
        batches, epochs=4, verbose=0, callbacks=[plateau, callbacks.CSVLogger(str(tmp_path / "log.csv"))]
    ).history
    assert _rates(model) == pytest.approx([0.06, 0.03])
    assert history["lr"] == pytest.approx([0.0625, 0.0625, 0.03125, 0.03])
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["lr"]) for row in rows] == pytest.approx(history["lr"])
    assert [float(row["loss"]) for row in rows] == pytest.approx(history["loss"])


def test_a_learning_rate_of_zero_is_left_again(lookup: FeatureLookup) -> None:
    optimizer = _model(lookup).optimizer
    for rate in (0.0, 0.004):
        tf.keras.backend.set_value(optimizer.lr, rate)
    assert float(optimizer.learning_rate) == pytest.approx(0.004)
    assert optimizer.learning_rate.numpy() == np.float32(0.004)
    assert [float(part.learning_rate) for part in optimizer.optimizers] == pytest.approx([0.4, 0.004])
    optimizer.lr = 0.001
    assert [float(part.learning_rate) for part in optimizer.optimizers] == pytest.approx([0.1, 0.001])


def test_rates_are_not_set_in_proportion_to_zero(lookup: FeatureLookup) -> None:
    optimizer = _model(lookup).default_optimizer(0.1, 0.0)
    message = (
        "Both learning rates are set in the ratio they were made with, which needs a dense learning rate above 0. Set "
        "them one by one, on `optimizers`. Received: learning_rate=0.5"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        optimizer.learning_rate = 0.5


def test_schedules_set_both_learning_rates(impressions: Impressions, lookup: FeatureLookup) -> None:
    schedule = tf.keras.optimizers.schedules.PiecewiseConstantDecay
    model = _model(lookup)
    model.compile(model.default_optimizer(schedule([1], [0.5, 0.25]), schedule([2], [0.125, 0.0625])), run_eagerly=True)
    rates = []
    record = callbacks.LambdaCallback(on_train_batch_end=lambda *_: rates.append(_rates(model)))
    model.fit(_batches(impressions, lookup, 16), verbose=0, callbacks=[record])
    # A step's rate is known once the next one looks.
    assert rates == [[0.5, 0.125], [0.5, 0.125], [0.25, 0.125], [0.25, 0.0625]]


def _refused(model: ETA) -> list[tuple[Any, Any, str]]:
    schedule = tf.keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    adam = tf.keras.optimizers.Adam
    return [
        (
            model.default_optimizer(0.1, schedule),
            callbacks.ReduceLROnPlateau(),
            "ReduceLROnPlateau can't set a learning rate that follows a schedule. Leave the callback out, or give the "
            "optimiser a number in place of the schedule. Received: EmbeddingsAndDense",
        ),
        (
            tf.keras.mixed_precision.LossScaleOptimizer(adam(schedule)),
            callbacks.LearningRateScheduler(lambda epoch: 0.1),
            "LearningRateScheduler can't set a learning rate that follows a schedule. Leave the callback out, or give "
            "the optimiser a number in place of the schedule. Received: LossScaleOptimizerV3",
        ),
        (
            tfrs.experimental.optimizers.CompositeOptimizer([(adam(), lambda: model.trainable_variables)]),
            callbacks.ReduceLROnPlateau(),
            "ReduceLROnPlateau needs an optimiser with a `learning_rate`. Compile with `default_optimizer()`, which "
            "has one for both of its parts. Received: CompositeOptimizer",
        ),
    ]


@pytest.mark.parametrize("case", range(3))
def test_callbacks_without_a_rate_to_set_are_refused_before_training(
    impressions: Impressions, lookup: FeatureLookup, case: int
) -> None:
    model = _model(lookup)
    optimizer, callback, message = _refused(model)[case]
    model.compile(optimizer)
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.fit(_batches(impressions, lookup), None, None, 1, 0, [callback])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_setting_a_rate_that_a_schedule_sets_is_refused(lookup: FeatureLookup) -> None:
    schedule = tf.keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    optimizer = _model(lookup).default_optimizer(schedule, 0.001)
    message = (
        "The learning rate follows a schedule and can't be set. Give the optimisers numbers in place of schedules, or "
        "change the schedules. Received: learning_rate=0.5"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        optimizer.learning_rate.assign(0.5)


@pytest.mark.slow
def test_files_that_callbacks_write(impressions: Impressions, lookup: FeatureLookup, tmp_path: Path) -> None:
    model, batches = _model(lookup), _batches(impressions, lookup)
    names = ("weights.h5", "weights", "model.keras", "model")
    checkpoints = [
        callbacks.ModelCheckpoint(str(tmp_path / n), save_weights_only=n.startswith("weights")) for n in names
    ]
    board = callbacks.TensorBoard(str(tmp_path / "board"), histogram_freq=1)
    model.fit(batches, epochs=2, verbose=0, callbacks=[board, *checkpoints])
    (events,) = (tmp_path / "board" / "train").glob("events*")
    tags = {value.tag for event in tf.compat.v1.train.summary_iterator(str(events)) for value in event.summary.value}
    assert {"epoch_loss", "embeddings/item_id/embeddings_0/histogram"} <= tags
    expected = model.predict(batches, verbose=0)
    for name in names:
        if name.startswith("weights"):
            loaded = _model(lookup)
            loaded.load_weights(str(tmp_path / name))
        else:
            loaded = tf.keras.models.load_model(str(tmp_path / name))
            assert loaded.features == model.features
        # Graphs of other shapes known beforehand are fused otherwise, which moves the last bit.
        np.testing.assert_allclose(loaded.predict(batches, verbose=0), expected, rtol=1e-5, atol=1e-6, err_msg=name)
        for weight, saved in zip(loaded.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(weight, saved, err_msg=name)


def test_backup_restores_both_learning_rates(impressions: Impressions, lookup: FeatureLookup, tmp_path: Path) -> None:
    batches = _batches(impressions, lookup)
    halve = callbacks.LearningRateScheduler(lambda _, rate: rate * 0.5)

    def backup() -> tf.keras.callbacks.Callback:
        return callbacks.BackupAndRestore(str(tmp_path / "backup"), delete_checkpoint=False)

    model = _model(lookup)
    model.fit(batches, epochs=2, verbose=0, callbacks=[halve, backup()])
    resumed = _model(lookup)
    history = resumed.fit(batches, epochs=3, verbose=0, callbacks=[halve, backup()])
    assert history.epoch == [2]
    assert _rates(resumed) == pytest.approx([0.1 / 8, 1e-3 / 8])
    # Keras's callback leaves the model without an attribute that the next `fit` reads.
    assert resumed.fit(batches, verbose=0).epoch == [0]


def test_weights_are_variables(lookup: FeatureLookup) -> None:
    model = _model(lookup)
    assert all(isinstance(weight, tf.Variable) for weight in model.weights)
    names = [weight.name for weight in model.weights]
    kept = {f"embeddings/item_id/{name}:0" for name in ("embeddings", "fingerprints", "hash/planes")}
    assert kept == {name for name in names if name.startswith("embeddings/")}
    # Neither vocabularies nor metrics; the attentions have 5 weights each, two dense layers 4.
    assert len(names) == 3 + 5 + 5 + 4
    assert lookup.weights == []


# Mixed precision


@pytest.fixture
def float16() -> Iterator[None]:
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    yield
    tf.keras.mixed_precision.set_global_policy("float32")


@pytest.mark.usefixtures("float16")
@pytest.mark.parametrize("kind", ["default", "sgd"])
def test_float16_scales_the_loss(impressions: Impressions, lookup: FeatureLookup, kind: str) -> None:
    # Gradients of 1e-8 and less, which are zero in float16 unless they are scaled.
    columns, label = next(iter(_batches(impressions, lookup)))
    weights = np.full(60, 1e-7, "float32")
    kernels = {}
    for policy in ("float32", "mixed_float16"):
        tf.keras.mixed_precision.set_global_policy(policy)
        model = _model(lookup, tf.keras.optimizers.SGD(1e7) if kind == "sgd" else None, run_eagerly=False)
        if kind == "default":
            optimizer = model.default_optimizer(0.1, 0.01)
            optimizer.optimizers[1].epsilon = 1e-12
            model.compile(optimizer)
        kernel = model.mlp.layers[0].kernel
        before = kernel.numpy()
        logs = model.train_on_batch(columns, label, weights, return_dict=True)
        assert logs["loss"] == pytest.approx(7e-8, rel=0.1)
        kernels[policy] = kernel.numpy() - before
        layer = model.embeddings["item_id"]
        np.testing.assert_array_equal(layer.fingerprints_table, layer.hash(layer.embeddings))
    assert np.abs(kernels["float32"]).max() > 5e-3
    np.testing.assert_allclose(kernels["mixed_float16"], kernels["float32"], atol=3e-4)
    assert isinstance(model.optimizer, tf.keras.mixed_precision.LossScaleOptimizer)
    if kind == "default":
        assert isinstance(model.optimizer.inner_optimizer, EmbeddingsAndDense)


@pytest.mark.usefixtures("float16")
def test_float16_skips_steps_whose_gradients_overflow(impressions: Impressions, lookup: FeatureLookup) -> None:
    model = _model(lookup)
    columns, label = next(iter(_batches(impressions, lookup)))
    model.train_on_batch(columns, label)
    before, scale = model.get_weights(), float(model.optimizer.loss_scale)
    model.train_on_batch(columns, label, np.full(60, 1e6, "float32"), reset_metrics=True)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert float(model.optimizer.loss_scale) == scale / 2
    model.train_on_batch(columns, label)
    assert any((old != new).any() for old, new in zip(before, model.get_weights(), strict=True))


# Raw ids

ADVICE = (
    "Rankers read rows of their embedding tables, as a FeatureLookup makes them of ids: give `to_dataset` its "
    "`lookup=`, or call the lookup on each batch."
)


def test_raw_batches_are_refused_until_they_are_looked_up(impressions: Impressions, lookup: FeatureLookup) -> None:
    model = _model(lookup, run_eagerly=False)
    # All ids are rows of the table, too: only the mark on the batch tells them apart.
    raw = impressions.to_dataset(lookup.features, 60)
    assert int(max(columns["item_id"].numpy().max() for columns, _ in raw)) < lookup.features.item_id.num_indices
    before = model.get_weights()
    message = re.escape(f"Columns ['history_item_id', 'item_id'] hold raw ids. {ADVICE}")
    for method in (model.fit, model.evaluate, model.predict):
        with pytest.raises(ValueError, match=message):
            method(raw.shuffle(2).repeat(2).take(1).prefetch(1), verbose=0)
    columns, _ = next(iter(raw))
    assert isinstance(columns, RawColumns)
    with pytest.raises(ValueError, match=message):
        model(columns)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    # As advised, on the same model.
    model.fit(_batches(impressions, lookup), verbose=0)
    model.fit(raw.map(lambda columns, label: (lookup(columns), label)), verbose=0)
    encoded, _ = next(iter(impressions.to_dataset(lookup.features, 60, lookup=lookup)))
    np.testing.assert_array_equal(model(lookup(columns)), model(encoded))


@pytest.mark.parametrize("name", ["item_id", "history_item_id"])
@pytest.mark.parametrize(("dtype", "value"), [("int64", 10**10), ("int64", -1), ("int32", "size"), ("int32", -7)])
def test_indices_outside_of_their_table_name_their_column(
    impressions: Impressions, lookup: FeatureLookup, name: str, dtype: str, value: Any
) -> None:
    model = _model(lookup)
    size = lookup.features.item_id.num_indices
    columns, _ = next(iter(_batches(impressions, lookup)))
    good = {name: tf.cast(column, dtype) if "item" in name else column for name, column in columns.items()}
    np.testing.assert_array_equal(model(good), model(columns))
    bad = columns[name].numpy().astype(dtype)
    bad[5] = value = size if value == "size" else value
    message = f"Column {name} holds an index that its table of {size} rows lacks. {ADVICE} Received:"
    with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape(message)) as error:
        model({**good, name: bad})
    assert f"\n{value}\n" in str(error.value)


def test_a_step_with_an_index_outside_of_its_table_changes_nothing(
    impressions: Impressions, lookup: FeatureLookup
) -> None:
    model = _model(lookup, run_eagerly=False)
    columns, label = next(iter(_batches(impressions, lookup)))
    bad = {**columns, "history_item_id": columns["history_item_id"] - 1}
    before = model.get_weights()
    message = (
        f"Column history_item_id holds an index that its table of {lookup.features.item_id.num_indices} rows lacks"
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        model.train_on_batch(bad, label)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("dtype", ["string", "float32", "uint8"])
def test_columns_of_another_type_are_refused(impressions: Impressions, lookup: FeatureLookup, dtype: str) -> None:
    columns, _ = next(iter(_batches(impressions, lookup)))
    ids = columns["history_item_id"]
    ids = tf.as_string(ids) if dtype == "string" else tf.cast(ids, dtype)
    message = f"Column 'history_item_id' must hold int32 or int64. {ADVICE} Received: {dtype}"
    with pytest.raises(ValueError, match=re.escape(message)):
        _model(lookup)({**columns, "history_item_id": ids})


def test_ages_outside_of_their_table_name_their_column(impressions: Impressions, lookup: FeatureLookup) -> None:
    features = dataclasses.replace(lookup.features, age=Age((60,)))
    columns, _ = next(iter(_batches(impressions, lookup)))
    model = paper_eta(features, top_k=2, num_bits=8)
    ages = tf.ones_like(columns["history_item_id"])
    model({**columns, "history_age": 2 * ages})
    message = "Column history_age holds an index that its table of 3 rows lacks."
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        model({**columns, "history_age": 3 * ages})
