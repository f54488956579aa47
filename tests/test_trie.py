"""The trie of semantic ids, against a dictionary of prefixes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_eta.ops.trie import most_children, trie_children, trie_keys

SIZES = (3, 4, 2)


@given(st.sets(st.tuples(*(st.integers(0, size - 1) for size in SIZES)), min_size=1))
def test_every_prefix_leads_to_its_items_and_to_no_other(items: set[tuple[int, ...]]) -> None:
    codes = np.array(list(items))
    keys, order = trie_keys(codes, SIZES)
    nodes: dict[tuple[int, ...], int] = {(): 0}
    for level, size in enumerate(SIZES):
        prefixes = sorted(nodes)
        most = most_children(keys[level], size)
        children, of_children = trie_children(keys[level], np.array([nodes[x] for x in prefixes]), size, most)
        # None behind the last, and by ascending codes.
        there = (children.numpy() >= 0).astype(int)
        assert (np.diff(there) <= 0).all()
        assert (np.diff(of_children)[there[:, 1:] > 0] > 0).all()
        assert there.sum(axis=1).max() == most
        found = {
            (*prefix, int(code)): int(child)
            for prefix, nodes_below, codes_below in zip(prefixes, children, of_children, strict=True)
            for child, code in zip(nodes_below, codes_below, strict=True)
            if child >= 0
        }
        assert set(found) == {item[: level + 1] for item in items}
        assert sorted(found.values()) == list(range(len(found)))
        nodes = found
    assert {tuple(codes[order[node]]): node for node in nodes.values()} == nodes


def test_what_is_no_node_has_no_children() -> None:
    keys, _ = trie_keys(np.array([[2, 3, 1]]), SIZES)
    children, codes_of_children = trie_children(keys[0], np.array([[-1], [0]]), 3, 2)
    assert children.numpy().tolist() == [[[-1, -1]], [[0, -1]]]
    assert codes_of_children.numpy().tolist() == [[[0, 0]], [[2, 0]]]


def test_items_of_equal_codes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Every item must have codes of its own\. Received: 1 that do not"):
        trie_keys(np.array([[0, 1, 1], [0, 1, 1], [0, 1, 0]]), SIZES)
