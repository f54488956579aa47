"""The command that runs the pipeline: one run at a time, progress, errors before any work."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import logging as absl_logging
from rich.console import Console

from tfx_pipeline.exclusive import exclusive
from tfx_pipeline.logs import logged_to
from tfx_pipeline.progress import shown
from tfx_pipeline.run import main


def test_output_directory_serves_one_run_at_a_time(tmp_path: Path) -> None:
    output = tmp_path / "new" / "output"
    with exclusive(output):
        message = rf"Another run is using {output} \(process {os.getpid()}\)\. Wait for it, or choose another --output"
        with pytest.raises(RuntimeError, match=message), exclusive(output):
            pass
    with exclusive(output):
        pass


def test_killed_run_lets_go_of_its_output_directory(tmp_path: Path) -> None:
    code = "import os, signal, sys; from pathlib import Path; from tfx_pipeline.exclusive import exclusive\n"
    code += "with exclusive(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    finished = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=False)
    assert finished.returncode == -9
    assert (tmp_path / ".lock").read_text()
    with exclusive(tmp_path):
        pass


def test_progress_reports_on_components_as_they_start_and_end() -> None:
    printed = io.StringIO()
    with shown(Console(file=printed)) as progress:
        progress.num_components = 3
        progress.started("First")
        memory = bytearray(300 * 2**20)
        time.sleep(0.8)
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            progress.started("Second", process.pid)
            progress.ended("First", cached=False, failed=False)
            del memory
            progress.says("Second", "hello")
            progress.ended("Second", cached=True, failed=False)
            process.kill()
        progress.started("Third")
        progress.ended("Third", cached=False, failed=True)
    first, second, third = progress.timings
    assert [timing.component for timing in progress.timings] == ["First", "Second", "Third"]
    assert [timing.cached for timing in progress.timings] == [False, True, False]
    assert first.start == 0
    assert 0.8 <= second.start < first.seconds < 10
    assert third.start >= first.seconds
    assert first.peak_bytes > 300 * 2**20 > second.peak_bytes > 0
    lines = printed.getvalue().splitlines()
    assert lines[:2] == ["[1/3] First", "[2/3] Second"]
    assert lines[3:6] == ["      Second: hello", "      Second: unchanged, outputs of an earlier run", "[3/3] Third"]
    assert re.fullmatch(r"      First: \d+\.\d s", lines[2])
    assert re.fullmatch(r"      Third: failed after \d+\.\d s", lines[6])


def test_logs_go_to_a_file_while_the_context_lasts(tmp_path: Path) -> None:
    logger, log_file = logging.getLogger("absl"), tmp_path / "logs" / "run.log"
    for text in ("one", "two"):
        with logged_to(log_file):
            absl_logging.info("Component %s is running.", text)
            os.write(2, b"from a library in C\n")
        absl_logging.info("after the run")
    log = log_file.read_text()
    assert log.count("from a library in C\n") == 2
    assert "INFO absl: Component one is running.\n" in log
    assert "Component two is running." in log
    assert "after the run" not in log
    assert logger is absl_logging.get_absl_logger()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere"], "`data` must be the directory of the raw log. There is no directory 'nowhere'"),
        (["--data", ".", "--schema", "nowhere.pbtxt"], "There is no schema nowhere.pbtxt."),
        (
            ["--data", ".", "--retriever_dir", "r", "--item_table", "nowhere.csv", "--item_text", "name"],
            "`item_table` must be a file. There is no 'nowhere.csv'",
        ),
        (["--data", ".", "--jobs", "0"], "`jobs` must be a positive integer. Received: jobs=0"),
        (["--data", ".", "--epochs", "0"], "`epochs` must be a positive integer. Received: epochs=0"),
    ],
)
def test_errors_come_before_any_work(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([*flags, "--output", str(tmp_path / "out"), "--serving_dir", str(tmp_path / "served")]) == 1
    assert f"error: {message}" in capsys.readouterr().err
    assert not (tmp_path / "served").exists()
    assert not (tmp_path / "out" / "metadata.sqlite").exists()
