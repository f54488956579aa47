"""The pusher: whole versions or none, only blessed models, each once."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tfx import v1 as tfx
from tfx.dsl.io import fileio
from tfx.types import standard_artifacts

from tests.tfx_pipeline import servable
from tfx_pipeline.components import pusher
from tfx_pipeline.components.pusher import AtomicPusher, AtomicPusherExecutor, push

FILES = {
    "saved_model.pb": b"graph",
    "variables/variables.index": b"index",
    "variables/variables.data-00000-of-00001": b"weights" * 1000,
    "assets.extra/features.json": b"{}",
}


def make_saved_model(path: Path, **changed: bytes) -> Path:
    """Files that look like a SavedModel; those given by name, in place of the usual content."""
    for name, content in {**FILES, **changed}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def versions(base: Path) -> list[str]:
    """All that a server or a person looking for leftovers could find."""
    return sorted(path.name for path in base.iterdir() if path.name != ".push.lock")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_saved_model(tmp_path / "model")


def test_push_makes_a_version_of_the_time(model, tmp_path):
    base = tmp_path / "serving" / "eta"
    before = int(time.time())
    version = push(str(model), str(base), "here")
    assert before <= version <= time.time()
    assert versions(base) == [str(version)]
    pushed = contents(base / str(version))
    note = json.loads(pushed.pop("assets.extra/pushed_from.json"))
    assert note["source"] == "here"
    assert pushed == FILES


def test_push_is_newer_than_every_version_there_is(model, tmp_path):
    base = tmp_path / "base"
    future = int(time.time()) + 1_000_000
    for name in ("7", "0000000012", str(future), f"{future + 5}.tmp", "latest"):
        (base / name).mkdir(parents=True)
    assert push(str(model), str(base), "here") == future + 1
    other = make_saved_model(tmp_path / "other", **{"saved_model.pb": b"another graph"})
    assert push(str(other), str(base), "there") == future + 2
    # Nothing that was there before is gone.
    assert {"7", "0000000012", str(future), f"{future + 5}.tmp", "latest"} < set(versions(base))


def test_same_model_is_pushed_once(model, tmp_path):
    base = tmp_path / "base"
    version = push(str(model), str(base), "here")
    copy = make_saved_model(tmp_path / "copy")
    assert push(str(model), str(base), "here") == version
    assert push(str(copy), str(base), "elsewhere") == version
    assert versions(base) == [str(version)]


@pytest.mark.parametrize("name", [*FILES, "assets/new"])
def test_model_with_another_file_is_another_model(model, tmp_path, name):
    base = tmp_path / "base"
    first = push(str(model), str(base), "here")
    make_saved_model(model, **{name: b"other"})
    second = push(str(model), str(base), "here")
    assert second > first
    assert (base / str(second) / name).read_bytes() == b"other"


def test_older_model_becomes_the_newest_again(model, tmp_path):
    base = tmp_path / "base"
    other = make_saved_model(tmp_path / "other", **{"saved_model.pb": b"another graph"})
    pushed = [push(str(path), str(base), "here") for path in (model, other, model)]
    assert pushed == sorted(set(pushed))
    assert (base / str(pushed[2]) / "saved_model.pb").read_bytes() == b"graph"


@pytest.mark.parametrize("note", [None, b"", b"[]", b"{}", b"\xff"])
def test_version_of_unknown_origin_is_left_alone(model, tmp_path, note):
    base = tmp_path / "base"
    (base / "3" / "assets.extra").mkdir(parents=True)
    if note is not None:
        (base / "3" / "assets.extra" / "pushed_from.json").write_bytes(note)
    before = contents(base / "3")
    version = push(str(model), str(base), "here")
    assert versions(base) == sorted(["3", str(version)])
    assert contents(base / "3") == before


def test_without_a_saved_model_nothing_happens(tmp_path):
    (tmp_path / "model" / "variables").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"There is no saved_model\.pb in .*model\."):
        push(str(tmp_path / "model"), str(tmp_path / "base"), "here")
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_full_disk_leaves_no_half_version(model, tmp_path, monkeypatch, kept, remote):
    base = tmp_path / "base"
    (base / "1").mkdir(parents=True)
    target = on_remote(base, monkeypatch) if remote else str(base)
    copied: list[str] = []
    copy = fileio.copy

    def full(source: str, path: str, overwrite: bool = False) -> None:
        if len(copied) == kept:
            with fileio.open(path, "w") as file:
                file.write("hal")
            raise OSError(errno.ENOSPC, "No space left on device", path)
        copied.append(path)
        copy(source, path, overwrite)

    monkeypatch.setattr(fileio, "copy", full)
    with pytest.raises(OSError, match="No space left on device"):
        push(str(model), target, "here")
    assert versions(base) == ["1"]


def test_copy_that_differs_is_no_version(model, tmp_path, monkeypatch):
    def forgetful(source: str, path: str, overwrite: bool = False) -> None:
        Path(path).write_bytes(Path(source).read_bytes()[:-1])

    monkeypatch.setattr(fileio, "copy", forgetful)
    with pytest.raises(OSError, match=r"The copy of .*model in .*base differs from it\."):
        push(str(model), str(tmp_path / "base"), "here")
    assert versions(tmp_path / "base") == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"This user can't mount a file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_disk_that_is_really_full_leaves_no_half_version(tmp_path, small_disk):
    small = make_saved_model(tmp_path / "small")
    large = make_saved_model(tmp_path / "large", **{"variables/variables.data-00000-of-00001": bytes(2 << 20)})
    base = small_disk / "eta"
    first = push(str(small), str(base), "here")
    with pytest.raises((OSError, tf.errors.OpError), match="No space left on device"):
        push(str(large), str(base), "here")
    assert versions(base) == [str(first)]
    # There is room again for what fits.
    other = make_saved_model(tmp_path / "other", **{"saved_model.pb": b"another graph"})
    second = push(str(other), str(base), "here")
    assert versions(base) == [str(first), str(second)]


@pytest.mark.slow
def test_push_after_one_that_was_killed(model, tmp_path):
    base = tmp_path / "base"
    code = textwrap.dedent(
        f"""
        import time
        from tfx_pipeline.components import pusher
        copy = pusher._copy
        def slow(*arguments):
            copy(*arguments)
            print("copied", flush=True)
            time.sleep(1000)
        pusher._copy = slow
        pusher.push({str(model)!r}, {str(base)!r}, "here")
        """
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "copied\n"
        (temporary,) = versions(base)
        assert temporary.startswith(".")
        killed.send_signal(signal.SIGKILL)
        assert killed.wait(20) == -signal.SIGKILL
    finally:
        killed.kill()
        killed.wait()
    assert versions(base) == [temporary]
    version = push(str(model), str(base), "here")
    assert versions(base) == [str(version)]
    assert set(contents(base / str(version))) == {*FILES, "assets.extra/pushed_from.json"}


def test_pushes_at_once_wait_for_each_other(tmp_path, monkeypatch):
    base = tmp_path / "base"
    models = [make_saved_model(tmp_path / str(n), **{"saved_model.pb": b"graph %d" % n}) for n in range(4)]
    copy = pusher._copy

    def slow(*arguments: Any) -> None:
        time.sleep(0.02)
        copy(*arguments)

    monkeypatch.setattr(pusher, "_copy", slow)
    pushed: list[int] = []
    threads = [threading.Thread(target=lambda m=m: pushed.append(push(str(m), str(base), "here"))) for m in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, versions(base))) == sorted(pushed)
    assert len(set(pushed)) == 4


def on_remote(base: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL under which TFX's file layer finds a local directory."""
    scheme = "gs://bucket"

    def local(path: str) -> str:
        return path.replace(scheme, str(base))

    for name in ("exists", "makedirs", "listdir", "open", "rmtree"):
        function = getattr(fileio, name)
        monkeypatch.setattr(fileio, name, lambda path, *rest, function=function: function(local(path), *rest))
    copy = fileio.copy
    monkeypatch.setattr(fileio, "copy", lambda source, path, *rest: copy(source, local(path), *rest))
    return scheme


