"""What the embedded server does as versions come, go, and turn out to be broken."""

from __future__ import annotations

import itertools
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2, session_service_pb2
from tensorflow_serving.config import model_server_config_pb2

import serving.server
from serving.client import RankingClient, ServingError, VersionStatus
from serving.server import servables
from serving.server.__main__ import main
from serving.server.embedded import EmbeddedServer
from serving.server.servables import WARMUP_REQUESTS
from serving.server.status import StatusError

INPUTS = {"history": [[1, 2, 1]], "history_length": [3], "candidates": [[1, 2, 3]]}
HITS = np.array([[2, 1, 0]], np.float32)

Push = Callable[..., Path]
Serve = Callable[..., EmbeddedServer]


def ask(client: RankingClient) -> int:
    """Asks, checks the answer against the version that the scores give away, and returns that version."""
    probability = client.predict(INPUTS, "rank")["probability"]
    version = probability[0, 2]
    np.testing.assert_array_equal(probability, HITS + version)
    return int(version)


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def state(client: RankingClient, version: int) -> str:
    return {status.version: status.state for status in client.status()}.get(version, "unknown")


def health(server: EmbeddedServer) -> int:
    with grpc.insecure_channel(server.address) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20).status


def write_warmup(version: Path, *requests: predict_pb2.PredictRequest) -> None:
    path = version / WARMUP_REQUESTS
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictionLog(predict_log={"request": request})
            writer.write(log.SerializeToString())


def warmup_request(**changes: list) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest(model_spec={"name": "eta", "signature_name": "rank"})
    for name, values in (INPUTS | changes).items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values, dtype=tf.int64))
    return request


def test_highest_version_is_served(push: Push, serve: Serve, tmp_path: Path) -> None:
    push("1", tmp_path, 9)
    push("2", tmp_path, 10)
    (tmp_path / "11").write_text("a file is no version")
    (tmp_path / "12.tmp").mkdir()
    (tmp_path / "latest").mkdir()
    (tmp_path / str(2**63)).mkdir()
    with RankingClient(serve(tmp_path).address) as client:
        assert ask(client) == 2
        assert client.status() == [VersionStatus(10, "AVAILABLE")]


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ({"latest": {"num_versions": 2}}, [2, 3]),
        ({"all": {}}, [1, 2, 3]),
        ({"specific": {"versions": [1, 3]}}, [1, 3]),
    ],
)
def test_version_policy(push: Push, serve: Serve, tmp_path: Path, policy: dict, versions: list[int]) -> None:
    for version in (1, 2, 3):
        push(str(version), tmp_path, version)
    with RankingClient(serve(tmp_path, model_version_policy=policy).address) as client:
        assert client.status() == [VersionStatus(version, "AVAILABLE") for version in versions]


def test_hot_swap_under_load(push: Push, serve: Serve, tmp_path: Path) -> None:
    """Four clients see version 1, then version 2, then 1 again after a rollback, and no error."""
    push("1", tmp_path, 1)
    server = serve(tmp_path)
    seen: list[list[int]] = [[] for _ in range(4)]
    failed: list[BaseException] = []
    done = threading.Event()

    def load(answers: list[int]) -> None:
        try:
            with RankingClient(server.address) as client:
                while not done.is_set():
                    answers.append(ask(client))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=load, args=(answers,)) for answers in seen]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: bool(failed) or all(answers for answers in seen))
        path = push("2", tmp_path, 2)
        wait_for(lambda: bool(failed) or all(answers[-1] == 2 for answers in seen))
        path.rename(tmp_path / "2.bad")
        wait_for(lambda: bool(failed) or all(answers[-1] == 1 for answers in seen))
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failed == []
    for answers in seen:
        changes = [answers[0], *(b for a, b in itertools.pairwise(answers) if a != b)]
        assert changes == [1, 2, 1]


