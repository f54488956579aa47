"""Pure functions of fingerprints, distances, times, matches and several values. Stock TensorFlow ops only."""

from keras_eta import _runtime
from keras_eta.ops.ages import age_bucket
from keras_eta.ops.calendar import hour_and_weekday
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
from keras_eta.ops.matching import inverted_index, matches
from keras_eta.ops.multi_valued import mean_of_values

_runtime.prepare_tensorflow()

__all__ = [
    "WORD_BITS",
    "TopK",
    "age_bucket",
    "hamming_distance",
    "hamming_top_k",
    "history_buckets",
    "hour_and_weekday",
    "inverted_index",
    "matches",
    "mean_of_values",
    "num_words",
    "pack_bits",
    "project",
    "simhash",
    "straight_through_sign",
]
