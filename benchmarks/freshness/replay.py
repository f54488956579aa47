"""A log replayed as a stream, served throughout: how soon an answer comes from weights that know an event.

A request brings its own history, so an answer knows an event by its history as soon as the caller does. What takes time
are the weights: the file of the event is taken by a round of the loop, the round pushes a version, and the server loads
it. The clock runs from the rename of the file to the first answer by a version that was trained on it, or by a later
one, which goes on from it. All events of a file arrive with it and so have its delay.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.beside import beside
from benchmarks.freshness.delays import Delay, delay_table, delays, draw, summary
from benchmarks.freshness.logs import Log, first_events, load_log
from benchmarks.freshness.loops import LoopProcess
from benchmarks.serving.load import arrivals, connect, make_requests, open_loop
from benchmarks.serving.runs import Call, Run, load_table
from serving.client.protocol import PredictResponse
from serving.process import ServerProcess
from tfx_pipeline.continuous.ledger import REFUSED

_MODEL = "eta"
# How long the client goes on at a time while the last versions are on their way, and how long they may take.
_TAIL_SECONDS, _PATIENCE_SECONDS = 5.0, 600.0


class Client:
    """Asks a server steadily, and keeps the moment of the first answer of each version.

    Args:
        flags: `target`, `rate`, `timeout`, `seed`, and those of `make_requests`.
    """

    def __init__(self, flags: argparse.Namespace) -> None:
        self._flags, self._requests = flags, make_requests(flags)
        self._rng = np.random.default_rng(flags.seed)
        self.began = time.time()
        self.calls: list[Call] = []
        self.answers: dict[int, float] = {}

    def ask(self, seconds: float) -> None:
        """Sends requests at the times of a Poisson process.

        Args:
            seconds: for how long.
        """
        offset, due = time.time() - self.began, arrivals(self._flags.rate, seconds, "poisson", self._rng)
        with connect(self._flags.target) as channel:
            calls = open_loop(channel, self._requests, due, self._flags.timeout, "replay", self._answered)
        self.calls += [Call(call.due + offset, call.sent + offset, call.answered + offset, call.code) for call in calls]
        # The last request comes before the end.
        time.sleep(max(0.0, self.began + offset + seconds - time.time()))

    def _answered(self, answer: bytes) -> None:
        version = PredictResponse.FromString(answer).model_spec.version.value
        self.answers.setdefault(version, time.time())


@contextlib.contextmanager
def stream(log: Log, directory: Path, first: int, events: int, rounds: int, every: float) -> Iterator[dict[str, float]]:
    """Writes a file of events every so many seconds, until the context ends, the first one at once.

    Args:
        log: that is replayed.
        directory: of the files.
        first: row of the log that the first file begins with.
        events: of a file.
        rounds: how many files there are.
        every: seconds from one file to the next.

    Yields:
        When each file came, in seconds since 1970, by name.

    Raises:
        ValueError: if the log has too few events.
    """
    log.part(first, rounds * events)
    came: dict[str, float] = {}

    def work(over: threading.Event) -> None:
        start = time.monotonic()
        for number in range(rounds):
            if over.wait(max(0.0, start + number * every - time.monotonic())):
                return
            name = log.write(directory, number + 2, log.part(first + number * events, events))
            came[name] = time.time()

    with beside(work):
        yield came


def replay(flags: argparse.Namespace) -> int:
    """Replays a log, prints tables, writes JSON and a plot."""
    console = Console()
    log = load_log(flags.data, flags.loop_flags)
    first = first_events(flags, log)
    log.part(first, flags.rounds * flags.events)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        loop = LoopProcess(folder, flags.loop_every, flags.loop_flags)
        log.begin(loop.events)
        name = log.write(loop.events, 1, log.part(0, first))
        stack.enter_context(loop)
        with console.status(f"a first version of {first:,} events"):
            seconds = loop.await_first_version(name).facts["seconds"]["all"]
        console.print(f"A first version of {first:,} events: {seconds:.0f} s", highlight=False)
        base_path = ("--model_base_path", str(loop.serving_dir), "--model_name", _MODEL)
        server = ServerProcess(*base_path, "--file_system_poll_wait_seconds=1", log=folder / "server.log")
        flags.target, flags.model_name, flags.signature = stack.enter_context(server).address, _MODEL, "rank"
        client = Client(flags)
        with stream(log, loop.events, first, flags.events, flags.rounds, flags.every) as came:
            client.ask(flags.rounds * flags.every)
            found = _settled(client, loop, came)
    run = Run.of(f"{flags.rate:g}/s poisson", client.calls).report()
    report_of(flags, found, run, client, seconds, console)
    if flags.plot:
        draw(found, client.calls, client.answers, client.began, flags.plot)
    return 0 if not run["errors"] and all(one.settled for one in found) else 1


def _settled(client: Client, loop: LoopProcess, came: dict[str, float]) -> list[Delay]:
    """Asks on until every file's version has answered, or the patience is over."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        found = delays(came, *loop.ledger(), client.answers)
        if all(one.settled for one in found) or time.monotonic() > end:
            return found
        loop.check()
        client.ask(_TAIL_SECONDS)


def report_of(
    flags: argparse.Namespace, found: list[Delay], run: dict, client: Client, first_seconds: float, console: Console
) -> None:
    """Prints what a replay has found, and writes it as JSON."""
    title = f"{flags.events:,} events every {flags.every:g} s"
    console.print(delay_table(title, found))
    console.print(load_table("the client, throughout", [run]))
    versions = sorted(client.answers)
    console.print(f"Versions that answered: {len(versions)} ({versions[0]} to {versions[-1]})", highlight=False)
    for status in dict.fromkeys(one.status for one in found):
        names = [one.file for one in found if one.status == status]
        tail = f": {', '.join(names)}" if status == REFUSED else ""
        console.print(f"Files whose round is {status}: {len(names)}{tail}", highlight=False)
    if flags.json:
        settings = {k: v for k, v in vars(flags).items() if k not in ("json", "plot", "run", "target")}
        report = {
            "settings": settings,
            "first_version_seconds": first_seconds,
            "seconds": summary(found),
            "files": [dataclasses.asdict(one) | {"total": one.total} for one in found],
            "versions": {version: moment - client.began for version, moment in client.answers.items()},
            "client": run,
        }
        flags.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
