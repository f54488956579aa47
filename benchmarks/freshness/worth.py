"""What fresh weights are worth: one ranker in the order of time, and its older selves beside it.

The ranker is trained in one pass over the beginning of MovieLens-1M, then on one round after the other. Before each
round it is judged on the round's impressions as it is (refreshed every round), as it was at the last of every ten
rounds, and as it was at the beginning (once). Histories are those of the moment in each case: a request brings them.

The vocabulary holds all ids from the beginning. One that no round has had yet keeps its initial embedding, where the
loop would take it for an unknown one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.quality.protocols import Protocol, adapted
from keras_eta import metrics
from keras_eta.columns import ITEM_ID
from keras_eta.datasets import movielens
from keras_eta.datasets.columns import USER_ID
from keras_eta.datasets.impressions import Impressions

if TYPE_CHECKING:
    from keras_eta import Ranker

REFRESHED = {"every round": 1, "every 10 rounds": 10, "once": None}
FRESH, ONCE = "every round", "once"
# Rounds since the first impression of a user or item: from one to before the next.
AGES = (0, 1, 2, 3, 6, 11, 21, 51)
KINDS = {"users": USER_ID, "items": ITEM_ID}
_SMOOTHED_ROUNDS = 10


@dataclasses.dataclass(frozen=True)
class Judged:
    """Impressions of all rounds, n of them, each judged before any model was trained on it.

    Args:
        rounds: int64 [n], from 0.
        label: int64 [n].
        users: [n].
        ages: "users" or "items" -> int64 [n], rounds since the first impression of the row's user or item; -1 where the
            first version was trained on one.
        logits: of `REFRESHED` -> float32 [n].
    """

    rounds: np.ndarray
    label: np.ndarray
    users: np.ndarray
    ages: dict[str, np.ndarray]
    logits: dict[str, np.ndarray]


def worth(flags: argparse.Namespace) -> int:
    """Trains, prints tables, writes JSON and a plot."""
    data, rounds = stream(flags)
    found = measure(data, flags.events, rounds, flags.seed)
    console = Console()
    console.print(refresh_table(found))
    for kind in KINDS:
        console.print(age_table(found, kind))
    if flags.json:
        settings = {k: v for k, v in vars(flags).items() if k not in ("json", "plot", "run")}
        report = {
            "settings": settings,
            "by_round": {name: by_round(found, name) for name in REFRESHED},
            "by_age": {kind: by_age(found, kind) for kind in KINDS},
        }
        flags.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    if flags.plot:
        draw(found, flags.plot)
    return 0


def stream(flags: argparse.Namespace) -> tuple[Protocol, int]:
    """MovieLens-1M in the order of time, and how many rounds there are.

    Args:
        flags: of the command.

    Returns:
        What `_protocol` makes of it; rounds that its test part is enough for.

    Raises:
        ValueError: if they are not enough for one.
    """
    impressions = movielens.impressions(movielens.load(flags.data))
    impressions = impressions[np.argsort(impressions.timestamps, kind="stable")]
    first = flags.first_events or round(flags.start_share * len(impressions))
    left = (len(impressions) - first) // flags.events
    if not left:
        raise ValueError(f"There are {len(impressions):,} impressions: too few for {first:,} and a round after them.")
    return _protocol(impressions, first, flags.history), min(flags.rounds, left)


def _protocol(impressions: Impressions, first: int, history: int) -> Protocol:
    """The first impressions as the training part, the others as the test part."""
    lookup = adapted(movielens.features(max_history_length=history), impressions)
    return Protocol("movielens", impressions[:first], impressions[:0], impressions[first:], lookup, "genre", 200)


def measure(data: Protocol, events: int, rounds: int, seed: int) -> Judged:
    """Trains ETA round after round, and judges each round first.

    Args:
        data: its training part makes the first version; its test part is the stream, by time.
        events: impressions of a round.
        rounds: how many.
        seed: of initial weights and of the order of batches.
    """
    import tensorflow as tf

    from benchmarks.quality.training import BATCH_SIZE, predict
    from benchmarks.quality.units import make_ranker

    tf.keras.utils.set_random_seed(seed)
    model = make_ranker("eta", data, task=True, cosine=True)
    model.compile()
    model.build()

    def learn(part: Impressions, number: int) -> None:
        batches = part.to_dataset(data.features, BATCH_SIZE, lookup=data.lookup, shuffle=True, seed=seed + number)
        model.fit(batches, verbose=0)

    with Console().status(f"a first version of {len(data.train):,} impressions"):
        learn(data.train, 0)
    kept = dict.fromkeys(REFRESHED, _state(model))
    later = data.test[: events * rounds]
    logits: dict[str, list[np.ndarray]] = {name: [] for name in REFRESHED}
    with without_advice():
        for number in track(range(rounds), description="rounds", transient=True):
            part = later[number * events : (number + 1) * events]
            for name, period in REFRESHED.items():
                if period is not None and number % period == 0:
                    kept[name] = kept[FRESH]
                _assign(model, kept[name])
                logits[name].append(predict(model, data, part))
            _assign(model, kept[FRESH])
            learn(part, number + 1)
            kept[FRESH] = _state(model)
    of_row = np.arange(len(later)) // events
    columns = {kind: np.asarray(later.columns[column]) for kind, column in KINDS.items()}
    known = {kind: np.asarray(data.train.columns[column]) for kind, column in KINDS.items()}
    return Judged(
        of_row,
        later.label,
        columns["users"],
        {kind: ages(columns[kind], of_row, known[kind]) for kind in KINDS},
        {name: np.concatenate(values) for name, values in logits.items()},
    )


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Keeps `fit` from saying that nothing was learned: a round is too short to tell."""
    logger = logging.getLogger("keras_eta.models.prior")
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False


