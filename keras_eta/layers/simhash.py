"""SimHash as a Keras layer."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_eta import ops
from keras_eta.validation import check_integers_from_zero, check_planes_period, check_positive_integers


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class SimHash(tf.keras.layers.Layer):
    """Hashes vectors to M-bit fingerprints by the side of M random hyperplanes on which they lie.

    Bit j is 1 where e . H[:, j] > 0, strictly; H is drawn once from a standard normal and saved with the model. The
    share of bits in which two fingerprints differ estimates the angle between their vectors.

    `codes` gives the same bits as +1 and -1 with a straight-through gradient, by which a loss can reach the vectors
    and, with `trainable_planes`, the planes.

    Args:
        num_bits: M, the bits of a fingerprint.
        seed: seed of the planes.
        trainable_planes: whether an optimiser may move the planes.
        planes_period: 1: the hash follows the optimiser at once. More: the optimiser moves a copy, `learned_planes`,
            and the hash stays as it is until `move_planes`.

    Call arguments:
        inputs: float32 [..., D].

    Returns:
        int64 [..., W], W = ceil(M / 64): bit j in word j // 64 at position j % 64.

    Raises:
        ValueError: if `num_bits` or `planes_period` is not a positive integer, `seed` is no integer, or planes that do
            not learn have a period.

    Example:
        >>> fingerprints = keras_eta.layers.SimHash(num_bits=64)(tf.random.normal([8, 32]))
        >>> fingerprints.shape
        TensorShape([8, 1])

    Reference:
        Charikar, "Similarity estimation techniques from rounding algorithms", 2002, Section 3;
        ETA, arXiv 2108.04468, Section 3.3.
    """

    def __init__(
        self,
        num_bits: int = 64,
        seed: int = 0,
        trainable_planes: bool = False,
        planes_period: int = 1,
        **kwargs: Any,
    ) -> None:
        # Keras would round the inputs to half precision under a mixed policy, which changes bits.
        super().__init__(**{"autocast": False, **kwargs})
        check_positive_integers(num_bits=num_bits)
        check_integers_from_zero(seed=seed)
        check_planes_period(planes_period, trainable_planes)
        self.num_bits = num_bits
        self.seed = seed
        self.trainable_planes = trainable_planes
        self.planes_period = planes_period

    def build(self, input_shape: tf.TensorShape) -> None:
        dim = tf.TensorShape(input_shape)[-1]
        if dim is None:
            raise ValueError(f"The last dimension of the inputs must be known. Received: input_shape={input_shape}")
        self.planes = self._add_planes("planes", dim, self.trainable_planes and self.planes_period == 1)
        if self.planes_period > 1:
            self.learned_planes = self._add_planes("learned_planes", dim, True)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return ops.simhash(tf.cast(inputs, tf.float32), self.planes)

    def codes(self, inputs: tf.Tensor) -> tf.Tensor:
        """The bits as +1 and -1, with the straight-through gradient (identity where |e . H| <= 1, else 0).

        Args:
            inputs: float32 [..., D]; the layer must be built.

        Returns:
            float32 [..., M].
        """
        planes = tf.convert_to_tensor(self.planes)
        if self.planes_period > 1:
            # The value of the planes in use, to the bit, and the gradient of those that learn.
            planes += self.learned_planes - tf.stop_gradient(self.learned_planes)
        return ops.straight_through_sign(ops.project(tf.cast(inputs, tf.float32), planes))

    def move_planes(self) -> None:
        """Hashes by the learned planes from now on."""
        if self.planes_period > 1:
            self.planes.assign(self.learned_planes)

    def _add_planes(self, name: str, dim: int, trainable: bool) -> tf.Variable:
        return self.add_weight(
            name=name,
            shape=[dim, self.num_bits],
            dtype=tf.float32,
            initializer=tf.keras.initializers.RandomNormal(stddev=1.0, seed=self.seed),
            trainable=trainable,
            experimental_autocast=False,
        )

    def compute_output_shape(self, input_shape: tf.TensorShape) -> tf.TensorShape:
        return tf.TensorShape(input_shape)[:-1].concatenate(ops.num_words(self.num_bits))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_bits": self.num_bits,
            "seed": self.seed,
            "trainable_planes": self.trainable_planes,
            "planes_period": self.planes_period,
        }
