"""Labels that move in two edits of a models.config, while the embedded server reads it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_grpc
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig, ModelServerConfig

from serving import promote
from serving.server.__main__ import server_from_flags
from serving.server.config import read_config
from serving.server.embedded import EmbeddedServer
from serving.tools.reference_model import rank_request

Push = Callable[..., Path]
HEAD = "# What the servers read.\n# By hand or by serving.promote.\n"


def model_config(base_path: Path | str, *versions: int, **labels: int) -> ModelConfig:
    model = ModelConfig(name="eta", base_path=str(base_path), model_platform="tensorflow", version_labels=labels)
    if versions:
        model.model_version_policy.specific.versions.extend(versions)
    return model


def write(file: Path, *models: ModelConfig) -> None:
    config = ModelServerConfig(model_config_list={"config": models})
    file.write_text(HEAD + text_format.MessageToString(config))


def read(file: Path) -> tuple[list[int], dict[str, int]]:
    """The versions and the labels of the file's first model."""
    model = read_config(file, ModelServerConfig).model_config_list.config[0]
    return list(model.model_version_policy.specific.versions), dict(model.version_labels)


@pytest.fixture
def file(push: Push, tmp_path: Path) -> Path:
    """A models.config of a base path with versions 1, 2 and 3; both labels stand for 1, the only one in it."""
    (tmp_path / "models").mkdir()
    for version in (1, 2, 3):
        push(str(version), tmp_path / "models", version)
    file = tmp_path / "models.config"
    write(file, model_config(tmp_path / "models", 1, stable=1, canary=1))
    return file


@pytest.fixture
def server(file: Path) -> Iterator[EmbeddedServer]:
    flags = ["--model_config_file_poll_wait_seconds=0.05", "--allow_version_labels_for_unavailable_models"]
    with server_from_flags(["--port=0", f"--model_config_file={file}", *flags]) as server:
        yield server


def run(file: Path, address: str, *arguments: str) -> int:
    return promote.main([f"--model_config_file={file}", f"--target={address}", *arguments])


def answers(server: EmbeddedServer, label: str) -> int:
    with grpc.insecure_channel(server.address) as channel:
        request = rank_request(spec={"version_label": label})
        response: predict_pb2.PredictResponse = prediction_grpc.PredictionServiceStub(channel).Predict(
            request, timeout=20
        )
    return int(response.model_spec.version.value)


