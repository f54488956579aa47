"""The interface of interest units, and the encoded columns that they read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from keras_eta.columns import HISTORY
from keras_eta.features import Features

Tensors = dict[str, tf.Tensor]
Tables = Mapping[str, tf.keras.layers.Embedding]


class Columns:
    """Encoded columns of candidates or behaviours, whose vectors are looked up when asked for and not before.

    Args:
        ids: int32 rows of embedding tables, or float32 values, by feature name: [R, C] of candidates, [R, L] of a
            history most recent first, [R, C, K] of what was retrieved; of a feature of V values with an axis of V more.
        mask: bool [R, C], [R, L] or [R, C, K], false at padding.
        embed: looks columns up: the vectors [..., width] by feature name.
        dtype: of `vectors`: the compute dtype of the policy.
    """

    def __init__(
        self,
        ids: Tensors,
        mask: tf.Tensor,
        embed: Callable[[Tensors], Tensors],
        dtype: tf.DType | str = tf.float32,
    ) -> None:
        self.ids = ids
        self.mask = mask
        self._embed = embed
        self.dtype = dtype
        self._by_name: Tensors | None = None

    @property
    def by_name(self) -> Tensors:
        """The vectors of each column, [..., width], by feature name; embeddings that are hashed come in float32."""
        if self._by_name is None:
            self._by_name = self._embed(self.ids)
        return self._by_name

    @property
    def vectors(self) -> tf.Tensor:
        """The concatenation of `by_name`, [..., D], in the policy's precision."""
        return tf.concat([tf.cast(vector, self.dtype) for vector in self.by_name.values()], axis=-1)

    def take(self, positions: tf.Tensor, mask: tf.Tensor) -> Columns:
        """The columns at some positions of each row.

        Args:
            positions: int32 [R, ...], indices into the second axis.
            mask: bool of the same shape, false where there is no behaviour.

        Returns:
            Columns of the shape of `positions`.
        """
        taken = {name: tf.gather(column, positions, batch_dims=1) for name, column in self.ids.items()}
        return Columns(taken, mask, self._embed, self.dtype)

    def first(self, count: int) -> Columns:
        """The first `count` positions of each row: of a history, the most recent behaviours."""
        mask = None if self.mask is None else self.mask[:, :count]
        return Columns({name: column[:, :count] for name, column in self.ids.items()}, mask, self._embed, self.dtype)


class Retrieved(NamedTuple):
    """The behaviours that a unit retrieved for each candidate.

    Attributes:
        positions: int32 [R, C, K], indices into the sequence, most recent first; 0 where `mask` is false.
        mask: bool [R, C, K], false where fewer than K behaviours were retrieved.
        scores: [R, C, K], what they were retrieved by, as the unit's `score_name` says; `None` for a unit that
            retrieves without a score.
    """

    positions: tf.Tensor
    mask: tf.Tensor
    scores: Any = None


class Interest(NamedTuple):
    """What a unit reads out of a sequence for each candidate.

    Attributes:
        vector: float32 [R, C, D], zero where the sequence is empty.
        retrieved: the behaviours that were attended to; `None` where the unit attends to none.
        weights: float32 [R, C, H, K], attention weights of `retrieved`.
        auxiliary_logits: float32 [R, C] of a click loss of the unit's own, in training only; `None` without one.
        row_loss: float32 [R], another loss of the unit's own per row, in training only; `None` without one.
        matches: int32 [R, C] by feature name, numbers of behaviours with the candidate's value, which `explain` gives
            as `<unit>_<feature>_count`; `None` where the unit counts none.
    """

    vector: tf.Tensor
    retrieved: Retrieved | None = None
    weights: Any = None
    auxiliary_logits: tf.Tensor | None = None
    row_loss: tf.Tensor | None = None
    matches: Tensors | None = None


