"""What operates the embedded server: flags, configuration, overload, TLS, metrics, reflection, the end."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc, predict_pb2, prediction_log_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_grpc
from tensorflow_serving.config import model_server_config_pb2

from serving.server import __main__ as command
from serving.server import config, memory, servables
from serving.server.__main__ import main, server_from_flags
from serving.server.config import BatchingParameters, MonitoringConfig, SSLConfig, read_config
from serving.server.embedded import EmbeddedServer
from serving.server.status import StatusError
from serving.tools.reference_model import HITS, rank_request, tensor

Code = grpc.StatusCode
Push = Callable[..., Path]
Serve = Callable[..., EmbeddedServer]


def predict(address: str, timeout: float = 20, **spec: Any) -> predict_pb2.PredictResponse:
    with grpc.insecure_channel(address) as channel:
        return prediction_grpc.PredictionServiceStub(channel).Predict(rank_request(spec=spec), timeout=timeout)


def version_of(address: str, **spec: Any) -> int:
    """The version that answers, by what it says and by its scores."""
    response = predict(address, **spec)
    version = response.model_spec.version.value
    np.testing.assert_array_equal(tf.make_ndarray(response.outputs["probability"]), HITS + version)
    return version


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def model(name: str, base_path: Path, **fields: Any) -> dict[str, Any]:
    return {"name": name, "base_path": str(base_path), "model_platform": "tensorflow", **fields}


def server_config(*models: dict[str, Any]) -> model_server_config_pb2.ModelServerConfig:
    return model_server_config_pb2.ModelServerConfig(model_config_list={"config": models})


def reload(address: str, *models: dict[str, Any]) -> model_management_pb2.ReloadConfigResponse:
    request = model_management_pb2.ReloadConfigRequest(config=server_config(*models))
    with grpc.insecure_channel(address) as channel:
        return model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest(request, timeout=60)


BOTH = {"specific": {"versions": [1, 2]}}


@pytest.fixture
def two_versions(push: Push, tmp_path: Path) -> Path:
    """A base path with versions 1 and 2."""
    base_path = tmp_path / "models" / "eta"
    base_path.mkdir(parents=True)
    push("1", base_path, 1)
    push("2", base_path, 2)
    return base_path


def test_reload_replaces_policy_and_labels(serve: Serve, two_versions: Path) -> None:
    address = serve(two_versions).address
    assert refusal(lambda: version_of(address, version={"value": 1}))[0] is Code.NOT_FOUND
    reload(address, model("eta", two_versions, model_version_policy=BOTH))
    response = reload(address, model("eta", two_versions, model_version_policy=BOTH, version_labels={"stable": 1}))
    assert (response.status.error_code, response.status.error_message) == (0, "")
    assert version_of(address, version_label="stable") == 1
    assert version_of(address) == 2
    reload(address, model("eta", two_versions, model_version_policy=BOTH, version_labels={"stable": 2}))
    assert version_of(address, version_label="stable") == 2
    reload(address, model("eta", two_versions, model_version_policy={"specific": {"versions": [1]}}))
    assert version_of(address) == 1
    assert refusal(lambda: version_of(address, version={"value": 2}))[0] is Code.NOT_FOUND


def test_reload_replaces_models(serve: Serve, two_versions: Path, push: Push) -> None:
    other = two_versions.parent / "other"
    other.mkdir()
    push("3", other, 3)
    address = serve(two_versions, server={"reload_base_path": str(two_versions.parent)}).address
    reload(address, model("eta", two_versions), model("second", other))
    assert (version_of(address), version_of(address, name="second")) == (2, 3)
    reload(address, model("second", other))
    assert refusal(lambda: predict(address)) == (Code.NOT_FOUND, "Servable not found for request: Latest(eta)")
    assert version_of(address, name="second") == 3


def test_reloaded_policy_stays_with_new_versions(serve: Serve, two_versions: Path, push: Push) -> None:
    address = serve(two_versions).address
    reload(address, model("eta", two_versions, model_version_policy={"all": {}}))
    push("3", two_versions, 3)
    wait_for(lambda: version_of(address) == 3)
    assert version_of(address, version={"value": 1}) == 1


@pytest.mark.parametrize(
    ("models", "code", "text"),
    [
        ([], Code.INVALID_ARGUMENT, "There is no model: only a model_config_list is supported, and not an empty one."),
        ([{"name": ""}], Code.INVALID_ARGUMENT, "Each model needs a `name` and a `base_path`"),
        ([{"base_path": ""}], Code.INVALID_ARGUMENT, "Each model needs a `name` and a `base_path`"),
        ([{}, {}], Code.INVALID_ARGUMENT, "Illegal to list model eta multiple times in config list"),
        (
            [{"model_platform": "pytorch"}],
            Code.INVALID_ARGUMENT,
            "`model_platform` of 'eta' must be 'tensorflow'. Received: 'pytorch'",
        ),
        (
            [{"version_labels": {"stable": 9}}],
            Code.FAILED_PRECONDITION,
            "Request to assign label 'stable' to version 9 of model eta, which is not currently available",
        ),
        (
            [{"model_version_policy": {"specific": {"versions": [7]}}}],
            Code.OK,
            "",
        ),
        (
            [{"name": "new", "model_version_policy": {"specific": {"versions": [7]}}}],
            Code.UNKNOWN,
            "No version of model new can be loaded: there is none",
        ),
        ([{"base_path": "/"}], Code.PERMISSION_DENIED, "base_path of model eta is outside the directories"),
        ([{"base_path": "/etc/ssl"}], Code.PERMISSION_DENIED, "base_path of model eta is outside the directories"),
        ([{"base_path": "{}/.."}], Code.PERMISSION_DENIED, "base_path of model eta is outside the directories"),
        ([{"base_path": "{}/link"}], Code.PERMISSION_DENIED, "base_path of model eta is outside the directories"),
        ([{"base_path": "{}/../eta2"}], Code.PERMISSION_DENIED, "base_path of model eta is outside the directories"),
        ([{"base_path": "{}/nowhere"}], Code.NOT_FOUND, "Could not find base path"),
        ([{"base_path": "{}/a\0b"}], Code.INVALID_ARGUMENT, "`base_path` must not hold a NUL. Received: base_path='/"),
    ],
)
def test_reload_refusal_changes_nothing(
    serve: Serve, two_versions: Path, models: list[dict[str, Any]], code: grpc.StatusCode, text: str
) -> None:
    (two_versions / "link").symlink_to("/etc")
    (two_versions.parent / "eta2").mkdir()
    address = serve(two_versions, model_version_policy=BOTH).address
    wanted = [model("eta", two_versions) | each for each in models]
    for each in wanted:
        each["base_path"] = each["base_path"].format(two_versions)
    if code is Code.OK:
        reload(address, *wanted)  # what is in memory goes on serving, as when versions vanish from the disk
    else:
        answered, details = refusal(lambda: reload(address, *wanted))
        assert answered is code
        assert text in details
    assert (version_of(address), version_of(address, version={"value": 1})) == (2, 1)


def test_reload_without_a_model_config_list(serve: Serve, two_versions: Path) -> None:
    address = serve(two_versions).address
    with grpc.insecure_channel(address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        request = model_management_pb2.ReloadConfigRequest()
        code, details = refusal(lambda: stub.HandleReloadConfigRequest(request, timeout=20))
    assert code is Code.INVALID_ARGUMENT
    assert details.startswith("There is no model: only a model_config_list is supported")


def test_config_file_is_read_again(
    two_versions: Path, push: Push, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "models.config"
    file.write_text(str(server_config(model("eta", two_versions, model_version_policy=BOTH))))
    flags = ["--port=0", f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=0.05"]
    with server_from_flags(flags) as server:
        assert version_of(server.address) == 2
        file.write_text("model_config_list { config { name: ")
        wait_for(lambda: "The models stay as they are, because of" in caplog.text)
        assert version_of(server.address) == 2
        labelled = model("eta", two_versions, model_version_policy=BOTH, version_labels={"stable": 1})
        file.write_text(str(server_config(labelled, model("again", two_versions))))
        wait_for(lambda: len(server._models.versions()) == 2)
        assert version_of(server.address, version_label="stable") == 1
        assert version_of(server.address, name="again") == 2


LABELS_MAY_WAIT = "--allow_version_labels_for_unavailable_models"


def specific(base_path: Path, *versions: int, **labels: int) -> dict[str, Any]:
    """A model of these versions."""
    return model("eta", base_path, model_version_policy={"specific": {"versions": versions}}, version_labels=labels)


@contextlib.contextmanager
def configured(file: Path, first: dict[str, Any], *flags: str) -> Iterator[tuple[str, Callable[..., None]]]:
    """The address of a server that reads `file` at short intervals, and what replaces the model in it."""

    def write(wanted: dict[str, Any]) -> None:
        file.with_suffix(".new").write_text(str(server_config(wanted)))
        file.with_suffix(".new").replace(file)

    write(first)
    arguments = ["--port=0", f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=0.05", *flags]
    with server_from_flags(arguments) as server:
        yield server.address, write


def not_available(version: int) -> str:
    return f"to version {version} of model eta, which is not currently available for inference"


def test_labels_at_the_start_need_the_flag(two_versions: Path, tmp_path: Path) -> None:
    """As in TensorFlow Serving: when labels are looked at, nothing is loaded yet."""
    labelled = specific(two_versions, 1, 2, stable=1)
    with pytest.raises(StatusError, match=not_available(1)) as caught, configured(tmp_path / "file", labelled):
        pass
    assert caught.value.code is Code.FAILED_PRECONDITION
    with configured(tmp_path / "file", labelled, LABELS_MAY_WAIT) as (address, _):
        assert version_of(address, version_label="stable") == 1


def test_new_label_of_a_version_to_load_needs_the_flag(
    two_versions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    alone, tried = specific(two_versions, 1), specific(two_versions, 1, 2, canary=2)
    with configured(tmp_path / "file", alone) as (address, write):
        write(tried)
        wait_for(lambda: caplog.text.count(not_available(2)) > 2)  # at every look
        assert refusal(lambda: version_of(address, version={"value": 2}))[0] is Code.NOT_FOUND
        write(specific(two_versions, 1, 2))
        wait_for(lambda: version_of(address) == 2)
        write(tried)
        wait_for(lambda: caplog.text.count("Configuration replaced") == 2)
        assert version_of(address, version_label="canary") == 2
    with configured(tmp_path / "file", alone, LABELS_MAY_WAIT) as (address, write):
        write(tried)
        wait_for(lambda: version_of(address) == 2)
        assert version_of(address, version_label="canary") == 2


def test_label_moves_to_loaded_versions_only_with_the_flag_too(
    two_versions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = specific(two_versions, 1, stable=1, canary=1)
    with configured(tmp_path / "file", first, LABELS_MAY_WAIT) as (address, write):
        write(specific(two_versions, 1, 2, stable=1, canary=2))
        wait_for(lambda: caplog.text.count("label 'canary' " + not_available(2)) > 2)
        assert refusal(lambda: version_of(address, version={"value": 2}))[0] is Code.NOT_FOUND
        assert version_of(address, version_label="canary") == 1
        write(specific(two_versions, 1, 2, stable=1, canary=1))
        wait_for(lambda: version_of(address) == 2)
        write(specific(two_versions, 1, 2, stable=1, canary=2))
        wait_for(lambda: version_of(address, version_label="canary") == 2)
        assert version_of(address, version_label="stable") == 1


def test_refused_label_of_one_model_keeps_every_model_as_it_is(
    two_versions: Path, push: Push, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    with configured(file, specific(two_versions, 1, stable=1), LABELS_MAY_WAIT) as (address, _):
        wrong = server_config(specific(two_versions, 1, 2, stable=2), model("again", two_versions))
        file.write_text(str(wrong))
        wait_for(lambda: not_available(2) in caplog.text)
        assert refusal(lambda: version_of(address, name="again"))[0] is Code.NOT_FOUND
        assert version_of(address, version_label="stable") == 1


def test_refused_configuration_is_tried_again(
    two_versions: Path, push: Push, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first = model("eta", two_versions)
    with configured(tmp_path / "file", first, "--file_system_poll_wait_seconds=0.05") as (address, write):
        write(specific(two_versions, 2, 3, canary=3))
        wait_for(lambda: "label 'canary' " + not_available(3) in caplog.text)
        assert version_of(address) == 2
        push("3", two_versions, 3)  # the policy until now loads the newest
        wait_for(lambda: "Configuration replaced" in caplog.text)
        assert version_of(address, version_label="canary") == 3
        assert version_of(address, version={"value": 2}) == 2


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "Give either --model_base_path or --model_config_file."),
        (["--model_base_path=/tmp", "--model_config_file=x"], "Give either --model_base_path or --model_config_file."),
        (["--model_config_file=nowhere"], "nowhere is no ModelServerConfig in text format: [Errno 2]"),
        (
            ["--model_base_path={}", "--batching_parameters_file=x"],
            "--batching_parameters_file needs --enable_batching.",
        ),
        (["--model_base_path={}", "--ssl_config_file={}/bad"], "bad is no SSLConfig in text format: 1:1 :"),
        (
            ["--model_base_path={}", "--monitoring_config_file={}/on"],
            "--rest_api_port and a --monitoring_config_file that",
        ),
        (["--model_base_path={}", "--rest_api_port=0"], "--rest_api_port and a --monitoring_config_file that"),
        (
            ["--model_base_path={}", "--rest_api_port=70000", "--monitoring_config_file={}/on"],
            "`rest_api_port` must be between 0 and 65535. Received: rest_api_port=70000",
        ),
        (["--model_base_path={}", "--grpc_channel_arguments=nonsense"], "must be key=value,... Received: 'nonsense'"),
        (["--model_base_path={}", "--max_candidates=0"], "`max_candidates` must be at least 1. Received: max_cand"),
        (["--model_base_path={}", "--max_queued_calls=-1"], "`max_queued_calls` must be at least 0. Received: max_q"),
        (["--model_base_path={}", "--model_config_file_poll_wait_seconds=-1"], "must be at least 0."),
    ],
)
def test_flags_that_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], text: str) -> None:
    (tmp_path / "bad").write_text("sever_key: 'x'")
    (tmp_path / "on").write_text("prometheus_config { enable: true }")
    assert main(["--port=0", *(flag.replace("{}", str(tmp_path)) for flag in flags)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert text in error


@pytest.mark.parametrize(("flag", "warns"), [("=true", True), ("", True), ("=false", False)])
def test_switches_as_tensorflow_model_server_takes_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, flag: str, warns: bool
) -> None:
    file = tmp_path / "batching.config"
    file.write_text("pad_variable_length_inputs: true")
    flags = ["--port=0", f"--model_base_path={tmp_path}", f"--enable_batching{flag}"]
    server_from_flags([*flags, f"--batching_parameters_file={file}"] if warns else flags).stop(grace=0)
    assert ("only requests of equal shapes are joined" in caplog.text) is warns


def test_batch_sizes_that_end_tensorflow_serving_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "batching.config"
    flags = ["--port=0", f"--model_base_path={tmp_path}", "--enable_batching", f"--batching_parameters_file={file}"]
    file.write_text("max_batch_size { value: 4 }")
    server_from_flags(flags).stop(grace=0)
    assert "allowed_batch_sizes" not in caplog.text
    file.write_text("max_batch_size { value: 4 } allowed_batch_sizes: 4")
    server_from_flags(flags).stop(grace=0)
    assert (
        "allowed_batch_sizes is safe here; one call of no rows ends TensorFlow Serving 2.16.1 with it." in caplog.text
    )


@pytest.mark.parametrize(
    ("message_class", "text", "field", "value"),
    [
        (BatchingParameters, "max_batch_size { value: 8 } allowed_batch_sizes: [4, 8]", "allowed_batch_sizes", [4, 8]),
        (BatchingParameters, 'thread_pool_name { value: "x" }', "pad_variable_length_inputs", False),
        (SSLConfig, 'server_key: "a\\nb" client_verify: true', "server_key", "a\nb"),
        (MonitoringConfig, "prometheus_config { enable: true path: '/m' }", "prometheus_config.path", "/m"),
    ],
)
def test_read_config(tmp_path: Path, message_class: Any, text: str, field: str, value: Any) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    message = read_config(file, message_class)
    for part in field.split("."):
        message = getattr(message, part)
    assert (list(message) if isinstance(value, list) else message) == value


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Holds every prediction until `release`; counts those that began."""

    class Gate:
        began = 0
        release = threading.Event()

    held = Gate()
    predict = servables.Servable.predict

    def slow(self: servables.Servable, *arguments: Any) -> predict_pb2.PredictResponse:
        held.began += 1
        assert held.release.wait(30)
        return predict(self, *arguments)

    monkeypatch.setattr(servables.Servable, "predict", slow)
    yield held
    held.release.set()


