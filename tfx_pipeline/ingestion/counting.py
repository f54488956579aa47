"""Counts that leave a Beam pipeline with its data, and malformed rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

METRICS_NAMESPACE = "keras_eta/ingestion"

# Tagged outputs of the transforms: malformed rows, and (name, number) to be summed up.
MALFORMED = "malformed"
COUNTS = "counts"

# Of a file, whose path is joined to it by a tab. Malformed rows are counted under `MALFORMED`, reason and path.
ROWS_READ = "rows_read"


class Malformed(NamedTuple):
    """A malformed row.

    Args:
        reason: why, worded to follow a number: `"negative user_id"`.
        file: where it stands.
        row: its text.
    """

    reason: str
    file: str
    row: str


class CountingDoFn(beam.DoFn):
    """A DoFn that counts: the sums of a bundle leave it as (name, number) under the tag `COUNTS`."""

    def start_bundle(self) -> None:
        self.counts: dict[str, int] = {}

    def count(self, name: str, number: int = 1) -> None:
        """Adds to a sum."""
        self.counts[name] = self.counts.get(name, 0) + number

    def malformed(self, reason: str, file: str, row: str) -> beam.pvalue.TaggedOutput:
        """A malformed row, counted by its reason by Beam as well."""
        beam.metrics.Metrics.counter(METRICS_NAMESPACE, f"{MALFORMED}: {reason}").inc()
        self.count("\t".join((MALFORMED, reason, file)))
        return beam.pvalue.TaggedOutput(MALFORMED, Malformed(reason, file, row))

    def finish_bundle(self) -> Iterator[beam.pvalue.TaggedOutput]:
        window = GlobalWindow()
        for item in self.counts.items():
            yield beam.pvalue.TaggedOutput(COUNTS, WindowedValue(item, window.max_timestamp(), (window,)))
