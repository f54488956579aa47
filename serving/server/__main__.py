"""The command line of the embedded server.

    python -m serving.server --port 8500 --model_name eta --model_base_path models/eta

It takes the flag names of `tensorflow_model_server`.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tensorflow_serving.config.model_server_config_pb2 import ModelConfig

from keras_eta.quiet import quiet_imports
from serving.server import config, memory

if TYPE_CHECKING:
    from serving.server.embedded import EmbeddedServer

_log = logging.getLogger(__name__)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.server",
        description="TensorFlow Serving's gRPC API for laptops, tests and small deployments; no rival to the real one.",
        epilog="example: python -m serving.server --port 8500 --model_name eta --model_base_path models/eta",
        formatter_class=argparse.MetavarTypeHelpFormatter,
    )
    parser.add_argument("--model_name", type=str, default="eta", help="name in requests (default: %(default)s)")
    parser.add_argument("--model_base_path", type=str, help="directory of versions: SavedModels named 1, 2, ...")
    parser.add_argument("--enable_batching", help="join requests that come at the same time", **config.BOOLEAN)
    parser.add_argument("--batching_parameters_file", type=str, help="how to join them: BatchingParameters as text")
    parser.add_argument("--ssl_config_file", type=str, help="TLS, mutual or not: an SSLConfig as text")
    parser.add_argument("--monitoring_config_file", type=str, help="metrics: a MonitoringConfig as text")
    for field in dataclasses.fields(config.Options):
        if field.metadata:
            parser.add_argument(f"--{field.name}", **field.metadata["argument"])
    return parser


def server_from_flags(argv: Sequence[str] | None = None) -> EmbeddedServer:
    """The server that the flags describe, not yet started.

    Raises:
        ValueError: if a flag or a file is wrong, or flags contradict each other.
        RuntimeError: if an address can't be bound.
    """
    flags = _parser().parse_args(argv)
    if bool(flags.model_base_path) == bool(flags.model_config_file):
        raise ValueError("Give either --model_base_path or --model_config_file.")
    if flags.batching_parameters_file and not flags.enable_batching:
        raise ValueError("--batching_parameters_file needs --enable_batching.")
    monitoring = config.MonitoringConfig()
    if flags.monitoring_config_file:
        monitoring = config.read_config(flags.monitoring_config_file, config.MonitoringConfig)
    if monitoring.prometheus_config.enable != (flags.rest_api_port is not None):
        raise ValueError("--rest_api_port and a --monitoring_config_file that enables Prometheus need each other.")
    batching = config.BatchingParameters() if flags.enable_batching else None
    if flags.batching_parameters_file:
        batching = config.read_config(flags.batching_parameters_file, config.BatchingParameters)
    if batching and batching.pad_variable_length_inputs:
        _log.warning("pad_variable_length_inputs does nothing here: only requests of equal shapes are joined.")
    if batching and batching.allowed_batch_sizes:
        _log.warning("allowed_batch_sizes is safe here; one call of no rows ends TensorFlow Serving 2.16.1 with it.")
    # TensorFlow, which takes seconds: not before the flags are known to be good.
    from serving.server.embedded import EmbeddedServer, read_models

    ssl_config = flags.ssl_config_file and config.read_config(flags.ssl_config_file, config.SSLConfig)
    named = {field.name: getattr(flags, field.name) for field in dataclasses.fields(config.Options) if field.metadata}
    configs: config.Configs = [ModelConfig(name=flags.model_name, base_path=flags.model_base_path)]
    if flags.model_config_file:
        configs = read_models(flags.model_config_file)
    return EmbeddedServer(configs, batching_parameters=batching, ssl_config=ssl_config, **named)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server until SIGTERM or SIGINT.

    Returns:
        The exit code: 0 after a signal, 1 if there is nothing to serve, a file is wrong or an address is taken.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stopped = threading.Event()
    try:
        server = server_from_flags(argv)
        memory.settle()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        with server:
            while not (server.ready or stopped.wait(timeout=0.2)):
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
    memory.limit_pools()
    # TensorFlow's notes on stderr, one for each request that a graph refuses, would bury the server's own log.
    quiet_imports()
    sys.exit(main())
