"""What finding candidates first costs and keeps, by the embedded server.

    python -m benchmarks.two_stages kept --ranker build/serving/eta --retriever build/quality/tiger.keras
    python -m benchmarks.two_stages latency --size paper

`kept` asks for the ten best of all films that a user of MovieLens-1M has not rated, by ranking all of them, and by
retrieving C of them and ranking these: how many of the ten are the same, and how long either takes. `make demo` writes
a ranker; the retriever is trained on the liked films of the ranker's training period where the file is missing.

`latency` times the signature `retrieve` for one user, with the decoder's cache and without, of TIGER's default
size or, with `--size paper`, of the paper's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from keras_eta.quiet import quiet_imports


def kept(flags: argparse.Namespace) -> int:
    """Compares retrieval and ranking with ranking everything."""
    from benchmarks.two_stages.kept import kept as measured

    return measured(flags)


def latency(flags: argparse.Namespace) -> int:
    """Compares the cached decoder with one that keeps nothing."""
    from benchmarks.two_stages.latency import latency as measured

    return measured(flags)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.two_stages",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="kept|latency")

    one = commands.add_parser("kept", help="how much of the ranking of all films is kept")
    one.set_defaults(run=kept)
    one.add_argument("--ranker", type=Path, required=True, metavar="DIR", help="base path of an exported ranker")
    one.add_argument(
        "--retriever",
        type=Path,
        default=Path("build/quality/tiger.keras"),
        metavar="FILE",
        help="a saved TIGER; trained and written if missing (default: %(default)s)",
    )
    one.add_argument("--rounds", type=int, default=8, help="of training, of 100,000 rows, at most (default: 8)")
    one.add_argument("--users", type=int, default=500, help="that are asked for (default: 500)")
    one.add_argument(
        "--results",
        type=int,
        nargs="+",
        default=[50, 100, 200, 400, 800],
        metavar="C",
        help="films retrieved (default: 50 100 200 400 800)",
    )
    one.add_argument("--data", metavar="DIR", help="folder of the official ml-1m; default: fetched and cached")
    one.add_argument("--plot", type=Path, metavar="FILE", help="where to draw the share kept against the time")

    other = commands.add_parser("latency", help="with the decoder's cache and without")
    other.set_defaults(run=latency)
    other.add_argument("--beams", type=int, nargs="+", default=[50, 200], help="widths (default: 50 200)")
    other.add_argument(
        "--size",
        choices=("default", "paper"),
        default="default",
        help="of the model: TIGER's own, or the paper's (4 + 4 layers, width 128, 6 heads of 64, spelt histories)",
    )
    other.add_argument("--rounds", type=int, default=100, help="calls of each (default: 100)")

    flags = parser.parse_args(arguments)
    try:
        return int(flags.run(flags))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    quiet_imports()
    sys.exit(main())
