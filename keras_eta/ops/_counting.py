"""The K nearest by counting, compiled by XLA: bits of many behaviours in one int64 word, and nothing sorted.

Lanes: eight distances lie in the eight bytes of a word, so one addition compares all of them with a threshold. With 3
behaviours at distances 5, 2 and 7 and threshold 4, adding 128 - 4 = 124 to each lane gives 129, 126 and 131: the
highest bit of a lane (128) is set where the distance reaches the threshold, here in the lanes of 5 and 7. Masked with
0x80 in every lane, one popcount says that 2 of 3 are at least 4 away, so 1 is nearer. Halving the threshold bit by bit
so finds the distance of the K-th nearest.
"""

from __future__ import annotations

import functools

import tensorflow as tf

from keras_eta.ops.hashing import WORD_BITS

# Candidates that the compiled selection works on at a time: what it writes fits in a core's cache, and XLA compiles for
# one number of candidates only.
CANDIDATE_BLOCK = 256
# Compiled lengths are multiples of this, four to an octave above 1,024.
BUCKET_STEP = 256
# Words counted by the three levels of four below the blocks in `_nth_set_bits`.
_BLOCK_WORDS = 64


def positions_by_counting(candidate: tf.Tensor, history: tf.Tensor, top_k: int, mask: tf.Tensor) -> tf.Tensor:
    """Positions [..., C, K] by `_select`, a block of candidates at a time; anything where nothing was found."""
    leading, C, L, W = tf.shape(candidate)[:-2], tf.shape(candidate)[-2], tf.shape(history)[-2], history.shape[-1]
    blocks = -(-C // CANDIDATE_BLOCK)
    candidate = tf.pad(tf.reshape(candidate, [-1, C, W]), [[0, 0], [0, blocks * CANDIDATE_BLOCK - C], [0, 0]])
    candidate = tf.reshape(candidate, [-1, CANDIDATE_BLOCK, W])
    padding = history_bucket(L) - L
    history = tf.pad(tf.reshape(history, [-1, L, W]), [[0, 0], [0, padding], [0, 0]])
    mask = tf.pad(tf.reshape(mask, [-1, L]), [[0, 0], [0, padding]])

    def block(index: tf.Tensor) -> tf.Tensor:
        row = index // blocks
        return _select(candidate[index], history[row], mask[row], top_k=top_k)[0]

    positions = tf.map_fn(block, tf.range(tf.shape(candidate)[0]), fn_output_signature=tf.int32)
    shape = tf.concat([leading, [blocks * CANDIDATE_BLOCK, top_k]], axis=0)
    return tf.reshape(positions, shape)[..., :C, :]


def history_bucket(length: tf.Tensor) -> tf.Tensor:
    """The smallest bucket that holds a length."""
    octave = tf.reduce_sum(tf.cast(length > tf.bitwise.left_shift(1, tf.range(31)), tf.int32))
    step = tf.maximum(tf.bitwise.left_shift(1, tf.maximum(octave - 3, 0)), BUCKET_STEP)
    return tf.maximum(-(-length // step), 1) * step


@tf.function(jit_compile=True, autograph=False)
def _select(candidate: tf.Tensor, history: tf.Tensor, mask: tf.Tensor, top_k: int) -> tuple[tf.Tensor, ...]:
    """The K nearest, in order of position, of C candidates [C, W] over one history [L, W], L a multiple of 256.

    Nothing of length L is sorted. Distances are kept in lanes of 8 (16 from two words on) bits of int64 words, so that
    one addition compares 8 of them with a threshold. The distance of the K-th nearest is found bit by bit, by counting
    how many lie below; who is nearer, and the first of those as near, then is a set of K bits in L / 64 words, whose
    positions are looked up. C is the last axis everywhere, along which XLA vectorises.

    Returns:
        Positions, int32 [C, K], anything beyond the behaviours that there are; and intermediates, returned so that XLA
        does not recompute them.
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
