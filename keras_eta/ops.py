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

# Pairs of a candidate and a behaviour whose distances are sorted at a time.
_SORTED_PAIRS = 1 << 19
# Behaviours of a block, and how many times K a history must be for a search of blocks first to be faster.
_SCORE_BLOCK = 16
_BLOCKS_PAY = 64

# Candidates that the compiled selection works on at a time: what it writes fits in a core's cache, and XLA compiles for
# one number of candidates only.
CANDIDATE_BLOCK = 256
# Compiled lengths are multiples of this, four to an octave above 1,024.
_BUCKET_STEP = 256
# Words counted by the three levels of four below the blocks in `_nth_set_bits`.
_BLOCK_WORDS = 64


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


def hamming_top_k(
    candidate: tf.Tensor,
    history: tf.Tensor,
    top_k: int,
    mask: tf.Tensor | None = None,
    sorted: bool = True,
    jit_compile: bool = False,
) -> TopK:
    """The `top_k` behaviours of each candidate's history that are nearest by Hamming distance.

    Ties go to the lower position, which is the more recent behaviour. Exact and deterministic: the same in eager mode,
    `tf.function`, XLA and a reloaded SavedModel (arXiv 2108.04468, Section 3.3, the top-k of Eq. 5).

    Args:
        candidate: int64 [..., C, W] fingerprints.
        history: int64 [..., L, W] fingerprints, most recent first.
        top_k: K. A history shorter than K fills the rest of the K columns with masked entries.
        mask: bool [..., L], false at padding, which is never retrieved. `None`: every behaviour is real.
        sorted: whether the nearest come first. `False`: in any order, as `tf.math.top_k`.
        jit_compile: whether to select by counting, compiled by XLA, where that is faster than sorting: where many
            candidates share a long history. XLA compiles once for each of `history_buckets`.

    Returns:
        A `TopK` of [..., C, K] tensors, nearest first if `sorted`, masked entries last.

    Raises:
        ValueError: if `top_k` is not a positive integer, or the words of the fingerprints differ in number.
    """
    check_positive_integers(top_k=top_k)
    candidate, history = tf.convert_to_tensor(candidate), tf.convert_to_tensor(history)
    if not candidate.shape[-1] or candidate.shape[-1] != history.shape[-1]:
        raise ValueError(
            f"Fingerprints must have the same static number of words. Received: shapes {candidate.shape} and "
            f"{history.shape}"
        )
    if mask is None:
        mask = tf.ones(tf.shape(history)[:-1], tf.bool)
    if not jit_compile:
        return _top_k_by_sorting(candidate, history, top_k, mask)
    positions = tf.cond(
        _counting_pays(tf.shape(candidate)[-2], tf.shape(history)[-2]),
        lambda: _positions_by_counting(candidate, history, top_k, mask),
        lambda: _top_k_by_sorting(candidate, history, top_k, mask).positions,
    )
    real = tf.reduce_sum(tf.cast(mask, tf.int32), axis=-1)[..., tf.newaxis, tf.newaxis]
    found = tf.broadcast_to(tf.range(top_k) < real, tf.shape(positions))
    positions = tf.where(found, positions, 0)
    # Of what was found only, and where nobody asks for distances, not at all.
    rank = history.shape.rank
    some = tf.pad(history, [[0, 0]] * (rank - 2) + [[0, tf.maximum(1 - tf.shape(history)[-2], 0)], [0, 0]])
    nearest = tf.gather(some, positions, batch_dims=rank - 2)
    distances = hamming_distance(candidate[..., tf.newaxis, :], nearest)
    top = TopK(positions, tf.where(found, distances, WORD_BITS * history.shape[-1] + 1), found)
    if not sorted:
        return top
    # Stable, so that behaviours as near stay in order of position.
    order = tf.argsort(top.distances, stable=True)
    return TopK(*(tf.gather(x, order, batch_dims=x.shape.rank - 1) for x in top))


