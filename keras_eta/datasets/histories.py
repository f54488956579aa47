"""Where the behaviours before an impression lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from keras_eta.datasets.columns import Column


class BehaviourLog(Protocol):
    """A log that sequences are ranges of: `Interactions`, or another with a notion of the past of its own."""

    @property
    def columns(self) -> Mapping[str, Column]:
        """Columns by name, one row per behaviour."""

    def __len__(self) -> int: ...

    def bounds(self, user_id: Column, timestamp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Interactions.bounds`."""

    def check_bounds(self, start: np.ndarray, end: np.ndarray, user_id: Column, timestamp: np.ndarray) -> None:
        """As `Interactions.check_bounds`."""


class Histories(NamedTuple):
    """Where the behaviours before each of n impressions lie.

    Attributes:
        log: the behaviours.
        start: int64 [n], first log row of each history.
        end: int64 [n], the log row after the last of each history.
    """

    log: BehaviourLog
    start: np.ndarray
    end: np.ndarray