def test_remote_version_gets_its_saved_model_last(model, tmp_path, monkeypatch):
    base = tmp_path / "bucket"
    target = on_remote(base, monkeypatch)
    order: list[str] = []
    copy = fileio.copy

    def recorded(source: str, path: str, *rest: bool) -> None:
        order.append(path)
        copy(source, path, *rest)

    monkeypatch.setattr(fileio, "copy", recorded)
    version = push(str(model), target, "here")
    assert versions(base) == [str(version)]
    assert len(order) == len(FILES)
    assert order[-1] == f"gs://bucket/{version}/saved_model.pb"
    assert push(str(model), target, "here") == version

    # What a push that was killed leaves: its note, and no saved_model.pb.
    leftover = base / str(version + 10)
    (leftover / "assets.extra").mkdir(parents=True)
    (leftover / "assets.extra" / "pushed_from.json").write_bytes(
        (base / str(version) / "assets.extra" / "pushed_from.json").read_bytes()
    )
    assert push(str(model), target, "here") == version
    assert versions(base) == [str(version)]


def execute(model: Path, base: Path, tmp_path: Path, *, evaluator: int | None = 1, infra: int | None = 1) -> Any:
    """The PushedModel artifact that the component's executor leaves; `None`: no such blessing."""
    artifact = servable.model_artifact(tmp_path / "artifact")
    if not servable.saved_model_path(artifact).exists():
        servable.saved_model_path(artifact).parent.mkdir(parents=True, exist_ok=True)
        servable.saved_model_path(artifact).symlink_to(model)
    inputs: dict[str, list[Any]] = {"model": [artifact]}
    channels = {"model": tfx.dsl.Channel(type=standard_artifacts.Model)}
    for key, kind, blessed in (
        ("model_blessing", standard_artifacts.ModelBlessing, evaluator),
        ("infra_blessing", standard_artifacts.InfraBlessing, infra),
    ):
        blessing = kind()
        channels[key] = tfx.dsl.Channel(type=kind)
        if blessed is not None:
            blessing.set_int_custom_property("blessed", blessed)
            inputs[key] = [blessing]
    destination = tfx.proto.PushDestination(filesystem=tfx.proto.PushDestination.Filesystem(base_directory=str(base)))
    component = AtomicPusher(**channels, push_destination=destination)
    pushed = standard_artifacts.PushedModel()
    pushed.uri = str(tmp_path / "pushed")
    os.makedirs(pushed.uri, exist_ok=True)
    AtomicPusherExecutor().Do(inputs, {"pushed_model": [pushed]}, component.exec_properties)
    return pushed


