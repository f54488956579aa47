"""docs/own_data.md, run as it is printed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
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
    assert "10,000 rows read, 10,000 kept" in log
    assert (tmp_path / "build" / "report" / "index.html").is_file()
    (model,) = (tmp_path / "models" / "purchases").glob("*/saved_model.pb")
    assert model.stat().st_size
    page = (tmp_path / "explanation.html").read_text()
    assert "match_item_id_count" in page


def _run(code: str, port: int, log: Path) -> None:
    """Runs the commands with this Python, on a free port; what is started with & is stopped at the end."""
    code = code.replace("--port 8500", f"--port {port}")
    code = code.replace("serving.client explain", f"serving.client explain --target 127.0.0.1:{port}")
    script = f"""
        set -e
        python() {{
            if [ "$2" = serving.client ]; then  # until the version is loaded
                for attempt in $(seq 60); do {sys.executable} "$@" && return; sleep 1; done
                return 1
            fi
            {sys.executable} "$@"
        }}
        {code}"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    with log.open("w") as file:
        shell = subprocess.Popen(
            ["bash", "-c", script], stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        assert shell.wait() == 0, log.read_text()[-4000:]
    finally:
        # All that it has started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGTERM)
