"""Clusters by Beam: those of keras_eta.datasets, user by user."""

from __future__ import annotations

import dataclasses
import pickle
import random
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
from apache_beam.testing import test_pipeline

from keras_eta import Feature, Features
from keras_eta import Sequence as BehaviourSequence
from keras_eta.datasets import Interactions, cluster_log, save_item_vectors
from tfx_pipeline.behaviours import ClusterSequence
from tfx_pipeline.ingestion import impressions
from tfx_pipeline.ingestion.clusters import ClusterUserLog
from tfx_pipeline.ingestion.counting import COUNTS, MALFORMED
from tfx_pipeline.ingestion.impressions import ClusteredLog
from tfx_pipeline.ingestion.rows import Interaction, value_dtype, value_names
from tfx_pipeline.layouts import Label, Layout

STRINGS = Layout(
    Features(
        item_id=Feature("item_id", "string"),
        item_attributes=(Feature("brand"), Feature("genres", "string", max_values=2)),
        behaviour_attributes=(Feature("played", "float32"), Feature("device", "string")),
        user=(Feature("user_id", "string"),),
        sequences=(BehaviourSequence("clusters", (Feature("size", "float32"),)),),
    ),
    pattern="*.csv",
    label=Label("clicked"),
)
INTEGERS = dataclasses.replace(
    STRINGS,
    features=dataclasses.replace(STRINGS.features, item_id=Feature("item_id"), user=(Feature("user_id"),)),
)
SNAPSHOTS = (3, 8, 9, 60)
OPTIONS: dict[str, Any] = {
    "group_by": "played",
    "num_groups": 2,
    "max_size": 4,
    "means": ("played",),
}


def _log(layout: Layout) -> dict[str, list[Any]]:
    """A log with ties in time, items of which 3 have no vector, and one user who acts after the last snapshot."""
    rng, strings = random.Random(0), layout is STRINGS
    rows = {
        (
            "ünï"[user] if strings else user,
            f"item é{item}" if strings else item,
            rng.randrange(12) if user else 70,
            item % 3,
            rng.choice([0.1, 0.2, 0.7]),
            rng.choice(["tv", "phone"]),
            ("x", "é")[: item % 3],
        )
        for user, item in ((rng.randrange(3), rng.randrange(8)) for _ in range(160))
    }
    names = ("user_id", "item_id", "timestamp", "brand", "played", "device", "genres")
    return dict(zip(names, map(list, zip(*sorted(rows), strict=True)), strict=True))


def _in_history(columns: dict[str, list[Any]]) -> list[bool]:
    """Which rows are behaviours of the history."""
    return [
        device == "tv" or time % 3 > 0 for device, time in zip(columns["device"], columns["timestamp"], strict=True)
    ]


def _raw(value: Any) -> Any:
    if isinstance(value, (tuple, np.ndarray)):
        return tuple(map(_raw, value))
    return value.encode() if isinstance(value, str) else value


def _by_beam(layout: Layout, columns: dict[str, list[Any]], path: str) -> list[ClusteredLog]:
    clusters = ClusterSequence(path, 1, **OPTIONS)
    layout = dataclasses.replace(layout, clusters=clusters)
    users: dict[Any, list[Interaction]] = {}
    in_history = _in_history(columns)
    for row in range(len(columns["user_id"])):
        values = tuple(_raw(columns[name][row]) for name in value_names(layout))
        interaction = Interaction(columns["timestamp"][row], values, 1, 1, (in_history[row],), 0)
        users.setdefault(_raw(columns["user_id"][row]), []).append(interaction)
    records = f"{path}.records"
    with test_pipeline.TestPipeline() as pipeline:
        logs = (
            pipeline
            | beam.Create(list(users.items()))
            | beam.ParDo(impressions.SortUserLog(layout, ["log.csv"])).with_outputs(
                impressions.ITEMS, MALFORMED, COUNTS, main="logs"
            )
        )
        clustered = logs["logs"] | beam.ParDo(ClusterUserLog(layout, clusters), SNAPSHOTS)
        clustered | beam.Map(pickle.dumps) | beam.io.WriteToTFRecord(records, shard_name_template="")
    found = map(pickle.loads, tf.data.TFRecordDataset(records).as_numpy_iterator())
    return sorted(found, key=lambda clustered: clustered.log.user)


