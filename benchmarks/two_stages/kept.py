"""How much of the ranking of all films retrieval and ranking keep, and how long either takes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.quality.protocols import movielens_protocol
from benchmarks.two_stages.retriever import liked_films_retriever
from keras_eta.columns import ITEM_ID
from keras_eta.datasets import movielens
from keras_eta.export import export_retriever
from serving.client import RankingClient
from serving.models_config import models_config
from serving.process import ServerProcess

SEED, BEST, MIN_HISTORY = 0, 10, 20


@dataclasses.dataclass(frozen=True)
class Kept:
    """Of C films retrieved.

    Args:
        results: C.
        share: of the `BEST` best of all films that are among the `BEST` best of those retrieved, the mean over users.
        milliseconds: median over users, both calls included.
    """

    results: int
    share: float
    milliseconds: float


def kept(flags: argparse.Namespace) -> int:
    """Serves a ranker and a retriever for each C, asks for every user, and prints a table."""
    console = Console()
    films = movielens.load(flags.data)
    genre_of = dict(zip(films.items["item_id"], films.items["genres"].str.split("|").str[0], strict=True))
    rated = np.unique(films.interactions[ITEM_ID])
    if flags.retriever.exists():
        model = tf.keras.models.load_model(flags.retriever)
    else:
        console.print(f"There is no {flags.retriever}: training one.")
        model = liked_films_retriever(films, movielens_protocol(films), SEED, flags.rounds)
        flags.retriever.parent.mkdir(parents=True, exist_ok=True)
        model.save(flags.retriever)

    def attributes(item_ids: np.ndarray) -> dict[str, Any]:
        return {"genre": [genre_of[item.decode() if isinstance(item, bytes) else item] for item in item_ids]}

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        models = {"ranker": flags.ranker}
        for results in flags.results:
            models[f"tiger_{results}"] = Path(folder, f"tiger_{results}")
            export_retriever(model, models[f"tiger_{results}"], num_results=results)
        config = Path(folder, "models.config")
        config.write_text(models_config(models), encoding="utf-8")
        flag = f"--model_config_file={config}"
        address = stack.enter_context(ServerProcess(flag, log=Path(folder, "server.log"))).address
        clients = {
            results: stack.enter_context(
                RankingClient(address, model_name="ranker", retriever=f"tiger_{results}", timeout=60)
            )
            for results in flags.results
        }
        shares: dict[int, list[float]] = {results: [] for results in clients}
        times: dict[int, list[float]] = {results: [] for results in (0, *clients)}
        ranker = clients[flags.results[0]]
        for history in track(histories(films, flags.users), "users", console=console):
            unseen = np.setdiff1d(rated, history[ITEM_ID])
            candidates = {ITEM_ID: unseen.tolist(), **attributes(unseen)}
            ranking, milliseconds = _timed(ranker.rank, candidates=candidates, history=history)
            times[0].append(milliseconds)
            best = set(unseen[ranking.order[:BEST]])
            for results, client in clients.items():
                answer, milliseconds = _timed(client.recommend, history, attributes=attributes)
                times[results].append(milliseconds)
                kept_films = best & {item.decode() for item in answer.best_first[:BEST]}
                shares[results].append(len(kept_films) / BEST)
    rows = [Kept(results, float(np.mean(shares[results])), float(np.median(times[results]))) for results in clients]
    everything = float(np.median(times[0]))
    _print(console, rows, everything, len(times[0]))
    if flags.plot:
        _draw(rows, everything, flags.plot)
    return 0


def histories(films: movielens.MovieLens, users: int) -> list[dict[str, list[Any]]]:
    """All that each of some users with `MIN_HISTORY` or more ratings has rated, most recent first."""
    log = films.interactions
    starts, counts = np.unique(log["user_id"], return_index=True, return_counts=True)[1:]
    enough = np.flatnonzero(counts >= MIN_HISTORY)
    drawn = np.random.default_rng(SEED).choice(enough, min(users, len(enough)), replace=False)
    rows = [np.arange(starts[user], starts[user] + counts[user])[::-1] for user in drawn]
    return [{name: log[name][of_user].tolist() for name in (ITEM_ID, "genre", "rating")} for of_user in rows]


def _timed(call: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    answer = call(*arguments, **named)
    return answer, 1e3 * (time.perf_counter() - start)


def _print(console: Console, rows: list[Kept], everything: float, users: int) -> None:
    table = Table(title=f"the {BEST} best of all films, {users} users; ranking all of them takes {everything:.0f} ms")
    for name in ("films retrieved", f"best {BEST} kept", "ms", "times faster"):
        table.add_column(name, justify="right")
    for row in rows:
        faster = f"{everything / row.milliseconds:.1f}"
        table.add_row(str(row.results), f"{row.share:.3f}", f"{row.milliseconds:.1f}", faster)
    console.print(table)


def _draw(rows: list[Kept], everything: float, path: Path) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([row.milliseconds for row in rows], [row.share for row in rows], "o-", label="retrieve, then rank")
    for row in rows:
        axes.annotate(f"C = {row.results}", (row.milliseconds, row.share), textcoords="offset points", xytext=(6, -4))
    axes.plot(everything, 1, "k*", label="rank all films")
    axes.set(xlabel="ms, median", ylabel=f"share of the {BEST} best kept", xlim=(0, None), ylim=(0, 1.05))
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
