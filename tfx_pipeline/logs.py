"""Sends what TFX and the libraries beneath it log to a file."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from absl import logging as absl_logging


@contextlib.contextmanager
def logged_to(log_file: Path) -> Iterator[None]:
    """Appends log records and standard error to a file while the context lasts.

    Args:
        log_file: made when missing, with its directory.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    standard_error = os.dup(2)
    with log_file.open("a") as file:
        os.dup2(file.fileno(), 2)
    handler = logging.FileHandler(log_file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, absl_logger = logging.getLogger(), absl_logging.get_absl_logger()
    before = root.handlers[:], root.level, absl_logger.handlers[:], absl_logger.propagate, absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.INFO)
    root.handlers, absl_logger.handlers, absl_logger.propagate = [handler], [], True
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers, level, absl_logger.handlers, absl_logger.propagate, verbosity = before
        root.setLevel(level)
        absl_logging.set_verbosity(verbosity)
        handler.close()
        sys.stderr.flush()
        os.dup2(standard_error, 2)
        os.close(standard_error)