def _rows(table: Any, names: list[str]) -> list[tuple[Any, ...]]:
    return list(zip(*(map(_raw, table[name]) for name in names), strict=True))


def _file(columns: dict[str, list[Any]], folder: Path) -> tuple[str, list[Any], np.ndarray]:
    ids = sorted(set(columns["item_id"]))[3:]
    vectors = np.random.default_rng(1).integers(-2, 3, [len(ids), 2])
    path = str(folder / "items.npz")
    save_item_vectors(path, ids, vectors)
    return path, ids, vectors


@pytest.mark.parametrize("layout", [STRINGS, INTEGERS], ids=["strings", "integers"])
def test_clusters_equal_those_of_the_library(layout: Layout, tmp_path: Path) -> None:
    columns = _log(layout)
    path, ids, vectors = _file(columns, tmp_path)
    kept = np.flatnonzero(_in_history(columns))
    log = Interactions.from_columns({name: [column[row] for row in kept] for name, column in columns.items()})
    expected = cluster_log(log, ids, vectors, snapshots=SNAPSHOTS, **OPTIONS)
    users = sorted(set(columns["user_id"]))
    names = ["item_id", "brand", "genres", "played", "device", "timestamp", "snapshot", "size"]
    found = _by_beam(layout, columns, path)
    assert [clustered.log.user for clustered in found] == [_raw(user) for user in users]
    for user, clustered in zip(users, found, strict=True):
        own = np.flatnonzero(expected["user_id"] == user)
        assert _rows(clustered.columns, names) == _rows({name: list(expected[name][own]) for name in names}, names)
        of_user = log.columns["user_id"][np.full(len(clustered.log.timestamps), log["user_id"].tolist().index(user))]
        bounds = zip(*clustered.bounds(), *expected.bounds(of_user, clustered.log.timestamps), strict=True)
        for start, end, first, last in bounds:
            assert own[start:end].tolist() == list(range(first, last))
    assert sum(len(clustered.columns["size"]) for clustered in found) == len(expected) > 20
    # The types are those of a user's log.
    kinds = {name: value_dtype(layout, name) for name in value_names(layout)} | {"genres": tuple}
    for name, dtype in {**kinds, "timestamp": int, "snapshot": int, "size": float}.items():
        assert {type(value) for clustered in found for value in clustered.columns[name]} == {dtype}


def test_bounds_by_hand() -> None:
    unread = np.zeros(5, "int64")
    log = impressions.UserLog(1, np.array([3, 5, 6, 7, 9]), unread, unread, (), ())
    clustered = ClusteredLog(log, {"snapshot": [5, 5, 7, 7, 7]})
    assert [bound.tolist() for bound in clustered.bounds()] == [[0, 0, 0, 2, 2], [0, 2, 2, 5, 5]]
    empty = ClusteredLog(log, {"snapshot": []})
    assert [bound.tolist() for bound in empty.bounds()] == [[0] * 5] * 2


def test_vectors_do_not_travel_with_the_dofn(tmp_path: Path) -> None:
    save_item_vectors(tmp_path / "items", range(10_000), np.zeros([10_000, 8]))
    assert len(pickle.dumps(ClusterUserLog(INTEGERS, ClusterSequence(str(tmp_path / "items"), 5)))) < 5_000


def test_only_clusters_that_the_sequence_has_room_for_are_kept(tmp_path: Path) -> None:
    """Of each snapshot the most recent two clusters, here of one behaviour each."""
    save_item_vectors(tmp_path / "items.npz", [99], [[0.0]])
    clusters = ClusterSequence(str(tmp_path / "items.npz"), 1, max_size=1)
    sequences = (BehaviourSequence("clusters", (Feature("size", "float32"),), max_length=2),)
    layout = Layout(Features(Feature("item_id"), sequences=sequences), "*", Label("clicked"), clusters=clusters)
    times = np.arange(5)
    log = impressions.UserLog(1, times, times, times, ([10, 11, 12, 13, 14],), (np.ones(5, bool),))
    cluster = ClusterUserLog(layout, clusters)
    cluster.setup()
    (found,) = cluster.process(log, (1, 4))
    assert found.columns == {
        "item_id": [10, 12, 13], "timestamp": [0, 2, 3], "snapshot": [1, 4, 4], "size": [1.0, 1.0, 1.0]
    }  # fmt: skip
