"""DIN's local activation unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_eta.layers.dice import Dice
from keras_eta.layers.target_attention import behaviours_are_shared
from keras_eta.validation import check_hidden_units


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class ActivationUnit(tf.keras.layers.Layer):
    """Attends to behaviours with weights from a small network, not normalised: DIN's attention.

    The weight of a behaviour b for a candidate q is MLP([q, b, q - b, q * b]); the interest vector is the weighted sum
    of the behaviours. As in the paper there is no softmax, so that the intensity of an interest is kept. Behaviours
    wider or narrower than the candidate are first projected to its width.

    It can stand in for `TargetAttention` in any ranker of `keras_eta.models`.

    Args:
        hidden_units: widths of the network's hidden layers, each followed by `Dice`.

    Call arguments:
        query: float32 [..., D] with own behaviours, or [..., C, D] with shared ones.
        behaviours: float32 [..., K, D'], of one rank more than `query` (own) or of the same (shared).
        mask: bool [..., K] with the leading dimensions of `behaviours`; false where there is no behaviour. `None`: all
            real.

    Returns:
        float32 [..., D], a vector for each query, zero where the mask leaves no behaviour.

    Raises:
        ValueError: if `hidden_units` is empty or holds no positive integers.

    Example:
        >>> keras_eta.layers.ActivationUnit()(tf.random.normal([8, 32]), tf.random.normal([8, 48, 32])).shape
        TensorShape([8, 32])

    Reference:
        DIN, arXiv 1706.06978, Section 4.3, Eq. (3) and Figure 2.
    """

    similarity_bias = False

    def __init__(self, hidden_units: Sequence[int] = (36,), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_hidden_units(hidden_units)
        self.hidden_units = tuple(hidden_units)
        self.hidden_layers = [layer for units in self.hidden_units for layer in (tf.keras.layers.Dense(units), Dice())]
        self.weight = tf.keras.layers.Dense(1, name="weight")

    def build(self, input_shape: Any) -> None:
        self.behaviour_projection = tf.keras.layers.Dense(
            tf.TensorShape(input_shape)[-1], use_bias=False, name="behaviour"
        )
        super().build(input_shape)

    def call(self, query: tf.Tensor, behaviours: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        return self.attend(query, behaviours, mask)[0]

    def attend(
        self,
        query: tf.Tensor,
        behaviours: tf.Tensor,
        mask: tf.Tensor | None = None,
        similarity: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """What the call computes, always with the weights.

        Args:
            query: as in the call.
            behaviours: as in the call.
            mask: as in the call.
            similarity: must be `None`: the unit has no similarity bias.

        Returns:
            float32 [..., D] interest vectors and float32 [..., 1, K] weights, as of one head.
        """
        if similarity is not None:
            raise ValueError(f"ActivationUnit takes no `similarity`. Received: similarity={similarity}")
        query, behaviours = tf.convert_to_tensor(query), tf.convert_to_tensor(behaviours)
        shared = behaviours_are_shared(query, behaviours)
        if behaviours.shape[-1] != self.behaviour_projection.units:
            behaviours = self.behaviour_projection(behaviours)
        if shared:
            # [..., C, D] and [..., K, D] -> [..., C, K, D]
            behaviours = behaviours[..., tf.newaxis, :, :]
            mask = None if mask is None else mask[..., tf.newaxis, :]
        query = query[..., tf.newaxis, :]
        query, behaviours = query + tf.zeros_like(behaviours), behaviours + tf.zeros_like(query)
        hidden = tf.concat([query, behaviours, query - behaviours, query * behaviours], axis=-1)
        for layer in self.hidden_layers:
            hidden = layer(hidden)
        weights = self.weight(hidden)[..., 0]
        if mask is not None:
            weights = tf.where(mask, weights, tf.zeros_like(weights))
        weights = weights[..., tf.newaxis, :]
        return tf.linalg.matmul(weights, behaviours)[..., 0, :], weights

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "hidden_units": self.hidden_units}
