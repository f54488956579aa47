"""Time of one `rank` request and of its search alone: one user, C candidates, one shared history of L behaviours.

    python -m benchmarks.retrieval
    python -m benchmarks.retrieval --lengths 1024 4096 --plot request.png --json request.json

The request: ETA with its search compiled by XLA (`export_model(jit_compile=True)`) and without, the same model with
full attention, with exact inner-product search, and ETA asked for C rows that each carry the history. The search:
Hamming top-k by counting (XLA) and by sorting, against a matmul and top-k over the embeddings. All contestants of a
length are measured in one run, in turn, after a warm-up that traces and compiles. Machines are noisy: quote ratios.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from rich.console import Console

from benchmarks.timing import draw, measure, summary, table
from benchmarks.training import make_model
from keras_eta import Ranker, ops

_IDS = tf.TensorSpec([None, None], tf.int32)
_ROWS = tf.TensorSpec([None], tf.int32)
# Beyond this the rows of the pointwise request do not fit in memory.
_LONGEST_POINTWISE = 4_096
REQUEST, SEARCH = "ETA, XLA", "counting, XLA"


def requests(flags: argparse.Namespace, length: int) -> dict[str, Callable[[], object]]:
    """Calls of the whole model, from indices to logits."""
    generator = np.random.default_rng(0)
    inputs = {
        "user_id": tf.constant([3]),
        "item_id": tf.constant(generator.integers(1, flags.items, (1, flags.candidates)), tf.int32),
        "history_item_id": tf.constant(generator.integers(1, flags.items, (1, length)), tf.int32),
        "history_length": tf.constant([length]),
    }
    rows = {name: tf.repeat(column, flags.candidates, axis=0) for name, column in inputs.items()}
    rows["item_id"] = tf.transpose(inputs["item_id"])

    def call(model: Ranker, inputs: dict[str, tf.Tensor], jit_compile: bool = False) -> Callable[[], object]:
        columns = {name: _IDS if value.shape.rank == 2 else _ROWS for name, value in inputs.items()}
        if inputs is rows:
            columns["item_id"] = tf.TensorSpec([None, 1], tf.int32)
        function = tf.function(
            lambda columns: model.score(columns, jit_compile=jit_compile).logits,
            input_signature=[columns],
            autograph=False,
        )
        return lambda: function(inputs).numpy()

    models = {kind: make_model(kind, length, flags) for kind in ("eta", "full", "inner-product")}
    for model in models.values():
        model.build()
    models["eta"].search_unit.refresh()
    contestants = {
        REQUEST: call(models["eta"], inputs, jit_compile=True),
        "ETA": call(models["eta"], inputs),
        "full attention": call(models["full"], inputs),
        "inner product": call(models["inner-product"], inputs),
    }
    if length <= _LONGEST_POINTWISE:
        contestants["ETA, C rows"] = call(models["eta"], rows)
    return contestants


def searches(flags: argparse.Namespace, length: int) -> dict[str, Callable[[], object]]:
    """Calls of the search alone, from fingerprints or embeddings to positions."""
    generator = np.random.default_rng(0)
    words = ops.num_words(flags.bits)
    candidate, history = (
        tf.constant(generator.integers(-(2**63), 2**63, (1, size, words))) for size in (flags.candidates, length)
    )
    query, behaviours = (tf.random.normal([1, size, flags.dim]) for size in (flags.candidates, length))
    fingerprints = [tf.TensorSpec([None, None, words], tf.int64)] * 2
    vectors = [tf.TensorSpec([None, None, flags.dim])] * 2

    def hamming(jit_compile: bool) -> Callable[[], object]:
        function = tf.function(
            lambda candidate, history: (
                ops.hamming_top_k(candidate, history, flags.top_k, sorted=False, jit_compile=jit_compile).positions
            ),
            input_signature=fingerprints,
            autograph=False,
        )
        return lambda: function(candidate, history).numpy()

    inner = tf.function(
        lambda query, behaviours: tf.math.top_k(tf.matmul(query, behaviours, transpose_b=True), flags.top_k)[1],
        input_signature=vectors,
        autograph=False,
    )
    return {
        SEARCH: hamming(True),
        "sorting": hamming(False),
        "matmul + top_k": lambda: inner(query, behaviours).numpy(),
    }


def main() -> None:
    """Measures, prints tables and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m benchmarks.retrieval"
    )
    lengths = [1_024, 4_096, 10_240, 65_536]
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths, metavar="L", help=f"default: {lengths}")
    parser.add_argument("--candidates", type=int, default=500, metavar="C", help="candidates (default: 500)")
    parser.add_argument("--dim", type=int, default=64, help="D, width of embeddings (default: 64)")
    parser.add_argument("--bits", type=int, default=64, help="M, bits of a fingerprint (default: 64)")
    parser.add_argument("--top_k", type=int, default=48, help="K, behaviours retrieved (default: 48)")
    parser.add_argument("--items", type=int, default=200_000, help="vocabulary of items (default: 200,000)")
    parser.add_argument("--rounds", type=int, default=15, help="calls measured of each contestant (default: 15)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw times against L")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there instead of printing it")
    flags = parser.parse_args()

    report: dict[str, dict[str, dict[str, dict[str, float]]]] = {"request": {}, "search": {}}
    for length in flags.lengths:
        for kind, make, base in (("request", requests, REQUEST), ("search", searches, SEARCH)):
            rows = summary(measure(make(flags, length), flags.rounds), base)
            report[kind][str(length)] = rows
            Console().print(table(f"{kind}, C={flags.candidates} L={length:,}", rows, base))
            tf.keras.backend.clear_session()
    if flags.plot:
        draw({f"{kind}, C = {flags.candidates}": lengths for kind, lengths in report.items()}, flags.plot)
    settings = {name: value for name, value in vars(flags).items() if name not in ("json", "plot")}
    text = json.dumps({"settings": settings, **report}, indent=2)
    if flags.json:
        flags.json.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
