"""Pushes blessed models to the directory that TensorFlow Serving watches: whole versions or none."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging
from tfx import v1 as tfx
from tfx.components.pusher import executor as tfx_pusher
from tfx.dsl.components.base import executor_spec
from tfx.dsl.io import fileio
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import io_utils, proto_utils

from keras_eta.versions import versions

# Beside the model's own files: which model a version is.
PUSHED_FROM = os.path.join("assets.extra", "pushed_from.json")

_SAVED_MODEL = "saved_model.pb"
_TEMPORARY_SUFFIX = ".pushing"
_LOCK = ".push.lock"
_CHUNK_BYTES = 1 << 20


def push(model_path: str, base_directory: str, source: str) -> int:
    """Makes a model the newest version under a directory, unless it is that already.

    On this machine's file systems the version appears by one rename of a finished, synced copy: whatever happens, a
    server sees all of it or nothing. Two pushes to one directory wait for each other, and one that was killed leaves a
    hidden directory, which the next one removes. On remote file systems (`gs://` and the like) nothing renames a
    directory atomically: there `saved_model.pb`, by which a version is known to be whole, is copied last, a version
    without it is removed by the next push, and only one push may run at a time. Older versions are never touched.

    Args:
        model_path: directory of the SavedModel.
        base_directory: directory of the versions, as TensorFlow Serving's `--model_base_path`; made when missing.
        source: what to note in the version about its origin, e.g. the URI of the artifact.

    Returns:
        The version: seconds since 1970, or one more than the newest one if that is greater. If the newest version was
        pushed from a model with the same files, that version.

    Raises:
        FileNotFoundError: if there is no SavedModel.
        OSError: if the copy fails or differs; there is no new version then.
    """
    digest = _digest(model_path)
    note = json.dumps({"source": source, "sha256": digest}, indent=2)
    if "://" in base_directory:
        return _push_remote(model_path, base_directory, digest, note)
    base = Path(base_directory)
    base.mkdir(parents=True, exist_ok=True)
    with _locked(base / _LOCK):
        for leftover in base.glob(f".*{_TEMPORARY_SUFFIX}"):
            logging.warning("Removing %s, which a push that was killed has left.", leftover)
            shutil.rmtree(leftover)
        newest = _newest(base_directory)
        if newest and _pushed_digest(base_directory, newest) == digest:
            return int(newest)
        version = _next(newest)
        temporary = base / f".{version}.{uuid.uuid4().hex}{_TEMPORARY_SUFFIX}"
        try:
            for name in _files(model_path):
                _copy(model_path, str(temporary), name)
            if _digest(str(temporary)) != digest:
                raise OSError(f"The copy of {model_path} in {base} differs from it.")
            _write_note(str(temporary), note)
            _sync(temporary)
            temporary.rename(base / str(version))
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_entry(base)
    return version


def _push_remote(model_path: str, base: str, digest: str, note: str) -> int:
    fileio.makedirs(base)
    newest = _newest(base)
    while newest and _is_leftover(target := os.path.join(base, newest)):
        logging.warning("Removing %s, which a push that was killed has left.", target)
        fileio.rmtree(target)
        newest = _newest(base)
    if newest and _pushed_digest(base, newest) == digest:
        return int(newest)
    version = _next(newest)
    target = os.path.join(base, str(version))
    try:
        _write_note(target, note)
        for name in sorted(_files(model_path), key=lambda name: name == _SAVED_MODEL):
            _copy(model_path, target, name)
    except BaseException:
        with contextlib.suppress(Exception):
            fileio.rmtree(target)
        raise
    return version


class AtomicPusherExecutor(tfx_pusher.Executor):
    """Pushes the model if both its blessings say so."""

    def Do(  # noqa: N802
        self, input_dict: dict[str, list[Any]], output_dict: dict[str, list[Any]], exec_properties: dict[str, Any]
    ) -> None:
        """Pushes the model and keeps a copy of it in the PushedModel artifact, as TFX's Pusher does."""
        self._log_startup(input_dict, output_dict, exec_properties)
        pushed = artifact_utils.get_single_instance(output_dict[standard_component_specs.PUSHED_MODEL_KEY])
        blessings = standard_component_specs.MODEL_BLESSING_KEY, standard_component_specs.INFRA_BLESSING_KEY
        missing = [key for key in blessings if not input_dict.get(key)]
        if missing or not self.CheckBlessing(input_dict):
            logging.warning("The model is not pushed: %s.", f"no {missing}" if missing else "it is not blessed")
            self._MarkNotPushed(pushed)
            return
        destination = tfx.proto.PushDestination()
        proto_utils.json_to_proto(exec_properties[standard_component_specs.PUSH_DESTINATION_KEY], destination)
        base_directory = destination.filesystem.base_directory
        model = artifact_utils.get_single_instance(input_dict[standard_component_specs.MODEL_KEY])
        model_path = self.GetModelPath(input_dict)
        # Before the push: what fails here must not leave a version that no artifact tells of.
        io_utils.copy_dir(model_path, pushed.uri)
        version = push(model_path, base_directory, model.uri)
        target = os.path.join(base_directory, str(version))
        self._MarkPushed(pushed, pushed_destination=target, pushed_version=str(version))
        logging.info("The model of %s is served from %s.", model.uri, target)


