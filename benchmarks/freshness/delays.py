"""From the arrival of a file of events to the first answer by a version that was trained on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from benchmarks.freshness.loops import version_of
from benchmarks.serving.runs import Call
from tfx_pipeline.continuous.ledger import OPEN, KnownFile, Round

TOTAL, WAIT, ROUND, LOAD = "arrival to first answer", "wait for the loop", "round", "load by the server"
_ALL = "all"


@dataclasses.dataclass(frozen=True)
class Delay:
    """What became of a file. Moments are seconds since 1970.

    Args:
        file: its name.
        events: that were taken from it.
        arrived: when it was renamed to its name.
        status: of its round, or `OPEN` if no round has taken it.
        round: that took it.
        version: that its round pushed; `None` if it pushed none.
        answered: the first answer by that version or one after it, which goes on from it; `None` if there is none.
        steps: seconds of the round by component, with `take` for reading files and `all` for the whole.
        wait: seconds from the arrival to the beginning of the round.
        load: seconds from the end of the round to the first answer.
    """

    file: str
    events: int
    arrived: float
    status: str
    round: int | None = None
    version: int | None = None
    answered: float | None = None
    steps: Mapping[str, float] = dataclasses.field(default_factory=dict)
    wait: float | None = None
    load: float | None = None

    @property
    def total(self) -> float | None:
        """Seconds from the arrival to the first answer."""
        return None if self.answered is None else self.answered - self.arrived

    @property
    def settled(self) -> bool:
        """Whether nothing more is to come: the version has answered, or there is none."""
        return self.status != OPEN and (self.version is None or self.answered is not None)


def delays(
    arrivals: Mapping[str, float],
    files: Mapping[str, KnownFile],
    rounds: Mapping[int, Round],
    answers: Mapping[int, float],
) -> list[Delay]:
    """What became of each file.

    Args:
        arrivals: when each file came, by name.
        files: of the ledger, by name.
        rounds: of the ledger, by number.
        answers: the moment of the first answer of each version.
    """
    return [_delay(name, arrived, files.get(name), rounds, answers) for name, arrived in arrivals.items()]


def _delay(
    name: str, arrived: float, file: KnownFile | None, rounds: Mapping[int, Round], answers: Mapping[int, float]
) -> Delay:
    if file is None or file.round is None:
        return Delay(name, 0, arrived, OPEN)
    one = rounds[file.round]
    found = Delay(name, file.events, arrived, one.status, one.number)
    steps = one.facts.get("seconds")
    if steps is None:
        return found
    began = one.opened - steps["take"]
    # A round that has just begun may find a file that comes meanwhile.
    found = dataclasses.replace(found, steps=steps, version=version_of(one), wait=max(began - arrived, 0.0))
    moments = [moment for version, moment in answers.items() if found.version is not None and version >= found.version]
    if not moments:
        return found
    return dataclasses.replace(found, answered=min(moments), load=min(moments) - (began + steps[_ALL]))


def summary(found: Sequence[Delay]) -> dict[str, dict[str, float]]:
    """Median, 95th percentile and maximum in seconds, over the files whose version has answered.

    Args:
        found: of all files.

    Returns:
        Name -> {"median", "p95", "max"}: the total, the wait, the round, its steps, and the server's load.
    """
    served = [one for one in found if one.total is not None]
    if not served:
        return {}
    steps = [name for name in dict.fromkeys(step for one in served for step in one.steps) if name != _ALL]
    values = {
        TOTAL: [one.total for one in served],
        WAIT: [one.wait for one in served],
        ROUND: [one.steps[_ALL] for one in served],
        **{f"  {step}": [one.steps.get(step, 0.0) for one in served] for step in steps},
        LOAD: [one.load for one in served],
    }
    return {name: _spread(np.array(seconds, float)) for name, seconds in values.items()}


def _spread(seconds: np.ndarray) -> dict[str, float]:
    median, p95 = np.percentile(seconds, [50, 95])
    return {"median": float(median), "p95": float(p95), "max": float(seconds.max())}


def delay_table(title: str, found: Sequence[Delay]) -> Table:
    """A `summary` to print."""
    served = sum(one.total is not None for one in found)
    table = Table(title=title, caption=f"seconds, of the {served} files whose version has answered, of {len(found)}")
    table.add_column("part")
    for name in ("median", "p95", "max"):
        table.add_column(name, justify="right")
    for part, spread in summary(found).items():
        table.add_row(part, *(f"{value:.1f}" for value in spread.values()))
    return table


def draw(found: Sequence[Delay], calls: Sequence[Call], answers: Mapping[int, float], began: float, path: Path) -> None:
    """Draws the parts of each file's delay, and what the client noticed.

    Args:
        found: of all files.
        calls: of the client.
        answers: the moment of the first answer of each version.
        began: the moment that the calls count from.
        path: of the image.
    """
    figure = Figure(figsize=(9, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1)
    bottom = np.zeros(len(found))
    parts = {
        WAIT: [one.wait or 0.0 for one in found],
        ROUND: [one.steps.get(_ALL, 0.0) for one in found],
        LOAD: [one.load or 0.0 for one in found],
    }
    for name, seconds in parts.items():
        upper.bar(range(1, len(found) + 1), seconds, bottom=bottom, label=name)
        bottom += seconds
    upper.set(xlabel="file of events", ylabel="seconds after its arrival")
    lower.plot([call.due for call in calls], [1e3 * (call.answered - call.due) for call in calls], ".", markersize=3)
    for version, moment in answers.items():
        if moment > began:
            lower.axvline(moment - began, color="C1", alpha=0.6, label=None if version > min(answers) else "version")
    lower.set(xlabel="seconds; a line where a version first answers", ylabel="latency, ms", yscale="log")
    upper.xaxis.set_major_locator(MaxNLocator(integer=True))
    upper.legend(fontsize="small")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
