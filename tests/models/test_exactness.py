"""After every training step, load and restore, ETA's fingerprint tables equal SimHash(embeddings) bit for bit.

Every test also checks that the tables changed, without which there would be nothing to keep exact.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs

from keras_eta import ETA, Feature, Features, Ranker, ops
from keras_eta.interest import ETAInterest, RecentInterest
from keras_eta.layers import FingerprintedEmbedding
from tests.paper import paper_eta

legacy = tf.keras.optimizers.legacy

# Item 31 and category 7 are in the tables and in no batch.
FEATURES = Features(
    item_id=Feature("item_id", vocabulary_size=30, embedding_dim=8),
    item_attributes=(Feature("category_id", vocabulary_size=6, embedding_dim=4),),
    hashed=("item_id", "category_id"),
)
UNSEEN = {"item_id": 31, "category_id": 7}
ROWS, LENGTH = 6, 7

Optimizer = Any


def _eta(**arguments: Any) -> ETA:
    """A small model with fingerprints of two features, of more than one word each."""
    tf.keras.utils.set_random_seed(3)
    options: dict[str, Any] = {"short_history_length": 2, "num_heads": 1, "hidden_units": (4,)}
    model = paper_eta(FEATURES, top_k=3, num_bits=70, **options, **arguments)
    model.build()
    return model


def _learning_planes() -> ETA:
    return _eta(similarity_bias=True, trainable_planes=True)


def _dense_gradients() -> ETA:
    return _eta(embeddings_regularizer=tf.keras.regularizers.L2(0.05))


def _batch(seed: int, rows: int = ROWS) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    columns: dict[str, np.ndarray] = {}
    for name, last in UNSEEN.items():
        columns[name] = rng.integers(1, last, rows).astype(np.int32)
        columns[f"history_{name}"] = rng.integers(1, last, (rows, LENGTH)).astype(np.int32)
    columns["history_length"] = rng.integers(0, LENGTH + 1, rows).astype(np.int32)
    return columns, rng.integers(0, 2, rows).astype(np.float32)


def _layers(model: Ranker) -> dict[str, FingerprintedEmbedding]:
    return dict(model.interests[-1].tables)


def _tables(model: Ranker) -> dict[str, np.ndarray]:
    return {name: layer.fingerprints_table.numpy() for name, layer in _layers(model).items()}


def _assert_exact(model: Ranker) -> None:
    layers = _layers(model)
    assert set(layers) == {"item_id", "category_id"}
    for name, layer in layers.items():
        expected = ops.simhash(layer.embeddings, layer.hash.planes)
        np.testing.assert_array_equal(layer.fingerprints_table, expected, strict=True, err_msg=name)


def _assert_changed(model: Ranker, before: dict[str, np.ndarray]) -> None:
    for name, table in _tables(model).items():
        assert (table != before[name]).any(), name


def _corrupt_unseen_rows(model: Ranker) -> None:
    for name, layer in _layers(model).items():
        table = layer.fingerprints_table.numpy()
        table[UNSEEN[name]] ^= 1
        layer.fingerprints_table.assign(table)


def _wrong_rows(model: Ranker) -> dict[str, list[int]]:
    wrong = {}
    for name, layer in _layers(model).items():
        expected = ops.simhash(layer.embeddings, layer.hash.planes).numpy()
        wrong[name] = np.flatnonzero((layer.fingerprints_table.numpy() != expected).any(axis=1)).tolist()
    return wrong


# Optimisers


def _composite(optimizer: Callable[[], Optimizer]) -> Callable[[Ranker], Optimizer]:
    """One optimiser for embeddings and another for the rest, as the default is made."""

    def make(model: Ranker) -> Optimizer:
        tables = [layer.embeddings for layer in model.embeddings.values()]
        rest = [v for v in model.trainable_variables if all(v is not table for table in tables)]
        return tfrs.experimental.optimizers.CompositeOptimizer(
            [(optimizer(), lambda: tables), (type(optimizer())(0.1), lambda: rest)]
        )

    return make


OPTIMISERS: dict[str, Callable[[Ranker], Optimizer]] = {
    "default": lambda _: None,
    "adagrad": lambda _: tf.keras.optimizers.Adagrad(0.5),
    "adam": lambda _: tf.keras.optimizers.Adam(0.1),
    "adamw": lambda _: tf.keras.optimizers.AdamW(0.1, weight_decay=0.1),
    "ftrl": lambda _: tf.keras.optimizers.Ftrl(0.5),
    "rmsprop": lambda _: tf.keras.optimizers.RMSprop(0.1),
    "sgd": lambda _: tf.keras.optimizers.SGD(5.0),
    "sgd with ema": lambda _: tf.keras.optimizers.SGD(5.0, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2),
    "sgd with momentum": lambda _: tf.keras.optimizers.SGD(5.0, momentum=0.9),
    "loss scaling": lambda _: tf.keras.mixed_precision.LossScaleOptimizer(tf.keras.optimizers.SGD(5.0)),
    "composite of adam": _composite(lambda: tf.keras.optimizers.Adam(0.1)),
    "composite of sgd": _composite(lambda: tf.keras.optimizers.SGD(5.0)),
    "legacy adagrad": lambda _: legacy.Adagrad(0.5),
    "legacy adam": lambda _: legacy.Adam(0.1),
    "legacy loss scaling": lambda _: tf.keras.mixed_precision.LossScaleOptimizer(legacy.SGD(5.0)),
    "legacy sgd": lambda _: legacy.SGD(5.0),
    "composite of legacy adagrad": _composite(lambda: legacy.Adagrad(0.5)),
    "composite of legacy adam": _composite(lambda: legacy.Adam(0.1)),
    "composite of legacy sgd": _composite(lambda: legacy.SGD(5.0)),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_tables_are_exact_after_each_step(name: str) -> None:
    model = _eta()
    model.compile(OPTIMISERS[name](model), run_eagerly=True)
    first = _tables(model)
    for seed in range(3):
        before = _tables(model)["item_id"]
        model.train_on_batch(*_batch(seed))
        _assert_exact(model)
        assert (_tables(model)["item_id"] != before).any()
    _assert_changed(model, first)


@pytest.mark.parametrize("run_eagerly", [True, False])
@pytest.mark.parametrize("name", ["default", "adam"])
def test_planes_with_a_period_move_every_so_many_steps_and_tables_with_them(name: str, run_eagerly: bool) -> None:
    model = _eta(similarity_bias=True, trainable_planes=True, planes_period=3)
    model.compile(OPTIMISERS[name](model), run_eagerly=run_eagerly)
    hashes = {table: layer.hash for table, layer in _layers(model).items()}
    for step in range(1, 8):
        before = {table: hash.planes.numpy() for table, hash in hashes.items()}
        learned = {table: hash.learned_planes.numpy() for table, hash in hashes.items()}
        model.train_on_batch(*_batch(step))
        _assert_exact(model)
        for table, hash in hashes.items():
            assert (hash.learned_planes.numpy() != learned[table]).any()
            expected = hash.learned_planes.numpy() if step % 3 == 0 else before[table]
            np.testing.assert_array_equal(hash.planes, expected)


@pytest.mark.parametrize("make", [_dense_gradients, _learning_planes])
@pytest.mark.parametrize("name", ["default", "adam", "sgd", "legacy sgd", "composite of legacy adagrad"])
def test_tables_are_exact_with_dense_gradients_and_learning_planes(make: Callable[[], ETA], name: str) -> None:
    model = make()
    model.compile(OPTIMISERS[name](model), run_eagerly=True)
    first = _tables(model)
    planes = {name: layer.hash.planes.numpy() for name, layer in _layers(model).items()}
    for seed in range(3):
        model.train_on_batch(*_batch(seed))
        _assert_exact(model)
    _assert_changed(model, first)
    for table, layer in _layers(model).items():
        assert (layer.hash.planes.numpy() != planes[table]).any() == (make is _learning_planes)


@pytest.mark.parametrize("name", ["default", "adam", "legacy sgd", "composite of legacy adagrad"])
def test_tables_are_exact_in_a_ranker_that_was_given_the_unit(name: str) -> None:
    tf.keras.utils.set_random_seed(3)
    units = [RecentInterest(2, num_heads=1), ETAInterest(3, num_bits=70, num_heads=1)]
    model = Ranker(FEATURES, interests=units, hidden_units=(4,))
    model.build()
    model.compile(OPTIMISERS[name](model), run_eagerly=True)
    before = _tables(model)
    for seed in range(3):
        model.train_on_batch(*_batch(seed))
        _assert_exact(model)
    _assert_changed(model, before)


class _CheckEachBatch(tf.keras.callbacks.Callback):
    """Checks the tables after each batch of `fit` and counts those that changed them."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = 0
        self.before: dict[str, np.ndarray] = {}

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.before = _tables(self.model)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        _assert_exact(self.model)
        self.changed += any((table != self.before[name]).any() for name, table in _tables(self.model).items())


