"""ETA's search unit: SimHash and Hamming top-k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_eta.features import Feature, scope_name
from keras_eta.layers.fingerprinted_embedding import FingerprintedEmbedding
from keras_eta.layers.hamming_top_k import HammingTopK
from keras_eta.search.search_unit import Ids, Retrieved, SearchUnit
from keras_eta.validation import check_integers_from_zero, check_planes_period, check_positive_integers


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class HammingSearch(SearchUnit):
    """Retrieves the K behaviours whose fingerprints are nearest to the candidate's by Hamming distance.

    Each hashed feature has M bits of its own; a behaviour's fingerprint is their concatenation, so distances add up.

    Retrieval itself passes no gradient. With `similarity_bias`, the similarity 1 - 2 * distance / bits of each
    retrieved behaviour is computed from the +1/-1 codes of its embedding in training, so that the loss reaches the
    hash by the straight-through path; with `trainable_planes` it moves the planes as well.

    Args:
        top_k: K, behaviours to retrieve.
        num_bits: M, bits of each hashed feature.
        seed: seed of the planes.
        trainable_planes: whether the planes learn. Needs `similarity_bias`, the only path to them.
        similarity_bias: whether the similarity enters the attention's logits.
        planes_period: steps between two moves of planes that learn. Each move hashes the whole table again, which takes
            seconds for millions of items; in between the optimiser moves a copy, and the table stays exact.

    Raises:
        ValueError: if an argument is out of its range, or planes are to learn without a similarity bias.

    Reference:
        ETA, arXiv 2108.04468, Section 3.3.
    """

    def __init__(
        self,
        top_k: int = 48,
        num_bits: int = 64,
        seed: int = 0,
        trainable_planes: bool = False,
        similarity_bias: bool = False,
        planes_period: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_positive_integers(top_k=top_k, num_bits=num_bits)
        check_integers_from_zero(seed=seed)
        if trainable_planes and not similarity_bias:
            raise ValueError(
                "`trainable_planes` needs `similarity_bias=True`: no gradient reaches the planes otherwise. "
                f"Received: trainable_planes={trainable_planes}, similarity_bias={similarity_bias}"
            )
        check_planes_period(planes_period, trainable_planes)
        self.hamming_top_k = HammingTopK(top_k, name="hamming_top_k")
        self.num_bits = num_bits
        self.seed = seed
        self.trainable_planes = trainable_planes
        self.similarity_bias = similarity_bias
        self.planes_period = planes_period

    @property
    def top_k(self) -> int:
        """K, behaviours to retrieve."""
        return self.hamming_top_k.top_k

    def make_embeddings(self, features: Sequence[Feature], regularizer: Any = None) -> None:
        self.embeddings = {
            feature.name: FingerprintedEmbedding(
                feature.num_indices,
                feature.embedding_dim,
                num_bits=self.num_bits,
                seed=self.seed + index,
                trainable_planes=self.trainable_planes,
                planes_period=self.planes_period,
                embeddings_regularizer=regularizer,
                name=scope_name(feature.name),
            )
            for index, feature in enumerate(features)
        }

    def call(self, candidate: Ids, history: Ids, mask: tf.Tensor, jit_compile: bool = False) -> Retrieved:
        fingerprints = self._fingerprints(candidate)
        # A single candidate never has enough distances to count.
        jit_compile = jit_compile and fingerprints.shape[-2] != 1
        found = self.hamming_top_k(fingerprints, self._fingerprints(history), mask, False, jit_compile)
        return Retrieved(found.positions, found.mask, found.distances)

    def similarity(
        self, candidate: Ids, retrieved: Ids, distances: tf.Tensor | None, training: bool
    ) -> tf.Tensor | None:
        if not self.similarity_bias:
            return None
        total_bits = float(self.num_bits * len(self.embeddings))
        if not training:
            return (total_bits - 2.0 * tf.cast(distances, tf.float32)) / total_bits
        agreements = [
            tf.einsum("rcm,rckm->rck", layer.codes(candidate[name]), layer.codes(retrieved[name]))
            for name, layer in self.embeddings.items()
        ]
        return tf.add_n(agreements) / total_bits

    def refresh(self) -> None:
        """Hashes all rows of every table again; see `FingerprintedEmbedding.refresh`."""
        for layer in self.embeddings.values():
            layer.refresh()

    def after_step(self, step: tf.Tensor) -> None:
        def move_planes() -> None:
            for layer in self.embeddings.values():
                layer.move_planes()

        if self.planes_period > 1:
            tf.cond(tf.equal(step % self.planes_period, 0), move_planes, lambda: None)

    def _fingerprints(self, ids: Ids) -> tf.Tensor:
        return tf.concat([layer.fingerprints(ids[name]) for name, layer in self.embeddings.items()], axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "top_k": self.top_k,
            "num_bits": self.num_bits,
            "seed": self.seed,
            "trainable_planes": self.trainable_planes,
            "similarity_bias": self.similarity_bias,
            "planes_period": self.planes_period,
        }
