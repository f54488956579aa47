"""Ten million items: what ETA takes to build, train, export, load and serve.

    python -m benchmarks.scale
    python -m benchmarks.scale --items 1000000 --json scale.json

The model has an adapted `FeatureLookup` of that many integer ids, as a deployment does. It trains steps of N rows with
L = 1,024 behaviours: with fixed planes, and with learned planes that move at every step or every 64, each time hashing
the whole table again. It is exported with a search that XLA compiles, and once more after 100,000 rows of the table
have changed, as a minute's training changes them. The embedded server loads it in a process of its own and ranks C
candidates for one user with `--length` behaviours. Each model has a process of its own, one after the other, as memory
would not hold them all: with 10 million items the first takes 11 GB. Two versions lie in a temporary directory, 3 GB
each.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

import keras_eta
from benchmarks.flags import make_parser, write_json
from benchmarks.serving.requests import random_inputs
from benchmarks.timing import apart, measure, peak_memory, repeated, summary
from benchmarks.training import NUM_USERS, make_model, make_step, random_batches
from keras_eta.quiet import quiet_imports
from serving.client import RankingClient
from serving.process import ServerProcess

if TYPE_CHECKING:
    from keras_eta import FeatureLookup, Ranker

TRAINING_LENGTH = 1_024
PERIODS = (1, 64)
# Rows that change between two versions, drawn at random.
_CHANGED_ROWS = 100_000
_PAGE_BYTES = 4_096
# Turns of learned planes that are measured; a turn is one period.
_TURNS = 5
_TIMEOUT_SECONDS = 120.0

Figures = dict[str, float]


@contextmanager
def timed(name: str, figures: Figures) -> Iterator[None]:
    """Shows what is being done and notes how many seconds it took."""
    start = time.perf_counter()
    with Console().status(name):
        yield
    figures[f"{name}, s"] = time.perf_counter() - start


def note_memory(name: str, figures: Figures) -> None:
    """Notes the resident set of this process and its peak until now, in MB."""
    figures[f"resident {name}, MB"] = psutil.Process().memory_info().rss / 1e6
    figures[f"peak {name}, MB"] = peak_memory() / 1e6


def adapted_lookup(model: Ranker, items: int) -> FeatureLookup:
    """A lookup of ids in random order, none of which is its own index."""
    lookup = keras_eta.FeatureLookup(model.features)
    ids = np.random.default_rng(0).permutation(items) + 1_000_000_000
    lookup.adapt({"item_id": ids, "user_id": np.arange(NUM_USERS)})
    return lookup


def steps(model: Ranker, rows: int, rounds: int, period: int = 1) -> Figures:
    """Milliseconds of a training step: the mean of a period, as the median of several."""
    step = make_step(model, itertools.cycle(random_batches(model, rows, TRAINING_LENGTH)))
    times = measure({"step": repeated(step, period)}, rounds, warm_up=3 if period == 1 else 1)
    return summary({"step": [ms / period for ms in times["step"]]}, "step")["step"]


def train_and_export(base_path: Path, flags: argparse.Namespace) -> tuple[Figures, Figures]:
    """Builds a model with fixed planes, trains and exports it; returns what that took, and the step's times."""
    from keras_eta.export import export_model

    figures: Figures = {}
    with timed("adapting the lookup", figures):
        lookup = adapted_lookup(make_model("eta", flags.length, flags), flags.items)
    with timed("building", figures):
        model = make_model("eta", flags.length, flags, lookup=lookup)
        model.build()
    note_memory("after building", figures)
    step = steps(model, flags.rows, flags.rounds)
    note_memory("after training", figures)
    layer = model.embeddings["item_id"]
    (accumulator,) = (x for x in model.optimizer.optimizers[0].variables if x.shape == layer.embeddings.shape)
    tables = {
        "embeddings": layer.embeddings,
        "Adagrad's accumulator": accumulator,
        "fingerprints": layer.fingerprints_table,
    }
    figures.update({f"table of {name}, MB": np.prod(x.shape) * x.dtype.size / 1e6 for name, x in tables.items()})
    with timed("hashing the whole table", figures):
        model.interests[-1].refresh()
    with timed("exporting", figures):
        path = export_model(model, base_path, version=1, jit_compile=True)
    note_memory("after exporting", figures)
    figures["version on disk, MB"] = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
    figures.update(export_changed(model, base_path))
    return figures, step


def export_changed(model: Ranker, base_path: Path) -> Figures:
    """Changes rows of the table and exports a second version; returns what that took, and how much of it is new."""
    import tensorflow as tf

    from keras_eta.export import export_model

    layer, rng, figures = model.embeddings["item_id"], np.random.default_rng(0), Figures()
    number = min(_CHANGED_ROWS, layer.input_dim - 1)
    rows = 1 + rng.choice(layer.input_dim - 1, number, replace=False)
    values = rng.normal(size=[number, layer.output_dim]).astype("float32")
    layer.embeddings.scatter_update(tf.IndexedSlices(values, rows))
    name = f"exporting after {number:,} rows have changed"
    with timed(name, figures):
        path = export_model(model, base_path, version=2, jit_compile=True)
    old, new = (next(base_path.glob(f"{version}/variables/variables.data-*")) for version in (1, 2))
    figures[f"{name}: values of these rows, MB"] = values.nbytes / 1e6
    figures[f"{name}: pages of 4 KiB that differ, MB"] = changed_pages(old, new) * _PAGE_BYTES / 1e6
    figures[f"{name}: written, MB"] = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
    return figures


