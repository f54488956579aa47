"""How soon answers know of an event, what that costs, and what it is worth.

    python -m benchmarks.freshness replay --rounds 20 --json replay.json --plot replay.png
    python -m benchmarks.freshness replay --first_events 5000 --events 500 --every 30 --rounds 3
    python -m benchmarks.freshness replay --data events -- --layout custom --pattern 'events-{SPAN}.csv' ...
    python -m benchmarks.freshness cost --plot cost.png
    python -m benchmarks.freshness worth --rounds 200 --plot worth.png
    python -m benchmarks.freshness index --rounds 200 --plot index.png

`replay` trains a first version on the beginning of a log, serves it, and lets the rest come as files of events, while
`tfx_pipeline.continuous` runs beside the server and a client asks steadily. It reports the seconds from a file's
arrival to the first answer by a version that was trained on it, and what the client noticed.

`cost` times rounds of the loop against the number of their new events, after a short log and a long one.

`worth` trains ETA round after round by the library alone, and judges each next round by weights that were refreshed
every round, every 10 rounds or once; and users and items by rounds since they were new.

`index` trains ETA and SIM's two searches round after round, and judges each next round with an index that was built 0,
1, 5 or 20 rounds ago.

The log is MovieLens-1M; in `replay` and `cost` it may be another one in `--data`, and what stands behind `--` are flags
of `tfx_pipeline.continuous` for layout, gates, ranker and training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.flags import number
from keras_eta.quiet import quiet_imports


def replay(flags: argparse.Namespace) -> int:
    """Replays a log as a stream."""
    from benchmarks.freshness.replay import replay as measured

    return measured(flags)


def cost(flags: argparse.Namespace) -> int:
    """Times rounds."""
    from benchmarks.freshness.cost import cost as measured

    return measured(flags)


def worth(flags: argparse.Namespace) -> int:
    """Judges fresh weights against old ones."""
    from benchmarks.freshness.worth import worth as measured

    return measured(flags)


def index(flags: argparse.Namespace) -> int:
    """Judges search by an index that lags behind."""
    from benchmarks.freshness.index import index as measured

    return measured(flags)


_COUNT, _NUMBER = number(int), number(float)


def _share(text: str) -> Any:
    value = _NUMBER(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"must be below 1. Received: {text}")
    return value


def _add_beginning(one: argparse.ArgumentParser) -> None:
    """Adds the flags that say what the first version is trained on."""
    first = one.add_mutually_exclusive_group()
    first.add_argument(
        "--start_share",
        type=_share,
        default=0.6,
        metavar="SHARE",
        help="of the log that the first version is trained on (default: %(default)s)",
    )
    first.add_argument("--first_events", type=_COUNT, metavar="N", help="a number of events instead")


def _add_files(one: argparse.ArgumentParser) -> None:
    """Adds the flags for what is read and written."""
    one.add_argument("--data", metavar="DIR", help="of the log; default: MovieLens-1M, fetched")
    one.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    one.add_argument("--plot", type=Path, metavar="FILE", help="draw it: .png, .svg, .pdf")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.freshness", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="replay|cost|worth|index")

    one = commands.add_parser("replay", help="from an event's arrival to an answer that knows it")
    one.set_defaults(run=replay)
    _add_beginning(one)
    one.add_argument("--events", type=_COUNT, default=1_000, metavar="N", help="of a file (default: %(default)s)")
    one.add_argument(
        "--every", type=_NUMBER, default=60.0, metavar="SECONDS", help="from a file to the next (default: %(default)s)"
    )
    one.add_argument("--rounds", type=_COUNT, default=20, metavar="N", help="files that come (default: %(default)s)")
    one.add_argument(
        "--loop_every",
        type=_NUMBER,
        default=5.0,
        metavar="SECONDS",
        help="how often the loop looks for files (default: %(default)s)",
    )
    one.add_argument("--rate", type=_NUMBER, default=4.0, metavar="Q", help="requests a second (default: %(default)s)")
    one.add_argument("--users", type=_COUNT, default=50, metavar="R", help="distinct requests (default: %(default)s)")
    one.add_argument("--candidates", type=_COUNT, default=200, metavar="C", help="of a request (default: %(default)s)")
    one.add_argument("--history", type=_COUNT, default=512, metavar="L", help="behaviours (default: %(default)s)")
    one.add_argument("--ids", type=_COUNT, default=3_000, metavar="V", help="drawn from 1 to V (default: %(default)s)")
    one.add_argument(
        "--timeout", type=_NUMBER, default=10.0, metavar="SECONDS", help="deadline of a call (default: %(default)s)"
    )
    one.add_argument("--seed", type=int, default=0, metavar="N", help="of the requests (default: %(default)s)")
    _add_files(one)

    one = commands.add_parser("cost", help="seconds of a round against its new events and the log before")
    one.set_defaults(run=cost)
    for flag, default, meaning in (
        ("--events", [250, 500, 1_000, 2_000, 4_000], "new ones of a round"),
        ("--log", [50_000, 500_000], "events before the first version"),
    ):
        shown = f"{meaning} (default: {' '.join(map(str, default))})"
        one.add_argument(flag, type=_COUNT, nargs="+", default=default, metavar="N", help=shown)
    one.add_argument(
        "--first_events",
        type=_COUNT,
        default=20_000,
        metavar="N",
        help="that the first version is trained on (default: %(default)s)",
    )
    one.add_argument("--repeats", type=_COUNT, default=3, metavar="N", help="of each number (default: %(default)s)")
    _add_files(one)

    for name, command, meaning in (
        ("worth", worth, "AUC of the next round by fresh weights and by older ones"),
        ("index", index, "AUC of the next round by search of an index that lags behind"),
    ):
        one = commands.add_parser(name, help=meaning)
        one.set_defaults(run=command)
        _add_beginning(one)
        one.add_argument("--events", type=_COUNT, default=1_000, metavar="N", help="of a round (default: %(default)s)")
        one.add_argument("--rounds", type=_COUNT, default=200, metavar="N", help="at most (default: %(default)s)")
        one.add_argument("--history", type=_COUNT, default=512, metavar="L", help="behaviours (default: %(default)s)")
        one.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, batches (default: %(default)s)")
        _add_files(one)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit code: 0, or 1 if something fails, a call had an error, or a version never answered.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    flags = _parser().parse_args(words[:end])
    flags.loop_flags = words[end + 1 :]
    try:
        code: int = flags.run(flags)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    quiet_imports()
    sys.exit(main())
