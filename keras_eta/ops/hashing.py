"""SimHash fingerprints and their Hamming distance. Axes: M bits, W = ceil(M / 64) words, D dimensions."""

from __future__ import annotations

import functools

import tensorflow as tf

WORD_BITS = 64

# Every matmul kernel (eager, graph, XLA) adds up to 64 products of a sum in the same order, but for those of a single
# row or a single column and, in TensorFlow 2.21, XLA's for columns that are no multiple of 64. Longer sums are split by
# some kernels.
_EXACT_SUM_LENGTH = 64


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
    # `slice`, not an index: its gradient pads, which is several times faster.
    own = tf.slice(total, [0, 0], [tf.shape(total)[0] - 1, num_bits])
    return tf.reshape(own, tf.concat([tf.shape(x)[:-1], [num_bits]], axis=0))


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
    return distance_as(tf.convert_to_tensor(a), tf.convert_to_tensor(b), tf.int32)


def distance_as(a: tf.Tensor, b: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
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