@contextlib.contextmanager
def calls(address: str, number: int, timeout: float = 30) -> Iterator[list[grpc.Future]]:
    """Calls under way."""
    with grpc.insecure_channel(address) as channel:
        stub = prediction_grpc.PredictionServiceStub(channel)
        # Held here: a call whose future nobody holds is cancelled.
        futures = [stub.Predict.future(rank_request(), timeout=timeout) for _ in range(number)]
        yield futures


def test_overload_is_refused_at_once_and_health_answers(serve: Serve, two_versions: Path, gate: Any) -> None:
    server = serve(two_versions, threads=2, server={"max_queued_calls": 3})
    with calls(server.address, 20) as futures:
        wait_for(lambda: sum(future.done() for future in futures) == 15)
        refused = [future for future in futures if future.done()]
        assert {future.code() for future in refused} == {Code.RESOURCE_EXHAUSTED}
        assert {future.details() for future in refused} == {
            "2 calls are being worked on and 3 are waiting. Try again later."
        }
        assert gate.began == 2
        with grpc.insecure_channel(server.address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert check.status == health_pb2.HealthCheckResponse.SERVING
        gate.release.set()
        answers = [future.result(timeout=20) for future in futures if future not in refused]
    assert len(answers) == 5
    assert version_of(server.address) == 2


def queued(server: EmbeddedServer) -> float | None:
    return server._metrics.registry.get_sample_value("serving_requests_queued")


def test_nothing_is_done_for_a_caller_that_has_gone(serve: Serve, two_versions: Path, gate: Any) -> None:
    server = serve(two_versions, threads=1, server={"max_queued_calls": 8})
    with calls(server.address, 1):
        wait_for(lambda: gate.began == 1)
        with calls(server.address, 2, timeout=0.3) as late, calls(server.address, 2) as cancelled:
            wait_for(lambda: queued(server) == 4)
            for future in cancelled:
                future.cancel()
            assert [future.code() for future in late] == [Code.DEADLINE_EXCEEDED] * 2
        wait_for(lambda: queued(server) == 0)
        assert gate.began == 1
        gate.release.set()
    assert version_of(server.address) == 2
    assert gate.began == 2


def numbers(*shape: int) -> Any:
    return tensor(np.ones(shape))


@pytest.mark.parametrize(
    ("signature", "name", "fits", "too_many", "number"),
    [
        ("rank", "candidates", (2, 5), (2, 6), 12),
        ("rank", "candidates", (1, 10), (1, 11), 11),
        ("serving_default", "candidate", (10,), (11,), 11),
    ],
)
def test_more_candidates_than_allowed(
    serve: Serve,
    two_versions: Path,
    signature: str,
    name: str,
    fits: tuple[int, ...],
    too_many: tuple[int, ...],
    number: int,
) -> None:
    """Those of all rows count; a history of 100 does not."""
    address = serve(two_versions, server={"max_candidates": 10}).address

    def ask(shape: tuple[int, ...]) -> Any:
        rows = {"history": numbers(shape[0], 100), "history_length": numbers(shape[0]), name: numbers(*shape)}
        request = rank_request("" if name in rank_request().inputs else "candidates", {"signature_name": signature})
        for key, value in rows.items():
            request.inputs[key].CopyFrom(value)
        with grpc.insecure_channel(address) as channel:
            return prediction_grpc.PredictionServiceStub(channel).Predict(request, timeout=20)

    # One behaviour counts, and is 1, as every candidate.
    np.testing.assert_array_equal(tf.make_ndarray(ask(fits).outputs["probability"]), np.full(fits, 1 + 2))
    assert refusal(lambda: ask(too_many)) == (
        Code.INVALID_ARGUMENT,
        f"input `{name}` must hold at most 10 candidates in one call (--max_candidates). Received: {number}",
    )


def test_limit_of_candidates_does_not_stop_a_warm_up(serve: Serve, two_versions: Path) -> None:
    request = rank_request()
    path = two_versions / "2" / servables.WARMUP_REQUESTS
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(prediction_log_pb2.PredictionLog(predict_log={"request": request}).SerializeToString())
    address = serve(two_versions, server={"max_candidates": 13}).address
    assert "must hold at most 13 candidates" in refusal(lambda: predict(address))[1]


@pytest.mark.parametrize(
    ("memory_bytes", "threads", "number"), [(16 << 30, 16, 32_768), (4 << 30, 8, 16_384), (1 << 20, 64, 1)]
)
def test_candidates_allowed_are_in_proportion_to_memory(
    monkeypatch: pytest.MonkeyPatch, memory_bytes: int, threads: int, number: int
) -> None:
    """32 KiB for each candidate of each call that is worked on."""
    monkeypatch.setattr(memory, "total", lambda: memory_bytes)
    assert config.Options(grpc_max_threads=threads).candidates_allowed == number
    assert config.Options(grpc_max_threads=threads, max_candidates=7).candidates_allowed == 7


@pytest.mark.parametrize(
    ("files", "total"),
    [
        ({}, 8 << 30),
        ({"memory.max": "max\n"}, 8 << 30),
        ({"memory.max": "1073741824\n"}, 1 << 30),
        ({"memory.max": "99999999999999\n"}, 8 << 30),
        ({"memory/memory.limit_in_bytes": "2147483648\n"}, 2 << 30),
    ],
)
def test_memory_of_a_container_is_its_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], total: int
) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(total=8 << 30))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory.total() == total


