"""The Dice activation of DIN."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_eta.validation import is_number


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class Dice(tf.keras.layers.Layer):
    """Data-adaptive activation: f(s) = p(s) * s + (1 - p(s)) * alpha * s.

    p(s) = sigmoid((s - E[s]) / sqrt(Var[s] + epsilon)), with the mean and variance of each channel over the mini-batch
    in training and their moving averages at inference; alpha is learned for each channel.

    Args:
        epsilon: added to the variance.
        momentum: of the moving averages.

    Call arguments:
        inputs: float32 [..., D].

    Returns:
        float32 [..., D].

    Raises:
        ValueError: if `epsilon` is not positive or `momentum` lies outside [0, 1).

    Example:
        >>> keras_eta.layers.Dice()(tf.random.normal([8, 16])).shape
        TensorShape([8, 16])

    Reference:
        DIN, arXiv 1706.06978, Section 5.3, Eq. (3).
    """

    def __init__(self, epsilon: float = 1e-8, momentum: float = 0.99, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not (is_number(epsilon) and epsilon > 0):
            raise ValueError(f"`epsilon` must be a positive number. Received: epsilon={epsilon!r}")
        if not (is_number(momentum) and 0 <= momentum < 1):
            raise ValueError(f"`momentum` must be a number in [0, 1). Received: momentum={momentum!r}")
        self.epsilon = epsilon
        self.momentum = momentum
        self.normalization = tf.keras.layers.BatchNormalization(
            center=False,
            scale=False,
            epsilon=epsilon,
            momentum=momentum,
            # Under a strategy the mini-batch is that of all replicas.
            synchronized=tf.distribute.get_strategy().num_replicas_in_sync > 1,
            name="normalization",
        )

    def build(self, input_shape: tf.TensorShape) -> None:
        self.alpha = self.add_weight(name="alpha", shape=[tf.TensorShape(input_shape)[-1]], initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        gate = tf.sigmoid(self.normalization(inputs, training=training))
        return gate * inputs + (1.0 - gate) * self.alpha * inputs

    def compute_output_shape(self, input_shape: tf.TensorShape) -> tf.TensorShape:
        return tf.TensorShape(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon, "momentum": self.momentum}
