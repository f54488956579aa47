"""Logs of interactions: checked, counted, sorted by user and time."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from keras_eta.datasets.times import datetime_seconds, iso_seconds
from keras_eta.features import TIMESTAMP
from keras_eta.validation import exact_integers

USER_ID = "user_id"
ITEM_ID = "item_id"
REQUIRED_COLUMNS = (USER_ID, ITEM_ID, TIMESTAMP)

# Strings are held as codes and categories: a log repeats few ids millions of times.
Column: TypeAlias = np.ndarray | pd.Categorical

_NUM_EXAMPLES = 5


@dataclasses.dataclass(frozen=True)
class Rejection:
    """Rows that were left out for one reason.

    Args:
        reason: why, worded to follow a number: `"negative user_id"`.
        count: how many rows.
        lines: numbers of the first few of them, ascending; empty where lines mean nothing.
    """

    reason: str
    count: int
    lines: tuple[int, ...] = ()

    @classmethod
    def at_lines(cls, reason: str, lines: np.ndarray) -> Rejection:
        """The rejection of the rows at `lines`, with the lowest few as examples."""
        return cls(reason, len(lines), tuple(np.sort(lines)[:_NUM_EXAMPLES].tolist()))

    def __str__(self) -> str:
        text = f"{self.count:,} {self.reason}"
        if self.lines:
            more = ", ..." if self.count > len(self.lines) else ""
            text += f" (line{'s' if self.count > 1 else ''} {', '.join(map(str, self.lines))}{more})"
        return text


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the rows that were read.

    A row that is bad for several reasons is counted under the first, so `rows_read` equals `rows_kept` plus the counts.

    Args:
        rows_read: rows before checking.
        rows_kept: rows after it.
        rejected: the rows left out, by reason.
        notes: whatever else was done to the rows.
    """

    rows_read: int
    rows_kept: int
    rejected: tuple[Rejection, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.rows_read:,} rows read, {self.rows_kept:,} kept"]
        if self.rejected:
            parts.append("dropped: " + ", ".join(map(str, self.rejected)))
        return "; ".join([*parts, *self.notes])


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Interactions:
    """A log of interactions, one row each, sorted by user, then time, then the order in which the rows came.

    Build it with `from_columns` or `from_frame`, which check every row.

    Args:
        columns: name -> column of length n. Numbers are 1-D arrays of int64 or float32, strings a `pandas.Categorical`;
            both are indexed alike. `user_id`, `item_id` and `timestamp` (int64) are always there.
        report: what became of the rows that were read.
        reordered: whether the rows stand in another order than they came in.

    Example:
        >>> columns = {"user_id": [2, 1, 1], "item_id": ["a", "b", "a"], "timestamp": [15, 10, 20]}
        >>> log = Interactions.from_columns(columns)
        >>> log["item_id"]
        array(['b', 'a', 'a'], dtype=object)
    """

    columns: Mapping[str, Column]
    report: Report
    reordered: bool = False

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, Any],
        *,
        integers: Collection[str] = (),
        lines: np.ndarray | None = None,
        rejected: Iterable[Rejection] = (),
    ) -> Interactions:
        """Check the columns of a log, leave bad rows out, sort the rest, and print what was done if anything was.

        A row is left out if a value is missing (NaN, None or ""), the timestamp or a value of `integers` is no integer,
        an integer id (every column named `*_id`) is negative, a float is infinite, bytes are no UTF-8, or it
        equals an earlier row in every column. Floats beyond what their type holds exactly are no integers.

        Datetimes and dates become whole seconds since 1970, int64; those without a time zone are in UTC. So do strings
        of ISO 8601 dates in `timestamp`: "2023-11-14 22:13:20", "2023-11-14T23:13:20+01:00".

        Args:
            columns: name -> sequence of n values: integers, floats (kept as float32; whole numbers in an id or the
                timestamp become int64), strings, bytes in UTF-8, or datetimes. `user_id`, `item_id` and `timestamp` are
                required.
            integers: columns besides `timestamp` that must hold integers. Without it a number spelt wrongly makes its
                column one of strings.
            lines: integers [n], each row's line in its file, for the report. Default: 1 to n.
            rejected: rows that the caller has left out already, to be counted in the report.

        Raises:
            ValueError: if a required column is missing, the log is empty, no row is left, the columns' lengths differ,
                a column mixes types, or one of strings named `*_id` spells an id in two ways, as "1" and "1.0".
        """
        num_rows = count_rows("log", columns)
        rejections = list(rejected)
        rows_read = num_rows + sum(rejection.count for rejection in rejections)
        if rows_read == 0:
            raise ValueError("The log is empty: it has no rows.")
        if lines is None:
            lines = np.arange(1, num_rows + 1)

        bad = np.zeros(num_rows, bool)
        parsed: dict[str, Column] = {}
        for name, values in columns.items():
            parsed[name], faults = parse_column(name, values, integer=name in integers)
            for reason, mask in faults.items():
                mask = mask & ~bad
                if mask.any():
                    rejections.append(Rejection.at_lines(reason, lines[mask]))
                    bad |= mask
        if bad.all():
            raise ValueError(f"No row of the log is usable: {Report(rows_read, 0, tuple(rejections))}")
        if bad.any():
            parsed, lines = _take(parsed, ~bad), lines[~bad]

        order = _time_order(parsed)
        notes = []
        if order is not None:
            users = id_numbers(parsed[USER_ID])[order]
            if ((users[1:] == users[:-1]) & (order[1:] < order[:-1])).any():
                notes.append("the log was not sorted by time: sorted")
            parsed, lines = _take(parsed, order), lines[order]

        duplicates = _duplicates(parsed)
        if len(duplicates):
            reason = "duplicate row" if len(duplicates) == 1 else "duplicate rows"
            rejections.append(Rejection.at_lines(reason, lines[duplicates]))
            keep = np.ones(len(lines), bool)
            keep[duplicates] = False
            parsed, lines = _take(parsed, keep), lines[keep]

        parsed = {
            name: column.remove_unused_categories() if isinstance(column, pd.Categorical) else column
            for name, column in parsed.items()
        }
        report = Report(rows_read, len(lines), tuple(rejections), tuple(notes))
        if report.rejected or report.notes:
            print(f"Interactions: {report}")
        return cls(parsed, report, order is not None)

    @classmethod
    def from_frame(
        cls, frame: pd.DataFrame, *, integers: Collection[str] = (), lines: np.ndarray | None = None
    ) -> Interactions:
        """`from_columns` of a DataFrame's columns. Its index is not read."""
        return cls.from_columns({name: frame[name] for name in frame.columns}, integers=integers, lines=lines)

    def __len__(self) -> int:
        return len(self.columns[USER_ID])

    def __getitem__(self, name: str) -> np.ndarray:
        """The values of a column, [n]: int64, float32, or str objects.

        Raises:
            KeyError: if there is no such column.
        """
        if name not in self.columns:
            raise KeyError(f"The log has no column {name!r}. Present: {list(self.columns)}")
        return np.asarray(self.columns[name])

    def __repr__(self) -> str:
        return (
            f"Interactions({len(self):,} rows, {self.num_users:,} users, {self.num_items:,} items; "
            f"columns: {', '.join(self.columns)})"
        )

    @property
    def num_users(self) -> int:
        """Number of different users."""
        return _num_distinct(self.columns[USER_ID])

    @property
    def num_items(self) -> int:
        """Number of different items."""
        return _num_distinct(self.columns[ITEM_ID])

    def to_frame(self) -> pd.DataFrame:
        """The log as a DataFrame; strings become categorical columns."""
        return pd.DataFrame(dict(self.columns))


