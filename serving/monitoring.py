"""Prometheus metrics: what was asked, how it was answered and how fast, and which versions answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import prometheus_client
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The server's metrics, in a registry of their own.

    No label holds what a caller made up, so that no caller can make the number of series grow: models, versions and
    signatures are those that answered.
    """

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()
        self.latency = prometheus_client.Histogram(
            "serving_request_latency_seconds",
            "Time from a Predict request read to its answer, waiting included.",
            ("model", "version", "signature"),
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.requests = prometheus_client.Counter(
            "serving_requests", "Calls answered, by status code.", ("method", "code"), registry=self.registry
        )
        self.running = prometheus_client.Gauge(
            "serving_requests_running", "Predict calls being worked on.", registry=self.registry
        )
        self.queued = prometheus_client.Gauge(
            "serving_requests_queued", "Predict calls waiting for a thread.", registry=self.registry
        )

    def watch_versions(self, states: Callable[[], Mapping[str, Iterable[int]]]) -> None:
        """Reports the versions that answer, by model, as they are whenever someone asks."""
        self.registry.register(_LoadedVersions(states))

    def serve(self, port: int) -> tuple[int, Callable[[], None]]:
        """Answers every path on a loopback port, as Prometheus reads it.

        Returns:
            The port, and a function that ends it.

        Raises:
            RuntimeError: if the port is taken.
        """
        try:
            server, thread = prometheus_client.start_http_server(port, "127.0.0.1", self.registry)
        except OSError as error:
            raise RuntimeError(f"Failed to bind the metrics to 127.0.0.1:{port}: {error}") from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return server.server_port, stop


class _LoadedVersions(Collector):
    def __init__(self, states: Callable[[], Mapping[str, Iterable[int]]]) -> None:
        self._states = states

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "serving_model_version_available", "1 for each version that answers.", labels=("model", "version")
        )
        for model, versions in self._states().items():
            for version in versions:
                family.add_metric((model, str(version)), 1)
        yield family
