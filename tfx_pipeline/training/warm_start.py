"""Starts a model from the weights of a served version."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_eta import Ranker
from keras_eta.columns import HISTORY_AGE, Feature
from keras_eta.features import Features
from tfx_pipeline.training.accumulators import accumulators, saved_accumulators
from tfx_pipeline.training.publishing import served_versions

_logger = logging.getLogger(__name__)


class _Rows(NamedTuple):
    """Rows of this model's tables, and those of the base's that they continue, int [n] each."""

    ours: np.ndarray
    theirs: np.ndarray


def warm_start(model: Ranker, serving_dir: str) -> int | None:
    """Gives a new model the weights of the latest version in a serving directory.

    Rows are carried over by id, since every training has vocabularies of its own: an id that both models know keeps its
    embeddings, in the shared tables and in those of single units, with Adagrad's accumulators and what units and the
    retrieval task keep by row. An id that the version lacks keeps the model's initial ones; the rows of padding and of
    the out-of-vocabulary buckets keep their place. Planes, in use and learned, follow where their number of bits is the
    same, whatever their period, and the other weights and statistics where the architecture is. What units derive is
    exact afterwards.

    Nothing happens, but for a line in the log, where there is no version or its features are others.

    Args:
        model: built, with a `lookup`; its optimiser's variables exist, or it is not compiled.
        serving_dir: directory of versions, as TF Serving's `--model_base_path`.

    Returns:
        The version, or `None` if nothing was carried over.
    """
    present = served_versions(serving_dir)
    if not present:
        _logger.info("Cold start: there is no version in %s.", serving_dir or "no serving directory")
        return None
    version = max(present)
    path = os.path.join(serving_dir, present[version])
    if not same_features(base_features(path), model.features):
        _logger.warning("Cold start: version %d in %s reads other features than this model.", version, serving_dir)
        return None
    if carry_over(model, load_base(path)):
        _logger.info("Warm start from version %d in %s.", version, serving_dir)
    else:
        _logger.warning(
            "Warm start from version %d in %s, of the embeddings only: its architecture is another.",
            version,
            serving_dir,
        )
    return version


class Base(NamedTuple):
    """A served version that a model goes on from.

    Args:
        path: of the version.
        features: its columns.
        module: the SavedModel.
    """

    path: str
    features: Features
    module: Any

    @property
    def vocabularies(self) -> dict[str, np.ndarray]:
        """The ids of each vocabulary in the order of its rows, int64 or bytes as objects."""
        found = {}
        for feature, table in zip(_id_features(self.features), self.module.vocabularies, strict=True):
            ids, places = tf.raw_ops.LookupTableExportV2(
                table_handle=table.resource_handle, Tkeys=feature.dtype, Tvalues=tf.int64
            )
            found[feature.name] = ids.numpy()[np.argsort(places.numpy())]
        return found


def base_features(path: str) -> Features:
    """The columns of a served version."""
    with tf.io.gfile.GFile(os.path.join(path, "assets.extra", "features.json")) as file:
        return Features.from_dict(json.load(file))


def same_features(features: Features, others: Features) -> bool:
    """Whether columns are the same, up to what the data decides."""
    return _without_sizes(features) == _without_sizes(others)


def load_base(path: str) -> Base:
    """Loads a served version."""
    return Base(path, base_features(path), tf.saved_model.load(path))


def carry_over(model: Ranker, base: Base) -> bool:
    """Gives a new model the weights of a version with the same features, as `warm_start` does.

    Args:
        model: as `warm_start`.
        base: the version.

    Returns:
        Whether the architecture is the same; if not, embeddings and planes alone are carried over.
    """
    path, module = base.path, base.module
    named = {variable.name: variable for variable in module.model_variables}
    # Before the embeddings, which are hashed with the planes when they are assigned.
    for planes in filter(_is_planes, _variables(model)):
        # A version whose planes follow the optimiser at once has learned no others.
        source = named.get(planes.name, named.get(planes.name.replace("/learned_planes", "/planes")))
        if source is not None and source.shape == planes.shape:
            planes.assign(source)
    rows = {
        feature.name: _common_rows(model, feature, table)
        for feature, table in zip(_id_features(base.features), module.vocabularies, strict=True)
    }
    if model.features.age is not None:
        buckets = np.arange(model.features.age.num_indices)
        rows[HISTORY_AGE] = _Rows(buckets, buckets)
    if model.features.calendar is not None:
        for name, size in model.features.calendar.num_indices.items():
            rows[name] = _Rows(np.arange(size), np.arange(size))
    ours, theirs = accumulators(model), saved_accumulators(path)
    for embedding in (model.feature_embedding, *model.own_embeddings.values()):
        for feature_name, table in embedding.tables.items():
            name = table.embeddings.name
            if name not in named:
                _logger.info("%s: the base has no %s.", feature_name, name)
                continue
            _carry_over(rows[feature_name], named[name].numpy(), table.embeddings)
            accumulator = theirs(name)
            if accumulator is not None and name in ours:
                _carry_over(rows[feature_name], accumulator, ours[name])
    same = _carry_learned_over(model, module.model_variables)
    for unit in model.interests:
        if unit.row_state():
            # New ids, and a base that lacks this state, get what the unit makes of the weights of the moment.
            unit.after_step(tf.constant(0, tf.int64))
    for feature_name, variable in _row_state(model):
        if variable.name in named:
            _carry_over(rows[feature_name], named[variable.name].numpy(), variable)
    if same:
        _carry_statistics_over(model, module.model_variables)
    model.refresh()
    return same


def _id_features(features: Features) -> list[Feature]:
    return [feature for feature in features.all_features if feature.is_id]


def _without_sizes(features: Features) -> dict[str, Any]:
    """The description of features without what the data decides and what is no column, as JSON has it."""
    cleared: dict[str, Any] = json.loads(json.dumps(features.to_dict()))
    del cleared["positives"]
    for role in cleared.values():
        for feature in role if isinstance(role, list) else [role]:
            if isinstance(feature, dict):
                for learned in ("vocabulary_size", "mean", "std"):
                    feature.pop(learned, None)
    return cleared


def _common_rows(model: Ranker, feature: Feature, base_table: Any) -> _Rows:
    """The rows of padding, of the out-of-vocabulary buckets and of the ids that both models know."""
    lookup: Any = model.lookup
    ids, places = lookup.tables[feature.name].lookup_table.export()
    # A restored table has a handle, but no methods.
    base_places = tf.raw_ops.LookupTableFindV2(
        table_handle=base_table.resource_handle, keys=ids, default_value=tf.constant(-1, tf.int64)
    ).numpy()
    known = base_places >= 0
    _logger.info("%s: %d of %d ids are known to the base.", feature.name, known.sum(), known.size)
    reserved = np.arange(1 + feature.num_oov_indices)
    # Tables count from 1: row 0 is padding.
    return _Rows(
        np.concatenate([reserved, 1 + places.numpy()[known]]), np.concatenate([reserved, 1 + base_places[known]])
    )


def _carry_over(rows: _Rows, source: np.ndarray, variable: tf.Variable) -> None:
    """Gives the rows of a variable those of the base."""
    result = variable.numpy()
    result[rows.ours] = source[rows.theirs]
    variable.assign(result)


def _carry_learned_over(model: Ranker, base_variables: Iterable[tf.Variable]) -> bool:
    """Gives the model what the base has learned besides embeddings and planes; false if the architecture is another."""
    ours, theirs = _dense(_variables(model)), _dense(base_variables)
    if list(map(signature, ours)) != list(map(signature, theirs)):
        return False
    for variable, source in zip(ours, theirs, strict=True):
        variable.assign(source)
    return True


def _carry_statistics_over(model: Ranker, base_variables: Iterable[tf.Variable]) -> None:
    """Gives the model what the base keeps without learning it, such as moving averages, and not by row."""
    done = {id(variable) for _, variable in _row_state(model)}
    by_signature = defaultdict(list)
    for variable in filter(_is_statistic, base_variables):
        by_signature[signature(variable)].append(variable)
    for variable in filter(_is_statistic, _variables(model)):
        sources = by_signature[signature(variable)]
        if sources and id(variable) not in done:
            variable.assign(sources.pop(0))


def _row_state(model: Ranker) -> list[tuple[str, tf.Variable]]:
    """What units, the popularity and the retrieval task keep by row of a vocabulary, with the feature's name."""
    others = [part for part in (model.popularity, model.retrieval_task) if part is not None]
    parts: list[Any] = [*model.interests, *others]
    return [(name, variable) for part in parts for name, by_row in part.row_state().items() for variable in by_row]


def _variables(model: Ranker) -> list[tf.Variable]:
    """The model's variables. Keras counts handles of lookup tables among them."""
    return [variable for variable in model.variables if isinstance(variable, tf.Variable)]


def _is_planes(variable: tf.Variable) -> bool:
    return variable.name.endswith(("/planes:0", "/learned_planes:0"))


def _is_statistic(variable: tf.Variable) -> bool:
    return not (variable.trainable or _is_planes(variable) or variable.name.endswith("/fingerprints:0"))


def _dense(variables: Iterable[tf.Variable]) -> list[tf.Variable]:
    """What is learned besides embeddings and planes, in the model's order."""
    return [
        variable
        for variable in variables
        if variable.trainable and not variable.name.endswith("/embeddings:0") and not _is_planes(variable)
    ]


def signature(variable: tf.Variable) -> tuple[str, tf.TensorShape]:
    """Name and shape. Keras numbers the layers of a process, as in `dense_3`; the numbers mean nothing."""
    return re.sub(r"_\d+(?=[/:])", "", variable.name), variable.shape