def count_rows(table: str, columns: Mapping[str, Any]) -> int:
    """Number of rows of a table of interactions or impressions.

    Args:
        table: what to call it in an error.
        columns: name -> sequence of values.

    Raises:
        ValueError: if a required column is missing or the lengths differ.
    """
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    if missing:
        raise ValueError(f"Missing columns in the {table}: {missing}. Present: {list(columns)}")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"All columns of the {table} must be equally long. Received lengths: {lengths}")
    return lengths[USER_ID]


def parse_column(name: str, values: Any, *, integer: bool = False) -> tuple[Column, dict[str, np.ndarray]]:
    """Bring a column into its inner form and find its bad rows.

    Args:
        name: name of the column. Integers in `*_id` must not be negative.
        values: 1-D sequence of n values.
        integer: whether every value must be an integer; always so for `timestamp`.

    Returns:
        The column of length n, and for each reason a bool mask [n] of the rows that are bad for it. What the column
        holds in a bad row is arbitrary.

    Raises:
        ValueError: if the values have more than one dimension, mix types, or have a type that a log can't hold.
    """
    integer = integer or name == TIMESTAMP
    if np.ndim(values) != 1:
        raise ValueError(f"Column {name!r} must have one dimension. Received: shape {np.shape(values)}")
    series = pd.Series(values)
    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.cat.remove_categories([category for category in series.cat.categories if category == ""])
        kind = pd.api.types.infer_dtype(series.cat.categories)
        if kind != "string" or integer:
            series = series.astype(object)
    elif pd.api.types.is_datetime64_any_dtype(series.dtype):
        kind = "datetime64"
    elif not pd.api.types.is_numeric_dtype(series.dtype):
        series = series.astype(object)
        series = series.mask(series == "")
        kind = pd.api.types.infer_dtype(series, skipna=True)
    else:
        kind = pd.api.types.infer_dtype(series, skipna=True)
    missing = series.isna().to_numpy()
    if len(missing) and missing.all():
        kind = "empty"
    faults = {f"missing {name}": missing}

    if kind == "bytes":
        text = series.str.decode("utf-8", "backslashreplace")
        faults[f"undecodable {name}"] = (text.str.encode("utf-8") != series).to_numpy() & ~missing
        series, kind = text, "string"
    if kind.startswith("date"):
        return datetime_seconds(series), faults
    if name == TIMESTAMP and kind == "string":
        texts = pd.to_numeric(series, errors="coerce").isna() & ~missing
        series = series.where(~texts, series[texts].map(iso_seconds))
    if integer and kind in ("string", "mixed-integer", "mixed"):
        non_numeric = pd.to_numeric(series, errors="coerce").isna().to_numpy() & ~missing
        column, more_faults = _whole_numbers(name, pd.to_numeric(series.where(~(missing | non_numeric), 0)))
        return column, {**faults, f"non-numeric {name}": non_numeric, **more_faults}
    if kind == "string":
        strings = pd.Categorical(series)
        names = strings.categories.astype(object)
        strings = strings.rename_categories(names)
        if not names.is_monotonic_increasing:
            strings = strings.reorder_categories(names.sort_values())
        if name.endswith("_id"):
            _check_spelling(name, names)
        return strings, faults
    if kind in ("integer", "boolean", "floating", "mixed-integer-float", "empty"):
        if missing.any():
            series = series.where(~missing, 0)
        if kind in ("integer", "boolean", "empty") or integer or name.endswith("_id"):
            column, more_faults = _whole_numbers(name, series)
            return column, {**faults, **more_faults}
        with np.errstate(over="ignore"):
            column = series.to_numpy(dtype="float64").astype("float32")
        return column, {**faults, f"non-finite {name}": ~np.isfinite(column)}
    raise ValueError(
        f"Column {name!r} must hold integers, floats or strings, one of them only. Received: {kind} values"
    )


