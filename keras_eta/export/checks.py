"""What the graphs of an export check and parse before they score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from keras_eta.columns import TIMESTAMP, Feature, Sequence, length_name
from keras_eta.export.columns import Axes, behaviours_axis, static_shape
from keras_eta.features import Features
from keras_eta.models.ranker import Inputs
from keras_eta.ops import age_bucket
from keras_eta.ops.calendar import calendar_columns

_AXIS_NAMES = {"N": "rows", "R": "rows", "C": "candidates"}


def checked(inputs: Inputs, columns: Mapping[str, Axes], features: Features) -> dict[str, tf.Tensor]:
    """The inputs, once the graph has seen that shapes fit each other, lengths lie in 0..L and floats are finite.

    Floats behind the length of a history become 0. NaN is a missing value of an optional feature, else refused.

    Args:
        inputs: the inputs of a signature by name.
        columns: their axes, each a letter, or a number for a size that is fixed.
        features: what the columns hold.

    Returns:
        The same inputs. Running them fails with INVALID_ARGUMENT, naming the input, where they do not fit.
    """
    hidden, ranks = {}, []
    for name, letters in columns.items():
        # A server feeds any rank, whatever the signature says. The placeholder keeps TensorFlow from believing the
        # signature and dropping the check.
        hidden[name] = tf.raw_ops.PlaceholderWithDefault(input=inputs[name], shape=tf.TensorShape(None))
        shape = tf.shape(hidden[name])
        message = f"`{name}` must have shape [{', '.join(map(str, letters))}]. Received shape:"
        ranks.append(tf.debugging.Assert(_fits(shape, letters), [message, shape]))
    with tf.control_dependencies(ranks):
        shaped = {name: tf.ensure_shape(hidden[name], static_shape(letters)) for name, letters in columns.items()}
    sizes: dict[str, tuple[str, tf.Tensor]] = {}
    equal = []
    for name, letters in columns.items():
        for axis, letter in enumerate(letters):
            if isinstance(letter, int):
                continue
            first, size = sizes.setdefault(letter, (name, tf.shape(shaped[name])[axis]))
            shape = tf.shape(shaped[name])
            what = _AXIS_NAMES.get(letter, "behaviours")
            message = f"`{name}` must have as many {what} as `{first}`. Received shape and number:"
            equal.append(tf.debugging.Assert(tf.equal(shape[axis], size), [message, shape, size]))
    sequences = {behaviours_axis(sequence): sequence for sequence in features.all_sequences}
    for letter, sequence in sequences.items():
        if sequence.length in columns:
            what = f"the number of {sequence.name} columns"
            equal.append(_check_lengths(sequence.length, shaped[sequence.length], sizes[letter][1], what))
    for name, feature in features.by_column.items():
        if name in columns and feature.max_values:
            what = f"the number of values, {feature.max_values}"
            equal.append(_check_lengths(length_name(name), shaped[length_name(name)], feature.max_values, what))
    with tf.control_dependencies(equal):
        shaped = {name: tf.identity(x) for name, x in shaped.items()}
    optional = {name for name, feature in features.by_column.items() if feature.optional}
    finite = []
    for name, letters in columns.items():
        if shaped[name].dtype.is_floating:
            if letters[-1] in sequences:
                # A weight of 0 does not make NaN vanish.
                real = tf.sequence_mask(shaped[sequences[letters[-1]].length], tf.shape(shaped[name])[1])
                shaped[name] = tf.where(real, shaped[name], 0)
            wrong = ~tf.math.is_finite(shaped[name])
            if name in optional:
                wrong &= ~tf.math.is_nan(shaped[name])
            received = tf.boolean_mask(shaped[name], wrong)
            finite.append(tf.debugging.Assert(~tf.reduce_any(wrong), [f"`{name}` must be finite. Received:", received]))
    with tf.control_dependencies(finite):
        return {name: tf.identity(x) for name, x in shaped.items()}


def _check_lengths(name: str, lengths: tf.Tensor, most: Any, what: str) -> tf.Operation:
    in_range = tf.reduce_all((lengths >= 0) & (lengths <= tf.cast(most, lengths.dtype)))
    message = f"`{name}` must lie between 0 and {what}. Received lengths and number:"
    return tf.debugging.Assert(in_range, [message, lengths, most])


def _fits(shape: tf.Tensor, axes: Axes) -> tf.Tensor:
    """Whether a shape has as many axes, and those of fixed size are of that size."""
    fits = tf.equal(tf.size(shape), len(axes))
    fixed = [size if isinstance(size, int) else -1 for size in axes]
    if max(fixed) >= 0:
        # Padded, so that a shape of fewer axes can be compared too.
        sizes = tf.concat([shape, fixed], axis=0)[: len(axes)]
        fits &= tf.reduce_all(tf.equal(sizes, fixed) | tf.less(fixed, 0))
    return fits


def parsed(examples: tf.Tensor, features: Features, dtypes: Mapping[str, tf.DType]) -> dict[str, tf.Tensor]:
    """The columns of serialized tf.Examples; sequences are padded to the longest, several values to their maximum."""
    several = {name: feature.max_values for name, feature in features.by_column.items() if feature.max_values}
    values_lengths = {length_name(name) for name in several}
    spec: dict[str, Any] = {}
    for name in features.row_names:
        if name not in values_lengths:
            spec[name] = (tf.io.RaggedFeature if name in several else _one_value)(dtypes[name])
    for sequence in features.all_sequences:
        for name in features.sequence_names(sequence):
            partitions = [tf.io.RaggedFeature.RowLengths(length_name(name))] if name in several else []
            spec[name] = tf.io.RaggedFeature(dtypes[name], name, partitions, validate=True)
    columns = tf.io.parse_example(examples, spec)
    dense, checks = {}, []
    for sequence in features.all_sequences:
        first, *others = features.sequence_names(sequence)
        lengths = columns[first].row_lengths()
        dense[sequence.length] = tf.cast(lengths, tf.int64)
        for name in others:
            same = tf.reduce_all(tf.equal(columns[name].row_lengths(), lengths))
            message = f"`{name}` must be as long as `{first}` in every example. Received lengths:"
            checks.append(tf.debugging.Assert(same, [message, columns[name].row_lengths(), lengths]))
    with tf.control_dependencies(checks):
        for name, most in several.items():
            # The first values count, as of a behaviour.
            column = columns[name][..., :most]
            dense[name] = column.to_tensor(shape=[*[None] * (column.shape.rank - 1), most])
            lengths = column.row_lengths(axis=-1)
            lengths = lengths.to_tensor() if isinstance(lengths, tf.RaggedTensor) else lengths
            dense[length_name(name)] = tf.cast(lengths, tf.int64)
        for name, column in columns.items():
            if name not in dense:
                dense[name] = column.to_tensor() if isinstance(column, tf.RaggedTensor) else column
        return dense


def _one_value(dtype: tf.DType) -> Any:
    return tf.io.FixedLenFeature([], dtype)


def index_guard(features: Features) -> Callable[[Inputs], dict[str, tf.Tensor]]:
    """For a model without a lookup: indices as the model takes them, those out of range made out-of-vocabulary."""

    def guarded(name: str, feature: Feature, inputs: Inputs) -> tf.Tensor:
        column = inputs[name]
        if not feature.is_id:
            return column
        inside = (column > 0) & (column < feature.num_indices)
        indices = tf.cast(tf.where(inside, column, tf.ones_like(column)), tf.int32)
        if not feature.max_values:
            return indices
        return tf.where(tf.sequence_mask(inputs[length_name(name)], feature.max_values), indices, 0)

    def ages(sequence: Sequence, boundaries: tuple[int, ...], inputs: Inputs) -> tf.Tensor:
        moments = inputs[sequence.timestamp]
        real = tf.sequence_mask(inputs[sequence.length], tf.shape(moments)[-1])
        return age_bucket(inputs[TIMESTAMP], moments, boundaries, real)

    def guard(inputs: Inputs) -> dict[str, tf.Tensor]:
        outputs = {name: guarded(name, feature, inputs) for name, feature in features.by_column.items()}
        outputs |= calendar_columns(features, inputs)
        for sequence in features.all_sequences:
            outputs[sequence.length] = tf.cast(inputs[sequence.length], tf.int32)
            if features.age is not None:
                outputs[sequence.age] = ages(sequence, features.age.boundaries, inputs)
        return outputs

    return guard
