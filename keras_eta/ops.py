"""Pure functions of SimHash fingerprints, Hamming distances and behaviours' ages. Stock TensorFlow ops only.

Axes: M bits, W = ceil(M / 64) words, D dimensions, L history, K top-k.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from keras_eta.validation import check_positive_integers

WORD_BITS = 64

# Every matmul kernel (eager, graph, XLA) adds up to 64 products of a sum in the same order, but for those of a single
# row or a single column and, in TensorFlow 2.21, XLA's for columns that are no multiple of 64. Longer sums are split by
# some kernels.
_EXACT_SUM_LENGTH = 64


class TopK(NamedTuple):
    """What `hamming_top_k` found, nearest first; K = `top_k` columns.

    Attributes:
        positions: int32 [..., K], indices into the history; 0 where `mask` is false.
        distances: int32 [..., K], Hamming distances; 64 * W + 1, farther than any, where `mask` is false.
        mask: bool [..., K], false where the history has fewer than K behaviours.
    """

    positions: tf.Tensor
    distances: tf.Tensor
    mask: tf.Tensor


def num_words(num_bits: int) -> int:
    """W, the int64 words that `num_bits` bits fill."""
    return -(-num_bits // WORD_BITS)


def project(x: tf.Tensor, planes: tf.Tensor) -> tf.Tensor:
    """Projects vectors on hyperplane normals, x . H, by sums whose order does not depend on the batch.

    The projection of a row is a function of that row alone, bit for bit, whatever is projected with it.

    Args:
        x: float32 [..., D].
        planes: float32 [D, M], one normal a column.

    Returns:
        float32 [..., M].
    """
    dim, num_bits = planes.shape
    # One more row and whole words of columns, to stay clear of the kernels that add in another order.
    rows = tf.pad(tf.reshape(x, [-1, dim]), [[0, 1], [0, 0]])
    columns = tf.pad(planes, [[0, 0], [0, -num_bits % WORD_BITS]])
    sizes = [min(_EXACT_SUM_LENGTH, dim - start) for start in range(0, dim, _EXACT_SUM_LENGTH)]
    pairs = zip(tf.split(rows, sizes, axis=-1), tf.split(columns, sizes), strict=True)
    total = functools.reduce(tf.add, (tf.linalg.matmul(part, normals) for part, normals in pairs))
    return tf.reshape(total[:-1, :num_bits], tf.concat([tf.shape(x)[:-1], [num_bits]], axis=0))


def pack_bits(bits: tf.Tensor) -> tf.Tensor:
    """Packs bits into int64 words: bit j sits in word j // 64 at position j % 64.

    Args:
        bits: bool [..., M], M known statically.

    Returns:
        int64 [..., W]. Unused high bits of the last word are 0.

    Raises:
        ValueError: if M is not known statically or is 0.
    """
    bits = tf.convert_to_tensor(bits)
    num_bits = bits.shape[-1]
    if not num_bits:
        raise ValueError(f"`bits` must have a static last dimension of at least 1. Received: shape={bits.shape}")
    words = num_words(num_bits)
    # A float32 sums 16 bits exactly, so a matmul by powers of two packs 16 at a time: twice as fast as 64 shifts.
    halves = [
        [float(1 << (j % 16)) if j // 16 == column else 0.0 for column in range(4 * words)] for j in range(num_bits)
    ]
    sixteens = tf.cast(tf.tensordot(tf.cast(bits, tf.float32), tf.constant(halves), axes=1), tf.int64)
    sixteens = tf.reshape(sixteens, tf.concat([tf.shape(bits)[:-1], [words, 4]], axis=0))
    shifts = tf.constant([0, 16, 32, 48], tf.int64)
    packed = tf.reduce_sum(tf.bitwise.left_shift(sixteens, shifts), axis=-1)
    return tf.ensure_shape(packed, bits.shape[:-1].concatenate(words))


def simhash(x: tf.Tensor, planes: tf.Tensor) -> tf.Tensor:
    """SimHash fingerprints: bit j is 1 where x . planes[:, j] > 0 (strictly), packed into int64 words.

    Two vectors differ in a bit with probability angle / pi (Charikar 2002, Section 3); ETA hashes item embeddings with
    it (arXiv 2108.04468, Section 3.3). A zero vector hashes to 0.

    Args:
        x: float32 [..., D].
        planes: float32 [D, M].

    Returns:
        int64 [..., W].

    Raises:
        ValueError: if the shapes of `x` and `planes` do not match.
    """
    x, planes = tf.convert_to_tensor(x), tf.convert_to_tensor(planes)
    if planes.shape.rank != 2 or x.shape.rank is None or x.shape.rank < 1 or x.shape[-1] != planes.shape[0]:
        raise ValueError(
            f"`x` must be [..., D] and `planes` [D, M]. Received: x.shape={x.shape}, planes.shape={planes.shape}"
        )
    return pack_bits(project(x, planes) > 0.0)


@tf.custom_gradient
def straight_through_sign(projection: tf.Tensor) -> tf.Tensor:
    """+1 where positive, else -1; the gradient passes unchanged where |projection| <= 1 and is 0 elsewhere.

    The straight-through estimator with the clipping of binarised networks (Bengio et al. 2013; Hubara et al. 2016, Eq.
    4).

    Args:
        projection: float32, any shape.

    Returns:
        float32 of the same shape, each +1 or -1.
    """

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        return upstream * tf.cast(tf.abs(projection) <= 1.0, upstream.dtype)

    return 2.0 * tf.cast(projection > 0.0, projection.dtype) - 1.0, gradient


def hamming_distance(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Hamming distance of packed fingerprints: the sum over words of popcount(a XOR b).

    Args:
        a: int64 [..., W].
        b: int64 [..., W], broadcast against `a`.

    Returns:
        int32 [...], between 0 and 64 * W. Smaller is nearer.

    Raises:
        ValueError: if the last dimensions differ or are not known statically.
    """
    return _distance(tf.convert_to_tensor(a), tf.convert_to_tensor(b), tf.int32)


