"""Runs Python in a process of its own, where nothing is imported yet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def run_python(*arguments: str, **variables: str | None) -> subprocess.CompletedProcess[str]:
    """What Python did with the arguments, in the project's root.

    Args:
        *arguments: of the interpreter.
        **variables: of the environment; `None` takes one out of it.
    """
    environment = {name: value for name, value in {**os.environ, **variables}.items() if value is not None}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=_ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
