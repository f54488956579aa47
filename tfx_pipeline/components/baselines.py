"""Baselines: what counting, or the short history alone, makes of the eval split, which a model must not lose to."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import tensorflow as tf
from tfx import v1 as tfx
from tfx.dsl.components.base import base_beam_executor, executor_spec
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.utils import io_utils, path_utils

from keras_eta.columns import LABEL
from keras_eta.datasets.counting import BASELINES, counting_scores, repeats_and_recency
from keras_eta.export import EXAMPLES, PROBABILITY
from keras_eta.metrics import auc, grouped_auc
from tfx_pipeline.config import EVAL
from tfx_pipeline.grouped_auc import MAX_ROWS, Rows, group_hash
from tfx_pipeline.ingestion.item_counts import (
    ITEM,
    ITEM_COUNTS,
    ITEM_IMPRESSIONS,
    ITEM_POSITIVES,
    PARQUET_SUFFIX,
)
from tfx_pipeline.layouts import USER_ID

BASELINES_FILE = "baselines.json"

# A ranker that reads the last few behaviours alone.
SHORT_HISTORY = "short-history"


SHORT_HISTORY_MODEL = "short_history_model"

_BATCH_SIZE = 512


class BaselineMetrics(tfx.dsl.Artifact):
    """`baselines.json`: AUC, overall and within users, of each baseline on the eval split."""

    TYPE_NAME = "keras_eta.BaselineMetrics"


class Measured(NamedTuple):
    """What a baseline reaches on the eval split.

    Args:
        auc: of all impressions.
        grouped_auc: within users; NaN where no user has both labels.
    """

    auc: float
    grouped_auc: float


def read_baselines(uri: str) -> dict[str, Measured]:
    """Each baseline's metrics, of a `BaselineMetrics` artifact's directory."""
    with fileio.open(os.path.join(uri, BASELINES_FILE)) as file:
        found = json.loads(file.read())
    return {
        name: Measured(*(math.nan if metrics[key] is None else metrics[key] for key in Measured._fields))
        for name, metrics in found.items()
    }


class BaselinesExecutor(base_beam_executor.BaseBeamExecutor):
    """Scores the eval split by counting, and by the model of the short history where there is one, and measures it."""

    def Do(  # noqa: N802
        self, input_dict: dict[str, list[Any]], output_dict: dict[str, list[Any]], exec_properties: dict[str, Any]
    ) -> None:
        """Writes `baselines.json`."""
        self._log_startup(input_dict, output_dict, exec_properties)
        examples = artifact_utils.get_single_instance(input_dict["examples"])
        directory = artifact_utils.get_single_uri(output_dict["baselines"])
        models = input_dict.get(SHORT_HISTORY_MODEL) or ()
        names = (*BASELINES, *(SHORT_HISTORY for _ in models))
        counts_files = os.path.join(examples.uri, f"{ITEM_COUNTS}*{PARQUET_SUFFIX}")
        files = io_utils.all_files_pattern(artifact_utils.get_split_uri([examples], EVAL))
        with self._make_beam_pipeline() as pipeline:
            counts = (
                pipeline | "ReadCounts" >> beam.io.ReadFromParquet(counts_files) | "Count" >> beam.Map(_item_counts)
            )
            total = counts | beam.Values() | "Total" >> beam.CombineGlobally(beam.combiners.TupleCombineFn(sum, sum))
            paths = [path_utils.serving_model_path(model.uri) for model in models]
            _ = (
                pipeline
                | "Read" >> beam.io.ReadFromTFRecord(files)
                | "Batch" >> beam.BatchElements(_BATCH_SIZE, _BATCH_SIZE)
                | "AskModels" >> beam.ParDo(_Models(paths))
                | "Score"
                >> beam.Map(
                    _scored, exec_properties["item_id"], beam.pvalue.AsDict(counts), beam.pvalue.AsSingleton(total)
                )
                | "Measure" >> beam.CombineGlobally(_Measure(names, MAX_ROWS))
                | beam.Map(json.dumps)
                | "Write" >> beam.io.WriteToText(os.path.join(directory, BASELINES_FILE), shard_name_template="")
            )


class BaselinesSpec(ComponentSpec):
    """What `Baselines` takes and gives."""

    PARAMETERS = {"item_id": ExecutionParameter(type=str)}  # noqa: RUF012
    INPUTS = {  # noqa: RUF012
        "examples": ChannelParameter(type=tfx.types.standard_artifacts.Examples),
        SHORT_HISTORY_MODEL: ChannelParameter(type=tfx.types.standard_artifacts.Model, optional=True),
    }
    OUTPUTS = {"baselines": ChannelParameter(type=BaselineMetrics)}  # noqa: RUF012


class Baselines(tfx.types.BaseBeamComponent):
    """Measures `keras_eta.datasets.counting.BASELINES`, and a model, on the impressions that models are judged by.

    Exact up to `tfx_pipeline.grouped_auc.MAX_ROWS` impressions; beyond, that of the sample of whole users that
    `GroupedAUC` takes. A worker holds the counts of all items of the training split, as it holds their embeddings when
    it evaluates a model.

    Args:
        examples: channel of `ImpressionGen`'s Examples, beside whose splits the counts of items lie.
        item_id: the column with the candidate's id.
        short_history: channel of a Model that reads the short history alone, the baseline `SHORT_HISTORY`. `None`:
            there is none.
    """

    SPEC_CLASS = BaselinesSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(BaselinesExecutor)

    def __init__(
        self, examples: tfx.types.BaseChannel, item_id: str, short_history: tfx.types.BaseChannel | None = None
    ) -> None:
        models = {} if short_history is None else {SHORT_HISTORY_MODEL: short_history}
        super().__init__(
            BaselinesSpec(examples=examples, item_id=item_id, baselines=tfx.dsl.Channel(type=BaselineMetrics), **models)
        )


class _Models(beam.DoFn):
    """Batches of serialized impressions -> each with the probability of each SavedModel."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def setup(self) -> None:
        self._models = [tf.saved_model.load(path) for path in self._paths]

    def process(self, batch: Sequence[bytes]) -> Iterable[tuple[bytes, tuple[float, ...]]]:
        answers = [model.signatures[EXAMPLES](examples=tf.constant(batch)) for model in self._models]
        by_model = [answer[PROBABILITY].numpy().tolist() for answer in answers]
        for row, record in enumerate(batch):
            yield record, tuple(probabilities[row] for probabilities in by_model)


