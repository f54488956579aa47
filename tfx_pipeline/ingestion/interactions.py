"""Reading the rows of raw logs, by Beam."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from keras_eta.datasets.delimited import WRONG_COLUMNS
from tfx_pipeline.ingestion.counting import COUNTS, MALFORMED, ROWS_READ, CountingDoFn
from tfx_pipeline.ingestion.files import file_metadata, read_header
from tfx_pipeline.ingestion.rows import (
    SPELLING,
    TIME_UNIT,
    Interaction,
    Joined,
    JoinedRows,
    RowParser,
    Scalar,
    UserId,
    value_dtype,
)
from tfx_pipeline.ingestion.values import (
    PARSERS,
    MalformedRowError,
    column_values,
    split_row,
)
from tfx_pipeline.joined_table import JoinedTable
from tfx_pipeline.layouts import CSV, USER_ID, Layout

# That are read, or held, at a time.
_BATCH_ROWS = 10_000


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
            parse: beam.DoFn = ParseLines(layout, headers)
        else:
            rows = paths | beam.io.ReadAllFromParquetBatched(columns=list(layout.sources), with_filename=True)
            parse = ParseTables(layout, self._files)
        keys = (("Items", layout.items, layout.features.item_id.name), ("Users", layout.users, USER_ID))
        joined = [
            None
            if table is None
            else beam.pvalue.AsDict(pipeline | name >> _ReadTable(table, self._data, value_dtype(layout, key)))
            for name, table, key in keys
        ]
        return rows | "Parse" >> beam.ParDo(parse, *joined).with_outputs(MALFORMED, COUNTS, main="interactions")


class _ParseRows(CountingDoFn):
    def parsed(
        self,
        parser: RowParser,
        row: Sequence[Any],
        joined: Joined,
        file: int,
        path: str,
    ) -> tuple[UserId, Interaction]:
        """The user and the interaction of a row; counts the unit of its timestamp and the spellings of its ids."""
        user, interaction = parser.parse(row, joined, file)
        self.count("\t".join((TIME_UNIT, parser.time_unit(interaction.timestamp), path)))
        for spelling, column in parser.number_spellings(row):
            self.count("\t".join((SPELLING, spelling, column, path)))
        return user, interaction


class ParseLines(_ParseRows):
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
        self, element: tuple[str, bytes], items: JoinedRows, users: JoinedRows
    ) -> Iterator[tuple[UserId, Interaction] | beam.pvalue.TaggedOutput]:
        name, line = element
        file, path, parser = self._files[name]
        self.count("\t".join((ROWS_READ, path)))
        try:
            row = split_row(line.decode(self._encoding), self._separator)
            interaction = self.parsed(parser, row, Joined(items, users), file, path)
        except (MalformedRowError, UnicodeDecodeError) as error:
            reason = str(error) if isinstance(error, MalformedRowError) else f"not in {self._encoding}"
            yield self.malformed(reason, path, line.decode(self._encoding, "backslashreplace"))
        else:
            yield interaction


class ParseTables(_ParseRows):
    """(path, `pyarrow.Table`) -> (user, `Interaction`) of each row."""

    def __init__(self, layout: Layout, files: Sequence[str]) -> None:
        super().__init__()
        self._columns = layout.sources
        self._parser = RowParser(layout, layout.sources)
        self._files = {glob.escape(path): (number, path) for number, path in enumerate(files)}

    def process(
        self, element: tuple[str, Any], items: JoinedRows, users: JoinedRows
    ) -> Iterator[tuple[UserId, Interaction] | beam.pvalue.TaggedOutput]:
        name, table = element
        file, path = self._files[name]
        self.count("\t".join((ROWS_READ, path)), table.num_rows)
        for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
            columns = [column_values(batch.column(batch.schema.get_field_index(name))) for name in self._columns]
            for row in zip(*columns, strict=True):
                try:
                    interaction = self.parsed(self._parser, row, Joined(items, users), file, path)
                except MalformedRowError as error:
                    text = json.dumps(dict(zip(self._columns, row, strict=True)), default=repr)
                    yield self.malformed(str(error), path, text)
                else:
                    yield interaction


class PackRows(beam.DoFn):
    """(user, `Interaction`) -> (user, list of interactions as tuples).

    A shuffle takes much longer for many small elements than for a few large ones, and it would pickle each named tuple.
    """

    def start_bundle(self) -> None:
        self._rows: dict[UserId, list[tuple[Any, ...]]] = {}
        self._number = 0

    def process(self, element: tuple[UserId, Interaction]) -> Iterator[tuple[UserId, list[tuple[Any, ...]]]]:
        user, row = element
        self._rows.setdefault(user, []).append(tuple(row))
        self._number += 1
        if self._number == _BATCH_ROWS:
            yield from self._rows.items()
            self.start_bundle()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        window = GlobalWindow()
        for element in self._rows.items():
            yield WindowedValue(element, window.max_timestamp(), (window,))


def unpack_rows(user: UserId, parts: Iterable[list[tuple[Any, ...]]]) -> tuple[UserId, list[Interaction]]:
    """The user's interactions, of all lists that `PackRows` made."""
    return user, [Interaction._make(row) for part in parts for row in part]


class _ReadTable(beam.PTransform):
    """Pipeline -> (id, values of the joined columns) of a table."""

    def __init__(self, table: JoinedTable, data: str, dtype: type) -> None:
        super().__init__()
        self._table, self._data, self._dtype = table, data, dtype

    def expand(self, pipeline: Any) -> Any:
        path = os.path.join(self._data, self._table.file)
        named = with_header(self._table, self._data)
        return (
            pipeline
            | "File" >> beam.Create([file_metadata(path)])
            | "Read"
            >> beam.io.ReadAllFromText(coder=beam.coders.BytesCoder(), skip_header_lines=0 if self._table.header else 1)
            | "Parse" >> beam.Map(parse_line, named, path, self._dtype)
            | beam.GroupByKey()
            | "Check" >> beam.Map(_only_line, path)
        )


def with_header(table: JoinedTable, data: str) -> JoinedTable:
    """The table with the names of its columns, from its first line where it has them there.

    Args:
        table: of the layout.
        data: directory of the log.

    Raises:
        ValueError: if it lacks a column.
    """
    if table.header:
        return table
    header = read_header(os.path.join(data, table.file), table)
    table.check_header(header)
    return dataclasses.replace(table, header=header)


def parse_line(line: bytes, table: JoinedTable, path: str, dtype: type) -> tuple[Scalar, tuple[str, ...]]:
    """The id of a line, and its values of the table's `columns`; ValueError if it can't be read."""
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
    try:
        key = PARSERS[dtype](cells[table.key])
    except MalformedRowError as error:
        raise ValueError(f"{path} has a line with a {error} {table.key}: {text!r}") from None
    return key, values


def _only_line(item: tuple[Scalar, Iterable[tuple[str, ...]]], path: str) -> tuple[Scalar, tuple[str, ...]]:
    key, (first, *others) = item
    if others:
        raise ValueError(f"{path} has more than one line of {key!r}")
    return key, first