def test_replaced_version_is_reported_as_ended(push: Push, serve: Serve, tmp_path: Path) -> None:
    push("1", tmp_path, 1)
    with RankingClient(serve(tmp_path).address) as client:
        push("2", tmp_path, 2)
        wait_for(lambda: state(client, 1) == "END")
        assert client.status() == [VersionStatus(1, "END"), VersionStatus(2, "AVAILABLE")]


def empty_graph(version: Path) -> str:
    (version / "saved_model.pb").write_bytes(b"")
    return "has no graph with the tag 'serve'"


def corrupt_graph(version: Path) -> str:
    (version / "saved_model.pb").write_bytes(b"\xff" * 100)
    return "saved_model.pb is corrupt"


def no_graph(version: Path) -> str:
    (version / "saved_model.pb").unlink()
    return "No such file or directory"


def no_variables(version: Path) -> str:
    shutil.rmtree(version / "variables")
    return "variables"


def truncated_variables(version: Path) -> str:
    path = next((version / "variables").glob("*.data-*"))
    path.write_bytes(path.read_bytes()[:2])
    return "Read less bytes than requested"


def corrupt_warmup(version: Path) -> str:
    write_warmup(version, warmup_request())
    path = version / WARMUP_REQUESTS
    path.write_bytes(path.read_bytes()[:-3])
    return "Please verify your warmup data is in TFRecord format"


def garbage_warmup(version: Path) -> str:
    (version / "assets.extra").mkdir()
    (version / WARMUP_REQUESTS).write_text("these are not the records that you are looking for")
    return "Please verify your warmup data is in TFRecord format"


def foreign_warmup(version: Path) -> str:
    (version / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(version / WARMUP_REQUESTS)) as writer:
        writer.write(b"\xff\xff\xff")
    return "Failed to parse warmup record 0"


def warmup_of_another_model(version: Path) -> str:
    write_warmup(version, warmup_request(), warmup_request(extra=[1]))
    return "Sent extra: {extra}"


def warmup_of_another_api(version: Path) -> str:
    (version / "assets.extra").mkdir()
    log = prediction_log_pb2.PredictionLog(
        session_run_log={"request": session_service_pb2.SessionRunRequest(model_spec={"name": "eta"})}
    )
    with tf.io.TFRecordWriter(str(version / WARMUP_REQUESTS)) as writer:
        writer.write(log.SerializeToString())
    return "Unsupported log_type for warmup: session_run_log"


BREAKAGES = [
    (empty_graph, "NOT_FOUND"),
    (corrupt_graph, "DATA_LOSS"),
    (no_graph, "NOT_FOUND"),
    (no_variables, "NOT_FOUND"),
    (truncated_variables, "INTERNAL"),
    (corrupt_warmup, "DATA_LOSS"),
    (garbage_warmup, "DATA_LOSS"),
    (foreign_warmup, "INVALID_ARGUMENT"),
    (warmup_of_another_model, "INVALID_ARGUMENT"),
    (warmup_of_another_api, "UNIMPLEMENTED"),
]


@pytest.mark.parametrize(("breakage", "code"), BREAKAGES, ids=lambda value: getattr(value, "__name__", value))
def test_broken_version_leaves_the_old_one_serving(
    push: Push,
    serve: Serve,
    saved_models: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    breakage: Callable[[Path], str],
    code: str,
) -> None:
    push("1", tmp_path, 1)
    with RankingClient(serve(tmp_path).address) as client:
        broken = tmp_path / "2.tmp"
        shutil.copytree(saved_models["2"], broken)
        text = breakage(broken)
        broken.rename(tmp_path / "2")
        wait_for(lambda: state(client, 2) == "END")
        (error,) = [status.error for status in client.status() if status.version == 2]
        assert text in error
        assert "Version 2 of model eta is not served: " + code in caplog.text
        assert ask(client) == 1

        push("3", tmp_path, 3)
        wait_for(lambda: ask(client) == 3)
        # Tried once, not at every look.
        assert caplog.text.count("Version 2 of model eta is not served") == 1


