"""The checks that every layer must pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import keras_eta  # noqa: F401  (sets legacy Keras before TensorFlow's Keras loads)


def check_layer(
    layer: tf.keras.layers.Layer,
    inputs: Mapping[str, Any],
    directory: Path,
    *,
    xla: bool = True,
    copy_state: Callable[[tf.keras.layers.Layer, tf.keras.layers.Layer], None] | None = None,
    tolerance: float = 1e-6,
) -> list[np.ndarray]:
    """Checks that a layer is the same function wherever it runs and after every way of saving it.

    The layer called in eager mode must equal: a layer made from its configuration with its state copied; a
    `tf.function`; XLA; a functional model around it, saved, reloaded by Keras and by `tf.saved_model`; weights saved,
    spoilt and loaded. The first row alone must give the first row of the outputs. Integers must be equal, floats within
    `tolerance`.

    Args:
        layer: not called yet.
        inputs: arrays by the name of the call's argument, each with the rows first; one named `inputs` may be a dict of
            arrays.
        directory: to save in.
        xla: whether the layer's ops have XLA kernels.
        copy_state: copies the state of one layer into another, not called yet. `None`: by `set_weights`.
        tolerance: of floats, absolute and relative.

    Returns:
        The outputs in eager mode, flattened.
    """
    tensors = tf.nest.map_structure(tf.constant, dict(inputs))
    first_row = tf.nest.map_structure(lambda tensor: tensor[:1], tensors)

    def run(function: Callable[..., Any], arguments: Mapping[str, Any] = tensors) -> list[np.ndarray]:
        return [np.asarray(value) for value in tf.nest.flatten(function(**arguments))]

    def check(actual: list[np.ndarray], where: str, wanted: list[np.ndarray]) -> None:
        assert len(actual) == len(wanted), where
        for one, other in zip(actual, wanted, strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape), where
            if one.dtype.kind == "f":
                np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance, err_msg=where)
            else:
                np.testing.assert_array_equal(one, other, err_msg=where)

    expected = run(layer)
    assert any(np.any(value) for value in expected), "outputs of zeros and False alone would check nothing"
    first = [value[:1] for value in expected]
    check(run(layer, first_row), "the first row alone", first)

    # The configuration holds JSON values, finds the class by its registered name and makes the same layer.
    config = json.loads(json.dumps(tf.keras.utils.serialize_keras_object(layer)))
    assert config["registered_name"] == f"keras_eta>{type(layer).__name__}"
    twin = tf.keras.utils.deserialize_keras_object(config)
    assert type(twin) is type(layer)
    assert json.loads(json.dumps(twin.get_config())) == json.loads(json.dumps(layer.get_config()))
    if copy_state is None:
        run(twin)
        twin.set_weights(layer.get_weights())
    else:
        copy_state(layer, twin)
    check(run(twin), "made from the configuration", expected)

    compiled = tf.function(lambda **arguments: layer(**arguments), reduce_retracing=True)
    check(run(compiled), "tf.function", expected)
    check(run(compiled, first_row), "tf.function, the first row alone", first)
    if xla:
        compiled_by_xla = tf.function(lambda **arguments: layer(**arguments), jit_compile=True)
        check(run(compiled_by_xla), "XLA", expected)
        check(run(compiled_by_xla, first_row), "XLA, the first row alone", first)

    symbols = {
        name: tf.nest.map_structure(lambda value: tf.keras.Input(value.shape[1:], dtype=value.dtype), tensor)
        for name, tensor in tensors.items()
    }
    model = tf.keras.Model(symbols, tf.nest.flatten(layer(**symbols)))

    def run_model(function: Callable[..., Any], arguments: Mapping[str, Any] = tensors) -> list[np.ndarray]:
        return [np.asarray(value) for value in tf.nest.flatten(function(dict(arguments)))]

    check(run_model(model), "functional model", expected)
    saved = str(directory / "model")
    model.save(saved, save_format="tf")
    reloaded = tf.keras.models.load_model(saved)
    assert any(type(part) is type(layer) for part in reloaded.layers)
    check(run_model(reloaded), "model reloaded by Keras", expected)
    check(run_model(reloaded, first_row), "model reloaded by Keras, the first row alone", first)
    signature = tf.saved_model.load(saved)
    check(run_model(signature), "SavedModel", expected)
    check(run_model(signature, first_row), "SavedModel, the first row alone", first)

    variables = [weight for weight in layer.weights if isinstance(weight, tf.Variable)]
    if variables:
        weights = str(directory / "weights" / "checkpoint")
        model.save_weights(weights)
        values = [variable.numpy() for variable in variables]
        for variable in variables:
            variable.assign(tf.zeros_like(variable))
        model.load_weights(weights).assert_consumed()
        for variable, value in zip(variables, values, strict=True):
            np.testing.assert_array_equal(variable.numpy(), value, strict=True, err_msg=variable.name)
        check(run(layer), "weights loaded", expected)
    return expected
