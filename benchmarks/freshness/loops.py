"""The loop of `tfx_pipeline.continuous` in a process of its own, and what its ledger says."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.freshness.logs import PATTERN
from tfx_pipeline.continuous.ledger import OPEN, PUSHED, KnownFile, Ledger, Round

_LOG_LINES = 20
_FAILED = "error: "
# A round that runs ends first.
_STOP_SECONDS = 300
_LOOK_SECONDS = 0.2
_MOST_ROUNDS = 100_000


class LoopProcess:
    """Context manager that runs `python -m tfx_pipeline.continuous` on files of `logs.PATTERN`: SIGTERM on exit.

    Args:
        folder: for everything, which need not exist: `events`, `state`, `serving/eta` and the log `loop.log`.
        every: seconds from the start of a round to that of the next.
        flags: further flags of the loop.
    """

    def __init__(self, folder: Path, every: float, flags: Sequence[str]) -> None:
        self.events, self.serving_dir = folder / "events", folder / "serving" / "eta"
        self._state, self._log = folder / "state", folder / "loop.log"
        own = {
            "--pattern": PATTERN,
            "--data": self.events,
            "--state": self._state,
            "--serving_dir": self.serving_dir,
            "--every": every,
        }
        # The last one of a flag counts.
        given = [str(word) for item in own.items() for word in item]
        self._command = [sys.executable, "-m", "tfx_pipeline.continuous", *flags, *given]

    def __enter__(self) -> LoopProcess:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def check(self) -> None:
        """Raises RuntimeError if the loop has ended or one of its rounds has failed."""
        lines = self._log.read_text(errors="replace").splitlines()
        if self._process.poll() is not None or any(line.startswith(_FAILED) for line in lines):
            raise RuntimeError("\n".join(["The loop fails:", *lines[-_LOG_LINES:]]))

    def ledger(self) -> tuple[dict[str, KnownFile], dict[int, Round]]:
        """The files that rounds have taken, by name, and the rounds, by number."""
        path = self._state / "events.sqlite"
        if not path.exists():
            return {}, {}
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60)) as connection:
            ledger = Ledger(connection)
            try:
                rounds = {one.number: one for one in ledger.rounds(_MOST_ROUNDS)}
                files = {file.name: file for number in rounds for file in ledger.files(number)}
            except sqlite3.OperationalError:
                # The loop is about to make the tables.
                return {}, {}
        return files, rounds

    def await_round(self, name: str) -> tuple[KnownFile, Round]:
        """Waits until the round of a file is done.

        Args:
            name: of the file.

        Raises:
            RuntimeError: if the loop or a round of it fails.
        """
        while True:
            files, rounds = self.ledger()
            found = files.get(name)
            if found is not None and found.round is not None and rounds[found.round].status != OPEN:
                return found, rounds[found.round]
            self.check()
            time.sleep(_LOOK_SECONDS)

    def await_first_version(self, name: str) -> Round:
        """Waits until the version of a file is pushed, the first one.

        Raises:
            RuntimeError: if it is not.
        """
        _, first = self.await_round(name)
        if first.status != PUSHED:
            reasons = " ".join(first.facts.get("reasons", ["too few events have a history."]))
            raise RuntimeError(f"The loop makes no first version of its events: {reasons}")
        return first


def version_of(one: Round) -> int | None:
    """The number of the version that a round has pushed; `None` if it pushed none."""
    return int(Path(one.facts["version"]).name) if one.status == PUSHED else None
