"""Silences what TensorFlow and its dependencies write to stderr of themselves: for commands."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType

_LOG_LEVEL, _SILENT = "TF_CPP_MIN_LOG_LEVEL", "3"
# Modules of TFX's dependencies that warn of versions to come.
_WARNING = ("google.api_core._python_version_support", "google.cloud.aiplatform.models")

# `graph_options` of a session: TensorFlow's memory optimizer, which moves tensors off GPUs, would warn of every softmax
# of unknown shape, whatever the log level.
QUIET_GRAPHS = {"rewrite_options": {"memory_optimization": "NO_MEM_OPT"}}


def quiet_imports() -> None:
    """Silences imports in this process, unless TF_CPP_MIN_LOG_LEVEL asks for more. Call it before TensorFlow's.

    What TensorFlow writes while it is imported is shown if it can't be. Processes that this one starts are silent, too.
    """
    if os.environ.setdefault(_LOG_LEVEL, _SILENT) == _SILENT:
        sys.meta_path.insert(0, _TensorFlowAside())
    for module in _WARNING:
        warnings.filterwarnings("ignore", category=FutureWarning, module=re.escape(module))
    given = os.environ.get("PYTHONWARNINGS")
    of_modules = [f"ignore::FutureWarning:{module}" for module in _WARNING]
    os.environ["PYTHONWARNINGS"] = ",".join([*of_modules, *filter(None, [given])])


class _TensorFlowAside(importlib.abc.MetaPathFinder):
    """Sets stderr aside while TensorFlow is imported: its newer versions write there whatever the environment says."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                with _stderr_aside():
                    execute(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def _stderr_aside() -> Iterator[None]:
    """Drops what is written to the process's stderr, by libraries in C++ too; shows it if there is an exception."""
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            aside.seek(0)
            os.write(shown, aside.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
