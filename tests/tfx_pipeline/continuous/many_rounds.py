"""Runs many rounds that train nothing, and prints what they take and leave on disk: neither may grow with the rounds.

python -m tests.tfx_pipeline.continuous.many_rounds FOLDER --rounds 2000
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.tfx_pipeline.continuous.events import make_loop, rows_of, run, write_span
from tests.tfx_pipeline.continuous.quick import make_rounds_quick
from tfx_pipeline.continuous import components
from tfx_pipeline.continuous.settings import Loop

ROWS = 60


def one_round(loop: Loop, span: int) -> float:
    """Seconds of a round with the events of one span, in a process that is forked from this one as the loop's are."""
    write_span(loop, span, rows_of(span, ROWS))
    start = time.monotonic()
    child = os.fork()
    if not child:
        code = 1
        try:
            code = int(run(loop) is None)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"Round {span} ended with status {status}; its log lies in {loop.logs}.")
    return time.monotonic() - start


def occupied(*paths: Path) -> tuple[int, int]:
    """Bytes of the files at and below paths, and their number."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files), len(files)


def main() -> None:
    """Prints a row for each twentieth of the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the events, the state and the versions go")
    parser.add_argument("--rounds", type=int, default=2_000, metavar="N", help="(default: %(default)s)")
    flags = parser.parse_args()

    def train_on(*arguments: Any) -> Any:
        # A model whose size does not grow with what it was trained on.
        return SimpleNamespace(rows=[], count_params=lambda: 0), {}

    make_rounds_quick(setattr)
    setattr(components, "train_on", train_on)  # noqa: B010
    flags.folder.mkdir(parents=True, exist_ok=True)
    loop = make_loop(flags.folder, keep=5)
    table = Table(caption="pruned: artifacts, ML Metadata, logs, versions")
    for name in ("rounds", "seconds, median", "slowest", "pruned, MB", "files", "events and ledger, MB", "report, MB"):
        table.add_column(name, justify="right")
    part = max(flags.rounds // 20, 1)
    seconds: list[float] = []
    for span in track(range(1, flags.rounds + 1), transient=True):
        seconds.append(one_round(loop, span))
        if span % part == 0:
            own = seconds[-part:]
            pruned, files = occupied(loop.artifacts, loop.metadata, loop.logs, Path(loop.config.serving_dir))
            (store, _), (report, _) = occupied(loop.database), occupied(loop.report)
            cells = [f"{span:,}", f"{statistics.median(own):.2f}", f"{max(own):.2f}", f"{pruned / 1e6:.2f}", f"{files}"]
            table.add_row(*cells, f"{store / 1e6:.2f}", f"{report / 1e6:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
