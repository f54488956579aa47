"""Rows of raw logs: what a row says, and why a row is malformed."""

from __future__ import annotations

import glob
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from keras_eta.datasets.delimited import WRONG_COLUMNS
from keras_eta.features import LABEL, TIMESTAMP
from tfx_pipeline.ingestion.files import file_metadata, read_header
from tfx_pipeline.ingestion.values import (
    PARSERS,
    MalformedRowError,
    column_values,
    parse_timestamp,
    split_row,
)
from tfx_pipeline.layouts import CSV, USER_ID, ItemTable, Layout

METRICS_NAMESPACE = "keras_eta/ingestion"

# Tagged outputs of the transforms: malformed rows, and (name, number) to be summed up.
MALFORMED = "malformed"
COUNTS = "counts"

ROWS_READ = "rows_read"
# Of a string id: how it is spelt where it is a number, its column and its file, joined by tabs.
SPELLING = "spelling"
INTEGER, DECIMAL = "integer", "decimal"

Scalar: TypeAlias = int | float | bytes
# What joins a row to its user: an int or bytes.
UserId: TypeAlias = int | bytes

_DTYPES = {"int64": int, "float32": float, "string": bytes}
_BATCH_ROWS = 10_000
_NUMBER_IDS = {INTEGER: re.compile(rb"-?[0-9]+"), DECIMAL: re.compile(rb"-?[0-9]+\.0")}


class Malformed(NamedTuple):
    """A malformed row.

    Args:
        reason: why, worded to follow a number: `"negative user_id"`.
        file: where it stands.
        row: its text.
    """

    reason: str
    file: str
    row: str


class Interaction(NamedTuple):
    """A row of a log, by the names of the contract.

    Interactions sort by time, then by their columns, so the order within a tie is that of the values, wherever the rows
    came from.

    Args:
        timestamp: as the log has it.
        values: those of `value_names`.
        label: 0 or 1.
        outcome: the value that the label was made of.
        file: number of the file.
    """

    timestamp: int
    values: tuple[Scalar, ...]
    label: int
    outcome: Scalar
    file: int


class CountingDoFn(beam.DoFn):
    """A DoFn that counts: the sums of a bundle leave it as (name, number) under the tag `COUNTS`."""

    def start_bundle(self) -> None:
        self.counts: dict[str, int] = {}

    def count(self, name: str, number: int = 1) -> None:
        """Adds to a sum."""
        self.counts[name] = self.counts.get(name, 0) + number

    def malformed(self, reason: str, file: str, row: str) -> beam.pvalue.TaggedOutput:
        """A malformed row, counted by its reason by Beam as well."""
        beam.metrics.Metrics.counter(METRICS_NAMESPACE, f"{MALFORMED}: {reason}").inc()
        self.count(f"{MALFORMED}/{reason}")
        return beam.pvalue.TaggedOutput(MALFORMED, Malformed(reason, file, row))

    def finish_bundle(self) -> Iterator[beam.pvalue.TaggedOutput]:
        window = GlobalWindow()
        for item in self.counts.items():
            yield beam.pvalue.TaggedOutput(COUNTS, WindowedValue(item, window.max_timestamp(), (window,)))


def value_names(layout: Layout) -> tuple[str, ...]:
    """The contract's columns of an interaction besides user, timestamp and label: item, context, behaviour, slices."""
    behaviour = (feature.name for feature in layout.features.behaviour_attributes)
    names = dict.fromkeys([*layout.features.row_names, *behaviour, *layout.slice_columns])
    return tuple(name for name in names if name not in (USER_ID, TIMESTAMP))


def value_dtype(layout: Layout, name: str) -> type:
    """`int`, `float` or `bytes`: the Feature's. Bytes for slice columns, and for the user's id if it is no feature."""
    if name == TIMESTAMP:
        return int
    features = {feature.name: feature for feature in layout.features.all_features}
    return _DTYPES[features[name].dtype] if name in features else bytes


class _Cell(NamedTuple):
    """A column of the file or of the item table: where its value stands in the row and what it must be."""

    position: int
    source: str
    dtype: type
    is_id: bool
    is_time: bool = False

    def parse(self, row: Sequence[Any]) -> Any:
        try:
            value = (parse_timestamp if self.is_time else PARSERS[self.dtype])(row[self.position])
        except MalformedRowError as error:
            raise MalformedRowError(f"{error} {self.source}") from None
        if self.is_id and self.dtype is int and value < 0:
            raise MalformedRowError(f"negative {self.source}")
        return value


