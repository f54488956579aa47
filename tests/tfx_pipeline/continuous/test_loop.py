"""The command: its flags, its lock, and how it ends."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tests.tfx_pipeline.continuous.events import make_loop
from tfx_pipeline.config import Training
from tfx_pipeline.continuous import loop as module
from tfx_pipeline.continuous.__main__ import loop_from_flags, main, parser
from tfx_pipeline.continuous.loop import run_loop
from tfx_pipeline.continuous.settings import Loop
from tfx_pipeline.exclusive import exclusive

FLAGS = ["--layout", "taobao", "--pattern", "day-{SPAN}.csv", "--data", "events", "--state", "state"]


class Rounds:
    """Stands in for the processes of rounds: exit codes, one after the other."""

    def __init__(self, *exit_codes: int, during: Any = None) -> None:
        self.exit_codes, self.started, self.during = list(exit_codes), 0, during

    def get_context(self, method: str) -> Rounds:
        assert method == "forkserver"
        return self

    def set_forkserver_preload(self, modules: list[str]) -> None:
        pass

    def Process(self, **arguments: Any) -> Any:  # noqa: N802
        def join() -> None:
            self.started += 1
            if self.during is not None:
                self.during()

        code = self.exit_codes[min(self.started, len(self.exit_codes) - 1)]
        return SimpleNamespace(start=lambda: None, join=join, exitcode=code)


def looped(loop: Loop, rounds: Rounds, monkeypatch: pytest.MonkeyPatch, **when: Any) -> tuple[int, str]:
    """The result of a loop with these rounds, and what it prints."""
    printed = io.StringIO()
    monkeypatch.setattr(module, "multiprocessing", rounds)
    return run_loop(
        loop, Console(file=printed, width=200), **{"every": None, "until": None, **when}
    ), printed.getvalue()


def test_once_is_one_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop(tmp_path)
    for code, result, text in ((0, 0, ""), (3, 0, "No new events.\n"), (1, 1, "")):
        rounds = Rounds(code)
        assert looped(loop, rounds, monkeypatch) == (result, text)
        assert rounds.started == 1
    _, text = looped(loop, Rounds(-9), monkeypatch)
    assert text == "The round's process ended with exit code -9. The next one goes on.\n"


def test_rounds_begin_until_a_moment_whatever_becomes_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(1, -9, 0)
    until = time.time() + 0.5
    assert looped(make_loop(tmp_path), rounds, monkeypatch, every=0.1, until=until)[0] == 0
    assert 3 <= rounds.started <= 6


def test_signal_ends_the_loop_after_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    rounds = Rounds(0, during=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert looped(make_loop(tmp_path), rounds, monkeypatch, every=600.0) == (0, "")
    assert rounds.started == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_signal_ends_the_wait_for_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    start = time.monotonic()
    assert looped(make_loop(tmp_path), Rounds(3), monkeypatch, every=600.0)[0] == 0
    assert time.monotonic() - start < 30


def test_state_directory_serves_one_loop_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop(tmp_path)
    with exclusive(Path(loop.state)), pytest.raises(RuntimeError, match=r"or choose another --state\."):
        looped(loop, Rounds(0), monkeypatch)


def test_flags_make_a_loop() -> None:
    loop = loop_from_flags(parser().parse_args([*FLAGS, "--keep", "7", "--max_auc_fall", "0.1", "--top_k", "8"]))
    assert (loop.keep, loop.gates.max_auc_fall, loop.config.layout.pattern) == (7, 0.1, "day-{SPAN}.csv")
    assert Loop.from_json(loop.to_json()) == loop


def test_rounds_train_at_rates_that_stay() -> None:
    training = loop_from_flags(parser().parse_args(FLAGS)).config.training
    assert training == Training(embedding_learning_rate=0.1, dense_learning_rate=1e-3, decay=False)
    flags = ["--batch_size", "64", "--embedding_learning_rate", ".2", "--dense_learning_rate", ".01", "--seed", "3"]
    training = loop_from_flags(parser().parse_args([*FLAGS, *flags])).config.training
    expected = Training(batch_size=64, embedding_learning_rate=0.2, dense_learning_rate=0.01, decay=False, seed=3)
    assert training == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (FLAGS[:-2], "--state is missing: the directory of everything that the loop keeps."),
        ([*FLAGS, "--keep", "0"], "`keep` must be a positive integer. Received: keep=0"),
        ([*FLAGS, "--pattern", "*.csv"], "`pattern` must name the span of a file, as in 'events-{SPAN}.csv'"),
        ([*FLAGS, "--once", "--until", "2026-01-01"], "--until goes with --every or alone. Received: --once"),
        ([*FLAGS, "--serving_dir", "a", "--challenger", "a/"], "`challenger` must not be the `serving_dir`."),
    ],
)
def test_errors_come_before_any_work(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 1
    assert f"error: {message}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
