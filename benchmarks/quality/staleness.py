"""What an index costs that lags behind the model.

A ranker is trained in the order of time, a period after the other. After each, the next period is judged: with the
search's tables as they are, and with those of some periods ago, as an index that is built offline has them. The rest of
the ranker is of the moment in either case. SIM's hard search, which needs no embeddings, is never stale.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.quality.protocols import Protocol
from benchmarks.quality.training import BATCH_SIZE, predict
from benchmarks.quality.units import LEARNED, TOP_K, eta_unit, ranker_of
from keras_eta import Ranker, metrics
from keras_eta.datasets.impressions import Impressions
from keras_eta.interest import ETAInterest, InnerProductInterest, InterestUnit, SIMHard, SIMSoft

PERIODS = 40
LAGS = (0, 1, 5, 20)
# An index that nothing but this experiment moves.
_NEVER = 2**30

UNITS: dict[str, Callable[[Protocol], InterestUnit]] = {
    "eta": lambda data: eta_unit(cosine=True, **LEARNED),
    "inner-product": lambda data: InnerProductInterest(TOP_K, index_period=_NEVER, cosine=True),
    "sim-hard": lambda data: SIMHard(TOP_K, data.category, cosine=True),
}


@dataclasses.dataclass(frozen=True)
class Point:
    """A period judged.

    Args:
        unit: of `UNITS`.
        seed: of initial weights and of the order of batches.
        period: the number of periods that the ranker has learned.
        lag: how many periods ago the search's tables were taken.
        grouped_auc: of the next period, within users.
        auc: of the next period.
    """

    unit: str
    seed: int
    period: int
    lag: int
    grouped_auc: float
    auc: float


def measure(data: Protocol, unit: str, seed: int, periods: int = PERIODS, lags: Sequence[int] = LAGS) -> list[Point]:
    """Trains one ranker over all periods of the training and validation part, each once, and judges the periods.

    Args:
        data: the data set.
        unit: of `UNITS`.
        seed: of initial weights and of the order of batches.
        periods: as many impressions in each.
        lags: in periods. The first period that is judged follows the longest lag.
    """
    tf.keras.utils.set_random_seed(seed)
    reader = UNITS[unit](data)
    model = ranker_of([reader], f"stale_{unit}", data, task=True, cosine=True)
    model.compile()
    model.build()
    parts = _in_order(data, periods)
    kept: list[list[np.ndarray]] = []
    points = []
    for number, (part, following) in enumerate(
        track(list(itertools.pairwise(parts)), description=f"{unit}, seed {seed}"), 1
    ):
        model.fit(
            part.to_dataset(data.features, BATCH_SIZE, lookup=data.lookup, shuffle=True, seed=seed + number), verbose=0
        )
        _refresh(reader)
        kept.append([variable.numpy() for variable in search_state(reader)])
        if number <= max(lags):
            continue
        for lag in lags if kept[-1] else (0,):
            assign(reader, kept[-1 - lag])
            points.append(Point(unit, seed, number, lag, *_judge(model, data, following)))
        assign(reader, kept[-1])
    return points


def _in_order(data: Protocol, periods: int) -> list[Impressions]:
    """Training and validation impressions by time, in parts of the same size."""
    found = []
    for part, share in ((data.train, 8), (data.validation, 1)):
        order = np.argsort(part.timestamps, kind="stable")
        found += [part[rows] for rows in np.array_split(order, max(round(periods * share / 9), 1))]
    return found


def search_state(unit: InterestUnit) -> list[tf.Variable]:
    """The variables that a unit searches by."""
    if isinstance(unit, ETAInterest):
        return [table.fingerprints_table for table in unit.tables.values()]
    if isinstance(unit, (InnerProductInterest, SIMSoft)) and unit.snapshot is not None:
        return [*unit.snapshot.copies.values(), *unit.snapshot.projections.values()]
    return []


def _refresh(unit: InterestUnit) -> None:
    if isinstance(unit, InnerProductInterest) and unit.snapshot is not None:
        unit.snapshot.take()


def assign(unit: InterestUnit, values: Sequence[np.ndarray]) -> None:
    """Gives a unit what `search_state` held at another moment."""
    for variable, value in zip(search_state(unit), values, strict=True):
        variable.assign(value)


def _judge(model: Ranker, data: Protocol, impressions: Impressions) -> tuple[float, float]:
    logits = predict(model, data, impressions)
    users = impressions.columns["user_id"]
    return metrics.grouped_auc(impressions.label, logits, users), metrics.auc(impressions.label, logits)


def losses(points: Sequence[Point]) -> dict[tuple[str, int], np.ndarray]:
    """(unit, lag) -> by seed, the mean over periods of what the lag costs in grouped AUC."""
    fresh = {(p.unit, p.seed, p.period): p.grouped_auc for p in points if p.lag == 0}
    found: dict[tuple[str, int], np.ndarray] = {}
    for unit, lag in dict.fromkeys((point.unit, point.lag) for point in points):
        own = [p for p in points if (p.unit, p.lag) == (unit, lag)]
        seeds = dict.fromkeys(point.seed for point in own)
        found[unit, lag] = np.array(
            [np.mean([fresh[p.unit, p.seed, p.period] - p.grouped_auc for p in own if p.seed == s]) for s in seeds]
        )
    return found


def print_table(points: Sequence[Point]) -> None:
    """A row per unit and lag."""
    table = Table(title="search that lags behind", caption="mean ± standard deviation over seeds, of all periods")
    for name in ("unit", "lag, periods", "grouped AUC", "lost by the lag"):
        table.add_column(name, justify="left" if name == "unit" else "right")
    for (unit, lag), lost in losses(points).items():
        own = [p.grouped_auc for p in points if (p.unit, p.lag) == (unit, lag)]
        spread = f" ± {np.std(lost, ddof=1):.4f}" if len(lost) > 1 else ""
        table.add_row(unit, str(lag), f"{np.mean(own):.4f}", f"{np.mean(lost):.4f}{spread}")
    Console().print(table)


def draw(points: Sequence[Point], path: Path) -> None:
    """Draws grouped AUC by period, and what each lag costs."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, unit in enumerate(dict.fromkeys(point.unit for point in points)):
        color = f"C{number}"
        for lag in sorted({point.lag for point in points if point.unit == unit}):
            own = [point for point in points if (point.unit, point.lag) == (unit, lag)]
            periods = sorted({point.period for point in own})
            means = [np.mean([point.grouped_auc for point in own if point.period == period]) for period in periods]
            label = f"{unit}, {f'{lag} periods old' if lag else 'fresh'}"
            left.plot(
                periods, means, color=color, alpha=1 - 0.25 * LAGS.index(lag) if lag in LAGS else 0.5, label=label
            )
        lost = {lag: values for (of, lag), values in losses(points).items() if of == unit}
        spread = [np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in lost.values()]
        if len(lost) > 1:
            right.errorbar(list(lost), [values.mean() for values in lost.values()], spread, fmt="o-", label=unit)
    left.set(xlabel="periods learned", ylabel="grouped AUC of the next period")
    right.set(xlabel="age of the search's tables, periods", ylabel="lost grouped AUC")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
