"""What the values of raw rows spell, and why one can't be read."""

from __future__ import annotations

import csv
import decimal
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from keras_eta.datasets.times import iso_seconds

# A float of 2**53 may stand for 2**53 + 1 as well.
_LARGEST_EXACT_FLOAT = 2**53 - 1
_LARGEST_EXACT_FLOAT32 = 2**24 - 1
_LARGEST_FLOAT = float(np.finfo("float32").max)
MISSING = "missing"
NON_INTEGER = "non-integer"
_INTEGER = re.compile("[+-]?[0-9]+")


class MalformedRowError(ValueError):
    """A row that can't be read; its text is the reason, worded to follow a number."""


def split_row(line: str, separator: str) -> list[str]:
    """The values of a CSV row.

    Raises:
        MalformedRowError: if its quotes don't match.
    """
    if '"' not in line or len(separator) > 1:
        return line.split(separator)
    try:
        (row,) = csv.reader([line], delimiter=separator, strict=True)
    except csv.Error as error:
        raise MalformedRowError("with unmatched quotes") from error
    return row


def parse_integer(value: Any) -> int:
    """The int64 that a value spells; a whole float spells one as well.

    Raises:
        MalformedRowError: if it spells none; "missing", "non-numeric", "non-finite", "non-integer" or "out-of-range".
    """
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if not isinstance(value, int):
        decimal = parse_float(value)
        exact = _LARGEST_EXACT_FLOAT if not isinstance(value, np.float32) else _LARGEST_EXACT_FLOAT32
        if decimal != math.floor(decimal) or abs(decimal) > exact:
            raise MalformedRowError(NON_INTEGER)
        value = decimal
    if not -(2**63) <= value < 2**63:
        raise MalformedRowError("out-of-range")
    return int(value)


def parse_float(value: Any) -> float:
    """The number that a value spells; finite as float32.

    Raises:
        MalformedRowError: if it spells none; "missing", "non-numeric" or "non-finite".
    """
    if value is None or value in ("", b"") or value != value:
        raise MalformedRowError(MISSING)
    try:
        # Digits of other scripts and "1_000" are numbers to Python, not to a log.
        number = float("?" if isinstance(value, str) and ("_" in value or not value.isascii()) else value)
    except (TypeError, ValueError):
        raise MalformedRowError("non-numeric") from None
    if not abs(number) <= _LARGEST_FLOAT:
        raise MalformedRowError("non-finite")
    return number


def parse_string(value: Any) -> bytes:
    """A value as UTF-8.

    Raises:
        MalformedRowError: "missing", "undecodable" where bytes are not UTF-8, or "non-integer" for a whole float beyond
            2**53, which stands for several integers.
    """
    if value is None or value in ("", b"") or value != value:
        raise MalformedRowError(MISSING)
    if isinstance(value, (float, np.float32, decimal.Decimal)) and math.isfinite(value) and value == math.floor(value):
        # A column of integers is one of floats in files where a value is missing: both spell the same.
        value = parse_integer(value if isinstance(value, np.float32) else float(value))
    if isinstance(value, bytes):
        try:
            value.decode()
        except UnicodeDecodeError:
            raise MalformedRowError("undecodable") from None
        return value
    return str(value).encode()


def parse_timestamp(value: Any) -> int:
    """The int64 that a value spells, or the seconds since 1970 of an ISO 8601 date.

    Raises:
        MalformedRowError: as `parse_integer`.
    """
    seconds = iso_seconds(value) if isinstance(value, str) else None
    return parse_integer(value) if seconds is None else seconds


def column_values(column: Any) -> list[Any]:
    """The values of a Parquet column; moments as seconds since 1970, fractions cut off, float32 as it is."""
    if pa.types.is_float32(column.type) or pa.types.is_float16(column.type):
        return [None if value is None else np.float32(value) for value in column.to_pylist()]
    if pa.types.is_temporal(column.type):
        unit = column.type.unit if pa.types.is_timestamp(column.type) else "s"
        # Without its time zone, a moment is what Parquet holds: UTC.
        moments = pa.compute.floor_temporal(column.cast(pa.timestamp(unit)), unit="second")
        column = moments.cast(pa.timestamp("s")).cast(pa.int64())
    return column.to_pylist()


# What spells a value of each type.
PARSERS: Mapping[type, Callable[[Any], Any]] = {int: parse_integer, float: parse_float, bytes: parse_string}
