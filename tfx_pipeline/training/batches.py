"""Batches of transformed impressions, read from files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_eta.columns import LABEL, TIMESTAMP, length_name
from keras_eta.datasets.batches import made_ahead
from keras_eta.features import Features
from keras_eta.tf_data import without_autotuning

if TYPE_CHECKING:
    from tfx_pipeline.training.packing import PackedImpressions

# Impressions of one user lie side by side in the files.
SHUFFLE_BYTES = 2**28


def transformed_batches(
    patterns: Sequence[str],
    features: Features,
    batch_size: int,
    *,
    shuffle_buffer: int = 0,
    seed: int = 0,
    bounds: np.ndarray | None = None,
    timestamps: bool = False,
) -> tf.data.Dataset:
    """Batches of transformed impressions, as the model reads them.

    Args:
        patterns: of gzip-compressed TFRecord files.
        features: the columns.
        batch_size: N.
        shuffle_buffer: impressions among which the next one is drawn. 0: the files' order.
        seed: of that order.
        bounds: int64 [batches + 1], ascending: the impressions at which batches begin and end. Those before the first
            are left out. `None`: batches of `batch_size`, and one of what is left over.
        timestamps: whether the timestamps of the impressions are among the columns, int64 [N].

    Returns:
        A dataset of (columns, label): int32 or float32 [N], sequences [N, L] padded with 0 to the longest of the batch
        and cut to their `max_length`, their lengths int32 [N], and label int64 [N]. Several values are padded with 0 to
        `max_values`.
    """
    by_column = features.by_column
    rows = (*features.encoded_row_names, *(sequence.length for sequence in features.all_sequences), LABEL)
    rows += (TIMESTAMP,) if timestamps else ()
    behaviours = [name for sequence in features.all_sequences for name in features.encoded_sequence_names(sequence)]
    spec: dict[str, Any] = {}
    several: dict[str, int] = {}
    for name in (*rows, *behaviours):
        feature = by_column.get(name)
        dtype = tf.float32 if feature and not feature.is_id else tf.int64
        if feature and feature.max_values:
            lengths = [tf.io.RaggedFeature.RowLengths(length_name(name))] if name in behaviours else []
            spec[name] = tf.io.RaggedFeature(dtype, name, lengths, validate=True)
            several[name] = feature.max_values
        elif name in rows:
            spec[name] = tf.io.FixedLenFeature([], dtype)
        else:
            # Padded as it is parsed: a ragged tensor would be copied once more.
            spec[name] = tf.io.FixedLenSequenceFeature([], dtype, allow_missing=True)

    def parsed(records: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        columns = tf.io.parse_example(records, spec)
        for name, most in several.items():
            columns[name] = columns[name].to_tensor(shape=[*[None] * (columns[name].shape.rank - 1), most])
        for sequence in features.all_sequences:
            for name in features.encoded_sequence_names(sequence):
                columns[name] = columns[name][:, : sequence.max_length]
            columns[sequence.length] = tf.minimum(columns[sequence.length], sequence.max_length)
        label = columns.pop(LABEL)
        indices = [name for name, x in columns.items() if x.dtype == tf.int64 and name != TIMESTAMP]
        return columns | {name: tf.cast(columns[name], tf.int32) for name in indices}, label

    records = impressions_of(files_of(patterns))
    if shuffle_buffer:
        records = records.shuffle(shuffle_buffer, seed, reshuffle_each_iteration=False)
    batches = records.batch(batch_size) if bounds is None else _between(records, bounds)
    return made_ahead(batches, parsed)


class Part(NamedTuple):
    """The files of a part, and what they hold.

    Attributes:
        files: their paths.
        num_examples: impressions in them.
        file_bytes: their size.
        shuffle_buffer: impressions among which the next one is drawn.
        timestamps: when the first and the last impression was; `None` if there are none, or no timestamps.
        positives: int64, impressions with a positive label by row of the item's vocabulary, up to its last.
        packed: its impressions in memory; `None` if they are not held there.
    """

    files: list[str]
    num_examples: int
    file_bytes: int
    shuffle_buffer: int
    timestamps: tuple[int, int] | None
    positives: np.ndarray
    packed: PackedImpressions | None = None


def measure(patterns: Sequence[str], item: str) -> Part:
    """Counts what the files of a part hold, and leaves it there.

    Args:
        patterns: of gzip-compressed TFRecord files of transformed impressions.
        item: name of the item's id.
    """
    files = files_of(patterns)
    row = tf.io.FixedLenFeature([], tf.int64)
    spec = {TIMESTAMP: tf.io.VarLenFeature(tf.int64), item: row, LABEL: row}
    count, record_bytes, positives, bounds = 0, 0, np.zeros(0, "int64"), []
    for records in impressions_of(files).batch(8192) if files else ():
        columns = tf.io.parse_example(records, spec)
        count += len(records)
        record_bytes += int(tf.reduce_sum(tf.cast(tf.strings.length(records), tf.int64)))
        if len(moments := columns[TIMESTAMP].values.numpy()):
            bounds += [int(moments.min()), int(moments.max())]
        positives = added(positives, columns[item].numpy()[columns[LABEL].numpy() > 0])
    buffer = max(1, min(count, SHUFFLE_BYTES * count // max(1, record_bytes)))
    size = sum(tf.io.gfile.stat(name).length for name in files)
    timestamps = (min(bounds), max(bounds)) if bounds else None
    return Part(files, count, size, buffer if count else 0, timestamps, positives)


def added(counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Counts int64 by row of a vocabulary, up to the last row with one, and one more for each of `rows`."""
    more = np.bincount(rows, minlength=len(counts))
    more[: len(counts)] += counts
    return more


def _between(records: tf.data.Dataset, bounds: np.ndarray) -> tf.data.Dataset:
    sizes = np.diff(bounds)
    return records.skip(bounds[0]).batch(int(sizes.max())).rebatch(sizes)


def files_of(patterns: Sequence[str]) -> list[str]:
    """The files of a part, sorted."""
    return sorted(name for pattern in patterns for name in tf.io.gfile.glob(pattern))


def impressions_of(files: Sequence[str]) -> tf.data.Dataset:
    """Serialized tf.Examples, one by one, of gzip-compressed TFRecord files."""
    return without_autotuning(tf.data.TFRecordDataset(files, "GZIP", num_parallel_reads=min(4, len(files))))
