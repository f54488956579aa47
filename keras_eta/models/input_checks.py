"""What a ranker refuses to read: missing columns, and ids where it expects rows of its tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from keras_eta.features import HISTORY_AGE, HISTORY_LENGTH, Features, RawColumns, history_name

_ADVICE = (
    "Rankers read rows of their embedding tables, as a FeatureLookup makes them of ids: give `to_dataset` its "
    "`lookup=`, or call the lookup on each batch."
)


def checked_columns(inputs: Mapping[str, Any], features: Features) -> Mapping[str, tf.Tensor]:
    """The columns that a ranker reads, which fail where an index lies outside of its table.

    Args:
        inputs: by name, as for the call of a `Ranker`.
        features: the columns, with known vocabulary sizes.

    Returns:
        The columns of `features` and `history_length`.

    Raises:
        ValueError: if a column is missing, or holds raw ids: `to_dataset` made them so, or it is no int32 or int64.
        tf.errors.InvalidArgumentError: as the columns are read, if an index is negative or above its table. A graph
            that XLA compiles does not check it.
    """
    names = [*features.encoded_row_names, *features.encoded_history_names, HISTORY_LENGTH]
    missing = sorted(set(names) - set(inputs))
    if missing:
        raise ValueError(f"Columns are missing: {missing}. Received: {sorted(inputs)}")
    sizes = {feature.name: feature.num_indices for feature in features.all_features if feature.is_id}
    sizes |= {history_name(feature.name): sizes[feature.name] for feature in features.history_features if feature.is_id}
    if features.age is not None:
        sizes[HISTORY_AGE] = features.age.num_indices
    columns = {name: tf.convert_to_tensor(inputs[name]) for name in names}
    indices = {name: columns[name] for name in names if name in sizes}
    if isinstance(inputs, RawColumns):
        raise ValueError(f"Columns {sorted(indices)} hold raw ids. {_ADVICE}")
    for name, column in indices.items():
        if column.dtype not in (tf.int32, tf.int64):
            raise ValueError(f"Column {name!r} must hold int32 or int64. {_ADVICE} Received: {column.dtype.name}")
    checks = [_check_range(name, column, sizes[name]) for name, column in indices.items()]
    with tf.control_dependencies([check for check in checks if check is not None]):
        return {name: tf.identity(column) for name, column in columns.items()}


def _check_range(name: str, column: tf.Tensor, size: int) -> tf.Operation | None:
    # As unsigned numbers negative ones are the largest of all, so one pass finds both.
    unsigned = tf.uint64 if column.dtype == tf.int64 else tf.uint32
    largest = tf.reduce_max(tf.bitcast(column, unsigned))
    # Without quotes, which graphs escape.
    message = f"Column {name} holds an index that its table of {size} rows lacks. {_ADVICE} Received:"
    return tf.debugging.Assert(largest < size, [message, tf.bitcast(largest, column.dtype)])


def specs_of(features: Features) -> dict[str, tf.TensorSpec]:
    """What a call reads, of any number of rows and behaviours."""
    rows = (*features.encoded_row_names, HISTORY_LENGTH)
    floats = {feature.name for feature in features.all_features if not feature.is_id}
    floats |= {history_name(name) for name in floats}
    return {
        name: tf.TensorSpec([None] if name in rows else [None, None], tf.float32 if name in floats else tf.int32)
        for name in (*rows, *features.encoded_history_names)
    }
