"""Searches for hyperparameters on the validation part of an earlier run, and prints the flags that were best.

    python -m tfx_pipeline.run --layout movielens --data ml-1m
    python -m tfx_pipeline.tune --layout movielens --trials 20 --minutes 120

Give the flags of the run. Trials are random, and the first has the values of the flags. The same command goes on where
it was interrupted. The eval part is never read.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from keras_eta.quiet import quiet_imports
from keras_eta.validation import check_positive_integers, is_number
from tfx_pipeline import run
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.flags import add_flags, config_from_flags, unbuilt_config_from_flags
from tfx_pipeline.logs import logged_to
from tfx_pipeline.tuning.space import Dimension, Value, as_text, flags_of, space

if TYPE_CHECKING:
    from tfx_pipeline.tuning.search import Finished
    from tfx_pipeline.tuning.trial import Data

_FILE = "trials.json"
_COMMAND = ("python", "-m", "tfx_pipeline.run")


def tune(
    argv: Sequence[str], dimensions: Sequence[Dimension], trials: int, minutes: float | None, console: Console
) -> Finished | None:
    """Searches, and prints each trial, a table of all, and the command that trains with the best values.

    `<output>/tuning/trials.json` has the trials, after each of them.

    Args:
        argv: the flags of the run.
        dimensions: what is searched.
        trials: of the whole search.
        minutes: of this call; `None`: as long as it takes.
        console: where to report.

    Returns:
        The trial with the highest validation AUC; `None` if none succeeded.

    Raises:
        ValueError: if the flags or a searched value are out of range, or no earlier run has such impressions.
        RuntimeError: if another search holds the directory, or three trials in a row failed.
    """
    flags = _parse(argv)
    for dimension in dimensions:
        for value in dimension.examples:
            unbuilt_config_from_flags(_parse([*argv, *dimension.flags(value)]))
    config = config_from_flags(flags)
    directory = Path(config.output) / "tuning"
    with run.exclusive(directory), logged_to(directory / "search.log"):
        # These import TFX, which takes several seconds and writes warnings.
        from tfx_pipeline.tuning.search import Outcome, Search, best
        from tfx_pipeline.tuning.trial import run_trial

        data = _data(config)

        def train(values: Mapping[str, Value], trial_directory: str) -> Outcome:
            trial_flags = _parse([*argv, *flags_of(dimensions, values)])
            return run_trial(unbuilt_config_from_flags(trial_flags), data, trial_directory)

        def began(number: int, values: Mapping[str, Value]) -> None:
            _print(console, f"[{number + 1}/{trials}] {_words(values)}")

        def ended(finished: Sequence[Finished]) -> None:
            _print(console, f"      {_result(finished[-1])}")
            _write(directory / _FILE, argv, dimensions, finished, best(finished))

        given = {dimension.name: dimension.given(flags) for dimension in dimensions}
        place = str(directory / _fingerprint(config, dimensions, data))
        search = Search(dimensions, given, train, place, config.training.seed)
        finished = search.go_on(trials, None if minutes is None else 60 * minutes, began, ended)
    winner = best(finished)
    console.print(table(finished, dimensions))
    if winner is None:
        _print(console, "No trial succeeded.")
    else:
        _print(console, f"Trial {winner.number} has the highest validation AUC. To train with its values:")
        _print(console, shlex.join([*_COMMAND, *argv, *flags_of(dimensions, winner.values)]))
    _print(console, f"Trials: {directory / _FILE}")
    return winner


def table(trials: Sequence[Finished], dimensions: Sequence[Dimension]) -> Table:
    """A row per trial, the best first, failed ones last."""
    result = Table(title="Trials")
    for column in ("trial", "validation AUC", "epochs", "seconds"):
        result.add_column(column, justify="right")
    for dimension in dimensions:
        result.add_column(dimension.name.replace("_", " "), justify="right")
    order = sorted(trials, key=lambda trial: -math.inf if trial.outcome is None else trial.outcome.auc, reverse=True)
    for trial in order:
        values = [as_text(trial.values[dimension.name]) for dimension in dimensions]
        outcome = trial.outcome
        cells = (
            ["failed", "-", "-"]
            if outcome is None
            else [f"{outcome.auc:.4f}", str(outcome.epochs), f"{trial.seconds:.0f}"]
        )
        result.add_row(str(trial.number), *cells, *values)
    return result


def _data(config: PipelineConfig) -> Data:
    """What Transform made in the latest run with this output."""
    from tfx_pipeline.results import artifacts_of_latest_run
    from tfx_pipeline.tuning.trial import Data

    # ML Metadata would make the file.
    transform = {}
    if Path(config.metadata_path).is_file():
        transform = artifacts_of_latest_run(config.metadata_path).get("Transform", {})
    if not {"transform_graph", "transformed_examples"} <= transform.keys():
        raise ValueError(
            f"The latest run in {config.output} has no impressions to search with. Run `python -m tfx_pipeline.run` "
            "with the same flags first."
        )
    graph, examples = transform["transform_graph"][0].uri, transform["transformed_examples"][0].uri
    return Data.read(graph, examples, config.layout.features)


def _fingerprint(config: PipelineConfig, dimensions: Sequence[Dimension], data: Data) -> str:
    """The same for two searches if the second can go on where the first was interrupted."""
    decisive = [
        config.only("model", "training").to_json(),
        [dataclasses.asdict(dimension) for dimension in dimensions],
        [data.transform_graph, data.train.files, data.validation.files],
    ]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]


def _write(
    file: Path,
    argv: Sequence[str],
    dimensions: Sequence[Dimension],
    trials: Sequence[Finished],
    winner: Finished | None,
) -> None:
    """Writes the trials as JSON; the file is whole at any moment."""
    content = {
        "flags": list(argv),
        "space": [dataclasses.asdict(dimension) for dimension in dimensions],
        "trials": [dataclasses.asdict(trial) for trial in trials],
        "best": None if winner is None else winner.number,
        "best_flags": None if winner is None else flags_of(dimensions, winner.values),
    }
    unfinished = file.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=2), encoding="utf-8")
    os.replace(unfinished, file)


def _words(values: Mapping[str, Value]) -> str:
    return ", ".join(f"{name} {as_text(value)}" for name, value in values.items())


def _result(trial: Finished) -> str:
    if trial.outcome is None:
        return f"failed: {trial.error}"
    return f"validation AUC {trial.outcome.auc:.4f} in {trial.outcome.epochs} epochs, {trial.seconds:.0f} s"


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of a run."""
    flags = run.parser().parse_args(argv)
    # The log is not read: Transform has.
    return argparse.Namespace(**{"data": "", **vars(flags)})


