"""Silences what TensorFlow and its dependencies write to stderr when they are imported."""

from __future__ import annotations

import os
import warnings


def quiet_imports() -> None:
    """Silences them in this process. Call it before TensorFlow is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", category=FutureWarning, module="google.api_core")
