"""Runs Transform on impressions that a test makes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx_bsl.public import tfxio

from keras_eta import Feature, Features
from keras_eta.columns import HISTORY_LENGTH, HISTORY_TIMESTAMP, TIMESTAMP, history_name
from tfx_pipeline.config import HISTORY_BUCKET, PipelineConfig
from tfx_pipeline.transform import preprocessing_fn

# Column -> value, or values of a history.
Impression = dict[str, Any]


def serialized(impression: Impression | bytes, features: Features) -> bytes:
    """An impression as a tf.Example. An empty history has its kind too."""
    if isinstance(impression, bytes):
        return impression
    dtypes = {feature.name: feature.dtype for feature in features.all_features}
    example = tf.train.Example()
    for name, value in impression.items():
        values = value if isinstance(value, list) else [value]
        column = example.features.feature[name]
        dtype = dtypes.get(name.removeprefix("history_"), "string" if name == HISTORY_BUCKET else "int64")
        kind = {"int64": column.int64_list, "string": column.bytes_list, "float32": column.float_list}[dtype]
        kind.SetInParent()
        kind.value.extend(values)
    return example.SerializeToString()


def raw_columns(impressions: Sequence[Impression], features: Features) -> dict[str, np.ndarray]:
    """The impressions as a `FeatureLookup` reads them: histories padded with anything, here with the first id."""
    dtypes = {feature.name: _numpy_dtype(feature) for feature in features.all_features}
    history_dtypes = {history_name(name): dtype for name, dtype in dtypes.items()} | {HISTORY_TIMESTAMP: np.int64}
    lengths = [len(row[history_name(features.item_id.name)]) for row in impressions]
    longest = max(lengths)
    columns = {
        name: np.array([row[name] for row in impressions], np.int64 if name == TIMESTAMP else dtypes[name])
        for name in features.row_names
    }
    for name in features.history_names:
        filler = impressions[0][features.item_id.name] if history_dtypes[name] is np.int64 else b"padding"
        filler = 0.0 if history_dtypes[name] is np.float32 else filler
        padded = [[*row[name], *[filler] * (longest - len(row[name]))] for row in impressions]
        columns[name] = np.array(padded, history_dtypes[name])
    return {**columns, HISTORY_LENGTH: np.array(lengths, np.int64)}


def _numpy_dtype(feature: Feature) -> Any:
    return {"int64": np.int64, "string": object, "float32": np.float32}[feature.dtype]


def run_transform(
    config: PipelineConfig,
    schema: schema_pb2.Schema,
    splits: Mapping[str, Sequence[Impression | bytes]],
    output: Path,
    batch_size: int = 32,
) -> tft.TFTransformOutput:
    """Analyses the split `train` and transforms all, as TFX does: `output/graph`, `output/<split>/*.gz`."""
    function = functools.partial(preprocessing_fn, custom_config={"config": config.to_json()})
    source = tfxio.TFExampleBeamRecord(physical_format="inmem", schema=schema, telemetry_descriptors=["test"])
    adapter = source.TensorAdapterConfig()
    with beam.Pipeline() as pipeline, tft_beam.Context(temp_dir=str(output / "tmp")):
        raw = {
            split: pipeline
            | f"Create {split}"
            >> beam.Create([serialized(row, config.layout.features) for row in impressions], reshuffle=False)
            | f"Read {split}" >> source.BeamSource(batch_size=batch_size)
            for split, impressions in splits.items()
        }
        transform_fn = (raw["train"], adapter) | tft_beam.AnalyzeDataset(function)
        _ = transform_fn | tft_beam.WriteTransformFn(str(output / "graph"))
        for split, batches in raw.items():
            dataset = ((batches, adapter), transform_fn) | f"Transform {split}" >> tft_beam.TransformDataset(
                output_record_batches=True
            )
            _ = (
                dataset
                | f"Encode {split}" >> tft_beam.EncodeTransformedDataset()
                | f"Write {split}"
                >> beam.io.WriteToTFRecord(str(output / split / "part"), file_name_suffix=".gz", num_shards=1)
            )
    return tft.TFTransformOutput(str(output / "graph"))