class RowParser:
    """Reads the rows of files that have the same header.

    Args:
        layout: how the files hold interactions.
        header: names of the files' columns. Those of the layout's item table are joined to a row.
    """

    def __init__(self, layout: Layout, header: Sequence[str]) -> None:
        self._num_columns = len(header)
        joined = () if layout.items is None else layout.items.columns
        positions = {name: position for position, name in enumerate([*header, *joined])}

        def cell(name: str) -> _Cell:
            source = layout.source(name)
            is_id = name.endswith("_id") or name == layout.features.item_id.name
            return _Cell(positions[source], source, value_dtype(layout, name), is_id, name == TIMESTAMP)

        self._user = cell(USER_ID)
        self._timestamp = cell(TIMESTAMP)
        self._item = cell(layout.features.item_id.name)
        rule = layout.label
        self._outcome = _Cell(positions[rule.column], rule.column, bytes if rule.positives else float, False)
        self._rule = rule
        self._positives = {value.encode() for value in rule.positives}
        self._negatives = {value.encode() for value in rule.negatives}
        # The label stands behind the row and what is joined to it.
        positions[LABEL] = len(positions)
        self._values = [cell(name) for name in value_names(layout)]
        self._string_ids = [cell for cell in (self._user, *self._values) if cell.is_id and cell.dtype is bytes]
        self._first = -math.inf if layout.first_timestamp is None else layout.first_timestamp
        self._end = math.inf if layout.end_timestamp is None else layout.end_timestamp

    def parse(
        self, row: Sequence[Any], items: Mapping[Scalar, Sequence[str]] | None, file: int
    ) -> tuple[UserId, Interaction]:
        """The user and the interaction of a row.

        Args:
            row: its values, in the order of the header: text, or numbers where the file is typed.
            items: item id -> the columns of the item table, where the layout has one.
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
        joined: Sequence[str] = ()
        if items is not None:
            found = items.get(self._item.parse(row))
            if found is None:
                raise MalformedRowError("of an unknown item")
            joined = found
        outcome = self._outcome.parse(row)
        label = self._label(outcome)
        cells = (*row, *joined, label)
        return user, Interaction(timestamp, tuple(value.parse(cells) for value in self._values), label, outcome, file)

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


class ReadInteractions(beam.PTransform):
    """The interactions of a log's files, by user.

    Pipeline -> (user, `Interaction`) as the main output, malformed rows under the tag `MALFORMED`, and sums to be added
    up under `COUNTS`.

    Args:
        layout: how the files hold interactions.
        data: directory of the log.
        files: the files to read, as `log_files` gives them.
    """

    def __init__(self, layout: Layout, data: str, files: Sequence[str]) -> None:
        super().__init__()
        self._layout = layout
        self._data = data
        self._files = tuple(files)

    def expand(self, pipeline: Any) -> Any:
        layout = self._layout
        paths = pipeline | "Files" >> beam.Create([file_metadata(path) for path in self._files])
        if layout.file_format == CSV:
            headers = {path: layout.header or read_header(path, layout) for path in self._files}
            rows = paths | beam.io.ReadAllFromText(
                coder=beam.coders.BytesCoder(), skip_header_lines=0 if layout.header else 1, with_filename=True
            )
            parse: beam.DoFn = _ParseLines(layout, headers)
        else:
            rows = paths | beam.io.ReadAllFromParquetBatched(columns=list(layout.sources), with_filename=True)
            parse = _ParseTables(layout, self._files)
        items = None
        if layout.items is not None:
            item_dtype = value_dtype(layout, layout.features.item_id.name)
            items = beam.pvalue.AsDict(pipeline | "Items" >> _ReadItems(layout.items, self._data, item_dtype))
        return rows | "Parse" >> beam.ParDo(parse, items).with_outputs(MALFORMED, COUNTS, main="interactions")


class _ParseRows(CountingDoFn):
    def count_spellings(self, parser: RowParser, row: Sequence[Any], path: str) -> None:
        """Counts the string ids of a row that are numbers by their spelling."""
        for spelling, column in parser.number_spellings(row):
            self.count("\t".join((SPELLING, spelling, column, path)))


class _ParseLines(_ParseRows):
    """(path, line) -> (user, `Interaction`)."""

    def __init__(self, layout: Layout, headers: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__()
        self._encoding = layout.encoding
        self._separator = layout.separator
        parsers = {header: RowParser(layout, header) for header in set(headers.values()) if header}
        self._files = {
            glob.escape(path): (number, path, parsers[header])
            for number, (path, header) in enumerate(headers.items())
            if header
        }

    def process(
        self, element: tuple[str, bytes], items: Mapping[Scalar, Sequence[str]] | None
    ) -> Iterator[tuple[UserId, Interaction] | beam.pvalue.TaggedOutput]:
        name, line = element
        file, path, parser = self._files[name]
        self.count(ROWS_READ)
        try:
            row = split_row(line.decode(self._encoding), self._separator)
            interaction = parser.parse(row, items, file)
        except (MalformedRowError, UnicodeDecodeError) as error:
            reason = str(error) if isinstance(error, MalformedRowError) else f"not in {self._encoding}"
            yield self.malformed(reason, path, line.decode(self._encoding, "backslashreplace"))
        else:
            self.count_spellings(parser, row, path)
            yield interaction


class _ParseTables(_ParseRows):
    """(path, `pyarrow.Table`) -> (user, `Interaction`) of each row."""

    def __init__(self, layout: Layout, files: Sequence[str]) -> None:
        super().__init__()
        self._columns = layout.sources
        self._parser = RowParser(layout, layout.sources)
        self._files = {glob.escape(path): (number, path) for number, path in enumerate(files)}

    def process(
        self, element: tuple[str, Any], items: Mapping[Scalar, Sequence[str]] | None
    ) -> Iterator[tuple[UserId, Interaction] | beam.pvalue.TaggedOutput]:
        name, table = element
        file, path = self._files[name]
        self.count(ROWS_READ, table.num_rows)
        for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
            columns = [column_values(batch.column(batch.schema.get_field_index(name))) for name in self._columns]
            for row in zip(*columns, strict=True):
                try:
                    interaction = self._parser.parse(row, items, file)
                except MalformedRowError as error:
                    text = json.dumps(dict(zip(self._columns, row, strict=True)), default=repr)
                    yield self.malformed(str(error), path, text)
                else:
                    self.count_spellings(self._parser, row, path)
                    yield interaction


class _ReadItems(beam.PTransform):
    """Pipeline -> (item id, values of the joined columns) of an item table."""

    def __init__(self, table: ItemTable, data: str, dtype: type) -> None:
        super().__init__()
        self._table = table
        self._path = os.path.join(data, table.file)
        self._dtype = dtype

    def expand(self, pipeline: Any) -> Any:
        return (
            pipeline
            | "File" >> beam.Create([file_metadata(self._path)])
            | "Read" >> beam.io.ReadAllFromText(coder=beam.coders.BytesCoder())
            | "Parse" >> beam.Map(_parse_item, self._table, self._path, self._dtype)
            | beam.GroupByKey()
            | "Check" >> beam.Map(_only_item, self._path)
        )


def _parse_item(line: bytes, table: ItemTable, path: str, dtype: type) -> tuple[Scalar, tuple[str, ...]]:
    try:
        text = line.decode(table.encoding)
    except UnicodeDecodeError as error:
        column = line[: error.start].count(table.separator.encode())
        name = table.header[min(column, len(table.header) - 1)]
        raise ValueError(f"{path} has a line that is not in {table.encoding}, in column {name!r}: {line!r}") from error
    row = split_row(text, table.separator)
    if len(row) != len(table.header):
        raise ValueError(f"{path} has a line {WRONG_COLUMNS}, {len(table.header)}: {text!r}")
    cells = dict(zip(table.header, row, strict=True))
    values = tuple(cells[name] for name in table.columns)
    if table.list_separator:
        values = tuple(value.split(table.list_separator)[0] for value in values)
    try:
        key = PARSERS[dtype](cells[table.key])
    except MalformedRowError as error:
        raise ValueError(f"{path} has a line with a {error} {table.key}: {text!r}") from None
    return key, values


def _only_item(item: tuple[Scalar, Iterable[tuple[str, ...]]], path: str) -> tuple[Scalar, tuple[str, ...]]:
    key, (first, *others) = item
    if others:
        raise ValueError(f"{path} has more than one line of the item {key!r}")
    return key, first
