"""Beam search for the items whose semantic ids a model finds likeliest, held to real items by a trie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from keras_eta.layers.semantic_id_table import SemanticIdTable

# The tokens [R, B] chosen last, `None` at first, and the state -> logits [R, B, size] of the next, and the new state.
Step = Callable[[int, tf.Tensor | None, Any], tuple[tf.Tensor, Any]]
# Rows [R, B, C] of items -> bool, whether they must not be found.
Excluded = Callable[[tf.Tensor], tf.Tensor]


class Beams(NamedTuple):
    """The likeliest items of R requests, the likeliest first.

    Attributes:
        rows: int64 [R, B], rows of a `SemanticIdTable`; 0 where fewer than B items were left.
        log_probability: float32 [R, B], the sum of the log probabilities of the tokens; -inf where there is no item.
    """

    rows: tf.Tensor
    log_probability: tf.Tensor


class Reserve(NamedTuple):
    """Results that are kept for some items, such as those that training never saw.

    Attributes:
        nodes: bool [nodes of that depth], of depth 1 to T: whether one of the items is there or below, as
            `SemanticIdTable.nodes_above` gives them.
        number: results that are theirs, as far as there are as many.
    """

    nodes: Sequence[tf.Tensor | tf.Variable]
    number: int


def beam_search(
    step: Step,
    table: SemanticIdTable,
    num_requests: tf.Tensor,
    num_beams: int,
    excluded: Excluded,
    nodes_allowed: Sequence[tf.Tensor | tf.Variable] | None = None,
) -> Beams:
    """Decodes semantic ids token by token, and keeps the `num_beams` likeliest beginnings of real items.

    With as many beams as there are items the result is exact. Of equally likely beginnings the one with the smaller
    codes goes first.

    Args:
        step: of the model; see `Step`. The state's tensors have axes [R, B, ...].
        table: the items.
        num_requests: R.
        num_beams: B.
        excluded: tells which items must not be found.
        nodes_allowed: bool [nodes of that depth], of depth 1 to T: what may be found. `None`: every item.

    Returns:
        `Beams` of min(`num_beams`, what the levels allow) items.
    """
    nodes = tf.zeros([num_requests, 1], tf.int64)
    scores = tf.zeros([num_requests, 1], tf.float32)
    codes, state = None, None
    for level in range(len(table.sizes)):
        logits, state = step(level, codes, state)
        children, of_children = table.children(level, nodes)
        allowed = children >= 0
        if nodes_allowed is not None:
            allowed &= tf.gather(nodes_allowed[level], tf.maximum(children, 0))
        if level == len(table.sizes) - 1:
            allowed &= ~excluded(table.rows_of(children))
        log_probability = tf.nn.log_softmax(tf.cast(logits, tf.float32))
        found = scores[..., tf.newaxis] + tf.gather(log_probability, of_children, batch_dims=2)
        found = tf.where(allowed, found, -float("inf"))
        most = table.num_children[level]
        width = found.shape[1] * most
        scores, places = tf.math.top_k(tf.reshape(found, [-1, width]), min(num_beams, width))
        nodes = tf.gather(tf.reshape(children, [-1, width]), places, batch_dims=1)
        nodes = tf.where(tf.math.is_inf(scores), tf.constant(-1, tf.int64), nodes)
        codes = tf.gather(tf.reshape(of_children, [-1, width]), places, batch_dims=1)
        state = tf.nest.map_structure(lambda x, beams=places // most: tf.gather(x, beams, batch_dims=1), state)
    return Beams(table.rows_of(nodes), scores)


def with_reserved(found: Beams, reserved: Beams, num_results: int) -> Beams:
    """The likeliest items of both searches, with all of the second among them.

    Args:
        found: of all items, [R, B].
        reserved: of those that results are kept for, [R, E].
        num_results: C, from E to B + E.

    Returns:
        `Beams` of C items, all different.
    """
    twice = among(found.rows[:, tf.newaxis], reserved.rows)[:, 0]
    others = tf.where(twice, -float("inf"), found.log_probability)
    log_probability = tf.concat([reserved.log_probability, others], axis=1)
    rows = tf.concat([reserved.rows, found.rows], axis=1)
    # No logarithm of a probability is above 0.
    first = tf.where(reserved.rows > 0, 1.0, -float("inf"))
    _, kept = tf.math.top_k(tf.concat([first, others], axis=1), num_results)
    log_probability, order = tf.math.top_k(tf.gather(log_probability, kept, batch_dims=1), num_results)
    rows = tf.gather(tf.gather(rows, kept, batch_dims=1), order, batch_dims=1)
    return Beams(tf.where(tf.math.is_inf(log_probability), tf.zeros_like(rows), rows), log_probability)


def among(rows: tf.Tensor, some: tf.Tensor) -> tf.Tensor:
    """Bool [R, B, C], whether each of the rows [R, B, C] is one of the same request's [R, E], E > 0."""
    ordered = tf.sort(some, axis=1)
    flat = tf.reshape(rows, [tf.shape(rows)[0], -1])
    place = tf.minimum(tf.searchsorted(ordered, flat), tf.shape(ordered)[1] - 1)
    return tf.reshape(tf.gather(ordered, place, batch_dims=1) == flat, tf.shape(rows))
