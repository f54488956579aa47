"""The nearest behaviours by Hamming distance. Axes: C candidates, L history, K top-k, W words."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from keras_eta.ops import _counting
from keras_eta.ops.hashing import WORD_BITS, distance_as, hamming_distance
from keras_eta.validation import check_positive_integers

# Pairs of a candidate and a behaviour whose distances are sorted at a time.
_SORTED_PAIRS = 1 << 19
# Behaviours of a block, and how many times K a history must be for a search of blocks first to be faster.
_SCORE_BLOCK = 16
_BLOCKS_PAY = 64


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
        lambda: _counting.positions_by_counting(candidate, history, top_k, mask),
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
    buckets = [_counting.BUCKET_STEP]
    while buckets[-1] < max_history_length:
        buckets.append(int(_counting.history_bucket(tf.constant(buckets[-1] + 1))))
    return buckets


def _counting_pays(candidates: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Whether C candidates over L behaviours are found sooner by counting than by sorting.

    `python -m benchmarks.retrieval` measures both. Sorting takes time in proportion to C * L; counting, a call of XLA
    and a pass over L for each block of candidates, however few there are.
    """
    # Nothing shorter than the first bucket is counted, so that warm-up requests of every bucket's length, if they have
    # candidates enough, compile all that any request will need.
    large = tf.cast(candidates - 40, tf.int64) * tf.cast(length, tf.int64) > 20_000
    return tf.logical_and(large, length >= _counting.BUCKET_STEP)


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
    distances = distance_as(candidate[..., :, tf.newaxis, :], history[..., tf.newaxis, :, :], dtype)
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
