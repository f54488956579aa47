"""SDIM: attention by hash collisions."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_eta.features import Features
from keras_eta.interest.base import Columns, Interest, InterestUnit, Tables, Tensors
from keras_eta.interest.fingerprints import fingerprinted_tables, make_fingerprinted_tables
from keras_eta.ops import WORD_BITS
from keras_eta.validation import check_integers_from_zero, check_positive_integers


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class SDIM(InterestUnit):
    """The mean over G signatures of the L2-normalised sum of the behaviours that share the candidate's signature.

    A signature is `group_size` bits of the fingerprint, cut from the table's words by shift and mask: nothing is hashed
    in training or serving. The more alike two items are, the more signatures they share, so the mean approximates
    attention without a softmax. Behaviours enter as they are embedded.

    Its user state is `buckets`, float32 [R, G, 2**group_size, D]: the normalised sums for every value of every
    signature, from which a candidate takes G.

    Args:
        num_hashes: bits in use, of each hashed feature.
        group_size: tau, bits of a signature.
        seed: seed of the planes, where the unit makes the fingerprints.
        **kwargs: as `InterestUnit`.

    Raises:
        ValueError: if an argument is out of its range, `num_hashes` is no multiple of `group_size`, or the fingerprints
            that another unit made are too short.

    Reference:
        SDIM, arXiv 2205.10249, Section 4.2, Eqs. (9) to (12); m = 48, tau = 3.
    """

    state_names = ("buckets",)

    def __init__(self, num_hashes: int = 48, group_size: int = 3, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive_integers(num_hashes=num_hashes, group_size=group_size)
        check_integers_from_zero(seed=seed)
        if num_hashes % group_size or group_size > 8:
            raise ValueError(
                "`num_hashes` must be a multiple of `group_size`, which is at most 8. "
                f"Received: num_hashes={num_hashes}, group_size={group_size}"
            )
        self.num_hashes = num_hashes
        self.group_size = group_size
        self.seed = seed
        groups, per_word = range(num_hashes // group_size), WORD_BITS // group_size
        # No signature lies across two words.
        self._words = [group // per_word for group in groups]
        self._shifts = [group % per_word * group_size for group in groups]

    @property
    def num_bits(self) -> int:
        """Bits that a fingerprint must have."""
        return self._words[-1] * WORD_BITS + self._shifts[-1] + self.group_size

    def make_tables(self, features: Features, regularizer: Any = None) -> dict[str, tf.keras.layers.Embedding]:
        return make_fingerprinted_tables(
            features, self.seed, num_bits=self.num_bits, embeddings_regularizer=regularizer
        )

    def bind(self, features: Features, tables: Tables) -> None:
        super().bind(features, tables)
        self.tables = fingerprinted_tables(features, tables, self.name)
        for name, table in self.tables.items():
            if table.hash.num_bits < self.num_bits:
                raise ValueError(
                    f"The fingerprints of {name!r} have {table.hash.num_bits} bits, of which interest unit "
                    f"{self.name!r} needs {self.num_bits}. Give it `own_embeddings=True`, or the unit that makes them "
                    f"more bits. Received: num_hashes={self.num_hashes}, group_size={self.group_size}"
                )

    def call(self, candidate: Columns, history: Columns, training: bool = False, jit_compile: bool = False) -> Interest:
        signatures = self._signatures(candidate.ids)
        if signatures.shape[1] != 1:
            return self.from_state(candidate, self.user_state(history))
        # One candidate fills one bucket per signature, not all of them.
        same = tf.equal(signatures[:, 0, :, tf.newaxis], tf.transpose(self._signatures(history.ids), [0, 2, 1]))
        same = tf.cast(same & history.mask[:, tf.newaxis, :], history.vectors.dtype)
        sums = tf.math.l2_normalize(tf.linalg.matmul(same, _real(history)), axis=-1)
        return Interest(tf.reduce_mean(sums, axis=1)[:, tf.newaxis, :])

    def user_state(self, history: Columns) -> Tensors:
        vectors = _real(history)
        values = 1 << self.group_size
        bucket = tf.one_hot(self._signatures(history.ids), values, dtype=vectors.dtype)
        shape = tf.shape(bucket)
        bucket = tf.reshape(bucket, [shape[0], shape[1], self._num_signatures * values])
        sums = tf.math.l2_normalize(tf.linalg.matmul(bucket, vectors, transpose_a=True), axis=-1)
        return {"buckets": tf.reshape(sums, [shape[0], self._num_signatures, values, vectors.shape[-1]])}

    def from_state(self, candidate: Columns, state: Tensors) -> Interest:
        buckets, signatures = state["buckets"], self._signatures(candidate.ids)
        values = 1 << self.group_size
        flat = tf.reshape(buckets, [tf.shape(buckets)[0], self._num_signatures * values, buckets.shape[-1]])
        rows = signatures + values * tf.range(self._num_signatures)
        return Interest(tf.reduce_mean(tf.gather(flat, rows, batch_dims=1), axis=2))

    @property
    def _num_signatures(self) -> int:
        return len(self._words) * len(self.tables)

    def _signatures(self, ids: Tensors) -> tf.Tensor:
        """int32 [R, C or L, G], each below 2**group_size."""
        mask = tf.constant((1 << self.group_size) - 1, tf.int64)
        signatures = []
        for name, table in self.tables.items():
            words = tf.gather(table.fingerprints(ids[name]), self._words, axis=-1)
            # The sign moves in from the left, and out by the mask.
            shifted = tf.bitwise.right_shift(words, tf.constant(self._shifts, tf.int64))
            signatures.append(tf.bitwise.bitwise_and(shifted, mask))
        return tf.cast(tf.concat(signatures, axis=-1), tf.int32)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_hashes": self.num_hashes,
            "group_size": self.group_size,
            "seed": self.seed,
        }


def _real(history: Columns) -> tf.Tensor:
    """The vectors of behaviours, zero at padding."""
    return tf.where(history.mask[..., tf.newaxis], history.vectors, tf.zeros_like(history.vectors))
