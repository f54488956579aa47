"""Exact quantiles against a sort."""

from __future__ import annotations

import math

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing.util import assert_that, equal_to

from tfx_pipeline.ingestion.quantiles import ExactQuantiles

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "values",
    [
        [7],
        # 0.7 + 0.2 is a little above 0.9 in floating point.
        list(range(10)),
        [-5, -5, -5, 3, 3, 2**62, -(2**63), 2**63 - 1, 0, 0],
        RNG.integers(-(2**63), 2**63 - 1, 1_000).tolist(),
        RNG.integers(1_500_000_000, 1_500_100_000, 999).tolist(),
    ],
)
def test_exact_quantiles_are_those_of_the_sorted_values(values):
    fractions = (0.7, 0.7 + 0.2, 1.0)
    ranks = (math.ceil(len(values) * tenths / 10) for tenths in (7, 9, 10))
    expected = tuple(sorted(values)[rank - 1] for rank in ranks)
    arrays = [np.array(part, "int64") for part in (values[: len(values) // 3], values[len(values) // 3 :])]
    with beam.Pipeline() as pipeline:
        assert_that(pipeline | beam.Create(arrays) | ExactQuantiles(fractions), equal_to([expected]))


def test_exact_quantiles_of_nothing_are_none():
    with beam.Pipeline() as pipeline:
        assert_that(pipeline | beam.Create([np.zeros(0, "int64")]) | ExactQuantiles((0.5,)), equal_to([None]))
