"""Logs of interactions: checked, counted, sorted by user and time."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from keras_eta.columns import ITEM_ID, TIMESTAMP
from keras_eta.datasets.columns import (
    REQUIRED_COLUMNS,
    USER_ID,
    Column,
    ValueLists,
    count_rows,
    id_numbers,
    parse_column,
    user_positions,
)
from keras_eta.time_units import usual_time_unit

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
        columns: name -> column of length n. Numbers are 1-D arrays of int64 or float32, strings a `pandas.Categorical`,
            several values per row `ValueLists`; all are indexed alike. `user_id`, `item_id` and `timestamp` (int64) are
            always there.
        report: what became of the rows that were read.
        reordered: whether the rows stand in another order than they came in.
        optional: columns of floats, of the log or of impressions over it, in which NaN is a missing value.

    Example:
        >>> columns = {"user_id": [2, 1, 1], "item_id": ["a", "b", "a"], "timestamp": [15, 10, 20]}
        >>> log = Interactions.from_columns(columns)
        >>> log["item_id"]
        array(['b', 'a', 'a'], dtype=object)
    """

    columns: Mapping[str, Column]
    report: Report
    reordered: bool = False
    optional: tuple[str, ...] = ()

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, Any],
        *,
        integers: Collection[str] = (),
        optional: Collection[str] = (),
        lines: np.ndarray | None = None,
        rejected: Iterable[Rejection] = (),
    ) -> Interactions:
        """Check the columns of a log, leave bad rows out, sort the rest, and print what was done if anything was.

        A row is left out if a value is missing (NaN, None or ""), the timestamp or a value of `integers` is no integer,
        an integer id (every column named `*_id`) is negative, a float is infinite, bytes are no UTF-8, or it
        equals an earlier row in every column. Floats beyond what their type holds exactly are no integers.

        Datetimes and dates become whole seconds since 1970, int64; those without a time zone are in UTC. So do strings
        of ISO 8601 dates in `timestamp`: "2023-11-14 22:13:20", "2023-11-14T23:13:20+01:00".

        Integers are moments in any unit, or of any clock. Where most are moments since 1970 in seconds, or in milli-,
        micro- or nanoseconds, rows whose timestamp is none in that unit, between 1973 and 2286, are left out.

        Args:
            columns: name -> sequence of n values: integers, floats (kept as float32; whole numbers in an id or the
                timestamp become int64), strings, bytes in UTF-8, or datetimes; or lists of integers or strings, as the
                genres of films. `user_id`, `item_id` and `timestamp` are required.
            integers: columns besides `timestamp` that must hold integers. Without it a number spelt wrongly makes its
                column one of strings.
            optional: columns of floats, of the log or of impressions over it, in which values may be missing, as a
                `Feature(..., optional=True)` reads them: they become NaN, and no row is left out for one.
            lines: integers [n], each row's line in its file, for the report. Default: 1 to n.
            rejected: rows that the caller has left out already, to be counted in the report.

        Raises:
            ValueError: if a required column is missing, the log is empty, no row is left, the columns' lengths differ,
                `optional` names a column of ids or integers, a column mixes types, or one of strings named `*_id`
                spells an id in two ways, as "1" and "1.0".
        """
        num_rows = count_rows("log", columns)
        rejections = list(rejected)
        rows_read = num_rows + sum(rejection.count for rejection in rejections)
        if rows_read == 0:
            raise ValueError("The log is empty: it has no rows.")
        if lines is None:
            lines = np.arange(1, num_rows + 1)
        wrong = sorted({*optional} & {*REQUIRED_COLUMNS, *integers})
        if wrong:
            raise ValueError(f"`optional` must name columns of floats. Received: {wrong}")

        bad = np.zeros(num_rows, bool)
        parsed: dict[str, Column] = {}
        for name, values in columns.items():
            parsed[name], faults = parse_column(name, values, integer=name in integers, optional=name in optional)
            for reason, mask in faults.items():
                mask = mask & ~bad
                if mask.any():
                    rejections.append(Rejection.at_lines(reason, lines[mask]))
                    bad |= mask
        times, notes = np.asarray(parsed[TIMESTAMP]), []
        unit, others = usual_time_unit(times[~bad])
        if others.any():
            odd = np.flatnonzero(~bad)[others]
            rejections.append(Rejection.at_lines(f"with a timestamp that is not in {unit}, as most are", lines[odd]))
            bad[odd] = True
        if unit not in ("", "seconds"):
            notes.append(f"timestamps are {unit} since 1970: give ages and periods in {unit} too")
        if bad.all():
            raise ValueError(f"No row of the log is usable: {Report(rows_read, 0, tuple(rejections))}")
        if bad.any():
            parsed, lines = _take(parsed, ~bad), lines[~bad]

        order = _time_order(parsed)
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
            name: column if isinstance(column, np.ndarray) else column.remove_unused_categories()
            for name, column in parsed.items()
        }
        report = Report(rows_read, len(lines), tuple(rejections), tuple(notes))
        if report.rejected or report.notes:
            print(f"Interactions: {report}")
        return cls(parsed, report, order is not None, tuple(optional))

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        *,
        integers: Collection[str] = (),
        optional: Collection[str] = (),
        lines: np.ndarray | None = None,
    ) -> Interactions:
        """`from_columns` of a DataFrame's columns. Its index is not read."""
        columns = {name: frame[name] for name in frame.columns}
        return cls.from_columns(columns, integers=integers, optional=optional, lines=lines)

    def __len__(self) -> int:
        return len(self.columns[USER_ID])

    def __getitem__(self, name: str) -> np.ndarray:
        """The values of a column, [n]: int64, float32, str objects, or arrays of several values.

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
    def timestamps(self) -> np.ndarray:
        """int64 [n], when each interaction was."""
        return np.asarray(self.columns[TIMESTAMP])

    @property
    def num_users(self) -> int:
        """Number of different users."""
        return _num_distinct(self.columns[USER_ID])

    @property
    def num_items(self) -> int:
        """Number of different items."""
        return _num_distinct(self.columns[ITEM_ID])

    def bounds(self, user_id: Column, timestamp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the behaviours of users strictly before a moment lie in the log.

        Args:
            user_id: users, [n].
            timestamp: int64 [n].

        Returns:
            int64 [n] twice: the history of row i is log rows `start[i]:end[i]`. Both are 0 for a user whom the log
            lacks.
        """
        first = user_positions(self.columns[USER_ID], user_id)
        moments: np.ndarray = np.unique(self.timestamps)
        # The log is sorted by user, then time: one binary search over a joint key finds where a history ends.
        span = len(moments) + 1
        own = user_positions(self.columns[USER_ID], self.columns[USER_ID])
        log_key = own * span + np.searchsorted(moments, self.timestamps)
        end = np.searchsorted(log_key, first * span + np.searchsorted(moments, timestamp))
        # The key of an unknown user, at -1, is below all others: its end is 0.
        return np.maximum(first, 0), end

    def check_bounds(self, start: np.ndarray, end: np.ndarray, user_id: Column, timestamp: np.ndarray) -> None:
        """Checks that histories hold only the user's own behaviours, strictly before a moment.

        Args:
            start: int64 [n], first log row of each history.
            end: int64 [n], the log row after the last.
            user_id: users, [n].
            timestamp: int64 [n].

        Raises:
            ValueError: if one does not.
        """
        check_ranges(start, end, len(self), len(timestamp))
        full = np.flatnonzero(end > start)
        first, last = start[full], end[full] - 1
        users = user_positions(self.columns[USER_ID], user_id)[full]
        log_users = id_numbers(self.columns[USER_ID])
        same_user = (users >= 0) & (log_users[first] == log_users[users]) & (log_users[last] == log_users[users])
        fine = same_user & (self.timestamps[last] < timestamp[full])
        if not fine.all():
            row = full[np.flatnonzero(~fine)[0]]
            raise ValueError(
                "A history must hold only the user's own behaviours, strictly before the impression. "
                f"Received at row {row}: start={start[row]}, end={end[row]}"
            )

    def to_frame(self) -> pd.DataFrame:
        """The log as a DataFrame; strings become categorical columns, several values arrays."""
        values = {name: self[name] if isinstance(x, ValueLists) else x for name, x in self.columns.items()}
        return pd.DataFrame(values)


