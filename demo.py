"""ETA from raw logs to a ranked answer, in one command: train, compare, export, serve, ask.

    make demo

Trains a short-history model and ETA on MovieLens-1M, compares them on later impressions, exports ETA, starts a model
server, and asks it over gRPC for the films that one user would like, with the past films that each score rests on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import tensorflow as tf
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

from benchmarks import movielens as benchmark
from keras_eta import ETA
from keras_eta.datasets.impressions import Impressions
from keras_eta.export import export_model
from serving.client import Explanation, RankingClient
from serving.process import ServerProcess

HISTORY_BUCKETS = ((5, 20), (20, 50), (50, 100), (100, 200), (200, 10_000))
FILMS_SHOWN = 10
FILMS_EXPLAINED = 3
BEHAVIOURS_SHOWN = 6

console = Console(width=100)


@dataclasses.dataclass(frozen=True)
class Request:
    """What the client asks: every film that the user has not rated yet, given all that the user has rated."""

    user_id: int
    films: list[str]
    ratings: list[int]
    liked: list[int]
    candidates: list[str]


def plot(path: Path, test: Impressions, logits: dict[str, np.ndarray], eta: ETA, protocol: benchmark.Protocol) -> None:
    """Draws AUC by length of history, and how far back the behaviours lie that ETA attends to."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    counts = test.history_counts
    for name, values in logits.items():
        aucs = [
            benchmark.metrics.auc(test.label[rows], values[rows])
            for rows in ((counts >= low) & (counts < high) for low, high in HISTORY_BUCKETS)
        ]
        left.plot(range(len(aucs)), aucs, "o-", label=benchmark.DESCRIPTIONS[name])
    left.set_xticks(
        range(len(HISTORY_BUCKETS)),
        [f"{low}-{high - 1}" if high < 10_000 else f"{low}+" for low, high in HISTORY_BUCKETS],
    )
    left.set(xlabel="earlier ratings of the user", ylabel="test AUC", title="What the long history is worth")
    left.legend()

    long = test[np.flatnonzero(counts >= benchmark.LONG_HISTORY)].sample(256)
    depth = np.zeros(eta.features.max_history_length)
    for inputs, _ in long.to_dataset(eta.features, 64, lookup=protocol.lookup):
        scores: Any = eta.score({**inputs, "item_id": inputs["item_id"][:, tf.newaxis]})
        interest: Any = scores.interests[eta.eta.name]
        weights = tf.reduce_mean(interest.weights, axis=-2)
        np.add.at(depth, interest.retrieved.positions.numpy().ravel(), weights.numpy().ravel())
    right.plot(np.arange(1, len(depth) + 1), np.cumsum(depth) / depth.sum())
    right.axvline(eta.short_history_length, color="grey", linestyle=":", label="the short history ends")
    right.set(
        xlabel="ratings back from now",
        ylabel="share of the attention",
        title=f"How far back ETA looks ({benchmark.LONG_HISTORY}+ earlier ratings)",
        ylim=(0, 1),
    )
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def make_request(protocol: benchmark.Protocol, seed: int) -> Request:
    """A user of the test part with a long history, as of the end of the log."""
    log, test = protocol.data.interactions, protocol.test
    active = np.unique(test.columns["user_id"][test.history_counts >= benchmark.LONG_HISTORY])
    user_id = int(np.random.default_rng(seed).choice(active))
    rows = np.flatnonzero(log["user_id"] == user_id)[::-1]
    films = [str(film) for film in log["item_id"][rows]]
    seen = set(films)
    candidates = [str(film) for film in protocol.data.items["item_id"] if film not in seen]
    return Request(user_id, films, log["rating"][rows].tolist(), log["liked"][rows].tolist(), candidates)


def show_answer(request: Request, explanation: Explanation) -> None:
    """Prints the best films and what the first few rest on."""
    if explanation.scores is None or explanation.score_name != "distances":
        raise ValueError(f"`explanation` must have distances. Received: score_name={explanation.score_name!r}")
    best = explanation.order[:FILMS_SHOWN]
    table = Table(title=f"User {request.user_id}: the best of {len(request.candidates):,} films not rated yet")
    table.add_column("", justify="right")
    table.add_column("film")
    table.add_column("P(rating of 4 or 5)", justify="right")
    for place, candidate in enumerate(best, start=1):
        probability = f"{explanation.probability[candidate]:.3f}"
        table.add_row(str(place), request.candidates[candidate], probability)
    console.print(table)
    for candidate in best[:FILMS_EXPLAINED]:
        table = Table(title=f"{request.candidates[candidate]!r} rests on")
        table.add_column("past film")
        for column in ("rating", "ratings back", "Hamming distance", "attention weight"):
            table.add_column(column, justify="right")
        for slot in np.argsort(-explanation.weights[candidate])[:BEHAVIOURS_SHOWN]:
            position = explanation.positions[candidate, slot]
            table.add_row(
                request.films[position],
                str(request.ratings[position]),
                str(position + 1),
                str(explanation.scores[candidate, slot]),
                f"{explanation.weights[candidate, slot]:.3f}",
            )
        console.print(table)


