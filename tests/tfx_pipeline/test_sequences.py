"""Several sequences and features of several values from a raw log to training batches, against keras_eta.datasets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow as tf
from tfx.types import standard_artifacts

from keras_eta import Age, FeatureLookup
from keras_eta.datasets import Impressions, Interactions
from tests.tfx_pipeline.transformed import run_transform
from tfx_pipeline.behaviours import Selection
from tfx_pipeline.config import PipelineConfig, Split
from tfx_pipeline.custom_layout import custom
from tfx_pipeline.ingestion.impression_gen import ImpressionGenExecutor, impression_gen
from tfx_pipeline.layouts import Label, Layout
from tfx_pipeline.schema import make_schema
from tfx_pipeline.training.batches import transformed_batches

GENRES = {1: "a|b|c", 2: "", 3: "b", 4: "c|a"}
ROWS = [
    # One that bought has no dwell: a feature that may be missing.
    (user, item, 10 * time + user, action, None if time == 4 else 1.5 * time, GENRES[item])
    for time, (user, item, action) in enumerate(
        [
            (7, 1, "view"),
            (7, 2, "buy"),
            (7, 2, "view"),
            (8, 4, "buy"),
            (7, 3, "buy"),
            (7, 4, "seen"),
            (8, 3, "view"),
            (7, 1, "buy"),
            (8, 1, "seen"),
            (7, 2, "view"),
            (8, 2, "buy"),
            (7, 3, "view"),
        ]
    )
]
COLUMNS = ("user_id", "item_id", "timestamp", "action", "dwell", "genres")


def _layout(**arguments: str) -> Layout:
    return custom(
        **{"pattern": "*.csv", "list_separator": "|", **arguments},  # type: ignore[arg-type]
        label=Label("action", positives=("buy",)),
        item_attributes=("genres:string[2]",),
        user=("user_id",),
        age_boundaries=(25, 60),
        max_history_length=3,
        history="action:view,buy",
        sequences=("purchases=action:buy",),
        sequence_attributes=("purchases=dwell:float32?",),
    )


def _records(folder: Path, layout: Layout) -> tuple[PipelineConfig, list[bytes]]:
    config = PipelineConfig(
        data=str(folder),
        layout=layout,
        schema="",
        output=str(folder / "output"),
        serving_dir="",
        min_history=0,
        split=Split(validation_from=75, eval_from=105),
    )
    artifact = standard_artifacts.Examples()
    artifact.uri = str(folder / "examples")
    ImpressionGenExecutor().Do({}, {"examples": [artifact]}, {**impression_gen(config).exec_properties, "span": 0})
    files = sorted(map(str, (folder / "examples").glob("*/*.gz")))
    return config, list(tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator())


def _csv(folder: Path) -> None:
    lines = [",".join(COLUMNS), *(",".join("" if x is None else str(x) for x in row) for row in ROWS)]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")


def _impressions() -> Impressions:
    """The same, by the library: each sequence is a log of its own."""

    def log(*actions: str) -> Interactions:
        rows = [row for row in ROWS if row[3] in actions]
        columns: dict[str, object] = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
        columns["genres"] = [row[5].split("|") if row[5] else [] for row in rows]
        return Interactions.from_columns(columns, optional=["dwell"])

    every = log("view", "buy", "seen")
    columns = {name: column for name, column in every.columns.items() if name not in ("action", "dwell")}
    label = (every["action"] == "buy").astype(int)
    return Impressions.from_columns(log("view", "buy"), columns, label).with_sequence("purchases", log("buy"))


@pytest.mark.slow
def test_batches_equal_those_of_the_library(tmp_path: Path) -> None:
    _csv(tmp_path)
    config, records = _records(tmp_path, _layout())
    assert len(records) == len(ROWS)
    graph = run_transform(config, make_schema(config.layout), {"train": records}, tmp_path / "transform")
    features = config.layout.features.with_vocabulary_sizes(
        {f.name: graph.vocabulary_size_by_name(f.name) for f in config.layout.features.all_features if f.is_id}
    )
    ((columns, label),) = transformed_batches([str(tmp_path / "transform/train/*.gz")], features, len(ROWS))

    lookup = FeatureLookup(features)
    for feature in features.all_features:
        if feature.is_id:
            lookup.set_vocabulary(feature.name, graph.vocabulary_by_name(feature.name))
    impressions = _impressions()
    ((expected, expected_label),) = impressions.to_dataset(features, len(ROWS), lookup=lookup)
    # Of the same user, a later impression never has fewer behaviours: sorted so, both are in one order.
    order, expected_order = (
        np.lexsort([x["item_id"], x["purchases_length"], x["history_length"], x["user_id"], y])
        for x, y in ((columns, label), (expected, expected_label))
    )
    np.testing.assert_array_equal(label.numpy()[order], expected_label.numpy()[expected_order])
    assert set(columns) == set(expected)
    assert np.isnan(columns["purchases_dwell"]).any()
    for name, column in expected.items():
        found = columns[name].numpy()[order]
        wanted = column.numpy()[expected_order]
        np.testing.assert_array_equal(found, wanted[:, : found.shape[1]] if found.ndim > 1 else wanted, name)
        if found.ndim > 1:
            assert not wanted[:, found.shape[1] :].any(), name
    assert features.age == Age((25, 60))
    assert columns["history_genres"].shape[2] == 2


def test_lists_of_parquet_files_are_read_as_they_are(tmp_path: Path) -> None:
    columns = dict(zip(COLUMNS, map(list, zip(*ROWS, strict=True)), strict=True))
    (tmp_path / "csv").mkdir()
    _csv(tmp_path / "csv")
    expected = _records(tmp_path / "csv", _layout())[1]
    columns["genres"] = [text.split("|") if text else [] for text in columns["genres"]]
    (tmp_path / "parquet").mkdir()
    pa.parquet.write_table(pa.table(columns), tmp_path / "parquet" / "log.parquet")
    found = _records(tmp_path / "parquet", _layout(pattern="*.parquet", file_format="parquet"))[1]
    assert sorted(found) == sorted(expected)
    example = tf.train.Example.FromString(max(expected, key=len)).features.feature
    assert len(example["history_genres"].bytes_list.value) == sum(example["history_genres_length"].int64_list.value)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"history": "action"}, "COLUMN:VALUE,VALUE. Received: 'action' of sequence 'history'"),
        ({"sequences": ["purchases"]}, "Received: '' of sequence 'purchases'"),
        ({"sequence_attributes": ["purchases=price"]}, "with a sequence among .*Received: 'purchases=price'"),
        ({"item_attributes": ["genres:string[]"]}, r"Received: 'genres:string\[\]'"),
        ({"item_attributes": ["genres:text"]}, "Received: 'genres:text'"),
        ({"list_separator": ""}, "`list_separator` must be a character or more"),
    ],
)
def test_refused_layouts(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        custom("*.csv", Label("action", positives=("buy",)), **arguments)  # type: ignore[arg-type]


def test_a_selection_names_a_sequence_once() -> None:
    layout = _layout()
    assert Layout.from_dict(layout.to_dict()) == layout
    for selections in ([Selection("clicks", "action", ("buy",))], [Selection("history", "action", ("buy",))] * 2):
        with pytest.raises(ValueError, match=r"must name each of the sequences \['history', 'purchases'\] once"):
            Layout(layout.features, "*.csv", layout.label, selections=tuple(selections))
    with pytest.raises(ValueError, match="A selection must have a `column` and `values`"):
        Selection("history", "action", ())