class AtomicPusher(tfx.components.Pusher):
    """TFX's Pusher with pushes that happen whole or not at all, once for each model; see `push`.

    Args:
        model: channel of the Model.
        model_blessing: channel of the Evaluator's blessing.
        infra_blessing: channel of the InfraValidator's blessing. Without either no model is pushed.
        push_destination: the directory of the versions.
    """

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(AtomicPusherExecutor)

    def __init__(
        self,
        model: tfx.types.BaseChannel,
        model_blessing: tfx.types.BaseChannel,
        infra_blessing: tfx.types.BaseChannel,
        push_destination: tfx.proto.PushDestination,
    ) -> None:
        super().__init__(
            model=model,
            model_blessing=model_blessing,
            infra_blessing=infra_blessing,
            push_destination=push_destination,
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock file; the system lets go of it however the process ends."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _newest(base: str) -> str:
    """Name of the highest version, empty if there is none."""
    present = versions(map(str, fileio.listdir(base)))
    return present[max(present)] if present else ""


def _next(newest: str) -> int:
    return max(int(time.time()), int(newest or 0) + 1)


def _pushed_digest(base: str, version: str) -> str:
    """What the version's note says, empty if it has none that can be read."""
    path = os.path.join(base, version, PUSHED_FROM)
    if not fileio.exists(path):
        return ""
    with fileio.open(path, "r") as file, contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(file.read())["sha256"])
    return ""


def _is_leftover(version_path: str) -> bool:
    noted = fileio.exists(os.path.join(version_path, PUSHED_FROM))
    return noted and not fileio.exists(os.path.join(version_path, _SAVED_MODEL))


def _write_note(version_path: str, note: str) -> None:
    path = os.path.join(version_path, PUSHED_FROM)
    fileio.makedirs(os.path.dirname(path))
    with fileio.open(path, "w") as file:
        file.write(note)


def _files(folder: str) -> list[str]:
    """Paths of all files, relative to the folder, sorted."""
    root = folder.rstrip("/")
    paths = (os.path.join(str(where), str(name)) for where, _, names in fileio.walk(root) for name in names)
    return sorted(path[len(root) + 1 :] for path in paths)


def _copy(source: str, target: str, name: str) -> None:
    path = os.path.join(target, name)
    fileio.makedirs(os.path.dirname(path))
    fileio.copy(os.path.join(source, name), path)


def _digest(folder: str) -> str:
    """SHA-256 of the names and contents of all files."""
    names = _files(folder)
    if _SAVED_MODEL not in names:
        raise FileNotFoundError(f"There is no {_SAVED_MODEL} in {folder}.")
    whole = hashlib.sha256()
    for name in names:
        content = hashlib.sha256()
        with fileio.open(os.path.join(folder, name), "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                content.update(chunk)
        whole.update(f"{name}\n{content.hexdigest()}\n".encode())
    return whole.hexdigest()


def _sync(folder: Path) -> None:
    """Waits until the files and directories are on the disk."""
    for where, _, names in os.walk(folder):
        for name in names:
            _sync_entry(Path(where, name))
        _sync_entry(Path(where))


def _sync_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