def parser() -> argparse.ArgumentParser:
    """The parser of the command's flags, those of a run and its own."""
    parser = argparse.ArgumentParser(
        prog="python -m tfx_pipeline.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_own_parser()],
        allow_abbrev=False,
    )
    add_flags(parser)
    return parser


def _own_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    search = parser.add_argument_group("search")
    search.add_argument(
        "--search",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUES",
        help="flags to vary: top_k=16,32,64 or 'hidden_units=64,128 64' or dense_learning_rate=1e-4..1e-2 "
        "(default: learning rates, id_dropout, hidden_units; without --interest also top_k, num_bits and "
        "short_history_length)",
    )
    search.add_argument("--trials", type=int, default=20, metavar="N", help="of the whole search (default: 20)")
    search.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="of this command: no trial begins that would last longer if it took as long as the longest so far",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 if a trial succeeded, 130 if it was interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    flags = parser().parse_args(argv)
    _, of_run = _own_parser().parse_known_args(argv)
    try:
        check_positive_integers(trials=flags.trials)
        if flags.minutes is not None and not (is_number(flags.minutes) and flags.minutes > 0):
            raise ValueError(f"`minutes` must be a positive number. Received: minutes={flags.minutes}")
        dimensions = space(flags.search, of_eta="interests" not in flags)
        return 0 if tune(of_run, dimensions, flags.trials, flags.minutes, Console()) else 1
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    quiet_imports()
    sys.exit(main())
