"""Impressions with raw ids to impressions with rows of embedding tables: what the Transform component runs.

The graph that it makes is used on the pipeline's own data only. A served model carries a `keras_eta.FeatureLookup`,
filled from the vocabularies that are found here, and both must give every id the same row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from keras_eta.features import (
    HISTORY_AGE,
    HISTORY_LENGTH,
    HISTORY_TIMESTAMP,
    LABEL,
    TIMESTAMP,
    Feature,
    Features,
    history_name,
    scope_name,
)
from keras_eta.ops import age_bucket
from tfx_pipeline.config import PipelineConfig


def preprocessing_fn(
    inputs: Mapping[str, tf.Tensor | tf.SparseTensor | tf.RaggedTensor], custom_config: Mapping[str, Any]
) -> dict[str, tf.Tensor | tf.SparseTensor]:
    """Encodes impressions as the model reads them, as TFX's Transform component asks for.

    Each id feature gets one vocabulary, over candidates and behaviours together, in the file that
    `keras_eta.features.scope_name` names: most frequent ids first, at most `vocabulary_size` of them; ids that are
    equally frequent in descending order of their bytes. Empty strings and strings with line breaks never enter it, so
    they are out-of-vocabulary.

    Args:
        inputs: the raw columns of `config.layout.features`, and `label`. Rows [N, 1], dense; histories [N, L], sparse
            or ragged, most recent behaviour first. Further columns are left out.
        custom_config: `config`, a `PipelineConfig` as JSON.

    Returns:
        The columns `encoded_row_names` [N] and `encoded_history_names` [N, at most `max_history_length`] (sparse, so
        that files hold no padding), int64 rows of embedding tables or float32 as they came; `history_length` and
        `label`, int64 [N].

    Raises:
        ValueError: if a column is missing.
    """
    features = PipelineConfig.from_json(custom_config["config"]).layout.features
    missing = sorted({*features.row_names, *features.history_names, LABEL} - set(inputs))
    if missing:
        raise ValueError(f"Columns are missing: {missing}. Received: {sorted(inputs)}")
    rows = {name: tf.reshape(inputs[name], [-1]) for name in features.row_names}
    history = _truncated_history(inputs, features)
    vocabularies = {
        feature.name: _vocabulary(feature, rows, history) for feature in features.all_features if feature.is_id
    }

    def encoded(feature: Feature, values: tf.Tensor) -> tf.Tensor:
        return _embedding_rows(feature, values, vocabularies[feature.name]) if feature.is_id else values

    outputs: dict[str, tf.Tensor | tf.SparseTensor] = {}
    for feature in (*features.user, *features.context, *features.item_features):
        outputs[feature.name] = encoded(feature, rows[feature.name])
    for feature in features.history_features:
        column = history[history_name(feature.name)]
        outputs[history_name(feature.name)] = column.with_flat_values(encoded(feature, column.flat_values)).to_sparse()
    if features.age is not None:
        moments = history[HISTORY_TIMESTAMP]
        timestamp = tf.gather(rows[TIMESTAMP], moments.value_rowids())
        # One behaviour a row, since the function takes a timestamp for each row.
        buckets = age_bucket(timestamp, moments.flat_values[:, tf.newaxis], features.age.boundaries)[:, 0]
        outputs[HISTORY_AGE] = moments.with_flat_values(tf.cast(buckets, tf.int64)).to_sparse()
    lengths = history[history_name(features.item_id.name)].row_lengths()
    outputs[HISTORY_LENGTH] = tf.cast(lengths, tf.int64)
    outputs[LABEL] = tf.cast(tf.reshape(inputs[LABEL], [-1]), tf.int64)
    return outputs


def _truncated_history(inputs: Mapping[str, Any], features: Features) -> dict[str, tf.RaggedTensor]:
    """The history columns, cut to the most recent behaviours; each must be as long as the item ids."""
    columns = {
        name: tf.RaggedTensor.from_sparse(inputs[name]) if isinstance(inputs[name], tf.SparseTensor) else inputs[name]
        for name in features.history_names
    }
    item_id = history_name(features.item_id.name)
    lengths = columns[item_id].row_lengths()
    for name, column in columns.items():
        message = f"`{name}` must be as long as `{item_id}` in every impression."
        tf.debugging.assert_equal(column.row_lengths(), lengths, message)
    return {name: column[:, : features.max_history_length] for name, column in columns.items()}


def _vocabulary(feature: Feature, rows: Mapping[str, tf.Tensor], history: Mapping[str, tf.RaggedTensor]) -> Any:
    """The vocabulary of a feature, over the candidates (or users, ...) and the behaviours that have it."""
    values = [rows[feature.name]] if feature.name in rows else []
    if history_name(feature.name) in history:
        values.append(history[history_name(feature.name)].flat_values)
    ids = tf.concat(values, axis=0)
    # With weights, TFT counts within a batch first. Without, each behaviour goes through Beam by itself, which takes
    # minutes for a million impressions.
    return tft.vocabulary(
        ids,
        top_k=feature.vocabulary_size,
        weights=tf.ones_like(ids, tf.float32),
        vocab_filename=scope_name(feature.name),
    )


def _embedding_rows(feature: Feature, ids: tf.Tensor, vocabulary: Any) -> tf.Tensor:
    """Rows of the embedding table, int64: 1 + the bucket of an unseen id, as `FeatureLookup` has it, then the rest."""
    found = tft.apply_vocabulary(ids, vocabulary, default_value=-1)
    # Keras's IntegerLookup and StringLookup choose the bucket so.
    bucket = (
        tf.strings.to_hash_bucket_fast(ids, feature.num_oov_indices)
        if feature.dtype == "string"
        else tf.math.floormod(ids, feature.num_oov_indices)
    )
    return 1 + tf.where(found < 0, bucket, found + feature.num_oov_indices)
