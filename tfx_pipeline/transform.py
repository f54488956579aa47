"""Impressions with raw ids to impressions with rows of embedding tables: what the Transform component runs.

The graph that it makes is used on the pipeline's own data only. A served model carries a `keras_eta.FeatureLookup`,
filled from the vocabularies that are found here, and both must give every id the same row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from keras_eta.columns import LABEL, TIMESTAMP, Feature, Sequence, length_name
from keras_eta.features import Features
from keras_eta.names import scope_name
from keras_eta.ops import age_bucket
from keras_eta.ops.calendar import calendar_columns
from tfx_pipeline.config import PipelineConfig


def preprocessing_fn(
    inputs: Mapping[str, tf.Tensor | tf.SparseTensor | tf.RaggedTensor], custom_config: Mapping[str, Any]
) -> dict[str, tf.Tensor | tf.SparseTensor]:
    """Encodes impressions as the model reads them, as TFX's Transform component asks for.

    Each id feature gets one vocabulary, over candidates and behaviours together, in the file that
    `keras_eta.names.scope_name` names: most frequent ids first, at most `vocabulary_size` of them; ids that are
    equally frequent in descending order of their bytes. Empty strings and strings with line breaks never enter it, so
    they are out-of-vocabulary. Floats stay as they came; what the model scales them by goes into the file `scale_file`.

    Args:
        inputs: the raw columns of `config.layout.features`, and `label`. Rows [N, 1], dense; sequences [N, L], sparse
            or ragged, most recent behaviour first. Several values of a row [N, V], and those of all behaviours side by
            side [N, L * V] with `<name>_length` [N, L], are ragged too. Further columns are left out.
        custom_config: `config`, a `PipelineConfig` as JSON.

    Returns:
        The columns `encoded_row_names` [N] and `encoded_sequence_names` [N, at most the sequence's `max_length`]
        (sparse, so that files hold no padding), int64 rows of embedding tables or float32 as they came; the lengths of
        sequences, `label` and, with `features.age`, `timestamp`, int64 [N]. Several values come as they went in, at
        most `max_values` each.

    Raises:
        ValueError: if a column is missing.
    """
    features = PipelineConfig.from_json(custom_config["config"]).layout.features
    names = [
        *features.row_names,
        *(n for sequence in features.all_sequences for n in features.sequence_names(sequence)),
    ]
    several = {name for name, feature in features.by_column.items() if feature.max_values}
    # In examples a row's own values tell their number.
    names = [name for name in names if name not in {length_name(n) for n in several & {*features.encoded_row_names}}]
    missing = sorted({*names, LABEL} - set(inputs))
    if missing:
        raise ValueError(f"Columns are missing: {missing}. Received: {sorted(inputs)}")
    columns = {
        name: _ragged(inputs[name])[:, : feature.max_values] if feature.max_values else tf.reshape(inputs[name], [-1])
        for name, feature in ((feature.name, feature) for feature in features.row_features)
    }
    for sequence in features.all_sequences:
        columns |= _truncated(inputs, features, sequence)
    vocabularies = {
        feature.name: _vocabulary(feature, [columns[name] for name, f in features.by_column.items() if f == feature])
        for feature in features.all_features
        if feature.is_id
    }

    for feature in features.all_features:
        if not feature.is_id and feature.mean is None:
            _write_scale(feature, [columns[name] for name, f in features.by_column.items() if f == feature])

    outputs: dict[str, tf.Tensor | tf.SparseTensor] = {}
    for name, feature in features.by_column.items():
        column = columns[name]
        if feature.is_id:
            rows = _embedding_rows(feature, _values(column), vocabularies[feature.name])
            column = column.with_flat_values(rows) if isinstance(column, tf.RaggedTensor) else rows
        outputs[name] = column.to_sparse() if isinstance(column, tf.RaggedTensor) else column
        if feature.max_values and name not in features.encoded_row_names:
            outputs[length_name(name)] = columns[length_name(name)].to_sparse()
    for sequence in features.all_sequences:
        lengths = columns[sequence.column(features.item_id.name)].row_lengths()
        outputs[sequence.length] = tf.cast(lengths, tf.int64)
        if features.age is not None:
            moments = columns[sequence.timestamp]
            timestamp = tf.gather(tf.reshape(inputs[TIMESTAMP], [-1]), moments.value_rowids())
            # One behaviour a row, since the function takes a timestamp for each row.
            buckets = age_bucket(timestamp, moments.flat_values[:, tf.newaxis], features.age.boundaries)[:, 0]
            outputs[sequence.age] = moments.with_flat_values(tf.cast(buckets, tf.int64)).to_sparse()
    if features.reads_timestamp:
        moments = tf.reshape(inputs[TIMESTAMP], [-1])
        calendar = calendar_columns(features, {TIMESTAMP: moments})
        outputs |= {name: tf.cast(column, tf.int64) for name, column in calendar.items()}
        # Not for the model: exports carry the range of the training part's.
        outputs[TIMESTAMP] = moments
    outputs[LABEL] = tf.cast(tf.reshape(inputs[LABEL], [-1]), tf.int64)
    return outputs


def _truncated(inputs: Mapping[str, Any], features: Features, sequence: Sequence) -> dict[str, tf.RaggedTensor]:
    """The columns of a sequence, cut to the most recent behaviours; each must be as long as the item ids."""
    columns = {name: _ragged(inputs[name]) for name in features.sequence_names(sequence)}
    several = {
        sequence.column(feature.name): feature.max_values
        for feature in features.sequence_features(sequence)
        if feature.max_values
    }
    item_id = sequence.column(features.item_id.name)
    lengths = columns[item_id].row_lengths()
    for name, column in columns.items():
        if name not in several:
            message = f"`{name}` must be as long as `{item_id}` in every impression."
            tf.debugging.assert_equal(column.row_lengths(), lengths, message)
    cut = {name: column[:, : sequence.max_length] for name, column in columns.items() if name not in several}
    for name, most in several.items():
        counts = columns[length_name(name)]
        # [N, (L), (V)], of which the first values and behaviours stay.
        nested = columns[name].values, counts.flat_values, counts.row_splits
        behaviours = tf.RaggedTensor.from_nested_row_splits(
            nested[0], [nested[2], tf.concat([[0], tf.cumsum(nested[1])], axis=0)]
        )[:, : sequence.max_length, :most]
        cut[length_name(name)] = tf.RaggedTensor.from_row_splits(behaviours.values.row_lengths(), behaviours.row_splits)
        cut[name] = behaviours.merge_dims(1, 2)
    return cut


def _ragged(column: tf.SparseTensor | tf.RaggedTensor) -> tf.RaggedTensor:
    return tf.RaggedTensor.from_sparse(column) if isinstance(column, tf.SparseTensor) else column


def _values(column: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
    return column.flat_values if isinstance(column, tf.RaggedTensor) else column


def _vocabulary(feature: Feature, columns: Iterable[tf.Tensor | tf.RaggedTensor]) -> Any:
    """The vocabulary of a feature, over the candidates (or users, ...) and the behaviours that have it."""
    # TFT makes a string of each integer, and hands each value to Beam by itself unless there are weights.
    ids, _, counts = tf.unique_with_counts(tf.concat([_values(column) for column in columns], axis=0))
    return tft.vocabulary(
        ids,
        top_k=feature.vocabulary_size,
        frequency_threshold=feature.min_count,
        weights=tf.cast(counts, tf.float32),
        vocab_filename=scope_name(feature.name),
    )


def scale_file(feature: Feature) -> str:
    """Name of the file, among the vocabularies, with the mean and the standard deviation of a float feature."""
    return f"{scope_name(feature.name)}_scale"


def read_scales(transform_output: tft.TFTransformOutput, features: Features) -> dict[str, tuple[float, float]]:
    """Means and standard deviations of the float features in the training split, by name.

    Args:
        transform_output: of the Transform component.
        features: the columns; those with a `mean` of their own have none in the files.
    """
    scales = {}
    for feature in features.all_features:
        if not feature.is_id and feature.mean is None:
            (line,) = transform_output.vocabulary_by_name(scale_file(feature))
            mean, std = map(float, line.split())
            scales[feature.name] = (mean, std or 1.0)
    return scales


def _write_scale(feature: Feature, columns: Iterable[tf.Tensor | tf.RaggedTensor]) -> None:
    """Learns mean and standard deviation over the candidates (or users, ...) and the behaviours."""
    values = tf.cast(tf.concat([_values(column) for column in columns], axis=0), tf.float64)
    if feature.optional:
        values = tf.boolean_mask(values, ~tf.math.is_nan(values))
    numbers = [tft.mean(values), tf.sqrt(tft.var(values))]
    # TFT hands nothing else over to the Trainer than files of lines.
    line = tf.strings.join([tf.strings.as_string(x, precision=9, scientific=True) for x in numbers], " ")
    tft.vocabulary(tf.reshape(line, [1]), vocab_filename=scale_file(feature))


def _embedding_rows(feature: Feature, ids: tf.Tensor, vocabulary: Any) -> tf.Tensor:
    """Rows of the embedding table, int64: 1 + the bucket of an unseen id, as `FeatureLookup` has it, then the rest."""
    # Each id of a batch is looked up once: TFT makes a string of each integer.
    ids, position = tf.unique(ids)
    found = tft.apply_vocabulary(ids, vocabulary, default_value=-1)
    # Keras's IntegerLookup and StringLookup choose the bucket so.
    bucket = (
        tf.strings.to_hash_bucket_fast(ids, feature.num_oov_indices)
        if feature.dtype == "string"
        else tf.math.floormod(ids, feature.num_oov_indices)
    )
    return tf.gather(1 + tf.where(found < 0, bucket, found + feature.num_oov_indices), position)
