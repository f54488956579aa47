"""The positive impressions of a part: what a retriever learns and is judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_eta.columns import LABEL, Feature, history_name
from tfx_pipeline.training.batches import files_of, impressions_of

# Rows of items count from here: 0 is padding, 1 an unknown item.
FIRST_ROW = 2
UNKNOWN_ROW = 1

_BATCH_SIZE = 4096


class Positives(NamedTuple):
    """Positive impressions, as rows of items.

    Attributes:
        items: int32 [n], what was taken.
        histories: int32 [n, L], most recent first, 0 behind the end.
        lengths: int32 [n].
        total: how many there are in the files, of which these may be a sample.
    """

    items: np.ndarray
    histories: np.ndarray
    lengths: np.ndarray
    total: int

    def where(self, chosen: np.ndarray) -> Positives:
        """Those of which a bool [n] is true."""
        return Positives(self.items[chosen], self.histories[chosen], self.lengths[chosen], self.total)


def read_positives(
    patterns: Sequence[str],
    item_id: Feature,
    max_length: int,
    encode: Callable[[np.ndarray], np.ndarray],
    *,
    sample: int | None = None,
    seed: int = 0,
) -> Positives:
    """Reads the impressions with label 1 that ingestion wrote. All that are read are held: L + 2 integers each.

    Args:
        patterns: of the files.
        item_id: the feature with the item's id.
        max_length: L, behaviours to read of each history.
        encode: rows int [m] of raw ids [m].
        sample: draw so many if there are more. `None`: all.
        seed: of that draw.
    """
    rng = np.random.default_rng(seed)
    none = np.zeros(0, np.int32)
    parts: list[tuple[np.ndarray, ...]] = [(np.zeros(0), none, np.zeros([0, max_length], np.int32), none)]
    held = total = 0
    files = files_of(patterns)
    for items, values, lengths in _batches(files, item_id, max_length) if files else ():
        real = np.arange(max_length) < lengths[:, np.newaxis]
        histories = np.zeros(real.shape, np.int32)
        histories[real] = encode(values)
        parts.append((rng.random(len(items)), encode(items).astype(np.int32), histories, lengths.astype(np.int32)))
        held += len(items)
        total += len(items)
        if sample is not None and held > 2 * sample:
            parts, held = [_drawn(parts, sample)], sample
    _, items, histories, lengths = _drawn(parts, total if sample is None else sample)
    return Positives(items, histories, lengths, total)


def _drawn(parts: Sequence[tuple[np.ndarray, ...]], number: int) -> tuple[np.ndarray, ...]:
    """The rows with the smallest keys, which come first of all columns, in their order."""
    columns = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    chosen = np.sort(np.argsort(columns[0])[:number])
    return tuple(column[chosen] for column in columns)


def _batches(files: Sequence[str], item_id: Feature, max_length: int) -> Any:
    """NumPy batches: ids [n], the ids of all their behaviours side by side, and how many each has."""
    dtype, history = tf.as_dtype(item_id.dtype), history_name(item_id.name)
    spec = {
        item_id.name: tf.io.FixedLenFeature([], dtype),
        history: tf.io.RaggedFeature(dtype, row_splits_dtype=tf.int64),
        LABEL: tf.io.FixedLenFeature([], tf.int64),
    }

    def positives(records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        columns = tf.io.parse_example(records, spec)
        positive = columns[LABEL] == 1
        behaviours = tf.ragged.boolean_mask(columns[history], positive)[:, :max_length]
        return tf.boolean_mask(columns[item_id.name], positive), behaviours.flat_values, behaviours.row_lengths()

    return impressions_of(files).batch(_BATCH_SIZE).map(positives).prefetch(1).as_numpy_iterator()