def test_version_copied_in_place_is_served_once_it_is_whole(
    push: Push, serve: Serve, saved_models: dict[str, Path], tmp_path: Path
) -> None:
    push("1", tmp_path, 1)
    with RankingClient(serve(tmp_path).address) as client:
        shutil.copytree(saved_models["2"] / "variables", tmp_path / "2" / "variables")
        wait_for(lambda: state(client, 2) == "END")
        assert ask(client) == 1
        shutil.copy(saved_models["2"] / "saved_model.pb", tmp_path / "2")
        wait_for(lambda: ask(client) == 2)
        assert VersionStatus(2, "AVAILABLE") in client.status()


def test_newest_whole_version_is_served_at_start(push: Push, serve: Serve, tmp_path: Path) -> None:
    push("1", tmp_path, 1)
    empty_graph(push("2", tmp_path, 2))
    with RankingClient(serve(tmp_path).address) as client:
        assert ask(client) == 1


def test_warmup_is_replayed_before_traffic(
    push: Push, serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    write_warmup(push("1", tmp_path, 1), warmup_request(), warmup_request(candidates=[[5]]))
    with RankingClient(serve(tmp_path).address) as client:
        assert ask(client) == 1
    messages = [record.message for record in caplog.records]
    replayed = next(i for i, message in enumerate(messages) if message.startswith("Replayed 2 warm-up requests"))
    loaded = next(i for i, message in enumerate(messages) if message.startswith("Loaded version 1"))
    assert replayed < loaded


def test_all_versions_removed_leaves_the_last_one_serving(
    push: Push, serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = push("1", tmp_path, 1)
    with RankingClient(serve(tmp_path).address) as client:
        shutil.rmtree(path)
        wait_for(lambda: "what is in memory goes on serving" in caplog.text)
        assert ask(client) == 1


def test_base_path_gone_leaves_the_last_one_serving(
    push: Push, serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base_path = tmp_path / "models"
    base_path.mkdir()
    push("1", base_path, 1)
    with RankingClient(serve(base_path).address) as client:
        base_path.rename(tmp_path / "elsewhere")
        wait_for(lambda: "Could not look for versions of model eta" in caplog.text)
        assert ask(client) == 1
        (tmp_path / "elsewhere").rename(base_path)
        push("2", base_path, 2)
        wait_for(lambda: ask(client) == 2)


def test_empty_base_path_waits_for_a_version(
    push: Push, serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(tmp_path)
    assert "No version of servable eta found under base path" in caplog.text
    assert health(server) == health_pb2.HealthCheckResponse.NOT_SERVING
    with RankingClient(server.address) as client:
        with pytest.raises(ServingError, match="Could not find any versions of model eta") as refused:
            client.status()
        assert refused.value.code is grpc.StatusCode.NOT_FOUND
        # What a client may try again, unlike NOT_FOUND.
        with pytest.raises(ServingError, match="No version of model eta is loaded yet") as refused:
            client.metadata()
        assert refused.value.code is grpc.StatusCode.UNAVAILABLE
        assert not server.ready

        push("1", tmp_path, 1)
        client.wait_until_ready(timeout=20)
        assert ask(client) == 1
        assert server.ready
        wait_for(lambda: health(server) == health_pb2.HealthCheckResponse.SERVING)


def test_start_with_broken_versions_only_fails(push: Push, serve: Serve, tmp_path: Path) -> None:
    empty_graph(push("1", tmp_path, 1))
    with pytest.raises(
        StatusError, match=r"No version of model eta can be loaded: The SavedModel in .*/1 has no graph"
    ):
        serve(tmp_path)


def test_poll_of_zero_seconds_looks_once(push: Push, serve: Serve, tmp_path: Path) -> None:
    push("1", tmp_path, 1)
    with RankingClient(serve(tmp_path, poll=0).address) as client:
        push("2", tmp_path, 2)
        time.sleep(0.3)
        assert ask(client) == 1


@pytest.fixture
def slow_predict(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Makes every prediction take half a second; lists when each began."""
    began: list[float] = []
    predict = servables.Servable.predict

    def slow(self: servables.Servable, *arguments: Any) -> predict_pb2.PredictResponse:
        began.append(time.monotonic())
        time.sleep(0.5)
        return predict(self, *arguments)

    monkeypatch.setattr(servables.Servable, "predict", slow)
    return began


def test_stop_lets_calls_under_way_end(push: Push, serve: Serve, tmp_path: Path, slow_predict: list[float]) -> None:
    push("1", tmp_path, 1)
    server = serve(tmp_path)
    answers: list[int] = []
    with RankingClient(server.address) as client:
        client.metadata()
        call = threading.Thread(target=lambda: answers.append(ask(client)))
        call.start()
        wait_for(lambda: bool(slow_predict))
        server.stop(grace=20)
        call.join()
        assert answers == [1]
        with pytest.raises(ServingError) as refused:
            client.status()
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE


def test_call_whose_deadline_passed_in_the_queue_is_not_run(
    push: Push, serve: Serve, tmp_path: Path, slow_predict: list[float]
) -> None:
    push("1", tmp_path, 1)
    server = serve(tmp_path, threads=1)
    with RankingClient(server.address) as patient, RankingClient(server.address) as hasty:
        patient.metadata()
        hasty.metadata()
        hasty.timeout = 0.1
        call = threading.Thread(target=ask, args=(patient,))
        call.start()
        wait_for(lambda: bool(slow_predict))
        with pytest.raises(ServingError, match="DEADLINE_EXCEEDED"):
            ask(hasty)
        call.join()
        assert ask(patient) == 1
    assert len(slow_predict) == 2


def test_server_knows_no_model() -> None:
    """It serves any SavedModel: of the library it takes what lies beside a version's graph, nothing that runs it."""
    sources = sorted(Path(str(serving.server.__file__)).parent.glob("*.py"))
    assert len(sources) >= 10
    imports = [name for source in sources for name in re.findall(r"keras_eta[\w.]*", source.read_text())]
    assert set(imports) == {"keras_eta.contract", "keras_eta.quiet", "keras_eta.tf_data", "keras_eta.versions"}


def test_main_base_path_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model_name", "eta", "--model_base_path", str(tmp_path / "nowhere"), "--port", "0"]) == 1
    assert f"error: Could not find base path '{tmp_path}/nowhere' for servable eta." in capsys.readouterr().err


def test_main_port_taken(push: Push, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    push("1", tmp_path, 1)
    address = serve(tmp_path).address
    assert main(["--model_base_path", str(tmp_path), "--port", address.rpartition(":")[2]]) == 1
    assert f"Failed to bind to address {address}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"port": 65_536}, "`port` must be between 0 and 65535. Received: port=65536"),
        ({"grpc_max_threads": 0}, "`grpc_max_threads` must be at least 1. Received: grpc_max_threads=0"),
        (
            {"file_system_poll_wait_seconds": -1},
            "`file_system_poll_wait_seconds` must be at least 0. Received: file_system_poll_wait_seconds=-1",
        ),
    ],
)
def test_server_arguments(tmp_path: Path, arguments: dict, text: str) -> None:
    config = model_server_config_pb2.ModelConfig(name="eta", base_path=str(tmp_path))
    with pytest.raises(ValueError, match="^" + text.replace("(", r"\(")):
        EmbeddedServer([config], **arguments)


def test_server_same_model_twice(tmp_path: Path) -> None:
    config = model_server_config_pb2.ModelConfig(name="eta", base_path=str(tmp_path))
    with pytest.raises(ValueError, match="Illegal to list model eta multiple times in config list"):
        EmbeddedServer([config, config])


def test_server_beyond_loopback_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = model_server_config_pb2.ModelConfig(name="eta", base_path=str(tmp_path))
    EmbeddedServer([config], host="0.0.0.0", port=0).stop(grace=0)
    assert "without TLS: whoever reaches it can call the model" in caplog.text