def hamming_top_k(candidate: tf.Tensor, history: tf.Tensor, top_k: int, mask: tf.Tensor | None = None) -> TopK:
    """The `top_k` behaviours of each candidate's history that are nearest by Hamming distance.

    Ties go to the lower position, which is the more recent behaviour. Exact and deterministic: the same in eager mode,
    `tf.function`, XLA and a reloaded SavedModel (arXiv 2108.04468, Section 3.3, the top-k of Eq. 5).

    Args:
        candidate: int64 [..., C, W] fingerprints.
        history: int64 [..., L, W] fingerprints, most recent first.
        top_k: K. A history shorter than K fills the rest of the K columns with masked entries.
        mask: bool [..., L], false at padding, which is never retrieved. `None`: every behaviour is real.

    Returns:
        A `TopK` of [..., C, K] tensors, nearest first.

    Raises:
        ValueError: if `top_k` is not a positive integer, or the words of the fingerprints differ in number.
    """
    check_positive_integers(top_k=top_k)
    candidate, history = tf.convert_to_tensor(candidate), tf.convert_to_tensor(history)
    farther_than_any = WORD_BITS * history.shape[-1] + 1
    # `top_k` sorts one byte a score faster than four.
    dtype = tf.uint8 if farther_than_any <= tf.uint8.max else tf.int32
    distances = _distance(candidate[..., :, tf.newaxis, :], history[..., tf.newaxis, :, :], dtype)
    # Positive for a behaviour, 0 for padding.
    scores = tf.constant(farther_than_any, dtype) - distances
    if mask is not None:
        scores = tf.where(mask[..., tf.newaxis, :], scores, tf.zeros_like(scores))
    missing = tf.maximum(top_k - tf.shape(scores)[-1], 0)
    padding = tf.concat([tf.zeros([tf.rank(scores) - 1, 2], tf.int32), [[0, missing]]], axis=0)
    values, positions = tf.math.top_k(tf.pad(scores, padding), top_k)
    found = values > 0
    return TopK(
        positions=tf.where(found, positions, tf.zeros_like(positions)),
        distances=farther_than_any - tf.cast(values, tf.int32),
        mask=found,
    )


def age_bucket(
    timestamp: tf.Tensor, history_timestamp: tf.Tensor, boundaries: Sequence[int], mask: tf.Tensor | None = None
) -> tf.Tensor:
    """The bucket of each behaviour's age: 1 + the number of boundaries that the age has reached.

    An age below 0 counts as 0, so a real behaviour is in bucket 1 at least. Ages are compared as integers: float32 is
    too coarse for seconds since 1970, and for some boundaries beyond half a year.

    Args:
        timestamp: integers [...], of the impressions.
        history_timestamp: integers [..., L], of the behaviours, in the same unit.
        boundaries: ages at which a new bucket begins, in that unit, ascending; `Age.boundaries`.
        mask: bool [..., L], false at padding, whose bucket is 0. `None`: every behaviour is real.

    Returns:
        int32 [..., L], between 0 and `len(boundaries) + 1`.

    Raises:
        TypeError: if a timestamp is no integer.
    """
    timestamp, history_timestamp = tf.convert_to_tensor(timestamp), tf.convert_to_tensor(history_timestamp)
    for name, x in (("timestamp", timestamp), ("history_timestamp", history_timestamp)):
        if not x.dtype.is_integer:
            raise TypeError(f"`{name}` must hold integers. Received: dtype={x.dtype.name}")
    age = tf.maximum(tf.cast(timestamp, tf.int64)[..., tf.newaxis] - tf.cast(history_timestamp, tf.int64), 0)
    reached = tf.searchsorted(tf.constant(boundaries, tf.int64), tf.reshape(age, [-1]), side="right")
    bucket = tf.ensure_shape(1 + tf.reshape(reached, tf.shape(age)), age.shape)
    return bucket if mask is None else tf.where(mask, bucket, 0)


def _distance(a: tf.Tensor, b: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """`hamming_distance` in an integer type that holds 64 * W."""
    words = a.shape[-1]
    if not words or words != b.shape[-1]:
        raise ValueError(
            f"Fingerprints must have the same static number of words. Received: shapes {a.shape} and {b.shape}"
        )
    # Word by word, so that no [..., W] intermediate is written.
    counts = (
        tf.cast(tf.raw_ops.PopulationCount(x=tf.bitwise.bitwise_xor(a[..., word], b[..., word])), dtype)
        for word in range(words)
    )
    return functools.reduce(tf.add, counts)
