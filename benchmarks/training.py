"""Time of one training step by the length of the history: ETA against every other interest unit.

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
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from rich.console import Console

import keras_eta
from benchmarks.flags import make_parser, write_json
from benchmarks.timing import draw, measure, summary, table
from keras_eta import Feature, Features, Sequence
from keras_eta.quiet import quiet_imports

if TYPE_CHECKING:
    import tensorflow as tf

    from keras_eta import Ranker
    from keras_eta.interest import InterestUnit

NUM_USERS = 6_040
NUM_CATEGORIES = 1_000
SHORT_HISTORY_LENGTH = 50
NUM_HEADS = 4
HIDDEN_UNITS = (200, 80)
BATCHES = 4
BFLOAT16, XLA = "eta-bfloat16", "eta-xla"
# The units beside the short history, of K behaviours and with these heads.
UNITS: dict[str, Callable[[int, dict[str, Any]], list[InterestUnit]]] = {
    "sdim": lambda top_k, heads: [keras_eta.interest.SDIM()],
    "sim-hard": lambda top_k, heads: [keras_eta.interest.SIMHard(top_k, **heads)],
    "sim-soft": lambda top_k, heads: [keras_eta.interest.SIMSoft(top_k, **heads)],
    "twin": lambda top_k, heads: [keras_eta.interest.TWIN(top_k, **heads)],
    "twin-v2": lambda top_k, heads: [keras_eta.interest.TWINV2(top_k, **heads)],
    "mimn-100": lambda top_k, heads: [keras_eta.interest.MIMN()],
    "inner-product": lambda top_k, heads: [keras_eta.interest.InnerProductInterest(top_k, **heads)],
    "full": lambda top_k, heads: [keras_eta.interest.FullInterest(**heads)],
    "pooling": lambda top_k, heads: [keras_eta.interest.PoolingInterest()],
    "recent-only": lambda top_k, heads: [],
    "no-long-history": lambda top_k, heads: [],
}
KINDS = ("eta", "eta-learned", BFLOAT16, XLA, *UNITS)
# Behaviours per cluster of TWIN-V2.
CLUSTER_SIZE = 10

Batch: TypeAlias = "tuple[dict[str, tf.Tensor], tf.Tensor]"


def random_batches(model: Ranker, rows: int, length: int, count: int = BATCHES) -> list[Batch]:
    """A few batches of random indices, in memory."""
    import tensorflow as tf

    generator = np.random.default_rng(0)

    def batch() -> Batch:
        inputs = {"user_id": generator.integers(1, NUM_USERS, rows, np.int32)}
        for feature in model.features.item_features:
            inputs[feature.name] = generator.integers(1, feature.num_indices, rows, np.int32)
        inputs |= random_behaviours(model, rows, length, generator)
        return {name: tf.constant(x) for name, x in inputs.items()}, tf.constant(generator.integers(0, 2, rows))

    return [batch() for _ in range(count)]


def random_behaviours(model: Ranker, rows: int, length: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Random columns of every sequence, as long as the model reads them."""
    columns: dict[str, np.ndarray] = {}
    for sequence in model.features.all_sequences:
        shape = rows, min(length, sequence.max_length)
        columns[sequence.length] = np.full(rows, shape[1], np.int32)
        for feature in model.features.sequence_features(sequence):
            columns[sequence.column(feature.name)] = (
                generator.integers(1, feature.num_indices, shape, np.int32)
                if feature.is_id
                else generator.integers(1, 20, shape).astype(np.float32)
            )
    return columns


def make_step(model: Ranker, batches: Iterator[Batch], jit_compile: bool = False) -> Callable[[], None]:
    """A function that runs one training step of a compiled model on the next batch."""
    import tensorflow as tf

    train_step = tf.function(model.train_step, autograph=False, jit_compile=jit_compile)

    def step() -> None:
        train_step(next(batches))["loss"].numpy()

    return step


def make_model(kind: str, length: int, flags: argparse.Namespace, category: bool = False, **changes: Any) -> Ranker:
    """One contestant, compiled with the default optimisers.

    Args:
        kind: of `KINDS`.
        length: L, behaviours that the model reads.
        flags: sizes.
        category: whether a quarter of the item's width is a category's, which `sim-hard` needs.
        **changes: further arguments of the model.
    """
    attribute_dim = flags.dim // 4 if category else 0
    clusters = Sequence("clusters", (Feature("size", "float32"),), max_length=max(length // CLUSTER_SIZE, 1))
    features = Features(
        item_id=Feature("item_id", embedding_dim=flags.dim - attribute_dim, vocabulary_size=flags.items),
        item_attributes=(Feature("category_id", embedding_dim=attribute_dim, vocabulary_size=NUM_CATEGORIES),)
        if attribute_dim
        else (),
        user=(Feature("user_id", embedding_dim=flags.dim, vocabulary_size=NUM_USERS),),
        max_history_length=length,
        sequences=(clusters,) if kind == "twin-v2" else (),
    )
    shared: dict[str, Any] = {"hidden_units": HIDDEN_UNITS, **changes}
    heads: dict[str, Any] = {"num_heads": NUM_HEADS}
    if kind.startswith("eta"):
        learned = kind == "eta-learned"
        model: Ranker = keras_eta.ETA(
            features,
            short_history_length=SHORT_HISTORY_LENGTH,
            top_k=flags.top_k,
            num_bits=flags.bits,
            similarity_bias=learned,
            trainable_planes=learned,
            cosine=False,
            matches=False,
            retrieval_task=None,
            **heads,
            **shared,
        )
    else:
        recent_only = kind == "recent-only"
        recent = keras_eta.interest.RecentInterest(SHORT_HISTORY_LENGTH + (flags.top_k if recent_only else 0), **heads)
        model = keras_eta.Ranker(features, interests=[recent, *UNITS[kind](flags.top_k, heads)], **shared)
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
    # Takes seconds: not for --help.
    import tensorflow as tf

    contestants = list(itertools.product(KINDS, flags.lengths))
    steps = {}
    for kind, length in contestants:
        tf.keras.mixed_precision.set_global_policy("mixed_bfloat16" if kind == BFLOAT16 else "float32")
        model = make_model(kind, length, flags, category=True)
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
    quiet_imports()
    main()