def _take(columns: Mapping[str, Column], rows: np.ndarray) -> dict[str, Column]:
    return {name: column[rows] for name, column in columns.items()}


def _time_order(columns: Mapping[str, Column]) -> np.ndarray | None:
    """The rows in the order of user and time, ties as they came, or `None` if they stand so already."""
    users, times = id_numbers(columns[USER_ID]), np.asarray(columns[TIMESTAMP])
    if ((users[1:] > users[:-1]) | ((users[1:] == users[:-1]) & (times[1:] >= times[:-1]))).all():
        return None
    return np.lexsort((times, users))


def _duplicates(columns: Mapping[str, Column]) -> np.ndarray:
    """The rows of a sorted log that equal an earlier row in every column."""
    users, times = id_numbers(columns[USER_ID]), np.asarray(columns[TIMESTAMP])
    tied = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    # Equal rows share their user and time: only rows with such a neighbour need comparing.
    rows = np.flatnonzero(np.append(tied, False) | np.append(False, tied))
    frame = pd.DataFrame({name: id_numbers(column[rows]) for name, column in columns.items()})
    return rows[frame.duplicated().to_numpy()]


def _num_distinct(column: Column) -> int:
    return len(pd.unique(id_numbers(column)))


def check_ranges(start: np.ndarray, end: np.ndarray, log_rows: int, num_rows: int) -> None:
    """Checks that bounds are ranges of a log's rows.

    Raises:
        ValueError: if they are not, or are not `num_rows`.
    """
    for name, bound in (("start", start), ("end", end)):
        if bound.shape != (num_rows,):
            raise ValueError(f"`{name}` must have shape [{num_rows}]. Received: shape {list(bound.shape)}")
    if ((start < 0) | (start > end) | (end > log_rows)).any():
        raise ValueError(f"Histories must be ranges of the log's {log_rows:,} rows, `start` <= `end`.")