def test_canary_promotion_and_rollback(
    server: EmbeddedServer, file: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO")

    def state() -> tuple[int, int, list[int]]:
        return answers(server, "stable"), answers(server, "canary"), server._models.versions()["eta"]

    assert run(file, server.address, "--version=2", "--labels", "canary") == 0
    assert state() == (1, 2, [1, 2])
    assert caplog.text.count("Configuration replaced") == 2  # one edit for the version, one for the label
    assert run(file, server.address) == 0
    assert state() == (2, 2, [1, 2])
    assert run(file, server.address, "--rollback") == 0
    assert state() == (1, 1, [1, 2])
    assert run(file, server.address, "--version=3", "--labels", "canary") == 0
    assert state() == (1, 3, [1, 3])  # what no label stood for has gone
    assert run(file, server.address, "--rollback") == 0
    assert state() == (1, 1, [1, 3])
    assert read(file) == ([1, 3], {"stable": 1, "canary": 1})
    assert file.read_text().startswith(HEAD)
    assert "not currently available" not in caplog.text
    output = capsys.readouterr().out
    assert f"{server.address}: version 2 is AVAILABLE: it has not seen the version\n" in output
    assert f"{server.address}: version 2 is AVAILABLE: done\n" in output
    assert f"{file}: canary=2, stable=1\n" in output


def test_version_that_does_not_come_leaves_the_file_as_it_was(
    server: EmbeddedServer, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file.read_bytes()
    assert run(file, server.address, "--version=9", "--timeout=1") == 1
    expected = f"error: {server.address}: version 9 is AVAILABLE: it has not seen the version\n"
    assert capsys.readouterr().err == expected
    assert file.read_bytes() == before
    assert answers(server, "stable") == 1


def test_broken_version_leaves_the_file_as_it_was(
    server: EmbeddedServer, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file.parent / "models" / "2" / "saved_model.pb").write_bytes(b"")
    before = file.read_bytes()
    assert run(file, server.address, "--version=2", "--timeout=1") == 1
    assert "version 2 is AVAILABLE: END The SavedModel in" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_no_server_leaves_the_file_as_it_was(file: Path, free_target: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = file.read_bytes()
    assert run(file, free_target, "--version=2", "--timeout=0.1") == 1
    assert f"error: {free_target}: version 2 is AVAILABLE: UNAVAILABLE: " in capsys.readouterr().err
    assert file.read_bytes() == before


def test_what_somebody_else_wrote_meanwhile_stays(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = model_config(file.parent, 7)
    other.name = "other"

    def wait(*_: Any) -> None:
        versions, labels = read(file)
        write(file, model_config(file.parent / "models", *versions, **labels), other)

    monkeypatch.setattr(promote, "wait", wait)
    assert run(file, "127.0.0.1:1", "--version=2") == 0
    models = read_config(file, ModelServerConfig).model_config_list.config
    assert [(model.name, dict(model.version_labels)) for model in models] == [
        ("eta", {"stable": 2, "canary": 2}),
        ("other", {}),
    ]

    def fail(*_: Any) -> None:
        other.base_path += "/elsewhere"
        wait()
        raise TimeoutError("told so")

    monkeypatch.setattr(promote, "wait", fail)
    assert run(file, "127.0.0.1:1", "--version=3") == 1
    assert read(file) == ([1, 2, 3], {"stable": 2, "canary": 2})


@pytest.mark.parametrize(
    ("versions", "labels", "highest", "back"),
    [
        ([1, 2], {"stable": 1, "canary": 2}, 2, 1),
        ([1, 2, 3], {"stable": 1, "canary": 3}, 3, 1),
        ([1, 2, 5], {"stable": 5, "canary": 5}, "Every label stands for the same version already: canary=5, stable", 2),
        (
            [5],
            {"stable": 5},
            "Every label stands for the same version already: stable=5. Pass --version.",
            r"No version before that of the labels, stable=5, is in versions=\[5\]. Pass --version.",
        ),
        (
            [5],
            {},
            "Every label stands for the same version already: no labels. Pass --version.",
            r"No version before that of the labels, no labels, is in versions=\[5\]. Pass --version.",
        ),
    ],
)
def test_versions_that_labels_imply(
    versions: list[int], labels: dict[str, int], highest: int | str, back: int | str
) -> None:
    model = model_config("/models", *versions, **labels)
    for implied, expected in ((promote.version_to_promote, highest), (promote.version_to_roll_back_to, back)):
        if isinstance(expected, int):
            assert implied(model) == expected
        else:
            with pytest.raises(ValueError, match=f"^{expected}"):
                implied(model)


def test_edits() -> None:
    model = model_config("/models", 1, 2, 3, stable=2, canary=3)
    assert not promote.add_version(model, 3)
    assert promote.add_version(model, 4)
    assert list(model.model_version_policy.specific.versions) == [1, 2, 3, 4]
    assert dict(model.version_labels) == {"stable": 2, "canary": 3}
    promote.move_labels(model, ["canary", "new"], 4)
    # 2 has a label, 4 gets two, 3 had one; 1 has none and had none.
    assert list(model.model_version_policy.specific.versions) == [2, 3, 4]
    assert dict(model.version_labels) == {"stable": 2, "canary": 4, "new": 4}


def test_edits_of_other_policies_are_of_labels_only() -> None:
    model = ModelConfig(model_version_policy={"latest": {"num_versions": 2}}, version_labels={"stable": 1})
    assert not promote.add_version(model, 2)
    promote.move_labels(model, ["stable"], 2)
    assert model == ModelConfig(model_version_policy={"latest": {"num_versions": 2}}, version_labels={"stable": 2})


def test_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    inode = file.stat().st_ino
    promote.write_whole(link, "new")
    assert (file.read_text(), link.is_symlink()) == ("new", True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert file.stat().st_ino != inode  # another file under the name: no reader sees a part of it

    def full(*_: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        promote.write_whole(file, "newer")
    assert file.read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--model_name=nope"], "models.config must have the model 'nope'. It has: ['eta']"),
        (["--version=1", "--tls_ca={}"], "--tls_ca must be a PEM file. Received: "),
        ([], "Every label stands for the same version already: canary=1, stable=1. Pass --version."),
    ],
)
def test_wrong_commands(file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    before = file.read_bytes()
    assert run(file, "127.0.0.1:1", *(argument.replace("{}", str(file)) for argument in arguments)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert text in error
    assert file.read_bytes() == before


def test_model_without_labels(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(file, model_config(file.parent / "models", 1))
    assert run(file, "127.0.0.1:1", "--version=1") == 1
    assert capsys.readouterr().err == f"error: Model 'eta' has no label in {file}. Pass --labels.\n"


def test_mutual_tls(file: Path, authority: Any, tmp_path: Path) -> None:
    key, certificate = authority.issue("server")
    server_ssl = {"server_key": key, "server_cert": certificate, "custom_ca": authority.certificate}
    (tmp_path / "ssl.config").write_text(
        "".join(f"{name}: {text!r}\n" for name, text in server_ssl.items()) + "client_verify: true"
    )
    names = ("tls_ca", "tls_key", "tls_cert")
    for name, text in zip(names, (authority.certificate, *authority.issue("client")), strict=True):
        (tmp_path / name).write_text(text)
    flags = ["--model_config_file_poll_wait_seconds=0.05", "--allow_version_labels_for_unavailable_models"]
    ssl_flag = f"--ssl_config_file={tmp_path / 'ssl.config'}"
    with server_from_flags(["--port=0", f"--model_config_file={file}", ssl_flag, *flags]) as server:
        pems = [f"--{name}={tmp_path / name}" for name in names]
        assert run(file, server.address, "--version=2", *pems) == 0
        assert server._models.versions() == {"eta": [1, 2]}
    assert read(file) == ([1, 2], {"stable": 2, "canary": 2})


def test_key_without_its_certificate_is_a_usage_error(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(file, "127.0.0.1:1", f"--tls_key={file}")
    assert ended.value.code == 2
    assert "--tls_cert and --tls_key go together." in capsys.readouterr().err
