"""The state of the optimiser of dense weights, beside a version: what going on trains from, and no server reads."""

from __future__ import annotations

import os

import tensorflow as tf

from keras_eta import Ranker

_FILE = os.path.join("assets.extra", "dense_optimizer")


def save_moments(model: Ranker, path: str | os.PathLike[str]) -> None:
    """Writes the steps and the moments of the dense optimiser into a version of a model.

    Args:
        model: compiled with its `default_optimizer`.
        path: of the version.
    """
    found = _moments(model)
    tf.raw_ops.SaveV2(
        prefix=os.path.join(path, _FILE),
        tensor_names=list(map(str, range(len(found)))),
        shape_and_slices=[""] * len(found),
        tensors=found,
    )


def restore_moments(model: Ranker, path: str) -> bool:
    """Gives a model of the same architecture what `save_moments` wrote; false where there is nothing that fits."""
    file, found = os.path.join(path, _FILE), _moments(model)
    if not tf.io.gfile.exists(f"{file}.index"):
        return False
    reader = tf.train.load_checkpoint(file)
    shapes = reader.get_variable_to_shape_map()
    if [shapes.get(str(number)) for number in range(len(found))] != [x.shape.as_list() for x in found]:
        return False
    for number, variable in enumerate(found):
        variable.assign(reader.get_tensor(str(number)))
    return True


def _moments(model: Ranker) -> list[tf.Variable]:
    """In the order of the weights; Keras numbers the layers of a process, so names mean nothing."""
    _, dense = model.optimizer.optimizers
    return [variable for variable in dense.variables if "learning_rate" not in variable.name]
