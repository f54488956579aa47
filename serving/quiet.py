"""Keeps notes that TensorFlow and its dependencies write as they are imported out of a command's output."""

from __future__ import annotations

import os
import warnings


def quiet_imports() -> None:
    """Sets this process up so; to be called before TensorFlow is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", category=FutureWarning, module="google.api_core")
