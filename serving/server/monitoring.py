"""Prometheus metrics: calls by method and status code, latencies, the versions that answer, and what they are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from serving.monitor import Monitor

_LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics(Collector):
    """The server's metrics, in a registry of their own.

    No label holds what a caller made up, so that no caller can make the number of series grow: models, versions and
    signatures are those that answered.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.latency = Histogram(
            "serving_request_latency_seconds",
            "Time from a Predict request read to its answer, waiting included.",
            ("model", "version", "signature"),
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        )
        self.requests = Counter(
            "serving_requests", "Calls answered, by status code.", ("method", "code"), registry=registry
        )
        self.running = Gauge("serving_requests_running", "Predict calls being worked on.", registry=registry)
        self.monitor = Monitor()
        registry.register(self.monitor)
        self.queued = Gauge("serving_requests_queued", "Predict calls waiting for a thread.", registry=registry)

    def watch_versions(self, versions: Callable[[], Mapping[str, Iterable[int]]]) -> None:
        """Sets the function that returns the versions that answer, by model, at every scrape."""
        self._versions = versions
        self.registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The metric of the versions; the other metrics report themselves."""
        family = GaugeMetricFamily("serving_model_version_available", "1: it answers.", labels=("model", "version"))
        for model, versions in self._versions().items():
            for version in versions:
                family.add_metric((model, str(version)), 1)
        yield family

    def serve(self, port: int) -> WSGIServer:
        """Answers every path on a loopback port, as Prometheus reads it, in a thread of its own.

        Returns:
            The HTTP server.

        Raises:
            RuntimeError: if the port is taken.
        """
        try:
            server, _ = start_http_server(port, "127.0.0.1", self.registry)
        except OSError as error:
            raise RuntimeError(f"Failed to bind the metrics to 127.0.0.1:{port}: {error}") from error
        return server
