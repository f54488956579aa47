"""Offline scores: every impression of the eval split, with the number that the `examples` signature gives it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow as tf
from tfx import v1 as tfx
from tfx.components.bulk_inferrer import executor as bulk_inferrer
from tfx.types import standard_artifacts

from keras_eta import Feature
from keras_eta.features import Features
from tests.tfx_pipeline import servable
from tests.tfx_pipeline.servable import CONFIG, LAYOUT
from tfx_pipeline.components.scores import ScoredImpressions, ScoresWriterExecutor, bulk_scores, score_columns
from tfx_pipeline.layouts import Layout

ROWS = 203
SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),
        pa.field("country", pa.string(), nullable=False),
        pa.field("history_bucket", pa.string(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("probability", pa.float32(), nullable=False),
    ]
)


def components() -> Sequence[Any]:
    kinds = standard_artifacts.Examples, standard_artifacts.Model, standard_artifacts.ModelBlessing
    return bulk_scores(CONFIG, *(tfx.dsl.Channel(type=kind) for kind in kinds))


def score(model: Any, examples: Any, folder: Path, blessed: int) -> list[Path]:
    """Runs both components' executors; the files that the second one wrote."""
    inferrer, writer = components()
    blessing = standard_artifacts.ModelBlessing()
    blessing.set_int_custom_property("blessed", blessed)
    scored = standard_artifacts.Examples()
    scored.uri = str(folder / "scored")
    scores = ScoredImpressions()
    scores.uri = str(folder / "scores")
    Path(scores.uri).mkdir()
    inputs = {"examples": [examples], "model": [model], "model_blessing": [blessing]}
    bulk_inferrer.Executor().Do(inputs, {"output_examples": [scored]}, inferrer.exec_properties)
    ScoresWriterExecutor().Do({"examples": [scored]}, {"scores": [scores]}, writer.exec_properties)
    return sorted(Path(scores.uri).iterdir())


@pytest.mark.slow
def test_every_impression_has_its_score(tmp_path):
    model = servable.export_eta(tmp_path)
    impressions = servable.impressions(ROWS)
    records = [servable.serialized(impression) for impression in impressions]
    files = score(model, servable.examples_artifact(tmp_path / "examples", records, shards=2), tmp_path, blessed=1)
    assert files
    assert all(file.name.startswith("scores-") and file.name.endswith(".parquet") for file in files)
    table = pa.concat_tables(pyarrow.parquet.read_table(file) for file in files)
    assert table.schema.equals(SCHEMA)
    rows = sorted(table.to_pylist(), key=lambda row: row["timestamp"])

    probabilities = np.array([row.pop("probability") for row in rows])
    assert rows == [
        {
            "user_id": impression["user_id"],
            "item_id": impression["item_id"].decode(),
            "timestamp": impression["timestamp"],
            "country": impression["country"].decode(),
            "history_bucket": "0-9",
            "label": impression["label"],
        }
        for impression in impressions
    ]
    assert sum(row["label"] == 0 for row in rows) == 102
    signature = tf.saved_model.load(str(servable.saved_model_path(model))).signatures["examples"]
    expected = signature(examples=tf.constant(records))["probability"].numpy()
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-6)
    assert np.ptp(expected) > 1e-3


def test_model_without_blessing_has_no_scores(tmp_path):
    examples = servable.examples_artifact(tmp_path / "examples", [])
    assert score(servable.model_artifact(tmp_path / "model"), examples, tmp_path, blessed=0) == []


def test_components_score_the_eval_split_by_the_examples_signature():
    inferrer, writer = components()
    assert inferrer.exec_properties["data_spec"].replace("\n", "").replace(" ", "") == '{"example_splits":["eval"]}'
    assert '"examples"' in inferrer.exec_properties["model_spec"]
    assert writer.inputs["examples"] is inferrer.outputs["output_examples"]
    assert writer.outputs["scores"].type is ScoredImpressions


def test_user_id_that_is_no_feature_is_text():
    features = Features(item_id=Feature("film", "string"), context=(Feature("price", "float32"),))
    config = dataclasses.replace(CONFIG, layout=Layout(features, pattern="log.csv", label=LAYOUT.label))
    assert score_columns(config) == {
        "user_id": "string",
        "film": "string",
        "timestamp": "int64",
        "history_bucket": "string",
        "label": "int64",
        "probability": "float32",
    }


def test_column_named_like_the_scores_is_refused():
    layout = dataclasses.replace(LAYOUT, slice_columns=("probability",))
    config = dataclasses.replace(CONFIG, layout=layout)
    with pytest.raises(ValueError, match=r"A column of the impressions is named 'probability', as the scores are\."):
        score_columns(config)


@pytest.mark.parametrize("value", [None, [1, 0]])
def test_impression_without_a_column_is_an_error(tmp_path, value):
    impression = servable.impressions(1)[0]
    impression["probability"] = 0.0
    impression["label"] = value
    if value is None:
        del impression["label"]
    examples = servable.examples_artifact(tmp_path / "examples", [servable.serialized(impression)])
    scores = ScoredImpressions()
    scores.uri = str(tmp_path / "scores")
    _, writer = components()
    with pytest.raises(ValueError, match=r"Column 'label' of an impression must hold one int64\."):
        ScoresWriterExecutor().Do({"examples": [examples]}, {"scores": [scores]}, writer.exec_properties)
