"""Rows of raw logs: what a row says, and why a row is malformed."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from keras_eta.columns import LABEL, TIMESTAMP
from keras_eta.datasets.delimited import WRONG_COLUMNS
from keras_eta.time_units import per_second, time_unit
from tfx_pipeline.ingestion.values import MISSING, PARSERS, MalformedRowError, parse_timestamp
from tfx_pipeline.joined_table import JoinedTable
from tfx_pipeline.layouts import USER_ID, Layout

# Of a string id: how it is spelt where it is a number, its column and its file, joined by tabs.
SPELLING = "spelling"
# Of a timestamp: its unit and its file, joined by tabs.
TIME_UNIT = "time unit"
INTEGER, DECIMAL = "integer", "decimal"

Scalar: TypeAlias = int | float | bytes
# What a row is called whose timestamp the machine's clock has not reached.
AFTER_THE_RUN = "after the run"
# Seconds by which clocks and time zones may differ.
_CLOCKS_APART = 86_400
# A missing value of an optional feature: unlike NaN it sorts, and rows that have it can be equal.
MISSING_FLOAT = -math.inf
# Id -> the columns of a joined table; `None` where there is no such table.
JoinedRows: TypeAlias = Mapping[Scalar, Sequence[str]] | None
# What joins a row to its user: an int or bytes.
UserId: TypeAlias = int | bytes

_DTYPES = {"int64": int, "float32": float, "string": bytes}
_NUMBER_IDS = {INTEGER: re.compile(rb"-?[0-9]+"), DECIMAL: re.compile(rb"-?[0-9]+\.0")}


class Joined(NamedTuple):
    """What the layout's tables say of items and of users."""

    items: JoinedRows
    users: JoinedRows


class Interaction(NamedTuple):
    """A row of a log, by the names of the contract.

    Interactions sort by time, then by their columns, so the order within a tie is that of the values, wherever the rows
    came from.

    Args:
        timestamp: as the log has it.
        values: those of `value_names`; of a feature of several values a tuple.
        label: 0 or 1.
        outcome: the value that the label was made of.
        sequences: of each of the layout's `log_sequences`, whether the row is one of its behaviours.
        file: number of the file.
    """

    timestamp: int
    values: tuple[Scalar | tuple[Scalar, ...], ...]
    label: int
    outcome: Scalar
    sequences: tuple[bool, ...]
    file: int


def value_names(layout: Layout) -> tuple[str, ...]:
    """The contract's columns of an interaction besides user, timestamp and label: item, context, behaviour, slices."""
    features = (feature.name for feature in layout.features.row_features)
    names = dict.fromkeys([*features, *layout.behaviour_columns, *layout.slice_columns])
    return tuple(name for name in names if name not in (USER_ID, TIMESTAMP))


def value_dtype(layout: Layout, name: str) -> type:
    """`int`, `float` or `bytes`: the Feature's, or `user_dtype` for the user's id; bytes for slice columns."""
    if name == TIMESTAMP:
        return int
    features = {feature.name: feature for feature in layout.features.all_features}
    if name in features:
        return _DTYPES[features[name].dtype]
    return _DTYPES[layout.user_dtype] if name == USER_ID else bytes


class _Cell(NamedTuple):
    """A column of the file or of a joined table: where its value stands in the row and what it must be."""

    position: int
    source: str
    dtype: type
    is_id: bool
    is_time: bool = False
    list_separator: str = ""
    max_values: int | None = None
    optional: bool = False

    def parse(self, row: Sequence[Any]) -> Any:
        value = row[self.position]
        if self.max_values is None:
            if self.list_separator and isinstance(value, str):
                value = value.split(self.list_separator)[0]
            return self._one(value)
        if isinstance(value, str):
            value = value.split(self.list_separator) if value else ()
        return tuple(self._one(part) for part in value or ())[: self.max_values]

    def _one(self, value: Any) -> Any:
        try:
            value = (parse_timestamp if self.is_time else PARSERS[self.dtype])(value)
        except MalformedRowError as error:
            if self.optional and str(error) == MISSING:
                return MISSING_FLOAT
            raise MalformedRowError(f"{error} {self.source}") from None
        if self.is_id and self.dtype is int and value < 0:
            raise MalformedRowError(f"negative {self.source}")
        return value


def joined_cell(layout: Layout, table: JoinedTable, name: str) -> _Cell:
    """What reads a column of the contract in the values that a table joins to a row.

    Args:
        layout: how the log's files are read.
        table: one of its `joined_tables`.
        name: of the column, by the contract.
    """
    return _cell(layout, name, table.columns.index(layout.source(name)), table)


def _cell(layout: Layout, name: str, position: int, table: JoinedTable | None) -> _Cell:
    by_name = {feature.name: feature for feature in layout.features.all_features}
    is_id = name.endswith("_id") or name == layout.features.item_id.name
    most = by_name[name].max_values if name in by_name else None
    separator = layout.list_separator if most else ""
    if table is not None:
        separator = table.list_separator or separator
    optional = name in by_name and by_name[name].optional
    dtype = value_dtype(layout, name)
    return _Cell(position, layout.source(name), dtype, is_id, name == TIMESTAMP, separator, most, optional)