class InterestUnit(tf.keras.layers.Layer):
    """Turns a candidate and a sequence of behaviours into an interest vector. Subclasses implement `call`.

    A ranker makes the tables that `make_tables` asks for, hands all tables in use to `bind`, and then calls the unit.

    Args:
        own_embeddings: whether the unit looks candidates and behaviours up in tables of its own, which no other unit
            shares.
        sequence: name of the sequence of `Features` that the unit reads.
        name: name of the unit, which is unique in a ranker. `None`: the class's in lower case, words joined by `_`.

    Attributes:
        score_name: what `Retrieved.scores` are, in the plural: the name of that output of `explain`.
        nearest_first: whether the smallest score is the nearest.
        explains: whether `Interest.retrieved` and `weights` are given, so that `explain` can show them.
        has_own_loss: whether the unit gives `Interest.auxiliary_logits` or `row_loss` in training.
        auxiliary_weight: weight of the loss of `Interest.auxiliary_logits`.
        state_names: names of the tensors of `user_state`; empty where the unit has none.
        updates_state: whether `update_state` adds behaviours to a state.
    """

    score_name: str | None = None
    nearest_first = False
    explains = False
    has_own_loss = False
    auxiliary_weight = 1.0
    state_names: tuple[str, ...] = ()
    updates_state = False

    def __init__(
        self, *, own_embeddings: bool = False, sequence: str = HISTORY, name: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(name=name or _snake_case(type(self).__name__), **kwargs)
        self.own_embeddings = own_embeddings
        self.sequence = sequence

    def make_tables(self, features: Features, regularizer: Any = None) -> dict[str, tf.keras.layers.Embedding]:
        """Creates the embedding tables that must be of a kind of their own, e.g. ones that keep fingerprints.

        Args:
            features: the columns, with known vocabulary sizes.
            regularizer: of the embedding tables.

        Returns:
            Tables by feature name; most units need none.
        """
        return {}

    def bind(self, features: Features, tables: Tables) -> None:
        """Takes note of the columns and tables in use; called once, when the ranker is constructed.

        Args:
            features: the columns.
            tables: the embedding tables that the unit's columns are looked up in, by feature name.

        Raises:
            ValueError: if the unit needs a column that is missing, or another kind of table.
        """

    def call(self, candidate: Columns, history: Columns, training: bool = False, jit_compile: bool = False) -> Interest:
        """Reads the interest in each candidate out of the history.

        Args:
            candidate: columns [R, C] of the item's features.
            history: columns [R, L] of the sequence, most recent first.
            training: whether gradients must flow.
            jit_compile: whether XLA may compile the search, where the unit gains by it.

        Returns:
            An `Interest` of [R, C] candidates.
        """
        raise NotImplementedError

    def user_state(self, history: Columns) -> Tensors:
        """What depends on the user alone: the tensors of `state_names`, [R, ...]. Units without a state raise."""
        raise NotImplementedError(f"{type(self).__name__} has no state that depends on the user alone.")

    def from_state(self, candidate: Columns, state: Tensors) -> Interest:
        """The interest in each candidate out of a `user_state`. Units without a state raise."""
        raise NotImplementedError(f"{type(self).__name__} has no state that depends on the user alone.")

    def update_state(self, state: Tensors, behaviours: Columns) -> Tensors:
        """The `user_state` after further behaviours [R, B], most recent first. Units without `updates_state` raise."""
        raise NotImplementedError(f"{type(self).__name__} can't add behaviours to a state.")

    def row_state(self) -> dict[str, list[tf.Variable]]:
        """Variables with a row per index of a vocabulary, by the feature's name, which a warm start carries by id."""
        return {}

    def refresh(self) -> None:
        """Derives what the unit keeps beside its embeddings from them again; most units keep nothing."""

    def after_step(self, step: tf.Tensor) -> None:
        """Called by `Ranker.train_step` with the number of steps taken; most units do nothing."""

    def compiled_lengths(self, longest: int) -> list[int]:
        """The lengths of histories for which XLA compiles the unit with `jit_compile`; empty: none."""
        return []

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "own_embeddings": self.own_embeddings, "sequence": self.sequence}


def _snake_case(name: str) -> str:
    """`ETAInterest` -> `eta_interest`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