@pytest.mark.parametrize(
    ("name", "make", "options"),
    [
        ("default", _eta, {}),
        ("adam", _eta, {}),
        ("sgd with ema", _eta, {}),
        ("legacy adagrad", _eta, {}),
        ("composite of legacy sgd", _eta, {}),
        ("default", _dense_gradients, {}),
        ("default", _learning_planes, {}),
        ("default", _eta, {"jit_compile": True}),
    ],
)
def test_tables_are_exact_in_compiled_fits(name: str, make: Callable[[], ETA], options: dict[str, Any]) -> None:
    model = make()
    model.compile(OPTIMISERS[name](model), **options)
    check = _CheckEachBatch()
    data = _batch(0, rows=3 * ROWS)
    for _ in range(2):
        model.fit(*data, batch_size=ROWS, epochs=2, callbacks=[check], verbose=0)
        # Averaged weights are written at the end of a fit.
        _assert_exact(model)
    assert check.changed >= 10


@pytest.mark.parametrize("name", ["default", "adamw"])
def test_tables_are_exact_after_a_loop_of_ones_own(name: str) -> None:
    model = _eta()
    model.compile()
    # `compile` makes the default; in a loop of one's own, Keras sees none of it.
    optimizer = OPTIMISERS[name](model) or model.optimizer

    @tf.function
    def step(columns: dict[str, tf.Tensor], labels: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            logits = model(columns, training=True)
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits))
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    first = _tables(model)
    for seed in range(3):
        step(*tf.nest.map_structure(tf.constant, _batch(seed)))
        _assert_exact(model)
    _assert_changed(model, first)


