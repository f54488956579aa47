"""Metrics of TensorFlow Model Analysis that it lacks: AUC within users, and of some impressions."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.proto import config_pb2

from keras_eta.metrics import auc, grouped_auc
from tfx_pipeline.probabilities import label_and_score

# Impressions that a slice keeps, 17 bytes each.
MAX_ROWS = 4_000_000


class GroupedAUC(tfma.metrics.Metric):
    """AUC within each group (user), averaged with the groups' impressions as weights: `keras_eta.metrics.grouped_auc`.

    Groups with one class only are left out; NaN where no group is left. A slice's value comes from its own impressions
    only, so a group may have two classes overall and one in a slice.

    Exact up to `max_rows` impressions a slice. Beyond, it is that of a sample of whole groups, drawn by a hash of their
    key, so memory stays bounded and every model is measured on the same groups.

    Args:
        group_key: the column with the group of an impression.
        max_rows: impressions that a slice keeps.
        name: of the metric.
    """

    def __init__(self, group_key: str = "user_id", max_rows: int = MAX_ROWS, name: str = "grouped_auc") -> None:
        super().__init__(
            tfma.metrics.merge_per_key_computations(_grouped_auc),
            group_key=group_key,
            max_rows=max_rows,
            name=name,
        )


class SubsetAUC(tfma.metrics.Metric):
    """AUC of those impressions of a slice in which a column has a certain value; 0.5 where they lack a class.

    A threshold on a slice fails where the data has no such slice. One on this metric does not: there, all models have
    the value of an uninformed one.

    Args:
        column: the column.
        value: the impressions that count, as text.
        group_key: as in `GroupedAUC`.
        max_rows: as in `GroupedAUC`.
        name: of the metric.
    """

    def __init__(
        self,
        column: str,
        value: str,
        group_key: str = "user_id",
        max_rows: int = MAX_ROWS,
        name: str = "subset_auc",
    ) -> None:
        super().__init__(
            tfma.metrics.merge_per_key_computations(_subset_auc),
            column=column,
            value=value,
            group_key=group_key,
            max_rows=max_rows,
            name=name,
        )


def _grouped_auc(
    name: str,
    group_key: str,
    max_rows: int,
    eval_config: config_pb2.EvalConfig | None = None,
    model_name: str = "",
    output_name: str = "",
) -> list[Any]:
    key = tfma.metrics.MetricKey(name=name, model_name=model_name, output_name=output_name)
    combiner = _GroupedAUCCombiner(key, group_key, max_rows)
    return [tfma.metrics.MetricComputation([key], [tfma.metrics.FeaturePreprocessor([group_key])], combiner)]


def _subset_auc(
    name: str,
    column: str,
    value: str,
    group_key: str,
    max_rows: int,
    eval_config: config_pb2.EvalConfig | None = None,
    model_name: str = "",
    output_name: str = "",
) -> list[Any]:
    key = tfma.metrics.MetricKey(name=name, model_name=model_name, output_name=output_name)
    combiner = _SubsetAUCCombiner(key, group_key, max_rows, column, value)
    return [tfma.metrics.MetricComputation([key], [tfma.metrics.FeaturePreprocessor([group_key, column])], combiner)]


class Rows:
    """Groups, labels and scores of the impressions of a slice, of as many groups as `max_rows` have room for.

    The groups with the smallest hashes are kept, so those that are kept are kept whole, in whatever order rows come.

    Args:
        max_rows: rows to keep. While rows are added there may be twice as many; one group is kept whatever its size.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._thin_at = 2 * max_rows
        # Hashes from here on are dropped.
        self._bound = 2**64
        self._groups = array("Q")
        self._labels = array("b")
        self._scores = array("d")

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, group: int, label: int, score: float) -> None:
        """Adds an impression; `group` is a hash of 64 bits."""
        if group >= self._bound:
            return
        self._groups.append(group)
        self._labels.append(label)
        self._scores.append(score)
        if len(self) > self._thin_at:
            self.thin()

    def merge(self, other: Rows) -> None:
        """Adds all impressions of another."""
        self._bound = min(self._bound, other._bound)
        self._groups += other._groups
        self._labels += other._labels
        self._scores += other._scores
        self._cut()
        if len(self) > self._thin_at:
            self.thin()

    def thin(self) -> None:
        """Drops groups until at most `max_rows` impressions are left, or one group."""
        groups, counts = np.unique(self.columns()[2], return_counts=True)
        kept = max(1, int(np.searchsorted(np.cumsum(counts), self._max_rows, side="right")))
        if kept < len(groups):
            self._bound = int(groups[kept])
            self._cut()
        self._thin_at = 2 * max(self._max_rows, len(self))

    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, scores and groups."""
        return np.array(self._labels, "int8"), np.array(self._scores, "float64"), np.array(self._groups, "uint64")

    def _cut(self) -> None:
        if self._bound == 2**64:
            return
        labels, scores, groups = self.columns()
        kept = groups < np.uint64(self._bound)
        self._groups = array("Q", groups[kept].tobytes())
        self._labels = array("b", labels[kept].tobytes())
        self._scores = array("d", scores[kept].tobytes())


class _GroupedAUCCombiner(beam.CombineFn):
    def __init__(self, key: Any, group_key: str, max_rows: int) -> None:
        self._key = key
        self._group_key = group_key
        self._max_rows = max_rows

    def create_accumulator(self) -> Rows:
        return Rows(self._max_rows)

    def add_input(self, accumulator: Rows, element: Any) -> Rows:
        accumulator.add(group_hash(_value(element, self._group_key)), *label_and_score(element, self._key))
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Rows]) -> Rows:
        merged = self.create_accumulator()
        for accumulator in accumulators:
            merged.merge(accumulator)
        return merged

    def extract_output(self, accumulator: Rows) -> dict[Any, float]:
        accumulator.thin()
        labels, scores, groups = accumulator.columns()
        return {self._key: math.nan if np.isnan(scores).any() else grouped_auc(labels, scores, groups)}


class _SubsetAUCCombiner(_GroupedAUCCombiner):
    def __init__(
        self,
        key: Any,
        group_key: str,
        max_rows: int,
        column: str,
        value: str,
    ) -> None:
        super().__init__(key, group_key, max_rows)
        self._column = column
        self._value = value.encode()

    def add_input(self, accumulator: Rows, element: Any) -> Rows:
        if _text(_value(element, self._column)) != self._value:
            return accumulator
        return super().add_input(accumulator, element)

    def extract_output(self, accumulator: Rows) -> dict[Any, float]:
        accumulator.thin()
        labels, scores, _ = accumulator.columns()
        if np.isnan(scores).any():
            return {self._key: math.nan}
        value = auc(labels, scores)
        return {self._key: 0.5 if math.isnan(value) else value}


def group_hash(value: int | bytes) -> int:
    """64 bits that stand for a group in `Rows`, the same in every process."""
    return int.from_bytes(hashlib.blake2b(_text(value), digest_size=8).digest(), "little")


def _value(element: Any, column: str) -> Any:
    """The value of a column of an impression."""
    features = element[tfma.FEATURES_KEY]
    if column not in features:
        raise ValueError(f"The impressions have no column {column!r}. Columns: {sorted(features)}")
    return np.ravel(features[column])[0]


def _text(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
