"""Splits a request that is too large for one call, and joins the answers to its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from serving.client.tensors import read_tensor, write_tensor


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a request, row by row.

    Args:
        arrays: the inputs, with a row per request each.
        candidates: names of those that have candidates on their second axis; none of a signature without candidates.
        max_rows: rows of a part at most.
        max_candidates: candidates of a part at most, over all its rows; one row of one candidate at least.
    """

    arrays: Mapping[str, np.ndarray]
    candidates: Collection[str]
    max_rows: int
    max_candidates: int

    @property
    def _num_candidates(self) -> int:
        return self.arrays[next(iter(self.candidates))].shape[1] if self.candidates else 1

    @property
    def _starts(self) -> range:
        return range(0, self._num_candidates, self.max_candidates)

    def inputs(self) -> Iterator[dict[str, Any]]:
        """The inputs of each part."""
        num_rows = len(next(iter(self.arrays.values())))
        rows_of_one = max(1, min(self.max_rows, self.max_candidates // self._num_candidates))
        for row in range(0, num_rows, rows_of_one):
            rows = {name: array[row : row + rows_of_one] for name, array in self.arrays.items()}
            shared = {name: write_tensor(array) for name, array in rows.items() if name not in self.candidates}
            for start in self._starts:
                columns = slice(start, start + self.max_candidates)
                yield shared | {name: write_tensor(rows[name][:, columns]) for name in self.candidates}

    def join(self, outputs: Sequence[Any]) -> np.ndarray:
        """One output of the whole request, of those of its parts in the order of `inputs`."""
        arrays = [read_tensor(output) for output in outputs]
        if not self.candidates:
            return np.concatenate(arrays)
        starts = self._starts
        for number, array in enumerate(arrays):
            size = min(self.max_candidates, self._num_candidates - starts[number % len(starts)])
            # A batching server fills candidates up to the longest list of the batch, and leaves the answers so.
            arrays[number] = array[:, :size]
        rows = [np.concatenate(arrays[i : i + len(starts)], axis=1) for i in range(0, len(arrays), len(starts))]
        return np.concatenate(rows)
