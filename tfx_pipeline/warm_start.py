"""Starts a model from the weights of a served version."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_eta import Ranker
from keras_eta.features import HISTORY_AGE, Feature, Features
from keras_eta.versions import versions

_logger = logging.getLogger(__name__)


def warm_start(model: Ranker, serving_dir: str) -> int | None:
    """Gives a new model the weights of the latest version in a serving directory.

    Embeddings are carried over by id, since every training has vocabularies of its own: an id that both models know
    keeps its embedding, an id that the version lacks keeps the model's initial one, and the rows of padding and of the
    out-of-vocabulary buckets keep their place. Planes, in use and learned, follow where their number of bits is the
    same, whatever their period, and the other weights where the architecture is. Fingerprints are exact afterwards.

    Nothing happens, but for a line in the log, where there is no version or its features are others.

    Args:
        model: built, with a `lookup`.
        serving_dir: directory of versions, as TF Serving's `--model_base_path`.

    Returns:
        The version, or `None` if nothing was carried over.
    """
    present = _versions(serving_dir)
    if not present:
        _logger.info("Cold start: there is no version in %s.", serving_dir or "no serving directory")
        return None
    version = max(present)
    path = os.path.join(serving_dir, present[version])
    with tf.io.gfile.GFile(os.path.join(path, "assets.extra", "features.json")) as file:
        base_features = Features.from_dict(json.load(file))
    if _without_sizes(base_features) != _without_sizes(model.features):
        _logger.warning("Cold start: version %d in %s reads other features than this model.", version, serving_dir)
        return None

    base = tf.saved_model.load(path)
    named = {variable.name: variable for variable in base.model_variables}
    # Before the embeddings, which are hashed with the planes when they are assigned.
    for planes in filter(_is_planes, _variables(model)):
        # A version whose planes follow the optimiser at once has learned no others.
        source = named.get(planes.name, named.get(planes.name.replace("/learned_planes", "/planes")))
        if source is not None and source.shape == planes.shape:
            planes.assign(source)
    id_features = [feature for feature in base_features.all_features if feature.is_id]
    tables = dict(zip(id_features, base.vocabularies, strict=True))
    for feature, table in tables.items():
        embeddings = model.embeddings[feature.name].embeddings
        embeddings.assign(_carried_over(model, feature, table, named[embeddings.name], embeddings))
    if HISTORY_AGE in model.embeddings:
        embeddings = model.embeddings[HISTORY_AGE].embeddings
        embeddings.assign(named[embeddings.name])

    ours, theirs = _dense(_variables(model)), _dense(base.model_variables)
    if list(map(_signature, ours)) == list(map(_signature, theirs)):
        for variable, source in zip(ours, theirs, strict=True):
            variable.assign(source)
        _logger.info("Warm start from version %d in %s.", version, serving_dir)
    else:
        _logger.warning(
            "Warm start from version %d in %s, of the embeddings only: its architecture is another.",
            version,
            serving_dir,
        )
    return version


def _versions(serving_dir: str) -> dict[int, str]:
    if not serving_dir or not tf.io.gfile.isdir(serving_dir):
        return {}
    return versions(tf.io.gfile.listdir(serving_dir))


def _without_sizes(features: Features) -> dict[str, Any]:
    """The description of features without what the data decides, as JSON has it."""
    cleared: dict[str, Any] = json.loads(json.dumps(features.to_dict()))
    for role in cleared.values():
        for feature in role if isinstance(role, list) else [role]:
            if isinstance(feature, dict):
                feature.pop("vocabulary_size", None)
    return cleared


def _carried_over(
    model: Ranker, feature: Feature, base_table: Any, base_embeddings: tf.Variable, embeddings: tf.Variable
) -> np.ndarray:
    """An embedding table with the base's rows where the base knows the id. Row 0 is padding; tables count from 1."""
    lookup: Any = model.lookup
    ids, places = lookup.tables[feature.name].lookup_table.export()
    # A restored table has a handle, but no methods.
    base_places = tf.raw_ops.LookupTableFindV2(
        table_handle=base_table.resource_handle, keys=ids, default_value=tf.constant(-1, tf.int64)
    ).numpy()
    known = base_places >= 0
    source, result = base_embeddings.numpy(), embeddings.numpy()
    reserved = 1 + feature.num_oov_indices
    result[:reserved] = source[:reserved]
    result[1 + places.numpy()[known]] = source[1 + base_places[known]]
    _logger.info("%s: %d of %d ids carried over.", feature.name, known.sum(), known.size)
    return result


def _variables(model: Ranker) -> list[tf.Variable]:
    """The model's variables. Keras counts handles of lookup tables among them."""
    return [variable for variable in model.variables if isinstance(variable, tf.Variable)]


def _is_planes(variable: tf.Variable) -> bool:
    return variable.name.endswith(("/planes:0", "/learned_planes:0"))


def _dense(variables: Iterable[tf.Variable]) -> list[tf.Variable]:
    """What is learned besides embeddings and planes, in the model's order."""
    return [
        variable
        for variable in variables
        if variable.trainable and not variable.name.endswith("/embeddings:0") and not _is_planes(variable)
    ]


def _signature(variable: tf.Variable) -> tuple[str, tf.TensorShape]:
    """Name and shape. Keras numbers the layers of a process, as in `dense_3`; the numbers mean nothing."""
    return re.sub(r"_\d+(?=[/:])", "", variable.name), variable.shape
