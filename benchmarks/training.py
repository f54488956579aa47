"""Time of one training step: ETA against the same model with full attention or inner-product search, by length.

    python -m benchmarks.training
    python -m benchmarks.training --lengths 256 1024 4096 --plot training.png --json training.json

ETA is also measured with planes that are learned and move at every step, in mixed precision (bfloat16), and with the
whole step compiled by XLA. Two models search nothing: one attends to as many behaviours as ETA, the most recent, the
other has no long history and shows what no search can go below. All contestants of all lengths are measured in one run,
in turn (A B A B ...), after a warm-up that traces and compiles; the tables give the median and the spread of each, and
the ratios of medians. Machines are noisy: quote ratios.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from rich.console import Console

from benchmarks.flags import make_parser, write_json
from benchmarks.timing import draw, measure, summary, table
from keras_eta import ETA, Feature, Features, Ranker, search

NUM_USERS = 6_040
SHORT_HISTORY_LENGTH = 50
NUM_HEADS = 4
HIDDEN_UNITS = (200, 80)
BATCHES = 4
BFLOAT16, XLA = "eta-bfloat16", "eta-xla"
KINDS = ("eta", "eta-learned", BFLOAT16, XLA, "inner-product", "full", "recent-only", "no-long-history")


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


def make_step(model: Ranker, batches: Iterator[Batch], jit_compile: bool = False) -> Callable[[], None]:
    """A function that runs one training step of a compiled model on the next batch."""
    train_step = tf.function(model.train_step, autograph=False, jit_compile=jit_compile)

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
    if kind == "no-long-history":
        model = Ranker(features, **shared)
    elif kind == "recent-only":
        model = Ranker(features, **{**shared, "short_history_length": SHORT_HISTORY_LENGTH + flags.top_k})
    elif kind == "full":
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
    """Measures, prints tables and JSON."""
    parser = make_parser("training", __doc__)
    parser.add_argument("--rows", type=int, default=256, help="N, rows a batch (default: 256)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096], metavar="L", help="default: 1024 4096")
    parser.add_argument("--rounds", type=int, default=15, help="steps measured of each contestant (default: 15)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw times against L")
    flags = parser.parse_args()

    contestants = list(itertools.product(KINDS, flags.lengths))
    steps = {}
    for kind, length in contestants:
        tf.keras.mixed_precision.set_global_policy("mixed_bfloat16" if kind == BFLOAT16 else "float32")
        model = make_model(kind, length, flags)
        batches = itertools.cycle(random_batches(model, flags.rows, length))
        steps[f"{kind} {length}"] = make_step(model, batches, jit_compile=kind == XLA)
    tf.keras.mixed_precision.set_global_policy("float32")
    times = measure(steps, flags.rounds)
    report = {}
    for length in flags.lengths:
        rows = summary({kind: times[f"{kind} {length}"] for kind in KINDS}, "eta")
        report[str(length)] = rows
        sizes = f"N={flags.rows} L={length:,} D={flags.dim} M={flags.bits} K={flags.top_k} V={flags.items:,}"
        Console().print(table(f"training step, {sizes}", rows, "eta"))
    if flags.plot:
        draw({f"training step, N = {flags.rows}": report}, flags.plot)
    write_json({"steps": report}, flags)


if __name__ == "__main__":
    main()
