"""TWIN: one relevance for retrieval and attention."""

from __future__ import annotations

import functools
import math
from typing import Any

import tensorflow as tf

from keras_eta.columns import HISTORY_AGE
from keras_eta.features import Features
from keras_eta.interest.base import Columns, Interest, InterestUnit, Retrieved, Tables
from keras_eta.interest.top_k import largest_k
from keras_eta.ops import project
from keras_eta.validation import check_positive_integers


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class TWIN(InterestUnit):
    """Retrieves and attends by one relevance: the same weights in both stages, so that none is lost that attends.

    The features of a behaviour are split in two: K_h, those that it shares with a candidate (the item's), and K_c, the
    cross features of user and item (the attributes of its sequence, and its age where `features.age` is set). For each
    head

        alpha = (K_h W^h) (q W^q)^T / sqrt(key_dim) + (K_c W^c) beta

    where W^c is block-diagonal: each cross feature becomes one scalar, weighted by its own beta. Unlike the first term,
    the second does not depend on the candidate. From the rankings of the heads by alpha, ties to the more recent
    behaviour, behaviours are taken in turn until K different ones are found: the heads' first ones, then their second
    ones and so on. Interest = concat over heads of softmax(alpha)^T K W^v, over the K found and with K unsplit, times
    W^o.

    `Retrieved.scores` are the largest alpha of the heads.

    Args:
        top_k: K, behaviours to retrieve.
        num_heads: H.
        key_dim: width of a head. `None`: the candidate's width divided by the heads, rounded up.
        projected_table: whether K_h W^h is kept as tables by vocabulary row, which a request of several candidates then
            gathers in place of projecting its whole history. They take H * key_dim floats per row and give the same
            relevances bit for bit. W^h learns, so `Ranker.train_step` projects all rows again after each step; a loop
            of one's own, or code that assigns weights, calls `refresh`.
        **kwargs: as `InterestUnit`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        TWIN, arXiv 2302.02352, Section 4.2, Eqs. (4) to (8), and Section 4.3.
    """

    score_name = "relevances"
    explains = True

    def __init__(
        self,
        top_k: int = 48,
        *,
        num_heads: int = 4,
        key_dim: int | None = None,
        projected_table: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_positive_integers(top_k=top_k, num_heads=num_heads, **({} if key_dim is None else {"key_dim": key_dim}))
        self.top_k = top_k
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.projected_table = projected_table
        self.projected: dict[str, tf.Variable] = {}

    def bind(self, features: Features, tables: Tables) -> None:
        super().bind(features, tables)
        self._inherent = {feature.name: feature.width for feature in features.item_features}
        attributes = features.sequence(self.sequence).attributes
        self._cross = {feature.name: feature.width for feature in attributes}
        if features.age is not None:
            self._cross[HISTORY_AGE] = features.age.embedding_dim
        # The mean of several values has no row to keep its projection in.
        self._tables = {
            feature.name: tables[feature.name]
            for feature in features.item_features
            if feature.is_id and not feature.max_values
        }

    def build(self, input_shape: Any = None) -> None:
        inherent, cross = sum(self._inherent.values()), sum(self._cross.values())
        self._head_width = self.key_dim or -(-inherent // self.num_heads)
        units = self.num_heads * self._head_width

        def weight(name: str, shape: list[int], initializer: str = "glorot_uniform", **arguments: Any) -> tf.Variable:
            arguments["experimental_autocast"] = False
            return self.add_weight(name=name, shape=shape, dtype=tf.float32, initializer=initializer, **arguments)

        self.query_kernel = weight("query_kernel", [inherent, units])
        self.key_kernel = weight("key_kernel", [inherent, units])
        self.value_kernel = weight("value_kernel", [inherent + cross, units])
        self.output_kernel = weight("output_kernel", [units, units])
        if self._cross:
            self.cross_kernel = weight("cross_kernel", [cross, self.num_heads])
            self.cross_scale = weight("cross_scale", [len(self._cross), self.num_heads], "ones")
        if self.projected_table:
            self.projected = {
                name: weight(f"projected_{index}", [table.input_dim, units], "zeros", trainable=False)
                for index, (name, table) in enumerate(self._tables.items())
            }
            self.refresh()
        super().build(input_shape)

    def call(self, candidate: Columns, history: Columns, training: bool = False, jit_compile: bool = False) -> Interest:
        queries = self._split(tf.tensordot(_concat(candidate, self._inherent), self.query_kernel, axes=1))
        queries /= math.sqrt(self._head_width)
        # alpha is linear in K_h: (K_h W^h) q = K_h (W^h q), and one vector is projected in place of many behaviours.
        weighted = tf.einsum("rchk,dhk->rchd", queries, self._split(self.key_kernel))
        positions, mask = self._retrieve(queries, weighted, history)
        behaviours = history.take(positions, mask)
        relevances = tf.linalg.matmul(weighted, _concat(behaviours, self._inherent), transpose_b=True)
        relevances += tf.einsum("rckh->rchk", self.cross_terms(behaviours))
        weights = tf.nn.softmax(tf.where(mask[:, :, tf.newaxis], relevances, relevances.dtype.min))
        weights = tf.where(mask[:, :, tf.newaxis], weights, tf.zeros_like(weights))
        pooled = tf.linalg.matmul(weights, _concat(behaviours, {**self._inherent, **self._cross}))
        heads = tf.einsum("rchd,dhk->rchk", pooled, self._split(self.value_kernel))
        vector = tf.einsum("rchk,hku->rcu", heads, self._output_by_head())
        largest = tf.reduce_max(relevances, axis=2)
        scores = tf.where(mask, largest, tf.zeros_like(largest))
        return Interest(tf.cast(vector, self.compute_dtype), Retrieved(positions, mask, scores), weights)

    def cross_terms(self, columns: Columns) -> tf.Tensor:
        """The part of the relevance that no candidate has a say in, (K_c W^c) beta.

        Args:
            columns: of behaviours, [R, ...].

        Returns:
            float32 [R, ..., H].
        """
        if not self._cross:
            shape = tf.shape(next(iter(columns.ids.values())))
            return tf.zeros(tf.concat([shape, [self.num_heads]], axis=0))
        kernel = self.cross_kernel * tf.repeat(self.cross_scale, list(self._cross.values()), axis=0)
        return tf.tensordot(_concat(columns, self._cross), kernel, axes=1)

    def _retrieve(self, queries: tf.Tensor, weighted: tf.Tensor, history: Columns) -> tuple[tf.Tensor, tf.Tensor]:
        """Positions and mask [R, C, K]."""
        if queries.shape[1] == 1:
            products = tf.linalg.matmul(weighted[:, 0], _concat(history, self._inherent), transpose_b=True)
            products = products[:, :, tf.newaxis]
        else:
            keys = tf.transpose(self._split(self.projected_keys(history)), [0, 2, 1, 3])
            products = tf.linalg.matmul(tf.transpose(queries, [0, 2, 1, 3]), keys, transpose_b=True)
        # [R, H, C, L], in which a transposition would cost more than in [R, H, C, K].
        relevances = products + tf.transpose(self.cross_terms(history), [0, 2, 1])[:, :, tf.newaxis]
        shape = tf.shape(relevances)
        relevances = tf.reshape(relevances, [shape[0], shape[1] * shape[2], shape[3]])
        ranked = largest_k(relevances, history.mask[:, tf.newaxis, :], self.top_k)
        by_head = [shape[0], self.num_heads, shape[2], self.top_k]
        return take_in_turn(
            *(tf.transpose(tf.reshape(x, by_head), [0, 2, 1, 3]) for x in (ranked.positions, ranked.mask))
        )

    def projected_keys(self, columns: Columns) -> tf.Tensor:
        """K_h W^h, the same bit for bit with and without `projected_table`.

        Args:
            columns: of behaviours, [R, ...].

        Returns:
            float32 [R, ..., H * key_dim].
        """
        parts = [
            tf.gather(self.projected[name], columns.ids[name])
            if name in self.projected
            else project(tf.cast(columns.by_name[name], tf.float32), kernel)
            for name, kernel in self._key_kernels().items()
        ]
        return functools.reduce(tf.add, parts)

    def refresh(self) -> None:
        """Projects all rows of the tables again; nothing without `projected_table`."""
        kernels = self._key_kernels() if self.projected else {}
        for name, table in self.projected.items():
            table.assign(project(tf.convert_to_tensor(self._tables[name].embeddings), kernels[name]))

    def after_step(self, step: tf.Tensor) -> None:
        self.refresh()

    def _key_kernels(self) -> dict[str, tf.Tensor]:
        """The rows of W^h for each inherent feature."""
        return dict(zip(self._inherent, tf.split(self.key_kernel, list(self._inherent.values())), strict=True))

    def _split(self, x: tf.Tensor) -> tf.Tensor:
        """[..., H * key_dim] -> [..., H, key_dim]."""
        return tf.reshape(x, tf.concat([tf.shape(x)[:-1], [self.num_heads, self._head_width]], axis=0))

    def _output_by_head(self) -> tf.Tensor:
        return tf.reshape(self.output_kernel, [self.num_heads, self._head_width, -1])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "top_k": self.top_k,
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "projected_table": self.projected_table,
        }


def take_in_turn(positions: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The first K different positions of H rankings: the first of each in turn, then the second of each, and so on.

    Args:
        positions: int32 [..., H, K], in each row different where the mask is true; H and K known statically.
        mask: bool [..., H, K].

    Returns:
        int32 [..., K] positions in the order in which they are taken, 0 where there are no more, and their mask.
    """
    rank, (num_heads, top_k) = positions.shape.rank, positions.shape[-2:]
    size = num_heads * top_k
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    shape = tf.concat([tf.shape(positions)[:-2], [size]], axis=0)
    turns, real = (tf.reshape(tf.transpose(x, swapped), shape) for x in (positions, mask))
    # Sorted by position, then by turn; all but the first of equal positions are taken already.
    last = tf.int64.max
    code = tf.sort(tf.where(real, tf.cast(turns, tf.int64) * size + tf.range(size, dtype=tf.int64), last), axis=-1)
    position, turn = code // size, code % size
    again = tf.equal(position[..., 1:], position[..., :-1])
    again = tf.pad(again, [[0, 0]] * (rank - 2) + [[1, 0]])
    turn = tf.where(again | tf.equal(code, last), tf.constant(size, tf.int64), turn)
    waiting, index = tf.math.top_k(size - turn, top_k)
    found = waiting > 0
    taken = tf.gather(position, index, batch_dims=rank - 2)
    return tf.cast(tf.where(found, taken, tf.zeros_like(taken)), tf.int32), found


def _concat(columns: Columns, names: Any) -> tf.Tensor:
    """The vectors of some features side by side, float32 [..., D]."""
    return tf.concat([tf.cast(columns.by_name[name], tf.float32) for name in names], axis=-1)
