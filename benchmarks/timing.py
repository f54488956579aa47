"""Contestants measured in turn, so that what slows the machine slows them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from rich.progress import track
from rich.table import Table


def measure(contestants: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 3) -> dict[str, list[float]]:
    """Times of each contestant in milliseconds, A B A B ..., after `warm_up` calls of each that trace and compile."""
    for call in track(contestants.values(), description="warming up", transient=True):
        for _ in range(warm_up):
            call()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in track(range(rounds), description="measuring", transient=True):
        for name, call in contestants.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def summary(times: Mapping[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Median and spread (10 % and 90 %) of each contestant, and its median over that of `base`."""
    medians = {name: float(np.median(values)) for name, values in times.items()}
    spreads = {name: np.percentile(values, [10, 90]) for name, values in times.items()}
    return {
        name: {
            "median_ms": medians[name],
            "p10_ms": float(spreads[name][0]),
            "p90_ms": float(spreads[name][1]),
            "over_base": medians[name] / medians[base],
        }
        for name in times
    }


def table(title: str, report: Mapping[str, Mapping[str, float]], base: str) -> Table:
    """A `summary` to print."""
    made = Table(title=title)
    for column in ("contestant", "median ms", "10 % to 90 %", f"over {base}"):
        made.add_column(column, justify="left" if column == "contestant" else "right")
    for name, row in report.items():
        spread = f"{row['p10_ms']:.2f} to {row['p90_ms']:.2f}"
        made.add_row(name, f"{row['median_ms']:.2f}", spread, f"{row['over_base']:.2f}")
    return made