def _state(model: Ranker) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.variables]


def _assign(model: Ranker, values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(model.variables, values, strict=True):
        variable.assign(value)


def ages(ids: np.ndarray, rounds: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Rounds since the first impression of each row's id.

    Args:
        ids: [n].
        rounds: int64 [n], ascending.
        known: ids from before the first round.

    Returns:
        int64 [n]; -1 for known ids.
    """
    _, first, numbers = np.unique(ids, return_index=True, return_inverse=True)
    return np.where(np.isin(ids, known), -1, rounds - rounds[first][numbers])


def by_round(found: Judged, name: str) -> dict[str, list[float]]:
    """AUC and grouped AUC of each round; NaN where a round has labels of one kind only.

    Args:
        found: what was judged.
        name: of `REFRESHED`.
    """
    parts = [found.rounds == number for number in range(found.rounds.max() + 1)]
    label, logits = found.label, found.logits[name]
    return {
        "auc": [metrics.auc(label[part], logits[part]) for part in parts],
        "grouped_auc": [metrics.grouped_auc(label[part], logits[part], found.users[part]) for part in parts],
    }


def by_age(found: Judged, kind: str) -> list[dict[str, float]]:
    """AUC of the rows of new users or items by rounds since their first impression, those of all rounds together.

    Args:
        found: what was judged.
        kind: of `KINDS`.

    Returns:
        An entry per range of `AGES` that has rows: {"from", "rows", "fresh", "once"}.
    """
    entries = []
    for least, end in zip(AGES, [*AGES[1:], np.inf], strict=True):
        part = (found.ages[kind] >= least) & (found.ages[kind] < end)
        if part.any():
            fresh, once = (metrics.auc(found.label[part], found.logits[name][part]) for name in (FRESH, ONCE))
            entries.append({"from": least, "rows": int(part.sum()), "fresh": fresh, "once": once})
    return entries


def refresh_table(found: Judged) -> Table:
    """A row per way to refresh: means over rounds, and what is lost against a refresh every round."""
    table = Table(
        title="impressions of the next round",
        caption="means over rounds; lost: against every round, ± standard error",
    )
    table.add_column("weights refreshed")
    for name in ("AUC", "lost", "grouped AUC", "lost"):
        table.add_column(name, justify="right")
    fresh = by_round(found, FRESH)
    for name in REFRESHED:
        cells = []
        for measure_name, values in by_round(found, name).items():
            lost = np.subtract(fresh[measure_name], values)
            lost = lost[~np.isnan(lost)]
            error = f" ± {np.std(lost, ddof=1) / np.sqrt(len(lost)):.4f}" if len(lost) > 1 else ""
            cells += [f"{np.nanmean(values):.4f}", "-" if name == FRESH else f"{np.mean(lost):.4f}{error}"]
        table.add_row(name, *cells)
    return table


def age_table(found: Judged, kind: str) -> Table:
    """A row per age of new users or items."""
    table = Table(title=f"AUC of new {kind}")
    for name in ("rounds since the first", "impressions", "every round", "once"):
        table.add_column(name, justify="right")
    for entry in by_age(found, kind):
        table.add_row(*(f"{entry['from']}", f"{entry['rows']:,}", f"{entry['fresh']:.4f}", f"{entry['once']:.4f}"))
    return table


def draw(found: Judged, path: Path) -> None:
    """Draws grouped AUC by round, smoothed, and AUC by age."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, *others = figure.subplots(1, 1 + len(KINDS))
    for name in REFRESHED:
        values = np.array(by_round(found, name)["grouped_auc"])
        width = min(_SMOOTHED_ROUNDS, len(values))
        smooth = np.convolve(values, np.full(width, 1 / width), "valid")
        left.plot(np.arange(width - 1, len(values)) + 1, smooth, label=name)
    left.set(xlabel=f"round; means of {_SMOOTHED_ROUNDS}", ylabel="grouped AUC of the round, before training on it")
    for axes, kind in zip(others, KINDS, strict=True):
        entries = by_age(found, kind)
        for key, label in (("fresh", FRESH), ("once", ONCE)):
            axes.plot([str(entry["from"]) for entry in entries], [entry[key] for entry in entries], "o-", label=label)
        axes.set(xlabel=f"rounds since the first impression of new {kind}, from", ylabel="AUC")
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