def changed_pages(old: Path, new: Path) -> int:
    """The number of pages of a file that differ from those of another of the same size."""
    number = 0
    with old.open("rb") as before, new.open("rb") as after:
        while page := after.read(_PAGE_BYTES):
            number += page != before.read(_PAGE_BYTES)
    return number


def train_learned(period: int, flags: argparse.Namespace) -> Figures:
    """Times of a step with planes that move every `period` steps."""
    model = make_model("eta-learned", flags.length, flags, planes_period=period)
    return steps(model, flags.rows, _TURNS, period)


def serve(base_path: Path, flags: argparse.Namespace) -> Figures:
    """Loads the version and ranks."""
    figures: Figures = {}
    with ExitStack() as stack:
        with timed("starting, loading and warming up", figures):
            server = ServerProcess("--model_base_path", str(base_path), log=base_path.parent / "server.log")
            stack.enter_context(server)
        figures["resident when ready, MB"] = server.memory / 1e6
        with RankingClient(server.address, timeout=_TIMEOUT_SECONDS) as client:
            signature = client.metadata().signatures["rank"]
            sizes = {"candidates": flags.candidates, "history": flags.length, "ids": flags.items}
            inputs = random_inputs(signature, **sizes, rng=np.random.default_rng(0))
            # As `adapted_lookup` has them.
            inputs |= {name: inputs[name] + 1_000_000_000 - 1 for name in ("item_id", "history_item_id")}
            start = time.perf_counter()
            client.predict(inputs, "rank")
            figures["first rank, ms"] = 1e3 * (time.perf_counter() - start)
            times = measure({"rank": lambda: client.predict(inputs, "rank")}, flags.calls)
        figures["median rank, ms"] = float(np.median(times["rank"]))
        figures["resident after ranking, MB"] = server.memory / 1e6
    return figures


def print_tables(report: dict[str, Any], flags: argparse.Namespace) -> None:
    """Prints what was found."""
    sizes = f"V={flags.items:,} D={flags.dim} M={flags.bits}"
    table = Table(title=f"ETA, {sizes}, history of up to {flags.length:,}")
    table.add_column("figure")
    table.add_column("", justify="right")
    for name, value in report["model"].items():
        table.add_row(name, f"{value:,.1f}")
    table.add_section()
    for name, value in report["server"].items():
        table.add_row(f"server: {name}", f"{value:,.1f}")
    Console().print(table)
    table = Table(title=f"training step, N={flags.rows} L={TRAINING_LENGTH:,} {sizes}")
    for column in ("planes", "median ms", "10 % to 90 %"):
        table.add_column(column, justify="left" if column == "planes" else "right")
    for name, row in report["steps"].items():
        table.add_row(name, f"{row['median_ms']:,.1f}", f"{row['p10_ms']:,.1f} to {row['p90_ms']:,.1f}")
    Console().print(table)


def main() -> None:
    """Measures, prints tables and JSON."""
    parser = make_parser("scale", __doc__, items=10_000_000)
    parser.add_argument("--length", type=int, default=65_536, metavar="L", help="of served histories (default: 65,536)")
    parser.add_argument("--candidates", type=int, default=500, metavar="C", help="of a request (default: 500)")
    parser.add_argument("--rows", type=int, default=256, help="N, rows a batch (default: 256)")
    parser.add_argument("--rounds", type=int, default=15, help="steps measured with fixed planes (default: 15)")
    parser.add_argument("--calls", type=int, default=20, help="requests measured (default: 20)")
    flags = parser.parse_args()

    report: dict[str, Any] = {"model": {}, "server": {}, "steps": {}}
    with tempfile.TemporaryDirectory() as folder:
        # Embeddings, fingerprints, and ids with their indices: two versions, and half of one for safety.
        needed = 2.5 * flags.items * (4 * flags.dim + flags.bits / 8 + 16)
        free = shutil.disk_usage(folder).free
        if needed > free:
            parser.error(f"{needed / 1e9:.1f} GB of disk are needed and {free / 1e9:.1f} GB free. Set TMPDIR.")
        base_path = Path(folder, "eta")
        report["model"], report["steps"]["fixed planes"] = apart(train_and_export, base_path, flags)
        report["server"] = serve(base_path, flags)
        for period in PERIODS:
            report["steps"][f"learned planes, moved every {period}"] = apart(train_learned, period, flags)
    print_tables(report, flags)
    write_json(report, flags)


if __name__ == "__main__":
    quiet_imports()
    main()
