"""MIMN: a memory of the user's interests, updated behaviour by behaviour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_eta.columns import HISTORY_AGE
from keras_eta.features import Features
from keras_eta.interest.base import Columns, Interest, InterestUnit, Tables, Tensors
from keras_eta.validation import check_positive_integers, is_number


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class MIMNCell(tf.keras.layers.Layer):
    """One behaviour of MIMN: a Neural Turing Machine with rebalanced writes, and a GRU over its slots.

    A GRU, the controller, reads the behaviour e and the last read vector and gives two keys k, an erase and an add
    vector. With M the memory before the behaviour and w = softmax_i cos(k, M_i) for each key:

    - read: sum_i w_i M_i;
    - write: w~ = w * softmax(W_g g), g the sum of all w~ so far, and M <- (1 - w~ (x) erase) * M + w~ (x) add;
    - induction: S_i <- GRU(S_i, [M_i, e]) for the slots i of the largest read weights.

    Args:
        num_slots: m.
        memory_dim: width of a slot.
        controller_units: units of the controller.
        induction_slots: slots i that the GRU updates for each behaviour.

    Call arguments:
        inputs: float32 [R, D], one behaviour.
        states: memory [R, m, memory_dim], induction [R, m, memory_dim], writes [R, m] (g), controller [R, units], read
            [R, memory_dim].

    Returns:
        The read vector, and the new states.

    Reference:
        MIMN, arXiv 1905.09248, Section 4; the controller's inputs, sigmoid and tanh as in the authors' code.
    """

    def __init__(
        self, num_slots: int, memory_dim: int, controller_units: int, induction_slots: int, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_slots = num_slots
        self.memory_dim = memory_dim
        self.controller_units = controller_units
        self.induction_slots = induction_slots
        self.controller = tf.keras.layers.GRUCell(controller_units, name="controller", dtype=tf.float32)
        self.heads = tf.keras.layers.Dense(4 * memory_dim, name="heads", dtype=tf.float32)
        self.induction = tf.keras.layers.GRUCell(memory_dim, name="induction", dtype=tf.float32)

    @property
    def state_size(self) -> list[tf.TensorShape]:
        """Shapes of the states of one row."""
        slots, width = [self.num_slots], [self.memory_dim]
        shapes = [slots + width, slots + width, slots, [self.controller_units], width]
        return [tf.TensorShape(shape) for shape in shapes]

    @property
    def output_size(self) -> int:
        """Width of the read vector."""
        return self.memory_dim

    def build(self, input_shape: Any) -> None:
        width = tf.TensorShape(input_shape)[-1] + self.memory_dim
        for layer, units in ((self.controller, width), (self.heads, self.controller_units), (self.induction, width)):
            with tf.name_scope(layer.name):
                layer.build([None, units])
        # Slots that were alike would be addressed alike, and stay so.
        self.initial_memory = self.add_weight(
            name="initial_memory", shape=[self.num_slots, self.memory_dim], initializer="glorot_uniform"
        )
        self.rebalance = self.add_weight(
            name="rebalance", shape=[self.num_slots, self.num_slots], initializer="glorot_uniform"
        )
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, states: Sequence[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        memory, induction, writes, controller, read = states
        hidden, _ = self.controller(tf.concat([inputs, read], axis=-1), controller)
        read_key, write_key, erase, add = tf.split(self.heads(hidden), 4, axis=-1)
        read_weights = _address(read_key, memory)
        write_weights = _address(write_key, memory) * tf.nn.softmax(tf.linalg.matmul(writes, self.rebalance))
        # One-hot rows pick slots and put them back without a gather, whose gradient would be sparse.
        chosen = tf.one_hot(tf.math.top_k(read_weights, self.induction_slots).indices, self.num_slots)
        slots, width = self.induction_slots, self.memory_dim
        behaviours = tf.repeat(inputs, slots, axis=0)
        picked, channels = (tf.reshape(tf.linalg.matmul(chosen, x), [-1, width]) for x in (memory, induction))
        updated, _ = self.induction(tf.concat([picked, behaviours], axis=-1), channels)
        updated = tf.linalg.matmul(chosen, tf.reshape(updated, [-1, slots, width]), transpose_a=True)
        kept = 1.0 - tf.reduce_sum(chosen, axis=1)
        read = tf.linalg.matvec(memory, read_weights, transpose_a=True)
        written = write_weights[..., tf.newaxis]
        memory = (1.0 - written * tf.sigmoid(erase)[:, tf.newaxis]) * memory + written * tf.tanh(add)[:, tf.newaxis]
        induction = kept[..., tf.newaxis] * induction + updated
        return read, [memory, induction, writes + write_weights, hidden, read]

    def get_initial_state(self, inputs: Any = None, batch_size: Any = None, dtype: Any = None) -> list[tf.Tensor]:
        zeros = [tf.zeros([batch_size, *shape]) for shape in self.state_size]
        return [zeros[0] + self.initial_memory, *zeros[1:]]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_slots": self.num_slots,
            "memory_dim": self.memory_dim,
            "controller_units": self.controller_units,
            "induction_slots": self.induction_slots,
        }


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class MIMN(InterestUnit):
    """A memory of m slots that behaviours are written into, oldest first; all slots are handed to the ranker.

    The candidate never enters the memory, so the interest vector, the m slots of the memory and the m of the induction
    unit side by side, is the same for every candidate: the user state, from which any candidate is scored. It is
    updated by events, not by requests: `update_state`. Ages are not read, as they change while a state is kept.

    In training, `Interest.row_loss` is `utilization_weight` times sum_i (g_i - mean of g)^2, g_i the sum of all writes
    to slot i, which keeps slots from idling.

    The user state is float32: `memory` and `induction` [R, m, memory_dim], `writes` [R, m], `controller` [R,
    controller_units] and `read` [R, memory_dim].

    Args:
        num_slots: m.
        memory_dim: width of a slot.
        controller_units: units of the controller.
        induction_slots: slots, those of the largest read weights, that the induction unit updates for each behaviour.
        max_length: behaviours of a history that are read, the most recent ones; they are read one after another.
        utilization_weight: lambda, which the paper does not state.
        **kwargs: as `InterestUnit`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        MIMN, arXiv 1905.09248, Section 4, and Section 3 (the User Interest Center that keeps states).
    """

    has_own_loss = True
    updates_state = True
    state_names = ("memory", "induction", "writes", "controller", "read")

    def __init__(
        self,
        num_slots: int = 4,
        *,
        memory_dim: int = 32,
        controller_units: int = 32,
        induction_slots: int = 1,
        max_length: int = 100,
        utilization_weight: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sizes = {"num_slots": num_slots, "memory_dim": memory_dim, "controller_units": controller_units}
        check_positive_integers(**sizes, induction_slots=induction_slots, max_length=max_length)
        if induction_slots > num_slots:
            raise ValueError(
                "`induction_slots` must be at most `num_slots`. "
                f"Received: induction_slots={induction_slots}, num_slots={num_slots}"
            )
        if not is_number(utilization_weight) or utilization_weight < 0:
            raise ValueError(
                "`utilization_weight` must be a number of at least 0. "
                f"Received: utilization_weight={utilization_weight!r}"
            )
        self.num_slots = num_slots
        self.memory_dim = memory_dim
        self.controller_units = controller_units
        self.induction_slots = induction_slots
        self.max_length = max_length
        self.utilization_weight = float(utilization_weight)
        cell = MIMNCell(**sizes, induction_slots=induction_slots, name="cell", dtype=tf.float32)
        # Histories are most recent first.
        self.rnn = tf.keras.layers.RNN(cell, return_state=True, go_backwards=True, name="rnn", dtype=tf.float32)

    def bind(self, features: Features, tables: Tables) -> None:
        super().bind(features, tables)
        self._width = sum(feature.width for feature in features.sequence_features(features.sequence(self.sequence)))

    def build(self, input_shape: Any = None) -> None:
        with tf.name_scope(self.rnn.name):
            self.rnn.build(tf.TensorShape([None, None, self._width]))
        super().build(input_shape)

    def call(self, candidate: Columns, history: Columns, training: bool = False, jit_compile: bool = False) -> Interest:
        state = self.user_state(history)
        interest = self.from_state(candidate, state)
        if not training:
            return interest
        writes = state["writes"]
        unequal = writes - tf.reduce_mean(writes, axis=-1, keepdims=True)
        return interest._replace(row_loss=self.utilization_weight * tf.reduce_sum(unequal**2, axis=-1))

    def user_state(self, history: Columns) -> Tensors:
        rows = tf.shape(next(iter(history.ids.values())))[0]
        initial = self.rnn.cell.get_initial_state(batch_size=rows)
        return self._read(initial, history.first(self.max_length))

    def update_state(self, state: Tensors, behaviours: Columns) -> Tensors:
        """The state after further behaviours: that of the whole history, if all of it is within `max_length`.

        Args:
            state: a `user_state`.
            behaviours: columns [R, B] of those after the ones in `state`, most recent first; all of them are read.

        Returns:
            The new state.
        """
        return self._read([state[name] for name in self.state_names], behaviours)

    def from_state(self, candidate: Columns, state: Tensors) -> Interest:
        slots = tf.concat([state["memory"], state["induction"]], axis=1)
        width = 2 * self.num_slots * self.memory_dim
        # Every write adds to the sums; nothing written is an empty history.
        written = tf.reduce_any(state["writes"] > 0, axis=-1)[:, tf.newaxis]
        vector = tf.where(written, tf.reshape(slots, [-1, width]), 0.0)
        shape = tf.shape(next(iter(candidate.ids.values())))
        vector = tf.broadcast_to(vector[:, tf.newaxis, :], [shape[0], shape[1], width])
        return Interest(tf.cast(vector, self.compute_dtype))

    def _read(self, initial: list[tf.Tensor], behaviours: Columns) -> Tensors:
        by_name = behaviours.by_name.items()
        vectors = tf.concat([tf.cast(x, tf.float32) for name, x in by_name if name != HISTORY_AGE], axis=-1)
        # `RNN` looks at the first behaviour even where there is none.
        missing = tf.maximum(1 - tf.shape(vectors)[1], 0)
        vectors = tf.pad(vectors, [[0, 0], [0, missing], [0, 0]])
        mask = tf.pad(behaviours.mask, [[0, 0], [0, missing]])
        _, *state = self.rnn(vectors, mask=mask, initial_state=initial)
        return dict(zip(self.state_names, state, strict=True))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_slots": self.num_slots,
            "memory_dim": self.memory_dim,
            "controller_units": self.controller_units,
            "induction_slots": self.induction_slots,
            "max_length": self.max_length,
            "utilization_weight": self.utilization_weight,
        }


def _address(key: tf.Tensor, memory: tf.Tensor) -> tf.Tensor:
    """softmax_i cos(k, M_i), [R, m], of keys [R, D] and memories [R, m, D]."""
    return tf.nn.softmax(tf.linalg.matvec(tf.math.l2_normalize(memory, axis=-1), tf.math.l2_normalize(key, axis=-1)))
