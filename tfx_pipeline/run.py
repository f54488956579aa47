"""Runs the pipeline on this machine: from a directory of raw logs to a version that TF Serving picks up.

    python -m tfx_pipeline.run --layout movielens --data ml-1m

A second run takes the outputs of the first wherever nothing that they rest on has changed. New data trains a new model,
from the latest pushed one, and pushes it if it is no worse.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from keras_eta.datasets import movielens
from keras_eta.quiet import quiet_imports
from keras_eta.validation import check_positive_integers
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.exclusive import exclusive
from tfx_pipeline.flags import add_flags, config_from_flags
from tfx_pipeline.logs import logged_to
from tfx_pipeline.progress import shown
from tfx_pipeline.side_by_side import Here, Processes, preload, run_pipeline


def run(config: PipelineConfig, console: Console, jobs: int = 2) -> None:
    """Runs the pipeline and prints a summary.

    Args:
        config: what to run it on.
        console: where to report.
        jobs: components that run side by side where they do not wait for each other, each in a process of its own; 1:
            one after the other, in this process.

    Raises:
        ValueError: if the data or the schema can't be what the configuration says, before anything is run.
        RuntimeError: if another run holds the output directory, or components fail.
    """
    check_positive_integers(jobs=jobs)
    if not Path(config.schema).is_file():
        raise ValueError(f"There is no schema {config.schema}. `python -m tfx_pipeline.propose_schema` makes a draft.")
    output = Path(config.output)
    with exclusive(output):
        log_file = output / "logs" / f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}.log"
        with shown(console) as progress, logged_to(log_file):
            workers = Here(progress) if jobs == 1 else Processes(progress, log_file, jobs)
            # These import TFX, which takes several seconds and writes warnings.
            from tfx import v1 as tfx

            from tfx_pipeline.ingestion.log_checks import check_data
            from tfx_pipeline.pipeline import make_pipeline
            from tfx_pipeline.retrieval.items import check_items
            from tfx_pipeline.summary import report

            check_items(config)
            check_data(config)
            console.print(f"TFX's log: {log_file}", soft_wrap=True)
            connection = tfx.orchestration.metadata.sqlite_metadata_connection_config(config.metadata_path)
            run_pipeline(make_pipeline(config, connection), workers, jobs, progress)
            report(config, progress.timings, console)


def parser() -> argparse.ArgumentParser:
    """The parser of the command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m tfx_pipeline.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=2,
        metavar="N",
        help="components that run side by side, each in a process of its own; 1: one after the other (default: 2)",
    )
    add_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 if every component ran, whether or not the model was good enough to be pushed."""
    flags = parser().parse_args(argv)
    console = Console()
    try:
        fetched = flags.layout == "movielens" and "data" not in flags
        if fetched:
            flags.data = str(Path(getattr(flags, "output", PipelineConfig.output)) / "data" / "ml-1m")
        if flags.jobs > 1:
            # While this process imports TensorFlow and sees whether the flags make a ranker.
            preload()
        config = config_from_flags(flags)
        if fetched and not Path(config.data).exists():
            movielens.write_folder(config.data)
        run(config, console, flags.jobs)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    quiet_imports()
    sys.exit(main())
