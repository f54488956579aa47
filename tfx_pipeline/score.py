"""Scores any candidates for any users: requests in Parquet files, one per row, to probabilities in Parquet files.

    python -m tfx_pipeline.score --model models/eta --input 'requests/*.parquet' --output scores/

Columns have the names of a serving request's: item_id holds a list of candidates, history_item_id a list of behaviours,
most recent first. docs/pipeline.md has the details.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from keras_eta.contract import Contract
from keras_eta.quiet import quiet_imports
from keras_eta.validation import check_positive_integers, is_number
from keras_eta.versions import versions

_HEARTBEAT_SECONDS = 10.0


def score(
    version_dir: Path,
    inputs: Sequence[str],
    output: Path,
    console: Console,
    *,
    top: int | None = None,
    lists: bool = False,
    max_bad_share: float = 0.01,
    overwrite: bool = False,
    beam_args: Sequence[str] = (),
) -> dict[str, Any]:
    """Scores the requests of Parquet files by a version's signature `rank`, and writes the scores whole or not at all.

    Args:
        version_dir: a version that the pipeline or `keras_eta.export.export_model` wrote.
        inputs: paths of files, with `*` and `?`.
        output: directory of the scores; `_summary.json` in it has the numbers, `_dead_letter/` the malformed requests.
        console: where to report.
        top: how many candidates of each request are written, the best first. `None`: all, in the request's order.
        lists: whether a row is a request with lists of candidates and probabilities, instead of one candidate.
        max_bad_share: share of malformed requests above which nothing is written, in all and in each file with at least
            10 of them; they are then in `<output>.dead_letter`.
        overwrite: whether earlier scores may be replaced.
        beam_args: flags of the Beam runner.

    Returns:
        What `_summary.json` holds.

    Raises:
        ValueError: if an argument is out of its range, or files do not hold requests for this version.
        FileNotFoundError: if no file fits a pattern, or there is no such version.
        FileExistsError: if `output` exists and may not be replaced.
        RuntimeError: if too many requests are malformed, or another run writes to `output`.
    """
    if top is not None:
        check_positive_integers(top=top)
    if not (is_number(max_bad_share) and 0 <= max_bad_share <= 1):
        raise ValueError(f"`max_bad_share` must lie between 0 and 1. Received: max_bad_share={max_bad_share}")
    contract = Contract.read(version_dir)
    start = time.monotonic()
    # These take seconds: not for --help, nor for what was wrong above.
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    from tfx_pipeline.scoring import files, results, transform
    from tfx_pipeline.scoring.requests import RequestReader

    files.check_output(output, overwrite)
    reader = RequestReader(contract)
    requests = files.find_requests(inputs, reader)
    form = transform.Form(requests, reader.item_id, top, lists)
    _say(console, f"{requests.num_rows:,} requests in {len(requests.row_groups):,} files, scored by {version_dir}")
    with files.whole_or_not_at_all(output, overwrite) as folder:
        progress = folder / "progress"
        progress.touch()
        with _shown(progress, requests.num_rows, console):
            scoring = transform.ScoreFiles(str(version_dir), reader, form, str(folder), str(progress))
            with beam.Pipeline(options=PipelineOptions(list(beam_args))) as pipeline:
                _ = pipeline | scoring
        progress.unlink()
        summary = results.summarize(folder, requests, output, max_bad_share)
        summary |= {"version": str(version_dir), "seconds": round(time.monotonic() - start, 1)}
        (folder / files.SUMMARY).write_text(json.dumps(summary, indent=2))
    for line in results.lines(summary, output):
        _say(console, line)
    return summary


def version_of(model: Path, version: int | None) -> Path:
    """The directory of a version of a model, the newest if none is given.

    Raises:
        FileNotFoundError: if there is no such version.
    """
    present = versions(path.name for path in model.glob("*"))
    if not present:
        raise FileNotFoundError(f"{model} has no version: it must be a directory of versions, as TF Serving takes it.")
    if version is not None and version not in present:
        raise FileNotFoundError(f"{model} has no version {version}. It has: {sorted(present)}")
    return model / present[max(present) if version is None else version]


@contextlib.contextmanager
def _shown(progress: Path, requests: int, console: Console) -> Iterator[None]:
    """Reports now and then how many requests are scored; workers append their numbers to a file."""
    start = time.monotonic()
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(_HEARTBEAT_SECONDS):
            done = sum(map(int, progress.read_text().split()))
            _say(console, f"  ... {done:,} of {requests:,} requests, {time.monotonic() - start:.0f} s")

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stopped.set()
        watcher.join()


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def parser() -> argparse.ArgumentParser:
    """The parser of the command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m tfx_pipeline.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="directory of the model's versions")
    parser.add_argument("--version", type=int, metavar="N", help="the version that scores (default: the newest)")
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="PATTERN", help="Parquet files of requests, with * and ?"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="where scores appear, once they are whole"
    )
    parser.add_argument(
        "--top",
        type=int,
        metavar="N",
        help="write the best N candidates of each request, the best first (default: all)",
    )
    parser.add_argument(
        "--lists", action="store_true", help="one row per request, with lists, instead of one per candidate"
    )
    parser.add_argument(
        "--max_bad_share",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="share of malformed requests above which nothing is written, in all and in each file with at least 10 "
        "(default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace earlier scores in --output")
    parser.add_argument(
        "--beam_args",
        type=shlex.split,
        default=[],
        metavar="ARGS",
        help="flags of the Beam runner in one string after '=', e.g. "
        "--beam_args='--direct_running_mode=multi_processing --direct_num_workers=2' (default: one local process)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 if the scores were written."""
    flags = vars(parser().parse_args(argv))
    try:
        version_dir = version_of(flags.pop("model"), flags.pop("version"))
        score(version_dir, flags.pop("input"), flags.pop("output"), Console(), **flags)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    quiet_imports()
    sys.exit(main())
