"""Columns of logs and impressions: checked values in one of three forms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from keras_eta.columns import ITEM_ID, TIMESTAMP
from keras_eta.datasets.times import datetime_seconds, iso_seconds
from keras_eta.validation import exact_integers

USER_ID = "user_id"
REQUIRED_COLUMNS = (USER_ID, ITEM_ID, TIMESTAMP)


@dataclasses.dataclass(frozen=True, eq=False)
class ValueLists:
    """A column with any number of values per row, e.g. the genres of films. It is indexed as an array is.

    Args:
        values: the values of all rows: an array of int64, or strings as a `pandas.Categorical`.
        starts: int64 [n], where those of each row begin.
        lengths: int64 [n], how many they are.
    """

    values: np.ndarray | pd.Categorical
    starts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: Any) -> ValueLists:
        return ValueLists(self.values, self.starts[rows], self.lengths[rows])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        values = np.asarray(self.values)
        lists = np.empty(len(self), object)
        for row, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            lists[row] = values[start : start + length]
        return lists

    def padded(self, max_values: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the first values of each row stand.

        Args:
            max_values: V.

        Returns:
            int64 [n, V], indices into `values`, 0 at padding; and int64 [n], how many are real.
        """
        lengths = np.minimum(self.lengths, max_values)
        back = np.arange(max_values)
        return np.where(back < lengths[:, None], self.starts[:, None] + back, 0), lengths

    def remove_unused_categories(self) -> ValueLists:
        """The same rows without the values of others."""
        index = np.repeat(self.starts - np.cumsum(self.lengths) + self.lengths, self.lengths)
        values = self.values[index + np.arange(len(index))]
        if isinstance(values, pd.Categorical):
            values = values.remove_unused_categories()
        return ValueLists(values, np.cumsum(self.lengths) - self.lengths, self.lengths)


# An array of int64 or float32, a `pandas.Categorical`, or `ValueLists`, all indexed alike. Strings are held as codes
# and categories, since a log repeats few ids millions of times.
Column: TypeAlias = Any


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


def parse_column(
    name: str, values: Any, *, integer: bool = False, optional: bool = False
) -> tuple[Column, dict[str, np.ndarray]]:
    """Brings a column into its inner form and finds its bad rows.

    Args:
        name: name of the column. Integers in `*_id` must not be negative.
        values: 1-D sequence of n values, or of n lists of values.
        integer: whether every value must be an integer; always so for `timestamp`.
        optional: whether the column is one of floats of which some may be missing: NaN.

    Returns:
        The column of length n, and for each reason a bool mask [n] of the rows that are bad for it. What the column
        holds in a bad row is arbitrary.

    Raises:
        ValueError: if the values have more than one dimension, mix types, or have a type that a log can't hold.
    """
    integer = integer or name == TIMESTAMP
    if optional:
        return _parse_optional(name, values)
    if name not in REQUIRED_COLUMNS and _holds_lists(values):
        return _parse_lists(name, values, integer)
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


def _parse_optional(name: str, values: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    series = pd.Series(values, dtype=object)
    missing = (series.isna() | (series == "")).to_numpy()
    numbers = pd.to_numeric(series.where(~missing, 0), errors="coerce")
    non_numeric = numbers.isna().to_numpy()
    with np.errstate(over="ignore"):
        column = numbers.to_numpy(dtype="float64").astype("float32")
    infinite = np.isinf(column)
    column[missing] = np.nan
    return column, {f"non-numeric {name}": non_numeric, f"non-finite {name}": infinite}


def id_numbers(column: Column) -> np.ndarray:
    """Integers [n] that are equal exactly where the ids are, in the ids' order; of lists, tuples of them."""
    if isinstance(column, ValueLists):
        values = id_numbers(column.values)
        ranges = zip(column.starts, column.starts + column.lengths, strict=True)
        return np.fromiter((tuple(values[start:end]) for start, end in ranges), object, len(column))
    return column.codes if isinstance(column, pd.Categorical) else column


def user_positions(log_users: Column, user_id: Column) -> np.ndarray:
    """int64 [n], the first row of each user of `user_id` [n] in the sorted `log_users`, or -1 where there is none."""
    if isinstance(log_users, pd.Categorical) and isinstance(user_id, pd.Categorical):
        wanted = np.append(log_users.categories.get_indexer(user_id.categories), -1)[user_id.codes]
    elif isinstance(log_users, pd.Categorical) or isinstance(user_id, pd.Categorical):
        raise ValueError("Column 'user_id' must hold strings in both the log and the impressions, or in neither.")
    else:
        wanted = user_id
    sorted_users = id_numbers(log_users)
    first = np.searchsorted(sorted_users, wanted)
    found = sorted_users[np.minimum(first, len(sorted_users) - 1)] == wanted
    return np.where(found, first, -1)


def _holds_lists(values: Any) -> bool:
    if isinstance(values, ValueLists):
        return True
    first = next(iter(values), None) if len(values) else None
    return isinstance(first, (list, tuple, np.ndarray)) and np.ndim(first) == 1


def _parse_lists(name: str, values: Any, integer: bool) -> tuple[ValueLists, dict[str, np.ndarray]]:
    if isinstance(values, ValueLists):
        return values, {}
    missing = np.array([not isinstance(value, (list, tuple, np.ndarray)) for value in values], bool)
    lists = [() if bad else value for value, bad in zip(values, missing, strict=True)]
    lengths = np.array([len(value) for value in lists], np.int64)
    flat, found = parse_column(name, [part for value in lists for part in value], integer=integer)
    if isinstance(flat, ValueLists):
        raise ValueError(f"Column {name!r} must hold values or lists of them, not lists of lists.")
    if not isinstance(flat, pd.Categorical) and flat.dtype != np.int64:
        raise ValueError(f"Column {name!r} must hold lists of integers or strings. Received: lists of {flat.dtype}")
    rows = np.repeat(np.arange(len(lists)), lengths)
    faults = {f"missing {name}": missing}
    for reason, mask in found.items():
        of_rows = np.zeros(len(lists), bool)
        of_rows[rows[mask]] = True
        faults[reason] = of_rows | faults.get(reason, False)
    return ValueLists(flat, np.cumsum(lengths) - lengths, lengths), faults


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
