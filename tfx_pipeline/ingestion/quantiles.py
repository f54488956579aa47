"""Exact quantiles of integers, by Beam, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

_DIGIT_BITS = 16
_ROUNDS = 64 // _DIGIT_BITS
_RADIX = 1 << _DIGIT_BITS
# Adding it maps int64 to uint64 in the same order.
_SIGN = np.uint64(1 << 63)


class _Search(NamedTuple):
    """What is known of where a quantile lies: its leading digits, and its rank among the values that share them."""

    prefix: int
    rank: int


class ExactQuantiles(beam.PTransform):
    """The r-th smallest of n integers, r = ceil(fraction * n), for each fraction.

    A radix search from the highest digit of 16 bits down: four passes, each a histogram of 65,536 counts a fraction, so
    memory does not grow with the values.

    PCollection of int64 arrays of any length -> PCollection of one tuple of integers, or of `None` where there are no
    values.

    Args:
        fractions: in (0, 1].
    """

    def __init__(self, fractions: Sequence[float]) -> None:
        super().__init__()
        self._fractions = tuple(fractions)

    def expand(self, arrays: Any) -> Any:
        searches = arrays.pipeline | "Start" >> beam.Create([None])
        for digit in range(_ROUNDS):
            searches = (
                arrays
                | f"Count{digit}"
                >> beam.ParDo(_CountDigits(digit, len(self._fractions)), beam.pvalue.AsSingleton(searches))
                | f"Sum{digit}" >> beam.CombineGlobally(_SumArrays((len(self._fractions), _RADIX)))
                | f"Descend{digit}" >> beam.Map(_descend, beam.pvalue.AsSingleton(searches), self._fractions)
            )
        return searches | "Values" >> beam.Map(_values)


class _CountDigits(beam.DoFn):
    """Histograms [fractions, 65,536] of one digit of the values that share each search's leading digits."""

    def __init__(self, digit: int, num_fractions: int) -> None:
        super().__init__()
        self._shift = np.uint64(64 - _DIGIT_BITS * (digit + 1))
        self._digit = digit
        self._shape = num_fractions, _RADIX

    def start_bundle(self) -> None:
        self._counts = np.zeros(self._shape, "int64")

    def process(self, values: np.ndarray, searches: tuple[_Search, ...] | None) -> None:
        digits = (values.astype("int64").view("uint64") ^ _SIGN) >> self._shift
        if self._digit == 0:
            self._counts += np.bincount(digits.astype("int64"), minlength=_RADIX)
        elif searches is not None:
            for counts, search in zip(self._counts, searches, strict=True):
                same = digits[digits >> np.uint64(_DIGIT_BITS) == np.uint64(search.prefix)]
                np.add.at(counts, (same & np.uint64(_RADIX - 1)).astype("int64"), 1)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        window = GlobalWindow()
        yield WindowedValue(self._counts, window.max_timestamp(), (window,))


class _SumArrays(beam.CombineFn):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._shape = shape

    def create_accumulator(self) -> np.ndarray:
        return np.zeros(self._shape, "int64")

    def add_input(self, accumulator: np.ndarray, element: np.ndarray) -> np.ndarray:
        return accumulator + element

    def merge_accumulators(self, accumulators: Any) -> np.ndarray:
        return sum(accumulators, start=self.create_accumulator())

    def extract_output(self, accumulator: np.ndarray) -> np.ndarray:
        return accumulator


def _descend(
    counts: np.ndarray, searches: tuple[_Search, ...] | None, fractions: Sequence[float]
) -> tuple[_Search, ...] | None:
    """The searches with one more digit known."""
    if searches is None:
        total = int(counts[0].sum())
        if not total:
            return None
        # 0.7 + 0.2 is a little above 0.9: no rank may be one too high for that.
        ranks = (min(max(math.ceil(fraction * total - 1e-9 * total), 1), total) for fraction in fractions)
        searches = tuple(_Search(0, rank) for rank in ranks)
    found = []
    for row, search in zip(counts, searches, strict=True):
        cumulative = np.cumsum(row)
        digit = int(np.searchsorted(cumulative, search.rank))
        found.append(_Search(search.prefix << _DIGIT_BITS | digit, search.rank - int(cumulative[digit] - row[digit])))
    return tuple(found)


def _values(searches: tuple[_Search, ...] | None) -> tuple[int, ...] | None:
    return None if searches is None else tuple(search.prefix - (1 << 63) for search in searches)
