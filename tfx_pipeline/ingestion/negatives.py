"""Negatives for logs that hold positives only, by Beam."""

from __future__ import annotations

import bisect
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import apache_beam as beam
import numpy as np

from tfx_pipeline.ingestion.counting import COUNTS, CountingDoFn
from tfx_pipeline.ingestion.impressions import UserLog, ends_before
from tfx_pipeline.ingestion.rows import Scalar, value_names
from tfx_pipeline.layouts import Layout
from tfx_pipeline.sampling import NegativeSampling

NEGATIVES = "negatives"
WITHOUT_CANDIDATE = "positives_without_candidate"

# Draws of one negative before the candidates that are left are listed.
_TRIES = 32

# Beam takes functions that its annotations don't.
_EARLIEST: Any = min

Group: TypeAlias = tuple[Any, ...]


class Candidates(NamedTuple):
    """The rows of one group, ascending in time, n of them.

    Args:
        times: their timestamps.
        items: their items.
        shelves: item -> its timestamps among them, ascending.
    """

    times: list[int]
    items: list[Scalar]
    shelves: dict[Scalar, list[int]]

    def rows_before(self, item: Scalar, before: float) -> int:
        """How many rows of an item come before a time."""
        return bisect.bisect_left(self.shelves.get(item, ()), before)


class SampleNegatives(beam.PTransform):
    """PCollection of `UserLog` -> `UserLog` with sampled negatives as the main output, and sums under `COUNTS`.

    The rules are those of `keras_eta.datasets.sample_negatives`: rows with label 1 are the positives, the item's
    columns come from the candidate, all others from the positive, and an item that the user took at that moment is
    never drawn. A negative follows its positive, has its time and the label 0, and is a behaviour of no sequence.
    Positives without a candidate are counted, and stay as behaviours that are no impressions. Draws depend on the seed
    and the user alone, not on the runner. Every worker holds the candidates of all groups: a row of the log each by
    popularity, an item and group each uniformly.

    Args:
        layout: of the log.
        sampling: what is drawn.

    Raises:
        ValueError: if `sampling.same` names another column than those of the item, the user and the context.
    """

    def __init__(self, layout: Layout, sampling: NegativeSampling) -> None:
        super().__init__()
        self._columns = _Columns(layout, sampling.same)
        self._rate = sampling.rate
        self._distinct = sampling.by == "uniform"
        self._earlier = sampling.candidates == "earlier"
        self._seed = sampling.seed

    def expand(self, logs: Any) -> Any:
        columns = self._columns
        items = (
            logs
            | "Items" >> beam.FlatMap(columns.items_of)
            | "Earliest" >> beam.CombinePerKey(_EARLIEST)
            | "Describe" >> beam.MapTuple(_description)
        )
        descriptions = beam.pvalue.AsDict(items)
        rows = logs | "Rows" >> beam.FlatMap(columns.rows_of, descriptions)
        if self._distinct:
            rows = rows | "First" >> beam.CombinePerKey(_EARLIEST) | "Regroup" >> beam.MapTuple(_by_group)
        else:
            rows = rows | "Regroup" >> beam.MapTuple(_by_group)
        pools = rows | beam.GroupByKey() | "Sort" >> beam.MapTuple(_candidates)
        draw = _Draw(columns, self._rate, self._earlier, self._seed)
        return logs | "Draw" >> beam.ParDo(draw, beam.pvalue.AsDict(pools), descriptions).with_outputs(
            COUNTS, main="logs"
        )


class _Columns:
    """Which values of a row describe the item, and which name its group."""

    def __init__(self, layout: Layout, same: Sequence[str]) -> None:
        features = layout.features
        names = value_names(layout)
        joined = () if layout.items is None else layout.items.columns
        of_item = [name for name in names if layout.source(name) in joined]
        of_item += [feature.name for feature in features.item_features if feature.name not in of_item]
        item = features.item_id.name
        unknown = [name for name in same if name not in names or name in (*layout.behaviour_columns, item)]
        if unknown:
            allowed = [name for name in names if name not in (*layout.behaviour_columns, item)]
            raise ValueError(f"`same` must name columns among {allowed}. Received: {unknown}")
        self.item = names.index(item)
        self.of_item = [names.index(name) for name in of_item]
        # Where a group's values stand: in the description of the item, or in the row.
        self._described = [of_item.index(name) for name in same if name in of_item]
        self._situation = [names.index(name) for name in same if name not in of_item]

    def items_of(self, log: UserLog) -> Iterator[tuple[Scalar, tuple[int, Group]]]:
        """Each item of a log at its earliest time, and what describes it."""
        seen = set()
        for position, item in enumerate(log.values[self.item]):
            if item not in seen:
                seen.add(item)
                yield item, (int(log.timestamps[position]), self.description(log, position))

    def rows_of(self, log: UserLog, descriptions: Mapping[Scalar, Group]) -> Iterator[tuple[tuple[Group, Scalar], int]]:
        """The group and item of each row that can be drawn, and its time."""
        for position, item in enumerate(log.values[self.item]):
            yield (self.group(log, position, descriptions[item]), item), int(log.timestamps[position])

    def description(self, log: UserLog, position: int) -> Group:
        """The values of a row that describe the item."""
        return tuple(log.values[index][position] for index in self.of_item)

    def group(self, log: UserLog, position: int, description: Group) -> Group:
        """The group of a row whose item has this description."""
        return (
            *(description[index] for index in self._described),
            *(log.values[index][position] for index in self._situation),
        )