def test_message_limit(serve: Serve, two_versions: Path) -> None:
    server = serve(two_versions, server={"grpc_channel_arguments": "grpc.max_receive_message_length=1000"})
    code, details = refusal(lambda: predict(server.address))
    assert code is Code.RESOURCE_EXHAUSTED
    assert re.search("larger than max .*1000", details)


def test_channel_arguments() -> None:
    text = "grpc.max_receive_message_length=-1,grpc.primary_user_agent=a=b"
    assert config.channel_arguments(text) == {
        "grpc.max_receive_message_length": -1,
        "grpc.primary_user_agent": "a=b",
    }
    assert config.channel_arguments("") == {}


def secure_predict(address: str, root: str, key: str | None = None, certificate: str | None = None) -> Any:
    credentials = grpc.ssl_channel_credentials(
        root.encode(), key and key.encode(), certificate and certificate.encode()
    )
    with grpc.secure_channel(address, credentials) as channel:
        return prediction_grpc.PredictionServiceStub(channel).Predict(rank_request(), timeout=5)


def test_tls(
    two_versions: Path, tmp_path: Path, authority: Any, stranger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    key, certificate = authority.issue("server")
    file = tmp_path / "ssl.config"
    file.write_text(str(SSLConfig(server_key=key, server_cert=certificate)))
    flags = [f"--model_base_path={two_versions}", "--port=0", "--host=0.0.0.0", f"--ssl_config_file={file}"]
    with server_from_flags(flags) as server:
        address = server.address.replace("0.0.0.0", "127.0.0.1")
        assert secure_predict(address, authority.certificate).model_spec.version.value == 2
        assert refusal(lambda: predict(address, timeout=5))[0] is Code.UNAVAILABLE
        assert refusal(lambda: secure_predict(address, stranger.certificate))[0] is Code.UNAVAILABLE
    assert "without TLS" not in caplog.text


def test_mutual_tls(serve: Serve, two_versions: Path, authority: Any, stranger: Any) -> None:
    key, certificate = authority.issue("server")
    ssl_config = SSLConfig(server_key=key, server_cert=certificate, custom_ca=authority.certificate, client_verify=True)
    address = serve(two_versions, server={"ssl_config": ssl_config}).address
    answer = secure_predict(address, authority.certificate, *authority.issue("client"))
    assert answer.model_spec.version.value == 2
    assert refusal(lambda: secure_predict(address, authority.certificate))[0] is Code.UNAVAILABLE
    theirs = stranger.issue("client")
    assert refusal(lambda: secure_predict(address, authority.certificate, *theirs))[0] is Code.UNAVAILABLE
    assert refusal(lambda: predict(address, timeout=5))[0] is Code.UNAVAILABLE


PEM = "-----BEGIN X-----"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"server_key": PEM}, "An SSLConfig must hold `server_key` and `server_cert`, as PEM texts."),
        (
            {"server_key": "server.key", "server_cert": PEM},
            "`server_key` of an SSLConfig must be a PEM text, not a path.",
        ),
        ({"server_key": PEM, "server_cert": PEM, "client_verify": True}, "`client_verify` needs `custom_ca`"),
    ],
)
def test_tls_incomplete(tmp_path: Path, fields: dict[str, Any], text: str) -> None:
    models = [model_server_config_pb2.ModelConfig(name="eta", base_path=str(tmp_path))]
    with pytest.raises(ValueError, match=text):
        EmbeddedServer(models, port=0, ssl_config=SSLConfig(**fields))


