"""Moves version labels in a models.config that servers poll, in two edits: the version is loaded in between.

    python -m serving.promote --model_config_file models.config --version 3 --labels canary   # tries version 3 out
    python -m serving.promote --model_config_file models.config                               # every label to it
    python -m serving.promote --model_config_file models.config --rollback                    # every label back

TensorFlow Serving refuses a configuration as a whole that moves a label to a version that is not loaded, so one edit
that adds a version and moves a label to it is refused at every look at the file, and the version is never loaded.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig, ModelServerConfig

from serving import tls
from serving.client import protocol
from serving.server.config import model_configs, read_config
from serving.targets import proxy_option

_CALL_SECONDS = 10
_LOOK_SECONDS = 0.5


class ModelsFile:
    """A model in a models.config.

    Args:
        path: of the file. The comment at its head stays when it is written; other comments do not.
        model_name: the model's.

    Raises:
        ValueError: if the file is wrong or has no such model.
    """

    def __init__(self, path: Path, model_name: str) -> None:
        self._path = path
        self._config = read_config(path, ModelServerConfig)
        self.text = path.read_text(encoding="utf-8")
        models = {model.name: model for model in model_configs(self._config)}
        if model_name not in models:
            raise ValueError(f"{path} must have the model {model_name!r}. It has: {sorted(models)}")
        self.model: ModelConfig = models[model_name]

    def write(self) -> str:
        """Puts the file in place whole, by one rename, and returns its text."""
        head = itertools.takewhile(lambda line: line.startswith("#"), self.text.splitlines(keepends=True))
        text = "".join(head) + text_format.MessageToString(self._config)
        write_whole(self._path, text)
        return text


def write_whole(path: Path, text: str) -> None:
    """Replaces the text of a file atomically: readers see the old text or the new one, never a part."""
    # A link stays a link.
    target = Path(os.path.realpath(path))
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def version_to_promote(model: ModelConfig) -> int:
    """The highest version that a label stands for.

    Raises:
        ValueError: if every label stands for it already.
    """
    labelled = set(model.version_labels.values())
    if len(labelled) < 2:
        raise ValueError(f"Every label stands for the same version already: {_labels(model)}. Pass --version.")
    return max(labelled)


def version_to_roll_back_to(model: ModelConfig) -> int:
    """The lowest version that a label stands for; where all stand for one, the version before it in `versions`.

    Raises:
        ValueError: if there is none.
    """
    labelled = set(model.version_labels.values())
    if len(labelled) > 1:
        return min(labelled)
    versions = list(model.model_version_policy.specific.versions)
    earlier = [version for version in versions if version < min(labelled, default=0)]
    if not earlier:
        nothing = f"No version before that of the labels, {_labels(model)}, is in versions={versions}"
        raise ValueError(f"{nothing}. Pass --version.")
    return max(earlier)


def add_version(model: ModelConfig, version: int) -> bool:
    """The first edit: adds a version to a `specific` policy. Other policies load it by themselves.

    Returns:
        Whether there was anything to edit.
    """
    policy = model.model_version_policy
    if not policy.HasField("specific") or version in policy.specific.versions:
        return False
    policy.specific.versions.append(version)
    return True


def move_labels(model: ModelConfig, labels: Sequence[str], version: int) -> None:
    """The second edit. `specific` versions that no label stands for, or stood for until now, are dropped."""
    kept = set(model.version_labels.values())
    for label in labels:
        model.version_labels[label] = version
    kept |= set(model.version_labels.values())
    policy = model.model_version_policy
    if policy.HasField("specific"):
        policy.specific.versions[:] = [each for each in policy.specific.versions if each in kept]


class Server:
    """A server that reads the file.

    Args:
        target: its address.
        channel: to it.
        model_name: the model's.
    """

    def __init__(self, target: str, channel: grpc.Channel, model_name: str) -> None:
        self.target = target
        self._spec: dict[str, Any] = {"name": model_name}
        self._methods = protocol.methods(channel)

    def lacks_version(self, version: int) -> str:
        """Why calls to a version fail; empty if they do not."""
        request = protocol.GetModelStatusRequest(model_spec=self._spec)
        statuses = self._methods["GetModelStatus"](request, timeout=_CALL_SECONDS).model_version_status
        status = next((status for status in statuses if status.version == version), None)
        if status is None:
            return "it has not seen the version"
        state = protocol.state_name(status.state)
        return "" if state == "AVAILABLE" else " ".join(filter(None, (state, status.status.error_message)))

    def lacks_label(self, label: str, version: int) -> str:
        """Why calls to a label are not answered by a version; empty if they are."""
        request = protocol.GetModelMetadataRequest(
            model_spec={**self._spec, "version_label": label}, metadata_field=["signature_def"]
        )
        answered = self._methods["GetModelMetadata"](request, timeout=_CALL_SECONDS).model_spec.version.value
        return "" if answered == version else f"version {answered} answers to the label {label!r}"


def wait(servers: Sequence[Server], lacks: Callable[[Server], str], goal: str, end: float) -> None:
    """Waits until no server lacks anything.

    Args:
        servers: all that read the file.
        lacks: what a server lacks.
        goal: what is waited for, in words.
        end: the `time.monotonic()` until which to wait.

    Raises:
        TimeoutError: with what the first server lacks at the end.
    """
    for server in servers:
        shown = None
        while True:
            try:
                missing = lacks(server)
            except grpc.RpcError as error:
                missing = f"{error.code().name}: {error.details()}"
            if missing != shown:
                print(f"{server.target}: {goal}: {missing or 'done'}", flush=True)
                shown = missing
            if not missing:
                break
            if time.monotonic() > end:
                raise TimeoutError(f"{server.target}: {goal}: {missing}")
            time.sleep(_LOOK_SECONDS)


def promote(
    path: Path, model_name: str, labels: Sequence[str], version: int, servers: Sequence[Server], timeout: float
) -> None:
    """Moves labels to a version: has it loaded, waits until it answers, then moves them.

    Args:
        path: of the models.config.
        model_name: the model's.
        labels: which; all that there are if empty.
        version: what they are to stand for.
        servers: all that read the file.
        timeout: seconds for each of the two edits to take effect.

    Raises:
        ValueError: if the file is wrong.
        TimeoutError: if an edit takes no effect in time. The file is as before then, if it was the first one.
    """
    file = ModelsFile(path, model_name)
    if not labels and not file.model.version_labels:
        raise ValueError(f"Model {model_name!r} has no label in {path}. Pass --labels.")
    added = file.write() if add_version(file.model, version) else None
    try:
        goal = f"version {version} is AVAILABLE"
        wait(servers, functools.partial(Server.lacks_version, version=version), goal, time.monotonic() + timeout)
    except (TimeoutError, KeyboardInterrupt):
        if added is not None and path.read_text(encoding="utf-8") == added:
            write_whole(path, file.text)
        raise
    # Somebody may have changed other things meanwhile.
    file = ModelsFile(path, model_name)
    labels = labels or list(file.model.version_labels)
    move_labels(file.model, labels, version)
    file.write()
    for label in labels:
        goal = f"label {label!r} stands for version {version}"
        lacks = functools.partial(Server.lacks_label, label=label, version=version)
        wait(servers, lacks, goal, time.monotonic() + timeout)
    print(f"{path}: {_labels(file.model)}")


def _labels(model: ModelConfig) -> str:
    return ", ".join(f"{label}={version}" for label, version in sorted(model.version_labels.items())) or "no labels"


def main(argv: Sequence[str] | None = None) -> int:
    """Moves labels and prints the progress.

    Returns:
        The exit code: 0 once every server answers so, 1 if not.
    """
    parser = argparse.ArgumentParser(
        prog="python -m serving.promote",
        description="Give version labels another version, in servers that read a models.config at intervals.",
    )
    parser.add_argument("--model_config_file", type=Path, required=True, metavar="FILE", help="what the servers read")
    parser.add_argument("--model_name", default="eta", metavar="NAME", help="default: eta")
    parser.add_argument("--labels", nargs="+", default=[], metavar="LABEL", help="which to move (default: all)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--version", type=int, metavar="N", help="default: the highest that a label stands for")
    which.add_argument(
        "--rollback", action="store_true", help="to the lowest that a label stands for, or to the one before it"
    )
    parser.add_argument(
        "--target", nargs="+", default=["127.0.0.1:8500"], metavar="HOST:PORT", help="the servers, to see what they do"
    )
    parser.add_argument("--timeout", type=float, default=300, metavar="S", help="for each edit (default: 300)")
    tls.add_flags(parser)
    flags = parser.parse_args(argv)
    tls.check_flags(parser, flags)
    channels = []
    try:
        model = ModelsFile(flags.model_config_file, flags.model_name).model
        version = flags.version
        if version is None:
            version = version_to_roll_back_to(model) if flags.rollback else version_to_promote(model)
        credentials = tls.credentials(flags)
        for target in flags.target:
            options = [proxy_option(target)]
            channels.append(
                grpc.secure_channel(target, credentials, options)
                if credentials
                else grpc.insecure_channel(target, options)
            )
        servers = [Server(*place, flags.model_name) for place in zip(flags.target, channels, strict=True)]
        promote(flags.model_config_file, flags.model_name, flags.labels, version, servers, flags.timeout)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        for channel in channels:
            channel.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
