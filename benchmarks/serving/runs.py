"""Results of a run: calls, percentiles, tables and plots."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
_OK = grpc.StatusCode.OK


class Call(NamedTuple):
    """One request: when it was due, sent and answered, in seconds since the start, and its status code."""

    due: float
    sent: float
    answered: float
    code: grpc.StatusCode


@dataclasses.dataclass(frozen=True)
class Run:
    """Results of one run.

    Args:
        name: what to call it.
        calls: the calls that count, those of the warm-up left out.
        seconds: from the end of the warm-up to the last answer.
        client_cpu: CPU seconds that this process spent, over the run's seconds; near 1 the client is the bottleneck.
    """

    name: str
    calls: Sequence[Call]
    seconds: float
    client_cpu: float

    @classmethod
    def of(cls, name: str, calls: Sequence[Call], warmup: float = 0.0, client_cpu: float = 0.0) -> Run:
        """Keeps the calls that were due after the warm-up."""
        counted = [call for call in calls if call.due >= warmup]
        end = max((call.answered for call in counted), default=warmup)
        return cls(name, counted, end - warmup, client_cpu)

    @property
    def latencies(self) -> np.ndarray:
        """Milliseconds from due to answered, sorted, of the calls answered OK."""
        return np.sort([1e3 * (call.answered - call.due) for call in self.calls if call.code is _OK])

    def report(self) -> dict[str, Any]:
        """Everything as JSON takes it; `curve` has points (percentile, ms) for a plot."""
        latencies = self.latencies
        codes = collections.Counter(call.code.name for call in self.calls if call.code is not _OK)
        late = [1e3 * (call.sent - call.due) for call in self.calls]
        return {
            "name": self.name,
            "requests": len(self.calls),
            "ok": len(latencies),
            "errors": dict(sorted(codes.items())),
            "seconds": self.seconds,
            "ok_per_second": len(latencies) / self.seconds if self.seconds else 0.0,
            "latency_ms": {
                **{f"p{q:g}": percentile(latencies, q) for q in PERCENTILES},
                "max": percentile(latencies, 100),
            },
            "sent_late_p99_ms": percentile(np.sort(late), 99),
            "client_cpu": self.client_cpu,
            "curve": curve(latencies),
        }


def percentile(values: np.ndarray, q: float) -> float | None:
    """The least of the sorted values that at least `q` % of them do not exceed; None if there are none."""
    if not len(values):
        return None
    # Rounded, as 99.9 % of 1,000 is a little over 999 in floating point.
    return float(values[max(math.ceil(round(q / 100 * len(values), 6)), 1) - 1])


def curve(values: np.ndarray) -> list[tuple[float, float]]:
    """Points (percentile, value) of the sorted values, ten for each further nine, up to the last that has samples."""
    points: list[tuple[float, float]] = []
    for tenths in range(int(10 * np.log10(max(len(values), 1))) + 1 if len(values) else 0):
        q = 100 * (1 - 10 ** (-tenths / 10))
        value = percentile(values, q)
        if value is not None:
            points.append((q, value))
    return points


def load_table(title: str, runs: Sequence[Mapping[str, Any]]) -> Table:
    """A table with one row per run."""
    table = Table(title=title, caption="ms; latencies are those of the calls answered OK", caption_justify="left")
    table.add_column("load", overflow="fold")
    for column in ("OK", "OK/s", *(f"p{q:g}" for q in PERCENTILES), "max"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("errors", overflow="fold")
    for run in runs:
        latencies = ["-" if value is None else f"{value:.1f}" for value in run["latency_ms"].values()]
        errors = "\n".join(f"{count:,} {code}" for code, count in run["errors"].items()) or "none"
        table.add_row(run["name"], f"{run['ok']:,}", f"{run['ok_per_second']:.1f}", *latencies, errors)
    return table


def draw(runs: Sequence[Mapping[str, Any]], path: Path, title: str = "") -> None:
    """Latency against percentile, on an axis on which each further nine takes as much room, a line for each run."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="percentile", ylabel="latency, ms")
    longest = 1
    for run in runs:
        if run["curve"]:
            q, values = np.transpose(run["curve"])
            axes.plot(1 / (1 - q / 100), values, label=run["name"])
            longest = max(longest, run["ok"])
    nines = range(1, int(np.ceil(np.log10(longest))) + 1)
    axes.set_xscale("log")
    labels = {1: "0", 2: "50"} | {10**n: f"{100 - 100 / 10**n:.{max(n - 2, 0)}f}" for n in nines}
    axes.set_xticks(list(labels), list(labels.values()))
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.4)
    if axes.lines:
        axes.legend()
    figure.savefig(path)
