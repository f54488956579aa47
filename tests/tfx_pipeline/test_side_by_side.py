"""Components side by side: order, faults, and processes that end with the one that started them."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run_little() -> Iterator[Callable[..., Any]]:
    """`little_components.run_little`, whose processes import it by that name: IPython has a package `tests` as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        yield importlib.import_module("little_components").run_little


def ran(folder: Path, name: str) -> tuple[int, float, float, int]:
    """The process of a component, when it started and ended, and over how many threads it spreads an operation."""
    pid, start, end, threads = (folder / name).read_text().split()
    return int(pid), float(start), float(end), int(threads)


@pytest.mark.parametrize("jobs", [1, 2])
def test_components_run_side_by_side_where_they_do_not_wait(
    run_little: Callable[..., Any], jobs: int, tmp_path: Path
) -> None:
    timings, printed = run_little(tmp_path, jobs, seconds=1.0)
    pids, starts, ends, threads = zip(
        *(ran(tmp_path, name) for name in ("First", "Second", "AfterBoth", "AfterFirst")), strict=True
    )
    assert (starts[1] < ends[0]) == (jobs == 2)
    assert starts[2] >= max(ends[:2])
    assert starts[3] >= ends[0]
    assert set(threads) == {0 if jobs == 1 else max(1, len(os.sched_getaffinity(0)) // 2)}
    assert len({os.getpid(), *pids}) == (1 if jobs == 1 else 5)
    assert [timing.cached for timing in timings] == [False] * 4
    first, second = (next(timing for timing in timings if timing.component == name) for name in ("First", "Second"))
    assert first.start == 0
    assert (second.start < first.seconds) == (jobs == 2)
    assert all(1.0 <= timing.seconds < 30 for timing in (first, second))
    lines = printed.splitlines()
    assert lines[0] == "[1/4] First"
    assert sum(line.startswith("      Second: ") and line.endswith(" s") for line in lines) == 1
    # In this process they print by themselves.
    assert ("      First: First speaks" in lines) == (jobs == 2)


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_does_not_wait_for_a_fault_still_runs_and_is_taken_by_the_next_run(
    run_little: Callable[..., Any], jobs: int, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match=r"^Second failed: The second has a fault\.$") as raised:
        run_little(tmp_path, jobs, fault="error")
    assert str(raised.value.__cause__) == "The second has a fault."
    assert (tmp_path / "AfterFirst").exists()
    assert not (tmp_path / "AfterBoth").exists()
    assert "      Second: failed after 0." in (tmp_path / "printed").read_text()
    assert "ValueError: The second has a fault." in (tmp_path / "run.log").read_text()
    timings, printed = run_little(tmp_path, jobs)
    cached = {timing.component: timing.cached for timing in timings}
    assert cached == {"First": True, "Second": False, "AfterFirst": True, "AfterBoth": False}
    assert "      First: unchanged, outputs of an earlier run" in printed.splitlines()


def test_killed_component_is_named(run_little: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^Second failed: Its process ended with exit code -9\.$"):
        run_little(tmp_path, 2, fault="kill")
    run_little(tmp_path, 2)
    assert (tmp_path / "AfterBoth").exists()


def test_components_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("little_components.py")), str(tmp_path), "600"]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        files = [tmp_path / "First.pid", tmp_path / "Second.pid"]
        deadline = time.monotonic() + 120
        while not all(file.exists() and file.read_text() for file in files):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        pids = [int(file.read_text()) for file in files]
        assert all(map(psutil.pid_exists, pids))
        # It alone, and without a chance to tell the others.
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(map(psutil.pid_exists, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
