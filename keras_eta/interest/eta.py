"""ETA: SimHash and Hamming top-k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_eta.features import Features
from keras_eta.interest.base import Columns, Interest, Retrieved, Tables, Tensors
from keras_eta.interest.fingerprints import fingerprinted_tables, make_fingerprinted_tables
from keras_eta.interest.top_k import TopKUnit
from keras_eta.layers.hamming_top_k import HammingTopK
from keras_eta.ops import history_buckets
from keras_eta.validation import check_integers_from_zero, check_planes_period, check_positive_integers, is_integer

# As counts within these distances of 64-bit fingerprints fell apart best; see docs/results.md.
_EDGES_OF_64_BITS = (0, 1, 3, 6, 9, 12, 16, 20, 26)


def default_distance_edges(num_bits: int) -> tuple[int, ...]:
    """Ranges of Hamming distances to count retrieved behaviours in, in proportion to the M bits of a fingerprint."""
    return tuple(sorted({round(edge * num_bits / 64) for edge in _EDGES_OF_64_BITS}))


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class ETAInterest(TopKUnit):
    """Attends to the K behaviours whose fingerprints are nearest to the candidate's by Hamming distance.

    The features in `features.hashed` have M bits each; the fingerprint of a behaviour is their concatenation, so
    distances add up.

    Retrieval itself passes no gradient. With `similarity_bias`, the similarity 1 - 2 * distance / bits of each
    retrieved behaviour is added to its attention logits, with a learned scale per head. In training it is computed from
    the +1/-1 codes of the embeddings, so that the loss reaches the hash by the straight-through path; with
    `trainable_planes` it moves the planes as well.

    With `distance_edges`, the interest vector ends in log(1 + n) for the numbers n of retrieved behaviours at distances
    up to each edge (and beyond the one before). Softmax averages, so it can't tell one behaviour at distance 0 from
    twenty; these numbers tell how often the user came back to the item, or to its like. `explain` gives the distances
    that are counted.

    Args:
        top_k: K, behaviours to retrieve.
        num_bits: M, bits per hashed feature.
        seed: seed of the planes.
        trainable_planes: whether the planes learn. Needs `similarity_bias`, the only path to them.
        similarity_bias: whether the similarity enters the attention's logits.
        planes_period: steps between two moves of learned planes. Each move hashes the whole table again, which takes
            seconds for millions of items; in between the optimiser moves a copy, and the table stays exact. A loop that
            does not call `Ranker.train_step` calls `after_step`.
        distance_edges: ascending distances, each the end of a range in which retrieved behaviours are counted, e.g.
            `(0, 1, 3, 6, 9, 12, 16, 20, 26)` of 64 bits. Empty: none are.
        **kwargs: as `AttentionUnit`.

    Raises:
        ValueError: if an argument is out of its range, or planes are to learn without a similarity bias.

    Reference:
        ETA, arXiv 2108.04468, Section 3.3.
    """

    score_name = "distances"
    nearest_first = True

    def __init__(
        self,
        top_k: int = 48,
        num_bits: int = 64,
        seed: int = 0,
        trainable_planes: bool = False,
        similarity_bias: bool = False,
        planes_period: int = 1,
        distance_edges: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(top_k, **kwargs)
        check_positive_integers(num_bits=num_bits)
        check_integers_from_zero(seed=seed)
        if trainable_planes and not similarity_bias:
            raise ValueError(
                "`trainable_planes` needs `similarity_bias=True`: no gradient reaches the planes otherwise. "
                f"Received: trainable_planes={trainable_planes}, similarity_bias={similarity_bias}"
            )
        check_planes_period(planes_period, trainable_planes)
        listed = isinstance(distance_edges, Sequence) and all(is_integer(edge, 0) for edge in distance_edges)
        if not listed or list(distance_edges) != sorted(set(distance_edges)):
            raise ValueError(
                "`distance_edges` must be integers of at least 0, strictly ascending. "
                f"Received: distance_edges={distance_edges!r}"
            )
        self.hamming_top_k = HammingTopK(top_k, name="hamming_top_k")
        self.num_bits = num_bits
        self.seed = seed
        self.trainable_planes = trainable_planes
        self.similarity_bias = similarity_bias
        self.planes_period = planes_period
        self.distance_edges = tuple(distance_edges)

    def make_tables(self, features: Features, regularizer: Any = None) -> dict[str, tf.keras.layers.Embedding]:
        return make_fingerprinted_tables(
            features,
            self.seed,
            num_bits=self.num_bits,
            trainable_planes=self.trainable_planes,
            planes_period=self.planes_period,
            embeddings_regularizer=regularizer,
        )

    def bind(self, features: Features, tables: Tables) -> None:
        super().bind(features, tables)
        self.tables = fingerprinted_tables(features, tables, self.name)
        for name, table in self.tables.items():
            for argument in ("num_bits", "trainable_planes", "planes_period"):
                if getattr(table.hash, argument) != getattr(self, argument):
                    raise ValueError(
                        f"Another interest unit made the fingerprints of {name!r} with {argument}="
                        f"{getattr(table.hash, argument)}. Give one of them `own_embeddings=True`. Received by "
                        f"{self.name!r}: {argument}={getattr(self, argument)}"
                    )

    def search(self, candidate: Columns, history: Columns, jit_compile: bool) -> Retrieved:
        fingerprints = self._fingerprints(candidate.ids)
        # A single candidate never has enough distances to count.
        jit_compile = jit_compile and fingerprints.shape[-2] != 1
        found = self.hamming_top_k(fingerprints, self._fingerprints(history.ids), history.mask, False, jit_compile)
        return Retrieved(found.positions, found.mask, found.distances)

    def similarity(
        self, candidate: Columns, behaviours: Columns, retrieved: Retrieved, training: bool
    ) -> tf.Tensor | None:
        if not self.similarity_bias:
            return None
        total_bits = float(self.num_bits * len(self.tables))
        if not training:
            return (total_bits - 2.0 * tf.cast(retrieved.scores, tf.float32)) / total_bits
        agreements = [
            tf.einsum("rcm,rckm->rck", table.codes(candidate.by_name[name]), table.codes(behaviours.by_name[name]))
            for name, table in self.tables.items()
        ]
        return tf.add_n(agreements) / total_bits

    def call(self, candidate: Columns, history: Columns, training: bool = False, jit_compile: bool = False) -> Interest:
        interest = super().call(candidate, history, training, jit_compile)
        if not self.distance_edges:
            return interest
        return interest._replace(vector=tf.concat([interest.vector, self._log_counts(interest.retrieved)], axis=-1))

    def _log_counts(self, retrieved: Any) -> tf.Tensor:
        """log(1 + n) of the retrieved behaviours in each range of distances, [R, C, number of edges]."""
        within = retrieved.scores[..., tf.newaxis] <= tf.constant(self.distance_edges, retrieved.scores.dtype)
        within = tf.cast(within & retrieved.mask[..., tf.newaxis], tf.float32)
        totals = tf.reduce_sum(within, axis=-2)
        counts = totals - tf.pad(totals[..., :-1], [[0, 0], [0, 0], [1, 0]])
        return tf.cast(tf.math.log1p(counts), self.compute_dtype)

    def refresh(self) -> None:
        """Hashes all rows of every table again; see `FingerprintedEmbedding.refresh`."""
        for table in self.tables.values():
            table.refresh()

    def after_step(self, step: tf.Tensor) -> None:
        def move_planes() -> None:
            for table in self.tables.values():
                table.move_planes()

        if self.planes_period > 1:
            tf.cond(tf.equal(step % self.planes_period, 0), move_planes, lambda: None)

    def compiled_lengths(self, longest: int) -> list[int]:
        return history_buckets(longest)

    def _fingerprints(self, ids: Tensors) -> tf.Tensor:
        return tf.concat([table.fingerprints(ids[name]) for name, table in self.tables.items()], axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_bits": self.num_bits,
            "seed": self.seed,
            "trainable_planes": self.trainable_planes,
            "similarity_bias": self.similarity_bias,
            "planes_period": self.planes_period,
            "distance_edges": self.distance_edges,
        }
