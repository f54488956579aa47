"""Time of one training step: ETA against the same model with full attention or inner-product search, by length.

    python -m benchmarks.training

All contestants are measured in one run, in turn (A B A B ...), after a warm-up that traces and compiles; the table
gives the median and the spread of each, and the ratios of medians. Machines are noisy: quote ratios.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from rich.console import Console

from benchmarks.timing import measure, summary, table
from keras_eta import ETA, Feature, Features, Ranker, search

NUM_USERS = 6_040
SHORT_HISTORY_LENGTH = 50
NUM_HEADS = 4
HIDDEN_UNITS = (200, 80)
BATCHES = 4


Batch = tuple[dict[str, tf.Tensor], tf.Tensor]


def random_batches(model: Ranker, rows: int, length: int, count: int = BATCHES) -> list[Batch]:
    """A few batches of random indices, in memory."""
    generator = np.random.default_rng(0)
    items = model.features.item_id.num_indices

    def batch() -> Batch:
        inputs = {
            "user_id": generator.integers(1, NUM_USERS, rows, np.int32),
            "item_id": generator.integers(1, items, rows, np.int32),
            "history_item_id": generator.integers(1, items, (rows, length), np.int32),
            "history_length": np.full(rows, length, np.int32),
        }
        return {name: tf.constant(x) for name, x in inputs.items()}, tf.constant(generator.integers(0, 2, rows))

    return [batch() for _ in range(count)]


def make_step(model: Ranker, batches: Iterator[Batch]) -> Callable[[], None]:
    """A function that runs one training step of a compiled model on the next batch."""
    train_step = tf.function(model.train_step, autograph=False)

    def step() -> None:
        train_step(next(batches))["loss"].numpy()

    return step


def make_model(kind: str, length: int, flags: argparse.Namespace, **changes: Any) -> Ranker:
    """One contestant, compiled with the default optimisers; `changes` are further arguments of the model."""
    features = Features(
        item_id=Feature("item_id", embedding_dim=flags.dim, vocabulary_size=flags.items),
        user=(Feature("user_id", embedding_dim=flags.dim, vocabulary_size=NUM_USERS),),
        max_history_length=length,
    )
    shared: dict[str, Any] = {
        "short_history_length": SHORT_HISTORY_LENGTH,
        "num_heads": NUM_HEADS,
        "hidden_units": HIDDEN_UNITS,
        **changes,
    }
    if kind == "full":
        model = Ranker(features, search_unit=search.FullSearch(), **shared)
    elif kind == "inner-product":
        model = Ranker(features, search_unit=search.InnerProductSearch(flags.top_k), **shared)
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
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096], metavar="L", help="default: 1024 4096")
    parser.add_argument("--rounds", type=int, default=15, help="steps measured of each contestant (default: 15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there instead of printing it")
    flags = parser.parse_args()

    contestants = [
        (kind, length) for length in flags.lengths for kind in ("eta", "eta-learned", "inner-product", "full")
    ]
    steps = {}
    for kind, length in contestants:
        model = make_model(kind, length, flags)
        steps[f"{kind} L={length}"] = make_step(model, itertools.cycle(random_batches(model, flags.rows, length)))
    base = f"eta L={flags.lengths[0]}"
    rows = summary(measure(steps, flags.rounds), base)
    title = f"training step, N={flags.rows} D={flags.dim} M={flags.bits} K={flags.top_k} V={flags.items:,}"
    Console().print(table(title, rows, base))
    settings = {name: value for name, value in vars(flags).items() if name != "json"}
    report = {"settings": settings, "steps": rows}
    text = json.dumps(report, indent=2)
    if flags.json:
        flags.json.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
