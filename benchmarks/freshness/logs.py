"""A log in the order of time, which is written again as files of events, each with a span of its own."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from keras_eta.columns import TIMESTAMP
from keras_eta.datasets import movielens
from tfx_pipeline.continuous.__main__ import parser
from tfx_pipeline.ingestion.files import log_spans, read_header
from tfx_pipeline.ingestion.values import split_row
from tfx_pipeline.layout_flags import layout_from_flags
from tfx_pipeline.layouts import CSV, Layout

PATTERN = "replayed-{SPAN}.csv"
_FETCHED = Path("build/freshness/ml-1m")
_MOVIELENS = "movielens"


@dataclasses.dataclass(frozen=True)
class Log:
    """The rows of a log by time.

    Args:
        rows: lines without their ends, ascending by timestamp; rows of one time as they stand in the files.
        header: the line that each file begins with; empty if there is none.
        tables: files that the layout joins with the log.
    """

    rows: Sequence[bytes]
    header: bytes
    tables: Sequence[Path]

    def part(self, first: int, count: int) -> Sequence[bytes]:
        """Rows from `first` on.

        Raises:
            ValueError: if the log has fewer than `count` of them.
        """
        if first + count > len(self.rows):
            raise ValueError(f"The log has {len(self.rows):,} events, and {first + count:,} are asked for.")
        return self.rows[first : first + count]

    def begin(self, directory: Path) -> None:
        """Makes the directory of the files, with the tables in it."""
        directory.mkdir(parents=True)
        for table in self.tables:
            shutil.copy(table, directory)

    def write(self, directory: Path, span: int, rows: Sequence[bytes]) -> str:
        """Writes the file of a span, which appears whole by a rename.

        Args:
            directory: that `begin` has made.
            span: of the name.
            rows: of the log.

        Returns:
            The file's name.
        """
        name = PATTERN.replace("{SPAN}", f"{span:06d}")
        hidden = directory / f".{name}"
        lines = [self.header, *rows] if self.header else rows
        hidden.write_bytes(b"".join(line + b"\n" for line in lines))
        hidden.rename(directory / name)
        return name


def load_log(data: str | None, loop_flags: Sequence[str]) -> Log:
    """The log of a directory.

    Args:
        data: the directory; `None`: MovieLens-1M is fetched once.
        loop_flags: flags of `tfx_pipeline.continuous` for layout, ranker and training.

    Raises:
        ValueError: if there is no such log, it is not CSV, or a row has no timestamp.
        RuntimeError: if MovieLens-1M can't be fetched.
    """
    flags = parser().parse_args(loop_flags)
    layout = layout_from_flags(flags)
    if layout.file_format != CSV:
        raise ValueError(f"Only a log of CSV files can be replayed. Received: --file_format {layout.file_format}")
    if data is None:
        if flags.layout != _MOVIELENS:
            raise ValueError(f"--data is missing: the directory of the log. Received: --layout {flags.layout}")
        if not _FETCHED.exists():
            movielens.write_folder(_FETCHED)
        data = str(_FETCHED)
    return read_log(data, layout)


def read_log(data: str, layout: Layout) -> Log:
    """The log of a directory of CSV files, by span and then by time.

    Args:
        data: the directory.
        layout: of the log.

    Raises:
        ValueError: if there are no files, they have several headers, or a row has no timestamp.
    """
    files = sorted(log_spans(data, layout).items(), key=lambda item: (item[1], item[0]))
    if not files:
        raise ValueError(f"{data} has no files {layout.pattern!r}.")
    rows: list[tuple[int, bytes]] = []
    headers = set()
    for path, _ in files:
        lines = Path(path).read_bytes().splitlines()
        names = layout.header or read_header(path, layout)
        if not layout.header and lines:
            headers.add(lines.pop(0))
        if layout.source(TIMESTAMP) not in names:
            raise ValueError(f"{path} has no column {layout.source(TIMESTAMP)!r}. Its columns: {', '.join(names)}")
        column = names.index(layout.source(TIMESTAMP))
        for number, line in enumerate(lines, 1 if layout.header else 2):
            try:
                rows.append((int(split_row(line.decode(layout.encoding), layout.separator)[column]), line))
            except (ValueError, IndexError) as error:
                raise ValueError(f"{path}, line {number}, has no timestamp: {line!r}") from error
    if len(headers) > 1:
        raise ValueError(f"The files of {data} begin with {len(headers)} different headers.")
    rows.sort(key=lambda row: row[0])
    tables = [Path(data, table.file) for table in layout.joined_tables]
    return Log([line for _, line in rows], headers.pop() if headers else b"", tables)


def first_events(flags: argparse.Namespace, log: Log) -> int:
    """How many events the first version is trained on: `--first_events`, or `--start_share` of the log."""
    return flags.first_events or round(flags.start_share * len(log.rows))
