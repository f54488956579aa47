"""Starts a model from the weights of a served version."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

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
    for embedding in (model.feature_embedding, *model.own_embeddings.values()):
        for feature, table in tables.items():
            if feature.name in embedding.tables:
                _carry_over(model, feature, table, named, embedding.tables[feature.name].embeddings)
        if HISTORY_AGE in embedding.tables:
            ages = embedding.tables[HISTORY_AGE].embeddings
            if ages.name in named:
                ages.assign(named[ages.name])
    features = {feature.name: feature for feature in tables}
    for unit in model.interests:
        for name, variables in unit.row_state().items():
            for variable in variables:
                _carry_over(model, features[name], tables[features[name]], named, variable)
    model.refresh()

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


def _carry_over(
    model: Ranker, feature: Feature, base_table: Any, named: Mapping[str, tf.Variable], variable: tf.Variable
) -> None:
    """Gives a variable with a row per index the base's rows where the base knows the id. Row 0 is padding."""
    if variable.name not in named:
        _logger.info("%s: the base has no %s.", feature.name, variable.name)
        return
    lookup: Any = model.lookup
    ids, places = lookup.tables[feature.name].lookup_table.export()
    # A restored table has a handle, but no methods.
    base_places = tf.raw_ops.LookupTableFindV2(
        table_handle=base_table.resource_handle, keys=ids, default_value=tf.constant(-1, tf.int64)
    ).numpy()
    known = base_places >= 0
    source, result = named[variable.name].numpy(), variable.numpy()
    reserved = 1 + feature.num_oov_indices
    result[:reserved] = source[:reserved]
    # Tables count from 1.
    result[1 + places.numpy()[known]] = source[1 + base_places[known]]
    variable.assign(result)
    _logger.info("%s: %d of %d ids carried over.", feature.name, known.sum(), known.size)


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
