"""From a user's interactions to clusters of behaviours, by Beam."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pandas as pd
from apache_beam.io.filesystems import FileSystems

from keras_eta.datasets.clustering import SIZE, SNAPSHOT, Clustering
from keras_eta.datasets.clusters import tie_keys
from keras_eta.datasets.columns import ITEM_ID
from keras_eta.datasets.item_vectors import item_rows, load_item_vectors
from keras_eta.features import TIMESTAMP
from tfx_pipeline.ingestion.impressions import UserLog
from tfx_pipeline.ingestion.rows import value_dtype, value_names
from tfx_pipeline.layouts import Layout


class ClusteredLog(NamedTuple):
    """All interactions of a user, and the clusters of those that are behaviours of the history, c of them.

    Args:
        log: the interactions.
        columns: `timestamp`, `snapshot`, `size` and the columns of `value_names`, lists of c values by name; of a
            feature of several, tuples. They ascend by snapshot, then time.
    """

    log: UserLog
    columns: dict[str, list[Any]]

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the clusters lie that are known at each interaction: int64 [n] twice, equal where there are none."""
        snapshots = np.array(self.columns[SNAPSHOT], "int64")
        latest = np.searchsorted(snapshots, self.log.timestamps, side="right")
        first = np.searchsorted(snapshots, snapshots)
        return np.append(0, first)[latest], latest


class ClusterUserLog(beam.DoFn):
    """`UserLog` -> `ClusteredLog`, with the numbers of `keras_eta.datasets.cluster_log`.

    Args:
        layout: of the log.
        clustering: how behaviours become clusters. Its columns are among `value_names`.
        item_vectors: path of a file of `keras_eta.datasets.save_item_vectors`, which each worker reads.

    Raises:
        ValueError: if `group_by` or `means` of the clustering names a column that holds no numbers.
    """

    def __init__(self, layout: Layout, clustering: Clustering, item_vectors: str) -> None:
        super().__init__()
        self._clustering = clustering
        self._path = item_vectors
        self._item = layout.features.item_id.name
        self._dtypes = {name: value_dtype(layout, name) for name in value_names(layout)}
        self._several = {feature.name for feature in layout.features.all_features if feature.max_values}
        # An item id may be an integer, but numbers are what has a mean.
        numbers = [
            name
            for name, dtype in self._dtypes.items()
            if dtype is not bytes and name not in {self._item, *self._several}
        ]
        wrong = [name for name in clustering.numeric if name not in numbers]
        if wrong:
            raise ValueError(f"`group_by` and `means` must name columns of numbers, among {numbers}. Received: {wrong}")

    def setup(self) -> None:
        with FileSystems.open(self._path) as file:
            self._index, self._vectors = load_item_vectors(io.BytesIO(file.read()))

    def process(self, log: UserLog) -> Iterator[ClusteredLog]:
        behaviours = np.flatnonzero(log.sequences[0])
        values = {
            name: [column[row] for row in behaviours] for name, column in zip(self._dtypes, log.values, strict=True)
        }
        columns = {
            ITEM_ID if name == self._item else name: _column(dtype, values[name])
            for name, dtype in self._dtypes.items()
            if name not in self._several
        }
        timestamps = log.timestamps[behaviours]
        order = np.lexsort((*tie_keys(columns), timestamps))
        numeric = {name: columns[name][order] for name in self._clustering.numeric}
        items = item_rows(self._index, columns[ITEM_ID])[order]
        found = self._clustering.of_user(timestamps[order], items, self._vectors, numeric)
        nearest = order[found.representatives].tolist()
        clusters = {name: [column[row] for row in nearest] for name, column in values.items()}
        clusters |= {name: mean.tolist() for name, mean in found.means.items()}
        clusters[TIMESTAMP] = found.timestamps.tolist()
        clusters[SNAPSHOT] = found.snapshots.tolist()
        clusters[SIZE] = found.sizes.tolist()
        yield ClusteredLog(log, clusters)


def _column(dtype: type, values: Sequence[Any]) -> Any:
    """Values as `keras_eta.datasets` holds them."""
    if dtype is bytes:
        return pd.Categorical([value.decode() for value in values])
    return np.array(values, "int64" if dtype is int else "float32")
