"""A server that is killed under load, and started again."""

from __future__ import annotations

import collections
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from serving.client import RankingClient, ServingError

REQUEST: dict[str, Any] = {
    "candidates": {"item_id": [10, 20, 30], "category_id": [1, 2, 3]},
    "history": {"item_id": [30, 10, 30], "category_id": [3, 1, 3], "rating": [5.0, 4.0, 2.0]},
    "context": {"hour": 20},
}
SCORES = np.array([4.7, 0.2, 8.2])
THREADS = 4


@contextlib.contextmanager
def server(base_path: Path, port: int, log: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server process, and what it prints once it is ready."""
    command = [sys.executable, "-m", "serving.server", f"--port={port}", f"--model_base_path={base_path}"]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline()
        finally:
            process.kill()


class Load:
    """Threads that ask without a pause until they are told to stop, and what became of every call."""

    def __init__(self, target: str) -> None:
        self.answers: list[tuple[float, str]] = []
        self.wrong: list[Any] = []
        self._stop = threading.Event()
        self._target = target
        self._threads = [threading.Thread(target=self._ask, args=(user,)) for user in range(THREADS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def count(self, code: str, since: float = 0.0) -> int:
        return sum(code == found for when, found in list(self.answers) if when >= since)

    def _ask(self, user: int) -> None:
        with RankingClient(self._target, timeout=10) as client:
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    ranking = client.rank(**REQUEST, user={"user_id": user})
                except ServingError as error:
                    self.answers.append((began, error.code.name))
                    continue
                self.answers.append((began, "OK"))
                if not np.allclose(ranking.probability, SCORES + user / 1_000, rtol=1e-5, atol=0):
                    self.wrong.append((user, ranking.probability))


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.e2e
def test_server_killed_under_load(
    push: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], record_property: Callable[..., None]
) -> None:
    """Clients see UNAVAILABLE and nothing else until the server is back, then every call succeeds."""
    base_path = tmp_path / "models"
    base_path.mkdir()
    push("int64", base_path, 1)
    with server(base_path, 0, tmp_path / "first.log") as (process, line):
        assert line.startswith("Running gRPC ModelServer at "), line
        target = line.split()[-2]
        with Load(target) as load:
            wait_for(lambda: load.count("OK") >= 100, 60)
            assert load.count("OK") == len(load.answers)
            process.kill()
            process.wait()
            wait_for(lambda: load.count(grpc.StatusCode.UNAVAILABLE.name) >= THREADS, 60)
            started = time.monotonic()
            with server(base_path, int(target.rpartition(":")[2]), tmp_path / "second.log") as (_, line):
                assert line.startswith(f"Running gRPC ModelServer at {target} "), line
                ready = time.monotonic()
                with RankingClient(target) as client:
                    client.wait_until_ready(timeout=60)
                    client.rank(**REQUEST, user={"user_id": 0})
                seconds = time.monotonic() - started
                assert time.monotonic() - ready < 10
                # The channels of the others look for the server every 2 s at most.
                back = time.monotonic() + 3
                wait_for(lambda: load.count("OK", since=back) >= 100, 60)
                load.stop()
    codes = collections.Counter(code for _, code in load.answers)
    with capsys.disabled():
        print(f"\nkill -9 under load: start to first answer {seconds:.1f} s; calls: {dict(codes)}")
    record_property("start_to_first_answer_seconds", seconds)
    assert set(codes) == {"OK", "UNAVAILABLE"}
    assert load.wrong == []
    assert [code for when, code in load.answers if when >= back and code != "OK"] == []
    assert 0 < seconds < 60