def test_metrics(serve: Serve, two_versions: Path, gate: Any) -> None:
    server = serve(two_versions, threads=1, model_version_policy=BOTH, server={"rest_api_port": 0})
    assert server.monitoring_address.startswith("127.0.0.1:")

    def metrics() -> dict[str, float]:
        url = f"http://{server.monitoring_address}/monitoring/prometheus/metrics"
        lines = urllib.request.urlopen(url, timeout=10).read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}

    with calls(server.address, 3) as futures:
        wait_for(lambda: metrics()["serving_requests_queued"] == 2)
        assert metrics()["serving_requests_running"] == 1
        gate.release.set()
        for future in futures:
            future.result(timeout=20)
    assert version_of(server.address, version={"value": 1}) == 1
    refusal(lambda: predict(server.address, name="nope"))
    refusal(lambda: predict(server.address, name="nope either"))
    found = metrics()
    assert found["serving_requests_queued"] == found["serving_requests_running"] == 0
    labels = '{model="eta",signature="rank",version="2"}'
    assert found["serving_request_latency_seconds_count" + labels] == 3
    assert found["serving_request_latency_seconds_count" + labels.replace('"2"', '"1"')] == 1
    assert 0 < found["serving_request_latency_seconds_sum" + labels] < 90
    assert found['serving_requests_total{code="OK",method="Predict"}'] == 4
    assert found['serving_requests_total{code="NOT_FOUND",method="Predict"}'] == 2
    assert found['serving_model_version_available{model="eta",version="1"}'] == 1
    assert found['serving_model_version_available{model="eta",version="2"}'] == 1
    # A caller can't make series.
    assert not any("nope" in name for name in found)


