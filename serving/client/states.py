"""User states: what a feature service keeps of each user, so that requests need not send histories."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_MODEL_NAME, _MODEL_VERSION = "model_name", "model_version"


@dataclasses.dataclass(frozen=True, eq=False)
class UserState:
    """The states of R users, by one version of one model: nothing to any other version.

    Example:
        >>> states = client.user_state(history={"item_id": [[20, 7], [5]]})
        >>> for user_id, state in zip([8, 9], states.split()):
        ...     np.savez(f"{user_id}.npz", **state.to_arrays())
        >>> with np.load("8.npz") as arrays:
        ...     state = UserState.from_arrays(arrays)
        >>> ranking = client.rank_from_state({"item_id": [10, 20, 30]}, state, user={"user_id": 8})

    Args:
        arrays: the tensors, [R, ...], by the names of the signature `user_state`: `sdim_buckets` ...
        model_name: the model that computed them.
        model_version: its version.

    Raises:
        ValueError: if there are no arrays, or they have not as many rows each.
    """

    arrays: Mapping[str, np.ndarray]
    model_name: str
    model_version: int

    def __post_init__(self) -> None:
        shapes = {name: np.shape(array) for name, array in self.arrays.items()}
        if len({shape[:1] for shape in shapes.values()} - {()}) != 1 or () in shapes.values():
            raise ValueError(f"`arrays` must hold arrays of one row per user each. Received shapes: {shapes}")

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def split(self) -> list[UserState]:
        """A state for each user."""
        return [
            dataclasses.replace(self, arrays={name: array[row : row + 1] for name, array in self.arrays.items()})
            for row in range(len(self))
        ]

    @classmethod
    def join(cls, states: Sequence[UserState]) -> UserState:
        """The states of several users, in this order, as one.

        Raises:
            ValueError: if there are none, or they are not all of one version of one model.
        """
        found = {(state.model_name, state.model_version, *sorted(state.arrays)): state for state in states}
        if len(found) != 1:
            raise ValueError(
                "`states` must be of one version of one model. "
                f"Received: {[f'{state.model_name}, version {state.model_version}' for state in found.values()]}"
            )
        (first,) = found.values()
        arrays = {name: np.concatenate([state.arrays[name] for state in states]) for name in first.arrays}
        return dataclasses.replace(first, arrays=arrays)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything as arrays, for `np.savez` or any other store of them."""
        return {
            **self.arrays,
            _MODEL_NAME: np.array(self.model_name),
            _MODEL_VERSION: np.array(self.model_version, np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> UserState:
        """The state that `to_arrays` gave.

        Raises:
            ValueError: if the model's name or version is missing.
        """
        states = {name: np.asarray(array) for name, array in arrays.items()}
        missing = [name for name in (_MODEL_NAME, _MODEL_VERSION) if name not in states]
        if missing:
            raise ValueError(f"`arrays` must have {' and '.join(missing)}. Received: {', '.join(states)}")
        name, version = states.pop(_MODEL_NAME), states.pop(_MODEL_VERSION)
        return cls(states, str(name), int(version))
