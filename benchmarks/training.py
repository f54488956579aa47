"""Time of one training step: ETA against the same model with full target attention, and against a longer history.

    python -m benchmarks.training

All contestants are measured in one run, in turn (A B A B ...), after a warm-up that traces and compiles; the table
gives the median and the spread of each, and the ratios of medians. Machines are noisy: quote ratios.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.progress import track
from rich.table import Table

from keras_eta import ETA, Feature, Features, Ranker, search

NUM_USERS = 6_040
SHORT_HISTORY_LENGTH = 50
NUM_HEADS = 4
HIDDEN_UNITS = (200, 80)
BATCHES = 4


def make_step(model: Ranker, rows: int, length: int) -> Callable[[], None]:
    """A function that runs one training step of a compiled model on the next of a few random batches."""
    generator = np.random.default_rng(0)
    items = model.features.item_id.num_indices

    def batch() -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        inputs = {
            "user_id": generator.integers(1, NUM_USERS, rows),
            "item_id": generator.integers(1, items, rows),
            "history_item_id": generator.integers(1, items, (rows, length)),
            "history_length": np.full(rows, length),
        }
        return {k: tf.constant(v, tf.int32) for k, v in inputs.items()}, tf.constant(generator.integers(0, 2, rows))

    batches = [batch() for _ in range(BATCHES)]
    train_step = tf.function(model.train_step, autograph=False)
    calls = iter(range(1_000_000))

    def step() -> None:
        train_step(batches[next(calls) % BATCHES])["loss"].numpy()

    return step


def make_model(kind: str, length: int, flags: argparse.Namespace) -> Ranker:
    """One contestant, compiled with the default optimisers."""
    features = Features(
        item_id=Feature("item_id", embedding_dim=flags.dim, vocabulary_size=flags.items),
        user=(Feature("user_id", embedding_dim=flags.dim, vocabulary_size=NUM_USERS),),
        max_history_length=length,
    )
    shared: dict[str, Any] = {
        "short_history_length": SHORT_HISTORY_LENGTH,
        "num_heads": NUM_HEADS,
        "hidden_units": HIDDEN_UNITS,
    }
    if kind == "full":
        model = Ranker(features, search_unit=search.FullSearch(), **shared)
    else:
        learned = kind == "eta-learned"
        model = ETA(
            features,
            top_k=flags.top_k,
            num_bits=flags.bits,
            similarity_bias=learned,
            trainable_planes=learned,
            **shared,
        )
    model.compile()
    return model


def main() -> None:
    """Measures, prints a table and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m benchmarks.training"
    )
    parser.add_argument("--rows", type=int, default=256, help="N, rows a batch (default: 256)")
    parser.add_argument("--dim", type=int, default=64, help="D, width of embeddings (default: 64)")
    parser.add_argument("--bits", type=int, default=64, help="M, bits of a fingerprint (default: 64)")
    parser.add_argument("--top_k", type=int, default=48, help="K, behaviours retrieved (default: 48)")
    parser.add_argument("--items", type=int, default=200_000, help="vocabulary of items (default: 200,000)")
    parser.add_argument("--rounds", type=int, default=15, help="steps measured of each contestant (default: 15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there instead of printing it")
    flags = parser.parse_args()

    contestants = [("eta", 1024), ("full", 1024), ("eta", 4096), ("eta-learned", 1024)]
    steps = {}
    for kind, length in track(contestants, description="tracing"):
        step = make_step(make_model(kind, length, flags), flags.rows, length)
        for _ in range(3):
            step()
        steps[kind, length] = step
    times: dict[tuple[str, int], list[float]] = {contestant: [] for contestant in contestants}
    for _ in track(range(flags.rounds), description="measuring"):
        for contestant, step in steps.items():
            start = time.perf_counter()
            step()
            times[contestant].append(1e3 * (time.perf_counter() - start))

    medians = {contestant: float(np.median(values)) for contestant, values in times.items()}
    base = medians["eta", 1024]
    table = Table(title=f"training step, N={flags.rows} D={flags.dim} M={flags.bits} K={flags.top_k} V={flags.items:,}")
    for column in ("model", "L", "median ms", "10 % to 90 %", "over eta, L=1024"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for (kind, length), values in times.items():
        low, high = np.percentile(values, [10, 90])
        ratio = medians[kind, length] / base
        table.add_row(kind, str(length), f"{medians[kind, length]:.1f}", f"{low:.1f} to {high:.1f}", f"{ratio:.2f}")
    Console().print(table)
    report = {
        "settings": {name: value for name, value in vars(flags).items() if name != "json"},
        "median_ms": {f"{kind} L={length}": median for (kind, length), median in medians.items()},
        "full_over_eta_at_1024": medians["full", 1024] / base,
        "eta_at_4096_over_1024": medians["eta", 4096] / base,
    }
    text = json.dumps(report, indent=2)
    if flags.json:
        flags.json.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
