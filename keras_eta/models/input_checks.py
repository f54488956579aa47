"""What a ranker refuses: units that do not fit, missing columns, and ids where it expects rows of its tables."""

from __future__ import annotations

import collections.abc
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from keras_eta.calibration import Calibrator
from keras_eta.columns import RawColumns, Sequence
from keras_eta.features import Features
from keras_eta.interest.base import InterestUnit
from keras_eta.layers.feature_lookup import FeatureLookup
from keras_eta.models.tasks import RetrievalTask

_ADVICE = (
    "Rankers read rows of their embedding tables, as a FeatureLookup makes them of ids: give `to_dataset` its "
    "`lookup=`, or call the lookup on each batch."
)


def checked_features_of(features: Any, lookup: Any) -> Features:
    """The features of a ranker: those given, or else the lookup's; what is neither is refused."""
    if lookup is not None and not isinstance(lookup, FeatureLookup):
        raise TypeError(f"`lookup` must be a FeatureLookup or None. Received: lookup={lookup!r}")
    if features is None:
        if lookup is None:
            raise ValueError("Give `features` with vocabulary sizes, or an adapted `lookup`. Received neither.")
        return lookup.features
    if not isinstance(features, Features):
        raise TypeError(f"`features` must be a keras_eta.Features. Received: features={features!r}")
    return features


def check_retrieval_task(task: Any) -> None:
    """Refuses what is neither a retrieval task nor `None`."""
    if task is not None and not isinstance(task, RetrievalTask):
        raise TypeError(f"`retrieval_task` must be a RetrievalTask or None. Received: retrieval_task={task!r}")


def check_calibrator(calibrator: Any) -> None:
    """Refuses what is neither a calibrator nor `None`."""
    if calibrator is not None and not isinstance(calibrator, Calibrator):
        raise TypeError(f"`calibrator` must be a Calibrator or None. Received: calibrator={calibrator!r}")


def check_interests(interests: collections.abc.Sequence[Any], features: Features) -> None:
    """Refuses what is no list of interest units with names of their own and a sequence that the features have."""
    wrong = [unit for unit in interests if not isinstance(unit, InterestUnit)]
    if wrong:
        raise TypeError(f"`interests` must hold interest units. Received: {wrong}")
    if not interests:
        raise ValueError("`interests` must hold at least one interest unit. Received: interests=[]")
    names = [unit.name for unit in interests]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Every interest unit must have a `name` of its own. Used twice: {twice}")
    known = [sequence.name for sequence in features.all_sequences]
    for unit in interests:
        if unit.sequence not in known:
            raise ValueError(
                f"Interest unit {unit.name!r} needs one of the sequences of `features`, {known}. "
                f"Received: sequence={unit.sequence!r}"
            )


def checked_columns(inputs: Mapping[str, Any], features: Features) -> Mapping[str, tf.Tensor]:
    """The columns that a ranker reads, which fail where an index lies outside of its table.

    Args:
        inputs: by name, as for the call of a `Ranker`.
        features: the columns, with known vocabulary sizes.

    Returns:
        The columns of `features`, and the lengths of its sequences.

    Raises:
        ValueError: if a column is missing, or holds raw ids: `to_dataset` made them so, or it is no int32 or int64.
        tf.errors.InvalidArgumentError: as the columns are read, if an index is negative or above its table. A graph
            that XLA compiles does not check it.
    """
    names = [*specs_of(features)]
    missing = sorted(set(names) - set(inputs))
    if missing:
        raise ValueError(f"Columns are missing: {missing}. Received: {sorted(inputs)}")
    sizes = {name: feature.num_indices for name, feature in features.by_column.items() if feature.is_id}
    if features.age is not None:
        sizes |= {sequence.age: features.age.num_indices for sequence in features.all_sequences}
    sizes |= {} if features.calendar is None else features.calendar.num_indices
    columns = {name: tf.convert_to_tensor(inputs[name]) for name in names}
    indices = {name: columns[name] for name in names if name in sizes}
    if isinstance(inputs, RawColumns):
        raise ValueError(f"Columns {sorted(indices)} hold raw ids. {_ADVICE}")
    for name, column in indices.items():
        if column.dtype not in (tf.int32, tf.int64):
            raise ValueError(f"Column {name!r} must hold int32 or int64. {_ADVICE} Received: {column.dtype.name}")
    checks = [_check_range(name, column, sizes[name]) for name, column in indices.items()]
    checks += [check for sequence in features.all_sequences for check in _check_lengths(sequence, columns, features)]
    with tf.control_dependencies([check for check in checks if check is not None]):
        return {name: tf.identity(column) for name, column in columns.items()}


def batch_columns(inputs: Mapping[str, Any], features: Features) -> dict[str, tf.Tensor]:
    """The columns of a batch as `checked_columns` gives them, one value or one set of values a row: [N] or [N, V]."""
    columns = dict(checked_columns(inputs, features))
    shapes = {feature.name: feature.values_shape for feature in features.row_features}
    shapes |= dict.fromkeys([*features.calendar_names, *(sequence.length for sequence in features.all_sequences)], ())
    return columns | {name: tf.reshape(columns[name], [-1, *shape]) for name, shape in shapes.items()}


def with_candidates(columns: Mapping[str, tf.Tensor], features: Features) -> dict[str, tf.Tensor]:
    """The columns of a batch, those of the item as one candidate per row: [N, 1] or [N, 1, V]."""
    return {**columns, **{item.name: columns[item.name][:, tf.newaxis] for item in features.item_features}}


def _check_lengths(
    sequence: Sequence, columns: Mapping[str, tf.Tensor], features: Features
) -> list[tf.Operation | None]:
    """Checks that every column of a sequence holds as many behaviours."""
    first, *others = features.encoded_sequence_names(sequence)
    checks = []
    for name in others:
        found, wanted = columns[name].shape[1], columns[first].shape[1]
        message = f"Columns {first} and {name} must hold as many behaviours."
        if None not in (found, wanted) and found != wanted:
            raise ValueError(f"{message} Received: {wanted} and {found}")
        if None in (found, wanted):
            sizes = tf.shape(columns[first])[1], tf.shape(columns[name])[1]
            checks.append(tf.debugging.Assert(tf.equal(*sizes), [f"{message} Received:", *sizes]))
    return checks


def _check_range(name: str, column: tf.Tensor, size: int) -> tf.Operation | None:
    # As unsigned numbers negative ones are the largest of all, so one pass finds both.
    unsigned = tf.uint64 if column.dtype == tf.int64 else tf.uint32
    largest = tf.reduce_max(tf.bitcast(column, unsigned))
    # Without quotes, which graphs escape.
    message = f"Column {name} holds an index that its table of {size} rows lacks. {_ADVICE} Received:"
    return tf.debugging.Assert(largest < size, [message, tf.bitcast(largest, column.dtype)])


def specs_of(features: Features) -> dict[str, tf.TensorSpec]:
    """What a call reads, of any number of rows and behaviours."""
    rows = (*features.encoded_row_names, *(sequence.length for sequence in features.all_sequences))
    behaviours = [name for sequence in features.all_sequences for name in features.encoded_sequence_names(sequence)]
    by_column = features.by_column

    def spec(name: str) -> tf.TensorSpec:
        # Lengths and ages have no feature.
        feature = by_column.get(name)
        shape = [*([None] if name in rows else [None, None]), *(feature.values_shape if feature else ())]
        return tf.TensorSpec(shape, tf.float32 if feature and not feature.is_id else tf.int32)

    return {name: spec(name) for name in (*rows, *behaviours)}
