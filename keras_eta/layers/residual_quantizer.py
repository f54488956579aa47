"""Residual quantisation of vectors by learned codebooks."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from keras_eta import ops
from keras_eta.quantization import ResidualKMeans
from keras_eta.validation import check_integers_from_zero, check_positive_integers, is_number


class Quantized(NamedTuple):
    """What `ResidualQuantizer` makes of N vectors.

    Args:
        codes: int32 [N, levels].
        vectors: float32 [N, D], the sums of the codes' vectors. Their gradient goes to the inputs as it is.
        codebook_loss: float32 [N], by which the codes move to the residuals, a sum over levels and dimensions.
        commitment_loss: float32 [N], by which the inputs move to the codes, likewise; weighted already.
    """

    codes: tf.Tensor
    vectors: tf.Tensor
    codebook_loss: tf.Tensor
    commitment_loss: tf.Tensor


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class ResidualQuantizer(tf.keras.layers.Layer):
    """Writes a vector as a sum of codes: each level takes the code nearest to what the levels before leave.

    With r_1 = z and r_(d+1) = r_d - sg[e_d], where e_d is the code of level d nearest r_d and sg stops gradients, the
    losses are sum_d |sg[r_d] - e_d|^2 and `commitment_weight` * sum_d |r_d - sg[e_d]|^2. The straight-through estimator
    is that of the sum, z + sg[sum_d e_d - z]: put on each residual, it would leave r_2 without a gradient.

    Args:
        levels: codes per vector.
        codebook_size: K, codes per level.
        commitment_weight: weight of the commitment loss, beta in the paper.
        restart_after: training steps after which a code that no vector had moves to a residual of the batch. 0: never.
        seed: of the initial codes, of k-means and of restarts.

    Call arguments:
        inputs: float32 [N, D].
        training: whether steps are counted and unused codes restarted.

    Returns:
        A `Quantized`. The codes of a vector do not depend on what is quantised with it.

    Raises:
        NotImplementedError: when training on several replicas, which would restart codes differently.
        ValueError: if `levels` or `codebook_size` is not a positive integer, `restart_after` or `seed` no integer from
            0, `commitment_weight` no number from 0, or the inputs are not of two dimensions, the last one known.

    Example:
        >>> quantizer = keras_eta.layers.ResidualQuantizer(levels=2, codebook_size=16)
        >>> quantizer.initialize(vectors)
        >>> quantizer(vectors).codes

    Reference:
        TIGER, arXiv 2305.05065, Section 3.1; Lee et al., arXiv 2203.01941, Section 3.1 (RQ-VAE); restarts: Dhariwal et
        al., arXiv 2005.00341, Section 3.1.
    """

    def __init__(
        self,
        levels: int = 3,
        codebook_size: int = 256,
        commitment_weight: float = 0.25,
        restart_after: int = 20,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        # Keras would round the inputs to half precision under a mixed policy, which changes codes.
        super().__init__(**{"autocast": False, **kwargs})
        check_positive_integers(levels=levels, codebook_size=codebook_size)
        check_integers_from_zero(restart_after=restart_after, seed=seed)
        if not is_number(commitment_weight) or commitment_weight < 0:
            raise ValueError(
                f"`commitment_weight` must be a number of at least 0. Received: commitment_weight={commitment_weight!r}"
            )
        self.levels = levels
        self.codebook_size = codebook_size
        self.commitment_weight = commitment_weight
        self.restart_after = restart_after
        self.seed = seed

    def build(self, input_shape: tf.TensorShape) -> None:
        shape = tf.TensorShape(input_shape)
        if shape.rank != 2 or shape[-1] is None:
            raise ValueError(f"The inputs must be [N, D], D known. Received: input_shape={input_shape}")
        self.codebooks = self.add_weight(
            name="codebooks",
            shape=[self.levels, self.codebook_size, shape[-1]],
            dtype=tf.float32,
            initializer=tf.keras.initializers.RandomUniform(
                -1 / self.codebook_size, 1 / self.codebook_size, seed=self.seed
            ),
            experimental_autocast=False,
        )
        self.unused_steps = self._add_counter("unused_steps", [self.levels, self.codebook_size])
        self.step = self._add_counter("step", [])
        # Whether `initialize` was called, for who trains on from a file.
        self.initialized = self._add_counter("initialized", [])
        super().build(input_shape)

    def initialize(self, vectors: Any) -> None:
        """Moves the codes to the centroids of residual k-means (`keras_eta.quantization.ResidualKMeans`).

        Args:
            vectors: finite floats [n, D], at least one. Of fewer different ones than codes, the other codes stay.

        Raises:
            ValueError: if the shape is wrong or a vector is not finite.

        Warns:
            UserWarning: if there are fewer different vectors, or residuals, than codes.
        """
        quantizer = ResidualKMeans(self.levels, self.codebook_size, self.seed).fit(vectors)
        if not self.built:
            self.build(tf.TensorShape([None, quantizer.codebooks[0].shape[1]]))
        codebooks = self.codebooks.numpy()
        for level, centroids in enumerate(quantizer.codebooks):
            codebooks[level, : len(centroids)] = centroids
        self.codebooks.assign(codebooks)
        self.unused_steps.assign(tf.zeros_like(self.unused_steps))
        self.initialized.assign(1)

    def call(self, inputs: tf.Tensor, training: bool = False) -> Quantized:
        if training and tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise NotImplementedError("ResidualQuantizer trains on one replica: restarts of codes would differ.")
        inputs = tf.cast(inputs, tf.float32)
        # Read once: restarts below change the variable.
        codebooks = tf.convert_to_tensor(self.codebooks)
        codes, residuals, sums = [], [inputs], tf.zeros_like(inputs)
        codebook_loss = commitment_loss = tf.zeros_like(inputs[:, 0])
        for codebook in tf.unstack(codebooks):
            residual = residuals[-1]
            codes.append(_nearest(residual, codebook))
            code = tf.gather(codebook, codes[-1])
            fixed = tf.stop_gradient(code)
            codebook_loss += tf.reduce_sum(tf.square(tf.stop_gradient(residual) - code), axis=-1)
            commitment_loss += self.commitment_weight * tf.reduce_sum(tf.square(residual - fixed), axis=-1)
            sums += fixed
            residuals.append(residual - fixed)
        if training and self.restart_after:
            self._restart(codebooks, codes, residuals)
        straight_through = inputs + tf.stop_gradient(sums - inputs)
        return Quantized(tf.stack(codes, axis=1), straight_through, codebook_loss, commitment_loss)

    def _restart(self, codebooks: tf.Tensor, codes: list[tf.Tensor], residuals: list[tf.Tensor]) -> None:
        """Counts steps without a code, and moves it to a residual of the batch after `restart_after`."""
        rows = tf.shape(residuals[0])[0]
        order = tf.argsort(tf.random.stateless_uniform([rows], [tf.constant(self.seed, tf.int64), self.step]))
        # Different rows, as far as there are.
        places = tf.gather(order, tf.range(self.codebook_size) % rows)
        used = tf.stack([tf.math.unsorted_segment_sum(tf.ones_like(code), code, self.codebook_size) for code in codes])
        unused_steps = tf.where(used > 0, tf.zeros_like(self.unused_steps), self.unused_steps + 1)
        restarts = unused_steps >= self.restart_after
        moved = tf.stack([tf.gather(residual, places) for residual in residuals[:-1]])
        self.codebooks.assign(tf.where(restarts[..., tf.newaxis], moved, codebooks))
        self.unused_steps.assign(tf.where(restarts, tf.zeros_like(unused_steps), unused_steps))
        self.step.assign_add(1)

    def _add_counter(self, name: str, shape: list[int]) -> tf.Variable:
        return self.add_weight(
            name=name, shape=shape, dtype=tf.int64, initializer="zeros", trainable=False, experimental_autocast=False
        )

    def compute_output_shape(self, input_shape: tf.TensorShape) -> Quantized:
        shape = tf.TensorShape(input_shape)
        return Quantized(shape[:1].concatenate(self.levels), shape, shape[:1], shape[:1])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "levels": self.levels,
            "codebook_size": self.codebook_size,
            "commitment_weight": self.commitment_weight,
            "restart_after": self.restart_after,
            "seed": self.seed,
        }


def _nearest(vectors: tf.Tensor, codebook: tf.Tensor) -> tf.Tensor:
    """int32 [N], the code nearest to each vector, the first of those as near."""
    # |v - e|^2 without |v|^2. `project` adds in an order that does not depend on the batch.
    products = ops.project(vectors, tf.transpose(codebook))
    distances = tf.reduce_sum(tf.square(codebook), axis=-1) - 2.0 * products
    return tf.argmin(distances, axis=-1, output_type=tf.int32)
