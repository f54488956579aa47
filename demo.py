"""ETA from raw logs to a ranked answer, in one command: train, compare, export, serve, ask.

    make demo

Trains a short-history model and ETA on MovieLens-1M until validation stops, compares them on later impressions, exports
ETA, starts a model server, and asks it over gRPC for the films that one user would like, with the past films that each
score rests on. Then asks once more in two stages: TIGER, trained on liked films and served beside ETA, finds
candidates, and ETA ranks these alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import keras_eta
from benchmarks.quality.protocols import Protocol, movielens_protocol
from benchmarks.quality.results import Result, print_table
from benchmarks.quality.training import judged, predict, train
from benchmarks.quality.units import SHORT_HISTORY, make_ranker
from keras_eta.columns import HISTORY_LENGTH
from keras_eta.datasets import movielens
from keras_eta.quiet import quiet_imports
from serving.client import Explanation, RankingClient, Recommendation
from serving.models_config import models_config
from serving.process import ServerProcess

if TYPE_CHECKING:
    from keras_eta import Ranker

HISTORY_BUCKETS = ((5, 20), (20, 50), (50, 100), (100, 200), (200, 10_000))
DESCRIPTIONS = {"recent": "target attention over the last 16", "eta": "ETA: 48 of the last 512 besides"}
EPOCHS = 2
RETRIEVER_ROUNDS = 2
FILMS_RETRIEVED = 200
FILMS_SHOWN = 10
FILMS_EXPLAINED = 3
BEHAVIOURS_SHOWN = 6

console = Console(width=100)


@dataclasses.dataclass(frozen=True)
class Request:
    """What the client asks: every film that the user has not rated yet, given all that the user has rated."""

    user_id: int
    history: dict[str, list[Any]]
    candidates: dict[str, list[str]]

    def attributes(self, films: np.ndarray) -> dict[str, list[str]]:
        """The genres of some of the candidates, whose titles come as bytes."""
        genres = dict(zip(self.candidates["item_id"], self.candidates["genre"], strict=True))
        return {"genre": [genres[film.decode()] for film in films]}


def plot(path: Path, data: Protocol, logits: dict[str, np.ndarray], eta: Ranker) -> None:
    """Draws AUC and grouped AUC by length of history, and how far back the behaviours lie that ETA attends to.

    Beside the last stands what attention to all behaviours alike would give.
    """
    import tensorflow as tf

    figure = Figure(figsize=(15, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    test = data.test
    counts, users = test.history_counts, test.columns["user_id"]
    buckets = [np.flatnonzero((counts >= low) & (counts < high)) for low, high in HISTORY_BUCKETS]
    for name, values in logits.items():
        aucs = [keras_eta.metrics.auc(test.label[rows], values[rows]) for rows in buckets]
        grouped = [keras_eta.metrics.grouped_auc(test.label[rows], values[rows], users[rows]) for rows in buckets]
        for panel, scores in zip(panels, (aucs, grouped), strict=False):
            panel.plot(range(len(scores)), scores, "o-", label=DESCRIPTIONS[name])
    for panel, title in zip(panels, ("AUC", "grouped AUC: within a user"), strict=False):
        panel.set_xticks(
            range(len(HISTORY_BUCKETS)),
            [f"{low}-{high - 1}" if high < 10_000 else f"{low}+" for low, high in HISTORY_BUCKETS],
        )
        panel.set(xlabel="earlier ratings of the user", ylabel="test", title=title)
        panel.legend()

    long = test[np.flatnonzero(counts >= data.long_history)]
    depth = np.zeros(eta.features.max_history_length)
    lengths: list[np.ndarray] = []
    unit = eta.interests[-1]
    for columns, _ in long.sample(min(256, len(long))).to_dataset(eta.features, 64, lookup=data.lookup):
        interest: Any = eta.score(eta.batch_columns(columns)).interests[unit.name]
        weights = tf.reduce_mean(interest.weights, axis=-2)
        np.add.at(depth, interest.retrieved.positions.numpy().ravel(), weights.numpy().ravel())
        lengths.append(columns[HISTORY_LENGTH].numpy())
    back = np.arange(1, len(depth) + 1)
    panels[2].plot(back, np.cumsum(depth) / depth.sum(), label="attention to what ETA retrieves")
    panels[2].plot(back, uniform_shares(np.concatenate(lengths), len(depth)), "k--", label="uniform attention to all")
    panels[2].axvline(SHORT_HISTORY, color="grey", linestyle=":", label="the short history ends")
    panels[2].set(
        xlabel="ratings back from now",
        ylabel="share of the attention, up to there",
        title=f"attention by ratings back ({data.long_history}+ earlier ratings)",
        ylim=(0, 1),
    )
    panels[2].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def uniform_shares(lengths: np.ndarray, longest: int) -> np.ndarray:
    """The share that uniform attention gives the d most recent behaviours, for d from 1 to `longest`, [longest].

    Args:
        lengths: of the histories, [N], positive and at most `longest`; each counts alike.
        longest: behaviours that are read.
    """
    recent = np.minimum(np.arange(1, longest + 1), lengths[:, None])
    shares: np.ndarray = (recent / lengths[:, None]).mean(axis=0)
    return shares


def make_request(films: movielens.MovieLens, data: Protocol, seed: int) -> Request:
    """A user of the test part with a long history, as of the end of the log."""
    log, test = films.interactions, data.test
    active = np.unique(test.columns["user_id"][test.history_counts >= data.long_history])
    user_id = int(np.random.default_rng(seed).choice(active))
    rows = np.flatnonzero(log["user_id"] == user_id)[::-1]
    history = {name: log[name][rows].tolist() for name in ("item_id", "genre", "rating")}
    unseen = films.items[~films.items["item_id"].isin(history["item_id"])]
    genres = unseen["genres"].str.split("|").str[0]
    return Request(user_id, history, {"item_id": unseen["item_id"].tolist(), "genre": genres.tolist()})


def show_answer(request: Request, explanation: Explanation) -> None:
    """Prints the best films and what the first few rest on."""
    if explanation.scores is None or explanation.score_name != "distances":
        raise ValueError(f"`explanation` must have distances. Received: score_name={explanation.score_name!r}")
    best = explanation.order[:FILMS_SHOWN]
    films = request.candidates["item_id"]
    table = Table(title=f"User {request.user_id}: the best of {len(films):,} films not rated yet")
    table.add_column("", justify="right")
    table.add_column("film")
    table.add_column("P(rating of 4 or 5)", justify="right")
    for place, candidate in enumerate(best, start=1):
        probability = f"{explanation.probability[candidate]:.3f}"
        table.add_row(str(place), films[candidate], probability)
    console.print(table)
    for candidate in best[:FILMS_EXPLAINED]:
        table = Table(title=f"{films[candidate]!r} rests on")
        table.add_column("past film")
        for column in ("rating", "ratings back", "Hamming distance", "attention weight"):
            table.add_column(column, justify="right")
        for slot in np.argsort(-explanation.weights[candidate])[:BEHAVIOURS_SHOWN]:
            position = explanation.positions[candidate, slot]
            table.add_row(
                request.history["item_id"][position],
                str(request.history["rating"][position]),
                str(position + 1),
                str(explanation.scores[candidate, slot]),
                f"{explanation.weights[candidate, slot]:.3f}",
            )
        console.print(table)


def ask(base_paths: dict[str, Path], request: Request, output: Path) -> None:
    """Serves the newest version of both models, ranks films for one user over gRPC, and prints the answers.

    Args:
        base_paths: of the ranker and the retriever, by name.
        request: of the user.
        output: where the server's log, its configuration and the request go.
    """
    ranker, retriever = base_paths
    config = output / "models.config"
    config.write_text(models_config(base_paths), encoding="utf-8")
    with (
        ServerProcess(f"--model_config_file={config}", log=output / "server.log") as server,
        RankingClient(server.address, model_name=ranker, retriever=retriever, timeout=60) as client,
    ):
        console.print(f"Serving {ranker} and {retriever} over gRPC at {server.address}; status: {client.status()}")
        asked: dict[str, Any] = {"candidates": request.candidates, "history": request.history}
        client.rank(**asked)
        start = time.perf_counter()
        ranking = client.rank(**asked)
        milliseconds = 1e3 * (time.perf_counter() - start)
        explanation = client.explain(**asked)
        client.recommend(request.history, attributes=request.attributes)
        start = time.perf_counter()
        recommended = client.recommend(request.history, attributes=request.attributes)
        in_two_stages = 1e3 * (time.perf_counter() - start)
    if not np.array_equal(ranking.order[:FILMS_SHOWN], explanation.order[:FILMS_SHOWN]):
        raise RuntimeError("The signatures `rank` and `explain` disagree on the best films.")
    console.print(
        f"rank: {len(request.candidates['item_id']):,} candidates over {len(request.history['item_id'])} behaviours "
        f"in {milliseconds:.0f} ms, model version {ranking.model_version}"
    )
    show_answer(request, explanation)
    show_two_stages(request, explanation, recommended)
    console.print(f"recommend: {len(recommended.item_ids)} films retrieved and ranked in {in_two_stages:.0f} ms")
    # The same request as a file, for `python -m serving.client`.
    (output / "request.json").write_text(json.dumps(asked))


def show_two_stages(request: Request, explanation: Explanation, recommended: Recommendation) -> None:
    """Prints the best of what was retrieved, with the place of each among all films and in what was retrieved."""
    place_of = {request.candidates["item_id"][place]: rank for rank, place in enumerate(explanation.order, start=1)}
    found = {film: rank for rank, film in enumerate(recommended.item_ids, start=1)}
    best = recommended.best_first[:FILMS_SHOWN]
    table = Table(title=f"User {request.user_id}: the best of {len(found)} films retrieved")
    for name in ("", "film", "P(rating of 4 or 5)", "among all", "retrieved as"):
        table.add_column(name, justify="left" if name == "film" else "right")
    for rank, (film, place) in enumerate(zip(best, recommended.ranking.order, strict=False), start=1):
        probability = f"{recommended.ranking.probability[place]:.3f}"
        table.add_row(str(rank), film.decode(), probability, str(place_of[film.decode()]), str(found[film]))
    kept = sum(place_of[film.decode()] <= FILMS_SHOWN for film in best)
    console.print(table)
    console.print(f"Of the {FILMS_SHOWN} best of all films, these are {kept}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns 0 only if every step worked and ETA beat the short history."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python demo.py"
    )
    parser.add_argument("--data", metavar="DIR", help="folder of the official ml-1m; default: fetched and cached")
    parser.add_argument(
        "--epochs", type=int, default=EPOCHS, help=f"at most; training stops with validation (default: {EPOCHS})"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--max_rows", type=int, help="train and test on so many impressions, for a quick look")
    parser.add_argument("--output", type=Path, default=Path("build"), metavar="DIR", help="default: build")
    flags = parser.parse_args(arguments)
    # TensorFlow, which takes seconds: not for --help.
    import tensorflow as tf

    from benchmarks.two_stages.retriever import liked_films_retriever
    from keras_eta.export import export_model, export_retriever

    start = time.monotonic()
    output = flags.output / "demo"
    output.mkdir(parents=True, exist_ok=True)

    console.rule("data")
    films = movielens.load(flags.data)
    data = movielens_protocol(films, max_rows=flags.max_rows)
    results, logits, models = [], {}, {}
    for name, description in DESCRIPTIONS.items():
        console.rule(f"training: {description}")
        tf.keras.utils.set_random_seed(flags.seed)
        models[name] = make_ranker(name, data, task=True, cosine=True)
        trained = train(models[name], data, flags.seed, flags.epochs)
        logits[name] = predict(models[name], data, data.test)
        results.append(judged(models[name], data, trained, unit=name, seed=flags.seed, task=True, cosine=True))
    print_table(results)
    figure = output / "long_history.png"
    plot(figure, data, logits, models["eta"])
    console.print(f"Figure: {figure}")

    console.rule("training: TIGER, which finds candidates")
    retriever = liked_films_retriever(films, data, flags.seed, RETRIEVER_ROUNDS)

    console.rule("export, serve, ask")
    base_paths = {name: flags.output / "serving" / name for name in ("eta", "tiger")}
    console.print(f"Exported: {export_model(models['eta'], base_paths['eta'])}")
    console.print(f"Exported: {export_retriever(retriever, base_paths['tiger'], num_results=FILMS_RETRIEVED)}")
    ask(base_paths, make_request(films, data, flags.seed), output)

    console.print(
        f"\nDone in {(time.monotonic() - start) / 60:.1f} minutes. Next: `make serve`, and in another shell\n"
        f"  .venv/bin/python -m serving.client rank --request {output}/request.json --top 10"
    )
    return exit_code(*results)


def exit_code(recent: Result, eta: Result) -> int:
    """0 if ETA beat the short history in both measures; if not, 1, and a line that says so."""
    if eta.auc > recent.auc and eta.grouped_auc > recent.grouped_auc:
        return 0
    console.print(
        f"ETA (AUC {eta.auc:.4f}, grouped {eta.grouped_auc:.4f}) did not beat the short history "
        f"({recent.auc:.4f}, {recent.grouped_auc:.4f}).",
        style="red",
    )
    return 1


if __name__ == "__main__":
    quiet_imports()
    sys.exit(main())