class RowParser:
    """Reads the rows of files that have the same header.

    Args:
        layout: how the files hold interactions.
        header: names of the files' columns. Those of the layout's tables are joined to a row.
    """

    def __init__(self, layout: Layout, header: Sequence[str]) -> None:
        self._num_columns = len(header)
        joined = {name: table for table in layout.joined_tables for name in table.columns}
        positions = {name: position for position, name in enumerate([*header, *joined])}

        def cell(name: str) -> _Cell:
            source = layout.source(name)
            return _cell(layout, name, positions[source], joined.get(source))

        self._user = cell(USER_ID)
        self._timestamp = cell(TIMESTAMP)
        self._item = cell(layout.features.item_id.name)
        rule = layout.label
        self._outcome = (
            _Cell(positions[rule.column], rule.column, bytes if rule.positives else float, False)
            if rule.column is not None
            else None
        )
        self._rule = rule
        self._positives = {value.encode() for value in rule.positives}
        self._negatives = {value.encode() for value in rule.negatives}
        # The label stands behind the row and what is joined to it.
        positions[LABEL] = len(positions)
        self._values = [cell(name) for name in value_names(layout)]
        selections = {selection.sequence: selection for selection in layout.selections}
        self._sequences = [
            (_Cell(positions[chosen.column], chosen.column, bytes, False), {value.encode() for value in chosen.values})
            if (chosen := selections.get(sequence.name))
            else None
            for sequence in layout.log_sequences
        ]
        ids = [cell for cell in (self._user, *self._values) if cell.is_id and not cell.max_values]
        self._string_ids = [cell for cell in ids if cell.dtype is bytes]
        self._first = -math.inf if layout.first_timestamp is None else layout.first_timestamp
        self._end = math.inf if layout.end_timestamp is None else layout.end_timestamp
        self._latest = time.time() + _CLOCKS_APART

    def parse(self, row: Sequence[Any], joined: Joined, file: int) -> tuple[UserId, Interaction]:
        """The user and the interaction of a row.

        Args:
            row: its values, in the order of the header: text, or numbers where the file is typed.
            joined: the layout's tables.
            file: number of the row's file.

        Raises:
            MalformedRowError: why the row can't be read.
        """
        if len(row) != self._num_columns:
            raise MalformedRowError(WRONG_COLUMNS)
        user = self._user.parse(row)
        timestamp = self._timestamp.parse(row)
        if not self._first <= timestamp < self._end:
            raise MalformedRowError(f"with a {self._timestamp.source} outside the layout's range")
        more: list[str] = []
        for name, table, key in (("item", joined.items, self._item), ("user", joined.users, self._user)):
            if table is not None:
                found = table.get(key.parse(row))
                if found is None:
                    raise MalformedRowError(f"of an unknown {name}")
                more += found
        outcome = 1 if self._outcome is None else self._outcome.parse(row)
        label = self._label(outcome)
        cells = (*row, *more, label)
        values = tuple(value.parse(cells) for value in self._values)
        sequences = tuple(rule is None or rule[0].parse(row) in rule[1] for rule in self._sequences)
        return user, Interaction(timestamp, values, label, outcome, sequences, file)

    def time_unit(self, timestamp: int) -> str:
        """The unit of a row's timestamp, as `keras_eta.time_units.time_unit` gives it.

        Raises:
            MalformedRowError: if it is a moment after the run.
        """
        unit = time_unit(timestamp)
        if unit and timestamp // per_second(unit) > self._latest:
            raise MalformedRowError(f"with a {self._timestamp.source} {AFTER_THE_RUN}")
        return unit

    def number_spellings(self, row: Sequence[Any]) -> Iterator[tuple[str, str]]:
        """`INTEGER` or `DECIMAL`, and the column, of each string id of a well-formed row that is a number.

        A file of integers in which a value is missing is often written with decimals, "1.0" in place of "1".
        """
        for cell in self._string_ids:
            if cell.position < self._num_columns:
                text = cell.parse(row)
                for spelling, pattern in _NUMBER_IDS.items():
                    if pattern.fullmatch(text):
                        yield spelling, cell.source

    def _label(self, outcome: Scalar) -> int:
        rule = self._rule
        if rule.minimum is not None:
            return int(outcome >= rule.minimum)  # type: ignore[operator]
        if rule.positives:
            if self._negatives and outcome not in self._positives and outcome not in self._negatives:
                raise MalformedRowError(f"with an unknown {rule.column}")
            return int(outcome in self._positives)
        if outcome not in (0, 1):
            raise MalformedRowError(f"with a {rule.column} that is not 0 or 1")
        return int(outcome)
