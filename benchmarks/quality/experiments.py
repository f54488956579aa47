"""The benchmark's experiments: each goes on where it stopped, prints a table and draws a plot."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks.quality import ablation
from benchmarks.quality.protocols import Protocol
from benchmarks.quality.results import Result, print_table, read_results, write_results

Load = Callable[[int | None], Protocol]


class Job(NamedTuple):
    """A part of an experiment.

    Attributes:
        name: what is said when it begins.
        done: whether a row is of this part.
        run: gives its rows.
    """

    name: str
    done: Callable[[Any], bool]
    run: Callable[[], list[Any]]


def run_ablation(flags: argparse.Namespace, load: Load) -> None:
    """ETA with one part changed at a time."""

    def job(variant: ablation.Variant, seed: int) -> Job:
        return Job(
            f"{variant.name}, seed {seed}",
            lambda row: (row.unit, row.seed) == (variant.name, seed),
            lambda: [ablation.run_variant(load, variant, seed, flags.epochs)],
        )

    results = _collected(flags, Result, [job(v, seed) for seed in flags.seeds for v in ablation.variants(flags.axes)])
    print_table(results)
    _drawn(flags, ablation.draw, results)


def run_recall(flags: argparse.Namespace, load: Load) -> None:
    """The share of the exact scorer's choice that each first stage finds."""
    from benchmarks.quality import recall

    data = load(None)

    def job(seed: int) -> Job:
        return Job(
            f"seed {seed}",
            lambda row: row.seed == seed,
            lambda: recall.measure(data, recall.BITS, seed, flags.epochs),
        )

    recalls = _collected(flags, recall.Recall, [job(seed) for seed in flags.seeds])
    recall.print_table(recalls)
    _drawn(flags, recall.draw, recalls)


def run_staleness(flags: argparse.Namespace, load: Load) -> None:
    """What it costs to search by tables of some periods ago."""
    from benchmarks.quality import staleness

    data = load(None)

    def job(unit: str, seed: int) -> Job:
        return Job(
            f"{unit}, seed {seed}",
            lambda row: (row.unit, row.seed) == (unit, seed),
            lambda: staleness.measure(data, unit, seed),
        )

    points = _collected(flags, staleness.Point, [job(unit, seed) for seed in flags.seeds for unit in staleness.UNITS])
    staleness.print_table(points)
    _drawn(flags, staleness.draw, points)


def run_needle(flags: argparse.Namespace, load: Load) -> None:
    """Which unit finds the one stretch of a long history that tells."""
    from benchmarks.quality import needle

    def job(unit: str, depth: int, seed: int) -> Job:
        return Job(
            f"{unit}, {depth:,} back, seed {seed}",
            lambda row: (row.unit, row.depth, row.seed) == (unit, depth, seed),
            lambda: [needle.find(needle.make_data(depth, seed), unit, depth, seed, flags.epochs)],
        )

    jobs = [job(unit, depth, seed) for seed in flags.seeds for depth in needle.DEPTHS for unit in flags.units]
    finds = _collected(flags, needle.Find, jobs)
    needle.print_table(finds)
    _drawn(flags, needle.draw, finds)


EXPERIMENTS: dict[str, Callable[[argparse.Namespace, Load], None]] = {
    "ablation": run_ablation,
    "recall": run_recall,
    "staleness": run_staleness,
    "needle": run_needle,
}


def _collected(flags: argparse.Namespace, kind: type, jobs: Iterable[Job]) -> list[Any]:
    """The rows of all jobs: those that the JSON file holds, and the others' once they have run."""
    rows: list[Any] = read_results(flags.json, kind) if flags.json else []
    console, shown = Console(), []
    for job in jobs:
        found = [row for row in rows if job.done(row)]
        if not found:
            console.print(job.name)
            found = job.run()
            rows += found
            if flags.json:
                write_results(flags.json, rows)
        shown += found
    return shown


def _drawn(flags: argparse.Namespace, draw: Callable[[Sequence[Any], Path], None], rows: Sequence[Any]) -> None:
    if flags.plot:
        draw(rows, flags.plot)
        Console().print(f"Figure: {flags.plot}")
