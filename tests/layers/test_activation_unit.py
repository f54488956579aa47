from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta.layers import ActivationUnit
from tests import reference
from tests.layer_check import check_layer

DIM = 4


def _inputs(
    query_shape: tuple[int, ...], behaviours_shape: tuple[int, ...], width: int = DIM, length: int = 5
) -> dict[str, np.ndarray]:
    """Random inputs whose masks have gaps; the first row has one behaviour, the second none."""
    rng = np.random.default_rng(0)
    mask = rng.random((*behaviours_shape, length)) < 0.6
    flat = mask.reshape(-1, length)
    flat[0], flat[0, -1] = False, True
    flat[1:2] = False
    return {
        "query": rng.normal(size=(*query_shape, DIM)).astype(np.float32),
        "behaviours": rng.normal(size=(*behaviours_shape, length, width)).astype(np.float32),
        "mask": mask,
    }


def _tensors(inputs: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(value) for name, value in inputs.items()}


def _randomise(layer: ActivationUnit) -> None:
    rng = np.random.default_rng(7)
    for weight in layer.weights:
        positive = "variance" in weight.name
        weight.assign(rng.random(weight.shape) + 0.2 if positive else rng.normal(size=weight.shape))


def _expected(layer: ActivationUnit, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    hidden = [
        {
            "kernel": dense.kernel.numpy(),
            "bias": dense.bias.numpy(),
            "mean": dice.normalization.moving_mean.numpy(),
            "variance": dice.normalization.moving_variance.numpy(),
            "alpha": dice.alpha.numpy(),
            "epsilon": 1e-8,
        }
        for dense, dice in zip(layer.hidden_layers[::2], layer.hidden_layers[1::2], strict=True)
    ]
    query, behaviours, mask = (inputs[name] for name in ("query", "behaviours", "mask"))
    if behaviours.shape[-1] != query.shape[-1]:
        behaviours = behaviours @ layer.behaviour_projection.kernel.numpy()
    interests, weights = [], []
    for index in np.ndindex(query.shape[:-1]):
        own = index if behaviours.ndim == query.ndim + 1 else index[:-1]
        interest, weight = reference.activation_unit(
            query[index], behaviours[own], mask[own], hidden, layer.weight.kernel.numpy(), layer.weight.bias.numpy()
        )
        interests.append(interest)
        weights.append(weight)
    return np.array(interests).reshape(query.shape), np.array(weights).reshape(*query.shape[:-1], 1, -1)


@pytest.mark.parametrize("width", [DIM, 6])
@pytest.mark.parametrize(
    ("query_shape", "behaviours_shape"), [((4,), (4,)), ((1,), (1,)), ((3, 5), (3,)), ((3, 1), (3,)), ((3, 5), (3, 5))]
)
def test_activation_unit_equals_reference(
    query_shape: tuple[int, ...], behaviours_shape: tuple[int, ...], width: int
) -> None:
    layer = ActivationUnit((6, 3))
    inputs = _inputs(query_shape, behaviours_shape, width)
    layer(**_tensors(inputs))
    _randomise(layer)
    expected, expected_weights = _expected(layer, inputs)
    np.testing.assert_allclose(layer(**_tensors(inputs)), expected, rtol=1e-4, atol=1e-4)
    _, weights = layer.attend(tf.constant(inputs["query"]), tf.constant(inputs["behaviours"]), inputs["mask"])
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-4, atol=1e-4)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("width", [DIM, 6])
def test_activation_unit_is_the_same_everywhere(width: int, tmp_path: Path) -> None:
    layer = ActivationUnit((6, 3))
    inputs = _inputs((3, 5), (3,), width)
    (interest,) = check_layer(layer, inputs, tmp_path, tolerance=1e-5)
    np.testing.assert_allclose(interest, _expected(layer, inputs)[0], rtol=1e-4, atol=1e-5)


def test_without_a_mask_every_behaviour_is_real() -> None:
    layer = ActivationUnit()
    inputs = _inputs((4,), (4,))
    inputs["mask"] = np.ones_like(inputs["mask"])
    with_mask = layer(**_tensors(inputs))
    np.testing.assert_array_equal(layer(tf.constant(inputs["query"]), tf.constant(inputs["behaviours"])), with_mask)
    assert np.any(with_mask != 0)


def test_numpy_arrays_are_inputs_too() -> None:
    layer = ActivationUnit()
    inputs = _inputs((4,), (4,))
    np.testing.assert_array_equal(layer(**inputs), layer(**_tensors(inputs)))


def test_masked_behaviours_influence_neither_outputs_nor_gradients() -> None:
    layer = ActivationUnit()
    inputs = _inputs((4,), (4,))
    expected = layer(**_tensors(inputs))
    behaviours = tf.constant(np.where(inputs["mask"][..., np.newaxis], inputs["behaviours"], 1e3), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(behaviours)
        interest = layer(tf.constant(inputs["query"]), behaviours, tf.constant(inputs["mask"]))
    np.testing.assert_array_equal(interest, expected)
    np.testing.assert_array_equal(interest[1], np.zeros(DIM))
    gradient = tape.gradient(interest, behaviours).numpy()
    assert not gradient[~inputs["mask"]].any()
    assert gradient[inputs["mask"]].any(axis=-1).all()


@pytest.mark.parametrize("hidden_units", [(), (0,), (8, -1), (2.5,)])
def test_activation_unit_refuses_bad_hidden_units(hidden_units: Any) -> None:
    message = f"`hidden_units` must be positive integers. Received: hidden_units={hidden_units!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ActivationUnit(hidden_units)


def test_activation_unit_refuses_a_similarity() -> None:
    layer = ActivationUnit()
    inputs = _inputs((4,), (4,))
    layer(**_tensors(inputs))
    with pytest.raises(ValueError, match=r"^ActivationUnit takes no `similarity`\. Received: similarity="):
        layer.attend(tf.constant(inputs["query"]), tf.constant(inputs["behaviours"]), similarity=tf.zeros([4, 5]))
