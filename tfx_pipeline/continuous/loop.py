"""Runs rounds until it is told to stop, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from tfx_pipeline.continuous.settings import Loop
from tfx_pipeline.exclusive import exclusive

# What a round imports takes many seconds: once, in the process that all rounds are forked from.
_PRELOADED = ["tfx_pipeline.continuous.rounds"]
# Of a round's process: there was nothing new; it failed, and said why.
_NOTHING, _FAILED = 3, 1


def run_loop(loop: Loop, console: Console, *, every: float | None, until: float | None) -> int:
    """Runs rounds.

    Args:
        loop: what to run.
        console: where to report.
        every: seconds from the start of a round to that of the next; `None`: there is one round.
        until: seconds since 1970 at which no more round begins; `None`: there is no end.

    Returns:
        0; 1 if the last round failed.

    Raises:
        RuntimeError: if another loop holds the state directory.
    """
    with exclusive(Path(loop.state), "--state"), _stopping() as stop:
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(_PRELOADED)
        failed = False
        while not stop.is_set() and (until is None or time.time() < until):
            # Not the machine's clock, which may jump.
            start = time.monotonic()
            process = processes.Process(target=_round, args=(loop.to_json(), console.width), name="round")
            try:
                process.start()
                process.join()
                code = process.exitcode
            except (EOFError, OSError) as error:
                # The process that rounds are forked from is gone, or there is no memory; there will be another.
                code = None
                console.print(f"The round could not be started: {error}", highlight=False, soft_wrap=True)
            failed = code not in (0, _NOTHING)
            if code not in (0, _NOTHING, _FAILED, None):
                ended = f"The round's process ended with exit code {code}. The next one goes on."
                console.print(ended, highlight=False, soft_wrap=True)
            if every is None:
                if code == _NOTHING:
                    console.print("No new events.")
                break
            stop.wait(max(0.0, every - (time.monotonic() - start)))
    return int(failed)


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        stop.set()

    before: dict[int, Any] = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def _round(text: str, width: int) -> None:
    """What a round's process does. It ends by itself: signals are for the loop."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    from tfx_pipeline.continuous.report import line
    from tfx_pipeline.continuous.rounds import run_round

    loop, console = Loop.from_json(text), Console(width=width)
    try:
        # A loop that was killed may have left a round that runs to its end.
        with exclusive(Path(loop.state) / "rounds", "--state"):
            done = run_round(loop, console)
    except Exception as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(_FAILED) from None
    if done is None:
        raise SystemExit(_NOTHING)
    console.print(line(done), markup=False, highlight=False, soft_wrap=True)
