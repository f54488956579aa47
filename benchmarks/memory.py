"""Peak memory of training by the length of the history: ETA and the same model with full attention.

    python -m benchmarks.memory
    python -m benchmarks.memory --lengths 1024 4096 --plot memory.png --json memory.json

Each contestant trains a few steps on one batch, in a process of its own, and tells its peak resident set. Below stands
what ETA's ids, fingerprints and distances take at most: 23 bytes a behaviour with 64 bits, and nothing is as wide as an
embedding. Where there is not enough memory a contestant is left out or stopped, and the table says so.
"""

from __future__ import annotations

import argparse
import itertools
import resource
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter
from rich.console import Console
from rich.progress import track
from rich.table import Table

import keras_eta
from benchmarks.flags import make_parser, write_json
from benchmarks.timing import apart, peak_memory
from benchmarks.training import make_model, make_step, random_batches
from keras_eta.quiet import quiet_imports

KINDS = {"eta": "ETA", "full": "full attention"}
UNITS = {
    "sdim": "SDIM",
    "sim-hard": "SIM hard",
    "sim-soft": "SIM soft",
    "twin": "TWIN",
    "twin-v2": "TWIN-V2, clusters of 10",
    "mimn-100": "MIMN, last 100",
    "inner-product": "inner product",
    "pooling": "pooling",
}
# Copies of [N, L, D] floats that a step with full attention holds at once: embeddings, gradients, their deduplication.
_FULL_COPIES = 6
_MB = 1e6


def eta_bytes(rows: int, length: int, bits: int) -> int:
    """Bytes of what ETA holds for each behaviour of a batch, while it searches.

    The id (int32), its fingerprint, one word's XOR (int64), the mask, the distance and the score by which `top_k` sorts
    (a byte each; 4 bytes for distances and scores of more than 254 bits).
    """
    words = keras_eta.ops.num_words(bits)
    score = 1 if 64 * words + 1 <= 255 else 4
    return rows * length * (4 + 8 * words + 8 + 1 + 2 * score)


def train(kind: str, length: int, flags: argparse.Namespace, available: int) -> int | str:
    """Trains a few steps and returns the peak resident set of this process, or what went wrong."""
    import tensorflow as tf

    # An allocation that fails is an error that can be told; the system would kill processes instead.
    resource.setrlimit(resource.RLIMIT_DATA, (available, available))
    try:
        model = make_model(kind, length, flags, category=True)
        step = make_step(model, itertools.cycle(random_batches(model, flags.rows, length, count=1)))
        for _ in range(flags.steps):
            step()
    except (tf.errors.ResourceExhaustedError, MemoryError):
        return "out of memory"
    return peak_memory()


def peak(kind: str, length: int, flags: argparse.Namespace, available: int) -> int | str:
    """Peak resident set of a contestant that may take `available` bytes, or why there is none."""
    needed = _FULL_COPIES * flags.rows * length * flags.dim * 4 if kind == "full" else 0
    if needed > available:
        return f"left out: needs about {needed / 1e9:.0f} GB of {available / 1e9:.0f} GB"
    try:
        return apart(train, kind, length, flags, available)
    except BrokenProcessPool:
        return "killed"


def report_of(peaks: dict[str, dict[int, int | str]], flags: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """L -> contestant -> peak and growth in MB, or the reason why there is no peak; and the account of ETA's growth."""
    first = flags.lengths[0]
    report: dict[str, dict[str, Any]] = {}
    for length in flags.lengths:
        rows: dict[str, Any] = report.setdefault(str(length), {})
        for kind, of_kind in peaks.items():
            found, base = of_kind[length], of_kind[first]
            if isinstance(found, str):
                rows[kind] = {"error": found}
            else:
                rows[kind] = {"peak_mb": found / _MB}
                if not isinstance(base, str):
                    rows[kind]["growth_mb"] = (found - base) / _MB
        account = eta_bytes(flags.rows, length, flags.bits) - eta_bytes(flags.rows, first, flags.bits)
        rows["ids, fingerprints and distances"] = {"growth_mb": account / _MB}
    return report


def print_table(report: dict[str, dict[str, Any]], flags: argparse.Namespace) -> None:
    """Peaks, and growth over the shortest history."""
    table = Table(title=f"peak memory of training, N={flags.rows} D={flags.dim} M={flags.bits} V={flags.items:,}")
    for column in ("L", "contestant", "peak MB", f"over L={flags.lengths[0]:,}, MB"):
        table.add_column(column, justify="left" if column == "contestant" else "right")
    for length, rows in report.items():
        for kind, row in rows.items():
            shown = row.get("error") or (f"{row['peak_mb']:,.0f}" if "peak_mb" in row else "")
            growth = f"{row['growth_mb']:,.0f}" if "growth_mb" in row else ""
            table.add_row(f"{int(length):,}", {**KINDS, **UNITS}.get(kind, kind), shown, growth)
        table.add_section()
    Console().print(table)


def draw(report: dict[str, dict[str, Any]], rows: int, path: Path) -> None:
    """Peaks against L."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for kind, name in {**KINDS, **UNITS}.items():
        points = [(int(n), of[kind]["peak_mb"]) for n, of in report.items() if "peak_mb" in of.get(kind, {})]
        if not points:
            continue
        axes.plot([length for length, _ in points], [mb for _, mb in points], marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="L, behaviours", ylabel="MB", title=f"peak memory, N = {rows}")
    axes.set_xticks([int(length) for length in report], [f"{int(length):,}" for length in report], minor=False)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measures, prints a table and JSON."""
    parser = make_parser("memory", __doc__)
    lengths = [1_024, 4_096, 16_384, 65_536]
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths, metavar="L", help=f"default: {lengths}")
    parser.add_argument("--rows", type=int, default=256, help="N, rows a batch (default: 256)")
    parser.add_argument("--steps", type=int, default=5, help="training steps of each contestant (default: 5)")
    parser.add_argument("--all_units", action="store_true", help="measure every interest unit")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw peaks against L")
    flags = parser.parse_args()

    kinds = {**KINDS, **(UNITS if flags.all_units else {})}
    peaks: dict[str, dict[int, int | str]] = {kind: {} for kind in kinds}
    runs = list(itertools.product(flags.lengths, kinds))
    for length, kind in track(runs, description="training", transient=True):
        peaks[kind][length] = peak(kind, length, flags, psutil.virtual_memory().available)
    report = report_of(peaks, flags)
    print_table(report, flags)
    if flags.plot:
        draw(report, flags.rows, flags.plot)
    write_json({"memory": report}, flags)


if __name__ == "__main__":
    quiet_imports()
    main()
