"""Pure functions of SimHash fingerprints, Hamming distances and behaviours' ages. Stock TensorFlow ops only."""

from keras_eta.ops.ages import age_bucket
from keras_eta.ops.hamming_top_k import TopK, hamming_top_k, history_buckets
from keras_eta.ops.hashing import (
    WORD_BITS,
    hamming_distance,
    num_words,
    pack_bits,
    project,
    simhash,
    straight_through_sign,
)

__all__ = [
    "WORD_BITS",
    "TopK",
    "age_bucket",
    "hamming_distance",
    "hamming_top_k",
    "history_buckets",
    "num_words",
    "pack_bits",
    "project",
    "simhash",
    "straight_through_sign",
]
