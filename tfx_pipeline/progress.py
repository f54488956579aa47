"""Shows on the terminal which components run, how long, and how much memory they take."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator

import psutil
from rich.console import Console

_HEARTBEAT_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one component took.

    Args:
        component: its id.
        start: seconds after the first one's.
        seconds: wall time.
        peak_bytes: the largest resident memory of its process and that one's children while it ran, as sampled.
        cached: whether an earlier run's outputs were taken.
    """

    component: str
    start: float
    seconds: float
    peak_bytes: int
    cached: bool


@dataclasses.dataclass
class _Running:
    process: psutil.Process
    start: float
    peak: int = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def sample(self) -> int:
        memory = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            for part in (self.process, *self.process.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    memory += part.memory_info().rss
        self.peak = max(self.peak, memory)
        return memory


class Progress:
    """Reports on components as they start and end, and now and then on those that take long.

    Args:
        console: where to report.

    Attributes:
        num_components: how many will run.
        timings: of those that have.
    """

    def __init__(self, console: Console) -> None:
        self.num_components = 0
        self.timings: list[Timing] = []
        self._console = console
        self._running: dict[str, _Running] = {}
        self._first_start: float | None = None
        self._num_started = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="progress", daemon=True)

    def started(self, component: str, pid: int | None = None) -> None:
        """Reports that a component runs.

        Args:
            component: its id.
            pid: of its process; `None`: this one.
        """
        with self._lock:
            self._num_started += 1
            running = self._running[component] = _Running(psutil.Process(pid), time.monotonic())
            if self._first_start is None:
                self._first_start = running.start
        self._print(f"[{self._num_started}/{self.num_components}] {component}")

    def ended(self, component: str, *, cached: bool, failed: bool) -> None:
        """Reports how a component ended.

        Args:
            component: its id.
            cached: whether an earlier run's outputs were taken.
            failed: whether it failed.
        """
        with self._lock:
            running = self._running.pop(component)
            running.sample()
        first = running.start if self._first_start is None else self._first_start
        timing = Timing(component, running.start - first, running.seconds, running.peak, cached)
        self.timings.append(timing)
        if failed:
            note = f"failed after {timing.seconds:.1f} s"
        else:
            note = "unchanged, outputs of an earlier run" if cached else f"{timing.seconds:.1f} s"
        self.says(component, note)

    def says(self, component: str, text: str) -> None:
        """Shows a line of a component."""
        self._print(f"      {component}: {text}")

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
            with self._lock:
                memory = {name: running.sample() for name, running in self._running.items()}
                notes = {name: f"... {self._running[name].seconds:.0f} s" for name in memory}
            if time.monotonic() >= next_report:
                next_report += _HEARTBEAT_SECONDS
                for name, size in memory.items():
                    self.says(name, f"{notes[name]}, {size / 2**30:.1f} GiB")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def shown(console: Console) -> Iterator[Progress]:
    """Reports on components while the context lasts."""
    progress = Progress(console)
    progress.start()
    try:
        yield progress
    finally:
        progress.stop()
