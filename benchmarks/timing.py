"""Contestants measured in turn, so that what slows the machine slows them all, and processes measured apart."""

from __future__ import annotations

import itertools
import multiprocessing
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib.figure import Figure
from rich.progress import track
from rich.table import Table

Result = TypeVar("Result")


def measure(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 3,
    before: Callable[[str], object] = lambda name: None,
) -> dict[str, list[float]]:
    """Times of each contestant in milliseconds, A B A B ..., after `warm_up` calls of each that trace and compile.

    `before` is called with a contestant's name before its calls are timed, and before it warms up.
    """
    for name, call in track(contestants.items(), description="warming up", transient=True, total=len(contestants)):
        before(name)
        for _ in range(warm_up):
            call()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in track(range(rounds), description="measuring", transient=True):
        for name, call in contestants.items():
            before(name)
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def apart(function: Callable[..., Result], *args: object) -> Result:
    """Calls a function of a module in a process of its own, which gives all memory back.

    Raises:
        BrokenProcessPool: if the process is killed. Errors of the function come through as they are.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def peak_memory() -> int:
    """Peak resident set of this process in bytes.

    Not `resource.getrusage`'s: a process that another one starts takes over that one's peak there.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (kibibytes,) = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(kibibytes)


def repeated(call: Callable[[], object], times: int) -> Callable[[], None]:
    """A function that makes several calls in a row."""

    def calls() -> None:
        for _ in range(times):
            call()

    return calls


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


def draw(panels: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]], path: Path) -> None:
    """Draws times against L, one panel a title: title -> L -> a `summary`."""
    figure = Figure(figsize=(5 * len(panels), 4.2), layout="constrained")
    names = list(dict.fromkeys(name for of in panels.values() for contestants in of.values() for name in contestants))
    # The same line for a contestant in every panel; hues repeat after ten, then with another stroke.
    styles = dict(zip(names, itertools.product(("-", "--"), [f"C{number}" for number in range(10)]), strict=False))
    for axes, (title, lengths) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in dict.fromkeys(name for contestants in lengths.values() for name in contestants):
            points = [(int(length), row[name]) for length, row in lengths.items() if name in row]
            x, (stroke, color) = [length for length, _ in points], styles[name]
            axes.plot(x, [r["median_ms"] for _, r in points], stroke, color=color, marker="o", label=name)
            bounds = [r["p10_ms"] for _, r in points], [r["p90_ms"] for _, r in points]
            axes.fill_between(x, *bounds, color=color, alpha=0.15)
        axes.set(xscale="log", yscale="log", xlabel="L, behaviours", ylabel="ms", title=title)
        axes.set_xticks([int(length) for length in lengths], [f"{int(length):,}" for length in lengths], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    figure.legend([*lines.values()], [*map(str, lines)], loc="outside right upper")
    figure.savefig(path, dpi=120)
