"""Clusters of behaviours as a sequence, from a raw log to tf.Examples, against keras_eta.datasets."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_metadata.proto.v0 import statistics_pb2
from tfx.types import standard_artifacts

from keras_eta import Feature, Sequence
from keras_eta.datasets import Impressions, Interactions, cluster_log, regular_snapshots, save_item_vectors
from keras_eta.interest import TWINV2
from tfx_pipeline.behaviours import ClusterSequence, Selection
from tfx_pipeline.config import PipelineConfig, Split
from tfx_pipeline.custom_layout import custom
from tfx_pipeline.ingestion.clusters import _snapshots
from tfx_pipeline.ingestion.impression_gen import ImpressionGenExecutor, impression_gen
from tfx_pipeline.ingestion.log_checks import check_data
from tfx_pipeline.layout_flags import add_layout_flags, layout_from_flags
from tfx_pipeline.layouts import Label, Layout
from tfx_pipeline.model_config import Model
from tfx_pipeline.ranker import check_ranker
from tfx_pipeline.schema import make_schema
from tfx_pipeline.schema_draft import propose_schema

COLUMNS = ("user_id", "item_id", "timestamp", "genres", "played", "action")


def _layout(item_vectors: str = "items.npz", **arguments: Any) -> Layout:
    layout = custom(
        pattern="*.csv",
        label=Label("action", positives=("buy",)),
        item_attributes=("genres:string[2]",),
        behaviour_attributes=("played:float32", "action:string"),
        history="action:view,buy",
        sequences=("purchases=action:buy",),
        sequence_attributes=("clusters=played:float32",),
        user=("user_id",),
        max_history_length=4,
        **{"clusters": item_vectors, "snapshot_period": 30, "group_by": "played", **arguments},
    )
    clusters = dataclasses.replace(layout.clusters, num_groups=2, max_size=3)  # type: ignore[type-var]
    return dataclasses.replace(layout, clusters=clusters)


def _rows() -> list[tuple[Any, ...]]:
    """Rows of which no two have user and time in common, so that a tf.Example is found by them."""
    rng = random.Random(3)
    items = [rng.randrange(6) for _ in range(90)]
    return [
        (time % 3, item, 7 * (time // 3) + time % 3, "|".join("abc"[: item % 4]), rng.choice([0.25, 0.5, 2.0]), action)
        for time, item, action in ((time, items[time], rng.choice(["view", "buy", "seen"])) for time in range(90))
    ]


def _config(folder: Path, layout: Layout) -> PipelineConfig:
    return PipelineConfig(
        data=str(folder / "data"),
        layout=layout,
        schema="",
        output=str(folder / "output"),
        serving_dir="",
        min_history=0,
        split=Split(validation_from=100, eval_from=150),
    )


def _written(folder: Path) -> Layout:
    rows = _rows()
    (folder / "data").mkdir()
    lines = [",".join(COLUMNS), *(",".join(map(str, row)) for row in rows)]
    (folder / "data" / "log.csv").write_text("\n".join(lines) + "\n")
    return _layout(str(folder / "items.npz"))


def _examples(folder: Path, config: PipelineConfig) -> dict[tuple[int, int], Any]:
    """The tf.Examples' features by user and time."""
    artifact = standard_artifacts.Examples()
    artifact.uri = str(folder / "examples")
    ImpressionGenExecutor().Do({}, {"examples": [artifact]}, {**impression_gen(config).exec_properties, "span": 0})
    files = sorted(map(str, (folder / "examples").glob("*/*.gz")))
    examples = [
        tf.train.Example.FromString(record).features.feature
        for record in tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator()
    ]
    return {(row["user_id"].int64_list.value[0], row["timestamp"].int64_list.value[0]): row for row in examples}


def _impressions(ids: list[int], vectors: Any) -> Impressions:
    """The same, by the library."""

    def log(*actions: str) -> Interactions:
        columns: dict[str, Any] = dict(
            zip(COLUMNS, map(list, zip(*(row for row in _rows() if row[-1] in actions), strict=True)), strict=True)
        )
        columns["genres"] = [text.split("|") if text else [] for text in columns["genres"]]
        return Interactions.from_columns(columns)

    history, every = log("view", "buy"), log("view", "buy", "seen")
    clusters = cluster_log(
        history,
        ids,
        vectors,
        snapshots=regular_snapshots(history, 30),
        group_by="played",
        num_groups=2,
        max_size=3,
        means=("played",),
    )
    impressions = Impressions.from_columns(history, every.columns, (every["action"] == "buy").astype(int))
    return impressions.with_sequence("purchases", log("buy")).with_sequence("clusters", clusters)


