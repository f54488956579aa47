from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta.layers import ResidualQuantizer
from keras_eta.quantization import ResidualKMeans
from tests import retrieval_reference as reference
from tests.layer_check import check_layer


def make_vectors(rows: int = 40, dim: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)


def make_layer(codebooks: np.ndarray, **arguments: Any) -> ResidualQuantizer:
    layer = ResidualQuantizer(codebooks.shape[0], codebooks.shape[1], **arguments)
    layer.build([None, codebooks.shape[2]])
    layer.codebooks.assign(codebooks)
    return layer


def random_codebooks(levels: int = 3, size: int = 7, dim: int = 5) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 0.7, (levels, size, dim)).astype(np.float32)


def test_quantised_is_the_same_everywhere_and_equals_the_reference(tmp_path: Path) -> None:
    layer = make_layer(random_codebooks(), commitment_weight=0.4)
    vectors = make_vectors()
    codes, quantised, *losses = check_layer(layer, {"inputs": vectors}, tmp_path)
    expected = reference.residual_quantizer(vectors, random_codebooks(), 0.4)
    np.testing.assert_array_equal(codes, expected[0], strict=True)
    np.testing.assert_allclose(quantised, expected[1], atol=1e-5)
    np.testing.assert_allclose(losses, expected[2:], rtol=1e-5)


def test_codes_of_a_vector_do_not_depend_on_the_batch() -> None:
    # Each vector lies between two codes, as nearly as floats can tell.
    rng = np.random.default_rng(0)
    codebook = rng.standard_normal((1, 64, 100)).astype(np.float32)
    ends = rng.integers(0, 64, (500, 2))
    vectors = codebook[0, ends].mean(axis=1)
    layer = make_layer(codebook)
    together = layer(vectors).codes.numpy()
    alone = np.concatenate([layer(vectors[i : i + 1]).codes.numpy() for i in range(0, 500, 5)])
    np.testing.assert_array_equal(alone, together[::5])


def test_equal_codes_give_the_first() -> None:
    assert make_layer(np.zeros([2, 4, 3], np.float32))(make_vectors(2, 3)).codes.numpy().tolist() == [[0, 0], [0, 0]]


def test_gradients_equal_the_reference() -> None:
    vectors, codebooks = make_vectors(), random_codebooks()
    upstream = make_vectors(seed=2)
    layer = make_layer(codebooks, commitment_weight=0.4)
    inputs = tf.constant(vectors)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        _, quantised, codebook_loss, commitment_loss = layer(inputs, training=True)
        total = tf.reduce_sum(codebook_loss) + tf.reduce_sum(commitment_loss) + tf.reduce_sum(quantised * upstream)
    of_vectors, of_codebooks = tape.gradient(total, [inputs, layer.codebooks])
    expected = reference.residual_quantizer_gradients(vectors, codebooks, 0.4, upstream)
    np.testing.assert_allclose(of_vectors, expected[0], atol=1e-5)
    np.testing.assert_allclose(of_codebooks, expected[1], atol=1e-5)


def test_the_inputs_get_gradient_from_every_level() -> None:
    # One dimension, worked by hand: z = 10 has the codes 8, 1 and 0.5, which leave 2, 1 and 0.5. Each level adds
    # 2 * 0.25 * what it leaves to the commitment's gradient.
    layer = make_layer(np.array([[[8.0]], [[1.0]], [[0.5]]], np.float32))
    z = tf.constant([[10.0]])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        _, quantised, codebook_loss, commitment_loss = layer(z)
    assert quantised.numpy().item() == 9.5
    assert codebook_loss.numpy().item() == 2.0**2 + 1.0**2 + 0.5**2
    assert commitment_loss.numpy().item() == 0.25 * 5.25
    assert tape.gradient(commitment_loss, z).numpy().item() == 0.5 * (2.0 + 1.0 + 0.5)
    # The straight-through gradient of the sum, once, whatever the levels.
    assert tape.gradient(quantised, z).numpy().item() == 1.0
    assert tape.gradient(codebook_loss, z) is None
    assert tape.gradient(codebook_loss, layer.codebooks).numpy().ravel().tolist() == [-4.0, -2.0, -1.0]
    for other in (quantised, commitment_loss):
        gradient = tape.gradient(other, layer.codebooks)
        assert gradient is None or not np.any(tf.convert_to_tensor(gradient))


def test_initialize_takes_residual_k_means() -> None:
    vectors = make_vectors(300)
    layer = ResidualQuantizer(2, 16, seed=3)
    layer.initialize(vectors)
    quantizer = ResidualKMeans(2, 16, seed=3).fit(vectors)
    np.testing.assert_array_equal(layer.codebooks.numpy(), np.stack(quantizer.codebooks))
    np.testing.assert_array_equal(layer(vectors).codes, quantizer.codes(vectors), strict=True)
    assert layer.initialized.numpy() == 1


