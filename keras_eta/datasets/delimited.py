"""Lines of delimited text, read fast and without losing count of the malformed ones."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

WRONG_COLUMNS = "with a wrong number of columns"


def parse_lines(
    content: bytes,
    columns: Sequence[str],
    separator: bytes,
    *,
    first_line: int = 1,
    dtype: Mapping[str, Any] | None = None,
    encoding: str = "utf-8",
    path: str | os.PathLike[str],
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    r"""Parse whole lines of separated values without quoting or header.

    Args:
        content: the lines, each ended by \n or \r\n; the last may lack it.
        columns: names of the columns, two or more.
        separator: one byte between two values.
        first_line: number of the first line.
        dtype: types of columns; `None` or a column not named: what pandas infers.
        encoding: of the text.
        path: the file that they come from, for errors.

    Returns:
        The well-formed lines as a DataFrame of n rows, their numbers int64 [n], and the numbers of the lines whose
        count of columns is not that of `columns`. An empty value is NaN; nothing else is ("NA" is a string).

    Raises:
        ValueError: if a line is not in `encoding`.
    """
    data = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(data == ord("\n")) + 1
    if len(data) and (not len(ends) or ends[-1] != len(data)):
        ends = np.append(ends, len(data))
    separators = np.searchsorted(np.flatnonzero(data == ord(separator)), ends)
    wrong = np.diff(separators, prepend=0) != len(columns) - 1
    lines = np.arange(first_line, first_line + len(ends))
    if wrong.any():
        content = data[np.repeat(~wrong, np.diff(ends, prepend=0))].tobytes()
    try:
        frame = pd.read_csv(
            io.BytesIO(content) if content else io.StringIO(),
            sep=separator.decode(),
            header=None,
            names=list(columns),
            dtype=dtype,
            encoding=encoding,
            quoting=csv.QUOTE_NONE,
            keep_default_na=False,
            na_values=[""],
            low_memory=False,
        )
    except UnicodeDecodeError as error:
        raise ValueError(_undecodable(content, columns, separator, lines[~wrong], encoding, path)) from error
    return frame, lines[~wrong], lines[wrong]


def _undecodable(
    content: bytes, columns: Sequence[str], separator: bytes, lines: np.ndarray, encoding: str, path: Any
) -> str:
    """Where the first value that is not in `encoding` stands."""
    for number, line in zip(lines, io.BytesIO(content), strict=True):
        for name, value in zip(columns, line.rstrip(b"\r\n").split(separator), strict=True):
            try:
                value.decode(encoding)
            except UnicodeDecodeError:
                return f"{path} is not in {encoding}: line {number}, column {name!r} holds {value!r}."
    return f"{path} is not in {encoding}."