def ask(base_path: Path, protocol: benchmark.Protocol, seed: int, output: Path) -> None:
    """Serves the newest version under `base_path`, ranks films for one user over gRPC, and prints the answer."""
    request = make_request(protocol, seed)
    flags = ("--model_name", base_path.name, "--model_base_path", str(base_path))
    with (
        ServerProcess(*flags, log=output / "server.log") as server,
        RankingClient(server.address, model_name=base_path.name, timeout=60) as client,
    ):
        console.print(f"Serving {base_path} over gRPC at {server.address}; status: {client.status()}")
        asked: dict[str, Any] = {
            "candidates": {"item_id": request.candidates},
            "history": {"item_id": request.films, "liked": request.liked},
            "user": {"user_id": request.user_id},
        }
        client.rank(**asked)
        start = time.perf_counter()
        ranking = client.rank(**asked)
        milliseconds = 1e3 * (time.perf_counter() - start)
        explanation = client.explain(**asked)
    if not np.array_equal(ranking.order[:FILMS_SHOWN], explanation.order[:FILMS_SHOWN]):
        raise RuntimeError("The signatures `rank` and `explain` disagree on the best films.")
    console.print(
        f"rank: {len(request.candidates):,} candidates over {len(request.films)} behaviours "
        f"in {milliseconds:.0f} ms, model version {ranking.model_version}"
    )
    show_answer(request, explanation)
    # The same request as a file, for `python -m serving.client`.
    (output / "request.json").write_text(json.dumps(asked))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns 0 only if every step worked and ETA beat the short history."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python demo.py"
    )
    parser.add_argument("--data", metavar="DIR", help="folder of the official ml-1m; default: fetched and cached")
    parser.add_argument("--epochs", type=int, default=2, help="default: 2")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--max_rows", type=int, help="train and test on so many impressions, for a quick look")
    parser.add_argument("--output", type=Path, default=Path("build"), metavar="DIR", help="default: build")
    flags = parser.parse_args(arguments)
    start = time.monotonic()
    output = flags.output / "demo"
    output.mkdir(parents=True, exist_ok=True)

    console.rule("data")
    protocol = benchmark.load_protocol(flags.data, flags.max_rows)
    results, logits, models = [], {}, {}
    for name in ("short", "eta"):
        console.rule(f"training: {benchmark.DESCRIPTIONS[name]}")
        tf.keras.utils.set_random_seed(flags.seed)
        models[name] = benchmark.MODELS[name](protocol.lookup, flags.seed)
        seconds = benchmark.train(models[name], protocol, flags.epochs, flags.seed)
        result, logits[name] = benchmark.evaluate(name, flags.seed, models[name], protocol, seconds)
        results.append(result)
    benchmark.print_results(results)
    figure = output / "long_history.png"
    plot(figure, protocol.test, logits, models["eta"], protocol)
    console.print(f"Figure: {figure}")

    console.rule("export, serve, ask")
    base_path = flags.output / "serving" / "eta"
    console.print(f"Exported: {export_model(models['eta'], base_path)}")
    ask(base_path, protocol, flags.seed, output)

    console.print(
        f"\nDone in {(time.monotonic() - start) / 60:.1f} minutes. Next: `make serve`, and in another shell\n"
        f"  .venv/bin/python -m serving.client rank --request {output}/request.json --top 10"
    )
    return exit_code(*results)


def exit_code(short: benchmark.Result, eta: benchmark.Result) -> int:
    """0 if ETA beat the short history; if not, 1, and a line that says so."""
    if eta.auc > short.auc:
        return 0
    console.print(f"ETA (AUC {eta.auc:.4f}) did not beat the short history ({short.auc:.4f}).", style="red")
    return 1


if __name__ == "__main__":
    sys.exit(main())
