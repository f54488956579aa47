"""Which files hold a log, and what their headers say."""

from __future__ import annotations

import datetime
import glob
import os
import re

import tensorflow as tf
from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.filesystems import FileSystems
from tfx.components.example_gen.utils import date_to_span_number
from tfx.dsl.io import fileio

from tfx_pipeline.ingestion.values import split_row
from tfx_pipeline.joined_table import JoinedTable
from tfx_pipeline.layouts import Layout

_SPECS = re.compile(r"\{SPAN(?::(?P<width>\d+))?\}|\{(?P<date>YYYY|MM|DD)\}|(?P<any>\*)|(?P<one>\?)")


def log_files(data: str, layout: Layout, last_span: int | None = None) -> list[str]:
    """The files of a log, sorted.

    Files and folders whose names begin with `.` or `_`, as `.DS_Store` and `_SUCCESS` do, are skipped where the pattern
    does not spell that beginning. Only `*` and `?` stand for other characters: brackets are meant as they are.

    Args:
        data: its directory.
        layout: its pattern may have a `{SPAN}` or `{YYYY}`, `{MM}` and `{DD}`, as TFX's example generators know them.
        last_span: the newest span to read, a number or days since 1970. `None`: all.
    """
    spans = log_spans(data, layout)
    return sorted(path for path, span in spans.items() if last_span is None or span <= last_span)


def log_spans(data: str, layout: Layout) -> dict[str, int]:
    """The span of each file of a log: a number, or days since 1970; 0 where the pattern has none."""
    pattern = os.path.normpath(layout.pattern)
    wildcards, regex, end = glob.escape(os.path.join(data, "")), "", 0
    for spec in _SPECS.finditer(pattern):
        literal = pattern[end : spec.start()]
        begins_name = not pattern[: spec.start()].rpartition("/")[2]
        end = spec.end()
        regex += re.escape(literal)
        if spec["any"] or spec["one"]:
            wildcards += glob.escape(literal) + spec[0]
            regex += ("(?![._])" if begins_name else "") + ("[^/]*" if spec["any"] else "[^/]")
        else:
            width = len(spec["date"]) if spec["date"] else spec["width"]
            wildcards += glob.escape(literal) + "*"
            regex += rf"(?P<{spec['date'] or 'SPAN'}>\d{f'{{{width}}}' if width else '+'})"
    regex += re.escape(pattern[end:])
    paths = [str(path) for path in fileio.glob(wildcards + glob.escape(pattern[end:]))]
    matches = {path: re.fullmatch(regex, os.path.relpath(path, data)) for path in paths}
    return {path: _span(match) for path, match in matches.items() if match}


def span_names(data: str, layout: Layout, last_span: int | None = None) -> dict[str, str]:
    """The span of each of `log_files`, in words: a date or "span 9"; empty where the pattern has none."""
    pattern, spans = layout.pattern, log_spans(data, layout)

    def name(span: int) -> str:
        if "{YYYY}" in pattern:
            return str(datetime.date(1970, 1, 1) + datetime.timedelta(days=span))
        return f"span {span}" if "{SPAN" in pattern else ""

    return {path: name(spans[path]) for path in log_files(data, layout, last_span)}


def file_metadata(path: str) -> FileMetadata:
    """A file as Beam's `ReadAll` transforms take it and as they name it: they take brackets for wildcards."""
    return FileMetadata(glob.escape(path), fileio.stat(path).length)


def size_and_time(path: str) -> str:
    """Bytes of a file, and when it was written: what tells that it has changed."""
    found = tf.io.gfile.stat(path)
    return f"{found.length} {found.mtime_nsec}"


def read_header(path: str, layout: Layout | JoinedTable) -> tuple[str, ...]:
    """Names of a CSV file's columns, from its first line; none where the file is empty."""
    with FileSystems.open(path) as file:
        line = file.readline().rstrip(b"\r\n")
    encoding = "utf-8-sig" if layout.encoding == "utf-8" else layout.encoding
    try:
        text = line.decode(encoding)
    except UnicodeDecodeError as error:
        column = line[: error.start].count(layout.separator.encode()) + 1
        raise ValueError(
            f"{path} is not in {layout.encoding}: line 1, column {column} holds {line[error.start : error.end]!r}."
        ) from error
    return tuple(name.strip() for name in split_row(text, layout.separator)) if text else ()


def _span(match: re.Match[str]) -> int:
    found = match.groupdict()
    if not found:
        return 0
    if "SPAN" in found:
        return int(found["SPAN"])
    return date_to_span_number(*(int(found[name]) for name in ("YYYY", "MM", "DD")))
