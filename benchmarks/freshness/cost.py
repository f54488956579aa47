"""What a round costs: against the number of its new events, at several lengths of the log before them.

At every length the new events are the same, and so are those that the first version is trained on; the log before is
history alone (`--history_until`). A loop of its own runs for each length, and its rounds come one at a time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.freshness.logs import Log, load_log
from benchmarks.freshness.loops import LoopProcess
from tfx_pipeline.continuous.ledger import PUSHED

# From the start of a round to that of the next: how often the loop looks for files.
_EVERY_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Cost:
    """A round.

    Args:
        log: events before the first version.
        events: new ones.
        impressions: of them; events with too short a history make none.
        status: of the round.
        seconds: of the whole round.
        steps: seconds by component.
        reasons: why it pushed nothing.
    """

    log: int
    events: int
    impressions: int
    status: str
    seconds: float
    steps: dict[str, float]
    reasons: Sequence[str] = ()


def cost(flags: argparse.Namespace) -> int:
    """Measures rounds, prints a table, writes JSON and a plot."""
    if len(set(flags.events)) < 2:
        raise ValueError(f"`--events` must name two different numbers at least, for a line. Received: {flags.events}")
    log, console = load_log(flags.data, flags.loop_flags), Console()
    sizes = [size for _ in range(flags.repeats) for size in flags.events]
    start = max(flags.log)
    log.part(start, flags.first_events + sum(sizes))
    found = []
    for length in flags.log:
        console.print(f"A log of {length:,} events", highlight=False)
        found += rounds_after(log, start, length, flags.first_events, sizes, flags.loop_flags)
    console.print(cost_table(found))
    for length in flags.log:
        intercept, slope = fit(found, length)
        line = f"after {length:,}: {intercept:.2f} s + {1e3 * slope:.2f} s per 1,000 events"
        console.print(line, highlight=False)
    others = [one for one in found if one.status != PUSHED]
    if others:
        line = f"Rounds that pushed nothing, which count as well: {len(others)} of {len(found)}"
        console.print(line, highlight=False)
    for reason in dict.fromkeys(reason for one in others for reason in one.reasons):
        console.print(f"  {reason}", markup=False, highlight=False)
    if flags.json:
        settings = {k: v for k, v in vars(flags).items() if k not in ("json", "plot", "run")}
        fits = {str(length): dict(zip(("intercept", "slope"), fit(found, length), strict=True)) for length in flags.log}
        report = {"settings": settings, "fits": fits, "rounds": [dataclasses.asdict(one) for one in found]}
        flags.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    if flags.plot:
        draw(found, flags.plot)
    return 0


def rounds_after(
    log: Log, start: int, length: int, first: int, sizes: Sequence[int], loop_flags: Sequence[str]
) -> list[Cost]:
    """Runs rounds one after the other.

    Args:
        log: all events.
        start: row of the log with the first event that is no history.
        length: events before it that the loop is given.
        first: events from there on that the first version is trained on.
        sizes: events of each further round.
        loop_flags: of the loop.
    """
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        loop = LoopProcess(Path(scratch), _EVERY_SECONDS, [*loop_flags, "--history_until", "1"])
        log.begin(loop.events)
        log.write(loop.events, 1, log.part(start - length, length))
        name = log.write(loop.events, 2, log.part(start, first))
        with loop:
            with Console().status(f"a first version of {first:,} events"):
                loop.await_first_version(name)
            row = start + first
            for span, size in enumerate(track(sizes, description="rounds", transient=True), 3):
                file, one = loop.await_round(log.write(loop.events, span, log.part(row, size)))
                row += size
                steps = dict(one.facts.get("seconds", {}))
                if steps:
                    whole = steps.pop("all")
                    impressions, reasons = one.facts["impressions"], one.facts.get("reasons", ())
                    found.append(Cost(length, file.events, impressions, one.status, whole, steps, reasons))
    return found


def fit(found: Sequence[Cost], length: int) -> tuple[float, float]:
    """The line through the rounds after a log of a length, by least squares.

    Args:
        found: rounds.
        length: of the log.

    Returns:
        Seconds at no new event, and seconds per event.
    """
    own = [one for one in found if one.log == length]
    slope, intercept = np.polyfit([one.events for one in own], [one.seconds for one in own], 1)
    return float(intercept), float(slope)


def cost_table(found: Sequence[Cost]) -> Table:
    """A row per number of new events, a column per length of the log."""
    lengths = list(dict.fromkeys(one.log for one in found))
    table = Table(title="seconds of a round, median")
    table.add_column("new events", justify="right")
    for length in lengths:
        table.add_column(f"after {length:,}", justify="right")
    for size in sorted({one.events for one in found}):
        cells = []
        for length in lengths:
            own = [one.seconds for one in found if (one.log, one.events) == (length, size)]
            cells.append(f"{np.median(own):.2f}" if own else "-")
        table.add_row(f"{size:,}", *cells)
    return table


def draw(found: Sequence[Cost], path: Path) -> None:
    """Draws rounds and lines, from no new event on."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="new events of a round", ylabel="seconds of the round")
    for number, length in enumerate(dict.fromkeys(one.log for one in found)):
        own = [one for one in found if one.log == length]
        events = np.array([one.events for one in own])
        axes.plot(events, [one.seconds for one in own], "o", color=f"C{number}", alpha=0.6)
        intercept, slope = fit(found, length)
        ends = np.array([0, events.max()])
        axes.plot(ends, intercept + slope * ends, color=f"C{number}", label=f"after {length:,} events")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