def test_clusters_of_impressions_equal_those_of_the_library(tmp_path: Path) -> None:
    layout = _written(tmp_path)
    ids, vectors = [0, 1, 2, 4, 5], np.random.default_rng(0).integers(-2, 3, [5, 2])
    save_item_vectors(tmp_path / "items.npz", ids, vectors)
    examples = _examples(tmp_path, _config(tmp_path, layout))
    impressions = _impressions(ids, vectors)
    ((batch, _),) = impressions.to_dataset(layout.features, len(impressions))
    batch = {name: column.numpy() for name, column in batch.items()}
    assert len(examples) == len(impressions) == 90
    declared = {column.name for column in make_schema(layout).feature}
    lengths = []
    for row, key in enumerate(zip(batch["user_id"].tolist(), batch["timestamp"].tolist(), strict=True)):
        example = examples[key]
        assert set(example) == declared
        for sequence in layout.features.all_sequences:
            length = batch[sequence.length][row]
            for name in ["item_id", "timestamp", *(feature.name for feature in sequence.attributes)]:
                column = sequence.column(name)
                kind = example[column].WhichOneof("kind")
                found = list(getattr(example[column], kind).value)
                assert found == batch[column][row, :length].tolist(), (key, column)
            counts = batch[f"{sequence.name}_genres_length"][row, :length].tolist()
            assert list(example[f"{sequence.name}_genres_length"].int64_list.value) == counts
            genres = [g for g, n in zip(batch[f"{sequence.name}_genres"][row], counts, strict=False) for g in g[:n]]
            assert list(example[f"{sequence.name}_genres"].bytes_list.value) == genres
        lengths.append(len(example["clusters_size"].float_list.value))
    # Some lie before the first snapshot, others have more clusters than are read.
    assert min(lengths) == 0
    assert max(lengths) == 4
    assert max(max(row["clusters_size"].float_list.value, default=0) for row in examples.values()) > 1


def test_new_vectors_make_the_component_run_again(tmp_path: Path) -> None:
    config = _config(tmp_path, _written(tmp_path))
    component: Any = impression_gen(config)

    def fingerprint() -> str:
        properties = component.DRIVER_CLASS(None).resolve_exec_properties(dict(component.exec_properties), None, None)
        return str(properties["input_fingerprint"])

    save_item_vectors(tmp_path / "items.npz", [1], [[0.0]])
    before = fingerprint()
    assert fingerprint() == before
    save_item_vectors(tmp_path / "items.npz", [1, 2], [[0.0], [1.0]])
    assert fingerprint() != before


def test_sizes_are_not_asked_of_the_file_and_the_layout_is_the_same_after_json() -> None:
    layout = _layout()
    assert layout.sources == ("user_id", "timestamp", "item_id", "genres", "played", "action")
    assert [sequence.name for sequence in layout.log_sequences] == ["history", "purchases"]
    assert layout.features.sequence("clusters").attributes == (
        Feature("size", "float32", 8),
        Feature("played", "float32", 8),
    )
    assert layout.clusters == ClusterSequence(
        "items.npz", 30, group_by="played", num_groups=2, max_size=3, means=("played",)
    )
    values = json.loads(json.dumps(layout.to_dict()))
    assert Layout.from_dict(values) == layout
    # As an older version wrote it.
    old = json.loads(json.dumps(custom("*.csv", Label("action")).to_dict()))
    del old["clusters"]
    assert Layout.from_dict(old) == custom("*.csv", Label("action"))
    check_ranker(Model((TWINV2(2),)), layout.features)


def test_drafted_schemas_bound_no_ids_and_times_of_behaviours() -> None:
    statistics = statistics_pb2.DatasetFeatureStatisticsList()
    names = ["clusters_item_id", "clusters_timestamp", "purchases_item_id", "purchases_timestamp", "history_timestamp"]
    dataset = statistics.datasets.add()
    for name in names:
        found = dataset.features.add(type=statistics_pb2.FeatureNameStatistics.INT)
        found.path.step.append(name)
        found.num_stats.max = 5
    schema = propose_schema(_layout(), statistics)
    assert {column.name for column in schema.feature} >= {*names}
    assert not [column.name for column in schema.feature if column.name in names and column.HasField("int_domain")]


