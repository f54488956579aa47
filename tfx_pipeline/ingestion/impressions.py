"""From a user's interactions to impressions as tf.Examples, by Beam."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import apache_beam as beam
import numpy as np

from keras_eta.columns import LABEL, TIMESTAMP, length_name
from keras_eta.columns import Sequence as BehaviourSequence
from keras_eta.datasets.clustering import SNAPSHOT
from keras_eta.datasets.negative_draws import SAMPLING_PROBABILITY
from keras_eta.export.examples import LISTS
from tfx_pipeline.config import HISTORY_BUCKET, SPLITS, history_bucket
from tfx_pipeline.ingestion import encoding
from tfx_pipeline.ingestion.blocks import BLOCK_SIZE, make_block
from tfx_pipeline.ingestion.counting import CountingDoFn
from tfx_pipeline.ingestion.encoding import BYTES_LIST, FLOAT_LIST, INT64_LIST, Column
from tfx_pipeline.ingestion.rows import MISSING_FLOAT, Interaction, Scalar, UserId, value_dtype, value_names
from tfx_pipeline.layouts import USER_ID, Layout

DUPLICATE = "duplicate rows"
ITEMS = "items"

USERS = "users"
LEFT_OUT = "left_out"
IMPRESSIONS = "impressions"
POSITIVES = "positives"

# Items that a bundle remembers to have passed on.
_REMEMBERED_ITEMS = 100_000


class UserLog(NamedTuple):
    """All interactions of a user, in ascending order, n of them.

    Args:
        user: the user's id.
        timestamps: int64 [n].
        ends: int64 [n], how many behaviours of the history lie strictly before each; -1 for what is no impression,
            whatever lies before it.
        labels: int64 [n].
        values: for each of `value_names` a list of n values; of a feature of several, tuples.
        sequences: bool [n] for each of `Layout.log_sequences`, whether the interaction is one of its behaviours.
        probability: float64 [n], with which one draw gives the item of a row, as `sampling_probability` of
            `keras_eta.datasets.sample_negatives`; 1 for rows that were negative in the log. `None`: nothing is sampled.
    """

    user: UserId
    timestamps: np.ndarray
    ends: np.ndarray
    labels: np.ndarray
    values: tuple[list[Any], ...]
    sequences: tuple[np.ndarray, ...]
    probability: np.ndarray | None = None

    def impressions(self, min_history: int) -> np.ndarray:
        """Positions of the interactions with at least `min_history` behaviours before them, int64."""
        return np.flatnonzero(self.ends >= min_history)

    def ends_of(self, sequence: int) -> np.ndarray:
        """How many behaviours of a sequence lie strictly before each interaction, int64 [n]."""
        return ends_before(self.timestamps, self.sequences[sequence])


def ends_before(timestamps: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """How many of the chosen rows lie strictly before each row.

    Args:
        timestamps: int64 [n], ascending.
        chosen: bool [n].

    Returns:
        int64 [n].
    """
    return np.append(0, np.cumsum(chosen))[np.searchsorted(timestamps, timestamps)]


class ClusteredLog(NamedTuple):
    """All interactions of a user, and the clusters of those that are behaviours of the history, c of them.

    Args:
        log: the interactions.
        columns: `timestamp`, `snapshot`, `size` and the columns of `value_names`, lists of c values by name; of a
            feature of several, tuples. They ascend by snapshot, then time.
    """

    log: UserLog
    columns: Mapping[str, list[Any]]

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the clusters lie that are known at each interaction: int64 [n] twice, equal where there are none."""
        snapshots = np.array(self.columns[SNAPSHOT], "int64")
        latest = np.searchsorted(snapshots, self.log.timestamps, side="right")
        first = np.searchsorted(snapshots, snapshots)
        return np.append(0, first)[latest], latest


