"""docs/own_data.md, run as it is printed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.client import RankingClient

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "own_data.md"


@pytest.mark.slow
@pytest.mark.e2e
def test_a_csv_becomes_a_served_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```(python|bash)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert {language for language, _ in blocks} == {"python", "bash"}
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    names: dict[str, Any] = {}
    for number, (language, code) in enumerate(blocks):
        if language == "python":
            exec(compile(code, f"docs/own_data.md, block {number}", "exec"), names)
        else:
            _run(code, port, tmp_path / f"{number}.log")
    assert names["learned"] > max(names["counted"].values()) + 0.1
    assert max(names["counted"], key=names["counted"].get) in {"repeat-count", "repeat-popularity", "recency"}
    log = "".join(path.read_text() for path in sorted(tmp_path.glob("*.log")))
    assert "4,800 rows read, 4,800 kept" in log
    assert (tmp_path / "build" / "report" / "index.html").is_file()
    (model,) = (tmp_path / "models" / "purchases").glob("*/saved_model.pb")
    assert model.stat().st_size
    page = (tmp_path / "explanation.html").read_text()
    assert "match_item_id_count" in page


def _run(code: str, port: int, log: Path) -> None:
    """Runs the commands, on a free port: in this process, which has imported TFX; with & in another, which is stopped.

    `log` takes what the commands in this process print.
    """
    code = code.replace("--port 8500", f"--port {port}").replace("\\\n", " ")
    code = code.replace("serving.client explain", f"serving.client explain --target 127.0.0.1:{port}")
    with contextlib.ExitStack() as started, log.open("w") as file, contextlib.redirect_stdout(file):
        for line in code.splitlines():
            python, m, module, *flags = shlex.split(line)
            assert (python, m) == ("python", "-m")
            if flags[-1] == "&":
                started.enter_context(_started(module, *flags[:-1]))
                with RankingClient(f"127.0.0.1:{port}", flags[flags.index("--model_name") + 1]) as client:
                    client.wait_until_ready(60)
            else:
                assert _main(module)(flags) == 0, line


def _main(module: str) -> Callable[[list[str]], int]:
    """What `python -m` calls with the flags."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    return importlib.import_module(f"{module}.__main__" if spec.submodule_search_locations else module).main


@contextlib.contextmanager
def _started(module: str, *flags: str) -> Iterator[None]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    with subprocess.Popen([sys.executable, "-m", module, *flags], env=environment) as process:
        try:
            yield
        finally:
            process.terminate()
