"""What the tests of serving need: a small exported ETA, and impressions of the eval split that it can score."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tfx.types import artifact_utils, standard_artifacts

from keras_eta import Age, Feature, FeatureLookup, Features
from keras_eta.export import export_model
from tests.paper import paper_eta
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.layouts import Label, Layout

MAX_HISTORY = 6
ITEMS = [f"item {number}" for number in range(20)]
NOW = 1_000_000

LAYOUT = Layout(
    Features(
        item_id=Feature("item_id", "string", embedding_dim=4),
        item_attributes=(Feature("category_id", embedding_dim=2),),
        behaviour_attributes=(Feature("dwell", "float32", mean=0.0, std=1.0),),
        user=(Feature("user_id", embedding_dim=2),),
        context=(Feature("price", "float32", mean=0.0, std=1.0),),
        age=Age((60, 3600), embedding_dim=2),
        max_history_length=MAX_HISTORY,
    ),
    pattern="log.csv",
    label=Label("clicked"),
    slice_columns=("country",),
)
CONFIG = PipelineConfig(data="", layout=LAYOUT, schema="", output="", serving_dir="")


def impressions(rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Impressions as ingestion writes them: the first has no history, the second a full one. Half the labels are 0."""
    rng = np.random.default_rng(seed)
    made = []
    for row in range(rows):
        length = [0, MAX_HISTORY][row] if row < 2 else int(rng.integers(0, MAX_HISTORY + 1))
        items = rng.integers(0, len(ITEMS), length + 1)
        made.append(
            {
                "user_id": row % 5,
                "item_id": ITEMS[items[0]].encode(),
                "category_id": int(items[0]) % 4,
                "price": float(np.float32(rng.random())),
                "timestamp": NOW + row,
                "country": b"\xc3\x96sterreich" if row % 3 else b"Chile",
                "history_bucket": b"0-9",
                "label": row % 2,
                "history_item_id": [ITEMS[item].encode() for item in items[1:]],
                "history_category_id": [int(item) % 4 for item in items[1:]],
                "history_dwell": rng.random(length, np.float32).tolist(),
                "history_timestamp": sorted((NOW - rng.integers(1, 9_000, length)).tolist(), reverse=True),
            }
        )
    return made


def serialized(impression: dict[str, Any]) -> bytes:
    """An impression as a tf.Example; an empty history is an empty list of its column's type."""
    example = tf.train.Example()
    for name, value in impression.items():
        values = value if isinstance(value, list) else [value]
        kind = {
            "history_item_id": "bytes_list",
            "history_dwell": "float_list",
            "history_category_id": "int64_list",
            "history_timestamp": "int64_list",
        }.get(name) or {bytes: "bytes_list", float: "float_list", int: "int64_list"}[type(values[0])]
        field = getattr(example.features.feature[name], kind)
        field.SetInParent()
        field.value.extend(values)
    return example.SerializeToString(deterministic=True)


def examples_artifact(folder: Path, records: Sequence[bytes], shards: int = 1) -> standard_artifacts.Examples:
    """An Examples artifact with these in the eval split."""
    artifact = standard_artifacts.Examples()
    artifact.uri = str(folder)
    artifact.split_names = artifact_utils.encode_split_names(["train", "eval"])
    split = Path(artifact_utils.get_split_uri([artifact], "eval"))
    split.mkdir(parents=True)
    for shard in range(shards):
        path = split / f"data_tfrecord-{shard:05d}-of-{shards:05d}.gz"
        with tf.io.TFRecordWriter(str(path), options="GZIP") as writer:
            for record in records[shard::shards]:
                writer.write(record)
    return artifact


def model_artifact(folder: Path) -> standard_artifacts.Model:
    """A Model artifact; its SavedModel belongs in `saved_model_path`."""
    artifact = standard_artifacts.Model()
    artifact.uri = str(folder)
    return artifact


def saved_model_path(artifact: standard_artifacts.Model) -> Path:
    """Where a Trainer puts the SavedModel of an artifact."""
    return Path(artifact.uri) / "Format-Serving"


def export_eta(folder: Path) -> standard_artifacts.Model:
    """A Model artifact with an ETA of random weights, that knows the items and reads raw columns."""
    tf.keras.utils.set_random_seed(0)
    lookup = FeatureLookup(LAYOUT.features)
    lookup.adapt({"item_id": np.array(ITEMS, object), "category_id": np.arange(4), "user_id": np.arange(4)})
    model = paper_eta(
        lookup=lookup, top_k=2, num_bits=16, similarity_bias=True, short_history_length=2, hidden_units=(8,)
    )
    model.build()
    for layer in model.embeddings.values():
        layer.embeddings.assign(tf.random.normal(layer.embeddings.shape))
    artifact = model_artifact(folder / "model")
    os.makedirs(artifact.uri)
    export_model(model, folder / "export", version=1).rename(saved_model_path(artifact))
    return artifact
