"""The inputs and outputs of an export's signatures: names, axes and dtypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from keras_eta.features import HISTORY_LENGTH, HISTORY_TIMESTAMP, TIMESTAMP, Feature, Features, history_name

PROBABILITY = "probability"
POSITIONS = "positions"
DISTANCES = "distances"
WEIGHTS = "weights"
EXAMPLES = "examples"
USER_STATE = "user_state"
RANK_FROM_STATE = "rank_from_state"
UPDATE_STATE = "update_state"

# Of an input: a letter per axis, or a number where its size is fixed.
Axes = Sequence[str | int]

# The axes of each role's columns, in the letters of the documentation.
POINTWISE_AXES = {"row": "N", "item": "N", "history": "NL"}
RANK_AXES = {"row": "R", "item": "RC", "history": "RL"}


def axes_of(features: Features, axes: Mapping[str, str]) -> dict[str, str]:
    """The axes of every column of a signature."""
    item = {feature.name for feature in features.item_features}
    return {
        **{name: axes["item" if name in item else "row"] for name in features.row_names},
        **history_axes_of(features, axes),
    }


def history_axes_of(features: Features, axes: Mapping[str, str]) -> dict[str, str]:
    """The axes of the history's columns and of its length."""
    return {**{name: axes["history"] for name in features.history_names}, HISTORY_LENGTH: axes["row"]}


def features_by_column(features: Features) -> dict[str, Feature]:
    """The feature of every column that holds one."""
    return {
        **{feature.name: feature for feature in (*features.user, *features.context, *features.item_features)},
        **{history_name(feature.name): feature for feature in features.history_features},
    }


def dtypes_of(features: Features, raw_ids: bool) -> dict[str, tf.DType]:
    """The dtype of every column of a signature; ids that are not raw are int64 indices."""
    return {
        **{name: tf.int64 for name in (HISTORY_LENGTH, TIMESTAMP, HISTORY_TIMESTAMP)},
        **{
            name: tf.as_dtype(feature.dtype if raw_ids or not feature.is_id else "int64")
            for name, feature in features_by_column(features).items()
        },
    }


def specs_of(axes: Mapping[str, Axes], dtypes: Mapping[str, tf.DType]) -> dict[str, tf.TensorSpec]:
    """The input of a signature for each column."""
    return {name: tf.TensorSpec(static_shape(sizes), dtypes[name]) for name, sizes in axes.items()}


def static_shape(axes: Axes) -> list[int | None]:
    """The sizes that are fixed, and `None` for the others."""
    return [size if isinstance(size, int) else None for size in axes]