class _Row(NamedTuple):
    """A row of a sampled log: its position in the log, the item drawn for it, and what came of it."""

    position: int
    label: int
    probability: float = 1.0
    drawn: Scalar | None = None
    is_impression: bool = True


class _Draw(CountingDoFn):
    """`UserLog` -> `UserLog` with sampled negatives."""

    def __init__(self, columns: _Columns, rate: int, earlier: bool, seed: int) -> None:
        super().__init__()
        self._columns = columns
        self._rate = rate
        self._earlier = earlier
        self._seed = seed

    def process(
        self, log: UserLog, pools: Mapping[Group, Candidates], descriptions: Mapping[Scalar, Group]
    ) -> Iterator[UserLog]:
        generator = np.random.default_rng([self._seed, zlib.crc32(repr(log.user).encode())])
        taken: dict[int, set[Scalar]] = {}
        for time, item in zip(log.timestamps.tolist(), log.values[self._columns.item], strict=True):
            taken.setdefault(time, set()).add(item)
        rows: list[_Row] = []
        for position, label in enumerate(log.labels.tolist()):
            rows += self._rows(log, position, pools, taken, generator) if label else [_Row(position, 0)]
        yield self._assembled(log, rows, descriptions)

    def _rows(
        self,
        log: UserLog,
        position: int,
        pools: Mapping[Group, Candidates],
        taken: Mapping[int, set[Scalar]],
        generator: np.random.Generator,
    ) -> list[_Row]:
        """A positive and its negatives."""
        columns = self._columns
        time = int(log.timestamps[position])
        pool = pools.get(columns.group(log, position, columns.description(log, position)), Candidates([], [], {}))
        size = bisect.bisect_left(pool.times, time) if self._earlier else len(pool.times)
        before = time if self._earlier else math.inf
        allowed = size - sum(pool.rows_before(item, before) for item in taken[time])
        if not allowed:
            self.count(WITHOUT_CANDIDATE)
            return [_Row(position, 1, is_impression=False)]
        self.count(NEGATIVES, self._rate)
        own = max(pool.rows_before(log.values[columns.item][position], before), 1) / allowed
        rows = [_Row(position, 1, min(own, 1.0))]
        for item in _drawn(pool.items, size, taken[time], self._rate, generator):
            rows.append(_Row(position, 0, pool.rows_before(item, before) / allowed, item))
        return rows

    def _assembled(self, log: UserLog, rows: Sequence[_Row], descriptions: Mapping[Scalar, Group]) -> UserLog:
        positions = np.array([row.position for row in rows], "int64")
        values = tuple([column[row.position] for row in rows] for column in log.values)
        for number, row in enumerate(rows):
            if row.drawn is not None:
                for index, value in zip(self._columns.of_item, descriptions[row.drawn], strict=True):
                    values[index][number] = value
        behaviours = np.array([row.drawn is None for row in rows])
        timestamps = log.timestamps[positions]
        sequences = tuple(chosen[positions] & behaviours for chosen in log.sequences)
        impressions = np.array([row.is_impression for row in rows])
        ends = np.where(impressions, ends_before(timestamps, sequences[0]), -1)
        labels = np.array([row.label for row in rows], "int64")
        probability = np.array([row.probability for row in rows])
        return UserLog(log.user, timestamps, ends, labels, values, sequences, probability)


def _drawn(
    items: Sequence[Scalar], size: int, taken: set[Scalar], rate: int, generator: np.random.Generator
) -> Iterator[Scalar]:
    """Draws from the first `size` items, those that are not taken; there is one."""
    left: list[Scalar] = []
    for _ in range(rate):
        if not left:
            tried = (items[place] for place in generator.integers(size, size=_TRIES).tolist())
            found = next((item for item in tried if item not in taken), None)
            if found is not None:
                yield found
                continue
            left = [item for item in items[:size] if item not in taken]
        yield left[generator.integers(len(left))]


def _description(item: Scalar, earliest: tuple[int, Group]) -> tuple[Scalar, Group]:
    return item, earliest[1]


def _by_group(key: tuple[Group, Scalar], time: int) -> tuple[Group, tuple[int, Scalar]]:
    return key[0], (time, key[1])


def _candidates(group: Group, rows: Iterable[tuple[int, Scalar]]) -> tuple[Group, Candidates]:
    times: list[int] = []
    items: list[Scalar] = []
    shelves: dict[Scalar, list[int]] = {}
    for time, item in sorted(rows):
        times.append(time)
        items.append(item)
        shelves.setdefault(item, []).append(time)
    return group, Candidates(times, items, shelves)