def id_numbers(column: Column) -> np.ndarray:
    """Integers [n] that are equal exactly where the ids are, in the ids' order."""
    return column.codes if isinstance(column, pd.Categorical) else column


def _check_spelling(name: str, ids: pd.Index) -> None:
    """Refuses an id in two spellings, as a file of integers and a file of floats give it."""
    floats = ids[ids.str.fullmatch(r"-?\d+\.0")]
    integers = floats.str.slice(stop=-2)
    both = integers.isin(ids)
    if both.any():
        raise ValueError(
            f"Column {name!r} spells {both.sum():,} ids in two ways, the first as {integers[both][0]!r} and "
            f"{floats[both][0]!r}. Spell each in one."
        )


def _whole_numbers(name: str, numbers: pd.Series) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """`numbers`, without missing values, as int64, and masks of the rows where they can't be or are negative ids."""
    faults = {}
    if pd.api.types.is_integer_dtype(numbers.dtype) or pd.api.types.infer_dtype(numbers) in ("integer", "boolean"):
        limits = np.iinfo("int64")
        if numbers.max() > limits.max or numbers.min() < limits.min:
            raise ValueError(f"Column {name!r} holds integers beyond 64 bits with sign. Give such ids as strings.")
        integers = numbers.to_numpy(dtype="int64")
    else:
        dtype = getattr(numbers.dtype, "numpy_dtype", numbers.dtype)
        floats = numbers.to_numpy(dtype=dtype if dtype.kind == "f" else "float64")
        inexact = ~exact_integers(floats)
        faults[f"non-integer {name}"] = inexact
        integers = np.where(inexact, 0, floats).astype("int64")
    if name.endswith("_id"):
        faults[f"negative {name}"] = integers < 0
    return integers, faults


def _take(columns: Mapping[str, Column], rows: np.ndarray) -> dict[str, Column]:
    return {name: column[rows] for name, column in columns.items()}


def _time_order(columns: Mapping[str, Column]) -> np.ndarray | None:
    """The rows in the order of user and time, ties as they came, or `None` if they stand so already."""
    users, times = id_numbers(columns[USER_ID]), columns[TIMESTAMP]
    if ((users[1:] > users[:-1]) | ((users[1:] == users[:-1]) & (times[1:] >= times[:-1]))).all():
        return None
    return np.lexsort((times, users))


def _duplicates(columns: Mapping[str, Column]) -> np.ndarray:
    """The rows of a sorted log that equal an earlier row in every column."""
    users, times = id_numbers(columns[USER_ID]), columns[TIMESTAMP]
    tied = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    # Equal rows share their user and time: only rows with such a neighbour need comparing.
    rows = np.flatnonzero(np.append(tied, False) | np.append(False, tied))
    frame = pd.DataFrame({name: id_numbers(column)[rows] for name, column in columns.items()})
    return rows[frame.duplicated().to_numpy()]


def _num_distinct(column: Column) -> int:
    return len(pd.unique(id_numbers(column)))
