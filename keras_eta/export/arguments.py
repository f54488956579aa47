"""Columns of any name as inputs of signatures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from keras_eta.models.ranker import Inputs
from keras_eta.names import is_argument


def argument_names(columns: Iterable[str]) -> dict[str, str]:
    """The name under which TensorFlow takes each column as an argument: letters, digits and `_`, but not `self`.

    TensorFlow renames others by itself, and then may feed one input with another's values.
    """
    arguments: dict[str, str] = {}
    for name in sorted(columns, key=lambda name: (not is_argument(name), name)):
        word = re.sub("[^A-Za-z0-9]", "_", name)
        argument = stem = word if is_argument(word) else f"arg_{word}"
        number = 1
        while argument in arguments.values():
            number += 1
            argument = f"{stem}_{number}"
        arguments[name] = argument
    return arguments


def rename_inputs(path: Path, names: Mapping[str, str]) -> None:
    """Renames inputs of the signatures in a SavedModel's file; `names` is old -> new."""
    saved_model = SavedModel.FromString(path.read_bytes())
    for meta_graph in saved_model.meta_graphs:
        for signature in meta_graph.signature_def.values():
            for old in names.keys() & set(signature.inputs):
                signature.inputs[names[old]].CopyFrom(signature.inputs[old])
                del signature.inputs[old]
    path.write_bytes(saved_model.SerializeToString(deterministic=True))


def concrete(
    function: Callable[[Inputs], Any], specs: Mapping[str, tf.TensorSpec], arguments: Mapping[str, str]
) -> Any:
    """The function of a dict of columns as one of keyword arguments."""
    columns = {argument: name for name, argument in arguments.items()}

    def by_argument(**inputs: tf.Tensor) -> Any:
        return function({columns[argument]: tensor for argument, tensor in inputs.items()})

    named = {
        arguments[name]: tf.TensorSpec(spec.shape, spec.dtype, name=arguments[name]) for name, spec in specs.items()
    }
    return tf.function(by_argument, autograph=False).get_concrete_function(**named)
