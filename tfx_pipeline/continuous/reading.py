"""Reads the rows of one file of events as ingestion does, without Beam, which takes seconds to start."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow.parquet
from apache_beam.io.filesystems import FileSystems
from apache_beam.pvalue import TaggedOutput

from tfx_pipeline.ingestion.counting import CountingDoFn, Malformed
from tfx_pipeline.ingestion.files import read_header
from tfx_pipeline.ingestion.interactions import ParseLines, ParseTables, parse_line, with_header
from tfx_pipeline.ingestion.rows import Interaction, Joined, JoinedRows, UserId, value_dtype
from tfx_pipeline.joined_table import JoinedTable
from tfx_pipeline.layouts import CSV, USER_ID, Layout


class FileRows(NamedTuple):
    """What a file holds.

    Args:
        events: users and their interactions, in the file's order.
        malformed: the rows that can't be read.
        counts: the sums of ingestion: rows, malformed rows, units of time, spellings.
    """

    events: list[tuple[UserId, Interaction]]
    malformed: list[Malformed]
    counts: dict[str, int]


def read_rows(path: str, layout: Layout, joined: Joined) -> FileRows:
    """The rows of a file.

    Args:
        path: of the file, which has the columns of the layout.
        layout: how it is read.
        joined: the layout's tables.
    """
    parser, elements = _lines(path, layout) if layout.file_format == CSV else _tables(path, layout)
    parser.start_bundle()
    events, malformed = [], []
    for element in elements:
        for output in parser.process((glob.escape(path), element), *joined):
            if isinstance(output, TaggedOutput):
                malformed.append(output.value)
            else:
                events.append(output)
    return FileRows(events, malformed, parser.counts)


def _lines(path: str, layout: Layout) -> tuple[CountingDoFn, Iterator[bytes]]:
    header = layout.header or read_header(path, layout)

    def lines() -> Iterator[bytes]:
        with FileSystems.open(path) as file:
            for number, line in enumerate(iter(file.readline, b"")):
                if number or layout.header:
                    yield line.rstrip(b"\r\n")

    return ParseLines(layout, {path: header}), lines()


def _tables(path: str, layout: Layout) -> tuple[CountingDoFn, Iterator[Any]]:
    def tables() -> Iterator[Any]:
        with FileSystems.open(path) as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                yield parquet.read_row_group(group, columns=list(layout.sources))

    return ParseTables(layout, [path]), tables()


def read_joined(layout: Layout, data: str) -> Joined:
    """The rows of the layout's tables of items and users, by id.

    Args:
        layout: of the log.
        data: directory of the log.

    Raises:
        ValueError: if a table can't be read or has two lines of one id.
    """

    def rows_of(table: JoinedTable | None, key: str) -> JoinedRows:
        if table is None:
            return None
        path, named = os.path.join(data, table.file), with_header(table, data)
        rows: dict[Any, Any] = {}
        with FileSystems.open(path) as file:
            for number, line in enumerate(iter(file.readline, b"")):
                if number or table.header:
                    id_, values = parse_line(line.rstrip(b"\r\n"), named, path, value_dtype(layout, key))
                    if id_ in rows:
                        raise ValueError(f"{path} has more than one line of {id_!r}")
                    rows[id_] = values
        return rows

    return Joined(rows_of(layout.items, layout.features.item_id.name), rows_of(layout.users, USER_ID))
