"""How an exported version becomes an artifact, and which versions a serving directory has."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from keras_eta.versions import versions


def publish(export: Callable[[Path], Path], serving_model_dir: str, name: str) -> None:
    """Exports a model to a directory, which appears when it is whole.

    Args:
        export: writes a version below a base path, which is local, and returns the version's path.
        serving_model_dir: the directory of the SavedModel, local or remote.
        name: that of the base path, which goes into the warm-up requests.
    """
    remote = "://" in serving_model_dir
    if remote:
        workspace = Path(tempfile.mkdtemp())
    else:
        target = Path(serving_model_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        workspace = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    try:
        exported = export(workspace / name)
        if remote:
            copy_saved_model(exported, serving_model_dir)
        else:
            exported.rename(serving_model_dir)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def copy_saved_model(source: Path, target: str) -> None:
    """Copies a SavedModel to a file system without renames; the file that makes it one comes last."""
    files = [path for path in source.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == "saved_model.pb"):
        copy = "/".join([target, *path.relative_to(source).parts])
        tf.io.gfile.makedirs(os.path.dirname(copy))
        tf.io.gfile.copy(str(path), copy)


def model_name(serving_dir: str, default: str) -> str:
    """The name under which the versions of a directory are served: the directory's."""
    return os.path.basename(serving_dir.rstrip("/")) or default


def served_versions(serving_dir: str) -> dict[int, str]:
    """Names of the versions in a serving directory, which may be missing, by version."""
    if not serving_dir or not tf.io.gfile.isdir(serving_dir):
        return {}
    return versions(tf.io.gfile.listdir(serving_dir))
