"""One run at a time in a directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def exclusive(output: Path, flag: str = "--output") -> Iterator[None]:
    """Holds a directory for one run; the system lets go of it however the process ends.

    Args:
        output: the directory; made when missing.
        flag: that names it.

    Raises:
        RuntimeError: if another run holds it.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise RuntimeError(
                f"Another run is using {output} (process {file.read().strip() or 'unknown'}). Wait for it, or choose "
                f"another {flag}."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
