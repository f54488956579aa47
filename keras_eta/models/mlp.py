"""MLPs of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


def make_mlp(
    hidden_units: Sequence[int], activation: str | type[tf.keras.layers.Layer], units: int = 1, name: str = "mlp"
) -> tf.keras.Sequential:
    """Dense layers with activations, and one of outputs in float32: one logit by default.

    Args:
        hidden_units: widths of the hidden layers.
        activation: of the hidden layers, as `check_activation` accepts it.
        units: how many outputs.
        name: of the whole.
    """
    mlp = tf.keras.Sequential(name=name)
    for width in hidden_units:
        mlp.add(tf.keras.layers.Dense(width))
        mlp.add(tf.keras.layers.Activation(activation) if isinstance(activation, str) else activation())
    mlp.add(tf.keras.layers.Dense(units, dtype=tf.float32))
    return mlp


def activation_class(name: str) -> type | None:
    """The registered class or the layer of Keras of that name; `None` for the name of a function."""
    found: type | None = tf.keras.utils.get_registered_object(name) or getattr(tf.keras.layers, name, None)
    return found if isinstance(found, type) else None


def check_activation(activation: Any) -> None:
    """Raises TypeError or ValueError unless `activation` is a name or a layer class that a file can restore."""
    is_layer = isinstance(activation, type) and issubclass(activation, tf.keras.layers.Layer)
    if not isinstance(activation, str) and not is_layer:
        raise TypeError(f"`activation` must be a name or a class of layers. Received: activation={activation!r}")
    if is_layer and activation_class(tf.keras.utils.get_registered_name(activation)) is not activation:
        raise ValueError(
            "`activation` must be a layer of Keras or registered by `tf.keras.utils.register_keras_serializable`, to "
            f"be restored with a saved model. Received: activation={activation!r}"
        )
