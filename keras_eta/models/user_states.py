"""What of a ranker depends on the user alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tensorflow as tf

from keras_eta.interest.base import Columns, InterestUnit
from keras_eta.models.unit_embeddings import UnitEmbeddings

Inputs = Mapping[str, tf.Tensor]


class UserStates(UnitEmbeddings):
    """The methods of a ranker about states that a feature service can keep."""

    interests: list[InterestUnit]

    def user_state(self, inputs: Inputs) -> dict[str, tf.Tensor]:
        """What depends on the users alone, of all units that have such a state.

        Args:
            inputs: `history_*` [R, L] and `history_length` [R], as for `score`.

        Returns:
            Tensors [R, ...] by name: the unit's, `_` and that of the unit's `state_names`.
        """
        return self._states(lambda unit, history: unit.user_state(history), inputs)

    def update_state(self, state: Mapping[str, tf.Tensor], inputs: Inputs) -> dict[str, tf.Tensor]:
        """The state of users after further behaviours.

        Args:
            state: what `user_state` or `update_state` gave.
            inputs: `history_*` [R, B] of the behaviours since, most recent first, and `history_length` [R].

        Returns:
            As `user_state`.

        Raises:
            NotImplementedError: if a unit with a state can't be updated.
        """
        return self._states(lambda unit, new: unit.update_state(own_state(unit, state), new), inputs)

    def _states(
        self, make: Callable[[InterestUnit, Columns], dict[str, tf.Tensor]], inputs: Inputs
    ) -> dict[str, tf.Tensor]:
        return {
            f"{unit.name}_{name}": tensor
            for unit in self.interests
            if unit.state_names
            for name, tensor in make(unit, self.embedding_of(unit).sequence(inputs, unit.sequence)).items()
        }


def own_state(unit: InterestUnit, state: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The tensors of one unit's state, by the unit's own names."""
    return {name: state[f"{unit.name}_{name}"] for name in unit.state_names}