def test_initialize_of_fewer_vectors_than_codes_leaves_the_others() -> None:
    vectors = make_vectors(3)
    layer = ResidualQuantizer(2, 4)
    layer.build([None, 5])
    before = layer.codebooks.numpy()
    assert 0.2 < np.abs(before).max() < 0.25
    with pytest.warns(UserWarning, match=r"Clusters per level: \[3, 1\]"):
        layer.initialize(vectors)
    np.testing.assert_array_equal(layer.codebooks.numpy()[0, 3], before[0, 3])
    np.testing.assert_array_equal(layer.codebooks.numpy()[1, 1:], before[1, 1:])
    np.testing.assert_allclose(layer(vectors).vectors, vectors, atol=1e-6)
    with pytest.raises(ValueError, match=r"`vectors` must be finite as float32. Received at row 0"):
        layer.initialize(np.full([2, 5], np.nan))


@pytest.mark.parametrize("graph", [False, True])
def test_unused_codes_restart_at_residuals_of_the_batch(graph: bool) -> None:
    # Codes 0 are near all vectors, the others far from all.
    codebooks = np.full([2, 3, 2], 1e3, np.float32)
    codebooks[:, 0] = 0.25
    layer = make_layer(codebooks, restart_after=3)
    step = tf.function(layer) if graph else layer
    vectors = np.random.default_rng(0).uniform(-1, 1, (10, 2)).astype(np.float32)
    for unused in (1, 2):
        step(vectors, training=True)
        assert layer.unused_steps.numpy().tolist() == [[0, unused, unused]] * 2
    layer(vectors)
    np.testing.assert_array_equal(layer.codebooks.numpy(), codebooks)
    # The step that restarts them quantises by the codes that were there.
    assert not step(vectors, training=True).codes.numpy().any()
    assert not layer.unused_steps.numpy().any()
    moved = layer.codebooks.numpy()
    np.testing.assert_array_equal(moved[:, 0], codebooks[:, 0])
    for level, residuals in enumerate((vectors, vectors - 0.25)):
        rows = [np.flatnonzero((residuals == code).all(axis=1)) for code in moved[level, 1:]]
        assert [len(row) for row in rows] == [1, 1]
        assert rows[0] != rows[1]
    assert set(layer(vectors).codes.numpy()[:, 0]) == {0, 1, 2}


def test_restarts_of_more_codes_than_vectors_take_all_vectors() -> None:
    layer = make_layer(np.array([[[0.0]] + [[50.0]] * 4], np.float32), restart_after=1)
    layer(tf.constant([[1.0], [2.0]]), training=True)
    values = layer.codebooks.numpy().ravel().tolist()
    assert values[0] == 0
    assert set(values[1:]) == {1.0, 2.0}


def test_without_restarts_codes_stay() -> None:
    layer = make_layer(np.array([[[0.0], [50.0]]], np.float32), restart_after=0)
    for _ in range(3):
        layer(tf.constant([[1.0]]), training=True)
    assert layer.codebooks.numpy().ravel().tolist() == [0.0, 50.0]


def test_restarts_draw_other_rows_at_other_steps() -> None:
    layer = make_layer(np.array([[[-1.0], [-1.0]]], np.float32), restart_after=1)
    drawn = []
    for _ in range(12):
        layer.codebooks.assign([[[-1.0], [1e4]]])
        layer(tf.range(100.0)[:, tf.newaxis], training=True)
        drawn.append(layer.codebooks.numpy()[0, 1, 0])
    assert len(set(drawn)) > 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": 0}, "`levels` must be a positive integer. Received: levels=0"),
        ({"codebook_size": True}, "`codebook_size` must be a positive integer. Received: codebook_size=True"),
        ({"restart_after": -1}, "`restart_after` must be an integer of at least 0. Received: restart_after=-1"),
        ({"seed": 1.5}, "`seed` must be an integer of at least 0. Received: seed=1.5"),
        ({"commitment_weight": -0.1}, "`commitment_weight` must be a number of at least 0. Received"),
        ({"commitment_weight": float("nan")}, "`commitment_weight` must be a number of at least 0. Received"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ResidualQuantizer(**arguments)


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(
        ValueError, match=re.escape("The inputs must be [N, D], D known. Received: input_shape=(2, 3, 4)")
    ):
        ResidualQuantizer()(tf.zeros([2, 3, 4]))


def test_training_on_several_replicas_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer(random_codebooks())
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: types.SimpleNamespace(num_replicas_in_sync=2))
    with pytest.raises(NotImplementedError, match="ResidualQuantizer trains on one replica"):
        layer.call(tf.constant(make_vectors()), training=True)
    assert layer.call(tf.constant(make_vectors())).codes.shape == [40, 3]
