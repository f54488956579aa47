"""What the monitor counts of calls, and whom it warns of timestamps in another unit."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from tensorflow_serving.config import model_server_config_pb2

from keras_eta import ETA, Age, Feature, FeatureLookup, Features, Sequence
from keras_eta.contract import Contract
from keras_eta.export import export_model
from serving.client import RankingClient
from serving.monitor import Monitor
from serving.server.embedded import EmbeddedServer

FIRST, LAST = 1_600_000_000, 1_650_000_000
NOW = 1_700_000_000
FEATURES = Features(
    item_id=Feature("item_id", "string", embedding_dim=8),
    item_attributes=(Feature("genres", max_values=2, embedding_dim=2),),
    user=(Feature("user_id", embedding_dim=2),),
    age=Age((3_600,)),
    max_history_length=20,
    sequences=(Sequence("carts", max_length=5),),
)
CONTRACT = Contract(
    FEATURES,
    {"item_id": np.array([b"a", b"b"], object), "genres": np.array([1, 2, 3]), "user_id": np.array([8])},
    (FIRST, LAST),
)
INPUTS = {
    "user_id": np.array([8, 9]),
    "timestamp": np.array([NOW, NOW]),
    "item_id": np.array([[b"a", b"x", b"b"], [b"y", b"z", b"a"]], object),
    "genres": np.array([[[1, 0], [9, 2], [0, 0]], [[3, 3], [1, 0], [9, 9]]]),
    "genres_length": np.array([[1, 2, 0], [2, 1, 1]]),
    "history_item_id": np.array([[b"a", b"q"], [b"", b""]], object),
    "history_genres": np.array([[[1, 9], [2, 9]], [[9, 9], [9, 9]]]),
    "history_genres_length": np.array([[1, 1], [0, 0]]),
    "history_timestamp": np.array([[NOW - 5, 0], [0, 0]]),
    "history_length": np.array([1, 0]),
}
OUTPUTS = {"probability": np.array([[0.0005, 0.5, 0.7], [0.25, 0.25, 1.0]], np.float32)}


def counts(monitor: Monitor, **labels: str) -> dict[str, Any]:
    """Every sample with those labels beside the model's, by its name and what else tells it."""
    labels = {"model": "eta", "version": "3", **labels}
    found = {}
    for metric in monitor.collect():
        for sample in metric.samples:
            if labels.items() <= sample.labels.items():
                rest = [value for name, value in sample.labels.items() if name not in labels]
                found[" ".join([sample.name, *rest])] = sample.value
    return found


def test_calls_are_counted() -> None:
    monitor = Monitor()
    for _ in range(2):
        monitor.observe("eta", 3, CONTRACT, INPUTS, OUTPUTS)
    found = counts(monitor)
    assert {name: value for name, value in found.items() if "bucket" not in name} == {
        "serving_rows_total": 4,
        "serving_rows_in_another_time_total": 0,
        "serving_ids_total user_id": 4,
        "serving_ids_total item_id": 12,
        "serving_ids_total genres": 14,
        "serving_ids_total history_item_id": 2,
        "serving_ids_total history_genres": 2,
        "serving_unknown_ids_total user_id": 2,
        "serving_unknown_ids_total item_id": 6,
        "serving_unknown_ids_total genres": 4,
        "serving_unknown_ids_total history_item_id": 0,
        "serving_unknown_ids_total history_genres": 0,
        "serving_probability_count": 12,
        "serving_probability_sum": pytest.approx(2 * OUTPUTS["probability"].sum()),
        "serving_history_length_count history": 4,
        "serving_history_length_sum history": 2,
    }
    buckets = {name.split()[1]: value for name, value in found.items() if name.startswith("serving_probability_bucket")}
    bounds = ("0.001", "0.2", "0.3", "0.4", "0.5", "0.8", "1.0", "+Inf")
    assert [buckets[bound] for bound in bounds] == [2, 2, 6, 6, 8, 10, 12, 12]
    lengths = counts(monitor, sequence="history")
    assert [lengths[f"serving_history_length_bucket {bound}"] for bound in ("0.0", "1.0", "+Inf")] == [2, 4, 4]


def test_versions_and_models_are_counted_apart() -> None:
    monitor = Monitor()
    monitor.observe("eta", 3, CONTRACT, INPUTS, OUTPUTS)
    monitor.observe("eta", 4, CONTRACT, INPUTS, OUTPUTS)
    monitor.observe("other", 3, None, {"x": np.zeros([5, 2])}, {})
    registry = CollectorRegistry()
    registry.register(monitor)
    for model, version, rows in (("eta", "3", 2), ("eta", "4", 2), ("other", "3", 5)):
        assert registry.get_sample_value("serving_rows_total", {"model": model, "version": version}) == rows
    unknown = {"model": "other", "version": "3", "column": "user_id"}
    assert registry.get_sample_value("serving_ids_total", unknown) is None


