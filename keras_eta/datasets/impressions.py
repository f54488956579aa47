"""Impressions: rows to train and evaluate on, each with the behaviours strictly before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
import tensorflow as tf

from keras_eta.datasets.interactions import (
    REQUIRED_COLUMNS,
    USER_ID,
    Column,
    Interactions,
    Rejection,
    Report,
    count_rows,
    id_numbers,
    parse_column,
)
from keras_eta.features import (
    HISTORY_AGE,
    HISTORY_LENGTH,
    HISTORY_TIMESTAMP,
    TIMESTAMP,
    Feature,
    Features,
    RawColumns,
    history_name,
)
from keras_eta.ops import age_bucket
from keras_eta.validation import check_integers_from_zero


class Lookup(Protocol):
    """What `Impressions.to_dataset` asks of a `keras_eta.layers.FeatureLookup`."""

    def encode(self, name: str, values: Any) -> np.ndarray:
        """Indices int32 [n] of the raw ids `values` [n] of the feature `name`; never 0, which is padding."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Impressions:
    """Impressions over a log: the candidate and context of each, its label, and where its history lies.

    The history of row i is `log` rows `start[i]:end[i]`: behaviours of the same user, ascending in time, strictly
    before the impression. Behaviours at the impression's own timestamp are never among them: order inside a tie is
    not real order. Nothing is copied until a batch is made.

    `impressions[rows]` (an index array, a bool mask or a slice) is a selection over the same log.

    Args:
        log: the behaviours.
        start: int64 [n], first log row of each history.
        end: int64 [n], the log row after the last of each history.
        columns: name -> column [n]: the candidate's `item_id` and attributes, `user_id` and user features, context,
            `timestamp`. In the forms that `Interactions.from_columns` takes.
        label: int64 [n], 0 or 1.

    Raises:
        ValueError: if a column is missing or has bad values, lengths differ, a label is not 0 or 1, or a history is not
            of the same user or reaches the impression's own timestamp.
    """

    log: Interactions
    start: np.ndarray
    end: np.ndarray
    columns: Mapping[str, Column]
    label: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", _checked_columns(self.columns))
        size = len(self.columns[USER_ID])
        object.__setattr__(self, "label", _checked_label(self.label, size))
        for name in ("start", "end"):
            bound = np.asarray(getattr(self, name), "int64")
            if bound.shape != (size,):
                raise ValueError(f"`{name}` must have shape [{size}]. Received: shape {list(bound.shape)}")
            object.__setattr__(self, name, bound)
        if ((self.start < 0) | (self.start > self.end) | (self.end > len(self.log))).any():
            raise ValueError(f"Histories must be ranges of the log's {len(self.log):,} rows, `start` <= `end`.")
        full = np.flatnonzero(self.end > self.start)
        first, last = self.start[full], self.end[full] - 1
        users = _user_positions(self.log, self.columns[USER_ID])[full]
        log_users = id_numbers(self.log.columns[USER_ID])
        same_user = (users >= 0) & (log_users[first] == log_users[users]) & (log_users[last] == log_users[users])
        before = self.log.columns[TIMESTAMP][last] < self.columns[TIMESTAMP][full]
        if not (same_user & before).all():
            row = full[np.flatnonzero(~(same_user & before))[0]]
            raise ValueError(
                "A history must hold only the user's own behaviours, strictly before the impression. "
                f"Received at row {row}: start={self.start[row]}, end={self.end[row]}"
            )

    @classmethod
    def from_columns(
        cls, log: Interactions, columns: Mapping[str, Any], label: Any, *, min_history: int = 0
    ) -> Impressions:
        """Find the history of each impression in a log of behaviours.

        Args:
            log: the behaviours.
            columns: name -> column [n] of the impressions; `user_id`, `item_id` and `timestamp` are required. A user
                whom the log lacks has an empty history.
            label: bool or integers [n], 0 or 1.
            min_history: impressions with fewer earlier behaviours are left out, and the number of them printed.

        Raises:
            ValueError: as the constructor; if `min_history` is negative; if it leaves no impression.
        """
        check_integers_from_zero(min_history=min_history)
        checked = _checked_columns(columns)
        start, end = history_bounds(log, checked[USER_ID], checked[TIMESTAMP])
        impressions = cls(log, start, end, checked, label)
        counts = impressions.history_counts
        kept = np.flatnonzero(counts >= min_history)
        if len(kept) == len(counts):
            return impressions
        if not len(kept):
            raise ValueError(
                f"No impression has `min_history`={min_history} earlier behaviours; the longest history has "
                f"{counts.max()}."
            )
        short = Rejection(f"with fewer than {min_history} earlier behaviours", len(counts) - len(kept))
        print(f"Impressions: {Report(len(counts), len(kept), (short,))}")
        return impressions[kept]

    @classmethod
    def from_interactions(
        cls,
        log: Interactions,
        label: Any | Callable[[Interactions], Any],
        *,
        min_history: int = 5,
        outcomes: Sequence[str] = (),
    ) -> Impressions:
        """Take every interaction of a log as an impression of its item.

        Args:
            log: the interactions; also the behaviours that make up the histories.
            label: a function of the log that returns bool or integers [n], 0 or 1. Or these values themselves, where
                the rows of the log stand in the order in which they came.
            min_history: impressions with fewer earlier behaviours are left out, and the number of them printed.
            outcomes: columns that are known only once the impression is over (rating, dwell, action). The impressions
                lack them, so no model can read the answer; histories have them.

        Raises:
            ValueError: as `from_columns`; if the log lacks one of `outcomes`; if `label` is no function and the rows of
                the log were sorted or left out.

        Example:
            >>> impressions = Impressions.from_interactions(
            ...     log, label=lambda log: log["rating"] >= 4, outcomes=("rating",)
            ... )
        """
        unknown = [name for name in outcomes if name not in log.columns or name in REQUIRED_COLUMNS]
        if unknown:
            raise ValueError(
                f"`outcomes` must name columns of {list(log.columns)}, the required ones excepted. Received: {unknown}"
            )
        if not callable(label):
            left_out = np.size(label) == log.report.rows_read != len(log)
            if log.reordered or left_out:
                happened = "left out" if left_out else "sorted"
                raise ValueError(
                    f"Rows of the log were {happened}, so the values of `label` may belong to other rows. Make what "
                    "tells the label a column of the log, and `label` a function of the log, e.g. label=lambda log: "
                    f"log['clicked'], outcomes=('clicked',). Received: label={type(label).__name__}"
                )
        columns = {name: column for name, column in log.columns.items() if name not in outcomes}
        return cls.from_columns(log, columns, label(log) if callable(label) else label, min_history=min_history)

    @property
    def history_counts(self) -> np.ndarray:
        """int64 [n], how many behaviours lie before each impression, before any truncation."""
        return self.end - self.start

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: Any) -> Impressions:
        return Impressions(
            self.log,
            self.start[rows],
            self.end[rows],
            {name: column[rows] for name, column in self.columns.items()},
            self.label[rows],
        )

    def __repr__(self) -> str:
        return f"Impressions({len(self):,} rows, columns: {', '.join(self.columns)}; log: {self.log!r})"

    def sample(self, size: int, seed: int = 0) -> Impressions:
        """`size` impressions drawn without replacement, in their order.

        Raises:
            ValueError: if there are fewer.
        """
        if not 0 < size <= len(self):
            raise ValueError(f"`size` must be between 1 and {len(self)}, the number of rows. Received: size={size}")
        return self[np.sort(np.random.default_rng(seed).choice(len(self), size, replace=False))]

    def to_dataset(
        self,
        features: Features,
        batch_size: int,
        *,
        lookup: Lookup | None = None,
        shuffle: bool = False,
        seed: int | None = None,
        drop_remainder: bool = False,
    ) -> tf.data.Dataset:
        """Batches of (inputs, label) for `model.fit`, of known cardinality.

        With L = `features.max_history_length` the inputs hold, for each column that `features` names, `<name>` [N] of
        the row and `history_<name>` [N, L] of its behaviours, most recent first, and `history_length` int64 [N], the
        number of behaviours among the L. Histories are padded with 0, 0.0 or "". The label is int64 [N].

        Ids are raw (int64 or string), and refused by rankers, unless a `lookup` is given. It turns each column into
        indices once, here, so batches carry int32 indices under the same names, padded with 0, and training pays for no
        lookup.

        With `features.age` raw batches hold `timestamp` int64 [N] and `history_timestamp` int64 [N, L], and batches of
        indices `history_age` int32 [N, L] in place of both.

        Args:
            features: the columns that the model reads.
            batch_size: N.
            lookup: a `keras_eta.layers.FeatureLookup` of the same features.
            shuffle: whether to go through all rows in a new random order every epoch.
            seed: of the shuffle; `None` draws one.
            drop_remainder: whether to leave out a last, smaller batch.

        Raises:
            ValueError: if there are no rows, `batch_size` is not positive, a column is missing, or its type is not the
                feature's.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a positive integer. Received: batch_size={batch_size!r}")
        if not len(self):
            raise ValueError("There are no impressions to make a dataset of.")
        row_features = (*features.user, *features.context, *features.item_features)
        rows = {feature.name: _table(feature, self.columns, "impressions", lookup) for feature in row_features}
        histories = {
            history_name(feature.name): _table(feature, self.log.columns, "interactions", lookup)
            for feature in features.history_features
        }
        # How far back from `end` each of L behaviours lies. A table has padding at 0, so log row r stands at r + 1.
        # The [N, L] positions are most of what a batch costs: they are half as wide where the log allows it.
        position = tf.int32 if len(self.log) < tf.int32.max else tf.int64
        back = tf.range(features.max_history_length, dtype=position)
        end = tf.constant(self.end, position)
        length = tf.constant(np.minimum(self.history_counts, features.max_history_length))
        label = tf.constant(self.label)
        if features.age is not None:
            timestamp = tf.constant(self.columns[TIMESTAMP])
            history_timestamp = _gather_from(np.append(0, self.log.columns[TIMESTAMP]))

        def gather(row: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            lengths = tf.gather(length, row)
            real = back < tf.cast(lengths, position)[:, None]
            positions = tf.where(real, tf.gather(end, row)[:, None] - back, 0)
            inputs = {name: table(row + 1) for name, table in rows.items()}
            inputs |= {name: table(positions) for name, table in histories.items()}
            if features.age is not None:
                now, moments = tf.gather(timestamp, row), history_timestamp(positions)
                if lookup is None:
                    inputs |= {TIMESTAMP: now, HISTORY_TIMESTAMP: moments}
                else:
                    inputs[HISTORY_AGE] = age_bucket(now, moments, features.age.boundaries, positions > 0)
            inputs[HISTORY_LENGTH] = lengths
            return RawColumns(inputs) if lookup is None else inputs, tf.gather(label, row)

        dataset = _shuffled_range(len(self), seed) if shuffle else tf.data.Dataset.range(len(self))
        dataset = dataset.batch(batch_size, drop_remainder=drop_remainder)
        return dataset.map(gather, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def temporal_split(
    impressions: Impressions,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    *,
    timestamps: np.ndarray | None = None,
) -> tuple[Impressions, Impressions, Impressions]:
    """Split by time: train on the past, evaluate on the future.

    With (0.8, 0.1, 0.1), train <= 80 % quantile < validation <= 90 % quantile < test.

    Args:
        impressions: what to split.
        fractions: shares of `timestamps` in train, validation and test.
        timestamps: 1-D numbers whose quantiles bound the parts. Default: those of the whole log, which is the usual
            choice where every interaction is an impression.

    Returns:
        Train, validation and test impressions.

    Raises:
        ValueError: if `fractions` are not three positive numbers that add up to 1, or a part is empty.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or not np.isclose(sum(fractions), 1):
        raise ValueError(
            f"`fractions` must be three positive numbers that add up to 1. Received: fractions={fractions}"
        )
    if timestamps is None:
        timestamps = impressions.log.columns[TIMESTAMP]
    lower, upper = np.quantile(timestamps, [fractions[0], 1 - fractions[2]])
    times = impressions.columns[TIMESTAMP]
    parts = {
        "train": times <= lower,
        "validation": (times > lower) & (times <= upper),
        "test": times > upper,
    }
    sizes = {name: int(mask.sum()) for name, mask in parts.items()}
    if not all(sizes.values()):
        raise ValueError(
            f"A temporal split at timestamps {lower:.10g} and {upper:.10g} leaves a part empty: {sizes}. Use other "
            "`fractions` or more data."
        )
    train, validation, test = (impressions[mask] for mask in parts.values())
    return train, validation, test


