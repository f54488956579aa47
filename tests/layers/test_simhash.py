from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import ops
from keras_eta.layers import SimHash
from tests import reference
from tests.layer_check import check_layer


@pytest.mark.parametrize(("num_bits", "dim"), [(64, 32), (7, 100), (200, 3)])
def test_simhash_is_the_same_everywhere(num_bits: int, dim: int, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((4, 5, dim)).astype(np.float32)
    layer = SimHash(num_bits, seed=3, trainable_planes=True)
    (fingerprints,) = check_layer(layer, {"inputs": x}, tmp_path)
    expected = reference.simhash(x.reshape(-1, dim), layer.planes.numpy())
    np.testing.assert_array_equal(fingerprints, expected.reshape(4, 5, -1), strict=True)


def test_planes_are_standard_normal_and_seeded() -> None:
    planes = []
    for seed in (1, 1, 2):
        layer = SimHash(512, seed=seed)
        layer.build([None, 100])
        planes.append(layer.planes.numpy())
    np.testing.assert_array_equal(planes[0], planes[1])
    assert not np.isclose(planes[0], planes[2]).any()
    # 51,200 draws: 5 standard errors.
    assert abs(planes[0].mean()) < 5 / np.sqrt(51_200)
    assert abs(planes[0].std() - 1.0) < 5 / np.sqrt(2 * 51_200)
    # A normal, not a truncated one: some draws lie beyond 3.5 (24 expected).
    assert 5 < (np.abs(planes[0]) > 3.5).sum() < 60


def test_planes_do_not_depend_on_the_global_seed() -> None:
    planes = []
    for seed in (1, 2):
        tf.keras.utils.set_random_seed(seed)
        layer = SimHash(8, seed=5)
        layer.build([None, 4])
        planes.append(layer.planes.numpy())
    np.testing.assert_array_equal(planes[0], planes[1])


@pytest.mark.parametrize("trainable_planes", [False, True])
def test_planes_are_saved_and_trainable_only_on_request(trainable_planes: bool) -> None:
    layer = SimHash(8, trainable_planes=trainable_planes)
    layer.build([None, 4])
    assert [weight.shape.as_list() for weight in layer.weights] == [[4, 8]]
    assert len(layer.trainable_weights) == trainable_planes


def test_repeated_calls_give_the_same_fingerprints() -> None:
    layer = SimHash(100)
    x = tf.random.stateless_normal([50, 16], seed=[0, 1])
    np.testing.assert_array_equal(layer(x, training=True), layer(x))


def test_codes_are_the_bits_as_signs() -> None:
    layer = SimHash(70)
    x = np.random.default_rng(0).standard_normal((2, 3, 6)).astype(np.float32)
    x[0, 0] = 0.0
    words = layer(x).numpy().reshape(6, 2)
    bits = np.array([reference.unpack_words(row, 70) for row in words])
    np.testing.assert_array_equal(layer.codes(x), np.where(bits, 1, -1).astype(np.float32).reshape(2, 3, 70))


def test_codes_pass_the_straight_through_gradient_to_inputs_and_planes() -> None:
    rng = np.random.default_rng(0)
    # Small vectors, so that about half of the projections lie within the clip.
    x, upstream = (0.5 * rng.standard_normal((9, 5))).astype(np.float32), rng.standard_normal((9, 33))
    layer = SimHash(33, trainable_planes=True)
    layer.build([None, 5])
    tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        total = tf.reduce_sum(layer.codes(tensor) * upstream.astype(np.float32))
    for_x, for_planes = tape.gradient(total, [tensor, layer.planes])
    clipped = np.abs(reference.projections(x, layer.planes.numpy())) > 1.0
    assert 0.2 < clipped.mean() < 0.8
    expected_x, expected_planes = reference.straight_through_gradient(x, layer.planes.numpy(), upstream)
    np.testing.assert_allclose(for_x, expected_x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(for_planes, expected_planes, rtol=1e-4, atol=1e-5)
    assert np.abs(expected_x).max() > 1.0
    assert np.abs(expected_planes).max() > 1.0


def _codes(x: tf.Tensor, planes: np.ndarray) -> np.ndarray:
    return np.where(reference.projections(x.numpy(), planes) > 0, 1.0, -1.0)


def test_planes_with_a_period_learn_aside_until_they_are_moved() -> None:
    rng = np.random.default_rng(1)
    x, upstream = tf.constant(0.5 * rng.standard_normal((9, 5)), tf.float32), rng.standard_normal((9, 33))
    layer = SimHash(33, seed=4, trainable_planes=True, planes_period=8)
    layer.build([None, 5])
    first = layer.planes.numpy()
    np.testing.assert_array_equal(layer.learned_planes, first)
    assert [weight.ref() for weight in layer.trainable_weights] == [layer.learned_planes.ref()]
    learned = rng.standard_normal((5, 33)).astype(np.float32)
    layer.learned_planes.assign(learned)
    with tf.GradientTape() as tape:
        codes = layer.codes(x)
        total = tf.reduce_sum(codes * upstream.astype(np.float32))
    # By the planes in use, for the planes that learn.
    np.testing.assert_array_equal(codes, _codes(x, first))
    _, expected = reference.straight_through_gradient(x.numpy(), first, upstream)
    np.testing.assert_allclose(tape.gradient(total, layer.learned_planes), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(layer.planes, first)
    layer.move_planes()
    np.testing.assert_array_equal(layer.planes, learned)
    np.testing.assert_array_equal(layer.codes(x), _codes(x, learned))


def test_planes_without_a_period_have_nothing_to_move() -> None:
    layer = SimHash(33, trainable_planes=True)
    layer.build([None, 5])
    first = layer.planes.numpy()
    layer.move_planes()
    np.testing.assert_array_equal(layer.planes, first)
    assert len(layer.weights) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"planes_period": 0}, "`planes_period` must be a positive integer. Received: planes_period=0"),
        (
            {"planes_period": 2},
            "`planes_period` above 1 needs `trainable_planes=True`. Received: planes_period=2, trainable_planes=False",
        ),
    ],
)
def test_simhash_refuses_a_bad_period(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SimHash(**arguments)


def test_fingerprints_carry_no_gradient() -> None:
    layer = SimHash(8, trainable_planes=True)
    x = tf.ones([1, 4])
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(tf.cast(layer(x), tf.float32))
    assert tape.gradient(total, [x, layer.planes]) == [None, None]


def test_half_precision_policy_does_not_change_bits() -> None:
    x = np.random.default_rng(0).standard_normal((2_000, 8)).astype(np.float32)
    plain, mixed = SimHash(64, seed=1), SimHash(64, seed=1, dtype="mixed_bfloat16")
    np.testing.assert_array_equal(mixed(tf.constant(x)), plain(tf.constant(x)))
    assert mixed.planes.dtype == tf.float32


@pytest.mark.parametrize("num_bits", [0, -3, 1.5, True, None, "64"])
def test_simhash_refuses_a_bad_num_bits(num_bits: Any) -> None:
    message = f"`num_bits` must be a positive integer. Received: num_bits={num_bits!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SimHash(num_bits)


@pytest.mark.parametrize("seed", [-1, 1.5, float("nan"), True, None])
def test_simhash_refuses_a_bad_seed(seed: Any) -> None:
    with pytest.raises(ValueError, match=f"^`seed` must be an integer of at least 0. Received: seed={seed!r}$"):
        SimHash(8, seed)


def test_simhash_refuses_inputs_of_unknown_width() -> None:
    message = "The last dimension of the inputs must be known. Received: input_shape=(3, None)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SimHash(8).build(tf.TensorShape([3, None]))


def test_output_shape() -> None:
    assert SimHash(65).compute_output_shape([None, 7, 32]).as_list() == [None, 7, 2]
    assert ops.num_words(65) == 2