class Cuts(NamedTuple):
    """Timestamps of a split by time: the first that is not train, and the first that is eval."""

    validation_from: int
    eval_from: int

    def split(self, timestamps: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
        """The positions, ascending in time, that fall into each split."""
        bounds = np.searchsorted(timestamps[positions], self)
        return dict(zip(SPLITS, np.split(positions, bounds), strict=True))


class SortUserLog(CountingDoFn):
    """(user, interactions) -> `UserLog`: sorted by time, each row once.

    A tie in time is in the order of the values, so the result does not depend on the order of arrival. Rows that equal
    another in every column that is read leave under the tag `MALFORMED`, items under `ITEMS`, sums under `COUNTS`.

    Args:
        layout: of the log.
        files: paths of its files, by number.
    """

    def __init__(self, layout: Layout, files: Sequence[str]) -> None:
        super().__init__()
        self._files = tuple(files)
        self._names = value_names(layout)
        self._item = self._names.index(layout.features.item_id.name)
        self._label = layout.label.column

    def start_bundle(self) -> None:
        super().start_bundle()
        self._seen: set[Scalar] = set()

    def process(self, element: tuple[UserId, Iterable[Interaction]]) -> Iterator[UserLog | beam.pvalue.TaggedOutput]:
        user, interactions = element
        rows: list[Interaction] = []
        for row in sorted(interactions):
            if rows and row[:-1] == rows[-1][:-1]:
                yield self.malformed(DUPLICATE, self._files[row.file], self._text(user, row))
            else:
                rows.append(row)
        self.count(USERS)
        timestamps = np.array([row.timestamp for row in rows], "int64")
        sequences = tuple(np.array(chosen, bool) for chosen in zip(*(row.sequences for row in rows), strict=True))
        labels = np.array([row.label for row in rows], "int64")
        values = tuple(map(list, zip(*(row.values for row in rows), strict=True)))
        for item in set(values[self._item]) - self._seen:
            yield beam.pvalue.TaggedOutput(ITEMS, item)
            if len(self._seen) < _REMEMBERED_ITEMS:
                self._seen.add(item)
        yield UserLog(user, timestamps, ends_before(timestamps, sequences[0]), labels, values, sequences)

    def _text(self, user: UserId, row: Interaction) -> str:
        values = [None if value == MISSING_FLOAT else value for value in row.values]
        cells = {USER_ID: user, TIMESTAMP: row.timestamp, **dict(zip(self._names, values, strict=True))}
        outcome = {} if self._label is None else {self._label: row.outcome}
        return json.dumps(cells | outcome, default=lambda value: value.decode())


def impression_times(log: UserLog, min_history: int) -> np.ndarray:
    """Timestamps int64 of a user's impressions."""
    return log.timestamps[log.impressions(min_history)]


class MakeExamples(CountingDoFn):
    """`UserLog`, or `ClusteredLog` where the layout has clusters, -> blocks of tf.Examples under the tag of their
    split; sums under `COUNTS`.

    A history is a slice of bytes that are made once a user, so the time is n * L at most and the memory that of the
    user's log and one block.

    Args:
        layout: of the log.
        min_history: interactions with fewer behaviours before them are left out, and counted.
    """  # noqa: D205

    def __init__(self, layout: Layout, min_history: int) -> None:
        super().__init__()
        features = layout.features
        names = value_names(layout)
        self._min_history = min_history
        self._names = names
        self._user_kind = _KINDS[value_dtype(layout, USER_ID)]
        by_name = {feature.name: feature for feature in features.all_features}
        self._several = {name for name, feature in by_name.items() if feature.max_values}
        self._optional = {name for name, feature in by_name.items() if feature.optional}
        self._row = [
            (name, _KINDS[value_dtype(layout, name)], names.index(name)) for name in layout.row_columns if name in names
        ]
        self._columns = {
            sequence: [
                *((feature.name, LISTS[feature.dtype]) for feature in features.sequence_features(sequence)),
                (TIMESTAMP, LISTS["int64"]),
            ]
            for sequence in features.all_sequences
        }
        self._log_sequences = layout.log_sequences

    def process(self, log: UserLog | ClusteredLog, cuts: Cuts) -> Iterator[beam.pvalue.TaggedOutput]:
        clustered = ClusteredLog(log, {}) if isinstance(log, UserLog) else log
        log = clustered.log
        columns = self._columns_of(clustered)

        def serialize(row: int) -> bytes:
            return encoding.example([column.entry(starts[row], stops[row]) for column, starts, stops in columns])

        positions = log.impressions(self._min_history)
        self.count(LEFT_OUT, int(np.sum(log.ends >= 0)) - len(positions))
        for split, part in cuts.split(log.timestamps, positions).items():
            self.count(f"{IMPRESSIONS}/{split}", len(part))
            self.count(f"{POSITIVES}/{split}", int(log.labels[part].sum()))
            for start in range(0, len(part), BLOCK_SIZE):
                block = [serialize(row) for row in part[start : start + BLOCK_SIZE].tolist()]
                yield beam.pvalue.TaggedOutput(split, make_block(block))

    def _columns_of(self, clustered: ClusteredLog) -> list[_Entries]:
        """The columns of the user's impressions, in the order of their keys."""
        log = clustered.log
        rows = range(len(log.timestamps))
        columns = [
            Column(USER_ID, self._user_kind, [log.user for _ in rows]),
            Column(HISTORY_BUCKET, BYTES_LIST, [history_bucket(end).encode() for end in log.ends.tolist()]),
            Column(TIMESTAMP, INT64_LIST, log.timestamps.tolist()),
            Column(LABEL, INT64_LIST, log.labels.tolist()),
        ]
        columns += [
            Column(name, kind, self._numbers(name, log.values[index]), several=name in self._several)
            for name, kind, index in self._row
        ]
        if log.probability is not None:
            columns.append(Column(SAMPLING_PROBABILITY, FLOAT_LIST, log.probability.tolist()))
        entries: list[_Entries] = [(column, rows, range(1, len(rows) + 1)) for column in columns]
        for sequence in self._columns:
            entries += self._behaviours(clustered, sequence)
        return sorted(entries, key=lambda entry: entry[0].key)

    def _behaviours(self, clustered: ClusteredLog, sequence: BehaviourSequence) -> list[_Entries]:
        """Of a sequence: its columns, most recent first, and where the behaviours of each row begin and end in them."""
        log, table = clustered
        if sequence in self._log_sequences:
            number = self._log_sequences.index(sequence)
            table = dict(zip(self._names, log.values, strict=True)) | {TIMESTAMP: log.timestamps.tolist()}
            chosen, last = np.flatnonzero(log.sequences[number]), log.ends_of(number)
            first = np.zeros_like(last)
        else:
            chosen, (first, last) = np.arange(len(table[TIMESTAMP])), clustered.bounds()
        starts = len(chosen) - last
        stops = np.minimum(len(chosen) - first, starts + sequence.max_length).tolist()
        order = chosen[::-1].tolist()
        columns = []
        for name, kind in self._columns[sequence]:
            own = self._numbers(name, table[name])
            values = [own[row] for row in order]
            columns.append(Column(sequence.column(name), kind, values, several=name in self._several))
            if name in self._several:
                columns.append(Column(length_name(sequence.column(name)), INT64_LIST, [len(some) for some in values]))
        return [(column, starts.tolist(), stops) for column in columns]

    def _numbers(self, name: str, column: list[Any]) -> list[Any]:
        if name not in self._optional:
            return column
        return [math.nan if value == MISSING_FLOAT else value for value in column]


_KINDS = {int: INT64_LIST, float: FLOAT_LIST, bytes: BYTES_LIST}
# A column, and for each interaction where the entries of its impression begin and end.
_Entries: TypeAlias = tuple[Column, Sequence[int], Sequence[int]]
