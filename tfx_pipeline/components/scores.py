"""Offline scores: the eval split scored by the blessed model, as Parquet files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import tensorflow as tf
from absl import logging
from tfx import v1 as tfx
from tfx.dsl.components.base import base_beam_executor, executor_spec
from tfx.types import artifact_utils
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.utils import io_utils

from keras_eta.columns import LABEL, TIMESTAMP
from keras_eta.datasets.negative_draws import SAMPLING_PROBABILITY
from keras_eta.export import EXAMPLES, PROBABILITY
from keras_eta.export.examples import LISTS
from tfx_pipeline.config import EVAL, HISTORY_BUCKET, PipelineConfig
from tfx_pipeline.ingestion.interactions import value_dtype
from tfx_pipeline.layouts import USER_ID

FILE_PREFIX = "scores"

_ARROW = {"int64": pa.int64(), "string": pa.string(), "float32": pa.float32()}
_DTYPES = {int: "int64", bytes: "string", float: "float32"}


class ScoredImpressions(tfx.dsl.Artifact):
    """Parquet files, one row per impression."""

    TYPE_NAME = "keras_eta.ScoredImpressions"


def bulk_scores(
    config: PipelineConfig,
    examples: tfx.types.BaseChannel,
    model: tfx.types.BaseChannel,
    blessing: tfx.types.BaseChannel,
) -> list[tfx.types.BaseComponent]:
    """The components that score the eval split and write the scores; nothing is written for a model without blessing.

    Args:
        config: says which columns the impressions have.
        examples: channel of Examples with impressions.
        model: channel of the Model.
        blessing: channel of the Evaluator's blessing.

    Returns:
        A BulkInferrer and a `ScoresWriter`.

    Raises:
        ValueError: if an impression's column has the name of the scores.
    """
    columns = score_columns(config)
    output = tfx.proto.PredictOutputCol(output_key=PROBABILITY, output_column=PROBABILITY)
    inferrer = tfx.components.BulkInferrer(
        examples=examples,
        model=model,
        model_blessing=blessing,
        data_spec=tfx.proto.DataSpec(example_splits=[EVAL]),
        model_spec=tfx.proto.ModelSpec(model_signature_name=[EXAMPLES]),
        output_example_spec=tfx.proto.OutputExampleSpec(
            output_columns_spec=[
                tfx.proto.OutputColumnsSpec(predict_output=tfx.proto.PredictOutput(output_columns=[output]))
            ]
        ),
    )
    return [inferrer, ScoresWriter(inferrer.outputs["output_examples"], columns)]


def score_columns(config: PipelineConfig) -> dict[str, str]:
    """The columns of the scores and their types, `"int64"`, `"string"` or `"float32"`.

    User, candidate, timestamp, label, what evaluation slices by, and the probability of a click; where negatives are
    sampled, also `sampling_probability`, with which `keras_eta.datasets.corrected_logits` undoes the sampling.
    """
    layout = config.layout
    names = (USER_ID, layout.features.item_id.name, TIMESTAMP, *layout.slice_columns)
    columns = {name: _DTYPES[value_dtype(layout, name)] for name in names}
    if PROBABILITY in layout.row_columns:
        raise ValueError(f"A column of the impressions is named {PROBABILITY!r}, as the scores are. Rename it.")
    if layout.negatives is not None:
        columns[SAMPLING_PROBABILITY] = "float32"
    return {**columns, HISTORY_BUCKET: "string", LABEL: "int64", PROBABILITY: "float32"}


class ScoresWriterExecutor(base_beam_executor.BaseBeamExecutor):
    """Writes columns of tf.Examples as Parquet."""

    def Do(  # noqa: N802
        self, input_dict: dict[str, list[Any]], output_dict: dict[str, list[Any]], exec_properties: dict[str, Any]
    ) -> None:
        """Writes one row for each example."""
        self._log_startup(input_dict, output_dict, exec_properties)
        examples = artifact_utils.get_single_instance(input_dict["examples"])
        scores = artifact_utils.get_single_instance(output_dict["scores"])
        columns = json.loads(exec_properties["columns"])
        if EVAL not in artifact_utils.decode_split_names(examples.split_names):
            logging.warning("There are no scores: the model is not blessed.")
            return
        files = io_utils.all_files_pattern(artifact_utils.get_split_uri([examples], EVAL))
        schema = pa.schema([pa.field(name, _ARROW[dtype], nullable=False) for name, dtype in columns.items()])
        with self._make_beam_pipeline() as pipeline:
            _ = (
                pipeline
                | "Read" >> beam.io.ReadFromTFRecord(files)
                | "Row" >> beam.Map(_row, columns)
                | "Write"
                >> beam.io.WriteToParquet(
                    os.path.join(scores.uri, FILE_PREFIX), schema, codec="snappy", file_name_suffix=".parquet"
                )
            )


class ScoresWriterSpec(ComponentSpec):
    """What `ScoresWriter` takes and gives."""

    PARAMETERS = {"columns": ExecutionParameter(type=str)}  # noqa: RUF012
    INPUTS = {"examples": ChannelParameter(type=tfx.types.standard_artifacts.Examples)}  # noqa: RUF012
    OUTPUTS = {"scores": ChannelParameter(type=ScoredImpressions)}  # noqa: RUF012


class ScoresWriter(tfx.types.BaseBeamComponent):
    """Writes scored impressions as Parquet, with the given columns.

    Args:
        examples: channel of the BulkInferrer's output examples.
        columns: names and types, as `score_columns` gives them.
    """

    SPEC_CLASS = ScoresWriterSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(ScoresWriterExecutor)

    def __init__(self, examples: tfx.types.BaseChannel, columns: Mapping[str, str]) -> None:
        super().__init__(
            spec=ScoresWriterSpec(
                examples=examples, columns=json.dumps(dict(columns)), scores=tfx.dsl.Channel(type=ScoredImpressions)
            )
        )


def _row(record: bytes, columns: Mapping[str, str]) -> dict[str, Any]:
    """The columns of one example."""
    features = tf.train.Example.FromString(record).features.feature
    row: dict[str, Any] = {}
    for name, dtype in columns.items():
        values: Sequence[Any] = getattr(features[name], LISTS[dtype]).value
        if len(values) != 1:
            raise ValueError(f"Column {name!r} of an impression must hold one {dtype}. Received: {features[name]}")
        row[name] = values[0].decode() if dtype == "string" else values[0]
    return row
