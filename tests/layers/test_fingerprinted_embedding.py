"""The embedding and its fingerprints: the table equals SimHash(embeddings) bit for bit after every change."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import ops
from keras_eta.layers import FingerprintedEmbedding
from tests import reference
from tests.layer_check import check_layer

ROWS, DIM, NUM_BITS = 12, 5, 70
TOUCHED = [1, 3, 3, 8]
UNTOUCHED = 6

Layer = FingerprintedEmbedding


def _layer(**arguments: Any) -> Layer:
    layer = FingerprintedEmbedding(ROWS, DIM, num_bits=NUM_BITS, seed=4, embeddings_initializer=_initial, **arguments)
    layer.build()
    return layer


def _initial(shape: Any, dtype: Any = None) -> tf.Tensor:
    return tf.random.stateless_normal(shape, seed=[1, 2], dtype=dtype or tf.float32)


def _table(layer: Layer) -> np.ndarray:
    return layer.fingerprints_table.numpy()


def _assert_exact(layer: Layer) -> None:
    np.testing.assert_array_equal(_table(layer), ops.simhash(layer.embeddings, layer.hash.planes), strict=True)


def _corrupt(layer: Layer, row: int) -> None:
    """Flips a bit of a row's fingerprint behind the layer's back."""
    table = _table(layer)
    table[row] ^= 1
    layer.fingerprints_table.assign(table)


def _wrong_rows(layer: Layer) -> list[int]:
    expected = ops.simhash(layer.embeddings, layer.hash.planes).numpy()
    return np.flatnonzero((_table(layer) != expected).any(axis=1)).tolist()


@pytest.fixture
def layer() -> Layer:
    return _layer()


# What it holds


@pytest.mark.parametrize("num_bits", [1, 7, 64, 65, 200])
def test_new_table_equals_reference(num_bits: int) -> None:
    layer = FingerprintedEmbedding(30, DIM, num_bits=num_bits)
    layer.build()
    expected = reference.simhash(layer.embeddings.numpy(), layer.hash.planes.numpy())
    np.testing.assert_array_equal(_table(layer), expected, strict=True)
    ids = tf.constant([[3, 29], [0, 3]])
    np.testing.assert_array_equal(layer.fingerprints(ids), expected[ids.numpy()], strict=True)
    np.testing.assert_array_equal(layer(ids), layer.embeddings.numpy()[ids.numpy()])


def test_fingerprinted_embedding_is_the_same_everywhere(tmp_path: Path) -> None:
    layer = FingerprintedEmbedding(ROWS, DIM, num_bits=NUM_BITS, embeddings_regularizer=tf.keras.regularizers.L2(0.1))
    ids = np.array([[1, 2, 11], [0, 1, 1]], np.int32)
    (embeddings,) = check_layer(layer, {"inputs": ids}, tmp_path)
    np.testing.assert_array_equal(embeddings, layer.embeddings.numpy()[ids])
    _assert_exact(layer)
    reloaded = tf.keras.models.load_model(str(tmp_path / "model")).layers[-1]
    assert isinstance(reloaded, FingerprintedEmbedding)
    np.testing.assert_array_equal(_table(reloaded), _table(layer))
    before = _table(reloaded)
    reloaded.embeddings.assign(-reloaded.embeddings)
    _assert_exact(reloaded)
    assert (before != _table(reloaded)).any(axis=1).all()


def test_config_holds_every_argument() -> None:
    layer = FingerprintedEmbedding(9, 4, num_bits=5, seed=6, trainable_planes=True, planes_period=2, name="items")
    config = layer.get_config()
    twin = FingerprintedEmbedding.from_config(config)
    expected = {
        "input_dim": 9,
        "output_dim": 4,
        "num_bits": 5,
        "seed": 6,
        "trainable_planes": True,
        "planes_period": 2,
    }
    assert {name: config[name] for name in expected} == expected
    layer.build()
    twin.build()
    np.testing.assert_array_equal(layer.hash.planes, twin.hash.planes)


def test_codes_are_the_bits_of_the_table(layer: Layer) -> None:
    bits = np.array([reference.unpack_words(words, NUM_BITS) for words in _table(layer)])
    np.testing.assert_array_equal(layer.codes(layer(tf.range(ROWS))), np.where(bits, 1.0, -1.0))


def test_only_embeddings_are_trainable(layer: Layer) -> None:
    assert [weight.shape.as_list() for weight in layer.trainable_weights] == [[ROWS, DIM]]
    assert sorted(weight.shape.as_list() for weight in layer.non_trainable_weights) == [[DIM, NUM_BITS], [ROWS, 2]]
    planes = _layer(trainable_planes=True)
    assert sorted(weight.shape.as_list() for weight in planes.trainable_weights) == [[DIM, NUM_BITS], [ROWS, DIM]]


# Direct updates

Update = Callable[[Layer], Any]


def _slices(value: float) -> tf.IndexedSlices:
    return tf.IndexedSlices(tf.fill([len(TOUCHED), DIM], value) * tf.range(1.0, DIM + 1.0), tf.constant(TOUCHED))


ROW_UPDATES: dict[str, Update] = {
    "scatter_add": lambda layer: layer.embeddings.scatter_add(_slices(9.0)),
    "scatter_sub": lambda layer: layer.embeddings.scatter_sub(_slices(9.0)),
    "scatter_update": lambda layer: layer.embeddings.scatter_update(_slices(-9.0)),
    "scatter_update by name": lambda layer: layer.embeddings.scatter_update(sparse_delta=_slices(-9.0)),
    "scatter_mul": lambda layer: layer.embeddings.scatter_mul(_slices(-2.0)),
    "scatter_div": lambda layer: layer.embeddings.scatter_div(_slices(-2.0)),
    "scatter_min": lambda layer: layer.embeddings.scatter_min(_slices(-9.0)),
    "scatter_max": lambda layer: layer.embeddings.scatter_max(_slices(9.0)),
}

_INDICES = tf.constant([[row] for row in (1, 3, 8)])
_NINES = tf.fill([3, DIM], 9.0) * tf.range(1.0, DIM + 1.0)

TABLE_UPDATES: dict[str, Update] = {
    "assign": lambda layer: layer.embeddings.assign(-layer.embeddings),
    "assign unread": lambda layer: layer.embeddings.assign(-layer.embeddings, read_value=False),
    "assign_add": lambda layer: layer.embeddings.assign_add(-2.0 * layer.embeddings),
    "assign_sub": lambda layer: layer.embeddings.assign_sub(2.0 * layer.embeddings),
    "assign_sub itself": lambda layer: layer.embeddings.assign_sub(layer.embeddings),
    "assign_sub by name": lambda layer: layer.embeddings.assign_sub(delta=layer.embeddings),
    "slice": lambda layer: layer.embeddings[1:4].assign(-layer.embeddings[1:4]),
    "row": lambda layer: layer.embeddings[UNTOUCHED].assign(-layer.embeddings[UNTOUCHED]),
    "column": lambda layer: layer.embeddings[:, 2].assign(9.0 * layer.embeddings[:, 0]),
    "scatter_nd_add": lambda layer: layer.embeddings.scatter_nd_add(_INDICES, _NINES),
    "scatter_nd_sub": lambda layer: layer.embeddings.scatter_nd_sub(_INDICES, _NINES),
    "scatter_nd_update": lambda layer: layer.embeddings.scatter_nd_update(_INDICES, _NINES),
    "scatter_nd_min": lambda layer: layer.embeddings.scatter_nd_min(_INDICES, -_NINES),
    "scatter_nd_max": lambda layer: layer.embeddings.scatter_nd_max(_INDICES, _NINES),
    "planes": lambda layer: layer.hash.planes.assign(tf.reverse(layer.hash.planes, [0])),
    "one plane": lambda layer: layer.hash.planes[:, 69].assign(-layer.hash.planes[:, 69]),
}


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("name", [*ROW_UPDATES, *TABLE_UPDATES])
def test_table_is_exact_after_an_update(layer: Layer, name: str, in_graph: bool) -> None:
    update = {**ROW_UPDATES, **TABLE_UPDATES}[name]
    before = _table(layer)

    def run() -> None:
        update(layer)

    (tf.function(run) if in_graph else run)()
    _assert_exact(layer)
    assert (before != _table(layer)).any()


# A plane is a column; these change coordinates of all of them.
_COORDINATES = tf.IndexedSlices(tf.reshape(tf.linspace(-9.0, 9.0, 2 * NUM_BITS), [2, NUM_BITS]), tf.constant([0, 3]))
_ALL_COORDINATES = tf.reshape(tf.linspace(-9.0, 9.0, DIM * NUM_BITS), [DIM, NUM_BITS])

PLANES_UPDATES: dict[str, tuple[Any, ...]] = {
    **{f"scatter_{name}": (_COORDINATES,) for name in ("add", "sub", "update", "mul", "div", "min", "max")},
    **{
        f"scatter_nd_{name}": (_COORDINATES.indices[:, tf.newaxis], _COORDINATES.values)
        for name in ("add", "sub", "update", "min", "max")
    },
    "assign_add": (_ALL_COORDINATES,),
    "assign_sub": (_ALL_COORDINATES,),
    "batch_scatter_update": (tf.IndexedSlices(tf.fill([DIM, 1], 30.0), tf.tile(tf.constant([[2]]), [DIM, 1])),),
}


@pytest.mark.parametrize("name", PLANES_UPDATES)
def test_table_is_exact_after_an_update_of_the_planes(layer: Layer, name: str) -> None:
    before = _table(layer)
    getattr(layer.hash.planes, name)(*PLANES_UPDATES[name])
    _assert_exact(layer)
    assert (before != _table(layer)).any()


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("name", ROW_UPDATES)
def test_row_update_hashes_only_its_rows(layer: Layer, name: str, in_graph: bool) -> None:
    _corrupt(layer, UNTOUCHED)
    _corrupt(layer, TOUCHED[0])

    def run() -> None:
        ROW_UPDATES[name](layer)

    (tf.function(run) if in_graph else run)()
    assert _wrong_rows(layer) == [UNTOUCHED]


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("name", ["assign_add", "assign_sub"])
def test_sum_hashes_only_the_rows_it_changes(layer: Layer, name: str, in_graph: bool) -> None:
    _corrupt(layer, UNTOUCHED)
    _corrupt(layer, TOUCHED[0])
    delta = np.zeros([ROWS, DIM], np.float32)
    delta[TOUCHED, -1] = [9.0, np.nan, np.nan, -1e-30]

    def run() -> None:
        getattr(layer.embeddings, name)(delta)

    (tf.function(run) if in_graph else run)()
    assert _wrong_rows(layer) == [UNTOUCHED]


@pytest.mark.parametrize("name", TABLE_UPDATES)
def test_any_other_update_hashes_the_whole_table(layer: Layer, name: str) -> None:
    _corrupt(layer, 0)
    TABLE_UPDATES[name](layer)
    _assert_exact(layer)


def test_table_is_exact_after_several_updates_in_one_graph(layer: Layer) -> None:
    before = _table(layer)

    @tf.function
    def run() -> tf.Tensor:
        layer.embeddings.assign(-layer.embeddings)
        layer.embeddings.scatter_add(_slices(3.0))
        for _ in tf.range(3):
            layer.embeddings.scatter_sub(_slices(2.0))
        if tf.reduce_sum(layer.embeddings) < 1e9:
            layer.hash.planes.assign(-layer.hash.planes)
        # Read in the same graph, after the updates.
        return layer.fingerprints(tf.range(ROWS))

    read = run()
    _assert_exact(layer)
    np.testing.assert_array_equal(read, _table(layer))
    assert (before != _table(layer)).any()


def test_update_returns_what_the_variable_returns(layer: Layer) -> None:
    plain = tf.Variable(layer.embeddings)
    np.testing.assert_array_equal(
        layer.embeddings.assign_add(tf.ones([ROWS, DIM])), plain.assign_add(tf.ones([ROWS, DIM]))
    )
    np.testing.assert_array_equal(layer.embeddings.scatter_add(_slices(1.0)), plain.scatter_add(_slices(1.0)))
    np.testing.assert_array_equal(layer.embeddings, plain)


def test_table_is_exact_after_set_weights_and_set_value(layer: Layer) -> None:
    other = FingerprintedEmbedding(ROWS, DIM, num_bits=NUM_BITS, seed=9)
    other.build()
    assert (_table(other) != _table(layer)).any(axis=1).all()
    layer.set_weights(other.get_weights())
    _assert_exact(layer)
    np.testing.assert_array_equal(_table(layer), _table(other))
    tf.keras.backend.set_value(layer.embeddings, -layer.embeddings.numpy())
    _assert_exact(layer)
    assert (_table(other) != _table(layer)).any(axis=1).all()


def test_table_is_exact_after_a_batched_scatter() -> None:
    # `batch_scatter_update` needs a leading batch dimension on both sides: an embedding of one row a batch.
    layer = _layer()
    before = _table(layer)
    layer.embeddings.batch_scatter_update(
        tf.IndexedSlices(tf.fill([ROWS, 1], 30.0), tf.tile(tf.constant([[2]]), [ROWS, 1]))
    )
    np.testing.assert_array_equal(layer.embeddings[:, 2], np.full(ROWS, 30.0))
    _assert_exact(layer)
    assert (before != _table(layer)).any()


# Optimisers

OPTIMISERS: dict[str, Callable[[], tf.keras.optimizers.Optimizer]] = {
    "adadelta": lambda: tf.keras.optimizers.Adadelta(1_000.0),
    "adafactor": lambda: tf.keras.optimizers.Adafactor(0.3),
    "adagrad": lambda: tf.keras.optimizers.Adagrad(0.5),
    "adagrad with clipping": lambda: tf.keras.optimizers.Adagrad(0.5, clipnorm=0.5),
    "adagrad with ema": lambda: tf.keras.optimizers.Adagrad(
        0.5, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
    ),
    "adagrad with weight decay": lambda: tf.keras.optimizers.Adagrad(0.5, weight_decay=0.1),
    "adam": lambda: tf.keras.optimizers.Adam(0.1),
    "adamax": lambda: tf.keras.optimizers.Adamax(0.1),
    "adamw": lambda: tf.keras.optimizers.AdamW(0.1, weight_decay=0.1),
    "amsgrad": lambda: tf.keras.optimizers.Adam(0.1, amsgrad=True),
    "ftrl": lambda: tf.keras.optimizers.Ftrl(0.5),
    "lion": lambda: tf.keras.optimizers.Lion(0.1),
    "loss scaling": lambda: tf.keras.mixed_precision.LossScaleOptimizer(tf.keras.optimizers.Adagrad(0.5)),
    "nadam": lambda: tf.keras.optimizers.Nadam(0.1),
    "rmsprop": lambda: tf.keras.optimizers.RMSprop(0.1, momentum=0.5, centered=True),
    "sgd": lambda: tf.keras.optimizers.SGD(0.5),
    "sgd with momentum": lambda: tf.keras.optimizers.SGD(0.5, momentum=0.9),
    "sgd with nesterov": lambda: tf.keras.optimizers.SGD(0.5, momentum=0.9, nesterov=True),
}


def _step(layer: Layer, optimizer: Any, straight_through: bool = False) -> Callable[[tf.Tensor], None]:
    """A compiled training step by a plain gradient tape."""

    @tf.function
    def step(ids: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            embeddings = tf.cast(layer(ids), tf.float32)
            loss = tf.reduce_mean((embeddings - 1.0) ** 2) + tf.add_n([0.0, *layer.losses])
            if straight_through:
                loss += tf.reduce_mean((layer.codes(embeddings) - 1.0) ** 2)
        gradients = tape.gradient(loss, layer.trainable_variables)
        optimizer.apply_gradients(zip(gradients, layer.trainable_variables, strict=True))

    return step


def _train(layer: Layer, optimizer: Any, steps: int = 3, **options: Any) -> None:
    """Trains on random rows and checks the table after each step, and that it changed."""
    step, rng = _step(layer, optimizer, **options), np.random.default_rng(0)
    for _ in range(steps):
        before = _table(layer)
        step(tf.constant(rng.integers(0, ROWS, [6])))
        _assert_exact(layer)
        assert (before != _table(layer)).any()


@pytest.mark.parametrize("name", OPTIMISERS)
def test_table_is_exact_after_each_step_of_an_optimiser(layer: Layer, name: str) -> None:
    _train(layer, OPTIMISERS[name]())


@pytest.mark.parametrize("name", ["adagrad", "adam", "sgd", "sgd with momentum", "ftrl"])
def test_table_is_exact_with_dense_gradients(name: str) -> None:
    _train(_layer(embeddings_regularizer=tf.keras.regularizers.L2(0.5)), OPTIMISERS[name]())


@pytest.mark.parametrize("name", ["adagrad", "adam", "sgd"])
def test_table_is_exact_with_a_constraint(name: str) -> None:
    layer = _layer(embeddings_constraint=tf.keras.constraints.NonNeg())
    _train(layer, OPTIMISERS[name](), steps=1)
    assert (layer.embeddings.numpy() >= 0).all()


@pytest.mark.parametrize("name", ["adagrad", "adam", "sgd"])
def test_table_is_exact_as_planes_learn(name: str) -> None:
    layer = _layer(trainable_planes=True)
    planes = layer.hash.planes.numpy()
    _train(layer, OPTIMISERS[name](), straight_through=True)
    assert (planes != layer.hash.planes.numpy()).any()


# Without momentum, too, Keras 2's SGD adds a dense, mostly zero momentum to the whole table.
@pytest.mark.parametrize("name", ["adagrad", "adagrad with clipping", "loss scaling", "sgd"])
def test_sparse_step_hashes_only_the_rows_it_touches(layer: Layer, name: str) -> None:
    step = _step(layer, OPTIMISERS[name]())
    _corrupt(layer, UNTOUCHED)
    _corrupt(layer, TOUCHED[0])
    before = _table(layer)
    step(tf.constant(TOUCHED))
    assert _wrong_rows(layer) == [UNTOUCHED]
    changed = np.flatnonzero((_table(layer) != before).any(axis=1))
    assert 0 < len(changed) <= len(set(TOUCHED))
    assert set(changed) <= set(TOUCHED)


@pytest.mark.parametrize("name", ["adagrad", "loss scaling"])
def test_row_that_a_batch_holds_often_is_hashed_once(layer: Layer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed, refresh = tf.Variable(0), layer.refresh

    def counted(ids: tf.Tensor) -> None:
        hashed.assign_add(tf.size(ids))
        refresh(ids)

    monkeypatch.setattr(layer, "refresh", counted)
    _step(layer, OPTIMISERS[name]())(tf.constant([3, 1, 3, 3, 1]))
    assert int(hashed) == 2
    _assert_exact(layer)


@pytest.mark.parametrize("name", ["adam", "sgd with momentum", "adagrad with weight decay"])
def test_step_that_moves_every_row_hashes_every_row(layer: Layer, name: str) -> None:
    step = _step(layer, OPTIMISERS[name]())
    step(tf.range(ROWS))
    _corrupt(layer, UNTOUCHED)
    step(tf.constant(TOUCHED))
    _assert_exact(layer)


def test_step_that_moves_the_planes_hashes_every_row() -> None:
    layer = _layer(trainable_planes=True)
    _corrupt(layer, UNTOUCHED)
    _step(layer, tf.keras.optimizers.SGD(0.5), straight_through=True)(tf.constant(TOUCHED))
    _assert_exact(layer)


def test_averaged_weights_written_at_the_end_are_hashed(layer: Layer) -> None:
    optimizer = tf.keras.optimizers.SGD(2.0, use_ema=True, ema_momentum=0.9)
    _train(layer, optimizer)
    before = _table(layer)
    optimizer.finalize_variable_values(layer.trainable_variables)
    _assert_exact(layer)
    assert (before != _table(layer)).any()


def test_writing_to_a_raw_handle_needs_a_refresh_as_documented(layer: Layer) -> None:
    step = _step(layer, tf.keras.optimizers.legacy.SGD(50.0))
    step(tf.constant(TOUCHED))
    assert set(_wrong_rows(layer)) <= set(TOUCHED)
    assert _wrong_rows(layer)
    layer.refresh(tf.constant([3, 8]))
    assert _wrong_rows(layer) == [1]
    layer.refresh()
    _assert_exact(layer)


# Saving and restoring


def test_table_is_exact_after_the_embeddings_alone_are_restored(layer: Layer, tmp_path: Path) -> None:
    path = tf.train.Checkpoint(items=tf.Variable(-layer.embeddings)).save(str(tmp_path / "checkpoint"))
    before = _table(layer)
    tf.train.Checkpoint(items=layer.embeddings).restore(path).assert_existing_objects_matched()
    _assert_exact(layer)
    assert (before != _table(layer)).any(axis=1).all()


@pytest.mark.parametrize("built", [True, False], ids=["built", "not built yet"])
def test_table_is_exact_after_a_checkpoint_is_restored(layer: Layer, built: bool, tmp_path: Path) -> None:
    path = tf.train.Checkpoint(layer=layer).save(str(tmp_path / "checkpoint"))
    other = FingerprintedEmbedding(ROWS, DIM, num_bits=NUM_BITS, seed=9)
    if built:
        other.build()
        assert (_table(other) != _table(layer)).any(axis=1).all()
    status = tf.train.Checkpoint(layer=other).restore(path)
    other(tf.constant([0]))
    status.assert_existing_objects_matched()
    _assert_exact(other)
    np.testing.assert_array_equal(_table(other), _table(layer))
    other.embeddings.assign(-other.embeddings)
    _assert_exact(other)


def test_table_is_exact_after_embeddings_of_another_model_are_restored_before_build(tmp_path: Path) -> None:
    # A checkpoint of a plain embedding has no table and no planes.
    plain = tf.keras.layers.Embedding(ROWS, DIM)
    plain.build(None)
    path = tf.train.Checkpoint(layer=plain).save(str(tmp_path / "checkpoint"))
    layer = FingerprintedEmbedding(ROWS, DIM, num_bits=NUM_BITS)
    tf.train.Checkpoint(layer=layer).restore(path)
    layer.build()
    np.testing.assert_array_equal(layer.embeddings, plain.embeddings)
    _assert_exact(layer)


def test_copy_keeps_its_own_table_exact(layer: Layer) -> None:
    twin = copy.deepcopy(layer)
    before = _table(layer)
    twin.embeddings.assign(-twin.embeddings)
    _assert_exact(twin)
    np.testing.assert_array_equal(_table(layer), before)
    _assert_exact(layer)


def test_copy_has_the_weights_and_the_arguments(layer: Layer) -> None:
    constraint, regularizer = tf.keras.constraints.UnitNorm(axis=1), tf.keras.regularizers.L2(0.5)
    layer = _layer(embeddings_constraint=constraint, embeddings_regularizer=regularizer, trainable_planes=True)
    layer.embeddings.assign(3.0 * layer.embeddings + 1.0)
    layer.hash.planes.assign(-layer.hash.planes)
    twin = copy.deepcopy(layer)
    for ours, theirs in zip(twin.get_weights(), layer.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)
    assert twin.embeddings is not layer.embeddings
    assert (twin.embeddings_constraint, twin.embeddings_regularizer) == (constraint, regularizer)
    _train(twin, tf.keras.optimizers.SGD(0.5), steps=1)
    np.testing.assert_allclose(np.linalg.norm(twin.embeddings, axis=1), np.ones(ROWS), rtol=1e-5)
    unbuilt = copy.deepcopy(FingerprintedEmbedding(ROWS, DIM, num_bits=NUM_BITS))
    assert not unbuilt.built


# Large tables, half precision


@pytest.fixture(scope="module")
def large() -> Layer:
    """More rows than are hashed at once, and no multiple of them."""
    layer = FingerprintedEmbedding(70_001, 4, num_bits=16)
    layer.build()
    return layer


LARGE_UPDATES: dict[str, Update] = {
    "assign": lambda layer: layer.embeddings.assign(-layer.embeddings),
    "assign_sub": lambda layer: layer.embeddings.assign_sub(2.0 * layer.embeddings),
}


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize("name", LARGE_UPDATES)
def test_large_table_is_exact_after_an_update(large: Layer, name: str, mode: str) -> None:
    def negate() -> None:
        LARGE_UPDATES[name](large)

    before = _table(large)
    {"eager": negate, "graph": tf.function(negate), "xla": tf.function(negate, jit_compile=True)}[mode]()
    _assert_exact(large)
    assert (before != _table(large)).any(axis=1).all()


def test_large_table_is_hashed_in_blocks(large: Layer) -> None:
    @tf.function
    def refresh() -> None:
        large.refresh()

    assert not list(_tensors_of_rows(refresh.get_concrete_function().graph, 70_001 * 16))


def _tensors_of_rows(graph: Any, size: int) -> Iterator[tf.Tensor]:
    for operation in graph.get_operations():
        for tensor in operation.outputs:
            if tensor.dtype == tf.float32 and tensor.shape.num_elements() == size:
                yield tensor


@pytest.fixture
def mixed_precision() -> Iterator[None]:
    policy = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    yield
    tf.keras.mixed_precision.set_global_policy(policy)


@pytest.mark.usefixtures("mixed_precision")
def test_table_is_exact_under_mixed_precision() -> None:
    layer = FingerprintedEmbedding(2_000, DIM, num_bits=64)
    layer.build()
    _assert_exact(layer)
    before = _table(layer)
    ids = tf.range(1_000)
    _step(layer, tf.keras.optimizers.SGD(300.0))(ids)
    assert (before != _table(layer)).any()
    _assert_exact(layer)
    layer.refresh(ids)
    _assert_exact(layer)


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), "`input_dim` must be a positive integer. Received: input_dim=0"),
        ((4.0, 4), "`input_dim` must be a positive integer. Received: input_dim=4.0"),
        ((4, -1), "`output_dim` must be a positive integer. Received: output_dim=-1"),
        ((4, True), "`output_dim` must be a positive integer. Received: output_dim=True"),
        ((4, 4, 0), "`num_bits` must be a positive integer. Received: num_bits=0"),
    ],
)
def test_fingerprinted_embedding_refuses_a_bad_argument(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        FingerprintedEmbedding(*arguments)


def test_fingerprinted_embedding_refuses_a_strategy_with_central_variables() -> None:
    message = (
        "FingerprintedEmbedding does not support CentralStorageStrategy: its embeddings would change on servers or "
        "devices that do not hash them again, and retrieval would go by old fingerprints. Use "
        "tf.distribute.MultiWorkerMirroredStrategy (several machines) or tf.distribute.MirroredStrategy (several "
        "devices of one machine), where every replica holds the whole model."
    )
    with (
        tf.distribute.experimental.CentralStorageStrategy(["/cpu:0"]).scope(),
        pytest.raises(NotImplementedError, match=f"^{re.escape(message)}$"),
    ):
        FingerprintedEmbedding(4, 4).build()
