"""The embedded model server: TensorFlow Serving's gRPC API on machines where TensorFlow Serving can't be installed.

    python -m serving.server --port 8500 --model_name eta --model_base_path models/eta

It speaks TensorFlow Serving's own protos, takes the flag names of `tensorflow_model_server`, and answers with the same
status codes, so that clients can't tell the two apart. For production traffic use the real one.
"""

from __future__ import annotations

import os
import warnings

if __name__ == "__main__":
    # TensorFlow's notes on stderr, one for each request that a graph refuses, would bury the server's own log.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", category=FutureWarning, module="google.api_core")

import argparse
import contextlib
import importlib
import logging
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

from serving import config
from serving.models import Models
from serving.monitoring import Metrics
from serving.services import Admission, Interceptor, ModelService, PredictionService
from serving.status import StatusError

_GRACE_SECONDS = 30.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Threads for what is quick and must be answered when every other thread is taken: health, status, refusals.
_SPARE_THREADS = 8
_CHANNEL_ARGUMENTS = {
    "grpc.max_receive_message_length": 64 << 20,
    "grpc.max_send_message_length": -1,
    # Two servers on one port would share its calls at random.
    "grpc.so_reuseport": 0,
}
_SERVICES = (
    "tensorflow.serving.PredictionService",
    "tensorflow.serving.ModelService",
)
# These put the services' descriptors where reflection finds them. With protobuf 6 they do so, and then fail as they set
# options.
for _module in ("prediction_service_pb2", "model_service_pb2"):
    with contextlib.suppress(AttributeError):
        importlib.import_module(f"tensorflow_serving.apis.{_module}")
_log = logging.getLogger(__name__)


