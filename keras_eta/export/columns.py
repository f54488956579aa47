"""The inputs and outputs of an export's signatures: names, axes and dtypes."""

from __future__ import annotations

import collections.abc
from collections.abc import Mapping

import tensorflow as tf

from keras_eta.columns import HISTORY, TIMESTAMP, Sequence, length_name
from keras_eta.features import Features

PROBABILITY = "probability"
POSITIONS = "positions"
DISTANCES = "distances"
WEIGHTS = "weights"
# What the names of a unit's numbers of matching behaviours end in.
COUNT = "_count"
EXAMPLES = "examples"
USER_STATE = "user_state"
RANK_FROM_STATE = "rank_from_state"
UPDATE_STATE = "update_state"

# Of an input: a letter per axis, or a number where its size is fixed.
Axes = collections.abc.Sequence[str | int]

# The axes of each role's columns, in the letters of the documentation.
POINTWISE_AXES = {"row": "N", "item": "N", "history": "NL"}
RANK_AXES = {"row": "R", "item": "RC", "history": "RL"}


def axes_of(features: Features, axes: Mapping[str, str]) -> dict[str, Axes]:
    """The axes of every column of a signature."""
    item = {name for feature in features.item_features for name in (feature.name, length_name(feature.name))}
    columns: dict[str, Axes] = {}
    for name in features.row_names:
        columns[name] = _with_values(features, name, axes["item" if name in item else "row"])
    for sequence in features.all_sequences:
        columns |= sequence_axes_of(features, sequence, axes)
    return columns


def sequence_axes_of(features: Features, sequence: Sequence, axes: Mapping[str, str]) -> dict[str, Axes]:
    """The axes of a sequence's columns and of its length."""
    # Sequences differ in length.
    letters = [letter if letter != "L" else behaviours_axis(sequence) for letter in axes["history"]]
    columns = {name: _with_values(features, name, letters) for name in features.sequence_names(sequence)}
    return {**columns, sequence.length: axes["row"]}


def behaviours_axis(sequence: Sequence) -> str:
    """The letter of the axis of a sequence's behaviours: `L` of the history, e.g. `L_clusters` of others."""
    return "L" if sequence.name == HISTORY else f"L_{sequence.name}"


def _with_values(features: Features, name: str, axes: Axes) -> Axes:
    feature = features.by_column.get(name)
    return (*axes, *(feature.values_shape if feature else ()))


def dtypes_of(features: Features, raw_ids: bool) -> dict[str, tf.DType]:
    """The dtype of every column of a signature; ids that are not raw are int64 indices."""
    by_column = features.by_column
    names = [*features.row_names, TIMESTAMP]
    for sequence in features.all_sequences:
        names += [*features.sequence_names(sequence), sequence.length]

    def dtype(name: str) -> tf.DType:
        feature = by_column.get(name)
        # Lengths and timestamps have no feature.
        return tf.int64 if feature is None or (feature.is_id and not raw_ids) else tf.as_dtype(feature.dtype)

    return {name: dtype(name) for name in names}


def specs_of(axes: Mapping[str, Axes], dtypes: Mapping[str, tf.DType]) -> dict[str, tf.TensorSpec]:
    """The input of a signature for each column."""
    return {name: tf.TensorSpec(static_shape(sizes), dtypes[name]) for name, sizes in axes.items()}


def static_shape(axes: Axes) -> list[int | None]:
    """The sizes that are fixed, and `None` for the others."""
    return [size if isinstance(size, int) else None for size in axes]
