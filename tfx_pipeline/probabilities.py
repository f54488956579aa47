"""Metrics of TensorFlow Model Analysis that read labels and probabilities alone, all from one pass over them.

Its own ones of the same kind allow for weights, classes and several outputs, at four tenths of an evaluation's time.
Where it has a metric of a name, it takes that, whatever the module: none here is called as one of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.proto import config_pb2

from keras_eta.export import PROBABILITY
from keras_eta.metrics import log_odds_bucket

_NUM_TENTHS = 10
# The bucket of probabilities that are not a number.
_NOT_A_NUMBER = -1


class Sums:
    """Sums over impressions.

    Attributes:
        buckets: by `probability_bucket`, the number of impressions, the sum of their probabilities and of their labels.
        loss: the sum of the negative log likelihoods of the labels.
        saturated: the number of probabilities that are exactly 0 or 1.
    """

    def __init__(self) -> None:
        self.buckets: dict[int, list[float]] = {}
        self.loss = 0.0
        self.saturated = 0

    def add(self, label: int, probability: float) -> None:
        """Adds an impression."""
        sums = self.buckets.setdefault(probability_bucket(probability), [0.0, 0.0, 0.0])
        sums[0] += 1
        sums[1] += probability
        sums[2] += label
        likelihood = probability if label else 1.0 - probability
        self.loss += -math.log(likelihood) if likelihood else math.inf
        self.saturated += probability in (0.0, 1.0)

    def merge(self, other: Sums) -> None:
        """Adds all impressions of another."""
        for bucket, sums in other.buckets.items():
            own = self.buckets.setdefault(bucket, [0.0, 0.0, 0.0])
            self.buckets[bucket] = [x + y for x, y in zip(own, sums, strict=True)]
        self.loss += other.loss
        self.saturated += other.saturated

    def table(self) -> np.ndarray:
        """The sums by bucket in ascending order, float64 [buckets, 3]."""
        return np.array([self.buckets[bucket] for bucket in sorted(self.buckets)]).reshape(-1, 3)

    @property
    def all_numbers(self) -> bool:
        """Whether no probability is NaN."""
        return _NOT_A_NUMBER not in self.buckets


class OfSums(tfma.metrics.Metric):
    """A metric that is made of `Sums`, which TensorFlow Model Analysis makes once for all of them.

    Args:
        name: of the metric; `None`: that of its class.
    """

    def __init__(self, name: str | None = None) -> None:
        computations = tfma.metrics.merge_per_key_computations(_computations(self.value))
        super().__init__(computations, name=name or type(self).__name__)

    @staticmethod
    def value(sums: Sums) -> Any:
        """The metric of the impressions that were summed."""
        raise NotImplementedError


class LogOddsAUC(OfSums):
    """AUC of probabilities, counted in the buckets of `keras_eta.metrics.LogOddsAUC`; NaN where a class is missing.

    So it is where a probability is NaN. TensorFlow Model Analysis's own spreads its buckets evenly over the
    probabilities, and where clicks are rare most rows fall into one.
    """

    @staticmethod
    def value(sums: Sums) -> float:
        rows, _, positives = sums.table().T
        negatives = rows - positives
        pairs = negatives.sum() * positives.sum()
        if not pairs or not sums.all_numbers:
            return math.nan
        return float(positives @ (np.cumsum(negatives) - negatives / 2) / pairs)


class ImpressionCount(OfSums):
    """The number of impressions."""

    @staticmethod
    def value(sums: Sums) -> float:
        return float(sums.table()[:, 0].sum())


class LogLoss(OfSums):
    """Mean negative log likelihood of the labels; NaN where a probability is."""

    @staticmethod
    def value(sums: Sums) -> float:
        return sums.loss / max(sums.table()[:, 0].sum(), 1)


class CalibrationRatio(OfSums):
    """Mean probability over the mean label; NaN where no label is positive or a probability is NaN."""

    @staticmethod
    def value(sums: Sums) -> float:
        _, probabilities, labels = sums.table().sum(0)
        return float(probabilities / labels) if labels else math.nan


class LabelRate(OfSums):
    """Share of the labels that are positive."""

    @staticmethod
    def value(sums: Sums) -> float:
        rows, _, labels = sums.table().sum(0)
        return float(labels / max(rows, 1))


class SaturatedShare(OfSums):
    """Share of the probabilities that are exactly 0 or 1: no click or lack of it could make them more certain."""

    @staticmethod
    def value(sums: Sums) -> float:
        return sums.saturated / max(sums.table()[:, 0].sum(), 1)


class Reliability(OfSums):
    """What became of impressions by their probability: of each tenth of them, from the lowest probabilities up.

    The value is an array float64 [10, 3] of the number of impressions, their mean probability and their mean label.
    Tenths are parted by `keras_eta.metrics.log_odds_bucket`, so they are even at any click rate; where many impressions
    share a bucket they stay together, and a tenth may have none: its row is 0. So are all where a probability is NaN.
    TensorFlow Model Analysis's CalibrationPlot has buckets of even width: where clicks are rare most impressions fall
    into one.
    """

    @staticmethod
    def value(sums: Sums) -> np.ndarray:
        tenths, table = np.zeros([_NUM_TENTHS, 3]), sums.table()
        if not len(table) or not sums.all_numbers:
            return tenths
        rows = table[:, 0]
        # A bucket belongs where its middle impression does.
        middle = np.cumsum(rows) - rows / 2
        np.add.at(tenths, (middle / rows.sum() * _NUM_TENTHS).astype("int64"), table)
        tenths[:, 1:] /= np.maximum(tenths[:, :1], 1)
        return tenths


def label_and_score(element: Any, key: Any) -> tuple[int, float]:
    """The label of an impression, and its probability by the model of a metric's key.

    Args:
        element: `tfma.metrics.StandardMetricInputs` of one impression.
        key: names the model, where there are several.
    """
    label, score = (
        value[key.model_name] if key.model_name and isinstance(value, Mapping) else value
        for value in (element.label, element.prediction)
    )
    if isinstance(score, Mapping):
        score = score[PROBABILITY]
    return int(np.ravel(label)[0]), float(np.ravel(score)[0])


def probability_bucket(probability: float) -> int:
    """The bucket of `keras_eta.metrics.log_odds_bucket` in which a probability is counted; -1 for NaN."""
    if math.isnan(probability):
        return _NOT_A_NUMBER
    odds = probability / max(1.0 - probability, 1e-300)
    return int(log_odds_bucket(math.log(max(odds, 1e-300))))


def _computations(value: Callable[[Sums], Any]) -> Callable[..., list[Any]]:
    def computations(
        name: str,
        eval_config: config_pb2.EvalConfig | None = None,
        model_name: str = "",
        output_name: str = "",
    ) -> list[Any]:
        # What begins with an underscore stays out of the results.
        sums, key = (
            tfma.metrics.MetricKey(name=some, model_name=model_name, output_name=output_name)
            for some in ("_sums", name)
        )
        return [
            tfma.metrics.MetricComputation([sums], [], _SumsCombiner(sums)),
            tfma.metrics.DerivedMetricComputation([key], lambda results: {key: value(results[sums])}),
        ]

    return computations


class _SumsCombiner(beam.CombineFn):
    def __init__(self, key: Any) -> None:
        self._key = key

    def create_accumulator(self) -> Sums:
        return Sums()

    def add_input(self, accumulator: Sums, element: Any) -> Sums:
        accumulator.add(*label_and_score(element, self._key))
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Sums]) -> Sums:
        merged = self.create_accumulator()
        for accumulator in accumulators:
            merged.merge(accumulator)
        return merged

    def extract_output(self, accumulator: Sums) -> dict[Any, Sums]:
        return {self._key: accumulator}