class ModelServer:
    """Serves models over gRPC until it is stopped. A context manager: enters started, leaves stopped.

    Args:
        configs: TensorFlow Serving's own messages, one a model: name, base path, version policy, version labels.
        host: address to bind.
        port: port to bind; 0 for a free one.
        grpc_max_threads: Predict calls worked on at once; 4 for each CPU by default, as in TensorFlow Serving.
        max_queued_calls: Predict calls that wait for one of those; more are refused with RESOURCE_EXHAUSTED.
        grpc_channel_arguments: gRPC's own options. Messages are limited to 64 MiB unless they say otherwise.
        ssl_config: an SSLConfig; without one, plaintext.
        batching_parameters: BatchingParameters; without them requests are not joined.
        monitoring_port: loopback port for Prometheus metrics, 0 for a free one; `None` for no metrics.
        model_config_file: file to read `configs` from again when it changes.
        model_config_file_poll_wait_seconds: seconds between two looks at it; 0 for none.
        file_system_poll_wait_seconds: seconds between two looks for new versions; 0 to look only once.
        reload_base_path: directory in which HandleReloadConfigRequest may choose base paths, beside those of `configs`.
        allow_version_labels_for_unavailable_models: whether labels may stand for versions that are not loaded.

    Raises:
        ValueError: if a base path is no directory or an argument is out of its range.
        RuntimeError: if an address can't be bound.
    """

    def __init__(
        self,
        configs: Sequence[model_server_config_pb2.ModelConfig],
        *,
        host: str = "127.0.0.1",
        port: int = 8500,
        grpc_max_threads: int = 4 * (os.cpu_count() or 1),
        max_queued_calls: int = 64,
        grpc_channel_arguments: Sequence[tuple[str, int | str]] = (),
        ssl_config: Any = None,
        batching_parameters: Any = None,
        monitoring_port: int | None = None,
        model_config_file: str | None = None,
        model_config_file_poll_wait_seconds: float = 0,
        file_system_poll_wait_seconds: float = 1.0,
        reload_base_path: str | None = None,
        allow_version_labels_for_unavailable_models: bool = False,
    ) -> None:
        for name, value, least in (
            ("grpc_max_threads", grpc_max_threads, 1),
            ("max_queued_calls", max_queued_calls, 0),
            ("model_config_file_poll_wait_seconds", model_config_file_poll_wait_seconds, 0),
            ("file_system_poll_wait_seconds", file_system_poll_wait_seconds, 0),
        ):
            if value < least:
                raise ValueError(f"`{name}` must be {'positive' if least else 'at least 0'}. Received: {name}={value}")
        for name, number in (("port", port), ("monitoring_port", monitoring_port or 0)):
            if not 0 <= number < 1 << 16:
                raise ValueError(f"`{name}` must be between 0 and 65535. Received: {name}={number}")
        if batching_parameters is not None:
            config.check_batching(batching_parameters)
        credentials = None if ssl_config is None else config.server_credentials(ssl_config)
        try:
            self._models = Models(
                configs,
                batching=batching_parameters,
                reload_base_path=reload_base_path,
                labels_may_wait=allow_version_labels_for_unavailable_models,
            )
        except StatusError as error:
            raise ValueError(error.message) from error
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._tasks = []
        if file_system_poll_wait_seconds:
            self._tasks.append(self._repeat(self._poll, file_system_poll_wait_seconds))
        if model_config_file and model_config_file_poll_wait_seconds:
            self._config_file, self._config_text = model_config_file, _text(model_config_file)
            self._tasks.append(self._repeat(self._poll_config, model_config_file_poll_wait_seconds))
        self._metrics = Metrics()
        self._metrics.watch_versions(self._models.versions)
        self._interceptor = Interceptor(self._metrics)
        admission = Admission(grpc_max_threads, max_queued_calls, self._metrics)
        self._health = health.HealthServicer()
        self._executor = futures.ThreadPoolExecutor(grpc_max_threads + max_queued_calls + _SPARE_THREADS, "grpc")
        self._server = grpc.server(
            self._executor,
            interceptors=[self._interceptor],
            options=list({**_CHANNEL_ARGUMENTS, **dict(grpc_channel_arguments)}.items()),
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(self._models, admission), self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(self._models), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        address = f"[{host}]" if ":" in host else host
        bound = (
            self._server.add_insecure_port(f"{address}:{port}")
            if credentials is None
            else self._server.add_secure_port(f"{address}:{port}", credentials)
        )
        self.address = f"{address}:{bound}"
        if host not in _LOOPBACK and credentials is None:
            _log.warning("Bound to %s without TLS: whoever reaches it can call the model.", self.address)
        self.monitoring_address = ""
        self._stop_metrics: Callable[[], None] | None = None
        if monitoring_port is not None:
            monitoring_port, self._stop_metrics = self._metrics.serve(monitoring_port)
            self.monitoring_address = f"127.0.0.1:{monitoring_port}"

    def start(self) -> None:
        """Answers calls, loads the models, and goes on looking for new versions.

        Until a model has a version, its calls get UNAVAILABLE and the health service says NOT_SERVING.

        Raises:
            RuntimeError: if a model has versions and none of them can be loaded, or a label stands for none of them.
        """
        self._report_health()
        self._server.start()
        try:
            self._models.load()
        except StatusError as error:
            raise RuntimeError(error.message) from error
        self._report_health()
        for task in self._tasks:
            task.start()

    def wait_until_ready(self, timeout: float | None = None) -> bool:
        """Waits until every model has a version that answers; says whether that is so."""
        return self._ready.wait(timeout)

    def stop(self, grace: float = _GRACE_SECONDS) -> None:
        """Takes no more calls, gives those under way `grace` seconds to end, and ends the server."""
        self._stopping.set()
        self._health.enter_graceful_shutdown()
        self._server.stop(grace)
        self._interceptor.wait_until_idle(grace)
        # Ends the streams of those that watch the server's health.
        self._server.stop(min(grace, 1)).wait()
        self._executor.shutdown()
        for task in self._tasks:
            if task.is_alive():
                task.join()
        if self._stop_metrics is not None:
            self._stop_metrics()
            self._stop_metrics = None

    def __enter__(self) -> ModelServer:
        try:
            self.start()
        except BaseException:
            self.stop(grace=0)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _repeat(self, work: Callable[[], None], seconds: float) -> threading.Thread:
        def run() -> None:
            while not self._stopping.wait(seconds):
                work()
                self._report_health()

        return threading.Thread(target=run, name=work.__name__, daemon=True)

    def _poll(self) -> None:
        self._models.poll()

    def _poll_config(self) -> None:
        text = _text(self._config_file)
        if text == self._config_text:
            return
        self._config_text = text
        try:
            self._models.reload(read_models(self._config_file))
        except (ValueError, StatusError) as error:
            _log.error("The models stay as they are, because of %s: %s", self._config_file, error)

    def _report_health(self) -> None:
        status = health_pb2.HealthCheckResponse.NOT_SERVING
        if all(self._models.versions().values()):
            status = health_pb2.HealthCheckResponse.SERVING
            self._ready.set()
        for service in (health.OVERALL_HEALTH, *_SERVICES):
            self._health.set(service, status)


def read_models(path: str) -> config.Configs:
    """The models of a `--model_config_file`.

    Raises:
        ValueError: if it can't be read or is wrong.
    """
    try:
        return config.model_configs(config.read_config(path, model_server_config_pb2.ModelServerConfig))
    except StatusError as error:
        raise ValueError(f"{path}: {error.message}") from error


def _text(path: str) -> str | None:
    """What a file holds, whoever is replacing it just now."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _switch(value: str) -> bool:
    """`--flag=true` and `--flag=false`, as tensorflow_model_server takes them; `--flag` alone is true."""
    if value.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"must be true or false. Received: {value}")
    return value.lower() in ("true", "1")


# Name, type, default and meaning. The names are tensorflow_model_server's, but for `host`, for which it takes 0.0.0.0,
# `max_queued_calls` and `reload_base_path`.
_FLAGS: tuple[tuple[str, Callable[[str], Any], Any, str], ...] = (
    ("port", int, 8500, "port to listen on; 0: a free one"),
    ("host", str, "127.0.0.1", "address to listen on"),
    ("model_name", str, "eta", "name of the model in requests"),
    ("model_base_path", str, None, "directory whose subdirectories, named by integers, hold versions of a SavedModel"),
    ("model_config_file", str, None, "several models, version policies and labels: a ModelServerConfig as text"),
    ("model_config_file_poll_wait_seconds", float, 0.0, "seconds between two looks at that file; 0: look once"),
    ("file_system_poll_wait_seconds", float, 1.0, "seconds between two looks for new versions; 0: look once"),
    ("allow_version_labels_for_unavailable_models", _switch, False, "let labels stand for versions not loaded"),
    ("reload_base_path", str, None, "directory in which HandleReloadConfigRequest may choose base paths"),
    ("grpc_max_threads", int, 4 * (os.cpu_count() or 1), "calls worked on at once"),
    ("max_queued_calls", int, 64, "calls that wait for one of those; more get RESOURCE_EXHAUSTED"),
    ("grpc_channel_arguments", str, "", "gRPC's own options: key=value,... A message may have 64 MiB unless they say"),
    ("enable_batching", _switch, False, "join requests that come at the same time"),
    ("batching_parameters_file", str, None, "how to join them: BatchingParameters as text"),
    ("ssl_config_file", str, None, "TLS, mutual or not: an SSLConfig as text; plaintext is refused then"),
    ("monitoring_config_file", str, None, "Prometheus metrics: a MonitoringConfig as text"),
    ("rest_api_port", int, None, "loopback port of the metrics; there is no REST API"),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.server",
        description="Serve the newest version of a SavedModel over TensorFlow Serving's gRPC API. "
        "For laptops, tests and small deployments: where tensorflow_model_server can be installed, use that.",
        epilog="example: python -m serving.server --port 8500 --model_name eta --model_base_path models/eta",
    )
    for name, kind, default, meaning in _FLAGS:
        shown = meaning if default in (None, "", False) else f"{meaning} (default: {default})"
        switch: dict[str, Any] = {"nargs": "?", "const": True} if kind is _switch else {}
        metavar = {int: "N", float: "SECONDS", _switch: "true|false"}.get(kind, name.rpartition("_")[2].upper())
        parser.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=shown, **switch)
    return parser


def server_from_flags(argv: Sequence[str] | None = None) -> ModelServer:
    """A server, not yet started, as the flags want it.

    Raises:
        ValueError: if a flag or a file is wrong, or flags contradict each other.
        RuntimeError: if an address can't be bound.
    """
    flags = _parser().parse_args(argv)
    if (flags.model_base_path is None) == (flags.model_config_file is None):
        raise ValueError("Give either --model_base_path or --model_config_file.")
    configs: config.Configs
    if flags.model_config_file:
        configs = read_models(flags.model_config_file)
    else:
        configs = [model_server_config_pb2.ModelConfig(name=flags.model_name, base_path=flags.model_base_path)]
    batching = None
    if flags.enable_batching:
        batching = config.BatchingParameters()
        if flags.batching_parameters_file:
            batching = config.read_config(flags.batching_parameters_file, config.BatchingParameters)
        if batching.pad_variable_length_inputs:
            _log.warning("pad_variable_length_inputs does nothing here: only requests of equal shapes are joined.")
    elif flags.batching_parameters_file:
        raise ValueError("--batching_parameters_file needs --enable_batching.")
    monitored = False
    if flags.monitoring_config_file:
        monitoring = config.read_config(flags.monitoring_config_file, config.MonitoringConfig)
        monitored = monitoring.prometheus_config.enable
        if monitored and flags.rest_api_port is None:
            raise ValueError("--monitoring_config_file needs --rest_api_port, the port for the metrics.")
    elif flags.rest_api_port is not None:
        raise ValueError("--rest_api_port needs --monitoring_config_file: there is no REST API, only metrics.")
    same = (
        *("host", "port", "grpc_max_threads", "max_queued_calls", "model_config_file", "reload_base_path"),
        *("model_config_file_poll_wait_seconds", "file_system_poll_wait_seconds"),
        "allow_version_labels_for_unavailable_models",
    )
    return ModelServer(
        configs,
        grpc_channel_arguments=config.channel_arguments(flags.grpc_channel_arguments),
        ssl_config=flags.ssl_config_file and config.read_config(flags.ssl_config_file, config.SSLConfig),
        batching_parameters=batching,
        monitoring_port=flags.rest_api_port if monitored else None,
        **{name: getattr(flags, name) for name in same},
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server until SIGTERM or SIGINT.

    Returns:
        The exit code: 0 after a signal, 1 if there is nothing to serve, a file is wrong or an address is taken.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stopped = threading.Event()
    try:
        server = server_from_flags(argv)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        with server:
            while not (stopped.is_set() or server.wait_until_ready(timeout=0.2)):
                pass
            if not stopped.is_set():
                print(f"Running gRPC ModelServer at {server.address} ...", flush=True)
                if server.monitoring_address:
                    print(f"Metrics at http://{server.monitoring_address}/", flush=True)
            stopped.wait()
            _log.info("Stopping; calls under way are finished first.")
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
