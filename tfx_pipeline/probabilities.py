"""Metrics of TensorFlow Model Analysis that read probabilities as such: how sure they are, and how far they hold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.proto import config_pb2

from tfx_pipeline.grouped_auc import label_and_score, probability_bucket

_NUM_TENTHS = 10
_NOT_A_NUMBER = -1


class SaturatedShare(tfma.metrics.Metric):
    """Share of the probabilities that are exactly 0 or 1: no click or lack of it could make them more certain.

    Args:
        name: of the metric.
    """

    def __init__(self, name: str = "saturated_share") -> None:
        super().__init__(tfma.metrics.merge_per_key_computations(_computations(_SaturatedShareCombiner)), name=name)


class Reliability(tfma.metrics.Metric):
    """What became of impressions by their probability: of each tenth of them, from the lowest probabilities up.

    The value is an array float64 [10, 3] of the number of impressions, their mean probability and their mean label.
    Tenths are parted by `keras_eta.metrics.log_odds_bucket`, so they are even at any click rate; where many impressions
    share a bucket they stay together, and a tenth may have none: its row is 0. So are all where a probability is NaN.
    TensorFlow Model Analysis's CalibrationPlot has buckets of even width: where clicks are rare most impressions fall
    into one.

    Args:
        name: of the metric.
    """

    def __init__(self, name: str = "reliability") -> None:
        super().__init__(tfma.metrics.merge_per_key_computations(_computations(_ReliabilityCombiner)), name=name)


def _computations(combiner: Callable[..., beam.CombineFn]) -> Callable[..., list[Any]]:
    def computations(
        name: str,
        eval_config: config_pb2.EvalConfig | None = None,
        model_name: str = "",
        output_name: str = "",
    ) -> list[Any]:
        key = tfma.metrics.MetricKey(name=name, model_name=model_name, output_name=output_name)
        return [tfma.metrics.MetricComputation([key], [], combiner(key))]

    return computations


class _Combiner(beam.CombineFn):
    """Sums, under keys of its own, what labels and probabilities come to."""

    def __init__(self, key: Any) -> None:
        self._key = key

    def create_accumulator(self) -> Counter[Any]:
        return Counter()

    def add_input(self, accumulator: Counter[Any], element: Any) -> Counter[Any]:
        self.add(accumulator, *label_and_score(element, self._key))
        return accumulator

    def add(self, accumulator: Counter[Any], label: int, probability: float) -> None:
        raise NotImplementedError

    def merge_accumulators(self, accumulators: Iterable[Counter[Any]]) -> Counter[Any]:
        merged = self.create_accumulator()
        for accumulator in accumulators:
            merged.update(accumulator)
        return merged


class _SaturatedShareCombiner(_Combiner):
    """Counts rows by whether they are saturated."""

    def add(self, accumulator: Counter[bool], label: int, probability: float) -> None:
        accumulator[probability in (0.0, 1.0)] += 1

    def extract_output(self, accumulator: Counter[bool]) -> dict[Any, float]:
        return {self._key: accumulator[True] / max(accumulator.total(), 1)}


class _ReliabilityCombiner(_Combiner):
    """Sums by bucket and column: impressions, their probabilities, their labels."""

    def add(self, accumulator: Counter[Any], label: int, probability: float) -> None:
        bucket = _NOT_A_NUMBER if math.isnan(probability) else probability_bucket(probability)
        for column, value in enumerate((1, probability, label)):
            accumulator[bucket, column] += value  # type: ignore[assignment]

    def extract_output(self, accumulator: Counter[Any]) -> dict[Any, np.ndarray]:
        tenths = np.zeros([_NUM_TENTHS, 3])
        buckets = sorted({bucket for bucket, _ in accumulator})
        if not buckets or _NOT_A_NUMBER in buckets:
            return {self._key: tenths}
        sums = np.array([[accumulator[bucket, column] for column in range(3)] for bucket in buckets])
        rows = sums[:, 0]
        # A bucket belongs where its middle impression does.
        middle = np.cumsum(rows) - rows / 2
        np.add.at(tenths, (middle / rows.sum() * _NUM_TENTHS).astype("int64"), sums)
        tenths[:, 1:] /= np.maximum(tenths[:, :1], 1)
        return {self._key: tenths}