def test_metrics_port_taken(serve: Serve, two_versions: Path) -> None:
    server = serve(two_versions, server={"rest_api_port": 0})
    port = int(server.monitoring_address.rpartition(":")[2])
    with pytest.raises(RuntimeError, match=f"Failed to bind the metrics to 127.0.0.1:{port}"):
        serve(two_versions, server={"rest_api_port": port})


def test_reflection(serve: Serve, two_versions: Path) -> None:
    with grpc.insecure_channel(serve(two_versions).address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    assert {service.name for service in answer.list_services_response.service} == {
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


@pytest.mark.e2e
def test_sigterm_drains(two_versions: Path, tmp_path: Path) -> None:
    """Watchers hear of it, calls under way end, new ones are UNAVAILABLE, and an open watch does not hold it up."""
    command = [sys.executable, "-m", "serving.server", "--port=0", f"--model_base_path={two_versions}"]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: "Running gRPC ModelServer at" in log.read_text() or process.poll() is not None, 120)
        (address,) = re.findall(r"ModelServer at (\S+)", log.read_text())
        with grpc.insecure_channel(address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            big = np.ones((1, 400_000), np.int64)
            inputs = {"history": big, "history_length": np.array([400_000]), "candidates": np.ones((1, 300), np.int64)}
            request = rank_request(**{name: tf.make_tensor_proto(value) for name, value in inputs.items()})
            call = prediction_grpc.PredictionServiceStub(channel).Predict.future(request, timeout=60)
            time.sleep(0.1)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            answer = tf.make_ndarray(call.result(timeout=60).outputs["probability"])
            np.testing.assert_array_equal(answer, np.full((1, 300), 400_002))
            assert process.wait(timeout=20) == 0
        assert time.monotonic() - began < 15
        assert refusal(lambda: predict(address, timeout=5))[0] is Code.UNAVAILABLE
        assert "Stopping; calls under way are finished first." in log.read_text()
    finally:
        process.kill()
        process.wait()


# Memory


def test_a_large_request_has_memory_given_back(
    push: Push, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push("1", tmp_path, 1)
    server = serve(tmp_path)
    asked: list[int] = []
    monkeypatch.setattr(memory, "give_back_later", lambda: asked.append(1))
    with grpc.insecure_channel(server.address) as channel:
        stub = prediction_grpc.PredictionServiceStub(channel)
        stub.Predict(rank_request(), timeout=20)
        assert not asked
        columns = {"history": np.zeros((1, 600_000)), "history_length": [5], "candidates": [[1]]}
        stub.Predict(rank_request(**{name: tensor(value) for name, value in columns.items()}), timeout=60)
        assert asked == [1]


def test_memory_is_given_back_once_for_all_that_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    monkeypatch.setattr(memory, "_LATER_SECONDS", 0.1)
    monkeypatch.setattr(memory, "give_back", lambda: given.append(time.monotonic()))
    began = time.monotonic()
    for _ in range(5):
        memory.give_back_later()
    wait_for(lambda: bool(given))
    memory.give_back_later()
    wait_for(lambda: len(given) == 2)
    time.sleep(0.2)
    assert len(given) == 2
    assert given[0] - began >= 0.1


def test_what_is_imported_is_left_out_of_garbage_collections_before_models_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    class Server:
        ready, address, monitoring_address = True, "localhost:1", ""

        def __enter__(self) -> None:
            calls.append("load")
            os.kill(os.getpid(), signal.SIGTERM)

        def __exit__(self, *_: object) -> None:
            calls.append("stop")

    def settle() -> None:
        calls.append("settle")
        gc.unfreeze()
        memory.settle()

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(command, "server_from_flags", lambda argv: Server())
    monkeypatch.setattr(command, "memory", types.SimpleNamespace(settle=settle))
    try:
        assert command.main([]) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert calls == ["settle", "load", "stop"]
    # TensorFlow alone makes hundreds of thousands of objects.
    assert gc.get_freeze_count() > 100_000
