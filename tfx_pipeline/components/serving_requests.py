"""Requests of impressions: what a model is asked before it may be pushed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from keras_eta.columns import TIMESTAMP, length_name
from keras_eta.contract import Contract
from keras_eta.export import EXAMPLES
from keras_eta.export.checks import parsed
from keras_eta.export.columns import dtypes_of
from keras_eta.export.examples import LISTS
from keras_eta.features import Features

POINTWISE, RANK, EXPLAIN = "serving_default", "rank", "explain"

Inputs = Mapping[str, np.ndarray]


def serving_requests(records: Sequence[bytes], features: Features) -> dict[str, Inputs]:
    """One request for each signature, all about the same impressions.

    Args:
        records: N serialized tf.Examples of impressions, at least one.
        features: their columns.

    Returns:
        By signature, its inputs by name. `rank` and `explain` get N requests, each with the N impressions' candidates,
        its own first. Histories are padded with a real behaviour, as TensorFlow Serving's batching pads them.

    Raises:
        ValueError: if an example lacks a column of the features or holds it as another type.
    """
    examples = [tf.train.Example.FromString(record).features.feature for record in records]
    dtypes, by_column = dtypes_of(features, raw_ids=True), features.by_column
    behaviours = {name for sequence in features.all_sequences for name in features.sequence_names(sequence)}
    for name in (*features.row_names, *behaviours):
        feature = by_column.get(name)
        several = name in behaviours or (feature is not None and feature.max_values)
        if name in features.row_names and feature is None and name != TIMESTAMP:
            # The number of a row's own values, which its list tells.
            continue
        kind = LISTS[dtypes[name].name]
        for example in examples:
            found = example[name].WhichOneof("kind") if name in example else "nothing"
            # An empty list needs no type.
            if found != kind and not (found is None and several):
                raise ValueError(f"Column `{name}` of the examples must be a {kind}. Received: {found}")
            count = len(getattr(example[name], kind).value)
            if not several and count != 1:
                raise ValueError(f"Column `{name}` of the examples must hold one value each. Received: {count}")
    dense = {name: column.numpy() for name, column in parsed(tf.constant(records), features, dtypes).items()}
    for sequence in features.all_sequences:
        for name in features.sequence_names(sequence):
            dense[name] = _padded(dense[name], dense[sequence.length])

    N = len(records)
    candidates = (np.arange(N)[:, None] + np.arange(N)) % N
    names = [name for feature in features.item_features for name in (feature.name, length_name(feature.name))]
    items = {name: dense[name][candidates] for name in names if name in dense}
    ranking = {**dense, **items}
    return {POINTWISE: dense, RANK: ranking, EXPLAIN: ranking, EXAMPLES: {EXAMPLES: np.array(records, object)}}


def requests_to(contract: Contract, records: Sequence[bytes]) -> dict[str, Inputs]:
    """As `serving_requests`, to a version that may look features up: without these, with the ids that it needs.

    Args:
        contract: of the version, as far as its features and tables go.
        records: serialized tf.Examples.
    """
    examples = [tf.train.Example.FromString(record).features.feature for record in records]
    ids = {
        key.name: np.array(
            [getattr(example[key.name], LISTS[key.dtype]).value[0] for example in examples],
            "int64" if key.dtype == "int64" else object,
        )
        for key in contract.unread_keys
    }
    requests = serving_requests(records, contract.features)
    for signature in (POINTWISE, RANK, EXPLAIN):
        inputs = requests[signature]
        asked = {name: values for name, values in inputs.items() if name not in contract.joined_columns}
        requests[signature] = {**asked, **ids}
    return requests


def _padded(column: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """A sequence's column, filled up behind its lengths with the first behaviour there is."""
    real = np.arange(column.shape[1]) < lengths[:, None]
    return np.where(real.reshape(real.shape + (1,) * (column.ndim - 2)), column, column[real][:1])