def test_flags_make_clusters() -> None:
    parser = argparse.ArgumentParser()
    add_layout_flags(parser)
    flags = ["--layout", "custom", "--pattern", "*.csv", "--label_column", "clicked", "--clusters", "gs://a/v.npz"]
    flags += ["--snapshot_period", "9", "--behaviour_attribute", "rating:float32", "--group_by", "rating"]
    layout = layout_from_flags(parser.parse_args(flags))
    assert layout.clusters == ClusterSequence("gs://a/v.npz", 9, group_by="rating")
    assert layout.features.sequences == (Sequence("clusters", (Feature("size", "float32", 8),)),)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"snapshot_period": None}, "`snapshot_period` must be a positive integer. Received: snapshot_period=None"),
        ({"snapshot_period": 0}, "`snapshot_period` must be a positive integer. Received: snapshot_period=0"),
        ({"group_by": "action"}, "must name a feature of numbers, among ['played']. Received: group_by='action'"),
        ({"group_by": "clicks"}, "must name a feature of numbers, among ['played']. Received: group_by='clicks'"),
        (
            {"clusters": "", "sequence_attributes": ()},
            "`snapshot_period` and `group_by` must go with `clusters`. Received: snapshot_period=30, group_by='played'",
        ),
        ({"context": ["size:float32"]}, "The log must not have columns that clusters add. Received: ['size']"),
        ({"slice_columns": ["snapshot"]}, "The log must not have columns that clusters add. Received: ['snapshot']"),
        (
            {"sequences": ["clusters=action:buy"]},
            "`selections` must not name the sequence of clusters, which holds those of the history. "
            "Received: 'clusters'",
        ),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], text: str) -> None:
    given = {
        "behaviour_attributes": ("played:float32", "action:string"),
        "clusters": "items.npz",
        "snapshot_period": 30,
        "group_by": "played",
        **arguments,
    }
    with pytest.raises(ValueError, match=re.escape(text)):
        custom("*.csv", Label("action", positives=("buy",)), **given)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"sequence": "history"},
            "`sequence` of the clusters must be one of the features' sequences ['purchases', 'clusters']. "
            "Received: sequence='history'",
        ),
        (
            {"sequence": "purchases"},
            "Sequence 'purchases' of clusters must have an attribute 'size' of dtype 'float32'. "
            "Received: attributes=()",
        ),
        (
            {"means": ("genres",)},
            "must name float32 features that are not optional, among ['played']. Received: means=('genres',)",
        ),
        ({"means": ("size",)}, "`means` must not name ['size']. Received: means=('size',)"),
        ({"max_size": 0}, "`max_size` must be a positive integer. Received: max_size=0"),
        ({"item_vectors": ""}, "`item_vectors` must name a file. Received: item_vectors=''"),
    ],
)
def test_refused_clusters(changes: dict[str, Any], text: str) -> None:
    layout = _layout()
    assert layout.clusters is not None
    with pytest.raises(ValueError, match=re.escape(text)):
        dataclasses.replace(layout, clusters=dataclasses.replace(layout.clusters, **changes))


def test_a_selection_of_clusters_is_refused() -> None:
    layout = _layout()
    with pytest.raises(ValueError, match="`selections` must not name the sequence of clusters"):
        dataclasses.replace(layout, selections=(Selection("clusters", "action", ("buy",)),))


def test_vectors_are_looked_at_before_the_log_is_read(tmp_path: Path) -> None:
    layout = _written(tmp_path)
    config, path = _config(tmp_path, layout), tmp_path / "items.npz"
    with pytest.raises(FileNotFoundError, match=f"There is no file {str(path)!r}"):
        check_data(config)
    for content in (b"", b"item_id,vectors\n", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path} is no file of `keras_eta.datasets.save_item_vectors`"):
            check_data(config)
    with path.open("wb") as file:
        np.save(file, np.zeros([2, 2]))
    with pytest.raises(ValueError, match=f"{path} is no file of `keras_eta.datasets.save_item_vectors`"):
        check_data(config)
    save_item_vectors(path, ["1"], [[0.0]])
    message = f"The ids of {path} must be of the type of 'item_id', 'int64'. Received: string"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_data(config)


def test_snapshots_by_hand() -> None:
    assert _snapshots((5, 12), 3) == (8, 11)
    assert _snapshots((5, 11), 3) == (8, 11)
    for span, period in (((5, 7), 3), ((0, 1_001), 1)):
        text = f"{span[1] - span[0]}, into 1 to 1,000 parts. Received: snapshot_period={period}"
        with pytest.raises(ValueError, match=text):
            _snapshots(span, period)
