"""Exports for warm starts, which read no graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from keras_eta import Ranker
from keras_eta.export import export_model


def export_bare(model: Ranker, base_path: Path, version: int) -> Path:
    """A version as `export_model` writes it, but for its signatures, which do nothing: tracing them takes long."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("keras_eta.export.signatures.concrete", _nothing)
        return export_model(model, base_path, version, warmup=False)


def _nothing(*_: Any) -> Any:
    return tf.function(lambda: {"nothing": tf.zeros([])}).get_concrete_function()
