"""The command that runs the pipeline: one run at a time, progress, errors before any work."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import logging as absl_logging
from rich.console import Console

from tfx_pipeline.exclusive import exclusive
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


def test_progress_follows_the_runner(tmp_path: Path) -> None:
    printed = io.StringIO()
    logger = logging.getLogger("absl")
    with shown(Console(file=printed), tmp_path / "logs" / "run.log") as progress:
        progress.num_components = 2
        absl_logging.info("Component %s is running.", "First")
        assert progress.running == "First"
        memory = bytearray(300 * 2**20)
        time.sleep(0.8)
        os.write(2, b"from a library in C\n")
        absl_logging.info("Component %s is finished.", "First")
        del memory
        absl_logging.info("Component %s is running.", "Second")
        absl_logging.info("A cached execution %d is used.", 7)
        absl_logging.info("Component %s is finished.", "Second")
    assert progress.running is None
    first, second = progress.timings
    assert (first.component, first.cached, second.component, second.cached) == ("First", False, "Second", True)
    assert 0.8 <= first.seconds < 10
    assert second.seconds < first.seconds
    assert first.peak_bytes > 300 * 2**20
    lines = printed.getvalue().splitlines()
    assert [lines[0], *lines[2:]] == ["[1/2] First", "[2/2] Second", "      unchanged: outputs of an earlier run"]
    log = (tmp_path / "logs" / "run.log").read_text()
    assert "Component First is running." in log
    assert "from a library in C" in log
    absl_logging.info("after the run")
    assert "after the run" not in (tmp_path / "logs" / "run.log").read_text()
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
