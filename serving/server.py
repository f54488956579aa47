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
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    model_service_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

from serving.servables import Model
from serving.services import ModelService, PredictionService, StatusInterceptor

_GRACE_SECONDS = 30.0
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_SERVICES = (
    health.OVERALL_HEALTH,
    prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name,
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
)
_log = logging.getLogger(__name__)


class ModelServer:
    """Serves models over gRPC until it is stopped. A context manager: enters started, leaves stopped.

    Args:
        configs: TensorFlow Serving's own messages, one a model: name, base path, version policy, version labels.
        host: address to bind.
        port: port to bind; 0 for a free one.
        grpc_max_threads: calls answered at once; 4 for each CPU by default, as in TensorFlow Serving.
        file_system_poll_wait_seconds: seconds between two looks for new versions; 0 to look only once.

    Raises:
        ValueError: if a base path is no directory or an argument is out of its range.
        RuntimeError: if the address can't be bound.
    """

    def __init__(
        self,
        configs: Sequence[model_server_config_pb2.ModelConfig],
        *,
        host: str = "127.0.0.1",
        port: int = 8500,
        grpc_max_threads: int | None = None,
        file_system_poll_wait_seconds: float = 1.0,
    ) -> None:
        if not 0 <= port < 1 << 16:
            raise ValueError(f"`port` must be between 0 and 65535. Received: port={port}")
        if grpc_max_threads is None:
            grpc_max_threads = 4 * (os.cpu_count() or 1)
        if grpc_max_threads < 1:
            raise ValueError(f"`grpc_max_threads` must be positive. Received: grpc_max_threads={grpc_max_threads}")
        if file_system_poll_wait_seconds < 0:
            raise ValueError(
                "`file_system_poll_wait_seconds` must not be negative. "
                f"Received: file_system_poll_wait_seconds={file_system_poll_wait_seconds}"
            )
        names = [config.name for config in configs]
        if not names or not all(names) or len(set(names)) != len(names):
            raise ValueError(f"`configs` must give each model a name of its own. Received: {names}")
        self._models = [Model(config) for config in configs]
        self._poll_seconds = file_system_poll_wait_seconds
        self._stopping = threading.Event()
        self._poller = threading.Thread(target=self._keep_polling, name="poll", daemon=True)
        self._ready = threading.Event()
        self._health = health.HealthServicer()
        self._executor = futures.ThreadPoolExecutor(grpc_max_threads, thread_name_prefix="grpc")
        self._server = grpc.server(
            self._executor,
            interceptors=[StatusInterceptor()],
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                # Two servers on one port would share its calls at random.
                ("grpc.so_reuseport", 0),
            ],
        )
        by_name = {model.name: model for model in self._models}
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(by_name), self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(by_name), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        address = f"[{host}]" if ":" in host else host
        self.address = f"{address}:{self._server.add_insecure_port(f'{address}:{port}')}"
        if host not in _LOOPBACK:
            _log.warning("Bound to %s without TLS: whoever reaches it can call the model.", self.address)

    def start(self) -> None:
        """Answers calls, loads the models, and goes on looking for new versions.

        Until a model has a version, its calls get UNAVAILABLE and the health service says NOT_SERVING.

        Raises:
            RuntimeError: if a model has versions and none of them can be loaded.
        """
        self._report_health()
        self._server.start()
        for model in self._models:
            model.poll()
            if model.failures and not model.is_available:
                raise RuntimeError(f"No version of model {model.name} can be loaded: {'; '.join(model.failures)}")
        self._report_health()
        if self._poll_seconds:
            self._poller.start()

    def wait_until_ready(self, timeout: float | None = None) -> bool:
        """Waits until every model has a version that answers; says whether that is so."""
        return self._ready.wait(timeout)

    def stop(self, grace: float = _GRACE_SECONDS) -> None:
        """Takes no more calls, gives those under way `grace` seconds to end, and ends the server."""
        self._stopping.set()
        self._health.enter_graceful_shutdown()
        self._server.stop(grace).wait()
        self._executor.shutdown()
        if self._poller.is_alive():
            self._poller.join()

    def __enter__(self) -> ModelServer:
        try:
            self.start()
        except BaseException:
            self.stop(grace=0)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _keep_polling(self) -> None:
        while not self._stopping.wait(self._poll_seconds):
            for model in self._models:
                try:
                    model.poll()
                except OSError as error:
                    _log.error("Could not look for versions of model %s: %s", model.name, error)
            self._report_health()

    def _report_health(self) -> None:
        status = health_pb2.HealthCheckResponse.NOT_SERVING
        if all(model.is_available for model in self._models):
            status = health_pb2.HealthCheckResponse.SERVING
            self._ready.set()
        for service in _SERVICES:
            self._health.set(service, status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.server",
        description="Serve the newest version of a SavedModel over TensorFlow Serving's gRPC API. "
        "For laptops, tests and small deployments: where tensorflow_model_server can be installed, use that.",
        epilog="example: python -m serving.server --port 8500 --model_name eta --model_base_path models/eta",
    )
    parser.add_argument("--port", type=int, default=8500, help="port to listen on; 0: a free one (default: 8500)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1; tensorflow_model_server has no such flag and takes 0.0.0.0)",
    )
    parser.add_argument("--model_name", default="eta", help="name of the model in requests (default: eta)")
    parser.add_argument(
        "--model_base_path",
        required=True,
        metavar="DIR",
        help="directory whose subdirectories, named by integers, hold the versions of the SavedModel",
    )
    parser.add_argument(
        "--grpc_max_threads", type=int, metavar="N", help="calls answered at once (default: 4 for each CPU)"
    )
    parser.add_argument(
        "--file_system_poll_wait_seconds",
        type=float,
        default=1.0,
        metavar="S",
        help="seconds between two looks for new versions; 0: look once (default: 1)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server until SIGTERM or SIGINT.

    Returns:
        The exit code: 0 after a signal, 1 if there is nothing to serve or the address is taken.
    """
    flags = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    config = model_server_config_pb2.ModelConfig(name=flags.model_name, base_path=flags.model_base_path)
    stopped = threading.Event()
    try:
        server = ModelServer(
            [config],
            host=flags.host,
            port=flags.port,
            grpc_max_threads=flags.grpc_max_threads,
            file_system_poll_wait_seconds=flags.file_system_poll_wait_seconds,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        with server:
            while not (stopped.is_set() or server.wait_until_ready(timeout=0.2)):
                pass
            if not stopped.is_set():
                print(f"Running gRPC ModelServer at {server.address} ...", flush=True)
            stopped.wait()
            _log.info("Stopping; calls under way are finished first.")
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
