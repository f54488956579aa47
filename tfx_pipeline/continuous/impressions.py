"""Impressions of a round's events: written, read, and encoded for training."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_eta import FeatureLookup, Features
from keras_eta.columns import LABEL, TIMESTAMP
from keras_eta.datasets.batches import batch_bounds, made_ahead
from keras_eta.export.checks import parsed
from keras_eta.export.columns import dtypes_of
from keras_eta.export.examples import LISTS
from tfx_pipeline.config import EVAL, PipelineConfig
from tfx_pipeline.continuous.store import EventStore
from tfx_pipeline.ingestion.blocks import BlockFile
from tfx_pipeline.ingestion.impressions import IMPRESSIONS, LEFT_OUT, Cuts, MakeExamples
from tfx_pipeline.layouts import USER_ID
from tfx_pipeline.training.batches import impressions_of

_FILE = "data_tfrecord-00000-of-00001.gz"
# All impressions of a round are judged before they are trained on: they are its eval split.
_ALL_EVAL = Cuts(-(2**63), -(2**63))


class Impressions(NamedTuple):
    """Impressions of a round, N of them.

    Args:
        records: serialized tf.Examples.
        labels: int64 [N].
        users: int64 [N], a number per user.
        times: the first and the last timestamp; `None` if there are none.
    """

    records: list[bytes]
    labels: np.ndarray
    users: np.ndarray
    times: tuple[int, int] | None


def file_of(split_uri: str) -> str:
    """The file that holds the impressions of a split."""
    return os.path.join(split_uri, _FILE)


def write_impressions(store: EventStore, number: int, config: PipelineConfig, path: str) -> dict[str, int]:
    """Writes the impressions of the open round as gzipped TFRecords, like a full run makes them of the same log.

    Args:
        store: of the events.
        number: of the round.
        config: layout and `min_history`.
        path: of the file.

    Returns:
        How many there are, and how many events have too few behaviours before them.
    """
    maker = MakeExamples(config.layout, config.min_history)
    maker.start_bundle()
    with contextlib.closing(BlockFile(open(path, "wb"))) as file:
        for log in store.new_logs(number):
            for block in maker.process(log, _ALL_EVAL):
                file.write(block.value)
    counts = maker.counts
    return {
        "impressions": counts.get(f"{IMPRESSIONS}/{EVAL}", 0),
        "left_out_for_short_history": counts.get(LEFT_OUT, 0),
    }


def read_impressions(path: str) -> Impressions:
    """The impressions of a file."""
    records = list(impressions_of([path]).as_numpy_iterator())
    examples = [tf.train.Example.FromString(record).features.feature for record in records]
    times = [example[TIMESTAMP].int64_list.value[0] for example in examples]
    numbers: dict[Any, int] = {}
    users = [numbers.setdefault(_values(example[USER_ID])[0], len(numbers)) for example in examples]
    return Impressions(
        records,
        np.array([example[LABEL].int64_list.value[0] for example in examples], "int64"),
        np.array(users, "int64"),
        (min(times), max(times)) if times else None,
    )


def count_ids(records: Sequence[bytes], features: Features) -> dict[str, Counter[Any]]:
    """How often candidates and behaviours of impressions have each id of each id feature."""
    counts: dict[str, Counter[Any]] = {feature.name: Counter() for feature in features.all_features if feature.is_id}
    for record in records:
        columns = tf.train.Example.FromString(record).features.feature
        for name, feature in features.by_column.items():
            if feature.is_id:
                counts[feature.name].update(getattr(columns[name], LISTS[feature.dtype]).value)
    return counts


def encoded_batches(records: Sequence[bytes], lookup: FeatureLookup, batch_size: int, seed: int) -> tf.data.Dataset:
    """Batches of impressions as a ranker with this lookup reads them, in random order.

    Args:
        records: serialized tf.Examples with raw ids.
        lookup: that of the ranker.
        batch_size: N at most; batches are as even as can be.
        seed: of the order.

    Returns:
        A dataset of (columns, label), as `transformed_batches` gives them.
    """
    features = lookup.features
    dtypes = dtypes_of(features, raw_ids=True)
    order = np.random.default_rng(seed).permutation(len(records))
    bounds = batch_bounds(len(records), batch_size)

    def encoded(batch: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        label = tf.io.parse_example(batch, {LABEL: tf.io.FixedLenFeature([], tf.int64)})[LABEL]
        return lookup.encode_columns(parsed(batch, features, dtypes), features), label

    shuffled = tf.data.Dataset.from_tensor_slices(tf.constant([records[row] for row in order]))
    batches = shuffled.batch(int(np.diff(bounds).max())).rebatch(np.diff(bounds))
    return made_ahead(batches.apply(tf.data.experimental.assert_cardinality(len(bounds) - 1)), encoded)


def split_uri(examples_uri: str) -> str:
    """The directory of the split of an Examples artifact of a round."""
    return os.path.join(examples_uri, f"Split-{EVAL}")


def _values(feature: Any) -> Any:
    return getattr(feature, feature.WhichOneof("kind")).value
