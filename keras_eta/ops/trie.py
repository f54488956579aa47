"""A trie of items by their semantic ids, as sorted keys that stock ops can search.

A node of depth t stands for the items that share their first t codes. Nodes of a depth are numbered in the order of
their prefixes; the root is node 0 of depth 0, and the nodes of the last depth are the items themselves. The node of
depth t + 1 that `code` leads to from `node` has the key node * size + code, and its number is the place of that key
among the sorted keys of its depth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def trie_keys(codes: np.ndarray, sizes: Sequence[int]) -> tuple[list[np.ndarray], np.ndarray]:
    """The keys of the nodes of each depth, and the items in the order of the last.

    Args:
        codes: int [items, T], different rows; each code below the size of its level.
        sizes: T numbers of codes.

    Returns:
        T int64 arrays, ascending, of depth 1 to T; and int64 [items], the item of each node of depth T.

    Raises:
        ValueError: if two items have the same codes.
    """
    node = np.zeros(len(codes), np.int64)
    keys = []
    for level, size in enumerate(sizes):
        found, node = np.unique(node * size + codes[:, level], return_inverse=True)
        keys.append(found)
    if len(keys[-1]) < len(codes):
        raise ValueError(f"Every item must have codes of its own. Received: {len(codes) - len(keys[-1]):,} that do not")
    items = np.empty(len(codes), np.int64)
    items[node] = np.arange(len(codes))
    return keys, items


def most_children(keys: np.ndarray, size: int) -> int:
    """The most children that any node has.

    Args:
        keys: int64 [n], the keys of the depth below the nodes.
        size: number of codes of the level.
    """
    return int(np.unique(keys // size, return_counts=True)[1].max())


def trie_children(keys: tf.Tensor, nodes: tf.Tensor, size: int, most: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The children of nodes, by ascending codes. Those of one node are neighbours among the keys.

    Args:
        keys: int64 [n], the keys of the depth below the nodes.
        nodes: int64 [...], nodes of one depth; those below 0 have no children.
        size: number of codes of the level.
        most: as `most_children`.

    Returns:
        int64 [..., most], nodes of the next depth, -1 behind the last child; and int32 [..., most], the codes that lead
        to them, 0 there.
    """
    flat = tf.reshape(nodes, [-1])
    # No key is below 0, as those of nodes below 0 are.
    first, end = (tf.searchsorted(keys, bound, out_type=tf.int64) for bound in (flat * size, (flat + 1) * size))
    place = first[:, tf.newaxis] + tf.range(most, dtype=tf.int64)
    exists = place < end[:, tf.newaxis]
    code = tf.gather(keys, tf.minimum(place, tf.size(keys, tf.int64) - 1)) - flat[:, tf.newaxis] * size
    shape = tf.concat([tf.shape(nodes), [most]], axis=0)
    children = tf.where(exists, place, tf.constant(-1, tf.int64))
    return tf.reshape(children, shape), tf.reshape(tf.where(exists, tf.cast(code, tf.int32), 0), shape)
