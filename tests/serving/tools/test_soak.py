"""The soak tool: what it calls a fault, and a run of whole rounds of changes."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from serving.server.embedded import EmbeddedServer
from serving.tools.soak import run as soak
from serving.tools.soak.__main__ import main

HITS = np.array([[2, 0]], np.float32)


@pytest.mark.parametrize(
    ("version", "scores", "fault"),
    [
        (3, [[5, 3]], ""),
        (3, [[5, 4]], "version 3 answered [[5.0, 4.0]], not [[5.0, 3.0]]"),
        (3, [[4, 2]], "version 3 answered [[4.0, 2.0]]"),
        (3, [5, 3], "version 3 answered [5.0, 3.0]"),
        (4, [[6, 4]], "version 4 answered, which was never whole"),
    ],
)
def test_fault_of(version: int, scores: Any, fault: str) -> None:
    response = predict_pb2.PredictResponse(model_spec={"version": {"value": version}})
    response.outputs["probability"].CopyFrom(tf.make_tensor_proto(np.array(scores, np.float32)))
    found = soak.fault_of(response, HITS, frozenset({2, 3}))
    assert found.startswith(fault)
    assert bool(found) == bool(fault)


def test_memory_around() -> None:
    """The median of the eighth after the first quarter, and of the last eighth."""
    memory = [0] * 8 + [100, 900, 101, 102] + [500] * 16 + [7, 8, 9, 1]
    assert soak.memory_around(memory) == (101, 7)
    assert soak.memory_around([5]) == (5, 5)


@pytest.mark.parametrize(("after", "faults"), [(110, []), (111, ["memory grew by more than 10%"])])
def test_report_memory(after: int, faults: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    tally = soak.Tally(memory=[100 << 20] * 10 + [after << 20] * 6, seconds=2)
    tally.versions.update({1: 30, 2: 70})
    tally.swaps["pushed"] = 4
    assert soak.report(tally) == faults
    output = capsys.readouterr().out
    assert "100 answers in 2 s, 50 a second, from 2 versions" in output
    assert f"100 MiB after the warm-up, {after} MiB at the end" in output
    assert re.search(r"pushed +4\n", output)


def test_report_many_faults(capsys: pytest.CaptureFixture[str]) -> None:
    tally = soak.Tally(memory=[1], seconds=1, faults=[f"fault {number}" for number in range(30)])
    assert len(soak.report(tally)) == 30
    output = capsys.readouterr().out
    assert "FAULT: fault 19\n30 faults" in output


@pytest.fixture
def pusher(tmp_path: Path) -> soak.Pusher:
    pusher = soak.Pusher(tmp_path)
    pusher.place()
    pusher.place()
    return pusher


@pytest.fixture
def server(pusher: soak.Pusher, serve: Callable[..., EmbeddedServer]) -> Iterator[EmbeddedServer]:
    """Serves what the pusher has."""
    server = serve(pusher.base_path)
    with grpc.insecure_channel(server.address) as channel:
        pusher.connect(channel)
        yield server


def ask(server: EmbeddedServer, pusher: soak.Pusher, change: Callable[[], object]) -> soak.Tally:
    tally, stopped = soak.Tally(), threading.Event()
    thread = threading.Thread(target=soak.ask_until, args=(stopped, server.address, 0, pusher, tally))
    thread.start()
    try:
        change()
    finally:
        stopped.set()
        thread.join()
    return tally


def test_one_round_of_changes(server: EmbeddedServer, pusher: soak.Pusher) -> None:
    tally = ask(server, pusher, lambda: [change() for change in soak.steps(pusher).values()])
    assert tally.faults == []
    # 4, 5, 7, 8 and 9 are the broken ones; 2 answers at first and when rolled back, 3 again when 6 is removed.
    assert pusher.good == {1, 2, 3, 6}
    assert tally.versions.keys() == {2, 3, 6}


def test_answers_of_another_version_are_faults(server: EmbeddedServer, pusher: soak.Pusher) -> None:
    """Version 9 holds what version 1 is."""

    def push_a_copy() -> None:
        shutil.copytree(pusher.base_path / "1", pusher.base_path / "9.tmp")
        (pusher.base_path / "9.tmp").rename(pusher.base_path / "9")
        pusher.good |= {9}
        pusher._wait(9, soak._Status.AVAILABLE)

    with pytest.raises(ValueError, match="version 9 answers, not 2"):
        ask(server, pusher, push_a_copy)
    tally = ask(server, pusher, lambda: threading.Event().wait(1))
    assert tally.faults
    assert set(tally.faults) == {fault for fault in tally.faults if fault.startswith("version 9 answered [[")}


def test_failed_calls_are_faults(server: EmbeddedServer, pusher: soak.Pusher) -> None:
    def stop() -> None:
        server.stop(grace=0)
        time.sleep(1)  # until the client has seen it

    tally = ask(server, pusher, stop)
    assert any(fault.startswith("UNAVAILABLE: ") for fault in tally.faults)


@pytest.mark.usefixtures("server")
def test_broken_version_that_is_served(pusher: soak.Pusher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "_PATIENCE_SECONDS", 3)
    with pytest.raises(TimeoutError, match="version 3 has state 30, not 50"):
        pusher.push_broken(lambda path: None)


def test_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--minutes", "0"])
    assert "--minutes and --clients must be positive" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.e2e
def test_soak(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of changes are finished: each change is made as often as the others."""
    monkeypatch.setattr(soak, "_PAUSE_SECONDS", 0.1)
    exit_code = main(["--minutes", "0.2", "--clients", "4"])
    output = capsys.readouterr().out
    assert output.endswith("0 faults\n")
    assert exit_code == 0
    times = dict(re.findall(r"^(\S.*?) +([1-9]\d*)$", output, re.MULTILINE))
    assert {times.get(kind) for kind in soak.steps(soak.Pusher.__new__(soak.Pusher))} == {times["pushed"]}
