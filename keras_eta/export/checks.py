"""What the graphs of an export check and parse before they score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from keras_eta.export.columns import Axes, features_by_column, static_shape
from keras_eta.features import (
    HISTORY_AGE,
    HISTORY_LENGTH,
    HISTORY_TIMESTAMP,
    TIMESTAMP,
    Feature,
    Features,
    history_name,
)
from keras_eta.models.ranker import Inputs
from keras_eta.ops import age_bucket

_AXIS_NAMES = {"N": "rows", "R": "rows", "C": "candidates", "L": "behaviours"}


def checked(inputs: Inputs, columns: Mapping[str, Axes]) -> dict[str, tf.Tensor]:
    """The inputs, once the graph has seen that shapes fit each other, lengths lie in 0..L and floats are finite.

    Floats behind the length of a history become 0.

    Args:
        inputs: the inputs of a signature by name.
        columns: their axes, each a letter, or a number for a size that is fixed.

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
            message = f"`{name}` must have as many {_AXIS_NAMES[letter]} as `{first}`. Received shape and number:"
            equal.append(tf.debugging.Assert(tf.equal(shape[axis], size), [message, shape, size]))
    if HISTORY_LENGTH in columns:
        lengths, (_, width) = shaped[HISTORY_LENGTH], sizes["L"]
        in_range = tf.reduce_all((lengths >= 0) & (lengths <= tf.cast(width, lengths.dtype)))
        message = f"`{HISTORY_LENGTH}` must lie between 0 and the number of history columns."
        message += " Received lengths and number:"
        equal.append(tf.debugging.Assert(in_range, [message, lengths, width]))
    with tf.control_dependencies(equal):
        shaped = {name: tf.identity(x) for name, x in shaped.items()}
    finite = []
    for name, letters in columns.items():
        if shaped[name].dtype.is_floating:
            if letters[-1] == "L":
                # A weight of 0 does not make NaN vanish.
                real = tf.sequence_mask(shaped[HISTORY_LENGTH], tf.shape(shaped[name])[1])
                shaped[name] = tf.where(real, shaped[name], 0)
            wrong = ~tf.math.is_finite(shaped[name])
            received = tf.boolean_mask(shaped[name], wrong)
            finite.append(tf.debugging.Assert(~tf.reduce_any(wrong), [f"`{name}` must be finite. Received:", received]))
    with tf.control_dependencies(finite):
        return {name: tf.identity(x) for name, x in shaped.items()}


def _fits(shape: tf.Tensor, axes: Axes) -> tf.Tensor:
    """Whether a shape has as many axes, and those of fixed size are of that size."""
    fixed = tf.constant([size if isinstance(size, int) else -1 for size in axes])
    return tf.cond(
        tf.equal(tf.size(shape), len(axes)),
        lambda: tf.reduce_all(tf.equal(shape, fixed) | (fixed < 0)),
        lambda: tf.constant(False),
    )


def parsed(examples: tf.Tensor, features: Features, dtypes: Mapping[str, tf.DType]) -> dict[str, tf.Tensor]:
    """The columns of serialized tf.Examples; histories are padded to the longest."""
    spec: dict[str, Any] = {name: tf.io.FixedLenFeature([], dtypes[name]) for name in features.row_names}
    spec.update({name: tf.io.RaggedFeature(dtypes[name]) for name in features.history_names})
    columns = tf.io.parse_example(examples, spec)
    lengths = columns[history_name(features.item_id.name)].row_lengths()
    checks = []
    for name in features.history_names:
        same = tf.reduce_all(tf.equal(columns[name].row_lengths(), lengths))
        message = (
            f"`{name}` must be as long as `{history_name(features.item_id.name)}` in every example. Received lengths:"
        )
        checks.append(tf.debugging.Assert(same, [message, columns[name].row_lengths(), lengths]))
    with tf.control_dependencies(checks):
        dense = {name: columns[name].to_tensor() for name in features.history_names}
    return {**{name: columns[name] for name in features.row_names}, **dense, HISTORY_LENGTH: lengths}


def index_guard(features: Features) -> Callable[[Inputs], dict[str, tf.Tensor]]:
    """For a model without a lookup: indices as the model takes them, those out of range made out-of-vocabulary."""

    def guarded(feature: Feature, column: tf.Tensor) -> tf.Tensor:
        if not feature.is_id:
            return column
        inside = (column > 0) & (column < feature.num_indices)
        return tf.cast(tf.where(inside, column, tf.ones_like(column)), tf.int32)

    def guard(inputs: Inputs) -> dict[str, tf.Tensor]:
        outputs = {name: guarded(feature, inputs[name]) for name, feature in features_by_column(features).items()}
        outputs[HISTORY_LENGTH] = tf.cast(inputs[HISTORY_LENGTH], tf.int32)
        if features.age is not None:
            moments = inputs[HISTORY_TIMESTAMP]
            real = tf.sequence_mask(inputs[HISTORY_LENGTH], tf.shape(moments)[-1])
            outputs[HISTORY_AGE] = age_bucket(inputs[TIMESTAMP], moments, features.age.boundaries, real)
        return outputs

    return guard
