"""Writes a version of a model, whole or not at all."""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from keras_eta.contract import Contract
from keras_eta.export.arguments import rename_inputs
from keras_eta.export.warmup import ExportedSignatures, write_warmup_requests
from keras_eta.validation import check_positive_integers
from keras_eta.versions import HIGHEST_VERSION, versions

# Keras can't trace one model in several threads.
_TRACING = threading.Lock()


def write_version(
    trace: Callable[[], ExportedSignatures], base: Path, version: int | None, contract: Contract, warmup: bool
) -> Path:
    """Writes `base/version`.

    Args:
        trace: makes the signatures, a `tf.Module`.
        base: directory of the versions; made when missing.
        version: as `export_model`.
        contract: what lies beside the graph.
        warmup: whether to add warm-up requests.

    Returns:
        The path of the version.

    Raises:
        ValueError: if `version` is not a positive integer below 2**63, or there is none left above the highest.
        FileExistsError: if the version exists.
        ImportError: if `warmup` is asked for without tensorflow-serving-api.
    """
    free_version(base, version)
    with _TRACING:
        signatures = trace()
    base.mkdir(parents=True, exist_ok=True)
    # TF Serving looks at directories with numeric names only, so nobody sees the version before it is whole.
    temporary = base / f".{uuid.uuid4().hex}"
    try:
        tf.saved_model.save(signatures, str(temporary), signatures=signatures.functions)
        renamed = {argument: name for name, argument in signatures.arguments.items() if argument != name}
        if renamed:
            rename_inputs(temporary / "saved_model.pb", renamed)
        contract.write(temporary)
        if warmup:
            write_warmup_requests(temporary / "assets.extra" / "tf_serving_warmup_requests", signatures, base.name)
        while True:
            target = base / str(free_version(base, version))
            try:
                return temporary.rename(target)
            except OSError:
                # Another export may have taken the version a moment ago.
                if not target.exists():
                    raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def free_version(base: Path, version: int | None) -> int:
    """The version asked for, or one more than the highest there; refuses one that exists or that no server takes."""
    present = versions(path.name for path in base.glob("*"))
    if version is None:
        version = max(present, default=0) + 1
    check_positive_integers(version=version)
    if version > HIGHEST_VERSION:
        raise ValueError(f"`version` must be at most 2**63 - 1. Received: version={version}")
    if version in present:
        raise FileExistsError(
            f"Version {version} exists: {base / present[version]}. Choose another `version`, or None for the next."
        )
    return version
