"""tf.Examples of the data contract's columns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

# By the dtype of a feature, the field of a tf.train.Feature that holds its values.
LISTS = {"int64": "int64_list", "float32": "float_list", "string": "bytes_list"}
_LISTS_OF_KINDS = {"i": LISTS["int64"], "f": LISTS["float32"], "O": LISTS["string"]}


def make_example(columns: Mapping[str, np.ndarray]) -> tf.train.Example:
    """One tf.Example.

    Args:
        columns: by name, the values [n], integers, floats or, as objects, bytes.
    """
    example = tf.train.Example()
    for name, values in columns.items():
        getattr(example.features.feature[name], _LISTS_OF_KINDS[values.dtype.kind]).value.extend(values.tolist())
    return example
