"""A data set with the users' behaviours as clusters beside it, which TWIN-V2 reads."""

from __future__ import annotations

import dataclasses

import numpy as np

from benchmarks.quality.protocols import Protocol, adapted
from keras_eta import Feature, Sequence
from keras_eta.columns import ITEM_ID
from keras_eta.datasets import cluster_log, regular_snapshots

CLUSTERS, SIZE = "clusters", "size"
# Moments at which the behaviours so far are clustered, evenly over the log.
SNAPSHOTS = 24


def with_clusters(data: Protocol, table: np.ndarray, seed: int) -> Protocol:
    """The data set with clusters of behaviours as one more sequence, of the history's length.

    Args:
        data: the data set.
        table: a trained ranker's embeddings of items, float32 [rows of the vocabulary, D], by which behaviours are
            clustered.
        seed: of k-means.
    """
    ids = data.lookup.tables[ITEM_ID].get_vocabulary(include_special_tokens=False)
    log = data.train.log
    moments = regular_snapshots(log, int(np.ptp(log.timestamps)) // SNAPSHOTS)
    clusters = cluster_log(log, ids, table[data.lookup.encode(ITEM_ID, ids)], snapshots=moments, seed=seed)
    attributes = (*data.features.behaviour_attributes, Feature(SIZE, "float32"))
    sequence = Sequence(CLUSTERS, attributes, data.features.max_history_length)
    parts = {name: getattr(data, name).with_sequence(CLUSTERS, clusters) for name in ("train", "validation", "test")}
    features = dataclasses.replace(data.features, sequences=(sequence,))
    return dataclasses.replace(data, **parts, lookup=adapted(features, parts["train"]))
