"""A metric of TensorFlow Model Analysis: how many probabilities say that they can't be wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.proto import config_pb2


class SaturatedShare(tfma.metrics.Metric):
    """Share of the probabilities that are exactly 0 or 1: no click or lack of it could make them more certain.

    Args:
        name: of the metric.
    """

    def __init__(self, name: str = "saturated_share") -> None:
        super().__init__(tfma.metrics.merge_per_key_computations(_saturated_share), name=name)


def _saturated_share(
    name: str,
    eval_config: config_pb2.EvalConfig | None = None,
    model_name: str = "",
    output_name: str = "",
) -> list[Any]:
    key = tfma.metrics.MetricKey(name=name, model_name=model_name, output_name=output_name)
    return [tfma.metrics.MetricComputation([key], [], _SaturatedShareCombiner(key, eval_config))]


class _SaturatedShareCombiner(beam.CombineFn):
    """Counts saturated probabilities, and all."""

    def __init__(self, key: Any, eval_config: config_pb2.EvalConfig | None) -> None:
        self._key = key
        self._eval_config = eval_config

    def create_accumulator(self) -> tuple[int, int]:
        return 0, 0

    def add_input(self, accumulator: tuple[int, int], element: Any) -> tuple[int, int]:
        saturated, rows = accumulator
        for _, score, _ in tfma.metrics.to_label_prediction_example_weight(
            element,
            eval_config=self._eval_config,
            model_name=self._key.model_name,
            output_name=self._key.output_name,
        ):
            saturated += score.item() in (0.0, 1.0)
            rows += 1
        return saturated, rows

    def merge_accumulators(self, accumulators: Iterable[tuple[int, int]]) -> tuple[int, int]:
        saturated, rows = zip(*accumulators, strict=True)
        return sum(saturated), sum(rows)

    def extract_output(self, accumulator: tuple[int, int]) -> dict[Any, float]:
        saturated, rows = accumulator
        return {self._key: saturated / rows if rows else 0.0}
