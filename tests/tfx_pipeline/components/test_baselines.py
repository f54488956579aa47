"""Baselines of the eval split: the component against a plain loop over the impressions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow as tf
from tfx import v1 as tfx
from tfx.types import standard_artifacts

from keras_eta.datasets.counting import BASELINES
from keras_eta.metrics import auc, grouped_auc
from tests.tfx_pipeline import servable
from tfx_pipeline.components.baselines import (
    SHORT_HISTORY,
    SHORT_HISTORY_MODEL,
    BaselineMetrics,
    Baselines,
    BaselinesExecutor,
    Measured,
    read_baselines,
)

# Item 19 is new in the eval split.
COUNTS = {item.encode(): (number % 7, number % 7 + number % 5 + 1) for number, item in enumerate(servable.ITEMS[:19])}


def measure(folder: Path, impressions: Sequence[Mapping[str, Any]], models: Sequence[Any] = ()) -> dict[str, Measured]:
    """Runs the component's executor."""
    records = [servable.serialized(dict(impression)) for impression in impressions]
    examples = servable.examples_artifact(folder / "examples", records, shards=2)
    rows = [{"item": item, "positives": counts[0], "impressions": counts[1]} for item, counts in COUNTS.items()]
    for shard in range(2):
        path = Path(examples.uri, f"item_counts-{shard:05d}-of-00002.parquet")
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows[shard::2]), path)
    baselines = BaselineMetrics()
    baselines.uri = str(folder / "baselines")
    Path(baselines.uri).mkdir(parents=True)
    component = Baselines(tfx.dsl.Channel(type=standard_artifacts.Examples), "item_id")
    inputs: dict[str, list[Any]] = {"examples": [examples], **({SHORT_HISTORY_MODEL: list(models)} if models else {})}
    BaselinesExecutor().Do(inputs, {"baselines": [baselines]}, component.exec_properties)
    return read_baselines(baselines.uri)


def scores_by_loop(impression: Mapping[str, Any]) -> list[float]:
    """One impression's scores, in the order of `BASELINES`."""
    item, history = impression["item_id"], impression["history_item_id"]
    positives, shown = COUNTS.get(item, (0, 0))
    rate = sum(one for one, _ in COUNTS.values()) / sum(one for _, one in COUNTS.values())
    repeats = sum(behaviour == item for behaviour in history)
    recency = -history.index(item) if repeats else -math.inf
    return [positives, (positives + 10 * rate) / (shown + 10), repeats, repeats + positives / 100, recency]


def test_metrics_equal_a_plain_loop(tmp_path: Path) -> None:
    impressions = servable.impressions(300)
    found = measure(tmp_path, impressions)
    labels = [impression["label"] for impression in impressions]
    users = [impression["user_id"] for impression in impressions]
    assert tuple(found) == BASELINES
    for name, scores in zip(BASELINES, zip(*map(scores_by_loop, impressions), strict=True), strict=True):
        expected = auc(labels, scores), grouped_auc(labels, scores, users)
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-12)
        assert len(set(scores)) > 1
    assert any(item["item_id"] == b"item 19" for item in impressions)
    assert len({round(measured.grouped_auc, 6) for measured in found.values()}) == len(BASELINES)


def test_a_model_is_a_baseline_by_its_probabilities(tmp_path: Path) -> None:
    # More than one batch.
    impressions = servable.impressions(600)
    model = servable.export_eta(tmp_path / "model")
    found = measure(tmp_path, impressions, [model])
    assert tuple(found) == (*BASELINES, SHORT_HISTORY)
    loaded = tf.saved_model.load(str(servable.saved_model_path(model)))
    probabilities = [
        loaded.signatures["examples"](examples=tf.constant([servable.serialized(one)]))["probability"].numpy()[0]
        for one in impressions
    ]
    labels, users = ([one[name] for one in impressions] for name in ("label", "user_id"))
    expected = auc(labels, probabilities), grouped_auc(labels, probabilities, users)
    np.testing.assert_allclose(found[SHORT_HISTORY], expected, rtol=0, atol=1e-4)
    assert abs(expected[0] - 0.5) > 1e-3
    assert found["popularity"] == measure(tmp_path / "counted", impressions)["popularity"]


def test_users_of_one_label_have_no_auc_within_them(tmp_path: Path) -> None:
    impressions = [{**one, "user_id": one["label"]} for one in servable.impressions(40)]
    found = measure(tmp_path, impressions)
    assert all(math.isnan(measured.grouped_auc) and 0 < measured.auc < 1 for measured in found.values())
    assert json.loads((tmp_path / "baselines" / "baselines.json").read_text())["recency"]["grouped_auc"] is None


@pytest.mark.parametrize("user", [b"zoe", 2**63 - 1])
def test_user_ids_of_either_type_are_groups(tmp_path: Path, user: Any) -> None:
    impressions = [{**one, "user_id": user} for one in servable.impressions(40)]
    for measured in measure(tmp_path, impressions).values():
        assert measured.auc == pytest.approx(measured.grouped_auc, abs=1e-12)
