"""The embedded server in a process of its own, so that a crash or growing memory can be observed from outside.

Nothing else here reads where a started server listens. `tfx_pipeline.components.model_server`, which must not import
serving, does so itself: it starts TensorFlow Serving as well, and ties the server to the life of its own process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

_STARTED = "Running gRPC ModelServer at "
_LOG_LINES = 20
_STOP_SECONDS = 60


class ServerProcess:
    """Context manager that runs `python -m serving.server` on a free loopback port: ready on entry, stopped on exit.

    Args:
        flags: of the server, but for the port.
        log: file for what it writes to stderr.

    Raises:
        RuntimeError: on entering, if the server does not start; the message ends with its log.
    """

    def __init__(self, *flags: str, log: Path) -> None:
        self._command = [sys.executable, "-m", "serving.server", "--port=0", *flags]
        self._log = log
        self.address = ""

    def __enter__(self) -> ServerProcess:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log, text=True)
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line.startswith(_STARTED):
            self.__exit__()
            raise RuntimeError(f"The server does not start: {line}{self.last_words()}")
        self.address = line.removeprefix(_STARTED).split()[0]
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    @property
    def exit_code(self) -> int | None:
        """How the process ended; `None` while it runs."""
        return self._process.poll()

    @property
    def memory(self) -> int:
        """Resident set in bytes; 0 once the process has ended."""
        try:
            return psutil.Process(self._process.pid).memory_info().rss
        except psutil.NoSuchProcess:
            return 0

    def last_words(self) -> str:
        """The end of the log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
