r"""Trains on as events arrive: from new files of events to a version that TF Serving picks up, round by round.

    python -m tfx_pipeline.continuous --layout custom --data events --pattern 'events-{SPAN}.csv' ... \
        --state build/continuous --serving_dir build/serving/eta --every 60

A round judges the served version on the new events, trains on from it, and pushes what passes its gates.
docs/freshness.md has the details.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import sys
from collections.abc import Sequence

from rich.console import Console

from keras_eta.quiet import quiet_imports
from tfx_pipeline.config import PipelineConfig, Training
from tfx_pipeline.continuous.settings import Gates, Loop
from tfx_pipeline.flags import add_options, config_from_flags, given_options
from tfx_pipeline.layout_flags import CUSTOM, add_layout_flags
from tfx_pipeline.model_config import ETAUnits, Model

_PIPELINE = ("data", "schema", "serving_dir", "min_history", "max_bad_share")
_TRAINING = ("batch_size", "embedding_learning_rate", "dense_learning_rate", "seed")


def parser() -> argparse.ArgumentParser:
    """The parser of the command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m tfx_pipeline.continuous",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    loop = parser.add_argument_group("loop")
    add_options(loop, Loop)
    when = loop.add_mutually_exclusive_group()
    when.add_argument("--once", action="store_true", help="one round (default, without --every and --until)")
    when.add_argument("--every", type=_seconds, metavar="SECONDS", help="from the start of a round to the next")
    loop.add_argument(
        "--until",
        type=_moment,
        metavar="TIME",
        help="no round begins from then on, e.g. 2026-01-31T18:00; with --every, or one round after another",
    )
    add_options(parser.add_argument_group("gates"), Gates)
    add_options(parser.add_argument_group("pipeline"), PipelineConfig, _PIPELINE)
    add_layout_flags(parser)
    add_options(parser.add_argument_group("ranker"), Model)
    add_options(parser.add_argument_group("ETA, the ranker without --interest"), ETAUnits)
    add_options(parser.add_argument_group("training"), Training, _TRAINING)
    return parser


def loop_from_flags(flags: argparse.Namespace) -> Loop:
    """The loop that the flags describe.

    Raises:
        ValueError: if a flag is out of its range, is missing, or does not go with the layout or another flag.
    """
    if "state" not in flags:
        raise ValueError("--state is missing: the directory of everything that the loop keeps.")
    if flags.once and flags.until is not None:
        raise ValueError("--until goes with --every or alone. Received: --once")
    pattern = {"pattern": flags.pattern} if "pattern" in flags and flags.layout != CUSTOM else {}
    for name in pattern:
        # The files of a ready-made layout, one per span.
        delattr(flags, name)
    config = config_from_flags(flags)
    config = dataclasses.replace(config, layout=dataclasses.replace(config.layout, **pattern))
    return Loop(config=config, gates=Gates(**given_options(flags, Gates)), **given_options(flags, Loop))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 if the last round was done, whether or not it pushed a version."""
    flags = parser().parse_args(argv)
    try:
        loop = loop_from_flags(flags)
        from tfx_pipeline.continuous.loop import run_loop

        every = flags.every if flags.every is not None or flags.until is None else 0.0
        until = None if flags.until is None else flags.until.timestamp()
        return run_loop(loop, Console(), every=every, until=until)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError
    return seconds


def _moment(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


if __name__ == "__main__":
    quiet_imports()
    sys.exit(main())
