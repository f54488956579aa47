"""The embedded server: loads models, answers TensorFlow Serving's gRPC API, and keeps looking for new versions.

It speaks TensorFlow Serving's own protos and answers with the same status codes, so that clients can't tell the two
apart. For production traffic use the real one.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig, ModelServerConfig

from serving.server import config
from serving.server.models import Models
from serving.server.monitoring import Metrics
from serving.server.services import Admission, Interceptor, Service

_GRACE_SECONDS = 30.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Threads for what is quick and must be answered when every other thread is taken: health, status, refusals.
_SPARE_THREADS = 8
# Two servers on one port would share its calls at random.
_CHANNEL_ARGUMENTS = {"grpc.max_receive_message_length": 64 << 20, "grpc.so_reuseport": 0}
_SERVICES = ("tensorflow.serving.PredictionService", "tensorflow.serving.ModelService")
# These put the services' descriptors where reflection finds them. With protobuf 6 they do so, and then fail as they set
# options.
for _module in ("prediction_service_pb2", "model_service_pb2"):
    with contextlib.suppress(AttributeError):
        importlib.import_module(f"tensorflow_serving.apis.{_module}")
_log = logging.getLogger(__name__)


class EmbeddedServer:
    """Serves models over gRPC. As a context manager it starts on entry and stops on exit.

    Args:
        configs: TensorFlow Serving's own messages, one per model: name, base path, version policy, version labels.
        options: the fields of config.Options. Metrics are served where `rest_api_port` is given; `configs` are what
            `model_config_file` says at first.

    Raises:
        ValueError: if a base path is no directory or an option is wrong.
        RuntimeError: if an address can't be bound.
    """

    def __init__(self, configs: Sequence[ModelConfig], **options: Any) -> None:
        self._options = chosen = config.Options(**options)
        if chosen.batching_parameters is not None:
            config.check_batching(chosen.batching_parameters)
        self._configs = configs
        self._models = Models(configs, chosen)
        self._stopping = threading.Event()
        self._tasks: list[threading.Thread] = []
        self._metrics = metrics = Metrics()
        metrics.watch_versions(self._models.versions)
        self._interceptor = Interceptor(metrics)
        self._health = health.HealthServicer()
        self._executor = futures.ThreadPoolExecutor(chosen.grpc_max_threads + chosen.max_queued_calls + _SPARE_THREADS)
        arguments = {**_CHANNEL_ARGUMENTS, **config.channel_arguments(chosen.grpc_channel_arguments)}
        self._server = grpc.server(self._executor, interceptors=[self._interceptor], options=list(arguments.items()))
        admission = Admission(chosen.grpc_max_threads, chosen.max_queued_calls, metrics)
        service = Service(self._models, admission, chosen.candidates_allowed, metrics.monitor)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        host = f"[{chosen.host}]" if ":" in chosen.host else chosen.host
        if chosen.ssl_config is not None:
            port = self._server.add_secure_port(f"{host}:{chosen.port}", config.server_credentials(chosen.ssl_config))
        else:
            port = self._server.add_insecure_port(f"{host}:{chosen.port}")
        self.address = f"{host}:{port}"
        if chosen.host not in _LOOPBACK and chosen.ssl_config is None:
            _log.warning("Bound to %s without TLS: whoever reaches it can call the model.", self.address)
        self._monitoring = None if chosen.rest_api_port is None else metrics.serve(chosen.rest_api_port)
        self.monitoring_address = f"127.0.0.1:{self._monitoring.server_port}" if self._monitoring else ""

    def start(self) -> None:
        """Answers calls, loads the models, and keeps looking for new versions.

        Until a model has a version, its calls get UNAVAILABLE and the health service says NOT_SERVING.

        Raises:
            StatusError: if a model has versions and none of them can be loaded, or if there are labels without
                `allow_version_labels_for_unavailable_models`.
        """
        self._report_health()
        self._server.start()
        self._models.load()
        self._report_health()
        self._repeat(self._models.poll, self._options.file_system_poll_wait_seconds)
        if self._options.model_config_file:
            self._repeat(self._poll_config, self._options.model_config_file_poll_wait_seconds)

    @property
    def ready(self) -> bool:
        """Whether every model has a version that answers."""
        return all(self._models.versions().values())

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
            task.join()
        if self._monitoring:
            self._monitoring.shutdown()
            self._monitoring.server_close()

    def __enter__(self) -> EmbeddedServer:
        try:
            self.start()
        except BaseException:
            self.stop(grace=0)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _repeat(self, work: Callable[[], None], seconds: float) -> None:
        def run() -> None:
            while not self._stopping.wait(seconds):
                work()
                self._report_health()

        if seconds:
            self._tasks.append(threading.Thread(target=run, name=work.__name__, daemon=True))
            self._tasks[-1].start()

    def _poll_config(self) -> None:
        try:
            configs = read_models(str(self._options.model_config_file))
            if configs != self._configs:
                self._models.reload(configs)
                self._configs = configs
        except (ValueError, OSError) as error:
            _log.error("The models stay as they are, because of %s: %s", self._options.model_config_file, error)

    def _report_health(self) -> None:
        states = health_pb2.HealthCheckResponse
        for service in (health.OVERALL_HEALTH, *_SERVICES):
            self._health.set(service, states.SERVING if self.ready else states.NOT_SERVING)


def read_models(path: str) -> config.Configs:
    """The models of a `--model_config_file`.

    Raises:
        ValueError: if it can't be read or is wrong.
    """
    return config.model_configs(config.read_config(path, ModelServerConfig))