@pytest.mark.parametrize("run_eagerly", [True, False], ids=["eager", "graph"])
@pytest.mark.parametrize("name", ["default", "sgd", "composite of sgd"])
def test_sparse_optimisers_hash_only_the_rows_they_touch(name: str, run_eagerly: bool) -> None:
    model = _eta()
    model.compile(OPTIMISERS[name](model), run_eagerly=run_eagerly)
    _corrupt_unseen_rows(model)
    before = _tables(model)
    for seed in range(3):
        model.train_on_batch(*_batch(seed))
        assert _wrong_rows(model) == {name: [row] for name, row in UNSEEN.items()}
    _assert_changed(model, before)


@pytest.mark.parametrize("name", ["legacy adagrad", "composite of legacy sgd"])
def test_optimisers_that_write_to_raw_handles_hash_every_row(name: str) -> None:
    model = _eta()
    model.compile(OPTIMISERS[name](model), run_eagerly=True)
    _corrupt_unseen_rows(model)
    model.train_on_batch(*_batch(0))
    _assert_exact(model)


def test_refresh_repairs_what_was_written_to_a_raw_handle() -> None:
    model = _eta()
    before = _tables(model)
    for layer in _layers(model).values():
        tf.raw_ops.AssignVariableOp(resource=layer.embeddings.handle, value=-layer.embeddings)
    assert all(len(rows) > 6 for rows in _wrong_rows(model).values())
    model.refresh()
    _assert_exact(model)
    _assert_changed(model, before)


# Weights written, loaded, restored


@pytest.fixture
def source() -> ETA:
    """A model whose embeddings and planes differ from those of a new one."""
    model = _learning_planes()
    rng = np.random.default_rng(8)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    _assert_exact(model)
    return model


def _check_equal(model: ETA, source: ETA, before: dict[str, np.ndarray] | None) -> None:
    _assert_exact(model)
    if before is not None:
        _assert_changed(model, before)
    columns, _ = _batch(0)
    np.testing.assert_array_equal(model(columns), source(columns))
    # The tables keep following.
    for layer in _layers(model).values():
        layer.embeddings.assign(-layer.embeddings)
    _assert_exact(model)


def test_tables_are_exact_after_assignments() -> None:
    model = _eta()
    for layer in _layers(model).values():
        for write in (
            lambda table: table.assign(-table),
            lambda table: table[2:4].assign(-table[2:4]),
            lambda table: table.scatter_sub(tf.IndexedSlices(2.0 * tf.gather(table, [1, 3]), tf.constant([1, 3]))),
        ):
            before = layer.fingerprints_table.numpy()
            write(layer.embeddings)
            _assert_exact(model)
            assert (layer.fingerprints_table.numpy() != before).any()


def test_tables_are_exact_after_set_weights(source: ETA) -> None:
    model = _learning_planes()
    before = _tables(model)
    model.set_weights(source.get_weights())
    _check_equal(model, source, before)


def test_tables_are_exact_after_every_weight_but_the_tables_is_set(source: ETA) -> None:
    model = _learning_planes()
    before = _tables(model)
    for variable, value in zip(model.trainable_variables, source.trainable_variables, strict=True):
        variable.assign(value)
    _check_equal(model, source, before)


