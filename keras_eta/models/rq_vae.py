"""RQ-VAE: an autoencoder whose latent vectors are sums of codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_eta.layers.residual_quantizer import ResidualQuantizer
from keras_eta.metrics import CodePerplexity, CodeUsage
from keras_eta.models.mlp import activation_class, check_activation, make_mlp
from keras_eta.models.optimizers import EmbeddingsAndDense, check_rates
from keras_eta.models.trainable import LOSS, TrainableModel
from keras_eta.validation import check_hidden_units, check_positive_integers, check_vectors

# K-means starts from at most so many vectors per code.
_VECTORS_PER_CODE = 64
_BATCH = 4096


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class RQVAE(TrainableModel):
    """An autoencoder that learns codes of vectors.

    An MLP encodes a vector, a `ResidualQuantizer` writes the result as a sum of codes, and an MLP decodes the sum. The
    loss is |x - x^|^2 + the quantiser's two losses, sums over dimensions, means over rows. `fit` reports
    `reconstruction_loss` and `quantizer_loss`, and of each level d the share of its codes in use, `usage_<d>`, and
    their perplexity, `perplexity_<d>`.

    Args:
        dim: D, length of the vectors.
        hidden_units: widths of the encoder's hidden layers; the decoder has them in reverse.
        latent_dim: length of what is quantised.
        activation: of the hidden layers: a name, or a class of layers that Keras can restore.
        levels: codes per vector.
        codebook_size: K, codes per level.
        commitment_weight: weight of the commitment loss.
        restart_after: steps after which a code that no vector had moves to a residual of the batch. 0: never.
        seed: of the quantiser. The network's is that of `tf.keras.utils.set_random_seed`.
        **kwargs: as `tf.keras.Model`.

    Call arguments:
        inputs: float32 [N, D].

    Returns:
        int32 [N, levels] codes.

    Raises:
        TypeError: if `activation` has the wrong type.
        ValueError: if an argument is out of its range.

    Example:
        >>> model = keras_eta.RQVAE(dim=64)
        >>> model.compile()
        >>> model.fit(vectors, batch_size=1024, epochs=300)
        >>> codes = model.codes(vectors)

    Reference:
        TIGER, arXiv 2305.05065, Section 3.1.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden_units: Sequence[int] = (512, 256, 128),
        latent_dim: int = 32,
        activation: str | type[tf.keras.layers.Layer] = "relu",
        levels: int = 3,
        codebook_size: int = 256,
        commitment_weight: float = 0.25,
        restart_after: int = 20,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_positive_integers(dim=dim, latent_dim=latent_dim)
        check_hidden_units(hidden_units)
        check_activation(activation)
        quantizer = ResidualQuantizer(levels, codebook_size, commitment_weight, restart_after, seed)
        super().__init__(part_names=("reconstruction_loss", "quantizer_loss"), **kwargs)
        self.dim = dim
        self.hidden_units = tuple(hidden_units)
        self.latent_dim = latent_dim
        self.activation = activation
        self.encoder = make_mlp(self.hidden_units, activation, latent_dim, "encoder")
        self.quantizer = quantizer
        self.decoder = make_mlp(self.hidden_units[::-1], activation, dim, "decoder")
        self._code_metrics = _CodeMetrics(levels, codebook_size)

    def build(self, input_shape: Any = None) -> None:
        """Creates all variables. Keras calls it at the first batch; call it earlier to restore weights."""
        self.quantizer(self.encoder(tf.zeros([1, self.dim])))
        self.decoder(tf.zeros([1, self.latent_dim]))
        # Keras sets it at the first call, to the shape of that one.
        self._set_save_spec(tf.TensorSpec([None, self.dim], tf.float32))
        self.built = True

    def initialize(self, vectors: Any) -> None:
        """Moves the codes to the centroids of residual k-means on the encoded vectors. `fit` does so the first time.

        Args:
            vectors: finite floats [n, D], at least one.

        Raises:
            ValueError: if the shape is wrong or a vector is not finite.

        Warns:
            UserWarning: if there are fewer different vectors, or residuals, than codes.
        """
        vectors = self._checked(vectors)
        if not self.built:
            self.build()
        self.quantizer.initialize(self.encoder(vectors).numpy())

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> tf.keras.callbacks.History:
        """Trains the model, as `tf.keras.Model.fit` does. The first call starts with `initialize`.

        Args:
            x: vectors, floats [items, D], which Keras shuffles and batches (`batch_size=1024`); or a `tf.data.Dataset`
                of batches of them, as `tf.data.Dataset.from_tensor_slices(vectors).shuffle(len(vectors)).batch(1024)`.
            *args: as `tf.keras.Model.fit`.
            **kwargs: likewise.

        Raises:
            ValueError: if an array of vectors has the wrong shape or one is not finite, or there are labels.
        """
        if not isinstance(x, tf.data.Dataset):
            x = self._checked(x)
        if not self.quantizer.built or not self.quantizer.initialized:
            self.initialize(_some(x, _VECTORS_PER_CODE * self.quantizer.codebook_size))
        return super().fit(x, *args, **kwargs)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        return self.quantizer(self.encoder(inputs, training=training)).codes

    def codes(self, vectors: Any) -> np.ndarray:
        """Codes of vectors, checked.

        Args:
            vectors: finite floats [items, D].

        Returns:
            int32 [items, levels].

        Raises:
            ValueError: if the shape is wrong or a vector is not finite.
        """
        vectors = self._checked(vectors)
        starts = range(0, max(len(vectors), 1), _BATCH)
        return np.concatenate([self(vectors[start : start + _BATCH]).numpy() for start in starts])

    def compute_losses(self, inputs: Any, training: bool = False) -> dict[str, tf.Tensor]:
        vectors = _vectors(inputs)
        quantized = self.quantizer(self.encoder(vectors, training=training), training=training)
        decoded = self.decoder(quantized.vectors, training=training)
        self._code_metrics.update(quantized.codes)
        reconstruction_loss = tf.reduce_mean(tf.reduce_sum(tf.square(tf.cast(vectors, tf.float32) - decoded), axis=-1))
        quantizer_loss = tf.reduce_mean(quantized.codebook_loss + quantized.commitment_loss)
        return {
            LOSS: reconstruction_loss + quantizer_loss,
            "reconstruction_loss": reconstruction_loss,
            "quantizer_loss": quantizer_loss,
        }

    def num_rows(self, inputs: Any) -> tf.Tensor:
        return tf.shape(_vectors(inputs))[0]

    def default_optimizer(self, embedding_learning_rate: Any = 1e-3, dense_learning_rate: Any = 1e-3) -> Any:
        """Adam for both, as Adagrad's codes fall behind the encoder, whose vectors move at every step.

        Args:
            embedding_learning_rate: of the codebooks; a number or a Keras schedule.
            dense_learning_rate: of the encoder and the decoder; likewise.

        Returns:
            A `keras_eta.models.optimizers.EmbeddingsAndDense`.

        Raises:
            ValueError: if a rate is neither a schedule nor a finite number of at least 0.
        """
        check_rates(embedding_learning_rate=embedding_learning_rate, dense_learning_rate=dense_learning_rate)
        return EmbeddingsAndDense(
            (tf.keras.optimizers.Adam(embedding_learning_rate), self.embedding_variables),
            (tf.keras.optimizers.Adam(dense_learning_rate), self.dense_variables),
        )

    def embedding_variables(self) -> list[tf.Variable]:
        """The codebooks."""
        return [self.quantizer.codebooks]

    def _checked(self, vectors: Any) -> np.ndarray:
        vectors = check_vectors("vectors", vectors)
        if vectors.shape[1] != self.dim:
            raise ValueError(f"`vectors` must have dim={self.dim} columns. Received: shape {list(vectors.shape)}")
        return vectors

    def get_config(self) -> dict[str, Any]:
        quantizer = self.quantizer.get_config()
        activation = self.activation
        return {
            "name": self.name,
            "dim": self.dim,
            "hidden_units": self.hidden_units,
            "latent_dim": self.latent_dim,
            "activation": activation if isinstance(activation, str) else tf.keras.utils.get_registered_name(activation),
            **{
                name: quantizer[name]
                for name in ("levels", "codebook_size", "commitment_weight", "restart_after", "seed")
            },
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> RQVAE:
        activation = config["activation"]
        return cls(**{**config, "activation": activation_class(activation) or activation})


class _CodeMetrics(tf.keras.layers.Layer):
    """Usage and perplexity of each level.

    A layer, since Keras takes the variables of a model's own metrics for weights.
    """

    def __init__(self, levels: int, codebook_size: int) -> None:
        super().__init__(name="code_metrics")
        self._by_level = [
            [CodeUsage(codebook_size, f"usage_{level}"), CodePerplexity(codebook_size, f"perplexity_{level}")]
            for level in range(1, levels + 1)
        ]

    def update(self, codes: tf.Tensor) -> None:
        for level, metrics in enumerate(self._by_level):
            for metric in metrics:
                metric.update_state(codes[:, level])


def _vectors(inputs: Any) -> tf.Tensor:
    """The vectors of a batch."""
    vectors, labels, weights = tf.keras.utils.unpack_x_y_sample_weight(inputs)
    if labels is not None or weights is not None:
        raise ValueError("RQVAE trains on vectors alone. Received: batches with labels or weights")
    return vectors


def _some(x: Any, enough: int) -> np.ndarray:
    """At least `enough` vectors, if there are as many: rows of an array, evenly spread, or the first batches."""
    if not isinstance(x, tf.data.Dataset):
        return x[:: max(len(x) // enough, 1)]
    batches: list[np.ndarray] = []
    for batch in x:
        batches.append(_vectors(batch).numpy())
        if sum(map(len, batches)) >= enough:
            break
    if not batches:
        raise ValueError("The data set has no batches.")
    return np.concatenate(batches)
