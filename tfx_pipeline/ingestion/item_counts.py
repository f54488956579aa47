"""How often each item is in the training split, and positive, which baselines are made of, by Beam."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import apache_beam as beam
import pyarrow as pa

from tfx_pipeline.config import TRAIN
from tfx_pipeline.ingestion.impressions import Cuts, UserLog
from tfx_pipeline.ingestion.rows import Scalar, value_dtype, value_names
from tfx_pipeline.layouts import Layout

# Of the files, which lie beside the splits of the examples.
ITEM_COUNTS = "item_counts"
PARQUET_SUFFIX = ".parquet"
ITEM, ITEM_POSITIVES, ITEM_IMPRESSIONS = "item", "positives", "impressions"

_ARROW = {int: pa.int64(), bytes: pa.binary()}


class CountItems(beam.PTransform):
    """The impressions of each item in the training split, sampled negatives left aside: these say nothing of it.

    PCollections of `UserLog`s and of one `Cuts` -> PCollection of dicts with the columns of `item_counts_schema`, one
    per item.

    Args:
        layout: of the log.
        min_history: as in `MakeExamples`.
    """

    def __init__(self, layout: Layout, min_history: int) -> None:
        super().__init__()
        self._item = value_names(layout).index(layout.features.item_id.name)
        self._min_history = min_history

    def expand(self, logs_and_cuts: tuple[Any, Any]) -> Any:
        logs, cuts = logs_and_cuts
        return (
            logs
            | "OfUser" >> beam.FlatMap(_counts, self._item, self._min_history, beam.pvalue.AsSingleton(cuts))
            | "Sum" >> beam.CombinePerKey(beam.combiners.TupleCombineFn(sum, sum))
            | "ToDict" >> beam.MapTuple(_row)
        )


def item_counts_schema(layout: Layout) -> pa.Schema:
    """Columns of the file: the item's id, and its positive and all impressions."""
    item = _ARROW[value_dtype(layout, layout.features.item_id.name)]
    return pa.schema({ITEM: item, ITEM_POSITIVES: pa.int64(), ITEM_IMPRESSIONS: pa.int64()})


def _counts(log: UserLog, item: int, min_history: int, cuts: Cuts) -> Iterator[tuple[Scalar, tuple[int, int]]]:
    """The item of each of a user's training impressions, with its label and a one."""
    for row in cuts.split(log.timestamps, log.impressions(min_history))[TRAIN].tolist():
        yield log.values[item][row], (int(log.labels[row]), 1)


def _row(item: Scalar, counts: tuple[int, int]) -> Mapping[str, Any]:
    positives, impressions = counts
    return {ITEM: item, ITEM_POSITIVES: positives, ITEM_IMPRESSIONS: impressions}