@pytest.mark.parametrize("file", ["weights", "weights.h5", "model.weights.h5"])
def test_tables_are_exact_after_load_weights(source: ETA, file: str, tmp_path: Path) -> None:
    path = str(tmp_path / file)
    source.save_weights(path)
    model = _learning_planes()
    before = _tables(model)
    model.load_weights(path)
    _check_equal(model, source, before)


def test_tables_are_exact_after_load_weights_before_build(source: ETA, tmp_path: Path) -> None:
    source.save_weights(str(tmp_path / "weights"))
    model = ETA.from_config(source.get_config())
    model.load_weights(str(tmp_path / "weights"))
    model(_batch(0)[0])
    _check_equal(model, source, None)


@pytest.mark.parametrize("built", [True, False], ids=["built", "not built yet"])
def test_tables_are_exact_after_a_checkpoint_is_restored(source: ETA, built: bool, tmp_path: Path) -> None:
    path = tf.train.Checkpoint(model=source).save(str(tmp_path / "checkpoint"))
    model = _learning_planes() if built else ETA.from_config(source.get_config())
    before = _tables(model) if built else None
    status = tf.train.Checkpoint(model=model).restore(path)
    model(_batch(0)[0])
    status.assert_existing_objects_matched()
    _check_equal(model, source, before)


def test_tables_are_exact_after_the_embeddings_alone_are_restored(source: ETA, tmp_path: Path) -> None:
    def embeddings(model: ETA) -> tf.train.Checkpoint:
        return tf.train.Checkpoint(**{name: layer.embeddings for name, layer in _layers(model).items()})

    path = embeddings(source).save(str(tmp_path / "checkpoint"))
    model = _learning_planes()
    before = _tables(model)
    embeddings(model).restore(path).assert_consumed()
    _assert_exact(model)
    _assert_changed(model, before)
    for name, layer in _layers(model).items():
        np.testing.assert_array_equal(layer.embeddings, _layers(source)[name].embeddings)


class _Crash(tf.keras.callbacks.Callback):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            raise KeyboardInterrupt


def test_tables_are_exact_after_a_run_is_resumed(tmp_path: Path) -> None:
    model = _eta()
    model.compile(run_eagerly=True)
    backup = tf.keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
    with pytest.raises(KeyboardInterrupt):
        model.fit(*_batch(0), batch_size=ROWS, epochs=4, callbacks=[backup, _Crash()], verbose=0)
    resumed = _eta()
    before = _tables(resumed)
    resumed.compile(run_eagerly=True)
    check = _CheckEachBatch()
    history = resumed.fit(*_batch(0), batch_size=ROWS, epochs=4, callbacks=[backup, check], verbose=0)
    assert history.epoch == [2, 3]
    _assert_exact(resumed)
    _assert_changed(resumed, before)
    assert int(resumed.optimizer.iterations) == 4


def test_tables_are_exact_after_the_best_weights_are_put_back(tmp_path: Path) -> None:
    model = _eta()
    model.compile(run_eagerly=True)
    path = str(tmp_path / "best")
    callbacks = [
        tf.keras.callbacks.ModelCheckpoint(path, monitor="total_loss", save_weights_only=True),
        tf.keras.callbacks.EarlyStopping(monitor="total_loss", min_delta=9.0, patience=2, restore_best_weights=True),
    ]
    first = _tables(model)
    history = model.fit(*_batch(0), batch_size=ROWS, epochs=6, callbacks=callbacks, verbose=0)
    assert len(history.epoch) == 3
    _assert_exact(model)
    _assert_changed(model, first)
    before = _tables(model)
    model.load_weights(path)
    _assert_exact(model)
    _assert_changed(model, before)


@pytest.mark.slow
def test_tables_are_exact_in_a_reloaded_model_and_as_it_trains_on(tmp_path: Path) -> None:
    model = _learning_planes()
    model.compile(run_eagerly=True)
    model.train_on_batch(*_batch(0))
    path = str(tmp_path / "model")
    model.save(path)
    reloaded = tf.keras.models.load_model(path)
    assert type(reloaded) is ETA
    _assert_exact(reloaded)
    for table, other in zip(_tables(reloaded).values(), _tables(model).values(), strict=True):
        np.testing.assert_array_equal(table, other)
    columns, _ = _batch(0)
    np.testing.assert_allclose(reloaded(columns), model(columns), rtol=1e-6)
    before = _tables(reloaded)
    reloaded.compile(run_eagerly=True)
    for seed in range(3):
        reloaded.train_on_batch(*_batch(seed))
        _assert_exact(reloaded)
    _assert_changed(reloaded, before)
    # A SavedModel without Keras holds the tables as they were saved.
    saved = tf.saved_model.load(path)
    np.testing.assert_allclose(saved(columns), model(columns), rtol=1e-6)