def history_buckets(max_history_length: int) -> list[int]:
    """The lengths to which `hamming_top_k` pads histories with `jit_compile`, up to one that holds the longest.

    Args:
        max_history_length: behaviours of the longest history.

    Returns:
        Ascending lengths; each is at most a quarter longer than the histories that it is for, from 1,024 on.
    """
    buckets = [_BUCKET_STEP]
    while buckets[-1] < max_history_length:
        buckets.append(int(_history_bucket(tf.constant(buckets[-1] + 1))))
    return buckets


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
        TypeError: if a timestamp is no integer that int64 holds.
    """
    timestamp, history_timestamp = tf.convert_to_tensor(timestamp), tf.convert_to_tensor(history_timestamp)
    for name, x in (("timestamp", timestamp), ("history_timestamp", history_timestamp)):
        if not x.dtype.is_integer or x.dtype == tf.uint64:
            raise TypeError(f"`{name}` must hold integers that int64 holds. Received: dtype={x.dtype.name}")
    timestamp, history_timestamp = tf.cast(timestamp, tf.int64)[..., tf.newaxis], tf.cast(history_timestamp, tf.int64)
    # Moments are cut off first, since int64 does not hold every difference.
    oldest = tf.maximum(timestamp, tf.int64.min + boundaries[-1]) - boundaries[-1]
    age = timestamp - tf.minimum(tf.maximum(history_timestamp, oldest), timestamp)
    reached = tf.searchsorted(tf.constant(boundaries, tf.int64), tf.reshape(age, [-1]), side="right")
    bucket = tf.ensure_shape(1 + tf.reshape(reached, tf.shape(age)), age.shape)
    return bucket if mask is None else tf.where(mask, bucket, 0)


def _top_k_by_sorting(candidate: tf.Tensor, history: tf.Tensor, top_k: int, mask: tf.Tensor) -> TopK:
    """`hamming_top_k` by `_sort`, as many candidates at a time as keeps the distances in the cache."""
    rank, leading, C, W = candidate.shape.rank, tf.shape(candidate)[:-2], tf.shape(candidate)[-2], history.shape[-1]
    pairs = tf.size(candidate, tf.int64) // W * tf.cast(tf.shape(history)[-2], tf.int64)
    size = -(-C // tf.maximum(tf.cast(pairs // _SORTED_PAIRS, tf.int32), 1))

    def in_chunks() -> TopK:
        padded = tf.pad(candidate, [[0, 0]] * (rank - 2) + [[0, -C % size], [0, 0]])
        chunks = tf.reshape(padded, tf.concat([leading, [-1, size, W]], axis=0))
        found = tf.map_fn(
            lambda chunk: _sort(chunk, history, top_k, mask),
            tf.transpose(chunks, [rank - 2, *range(rank - 2), rank - 1, rank]),
            fn_output_signature=TopK(tf.int32, tf.int32, tf.bool),
        )
        order, shape = [*range(1, rank - 1), 0, rank - 1, rank], tf.concat([leading, [-1, top_k]], axis=0)
        return TopK(*(tf.reshape(tf.transpose(x, order), shape)[..., :C, :] for x in found))

    return tf.cond(size < C, in_chunks, lambda: _sort(candidate, history, top_k, mask))


def _sort(candidate: tf.Tensor, history: tf.Tensor, top_k: int, mask: tf.Tensor) -> TopK:
    """`hamming_top_k` by `tf.math.top_k` over all distances."""
    farther_than_any = WORD_BITS * history.shape[-1] + 1
    # `top_k` sorts one byte a score faster than four.
    dtype = tf.uint8 if farther_than_any <= tf.uint8.max else tf.int32
    distances = _distance(candidate[..., :, tf.newaxis, :], history[..., tf.newaxis, :, :], dtype)
    # Positive for a behaviour, 0 for padding.
    scores = tf.constant(farther_than_any, dtype) - distances
    scores = tf.where(mask[..., tf.newaxis, :], scores, tf.zeros_like(scores))
    length = tf.shape(scores)[-1]
    values, positions = tf.cond(
        length > _BLOCKS_PAY * top_k,
        lambda: _top_k_of_blocks(scores, top_k),
        lambda: tuple(tf.math.top_k(_pad_end(scores, tf.maximum(top_k - length, 0)), top_k)),
    )
    found = values > 0
    return TopK(
        positions=tf.where(found, positions, tf.zeros_like(positions)),
        distances=farther_than_any - tf.cast(values, tf.int32),
        mask=found,
    )


def _top_k_of_blocks(scores: tf.Tensor, top_k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """`tf.math.top_k` of scores of at least 0, [..., L], that looks only into the K blocks of the largest maxima.

    The same values and indices: were one of the K largest in another block, each of those K blocks would hold a score
    that is larger, or as large at a lower index.
    """
    length = tf.shape(scores)[-1]
    scores = _pad_end(scores, tf.maximum(-length % _SCORE_BLOCK, top_k * _SCORE_BLOCK - length))
    blocks = tf.reshape(scores, tf.concat([tf.shape(scores)[:-1], [-1, _SCORE_BLOCK]], axis=0))
    batch_dims = scores.shape.rank - 1
    # In order, so that of equal scores the one at the lower index still comes first.
    chosen = tf.sort(tf.math.top_k(tf.reduce_max(blocks, axis=-1), top_k).indices)
    best = tf.gather(blocks, chosen, batch_dims=batch_dims)
    best = tf.reshape(best, tf.concat([tf.shape(scores)[:-1], [top_k * _SCORE_BLOCK]], axis=0))
    values, index = tf.math.top_k(best, top_k)
    block = tf.gather(chosen, index // _SCORE_BLOCK, batch_dims=batch_dims)
    return values, _SCORE_BLOCK * block + index % _SCORE_BLOCK


def _pad_end(x: tf.Tensor, zeros: tf.Tensor) -> tf.Tensor:
    """Zeros after the end of the last axis."""
    return tf.pad(x, tf.concat([tf.zeros([tf.rank(x) - 1, 2], tf.int32), [[0, zeros]]], axis=0))


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


def _counting_pays(candidates: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Whether C candidates over L behaviours are found sooner by counting than by sorting.

    `python -m benchmarks.retrieval` measures both. Sorting takes time in proportion to C * L; counting, a call of XLA
    and a pass over L for each block of candidates, however few there are.
    """
    # Nothing shorter than the first bucket is counted, so that warm-up requests of every bucket's length, if they have
    # candidates enough, compile all that any request will need.
    large = tf.cast(candidates - 40, tf.int64) * tf.cast(length, tf.int64) > 20_000
    return tf.logical_and(large, length >= _BUCKET_STEP)


