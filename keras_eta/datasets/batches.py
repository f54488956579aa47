"""Batches of impressions: a `tf.data.Dataset` that gathers histories as it goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import pandas as pd
import tensorflow as tf

from keras_eta.columns import HISTORY, TIMESTAMP, Feature, RawColumns, Sequence, length_name
from keras_eta.datasets.columns import Column, ValueLists
from keras_eta.datasets.histories import Histories
from keras_eta.features import Features
from keras_eta.ops import age_bucket
from keras_eta.ops.calendar import calendar_columns
from keras_eta.tf_data import without_autotuning

PREFETCHED = 2

# From positions to columns: position 0 is padding, position r + 1 is row r.
_Table = Callable[[tf.Tensor], dict[str, tf.Tensor]]


class Lookup(Protocol):
    """What `Impressions.to_dataset` asks of a `keras_eta.layers.FeatureLookup`."""

    def encode(self, name: str, values: Any) -> np.ndarray:
        """Indices int32 [n] of the raw ids `values` [n] of the feature `name`; never 0, which is padding."""


def make_dataset(
    columns: Mapping[str, Column],
    labels: np.ndarray,
    histories: Mapping[str, Histories],
    features: Features,
    batch_size: int,
    lookup: Lookup | None,
    shuffle: bool,
    seed: int | None,
    drop_remainder: bool,
) -> tf.data.Dataset:
    """What `Impressions.to_dataset` returns; its docstring tells the arguments."""
    rows = [_table(f, f.name, columns, "impressions", lookup) for f in features.row_features]
    sequences = [_sequence(histories, features, sequence, lookup) for sequence in features.all_sequences]
    label = tf.constant(labels)
    timestamp = tf.constant(np.asarray(columns[TIMESTAMP]))

    def gather(row: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        inputs: dict[str, tf.Tensor] = {}
        for table in rows:
            inputs |= table(row + 1)
        now = tf.gather(timestamp, row)
        for sequence in sequences:
            inputs |= sequence(row, now)
        if lookup is not None:
            inputs |= calendar_columns(features, {TIMESTAMP: now})
        elif features.reads_timestamp:
            inputs[TIMESTAMP] = now
        return RawColumns(inputs) if lookup is None else inputs, tf.gather(label, row)

    return made_ahead(batches_of_rows(len(labels), batch_size, shuffle, seed, drop_remainder), gather)


def made_ahead(dataset: tf.data.Dataset, make: Callable[..., Any]) -> tf.data.Dataset:
    """Batches of a dataset as `make` turns them into inputs and labels, made while the model trains on earlier ones."""
    return without_autotuning(dataset.map(make, num_parallel_calls=tf.data.AUTOTUNE).prefetch(PREFETCHED))


def _sequence(
    histories: Mapping[str, Histories], features: Features, sequence: Sequence, lookup: Lookup | None
) -> Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
    """A function from rows [N] and their timestamps [N] to the columns of a sequence."""
    if sequence.name not in histories:
        raise ValueError(
            f"The impressions have no sequence {sequence.name!r}, which `features` has. Add it by `with_sequence`. "
            f"Present: {list(histories)}"
        )
    log, starts, ends = histories[sequence.name]
    owner = "interactions" if sequence.name == HISTORY else f"sequence {sequence.name!r}"
    tables = [
        _table(feature, sequence.column(feature.name), log.columns, owner, lookup)
        for feature in features.sequence_features(sequence)
    ]
    # How far back from `end` each of L behaviours lies. A table has padding at 0, so log row r stands at r + 1.
    # The [N, L] positions are most of what a batch costs: they are half as wide where the log allows it.
    position = tf.int32 if len(log) < tf.int32.max else tf.int64
    back = tf.range(sequence.max_length, dtype=position)
    end = tf.constant(ends, position)
    counts = tf.constant(np.minimum(ends - starts, sequence.max_length))
    moments = _gather_from(np.append(0, np.asarray(log.columns[TIMESTAMP])))

    def gather(row: tf.Tensor, now: tf.Tensor) -> dict[str, tf.Tensor]:
        lengths = tf.gather(counts, row)
        real = back < tf.cast(lengths, position)[:, None]
        positions = tf.where(real, tf.gather(end, row)[:, None] - back, 0)
        found: dict[str, tf.Tensor] = {sequence.length: lengths}
        for table in tables:
            found |= table(positions)
        if features.age is not None and lookup is None:
            found[sequence.timestamp] = moments(positions)
        elif features.age is not None:
            found[sequence.age] = age_bucket(now, moments(positions), features.age.boundaries, positions > 0)
        return found

    return gather


def batch_bounds(size: int, batch_size: int) -> np.ndarray:
    """Where batches of rows begin and end, int64 [number of batches + 1]: as few as can be, of sizes that differ by 1.

    A last batch of a few rows would move the weights as far as a full one, in the direction of these few.
    """
    number = -(-size // batch_size)
    return np.arange(number + 1, dtype="int64") * size // max(number, 1)


def batches_of_rows(
    size: int, batch_size: int, shuffle: bool, seed: int | None, drop_remainder: bool
) -> tf.data.Dataset:
    """Batches of the numbers below `size`.

    Args:
        size: how many rows there are.
        batch_size: N; without `drop_remainder` batches are as even as can be, of at most so many.
        shuffle: whether in a new random order every epoch.
        seed: of the orders. `None`: another one every time.
        drop_remainder: whether all batches have exactly N rows, and what is left over is left out.

    Returns:
        A dataset of int64 [N], whose number of batches is known.
    """
    bounds = batch_bounds(size, batch_size)
    if drop_remainder:
        bounds = np.arange(0, size + 1, batch_size)
    starts, ends = tf.constant(bounds[:-1]), tf.constant(bounds[1:])

    def batches(rows: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices((starts, ends)).map(lambda start, end: rows[start:end])

    if not shuffle:
        dataset = batches(tf.range(tf.constant(size, tf.int64)))
    else:
        # `Dataset.shuffle` with a full buffer holds a tensor an element: 20 times slower, 200 bytes a row.
        keys = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).take(1)
        dataset = keys.flat_map(
            lambda key: batches(
                tf.random.experimental.stateless_shuffle(tf.range(tf.constant(size, tf.int64)), tf.stack([key, 0]))
            )
        )
    width = batch_size if drop_remainder else None
    dataset = dataset.map(lambda rows: tf.ensure_shape(rows, [width]))
    return dataset.apply(tf.data.experimental.assert_cardinality(len(bounds) - 1))


def _table(feature: Feature, name: str, columns: Mapping[str, Column], owner: str, lookup: Lookup | None) -> _Table:
    """The values of a feature in columns called `name`."""
    if feature.name not in columns:
        raise ValueError(f"The table of {owner} has no column {feature.name!r}. Present: {list(columns)}")
    column = columns[feature.name]
    if isinstance(column, ValueLists) != bool(feature.max_values):
        raise ValueError(
            f"Feature {feature.name!r} has `max_values`={feature.max_values}, but the column of the {owner} holds "
            f"{'several values' if isinstance(column, ValueLists) else 'one value'} per row."
        )
    if isinstance(column, ValueLists):
        return _table_of_lists(feature, name, column, owner, lookup)
    values = _values(feature, column, owner, lookup)
    return lambda positions: {name: values(positions)}


def _table_of_lists(feature: Feature, name: str, column: ValueLists, owner: str, lookup: Lookup | None) -> _Table:
    values = _values(feature, column.values, owner, lookup)
    padded, lengths = column.padded(feature.max_values or 0)
    real = np.arange(padded.shape[1]) < lengths[:, None]
    # Positions of `values`, in whose table 0 is padding.
    index = _gather_from(np.concatenate([np.zeros([1, padded.shape[1]], "int32"), np.where(real, padded + 1, 0)]))
    counts = _gather_from(np.append(0, lengths))
    if lookup is not None:
        return lambda positions: {name: values(index(positions))}
    return lambda positions: {name: values(index(positions)), length_name(name): counts(positions)}


def _values(
    feature: Feature, column: np.ndarray | pd.Categorical, owner: str, lookup: Lookup | None
) -> Callable[[tf.Tensor], tf.Tensor]:
    held = "string" if isinstance(column, pd.Categorical) else str(column.dtype)
    if held != feature.dtype and (held, feature.dtype) != ("int64", "float32"):
        raise ValueError(
            f"Feature {feature.name!r} has dtype {feature.dtype!r}, but the column of the {owner} holds {held}."
        )
    if not isinstance(column, pd.Categorical):
        if feature.is_id and lookup is not None:
            column = lookup.encode(feature.name, column)
        values = column.astype("float32", copy=False) if feature.dtype == "float32" else column
        if feature.dtype == "float32" and not feature.optional and np.isnan(values).any():
            raise ValueError(
                f"Feature {feature.name!r} is not optional, but the column of the {owner} lacks "
                f"{np.isnan(values).sum():,} values. Make it a Feature(..., optional=True), or leave these rows out."
            )
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
