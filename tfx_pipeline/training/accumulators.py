"""Adagrad's accumulators of the embedding tables, beside a version: what a warm start needs and no server reads."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_eta import Ranker

_FILE = os.path.join("assets.extra", "adagrad")
_PREFIX = "accumulator/"


def accumulators(model: Ranker) -> dict[str, tf.Variable]:
    """The accumulators of a model by the name of their embedding table; none unless Adagrad trains it.

    Args:
        model: compiled with its `default_optimizer`, whose variables exist, or not compiled.
    """
    parts = getattr(model.optimizer, "optimizers", [])
    variables = [variable for part in parts for variable in part.variables]
    names = {variable.name for variable in model.embedding_variables()}
    found = {variable.name.removeprefix(_PREFIX): variable for variable in variables}
    return {name: variable for name, variable in found.items() if name in names}


def save_accumulators(model: Ranker, path: str | os.PathLike[str]) -> None:
    """Writes the accumulators of a model into a version of it."""
    found = accumulators(model)
    if found:
        tf.raw_ops.SaveV2(
            prefix=os.path.join(path, _FILE),
            tensor_names=list(found),
            shape_and_slices=[""] * len(found),
            tensors=list(found.values()),
        )


def saved_accumulators(path: str) -> Callable[[str], np.ndarray | None]:
    """What `save_accumulators` wrote into a version: a function from the name of a table to its accumulator, if any."""
    file = os.path.join(path, _FILE)
    if not tf.io.gfile.exists(f"{file}.index"):
        return lambda name: None
    reader = tf.train.load_checkpoint(file)
    return lambda name: reader.get_tensor(name) if reader.has_tensor(name) else None
