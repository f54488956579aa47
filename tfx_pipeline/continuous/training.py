"""Trains on from a served version, in one pass over the impressions of a round."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_eta import FeatureLookup, Features, Ranker
from keras_eta.contract import Contract
from keras_eta.export import export_model
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.continuous.impressions import Impressions, count_ids, encoded_batches
from tfx_pipeline.ranker import make_ranker
from tfx_pipeline.training.accumulators import save_accumulators
from tfx_pipeline.training.attribute_tables import attribute_tables
from tfx_pipeline.training.moments import restore_moments, save_moments
from tfx_pipeline.training.publishing import model_name, publish
from tfx_pipeline.training.warm_start import Base, carry_over, same_features

CountOf = Callable[[str, Any], int]


class UntrainableError(Exception):
    """The impressions of a round make no model; the message says why."""


_logger = logging.getLogger(__name__)


def train_on(
    config: PipelineConfig, base: Base | None, impressions: Impressions, seed: int, count_of: CountOf
) -> tuple[Ranker, dict[str, int]]:
    """A model that has learned from the impressions what the base did not know.

    Rows of the base's vocabularies keep their place, and new ids follow them, most frequent first. Weights, both
    optimisers and what units keep go on from the base; fingerprints are exact.

    Args:
        config: the ranker and its training.
        base: the served version; `None`: the model begins afresh.
        impressions: to train on, at least one.
        seed: of the order of batches.
        count_of: how many events have an id of a feature with a `min_count`.

    Returns:
        The model, and the number of new ids by feature.

    Raises:
        ValueError: if the base reads other features or has another architecture.
        UntrainableError: if the loss is not finite, or the first impressions hold no value of a feature.
    """
    tf.keras.utils.set_random_seed(config.training.seed + seed)
    features = config.layout.features
    if base is not None and not same_features(base.features, features):
        raise ValueError(f"The served version {base.path} reads other features than the layout of this loop.")
    lookup = _first_lookup(features, impressions) if base is None else None
    known = {} if base is None else base.vocabularies
    vocabularies, added = _extended(features, known, impressions, count_of)
    scaled = base.features if lookup is None and base is not None else lookup.features  # type: ignore[union-attr]
    scales = {f.name: (f.mean, f.std) for f in scaled.all_features if f.mean is not None and f.std is not None}
    model = make_ranker(config.model, features.with_scales(scales), vocabularies)
    optimizer = model.default_optimizer(config.training.embedding_learning_rate, config.training.dense_learning_rate)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer)
    if base is not None:
        if not carry_over(model, base):
            raise ValueError(f"The served version {base.path} has another architecture than the ranker of this loop.")
        if not restore_moments(model, base.path):
            _logger.info("%s has no state of the dense optimiser, which starts afresh.", base.path)
    else:
        _count_positives(model, impressions)
    batches = encoded_batches(impressions.records, model.lookup, config.training.batch_size, seed)  # type: ignore[arg-type]
    logs = model.fit(batches, epochs=1, callbacks=[tf.keras.callbacks.TerminateOnNaN()], verbose=0).history
    if not np.isfinite(logs["loss"][-1]):
        raise UntrainableError("The loss is not finite. Lower the learning rates, or look for odd values.")
    if base is not None:
        # After the training: with its own label counted, a new item's first positive would give itself away.
        _count_positives(model, impressions)
    return model, added


def write_model(
    model: Ranker, config: PipelineConfig, base: Base | None, times: tuple[int, int] | None, serving_model_dir: str
) -> None:
    """Exports a model with all that training goes on from.

    Args:
        model: trained.
        config: layout, data and the serving directory.
        base: what it went on from.
        times: the first and the last timestamp of what it was trained on.
        serving_model_dir: the directory of the SavedModel, which appears when it is whole.
    """
    before = None if base is None else Contract.read(Path(base.path), vocabularies=False).timestamps
    known = [moment for some in (before, times) if some is not None for moment in some]

    def export(base_path: Path) -> Path:
        tables = attribute_tables(config.layout, config.data)
        timestamps = (min(known), max(known)) if known else None
        exported = export_model(model, base_path, version=1, timestamps=timestamps, tables=tables)
        save_accumulators(model, exported)
        save_moments(model, exported)
        return exported

    publish(export, serving_model_dir, model_name(config.serving_dir, "eta"))


def _first_lookup(features: Features, impressions: Impressions) -> FeatureLookup:
    """A lookup that has learned the scales of floats."""
    from keras_eta.export.checks import parsed
    from keras_eta.export.columns import dtypes_of

    lookup = FeatureLookup(features.with_min_count(1))
    records = tf.data.Dataset.from_tensor_slices(tf.constant(impressions.records)).batch(512)
    try:
        lookup.adapt(records.map(lambda batch: parsed(batch, features, dtypes_of(features, raw_ids=True))))
    except ValueError as error:
        raise UntrainableError(
            f"There is no version to go on from, and a first one can't be trained: {error}"
        ) from error
    return lookup


def _count_positives(model: Ranker, impressions: Impressions) -> None:
    """Adds the positives among the impressions to what the model knows of the popularity of items."""
    if model.popularity is None or model.lookup is None:
        return
    item = model.features.item_id
    spec = {item.name: tf.io.FixedLenFeature([], item.dtype)}
    items = tf.io.parse_example(impressions.records, spec)[item.name].numpy()
    rows = model.lookup.encode(item.name, items[impressions.labels > 0])
    taken = np.bincount(rows, minlength=item.num_indices)
    model.popularity.set_counts(model.popularity.counts.numpy() + taken)


def _extended(
    features: Features, known: dict[str, np.ndarray], impressions: Impressions, count_of: CountOf
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The vocabularies with the ids that are new and frequent enough behind those that are known, and how many."""
    counts = count_ids(impressions.records, features)
    vocabularies, added = {}, {}
    for feature in features.all_features:
        if not feature.is_id:
            continue
        old = known.get(feature.name, np.array([], object if feature.dtype == "string" else "int64"))
        present = set(old.tolist())
        found = [(-count, id_) for id_, count in counts[feature.name].items() if id_ not in present]
        if feature.min_count > 1:
            found = [(count, id_) for count, id_ in found if count_of(feature.name, id_) >= feature.min_count]
        new = [id_ for _, id_ in sorted(found)]
        vocabularies[feature.name] = np.array([*old.tolist(), *new], old.dtype)
        added[feature.name] = len(new)
    return vocabularies, added