MARGIN = LAST // 10


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, 0),
        ({"timestamp": [FIRST, LAST + MARGIN]}, 0),
        ({"timestamp": [FIRST - 1, NOW]}, 1),
        ({"timestamp": [NOW, LAST + MARGIN + 1]}, 1),
        ({"timestamp": [NOW * 1_000, NOW * 1_000]}, 2),
        ({"timestamp": [NOW // 1_000, NOW]}, 1),
        ({"history_timestamp": [[FIRST - MARGIN, 0], [0, 0]]}, 0),
        ({"history_timestamp": [[FIRST - MARGIN - 1, 0], [0, 0]]}, 1),
        ({"history_timestamp": [[NOW * 1_000, 0], [NOW * 1_000, 0]]}, 1),
        ({"carts_timestamp": [[NOW], [NOW * 1_000]], "carts_length": [1, 1]}, 1),
        ({"carts_timestamp": [[NOW], [NOW * 1_000]], "carts_length": [1, 0]}, 0),
    ],
)
def test_rows_with_timestamps_in_another_unit_are_counted(changes: dict[str, Any], rows: int) -> None:
    monitor = Monitor()
    inputs = INPUTS | {name: np.array(values) for name, values in changes.items()}
    monitor.observe("eta", 3, CONTRACT, inputs, OUTPUTS)
    assert counts(monitor)["serving_rows_in_another_time_total"] == rows


def test_without_a_known_range_no_timestamp_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    monitor = Monitor()
    inputs = INPUTS | {"timestamp": np.array([5, NOW * 1_000])}
    monitor.observe("eta", 3, Contract(FEATURES, {}), inputs, OUTPUTS)
    assert counts(monitor)["serving_rows_in_another_time_total"] == 0
    assert caplog.records == []


def test_the_log_warns_once_a_minute_per_model(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    monitor = Monitor(clock=lambda: now[0])
    wrong = INPUTS | {"timestamp": np.array([NOW, NOW * 1_000])}
    for seconds, model in ((0.0, "eta"), (59.9, "eta"), (59.9, "other"), (60.0, "eta")):
        now[0] = 100.0 + seconds
        monitor.observe(model, 3, CONTRACT, wrong, OUTPUTS)
        monitor.observe(model, 3, CONTRACT, INPUTS, OUTPUTS)
    assert [record.getMessage() for record in caplog.records] == [
        f"Model {model}, version 3: timestamps are probably in another unit than those of the training data, which lie "
        f"between {FIRST} and {LAST}. A request had timestamp {NOW * 1_000}, history_timestamp 0; {wrong_rows} of "
        f"{rows} rows so far are like that."
        for model, wrong_rows, rows in (("eta", 1, 2), ("other", 1, 2), ("eta", 3, 10))
    ]


def test_a_call_that_can_not_be_counted_does_not_fail(caplog: pytest.LogCaptureFixture) -> None:
    monitor = Monitor()
    monitor.observe("eta", 3, CONTRACT, INPUTS | {"history_length": np.array([[1]])}, OUTPUTS)
    assert [record.getMessage() for record in caplog.records] == ["A call of model eta, version 3, was not counted"]
    assert counts(monitor) == {}


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 3 of a small ETA with ages."""
    features = Features(
        item_id=Feature("item_id", embedding_dim=8),
        user=(Feature("user_id", embedding_dim=2),),
        age=Age((3_600,)),
        max_history_length=20,
    )
    lookup = FeatureLookup(features)
    lookup.adapt({"item_id": np.arange(1, 11), "user_id": np.array([8])})
    model = ETA(lookup=lookup, top_k=4, retrieval_task=None)
    base_path = tmp_path_factory.mktemp("eta")
    export_model(model, base_path, version=3, timestamps=(FIRST, LAST))
    return base_path


@pytest.fixture
def server(base_path: Path) -> Iterator[EmbeddedServer]:
    config = model_server_config_pb2.ModelConfig(name="eta", base_path=str(base_path))
    with EmbeddedServer([config], port=0, rest_api_port=0, file_system_poll_wait_seconds=0) as server:
        yield server


def _request(timestamp: int) -> dict[str, Any]:
    return {
        "candidates": {"item_id": [1, 2, 99]},
        "history": {"item_id": [3, 98], "timestamp": [timestamp - 5, timestamp - 9]},
        "user": {"user_id": 8},
        "context": {"timestamp": timestamp},
    }


EXPECTED = {
    "serving_rows_total": 2,
    "serving_rows_in_another_time_total": 1,
    "serving_ids_total item_id": 6,
    "serving_unknown_ids_total item_id": 2,
    "serving_ids_total history_item_id": 4,
    "serving_unknown_ids_total history_item_id": 2,
    "serving_unknown_ids_total user_id": 0,
    "serving_probability_count": 6,
    "serving_history_length_sum history": 4,
}


@pytest.mark.slow
def test_server_and_client_count_alike_and_warn(
    server: EmbeddedServer, base_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = Monitor()
    caplog.set_level(logging.WARNING)
    with RankingClient(server.address, observe=monitor.observer("eta", base_path)) as client:
        probability = client.rank(**_request(NOW)).probability
        client.explain(**_request(1_000 * NOW))
    found = counts(monitor)
    assert EXPECTED.items() <= found.items()
    assert len(caplog.records) == 2, caplog.text  # one of the server, one of the client
    assert {record.name for record in caplog.records} == {"serving.monitor"}
    with urllib.request.urlopen(f"http://{server.monitoring_address}/") as response:
        text = response.read().decode()
    assert 'serving_rows_in_another_time_total{model="eta",version="3"} 1.0' in text
    assert 'serving_unknown_ids_total{column="history_item_id",model="eta",version="3"} 2.0' in text
    assert 'serving_history_length_bucket{le="3.0",model="eta",sequence="history",version="3"} 2.0' in text
    assert found["serving_probability_sum"] > probability.sum()


def test_client_of_a_version_that_is_not_at_hand_counts_rows_and_scores(tmp_path: Path) -> None:
    monitor = Monitor()
    monitor.observer("eta", tmp_path)(3, INPUTS, OUTPUTS)
    found = counts(monitor)
    assert (found["serving_rows_total"], found["serving_probability_count"]) == (2, 6)
    assert not any(name.startswith("serving_ids") for name in found)