def history_bounds(log: Interactions, user_id: Column, timestamp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the behaviours of a user strictly before a moment lie in a log.

    Args:
        log: the behaviours, N rows.
        user_id: users, [n].
        timestamp: int64 [n].

    Returns:
        int64 [n] twice: the history of row i is log rows `start[i]:end[i]`. Both are 0 for a user whom the log lacks.
    """
    first = _user_positions(log, user_id)
    moments: np.ndarray = np.unique(log.columns[TIMESTAMP])
    # The log is sorted by user, then time: one binary search over a joint key finds where a history ends.
    span = len(moments) + 1
    log_key = _user_positions(log, log.columns[USER_ID]) * span + np.searchsorted(moments, log.columns[TIMESTAMP])
    end = np.searchsorted(log_key, first * span + np.searchsorted(moments, timestamp))
    # The key of an unknown user, at -1, is below all others: its end is 0.
    return np.maximum(first, 0), end


def _user_positions(log: Interactions, user_id: Column) -> np.ndarray:
    """int64 [n], the first log row of each user, or -1 for a user whom the log lacks."""
    log_users = log.columns[USER_ID]
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


def _checked_columns(columns: Mapping[str, Any]) -> dict[str, Column]:
    count_rows("impressions", columns)
    checked = {}
    for name, values in columns.items():
        checked[name], faults = parse_column(name, values)
        for reason, mask in faults.items():
            if mask.any():
                row = mask.argmax()
                raise ValueError(
                    f"The impressions hold {mask.sum():,} {reason}, the first at row {row}. Leave them out."
                )
    return checked


def _checked_label(label: Any, size: int) -> np.ndarray:
    values = np.asarray(label)
    if values.shape != (size,):
        raise ValueError(f"`label` must have shape [{size}]. Received: shape {list(values.shape)}")
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"`label` must hold 0 and 1 only. Received: {pd.unique(values[~np.isin(values, (0, 1))])[:5]}")
    return values.astype("int64")


def _shuffled_range(size: int, seed: int | None) -> tf.data.Dataset:
    """The numbers below `size` in a new random order every epoch."""

    # `Dataset.shuffle` with a full buffer holds a tensor an element: 20 times slower, 200 bytes a row.
    def permutation(key: tf.Tensor) -> tf.data.Dataset:
        numbers = tf.range(tf.constant(size, tf.int64))
        shuffled = tf.random.experimental.stateless_shuffle(numbers, seed=tf.stack([key, 0]))
        return tf.data.Dataset.from_tensor_slices(shuffled)

    keys = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).take(1)
    return keys.flat_map(permutation).apply(tf.data.experimental.assert_cardinality(size))


def _table(
    feature: Feature, columns: Mapping[str, Column], owner: str, lookup: Lookup | None
) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function from positions to values of `feature`: position 0 is padding, position r + 1 is row r."""
    if feature.name not in columns:
        raise ValueError(f"The table of {owner} has no column {feature.name!r}. Present: {list(columns)}")
    column = columns[feature.name]
    held = "string" if isinstance(column, pd.Categorical) else str(column.dtype)
    if held != feature.dtype and (held, feature.dtype) != ("int64", "float32"):
        raise ValueError(
            f"Feature {feature.name!r} has dtype {feature.dtype!r}, but the column of the {owner} holds {held}."
        )
    if not isinstance(column, pd.Categorical):
        if feature.is_id and lookup is not None:
            column = lookup.encode(feature.name, column)
        values = column.astype("float32", copy=False) if feature.dtype == "float32" else column
        return _gather_from(np.append(np.zeros(1, values.dtype), values))

    names = column.categories.to_numpy(dtype=object)
    codes = np.append(np.zeros(1, "int32"), column.codes.astype("int32") + 1)
    if lookup is not None:
        return _gather_from(np.append(np.zeros(1, "int32"), lookup.encode(feature.name, names))[codes])
    strings, code = _gather_from(np.append("", names)), _gather_from(codes)
    return lambda positions: strings(code(positions))


def _gather_from(values: np.ndarray) -> Callable[[tf.Tensor], tf.Tensor]:
    tensor = tf.constant(values)
    return lambda positions: tf.gather(tensor, positions)
