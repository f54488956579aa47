"""Load on a model server, and what the embedded server costs over a call in process.

    python -m benchmarks.serving load --target 127.0.0.1:8500 --concurrency 1 8 32
    python -m benchmarks.serving load --target 127.0.0.1:8500 --rate 50 100 --json load.json --plot load.png
    python -m benchmarks.serving plot before.json after.json both.png
    python -m benchmarks.serving overhead
    python -m benchmarks.serving swap --plot swap.png
    python -m benchmarks.serving swap --target 127.0.0.1:8500 --base_path build/serving/eta

`load` drives any server that speaks TensorFlow Serving's gRPC API, with random requests that fit what the model's
metadata say. In a closed loop (`--concurrency`) each caller waits for its answer before it asks again: it finds out how
much the server can do, but slows down with the server. In an open loop (`--rate`) requests come when they come, and
latency counts from the moment a request was due: when the server stalls, those that queue up behind count in full.

`swap` runs one load twice, the second time while copies of the newest version are pushed to the directory that the
server watches; without `--target` an embedded server with a model of 200,000 items.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.flags import number
from benchmarks.serving.load import load
from benchmarks.serving.runs import draw, load_table
from benchmarks.serving.swap import swap
from keras_eta.quiet import quiet_imports
from serving.client import ServingError


def plot(flags: argparse.Namespace) -> int:
    """Lays the runs of several JSON files over each other."""
    runs = []
    for path in flags.reports:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["runs"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no report of `load --json`: {error!r}") from error
        runs += [{**run, "name": f"{path.stem}: {run['name']}"} for run in found]
    draw(runs, flags.image)
    Console().print(load_table("", runs))
    return 0


def overhead(flags: argparse.Namespace) -> int:
    """Compares the embedded server with calls in process."""
    # TensorFlow, which the other commands do without.
    from benchmarks.serving.overhead import overhead as measured

    return measured(flags)


def _add_load_flags(one: argparse.ArgumentParser, duration: float, callers: int) -> None:
    """Adds the flags of a load: which requests, how many, how long."""
    one.add_argument("--model_name", default="eta", metavar="NAME", help="name of the model (default: %(default)s)")
    loop = one.add_mutually_exclusive_group()
    loop.add_argument(
        "--concurrency",
        type=number(int),
        nargs="+",
        metavar="N",
        help=f"closed loop: callers at once, one run for each number (default: {callers})",
    )
    loop.add_argument(
        "--rate",
        type=number(float),
        nargs="+",
        metavar="Q",
        help="open loop: requests a second, one run for each number",
    )
    one.add_argument(
        "--arrivals",
        default="poisson",
        choices=("poisson", "fixed"),
        help="gaps of the open loop (default: %(default)s)",
    )
    one.add_argument(
        "--users",
        type=number(int),
        default=100,
        metavar="R",
        help="distinct requests, one user each (default: %(default)s)",
    )
    one.add_argument(
        "--candidates",
        type=number(int),
        default=500,
        metavar="C",
        help="candidates of a request (default: %(default)s)",
    )
    one.add_argument(
        "--history",
        type=number(int, or_equal=True),
        default=1024,
        metavar="L",
        help="behaviours of a user (default: %(default)s)",
    )
    one.add_argument(
        "--ids", type=number(int), default=3_000, metavar="V", help="ids are drawn from 1 to V (default: %(default)s)"
    )
    one.add_argument(
        "--duration",
        type=number(float),
        default=duration,
        metavar="SECONDS",
        help="measured, of each run (default: %(default)s)",
    )
    one.add_argument(
        "--warmup", type=number(float, or_equal=True), default=5.0, metavar="SECONDS", help="before that, not measured"
    )
    one.add_argument(
        "--timeout",
        type=number(float),
        default=10.0,
        metavar="SECONDS",
        help="deadline of a call (default: %(default)s)",
    )
    one.add_argument(
        "--seed",
        type=number(int, or_equal=True),
        default=0,
        metavar="N",
        help="of inputs and arrivals (default: %(default)s)",
    )
    one.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    one.add_argument("--plot", type=Path, metavar="FILE", help="draw latency against percentile: .png, .svg, .pdf")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="load|plot|overhead|swap")

    one = commands.add_parser("load", help="drive a server")
    one.set_defaults(run=load)
    one.add_argument(
        "--target", default="127.0.0.1:8500", metavar="HOST:PORT", help="address of the server (default: %(default)s)"
    )
    one.add_argument(
        "--signature", default="rank", choices=("rank", "explain"), help="signature to call (default: %(default)s)"
    )
    _add_load_flags(one, duration=30.0, callers=8)

    one = commands.add_parser("plot", help="lay the runs of several reports over each other")
    one.set_defaults(run=plot)
    one.add_argument("reports", type=Path, nargs="+", metavar="JSON", help="what `load --json` wrote")
    one.add_argument("image", type=Path, metavar="IMAGE", help="file to draw: .png, .svg, .pdf")

    one = commands.add_parser(
        "overhead",
        help="compare the embedded server with calls in process",
    )
    one.set_defaults(run=overhead)
    one.add_argument(
        "--candidates",
        type=number(int),
        default=500,
        metavar="C",
        help="candidates of a request (default: %(default)s)",
    )
    one.add_argument(
        "--history", type=number(int), default=1024, metavar="L", help="behaviours of a user (default: %(default)s)"
    )
    one.add_argument(
        "--rounds",
        type=number(int),
        default=10,
        metavar="N",
        help="how often everything is measured (default: %(default)s)",
    )
    one.add_argument(
        "--calls",
        type=number(int),
        default=20,
        metavar="N",
        help="calls of a round, for latency (default: %(default)s)",
    )
    one.add_argument(
        "--threads",
        type=number(int),
        default=8,
        metavar="N",
        help="callers at once, for throughput (default: %(default)s)",
    )
    one.add_argument(
        "--seconds",
        type=number(float),
        default=3.0,
        metavar="SECONDS",
        help="of a round's throughput (default: %(default)s)",
    )
    one.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there instead of printing it")

    one = commands.add_parser("swap", help="find out what callers notice of new versions")
    one.set_defaults(run=swap, signature="rank")
    one.add_argument(
        "--target", metavar="HOST:PORT", help="address of a server; without: an embedded one with a model of its own"
    )
    one.add_argument(
        "--base_path",
        type=Path,
        metavar="DIR",
        help="with --target: the directory that it watches; versions are added",
    )
    one.add_argument(
        "--every",
        type=number(float),
        default=60.0,
        metavar="SECONDS",
        help="from one push to the next (default: %(default)s)",
    )
    _add_load_flags(one, duration=600.0, callers=16)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit code: 0, or 1 if something is wrong with the server or a file, or no call was answered OK.
    """
    parser = _parser()
    flags = parser.parse_args(argv)
    if flags.run is load and not flags.rate:
        flags.concurrency = flags.concurrency or [8]
    if flags.run is swap:
        if (flags.target is None) != (flags.base_path is None):
            parser.error("--target and --base_path go together.")
        if not flags.rate:
            flags.concurrency = flags.concurrency or [16]
        if len(flags.rate or flags.concurrency) > 1:
            parser.error("swap runs one load: give one --concurrency or one --rate.")
    try:
        code: int = flags.run(flags)
    except (ServingError, ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    quiet_imports()
    sys.exit(main())