class _Measure(beam.CombineFn):
    """(group, label, scores by baseline) -> baseline -> metric -> value, `None` where there is none."""

    def __init__(self, names: Sequence[str], max_rows: int) -> None:
        self._names, self._max_rows = names, max_rows

    def create_accumulator(self) -> list[Rows]:
        return [Rows(self._max_rows) for _ in self._names]

    def add_input(self, accumulator: list[Rows], row: tuple[int, int, Sequence[float]]) -> list[Rows]:
        group, label, scores = row
        for rows, score in zip(accumulator, scores, strict=True):
            rows.add(group, label, score)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[list[Rows]]) -> list[Rows]:
        merged = self.create_accumulator()
        for accumulator in accumulators:
            for rows, more in zip(merged, accumulator, strict=True):
                rows.merge(more)
        return merged

    def extract_output(self, accumulator: list[Rows]) -> dict[str, dict[str, float | None]]:
        return {name: _measured(rows) for name, rows in zip(self._names, accumulator, strict=True)}


def _measured(rows: Rows) -> dict[str, float | None]:
    rows.thin()
    labels, scores, groups = rows.columns()
    found = Measured(auc(labels, scores), grouped_auc(labels, scores, groups))
    return {name: None if math.isnan(value) else value for name, value in found._asdict().items()}


def _item_counts(row: Mapping[str, Any]) -> tuple[int | bytes, tuple[int, int]]:
    return row[ITEM], (row[ITEM_POSITIVES], row[ITEM_IMPRESSIONS])


def _scored(
    scored: tuple[bytes, tuple[float, ...]],
    item_id: str,
    counts: Mapping[int | bytes, tuple[int, int]],
    total: tuple[int, int],
) -> tuple[int, int, tuple[float, ...]]:
    """The hash of the user, the label and the scores of an impression."""
    record, probabilities = scored
    features = tf.train.Example.FromString(record).features.feature

    def values(name: str) -> Sequence[int | bytes]:
        feature = features[name]
        return getattr(feature, feature.WhichOneof("kind")).value

    (item,), history = values(item_id), values(f"history_{item_id}")
    # Arrays of objects: those of bytes drop NULs at the end.
    candidate, behaviours = np.array([item], object), np.array(list(history), object)[np.newaxis]
    repeats, recency = repeats_and_recency(candidate, behaviours, np.array([len(history)]))
    positives, shown = counts.get(item, (0, 0))
    all_positives, all_shown = total
    scores = counting_scores(positives, shown, all_positives / max(all_shown, 1), repeats[0], recency[0])
    label = values(LABEL)[0]
    return group_hash(values(USER_ID)[0]), int(label), (*(float(scores[name]) for name in BASELINES), *probabilities)
