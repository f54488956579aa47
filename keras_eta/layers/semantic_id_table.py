"""Raw item ids to the tokens of their semantic ids, and back along a trie."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_eta.columns import ITEM_ID, Feature
from keras_eta.features import Features
from keras_eta.layers.feature_lookup import FeatureLookup
from keras_eta.ops.trie import most_children, trie_children, trie_keys
from keras_eta.semantic_ids import SemanticIds

# Rows of padding and of unknown items, which have no tokens.
_NO_ITEMS = 2


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class SemanticIdTable(tf.keras.layers.Layer):
    """The semantic ids of all items by the rows of a `FeatureLookup`, and the trie that holds decoding to them.

    `SemanticIdTable.of(ids)` makes one; the constructor makes an empty one of the same sizes, which Keras fills when it
    reads a saved model.

    Args:
        lookup: of the raw item ids.
        sizes: how many values each of the T tokens of an id can take.
        num_nodes: nodes of the trie at depth 1 to T; the last is the number of items.
        num_children: the most children of a node at depth 0 to T - 1.

    Call arguments:
        rows: integers [...], rows of items: 0 is padding, 1 an unknown item.

    Returns:
        int32 [..., T] tokens, counted through all levels from 1 on, so that each level has tokens of its own; 0 where
        there is no item.
    """

    def __init__(
        self,
        lookup: FeatureLookup,
        sizes: Sequence[int],
        num_nodes: Sequence[int],
        num_children: Sequence[int],
        name: str = "semantic_ids",
    ) -> None:
        super().__init__(name=name)
        self.lookup = lookup
        self.sizes = tuple(sizes)
        self.num_nodes = tuple(num_nodes)
        self.num_children = tuple(num_children)

    @classmethod
    def of(cls, ids: SemanticIds, max_history_length: int, user: Feature | None = None) -> SemanticIdTable:
        """The table of these ids.

        Args:
            ids: the semantic ids.
            max_history_length: L, of the histories that are looked up.
            user: an id feature of the user, looked up as well: hashed into its `num_oov_indices` rows, from 1 on.
        """
        text = ids.item_ids.dtype == object
        item = Feature(ITEM_ID, "string" if text else "int64")
        users = () if user is None else (user,)
        lookup = FeatureLookup(Features(item, user=users, max_history_length=max_history_length))
        lookup.set_vocabulary(ITEM_ID, ids.item_ids)
        if user is not None:
            # A vocabulary must hold something: what is nobody's id.
            lookup.set_vocabulary(user.name, ["\0nobody"] if user.dtype == "string" else [np.iinfo(np.int64).max])
        keys, items = trie_keys(ids.codes, ids.sizes)
        children = [most_children(of_depth, size) for of_depth, size in zip(keys, ids.sizes, strict=True)]
        table = cls(lookup, ids.sizes, [len(of_depth) for of_depth in keys], children)
        table.build()
        table.vocabulary.assign(_digest(ids.item_ids))
        table.codes.assign(ids.codes)
        table.items.assign(items)
        for variable, of_depth in zip(table.keys, keys, strict=True):
            variable.assign(of_depth)
        return table

    def build(self, input_shape: Any = None) -> None:
        def constant(name: str, shape: Sequence[int], dtype: str) -> tf.Variable:
            return self.add_weight(name=name, shape=shape, dtype=dtype, initializer="zeros", trainable=False)

        # Tells weights of other items apart, whose sizes may be the same.
        self.vocabulary = constant("vocabulary", [], "int64")
        self.codes = constant("codes", [self.num_nodes[-1], len(self.sizes)], "int32")
        self.items = constant("items", [self.num_nodes[-1]], "int64")
        self.keys = [constant(f"keys_{depth}", [size], "int64") for depth, size in enumerate(self.num_nodes, 1)]
        super().build(input_shape)

    @property
    def num_tokens(self) -> int:
        """Tokens of all levels, without 0."""
        return sum(self.sizes)

    @property
    def first_tokens(self) -> np.ndarray:
        """The token of code 0 of each level, int32 [T]."""
        first: np.ndarray = np.cumsum([1, *self.sizes[:-1]]).astype(np.int32)
        return first

    def call(self, rows: tf.Tensor) -> tf.Tensor:
        known = (rows >= _NO_ITEMS)[..., tf.newaxis]
        return tf.where(known, self.targets(rows) + self.first_tokens, 0)

    def targets(self, rows: tf.Tensor) -> tf.Tensor:
        """The codes [..., T] of rows that have some; of others those of any item."""
        return tf.gather(self.codes, tf.maximum(rows - _NO_ITEMS, 0))

    def children(self, level: int, nodes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The children of nodes [...] of a depth, and the codes that lead to them, as `trie_children` gives them."""
        return trie_children(self.keys[level], nodes, self.sizes[level], self.num_children[level])

    def rows_of(self, leaves: tf.Tensor) -> tf.Tensor:
        """The rows int64 of items by their nodes, of depth T; 0 for nodes below 0."""
        rows = tf.gather(self.items, tf.maximum(leaves, 0)) + _NO_ITEMS
        return tf.where(leaves >= 0, rows, 0)

    def nodes_above(self, rows: np.ndarray) -> list[np.ndarray]:
        """Bool [nodes of that depth], of depth 1 to T: whether one of some items is there or below; outside of graphs.

        Args:
            rows: integers [n], rows of items; those below 2 are none.
        """
        rows = np.asarray(rows)
        codes = self.codes.numpy()[rows[rows >= _NO_ITEMS] - _NO_ITEMS]
        node = np.zeros(len(codes), np.int64)
        above = []
        for level, size in enumerate(self.sizes):
            node = np.searchsorted(self.keys[level].numpy(), node * size + codes[:, level])
            above.append(np.isin(np.arange(self.num_nodes[level]), node))
        return above

    def raw_ids_by_row(self) -> np.ndarray:
        """The raw ids of all rows, outside of any graph: int64, or bytes as objects; 0 or b"" where no item is."""
        ids, places = (tensor.numpy() for tensor in self.lookup.tables[ITEM_ID].lookup_table.export())
        none = np.full(_NO_ITEMS, b"" if ids.dtype == object else 0, ids.dtype)
        return np.concatenate([none, ids[np.argsort(places)]])

    def get_config(self) -> dict[str, Any]:
        lookup = tf.keras.utils.serialize_keras_object(self.lookup)
        return {
            "name": self.name,
            "lookup": lookup,
            "sizes": self.sizes,
            "num_nodes": self.num_nodes,
            "num_children": self.num_children,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SemanticIdTable:
        return cls(**{**config, "lookup": tf.keras.utils.deserialize_keras_object(config["lookup"])})


def _digest(item_ids: np.ndarray) -> int:
    """What tells items in their order apart from others, int64."""
    listed = "\0".join(map(str, item_ids)).encode()
    return int.from_bytes(hashlib.sha256(listed).digest()[:8], "little", signed=True)
