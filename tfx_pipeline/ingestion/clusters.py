"""From a user's interactions to clusters of behaviours, by Beam."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pandas as pd
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from keras_eta.columns import ITEM_ID, TIMESTAMP, Feature
from keras_eta.datasets.clustering import SIZE, SNAPSHOT
from keras_eta.datasets.clusters import tie_keys
from keras_eta.datasets.item_vectors import item_rows, load_item_vectors
from tfx_pipeline.behaviours import ClusterSequence
from tfx_pipeline.ingestion.impressions import ClusteredLog, UserLog
from tfx_pipeline.ingestion.rows import value_dtype, value_names
from tfx_pipeline.layouts import Layout

# More would take hours, and are rather a period in seconds of a log in milliseconds.
_MOST_SNAPSHOTS = 1_000


class ClusterUserLog(beam.DoFn):
    """`UserLog` -> `ClusteredLog`, with the numbers of `keras_eta.datasets.cluster_log`.

    It takes the snapshots as a second argument, e.g. those of `Snapshots`. Of a snapshot only the clusters that the
    sequence has room for are kept, the most recent, so memory grows by its length per snapshot. Each worker reads the
    vectors.

    Args:
        layout: of the log.
        clusters: its clusters.
    """

    def __init__(self, layout: Layout, clusters: ClusterSequence) -> None:
        super().__init__()
        self._clusters = clusters
        self._max_length = layout.features.sequence(clusters.sequence).max_length
        self._item = layout.features.item_id
        self._dtypes = {name: value_dtype(layout, name) for name in value_names(layout)}
        self._several = {feature.name for feature in layout.features.all_features if feature.max_values}

    def setup(self) -> None:
        self._index, self._vectors = read_item_vectors(self._clusters.item_vectors, self._item)

    def process(self, log: UserLog, snapshots: tuple[int, ...]) -> Iterator[ClusteredLog]:
        behaviours = np.flatnonzero(log.sequences[0])
        values = {
            name: [column[row] for row in behaviours] for name, column in zip(self._dtypes, log.values, strict=True)
        }
        columns = {
            ITEM_ID if name == self._item.name else name: _column(dtype, values[name])
            for name, dtype in self._dtypes.items()
            if name not in self._several
        }
        timestamps = log.timestamps[behaviours]
        clustering = self._clusters.clustering(snapshots)
        order = np.lexsort((*tie_keys(columns), timestamps))
        numeric = {name: columns[name][order] for name in clustering.numeric}
        items = item_rows(self._index, columns[ITEM_ID])[order]
        found = clustering.of_user(timestamps[order], items, self._vectors, numeric)
        ends = np.searchsorted(found.snapshots, found.snapshots, side="right")
        kept = ends - np.arange(len(ends)) <= self._max_length
        nearest = order[found.representatives[kept]].tolist()
        clusters = {name: [column[row] for row in nearest] for name, column in values.items()}
        clusters |= {name: mean[kept].tolist() for name, mean in found.means.items()}
        clusters[TIMESTAMP] = found.timestamps[kept].tolist()
        clusters[SNAPSHOT] = found.snapshots[kept].tolist()
        clusters[SIZE] = found.sizes[kept].tolist()
        yield ClusteredLog(log, clusters)


def _column(dtype: type, values: Sequence[Any]) -> Any:
    """Values as `keras_eta.datasets` holds them."""
    if dtype is bytes:
        return pd.Categorical([value.decode() for value in values])
    return np.array(values, "int64" if dtype is int else "float32")


class Snapshots(beam.PTransform):
    """`UserLog`s -> one tuple of moments, the `keras_eta.datasets.regular_snapshots` of the history's behaviours.

    Raises:
        ValueError: when it runs, if the period is longer than the log or there are too many.
    """

    def __init__(self, clusters: ClusterSequence) -> None:
        super().__init__()
        self._period = clusters.snapshot_period

    def expand(self, logs: Any) -> Any:
        return (
            logs
            | "Spans" >> beam.FlatMap(_span)
            | "Span" >> beam.CombineGlobally(_union)
            | "Snapshots" >> beam.Map(_snapshots, self._period)
        )


def _span(log: UserLog) -> list[tuple[int, int]]:
    """The moments of a user's first and last behaviour, if there is one."""
    moments = log.timestamps[log.sequences[0]]
    return [(int(moments[0]), int(moments[-1]))] if len(moments) else []


def _union(spans: Iterable[tuple[int, int] | None]) -> tuple[int, int] | None:
    found = [span for span in spans if span is not None]
    return (min(first for first, _ in found), max(last for _, last in found)) if found else None


def _snapshots(span: tuple[int, int] | None, period: int) -> tuple[int, ...]:
    if span is None:
        # Without behaviours there are no clusters at any moment.
        return (0,)
    length = span[1] - span[0]
    if not period <= length <= period * _MOST_SNAPSHOTS:
        raise ValueError(
            f"`snapshot_period` must divide the time between the history's first and last behaviour, {length}, into 1 "
            f"to {_MOST_SNAPSHOTS:,} parts. Received: snapshot_period={period}"
        )
    return tuple(range(span[0] + period, span[1] + 1, period))


def read_item_vectors(path: str, item: Feature) -> tuple[pd.Index, np.ndarray]:
    """The item ids and vectors float32 [items, D] of a file of `keras_eta.datasets.save_item_vectors`.

    Args:
        path: of the file, local or remote.
        item: the feature of the ids.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is another file, or its ids are of another type.
    """
    if not FileSystems.exists(path):
        raise FileNotFoundError(f"`item_vectors` of the clusters must name a file. There is no file {path!r}")
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        content = io.BytesIO(file.read())
    try:
        index, vectors = load_item_vectors(content)
    except (ValueError, TypeError, AttributeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no file of `keras_eta.datasets.save_item_vectors`: {error}") from error
    strings = index.dtype == object
    if strings != (item.dtype == "string"):
        raise ValueError(
            f"The ids of {path} must be of the type of {item.name!r}, {item.dtype!r}. "
            f"Received: {'string' if strings else 'int64'}"
        )
    return index, vectors
