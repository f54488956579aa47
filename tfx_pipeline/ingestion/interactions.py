"""Reading the rows of raw logs, by Beam."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam

from keras_eta.datasets.delimited import WRONG_COLUMNS
from tfx_pipeline.ingestion.counting import COUNTS, MALFORMED, ROWS_READ, CountingDoFn
from tfx_pipeline.ingestion.files import file_metadata, read_header
from tfx_pipeline.ingestion.rows import SPELLING, TIME_UNIT, Interaction, RowParser, Scalar, UserId, value_dtype
from tfx_pipeline.ingestion.values import (
    PARSERS,
    MalformedRowError,
    column_values,
    split_row,
)
from tfx_pipeline.item_table import ItemTable
from tfx_pipeline.layouts import CSV, Layout

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
    def parsed(
        self,
        parser: RowParser,
        row: Sequence[Any],
        items: Mapping[Scalar, Sequence[str]] | None,
        file: int,
        path: str,
    ) -> tuple[UserId, Interaction]:
        """The user and the interaction of a row; counts the unit of its timestamp and the spellings of its ids."""
        user, interaction = parser.parse(row, items, file)
        self.count("\t".join((TIME_UNIT, parser.time_unit(interaction.timestamp), path)))
        for spelling, column in parser.number_spellings(row):
            self.count("\t".join((SPELLING, spelling, column, path)))
        return user, interaction


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
        self.count("\t".join((ROWS_READ, path)))
        try:
            row = split_row(line.decode(self._encoding), self._separator)
            interaction = self.parsed(parser, row, items, file, path)
        except (MalformedRowError, UnicodeDecodeError) as error:
            reason = str(error) if isinstance(error, MalformedRowError) else f"not in {self._encoding}"
            yield self.malformed(reason, path, line.decode(self._encoding, "backslashreplace"))
        else:
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
        self.count("\t".join((ROWS_READ, path)), table.num_rows)
        for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
            columns = [column_values(batch.column(batch.schema.get_field_index(name))) for name in self._columns]
            for row in zip(*columns, strict=True):
                try:
                    interaction = self.parsed(self._parser, row, items, file, path)
                except MalformedRowError as error:
                    text = json.dumps(dict(zip(self._columns, row, strict=True)), default=repr)
                    yield self.malformed(str(error), path, text)
                else:
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
            | "Parse" >> beam.Map(parse_item, self._table, self._path, self._dtype)
            | beam.GroupByKey()
            | "Check" >> beam.Map(_only_item, self._path)
        )


def parse_item(line: bytes, table: ItemTable, path: str, dtype: type) -> tuple[Scalar, tuple[str, ...]]:
    """The item id of a line, and its values of the table's `columns`; ValueError if it can't be read."""
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


def _only_item(item: tuple[Scalar, Iterable[tuple[str, ...]]], path: str) -> tuple[Scalar, tuple[str, ...]]:
    key, (first, *others) = item
    if others:
        raise ValueError(f"{path} has more than one line of the item {key!r}")
    return key, first
