"""Does the long history pay? Rankers on MovieLens-1M: label = rating of 4 or 5, temporal 80/10/10 split.

    python -m benchmarks.movielens --models short eta --seeds 0 1 2

Every rating with at least 5 earlier ones by the user is an impression; its history is the user's earlier ratings (film
and liked or not), those of the same second left out. All models share the features, the short history, the MLP, the
optimisers and the number of epochs; they differ in what of the long history they read. Nothing is tuned on the test
part.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from keras_eta import ETA, FeatureLookup, Ranker, metrics
from keras_eta.datasets import movielens
from keras_eta.datasets.impressions import Impressions, temporal_split
from keras_eta.interest import FullInterest, InnerProductInterest, RecentInterest

BATCH_SIZE = 512
LONG_HISTORY = 200
EMBEDDING_LEARNING_RATE = 0.1


def _eta_with_period(lookup: FeatureLookup, seed: int, period: int) -> ETA:
    return ETA(
        lookup=lookup,
        seed=seed,
        similarity_bias=True,
        trainable_planes=True,
        planes_period=period,
        name=f"eta_period_{period}",
    )


MODELS: dict[str, Callable[[FeatureLookup, int], Ranker]] = {
    "short": lambda lookup, seed: Ranker(lookup=lookup, interests=[RecentInterest()], name="short"),
    "eta": lambda lookup, seed: ETA(lookup=lookup, seed=seed, similarity_bias=True, trainable_planes=True, name="eta"),
    "eta-period-8": lambda lookup, seed: _eta_with_period(lookup, seed, 8),
    "eta-period-64": lambda lookup, seed: _eta_with_period(lookup, seed, 64),
    "eta-fixed-planes": lambda lookup, seed: ETA(lookup=lookup, seed=seed, name="eta_fixed_planes"),
    "inner-product": lambda lookup, seed: Ranker(
        lookup=lookup, interests=[RecentInterest(), InnerProductInterest()], name="inner_product"
    ),
    "full": lambda lookup, seed: Ranker(lookup=lookup, interests=[RecentInterest(), FullInterest()], name="full"),
}

DESCRIPTIONS = {
    "short": "target attention over the last 16",
    "eta": "ETA: 48 of 512, learned planes",
    "eta-period-8": "ETA: 48 of 512, planes that move every 8 steps",
    "eta-period-64": "ETA: 48 of 512, planes that move every 64 steps",
    "eta-fixed-planes": "ETA: 48 of 512, fixed planes",
    "inner-product": "inner-product top 48 of 512",
    "full": "target attention over all 512",
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The data in its three parts, and the vocabularies of the training part."""

    data: movielens.MovieLens
    train: Impressions
    validation: Impressions
    test: Impressions
    lookup: FeatureLookup


@dataclasses.dataclass(frozen=True)
class Result:
    """Metrics of one trained model, of the test part but for the first.

    Those with `long` are over impressions with 200 or more earlier ratings.
    """

    model: str
    seed: int
    auc_validation: float
    auc: float
    grouped_auc: float
    log_loss: float
    auc_long: float
    grouped_auc_long: float
    log_loss_long: float
    training_seconds: float


def load_protocol(path: str | None = None, max_rows: int | None = None) -> Protocol:
    """Loads MovieLens-1M and splits it.

    Args:
        path: folder of the official data set. `None`: fetched.
        max_rows: cuts each part to its first rows at random, for a quick look. `None`: everything.
    """
    data = movielens.load(path)
    train, validation, test = temporal_split(movielens.impressions(data))
    if max_rows is not None:
        train, validation, test = (part.sample(min(max_rows, len(part))) for part in (train, validation, test))
    lookup = FeatureLookup(movielens.features())
    # Users and films of the training period; whoever comes later is out of vocabulary, as in production.
    past = data.interactions["timestamp"] <= train.columns["timestamp"].max()
    lookup.adapt({name: data.interactions[name][past] for name in ("user_id", "item_id", "liked")})
    return Protocol(data, train, validation, test, lookup)


def train(
    model: Ranker, protocol: Protocol, epochs: int, seed: int, embedding_learning_rate: float = EMBEDDING_LEARNING_RATE
) -> float:
    """Trains a model and returns the seconds it took, tracing included."""
    features, lookup = protocol.lookup.features, protocol.lookup
    batches = protocol.train.to_dataset(features, BATCH_SIZE, lookup=lookup, shuffle=True, seed=seed)
    model.compile(model.default_optimizer(embedding_learning_rate))
    start = time.perf_counter()
    model.fit(batches, epochs=epochs, verbose=1 if sys.stdout.isatty() else 2)
    return time.perf_counter() - start