def test_blessed_model_is_pushed_and_recorded(model, tmp_path):
    base = tmp_path / "base"
    pushed = execute(model, base, tmp_path)
    (version,) = versions(base)
    assert pushed.get_int_custom_property("pushed") == 1
    assert pushed.get_string_custom_property("pushed_destination") == str(base / version)
    assert pushed.get_string_custom_property("pushed_version") == version
    assert contents(Path(pushed.uri)) == FILES
    note = json.loads((base / version / "assets.extra" / "pushed_from.json").read_text())
    assert note["source"] == str(tmp_path / "artifact")

    again = execute(model, base, tmp_path)
    assert versions(base) == [version]
    assert again.get_int_custom_property("pushed") == 1
    assert again.get_string_custom_property("pushed_version") == version


@pytest.mark.parametrize(("evaluator", "infra"), [(0, 1), (1, 0), (0, 0), (None, 1), (1, None)])
def test_model_without_both_blessings_is_not_pushed(model, tmp_path, evaluator, infra):
    base = tmp_path / "base"
    (base / "5").mkdir(parents=True)
    pushed = execute(model, base, tmp_path, evaluator=evaluator, infra=infra)
    assert pushed.get_int_custom_property("pushed") == 0
    assert versions(base) == ["5"]
    assert contents(Path(pushed.uri)) == {}
