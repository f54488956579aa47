"""Shows on the terminal which component runs, how long, and how much memory it takes; TFX's own log goes to a file."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from absl import logging as absl_logging
from rich.console import Console

_HEARTBEAT_SECONDS = 30.0
# What TFX's LocalDagRunner logs around each component.
_STARTED, _FINISHED = "Component %s is running.", "Component %s is finished."
_CACHED = "A cached execution %d is used."


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one component took.

    Args:
        component: its id.
        seconds: wall time.
        peak_bytes: the largest resident memory of this process and its children while it ran, as sampled.
        cached: whether an earlier run's outputs were taken.
    """

    component: str
    seconds: float
    peak_bytes: int
    cached: bool


class Progress(logging.Handler):
    """Follows a LocalDagRunner by its log records.

    Args:
        console: where to report.

    Attributes:
        num_components: how many will run.
        timings: of those that have.
        running: the one that does.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.num_components = 0
        self.timings: list[Timing] = []
        self.running: str | None = None
        self._console = console
        self._start = 0.0
        self._peak = 0
        self._cached = False
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="progress", daemon=True)

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == _STARTED and isinstance(record.args, tuple):
            self.running, self._start, self._peak, self._cached = str(record.args[0]), time.monotonic(), 0, False
            place = f"[{len(self.timings) + 1}/{self.num_components}]"
            self._console.print(f"{place} {self.running}", markup=False, highlight=False)
        elif record.msg == _CACHED:
            self._cached = True
        elif record.msg == _FINISHED and self.running:
            self._sample()
            timing = Timing(self.running, time.monotonic() - self._start, self._peak, self._cached)
            self.timings.append(timing)
            self.running = None
            note = "unchanged: outputs of an earlier run" if timing.cached else f"{timing.seconds:.1f} s"
            self._console.print(f"      {note}", markup=False, highlight=False)

    def start(self) -> None:
        """Begins to watch the memory and to report on long components."""
        self._watcher.start()

    def stop(self) -> None:
        """Ends that."""
        self._stopped.set()
        self._watcher.join()

    def _watch(self) -> None:
        next_report = time.monotonic() + _HEARTBEAT_SECONDS
        while not self._stopped.wait(0.5):
            memory = self._sample()
            name, elapsed = self.running, time.monotonic() - self._start
            if time.monotonic() >= next_report:
                next_report += _HEARTBEAT_SECONDS
                if name is not None:
                    self._console.print(f"      ... {elapsed:.0f} s, {memory / 2**30:.1f} GiB", highlight=False)

    def _sample(self) -> int:
        process = psutil.Process()
        memory = 0
        for part in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                memory += part.memory_info().rss
        self._peak = max(self._peak, memory)
        return memory


@contextlib.contextmanager
def shown(console: Console, log_file: Path) -> Iterator[Progress]:
    """Reports on components while the context lasts, and sends log records and standard error to a file."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress(console)
    sys.stderr.flush()
    standard_error = os.dup(2)
    with log_file.open("a") as file:
        os.dup2(file.fileno(), 2)
    to_file = logging.FileHandler(log_file)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, absl_logger = logging.getLogger(), absl_logging.get_absl_logger()
    before = root.handlers[:], root.level, absl_logger.handlers[:], absl_logger.propagate, absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.INFO)
    root.handlers, absl_logger.handlers, absl_logger.propagate = [to_file, progress], [], True
    root.setLevel(logging.INFO)
    progress.start()
    try:
        yield progress
    finally:
        progress.stop()
        root.handlers, level, absl_logger.handlers, absl_logger.propagate, verbosity = before
        root.setLevel(level)
        absl_logging.set_verbosity(verbosity)
        to_file.close()
        sys.stderr.flush()
        os.dup2(standard_error, 2)
        os.close(standard_error)
