"""Time of one `rank` request and of its search alone: one user, C candidates, one shared history of L behaviours.

    python -m benchmarks.retrieval --plot request.png
    python -m benchmarks.retrieval --candidates 50 200 500 2000 --lengths 256 1024 4096 10240 --map map.png

The request: ETA with its search compiled by XLA (`export_model(jit_compile=True)`) and without, every other interest
unit in its place, and ETA asked for C rows that each carry the history. The same under
traffic: the time that a request takes of a machine that as many callers as `--callers` keep busy. The search: Hamming
top-k by counting (XLA) and by sorting, against a matmul and top-k over the embeddings, ten in a row in one graph, so
that the call from Python is not what is measured. All contestants of a length are measured in one run, in turn, after a
warm-up that traces and compiles. Machines are noisy: quote ratios.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

import keras_eta
from benchmarks.flags import make_parser, write_json
from benchmarks.timing import draw, measure, summary, table
from benchmarks.training import make_model, random_behaviours
from keras_eta.quiet import quiet_imports

if TYPE_CHECKING:
    import tensorflow as tf

    from keras_eta import Ranker

SEARCHES = 10
# Beyond this the rows of the pointwise request do not fit in memory.
_LARGEST_POINTWISE = 500 * 4_096
REQUEST, STOCK, FULL = "ETA, XLA", "ETA", "full attention"
UNITS = {
    "full": FULL,
    "inner-product": "inner product",
    "sim-hard": "SIM hard",
    "sim-soft": "SIM soft",
    "twin": "TWIN",
    "twin-v2": "TWIN-V2, clusters of 10",
    "sdim": "SDIM",
    "mimn-100": "MIMN, last 100",
    "pooling": "pooling",
    "no-long-history": "no long history",
}
POINTWISE, SEARCH = "ETA, C rows", "counting, XLA"

Calls = dict[str, Callable[[], object]]
# Kind of call -> C -> L -> a `summary`.
Report = dict[str, dict[str, dict[str, dict[str, dict[str, float]]]]]


def requests(flags: argparse.Namespace, candidates: int, length: int) -> Calls:
    """Calls of the whole model, from indices to logits."""
    import tensorflow as tf

    def inputs(model: Ranker) -> dict[str, tf.Tensor]:
        generator = np.random.default_rng(0)
        columns = {"user_id": tf.constant([3])}
        for feature in model.features.item_features:
            drawn = generator.integers(1, feature.num_indices, (1, candidates))
            columns[feature.name] = tf.constant(drawn, tf.int32)
        behaviours = random_behaviours(model, 1, length, generator)
        return columns | {name: tf.constant(column) for name, column in behaviours.items()}

    def call(model: Ranker, jit_compile: bool = False, pointwise: bool = False) -> Callable[[], object]:
        values = inputs(model)
        columns = {name: tf.TensorSpec([None] * value.shape.rank, value.dtype) for name, value in values.items()}
        if pointwise:
            items = {feature.name: tf.transpose(values[feature.name]) for feature in model.features.item_features}
            values = {name: tf.repeat(column, candidates, axis=0) for name, column in values.items()} | items
            columns |= {name: tf.TensorSpec([None, 1], tf.int32) for name in items}
        function = tf.function(
            lambda columns: model.score(columns, jit_compile=jit_compile).logits,
            input_signature=[columns],
            autograph=False,
        )
        return lambda: function(values).numpy()

    models = {kind: make_model(kind, length, flags, category=True) for kind in ("eta", *UNITS)}
    for model in models.values():
        model.build()
    models["eta"].interests[-1].refresh()
    contestants = {
        REQUEST: call(models["eta"], jit_compile=True),
        STOCK: call(models["eta"]),
        **{name: call(models[kind]) for kind, name in UNITS.items()},
    }
    if length * candidates <= _LARGEST_POINTWISE:
        contestants[POINTWISE] = call(models["eta"], pointwise=True)
    return contestants


def traffic(contestants: Calls, pool: ThreadPoolExecutor, callers: int) -> Calls:
    """Calls of `requests`, each made by all callers at once."""

    def together(call: Callable[[], object]) -> Callable[[], object]:
        return lambda: [made.result() for made in [pool.submit(call) for _ in range(callers)]]

    return {name: together(call) for name, call in contestants.items() if name != POINTWISE}


def searches(flags: argparse.Namespace, candidates: int, length: int) -> Calls:
    """Calls of `SEARCHES` searches alone, from fingerprints or embeddings to positions."""
    import tensorflow as tf

    generator = np.random.default_rng(0)
    words = keras_eta.ops.num_words(flags.bits)

    def fingerprints(*shape: int) -> tf.Tensor:
        return tf.constant(generator.integers(-(2**63), 2**63, (*shape, words)))

    def vectors(*shape: int) -> tf.Tensor:
        return tf.random.normal([*shape, flags.dim])

    def one_after_the_other(
        search: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], make: Callable[..., tf.Tensor]
    ) -> Callable[[], object]:
        queries, history = make(SEARCHES, 1, candidates), make(1, length)
        unknown = [tf.TensorSpec([None] * x.shape[:-1].rank + [x.shape[-1]], x.dtype) for x in (queries, history)]

        @tf.function(input_signature=unknown, autograph=False)
        def run(queries: tf.Tensor, history: tf.Tensor) -> tf.Tensor:
            return tf.map_fn(
                lambda query: search(query, history), queries, fn_output_signature=tf.int32, parallel_iterations=1
            )

        return lambda: run(queries, history).numpy()

    def hamming(jit_compile: bool) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
        return lambda candidate, history: (
            keras_eta.ops.hamming_top_k(
                candidate, history, flags.top_k, sorted=False, jit_compile=jit_compile
            ).positions
        )

    def inner(query: tf.Tensor, behaviours: tf.Tensor) -> tf.Tensor:
        return tf.math.top_k(tf.matmul(query, behaviours, transpose_b=True), flags.top_k).indices

    return {
        SEARCH: one_after_the_other(hamming(True), fingerprints),
        "sorting": one_after_the_other(hamming(False), fingerprints),
        "matmul + top_k": one_after_the_other(inner, vectors),
    }


def draw_map(report: Report, path: Path) -> None:
    """How many times as long as ETA full attention takes, by C and L, alone and under traffic."""
    kinds = ("request", "traffic")
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2), kinds, strict=True):
        candidates, lengths = list(report[kind]), list(next(iter(report[kind].values())))
        ratios = np.array(
            [
                [row[FULL]["median_ms"] / row[REQUEST]["median_ms"] for row in of.values()]
                for of in report[kind].values()
            ]
        )
        axes.imshow(np.log2(ratios), cmap="RdYlGn", vmin=-4, vmax=4, aspect="auto", origin="lower")
        for (y, x), ratio in np.ndenumerate(ratios):
            axes.text(x, y, f"{ratio:.1f}", ha="center", va="center")
        axes.set_xticks(range(len(lengths)), [f"{int(length):,}" for length in lengths])
        axes.set_yticks(range(len(candidates)), [f"{int(count):,}" for count in candidates])
        title = f"full attention over {REQUEST}: {'one caller' if kind == 'request' else 'all cores busy'}"
        axes.set(xlabel="L, behaviours", ylabel="C, candidates", title=title)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measures, prints tables and JSON."""
    parser = make_parser("retrieval", __doc__)
    lengths = [1_024, 4_096, 10_240, 65_536]
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths, metavar="L", help=f"default: {lengths}")
    parser.add_argument("--candidates", type=int, nargs="+", default=[500], metavar="C", help="default: 500")
    parser.add_argument("--callers", type=int, default=8, help="callers at a time under traffic (default: 8)")
    parser.add_argument("--rounds", type=int, default=15, help="calls measured of each contestant (default: 15)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw times against L")
    parser.add_argument("--map", type=Path, metavar="FILE", help="draw full attention over ETA by C and L")
    flags = parser.parse_args()
    # Takes seconds: not for --help.
    import tensorflow as tf

    report: Report = {"request": {}, "traffic": {}, "search": {}}
    with ThreadPoolExecutor(flags.callers) as pool:
        for candidates, length in itertools.product(flags.candidates, flags.lengths):
            calls = requests(flags, candidates, length)
            times = {
                "request": measure(calls, flags.rounds),
                "traffic": measure(traffic(calls, pool, flags.callers), flags.rounds),
                "search": measure(searches(flags, candidates, length), flags.rounds),
            }
            calls_at_once = {"request": 1, "traffic": flags.callers, "search": SEARCHES}
            for kind, of_kind in times.items():
                base = SEARCH if kind == "search" else REQUEST
                rows = summary({name: [ms / calls_at_once[kind] for ms in of] for name, of in of_kind.items()}, base)
                report[kind].setdefault(str(candidates), {})[str(length)] = rows
                Console().print(table(f"{kind}, C={candidates} L={length:,}", rows, base))
            tf.keras.backend.clear_session()
    if flags.plot:
        draw(
            {f"{kind}, C = {candidates}": of for kind, all_of in report.items() for candidates, of in all_of.items()},
            flags.plot,
        )
    if flags.map:
        draw_map(report, flags.map)
    write_json(report, flags)


if __name__ == "__main__":
    quiet_imports()
    main()