def _positions_by_counting(candidate: tf.Tensor, history: tf.Tensor, top_k: int, mask: tf.Tensor) -> tf.Tensor:
    """Positions [..., C, K] by `_select`, a block of candidates at a time; anything where nothing was found."""
    leading, C, L, W = tf.shape(candidate)[:-2], tf.shape(candidate)[-2], tf.shape(history)[-2], history.shape[-1]
    blocks = -(-C // CANDIDATE_BLOCK)
    candidate = tf.pad(tf.reshape(candidate, [-1, C, W]), [[0, 0], [0, blocks * CANDIDATE_BLOCK - C], [0, 0]])
    candidate = tf.reshape(candidate, [-1, CANDIDATE_BLOCK, W])
    padding = _history_bucket(L) - L
    history = tf.pad(tf.reshape(history, [-1, L, W]), [[0, 0], [0, padding], [0, 0]])
    mask = tf.pad(tf.reshape(mask, [-1, L]), [[0, 0], [0, padding]])

    def block(index: tf.Tensor) -> tf.Tensor:
        row = index // blocks
        return _select(candidate[index], history[row], mask[row], top_k=top_k)[0]

    positions = tf.map_fn(block, tf.range(tf.shape(candidate)[0]), fn_output_signature=tf.int32)
    shape = tf.concat([leading, [blocks * CANDIDATE_BLOCK, top_k]], axis=0)
    return tf.reshape(positions, shape)[..., :C, :]


def _history_bucket(length: tf.Tensor) -> tf.Tensor:
    """The smallest bucket that holds a length."""
    octave = tf.reduce_sum(tf.cast(length > tf.bitwise.left_shift(1, tf.range(31)), tf.int32))
    step = tf.maximum(tf.bitwise.left_shift(1, tf.maximum(octave - 3, 0)), _BUCKET_STEP)
    return tf.maximum(-(-length // step), 1) * step


@tf.function(jit_compile=True, autograph=False)
def _select(candidate: tf.Tensor, history: tf.Tensor, mask: tf.Tensor, top_k: int) -> tuple[tf.Tensor, ...]:
    """The K nearest, in order of position, of C candidates [C, W] over one history [L, W], L a multiple of 256.

    Nothing of length L is sorted. Distances are kept in lanes of 8 (16 from two words on) bits of int64 words, so that
    one addition compares 8 of them with a threshold. The distance of the K-th nearest is found bit by bit, by counting
    how many lie below; who is nearer, and the first of those as near, then is a set of K bits in L / 64 words, whose
    positions are looked up. C is the last axis everywhere, along which XLA vectorises.

    Returns:
        Positions, int32 [C, K], anything beyond the behaviours that there are; and values of no use to the caller.
    """
    num_words = history.shape[-1]
    C = tf.shape(candidate)[0]
    lane = 8 if num_words == 1 else 16
    lanes = WORD_BITS // lane
    high = _ones(lane) << lane - 1
    beyond = (1 << lane - 1) - 1  # the distance of padding
    blocked = [-1, lanes, lane]

    # distances[j, w]: lane i holds the distance of behaviour 64 * w + lane * i + j.
    parts = [tf.transpose(tf.reshape(history[:, word], blocked), [1, 2, 0]) for word in range(num_words)]
    padding = tf.where(tf.transpose(tf.reshape(mask, blocked), [1, 2, 0]), _int64(0), _int64(beyond))
    distances = tf.zeros([], tf.int64)
    for i in range(lanes):
        differing = [
            _popcount(tf.bitwise.bitwise_xor(part[i][..., tf.newaxis], candidate[:, word]))
            for word, part in enumerate(parts)
        ]
        distance = tf.bitwise.bitwise_or(functools.reduce(tf.add, differing), padding[i][..., tf.newaxis])
        distances += tf.bitwise.left_shift(distance, _int64(lane * i))

    def at_least(threshold: tf.Tensor) -> list[tf.Tensor]:
        """For each j, words whose lanes have their highest bit set where the distance reaches the threshold [C]."""
        offset = (_int64(1 << lane - 1) - threshold) * _int64(_ones(lane))
        return [tf.bitwise.bitwise_and(distances[j] + offset, _int64(high)) for j in range(lane)]

    length = tf.cast(tf.shape(history)[0], tf.int64)
    nearest, below = tf.zeros([C], tf.int64), tf.zeros([C], tf.int64)
    for bit in reversed(range((WORD_BITS * num_words + 1).bit_length())):
        threshold = nearest + (1 << bit)
        counts = tf.reshape(functools.reduce(tf.add, map(_popcount, at_least(threshold))), [-1, 4, C])
        # Four words by hand: XLA's own reduction does not vectorise.
        lower = length - tf.reduce_sum(counts[:, 0] + counts[:, 1] + counts[:, 2] + counts[:, 3], axis=0)
        enough = lower >= top_k
        nearest, below = tf.where(enough, nearest, threshold), tf.where(enough, below, lower)
    reached, passed = at_least(nearest), at_least(nearest + 1)
    not_below, beyond_tie = (
        functools.reduce(tf.bitwise.bitwise_or, [_shift_right(x, lane - 1 - j) for j, x in enumerate(words)])
        for words in (reached, passed)
    )
    # Bit b of word w stands for behaviour 64 * w + b. As many of those at the K-th distance as there is room for; where
    # there are fewer than K behaviours, those are padding.
    few = nearest > WORD_BITS * num_words
    tied = tf.bitwise.bitwise_and(not_below, tf.bitwise.invert(beyond_tie))
    last = _nth_set_bits(tied, top_k - 1 - below[tf.newaxis], 16)
    start = WORD_BITS * tf.range(length // WORD_BITS)[:, tf.newaxis]
    until = tf.clip_by_value(last - start, -1, WORD_BITS - 1)
    # 2 << 63 is 0, so that a word wholly inside has all its bits.
    inside = tf.where(few | (until < 0), _int64(0), tf.bitwise.left_shift(_int64(2), tf.maximum(until, 0)) - 1)
    selected = tf.bitwise.bitwise_or(tf.bitwise.invert(not_below), tf.bitwise.bitwise_and(tied, inside))

    rank = tf.range(top_k, dtype=tf.int64)[:, tf.newaxis] + tf.zeros_like(below)
    position = tf.cast(_nth_set_bits(selected, rank, 8 if top_k < 128 else 16), tf.int32)
    # XLA computes a value again in every loop that reads it, unless the value is returned.
    return tf.transpose(position), distances, tied, last, selected


def _nth_set_bits(words: tf.Tensor, rank: tf.Tensor, lane: int) -> tf.Tensor:
    """Where the set bit of a rank lies.

    Args:
        words: int64 [words, C], a set of bits for each of C.
        rank: int64 [K, C], how many set bits come before the one sought.
        lane: 8 where no set has more than 127 bits, else 16.

    Returns:
        int64 [K, C], 64 * word + bit; anything where the set has no more than `rank` bits.
    """
    C, lanes = tf.shape(words)[1], WORD_BITS // lane
    words = tf.pad(words, [[0, -tf.shape(words)[0] % _BLOCK_WORDS], [0, 0]])

    def at(table: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.reshape(table, [-1]), tf.cast(row, tf.int32) * C + tf.range(C))

    counts, levels = _popcount(words), []
    for _ in range(2 if lane == 8 else 3):
        group = tf.reshape(counts, [-1, lanes, C])
        shifted = (tf.bitwise.left_shift(group[:, i], _int64(lane * i)) for i in range(lanes))
        levels.append(_prefix_sums(functools.reduce(tf.add, shifted), lane))
        counts = _shift_right(levels[-1], WORD_BITS - lane)
    totals = tf.cumsum(counts)
    row = tf.reduce_sum(tf.cast(totals[:, tf.newaxis] <= rank, tf.int64), axis=0)
    row = tf.minimum(row, tf.cast(tf.shape(totals)[0], tf.int64) - 1)
    rank -= at(totals - counts, row)
    for level in reversed(levels):
        step, rank = _search_lanes(at(level, row), rank, lane)
        row = lanes * row + step
    word = at(words, row)

    # The usual popcount of each byte, then a byte for each bit of the byte that holds the one sought.
    both = tf.bitwise.bitwise_and
    pairs = word - both(_shift_right(word, 1), _int64(0x55 * _ones(8)))
    nibbles = both(pairs, _int64(0x33 * _ones(8))) + both(_shift_right(pairs, 2), _int64(0x33 * _ones(8)))
    counts = both(nibbles + _shift_right(nibbles, 4), _int64(0x0F * _ones(8)))
    step, rank = _search_lanes(_prefix_sums(counts, 8), rank, 8)
    byte = both(_shift_right(word, 8 * step), _int64(0xFF))
    spread = both(byte * _int64(_ones(8)), _int64(sum(1 << 9 * i for i in range(8))))
    bits = _shift_right(both(spread + _int64(0x7F * _ones(8)), _int64(0x80 * _ones(8))), 7)
    bit, _ = _search_lanes(_prefix_sums(bits, 8), rank, 8)
    return WORD_BITS * row + 8 * step + bit


def _prefix_sums(x: tf.Tensor, lane: int) -> tf.Tensor:
    """Words whose lane i is the sum of lanes 0 to i, which must fit."""
    return x * _int64(_ones(lane))


def _search_lanes(prefix_sums: tf.Tensor, rank: tf.Tensor, lane: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The first lane whose prefix sum exceeds `rank` (the last where none does), and `rank` less the sum before it."""
    high = _int64(_ones(lane) << lane - 1)
    compared = tf.bitwise.bitwise_or(rank * _int64(_ones(lane)), high) - prefix_sums
    step = tf.minimum(_popcount(tf.bitwise.bitwise_and(compared, high)), WORD_BITS // lane - 1)
    before = _shift_right(tf.bitwise.left_shift(prefix_sums, _int64(lane)), lane * step)
    return step, rank - tf.bitwise.bitwise_and(before, _int64((1 << lane) - 1))


def _ones(lane: int) -> int:
    """A word with a 1 in each lane."""
    return sum(1 << lane * i for i in range(WORD_BITS // lane))


def _int64(value: int) -> tf.Tensor:
    """A constant of 64 bits, which may be the sign's too."""
    return tf.constant(value - (1 << WORD_BITS) if value >> WORD_BITS - 1 else value, tf.int64)


def _popcount(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.raw_ops.PopulationCount(x=x), tf.int64)


def _shift_right(x: tf.Tensor, bits: int | tf.Tensor) -> tf.Tensor:
    """A shift that moves zeros in, which TensorFlow has for unsigned integers only."""
    return tf.bitcast(tf.bitwise.right_shift(tf.bitcast(x, tf.uint64), tf.cast(bits, tf.uint64)), tf.int64)
