"""A needle in a haystack: can a unit use the one stretch of the history that tells what a user likes?

Users take items by sessions of one group each. One session, at a known depth, is of the user's lasting taste, which no
other session has. Liked candidates are of the last session's group or of the taste, others of further groups. So what
belongs together can be learned from the recent sessions; what is judged is whether the candidates of the taste stand
above those of further groups, for users whom training never saw. Beyond its reach a unit can only guess: AUC .5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.quality.protocols import Protocol
from benchmarks.quality.training import predict, train
from benchmarks.quality.units import make_ranker
from keras_eta import Feature, FeatureLookup, Features, metrics
from keras_eta.datasets import Impressions, Interactions

DEPTHS = (100, 1_000, 10_000)
SESSION, GROUPS, ITEMS_PER_GROUP = 10, 50, 20
USERS, IMPRESSIONS_PER_USER = 1_000, 20


@dataclasses.dataclass(frozen=True)
class Find:
    """What a unit found.

    Args:
        unit: of `benchmarks.quality.units.UNITS`.
        depth: behaviours between the needle and the impression.
        seed: of the data, initial weights and the order of batches.
        auc: of the test part, without the candidates of the last session's group.
        epochs: passes over the training part up to the best.
        seconds: of training.
    """

    unit: str
    depth: int
    seed: int
    auc: float
    epochs: int
    seconds: float


def make_data(depth: int, seed: int) -> Protocol:
    """The impressions of users whose taste lies `depth` behaviours back; users are of one part each.

    Args:
        depth: behaviours after the needle, a multiple of `SESSION`.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    taste = rng.integers(0, GROUPS, USERS)
    # Any groups but the taste.
    session = (taste[:, np.newaxis] + rng.integers(1, GROUPS, (USERS, 1 + depth // SESSION))) % GROUPS
    session[:, 0] = taste
    group = np.repeat(session, SESSION, axis=1)
    length = group.shape[1]
    log = Interactions.from_columns(
        {
            "user_id": np.repeat(np.arange(USERS), length),
            "item_id": _items(group, rng).ravel(),
            "category": group.ravel(),
            "timestamp": np.tile(np.arange(length), USERS),
        }
    )
    user = np.repeat(np.arange(USERS), IMPRESSIONS_PER_USER)
    label = rng.integers(0, 2, len(user))
    current = session[user, -1]
    of_taste = rng.random(len(user)) < 0.5
    # Any groups but these two.
    further = rng.integers(1, GROUPS - 1, len(user))
    further += further >= (current - taste[user]) % GROUPS
    other = (taste[user] + further) % GROUPS
    wanted = np.where(label == 1, np.where(of_taste, taste[user], current), other)
    columns = {
        "user_id": user,
        "item_id": _items(wanted, rng),
        "category": wanted,
        "timestamp": np.full(len(user), length),
    }
    impressions = Impressions.from_columns(log, columns, label)
    features = Features(
        Feature("item_id", embedding_dim=16),
        item_attributes=(Feature("category", embedding_dim=4),),
        max_history_length=length,
    )
    lookup = FeatureLookup(features)
    lookup.adapt({"item_id": log["item_id"], "category": log["category"]})
    part = user * 10 // USERS
    test = (part == 9) & (wanted != current)
    train_part, validation, test_part = (impressions[rows] for rows in (part < 8, part == 8, test))
    return Protocol(f"needle-{depth}", train_part, validation, test_part, lookup, "category", long_history=length)


def _items(group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An item of each group."""
    items: np.ndarray = group * ITEMS_PER_GROUP + rng.integers(0, ITEMS_PER_GROUP, group.shape)
    return items


def find(data: Protocol, unit: str, depth: int, seed: int, max_epochs: int) -> Find:
    """Trains a unit on `make_data` and judges it.

    Args:
        data: the data.
        unit: of `benchmarks.quality.units.UNITS`.
        depth: of the needle.
        seed: of initial weights and of the order of batches.
        max_epochs: passes over the training part at most.
    """
    tf.keras.utils.set_random_seed(seed)
    model = make_ranker(unit, data, task=True, cosine=True)
    trained = train(model, data, seed, max_epochs)
    auc = metrics.auc(data.test.label, predict(model, data, data.test))
    return Find(unit, depth, seed, auc, trained.epochs, trained.seconds)


def print_table(finds: Sequence[Find]) -> None:
    """AUC by unit and depth."""
    table = Table(title="AUC by depth of the needle", caption="mean ± standard deviation over seeds")
    depths = sorted({found.depth for found in finds})
    for name in ("unit", *(f"{depth:,} back" for depth in depths)):
        table.add_column(name, justify="left" if name == "unit" else "right")
    for unit in dict.fromkeys(found.unit for found in finds):
        cells = []
        for depth in depths:
            aucs = [found.auc for found in finds if (found.unit, found.depth) == (unit, depth)]
            spread = f" ± {np.std(aucs, ddof=1):.3f}" if len(aucs) > 1 else ""
            cells.append(f"{np.mean(aucs):.3f}{spread}" if aucs else "")
        table.add_row(unit, *cells)
    Console().print(table)


def draw(finds: Sequence[Find], path: Path) -> None:
    """Draws AUC against depth."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    depths = sorted({found.depth for found in finds})
    for unit in dict.fromkeys(found.unit for found in finds):
        own = [found for found in finds if found.unit == unit]
        known = [depth for depth in depths if any(found.depth == depth for found in own)]
        axes.plot(known, [np.mean([f.auc for f in own if f.depth == depth]) for depth in known], "o-", label=unit)
    axes.axhline(0.5, color="grey", linestyle=":")
    axes.set(xscale="log", xlabel="behaviours back to the needle", ylabel="AUC, test", ylim=(0.45, 1.02))
    axes.set_xticks(depths, [f"{depth:,}" for depth in depths])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
