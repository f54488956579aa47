"""What an index costs that lags behind: SIM's soft and hard search beside ETA, which has none.

Each ranker is trained round after round, as the ranker of `worth` that is refreshed every round, and judged on the next
round. SIM searches an index of the moment, or one that was built 1, 5 or 20 rounds ago: it knows the behaviours up to
then, and soft search goes by the embeddings and projections of then. All else is of the moment, also the last 16
behaviours, which every ranker attends to.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.freshness.worth import stream, without_advice
from benchmarks.quality.protocols import Protocol, adapted
from keras_eta import Sequence as BehaviourSequence
from keras_eta import metrics
from keras_eta.datasets.columns import USER_ID
from keras_eta.datasets.histories import Histories
from keras_eta.datasets.impressions import Impressions

if TYPE_CHECKING:
    from keras_eta.interest import InterestUnit

LAGS = (0, 1, 5, 20)
INDEX = "indexed"


@dataclasses.dataclass(frozen=True)
class Point:
    """A round judged.

    Args:
        unit: "eta", "sim-soft" or "sim-hard".
        round: its number, from 0.
        lag: how many rounds before it the index was built; 0: of the moment.
        auc: of the round's impressions.
        grouped_auc: the same, within users.
    """

    unit: str
    round: int
    lag: int
    auc: float
    grouped_auc: float


def index(flags: argparse.Namespace) -> int:
    """Trains, prints a table, writes JSON and a plot."""
    data, rounds = stream(flags)
    if rounds <= max(LAGS):
        raise ValueError(f"`--rounds` must be above {max(LAGS)}, the age of the oldest index. Received: {rounds}")
    data = with_index(data)
    points = [point for unit in units() for point in measure(data, unit, flags.events, rounds, flags.seed)]
    Console().print(lag_table(points))
    if flags.json:
        settings = {k: v for k, v in vars(flags).items() if k not in ("json", "plot", "run")}
        report = {"settings": settings, "points": [dataclasses.asdict(point) for point in points]}
        flags.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    if flags.plot:
        draw(points, flags.plot)
    return 0


def with_index(data: Protocol) -> Protocol:
    """The data with its history once more, as the sequence that SIM searches."""
    sequence = BehaviourSequence(INDEX, data.features.behaviour_attributes, data.features.max_history_length)
    lookup = adapted(dataclasses.replace(data.features, sequences=(sequence,)), data.train)
    parts = {name: getattr(data, name) for name in ("train", "validation", "test")}
    parts = {name: part.with_sequence(INDEX, part.log) for name, part in parts.items()}
    return dataclasses.replace(data, **parts, lookup=lookup)


def indexed_until(impressions: Impressions, moment: int) -> Impressions:
    """The impressions as they are searched by an index that knows what was before a moment."""
    users, times = impressions.columns[USER_ID], np.minimum(impressions.timestamps, moment)
    known = Histories(impressions.log, *impressions.log.bounds(users, times))
    return dataclasses.replace(impressions, sequences={INDEX: known})


def units() -> dict[str, Callable[[Protocol], InterestUnit]]:
    """What reads the long history, by name."""
    from benchmarks.quality.units import LEARNED, TOP_K, eta_unit
    from keras_eta.interest import SIMHard, SIMSoft

    return {
        "eta": lambda data: eta_unit(cosine=True, **LEARNED),
        # An index of every step trains as one of the moment, and can be put in the place of another.
        "sim-soft": lambda data: SIMSoft(TOP_K, index_period=1, cosine=True, sequence=INDEX),
        "sim-hard": lambda data: SIMHard(TOP_K, data.category, cosine=True, sequence=INDEX),
    }


def measure(data: Protocol, unit: str, events: int, rounds: int, seed: int, lags: Sequence[int] = LAGS) -> list[Point]:
    """Trains a ranker round after round, and judges each round first.

    Args:
        data: as `with_index` makes it; its training part makes the first version, its test part is the stream.
        unit: of `units`.
        events: impressions of a round.
        rounds: how many.
        seed: of initial weights and of the order of batches.
        lags: in rounds. The first round that is judged is the one that the oldest index was built that long before.
    """
    import tensorflow as tf

    from benchmarks.quality.staleness import assign, search_state
    from benchmarks.quality.training import BATCH_SIZE, predict
    from benchmarks.quality.units import ranker_of

    tf.keras.utils.set_random_seed(seed)
    reader = units()[unit](data)
    model = ranker_of([reader], unit, data, task=True, cosine=True)
    model.compile()
    model.build()

    def learn(part: Impressions, number: int) -> None:
        batches = part.to_dataset(data.features, BATCH_SIZE, lookup=data.lookup, shuffle=True, seed=seed + number)
        model.fit(batches, verbose=0)

    with Console().status(f"{unit}: a first version of {len(data.train):,} impressions"):
        learn(data.train, 0)
    kept: list[list[np.ndarray]] = []
    points = []
    parts = [data.test[number * events : (number + 1) * events] for number in range(rounds)]
    with without_advice():
        for number, part in enumerate(track(parts, description=unit, transient=True)):
            kept.append([variable.numpy() for variable in search_state(reader)])
            for lag in lags if reader.sequence == INDEX else (0,):
                if number >= max(lags):
                    assign(reader, kept[-1 - lag])
                    shown = indexed_until(part, int(parts[number - lag].timestamps[0])) if lag else part
                    logits = predict(model, data, shown)
                    found = (
                        metrics.auc(part.label, logits),
                        metrics.grouped_auc(part.label, logits, part.columns[USER_ID]),
                    )
                    points.append(Point(unit, number, lag, *found))
            assign(reader, kept[-1])
            learn(part, number + 1)
    return points


def lost(points: Sequence[Point], unit: str, lag: int, measured: str) -> np.ndarray:
    """What a lag costs in each round, float64 [rounds]; rounds with labels of one kind are left out.

    Args:
        points: what was judged.
        unit: of `units`.
        lag: of `LAGS`.
        measured: "auc" or "grouped_auc".
    """
    fresh, late = (
        {point.round: getattr(point, measured) for point in points if (point.unit, point.lag) == (unit, age)}
        for age in (0, lag)
    )
    found = np.array([fresh[number] - late[number] for number in fresh])
    return found[~np.isnan(found)]


def lag_table(points: Sequence[Point]) -> Table:
    """A row per unit and lag: means over rounds, and what the lag costs."""
    table = Table(title="impressions of the next round", caption="means over rounds; lost: ± standard error")
    for name in ("unit", "index built", "AUC", "lost", "grouped AUC", "lost"):
        table.add_column(name, justify="left" if name in ("unit", "index built") else "right", no_wrap=True)
    for unit, lag in dict.fromkeys((point.unit, point.lag) for point in points):
        cells = []
        for measured in ("auc", "grouped_auc"):
            own = [getattr(point, measured) for point in points if (point.unit, point.lag) == (unit, lag)]
            costs = lost(points, unit, lag, measured)
            error = f" ± {np.std(costs, ddof=1) / np.sqrt(len(costs)):.4f}" if len(costs) > 1 else ""
            cells += [f"{np.nanmean(own):.4f}", f"{costs.mean():.4f}{error}" if lag else "-"]
        rounds = "round" if lag == 1 else "rounds"
        built = "none" if unit == "eta" else f"{lag} {rounds} ago" if lag else "now"
        table.add_row(unit, built, *cells)
    return table


def draw(points: Sequence[Point], path: Path) -> None:
    """Draws what a lag costs, with its standard error."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, measured in zip(figure.subplots(1, 2), ("auc", "grouped_auc"), strict=True):
        for unit in dict.fromkeys(point.unit for point in points if point.lag):
            lags = sorted({point.lag for point in points if point.unit == unit})
            costs = [lost(points, unit, lag, measured) for lag in lags]
            errors = [np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0 for values in costs]
            axes.errorbar(lags, [values.mean() for values in costs], errors, fmt="o-", label=unit)
        axes.set(xlabel="rounds since the index was built", ylabel=f"lost {measured.replace('_', ' ')}")
        axes.axhline(0, color="black", linewidth=0.8, label="eta, which has no index")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
