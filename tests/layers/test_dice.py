from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta.layers import Dice
from tests import reference
from tests.layer_check import check_layer

DIM = 6


def _inputs(shape: tuple[int, ...]) -> np.ndarray:
    # Channels of different location and scale, one of them far below the epsilon of common normalisations.
    scale = np.array([1e-4, 0.1, 1.0, 1.0, 5.0, 30.0])
    return (np.arange(DIM) - 2.0 + scale * np.random.default_rng(0).standard_normal((*shape, DIM))).astype(np.float32)


def _layer(shape: tuple[int, ...], **arguments: Any) -> Dice:
    """A layer for inputs [*shape, D] with statistics and alphas that differ by channel."""
    layer = Dice(**arguments)
    layer(tf.zeros([*shape, DIM]))
    rng = np.random.default_rng(1)
    layer.alpha.assign(rng.normal(size=DIM))
    layer.normalization.moving_mean.assign(rng.normal(size=DIM))
    layer.normalization.moving_variance.assign(rng.random(DIM) + 0.1)
    return layer


def _statistics(layer: Dice) -> tuple[np.ndarray, np.ndarray]:
    return layer.normalization.moving_mean.numpy(), layer.normalization.moving_variance.numpy()


SHAPES: list[tuple[int, ...]] = [(11,), (4, 5), (2, 3, 4), (2, 3, 2, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_inference_equals_reference(shape: tuple[int, ...]) -> None:
    layer, x = _layer(shape), _inputs(shape)
    expected = reference.dice(x.reshape(-1, DIM), *_statistics(layer), layer.alpha.numpy(), 1e-8)
    np.testing.assert_allclose(layer(x).numpy().reshape(-1, DIM), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("epsilon", "momentum"), [(1e-8, 0.99), (1e-3, 0.5)])
def test_training_uses_and_averages_the_statistics_of_the_batch(
    shape: tuple[int, ...], epsilon: float, momentum: float
) -> None:
    layer, x = _layer(shape, epsilon=epsilon, momentum=momentum), _inputs(shape)
    mean, variance = _statistics(layer)
    expected, moving_mean, moving_variance = reference.dice_training(
        x.reshape(-1, DIM), layer.alpha.numpy(), epsilon, momentum, mean, variance
    )
    # The first channel's standard deviation is 1e-4 around -2, which float32 holds to 3 digits.
    actual = layer(x, training=True).numpy().reshape(-1, DIM)
    np.testing.assert_allclose(actual[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(actual[:, 0], expected[:, 0], atol=0.02)
    np.testing.assert_allclose(layer.normalization.moving_mean, moving_mean, rtol=1e-4, atol=1e-5)
    # From rank 4 on, Keras's fused kernel averages the unbiased variance, n / (n - 1) times this one.
    unbiased = 1.0 / (x.size // DIM - 1) if x.ndim >= 4 else 0.0
    np.testing.assert_allclose(layer.normalization.moving_variance, moving_variance, rtol=1e-3 + unbiased, atol=1e-5)
    assert not np.allclose(moving_mean, mean, atol=1e-3)


def test_dice_is_the_same_everywhere(tmp_path: Path) -> None:
    layer, x = _layer((1, 3), epsilon=1e-4, momentum=0.9), _inputs((4, 3))
    (outputs,) = check_layer(layer, {"inputs": x}, tmp_path)
    expected = reference.dice(x.reshape(-1, DIM), *_statistics(layer), layer.alpha.numpy(), 1e-4)
    np.testing.assert_allclose(outputs.reshape(-1, DIM), expected, rtol=1e-5, atol=1e-6)


def test_alpha_starts_at_zero_and_learns() -> None:
    layer = Dice()
    x = tf.constant(_inputs((5,)))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(x))
    np.testing.assert_array_equal(layer.alpha, np.zeros(DIM))
    # d f / d alpha = (1 - p) * s, where p = sigmoid(s / sqrt(1 + epsilon)) with the initial statistics.
    expected = np.sum((1.0 - 1.0 / (1.0 + np.exp(-x.numpy().astype(np.float64)))) * x.numpy(), axis=0)
    np.testing.assert_allclose(tape.gradient(total, layer.alpha), expected, rtol=1e-4)
    assert {weight.name.split("/")[-1] for weight in layer.trainable_weights} == {"alpha:0"}


def test_output_shape() -> None:
    assert Dice().compute_output_shape([None, 3, DIM]).as_list() == [None, 3, DIM]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, "`epsilon` must be a positive number. Received: epsilon=0.0"),
        ({"epsilon": -1e-3}, "`epsilon` must be a positive number. Received: epsilon=-0.001"),
        ({"epsilon": float("nan")}, "`epsilon` must be a positive number. Received: epsilon=nan"),
        ({"epsilon": float("inf")}, "`epsilon` must be a positive number. Received: epsilon=inf"),
        ({"epsilon": True}, "`epsilon` must be a positive number. Received: epsilon=True"),
        ({"momentum": False}, "`momentum` must be a number in [0, 1). Received: momentum=False"),
        ({"momentum": float("nan")}, "`momentum` must be a number in [0, 1). Received: momentum=nan"),
        ({"momentum": 1.0}, "`momentum` must be a number in [0, 1). Received: momentum=1.0"),
        ({"momentum": -0.1}, "`momentum` must be a number in [0, 1). Received: momentum=-0.1"),
    ],
)
def test_dice_refuses_a_bad_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Dice(**arguments)


def test_layers_that_users_derive_are_converted_by_autograph() -> None:
    class Doubled(Dice):
        def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
            outputs = super().call(inputs, training)
            if tf.reduce_sum(inputs) > 0:
                outputs = 2.0 * outputs
            return outputs

    layer = Doubled()
    call = tf.function(layer)
    np.testing.assert_allclose(call(tf.ones([1, 2])), [[2 * 0.7310586] * 2], rtol=1e-5)
    np.testing.assert_allclose(call(-tf.ones([1, 2])), [[-0.2689414] * 2], rtol=1e-5)