def predict(model: Ranker, protocol: Protocol, impressions: Impressions) -> np.ndarray:
    """Logits [n] of impressions."""
    batches = impressions.to_dataset(protocol.lookup.features, 8 * BATCH_SIZE, lookup=protocol.lookup)
    return np.ravel(model.predict(batches, verbose=0))


def evaluate(
    name: str, seed: int, model: Ranker, protocol: Protocol, training_seconds: float
) -> tuple[Result, np.ndarray]:
    """Metrics of a trained model, and its logits [n] of the test part."""
    validation, test = protocol.validation, protocol.test
    logits = predict(model, protocol, test)
    scores = {"auc_validation": metrics.auc(validation.label, predict(model, protocol, validation))}
    for suffix, rows in (("", slice(None)), ("_long", test.history_counts >= LONG_HISTORY)):
        label, part = test.label[rows], logits[rows]
        scores[f"auc{suffix}"] = metrics.auc(label, part)
        scores[f"grouped_auc{suffix}"] = metrics.grouped_auc(label, part, test.columns["user_id"][rows])
        scores[f"log_loss{suffix}"] = metrics.log_loss(label, part)
    return Result(name, seed, **scores, training_seconds=training_seconds), logits


def print_results(results: Sequence[Result]) -> None:
    """Prints results as a table, with the mean of each model's seeds where there are several."""
    table = Table(
        title="MovieLens-1M, test part (and AUC of the validation part)",
        caption=f"long: {LONG_HISTORY} or more earlier ratings",
    )
    table.add_column("model")
    table.add_column("seed")
    for column in (
        "validation AUC",
        "AUC",
        "grouped AUC",
        "log loss",
        "AUC long",
        "grouped AUC long",
        "log loss long",
        "training",
    ):
        table.add_column(column, justify="right")
    for name in dict.fromkeys(result.model for result in results):
        own = [result for result in results if result.model == name]
        for result in own:
            _add_row(table, result, str(result.seed))
        if len(own) > 1:
            fields = [f.name for f in dataclasses.fields(Result) if f.name not in ("model", "seed")]
            mean = {field: float(np.mean([getattr(result, field) for result in own])) for field in fields}
            _add_row(table, Result(name, -1, **mean), "mean")
            table.add_section()
    Console(width=160).print(table)


def _add_row(table: Table, result: Result, seed: str) -> None:
    scores = (
        result.auc_validation,
        result.auc,
        result.grouped_auc,
        result.log_loss,
        result.auc_long,
        result.grouped_auc_long,
        result.log_loss_long,
    )
    cells = [f"{score:.4f}" for score in scores]
    table.add_row(DESCRIPTIONS[result.model], seed, *cells, f"{result.training_seconds:.0f} s")


def main() -> None:
    """Trains each model with each seed and prints a table; `--json` writes the numbers as well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m benchmarks.movielens"
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["short", "eta"], help="default: short eta")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--epochs", type=int, default=2, help="default: 2")
    parser.add_argument(
        "--embedding_learning_rate",
        type=float,
        default=EMBEDDING_LEARNING_RATE,
        metavar="RATE",
        help=f"Adagrad's, for all models (default: {EMBEDDING_LEARNING_RATE})",
    )
    parser.add_argument("--data", metavar="DIR", help="folder of the official ml-1m; default: fetched")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    flags = parser.parse_args()
    protocol = load_protocol(flags.data)
    results = []
    for seed in flags.seeds:
        for name in flags.models:
            tf.keras.utils.set_random_seed(seed)
            model = MODELS[name](protocol.lookup, seed)
            print(f"{DESCRIPTIONS[name]}, seed {seed}", flush=True)
            seconds = train(model, protocol, flags.epochs, seed, flags.embedding_learning_rate)
            results.append(evaluate(name, seed, model, protocol, seconds)[0])
            print(f"test AUC {results[-1].auc:.4f}", flush=True)
    print_results(results)
    if flags.json:
        flags.json.parent.mkdir(parents=True, exist_ok=True)
        flags.json.write_text(json.dumps([dataclasses.asdict(result) for result in results], indent=2))


if __name__ == "__main__":
    main()
