"""What the latest run made, read from ML Metadata and its artifacts."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import ml_metadata as mlmd
import tensorflow_data_validation as tfdv
import tensorflow_model_analysis as tfma
from tfx import v1 as tfx
from tfx.dsl.io import fileio

from tfx_pipeline.components.baselines import Measured, read_baselines
from tfx_pipeline.components.validator import STATISTICS_FILE
from tfx_pipeline.config import HISTORY_BUCKET, HISTORY_BUCKETS, SPLITS, PipelineConfig
from tfx_pipeline.evaluation import EXAMPLE_COUNT, MEAN_LABEL, RELIABILITY, Gate, gates, refusals
from tfx_pipeline.ingestion.impression_gen import REPORT_FILE
from tfx_pipeline.outcome import outcome
from tfx_pipeline.progress import Timing
from tfx_pipeline.retrieval.results import RetrieverResults, read_retriever_results
from tfx_pipeline.training.trainer import TRAINING_REPORT

# Of ML Metadata: `uri` and `custom_properties`.
Artifact: TypeAlias = Any

OVERALL = "overall"


class Tenth(NamedTuple):
    """A tenth of the impressions, by their probability."""

    impressions: int
    mean_probability: float
    mean_label: float


@dataclasses.dataclass(frozen=True)
class Slice:
    """Metrics of one slice of the eval part.

    Args:
        name: `"overall"` or `"<column>=<value>"`.
        count: impressions in it.
        values: metric -> value; NaN where it has none.
        reliability: by tenth of its probabilities; those without impressions are left out.
    """

    name: str
    count: int
    values: Mapping[str, float]
    reliability: Sequence[Tenth] = ()

    @property
    def one_class(self) -> bool:
        """Whether all its labels are equal, so that nothing can be ranked."""
        return self.values[MEAN_LABEL] in (0.0, 1.0)


class HistoryLengths(NamedTuple):
    """Behaviours in the histories of a split, at most `max_history_length`."""

    mean: float
    median: float
    longest: int


@dataclasses.dataclass(frozen=True)
class Results:
    """A run from its log to its outcome.

    Args:
        outcome: what was pushed, or why nothing was.
        ingestion: the report of `ImpressionGen`.
        history_lengths: by split.
        slices: of the model, overall first, then by length of history, then the others, the largest first.
        last: the last blessed model's overall metrics on the same impressions; `None` where there was none.
        baselines: metrics of those, likewise.
        gates: what was asked of the model, and whether it passed.
        calibration: what the Trainer fitted to the validation part; `None`: nothing.
        timings: of the components.
        artifacts: "component: output" -> URIs.
        retriever: what was found of the retriever; `None` where there is none.
    """

    outcome: str
    ingestion: Mapping[str, Any]
    history_lengths: Mapping[str, HistoryLengths]
    slices: Sequence[Slice]
    last: Mapping[str, float] | None
    baselines: Mapping[str, Measured]
    gates: Sequence[Gate]
    calibration: Mapping[str, Any] | None
    timings: Sequence[Timing]
    artifacts: Mapping[str, Sequence[str]]
    retriever: RetrieverResults | None = None

    @property
    def compared(self) -> dict[str, Mapping[str, float]]:
        """Metrics on the same impressions: of the model, of the last blessed one if there was any, of the baselines."""
        last = {} if self.last is None else {"last blessed": self.last}
        baselines = {name: found._asdict() for name, found in self.baselines.items()}
        return {"this model": self.slices[0].values, **last, **baselines}


def read_results(config: PipelineConfig, timings: Sequence[Timing]) -> Results:
    """The results of the latest run.

    Args:
        config: what was run.
        timings: of its components.
    """
    artifacts = artifacts_of_latest_run(config.metadata_path)
    examples, statistics = artifacts["ImpressionGen"]["examples"][0], artifacts["StatisticsGen"]["statistics"][0]
    evaluation = artifacts["Evaluator"]["evaluation"][0].uri
    baselines = read_baselines(artifacts["Baselines"]["baselines"][0].uri)
    with fileio.open(os.path.join(examples.uri, REPORT_FILE)) as file:
        ingestion = json.loads(file.read())
    with fileio.open(os.path.join(artifacts["Trainer"]["model_run"][0].uri, TRAINING_REPORT)) as file:
        training = json.loads(file.read())
    validation = tfma.load_validation_result(evaluation)
    result = tfma.load_eval_result(evaluation)
    slices, last = read_slices(result), None
    if any(spec.is_baseline for spec in result.config.model_specs):
        last = read_slices(tfma.load_eval_result(evaluation, model_name=tfma.BASELINE_KEY))[0].values
    return Results(
        outcome=outcome(artifacts, refusals(validation, baselines, config.evaluation)),
        ingestion=ingestion,
        history_lengths=_history_lengths(statistics.uri, f"history_{config.layout.features.item_id.name}"),
        slices=slices,
        last=last,
        baselines=baselines,
        gates=gates(result.config, validation, slices[0].values, last, baselines, config.evaluation),
        calibration=training["calibration"],
        timings=timings,
        artifacts={
            f"{component}: {key}": [artifact.uri for artifact in found]
            for component, outputs in artifacts.items()
            for key, found in outputs.items()
        },
        retriever=read_retriever_results(artifacts),
    )


def artifacts_of_latest_run(metadata_path: str) -> dict[str, dict[str, list[Artifact]]]:
    """Component -> output -> artifacts of the latest run that ML Metadata knows, cached ones included."""
    store = mlmd.MetadataStore(tfx.orchestration.metadata.sqlite_metadata_connection_config(metadata_path))
    run = max(store.get_contexts_by_type("pipeline_run"), key=lambda context: context.id)
    nodes = {context.id: context.name for context in store.get_contexts_by_type("node")}
    found: dict[str, dict[str, list[Artifact]]] = {}
    for execution in store.get_executions_by_context(run.id):
        contexts = store.get_contexts_by_execution(execution.id)
        component = next(nodes[context.id] for context in contexts if context.id in nodes).split(".", 1)[-1]
        outputs = found.setdefault(component, {})
        for event in store.get_events_by_execution_ids([execution.id]):
            if event.type == mlmd.proto.Event.OUTPUT:
                key = next(step.key for step in event.path.steps if step.WhichOneof("value") == "key")
                outputs.setdefault(key, []).extend(store.get_artifacts_by_id([event.artifact_id]))
    return found


def read_slices(result: Any) -> list[Slice]:
    """Metrics by slice of an evaluation: overall, by length of history, then the others, the largest first.

    Args:
        result: an `EvalResult` of TensorFlow Model Analysis.
    """
    slices = []
    for key, outputs in result.slicing_metrics:
        values = {}
        for by_metric in outputs[""].values():
            values.update({name: _number(value) for name, value in by_metric.items() if "arrayValue" not in value})
        name = ", ".join(f"{column}={value}" for column, value in key) or OVERALL
        slices.append(Slice(name, int(values.pop(EXAMPLE_COUNT)), values, _reliability(outputs[""][""])))
    first = [OVERALL, *(f"{HISTORY_BUCKET}={bucket}" for bucket in HISTORY_BUCKETS)]
    order = {name: place for place, name in enumerate(first)}
    return sorted(slices, key=lambda part: (order.get(part.name, len(first)), -part.count, part.name))


def _number(value: Mapping[str, Any]) -> float:
    return float(value["doubleValue"]) if "doubleValue" in value else math.nan


def _reliability(metrics: Mapping[str, Any]) -> list[Tenth]:
    values = metrics[RELIABILITY]["arrayValue"]["float64Values"]
    tenths = zip(*(values[column::3] for column in range(3)), strict=True)
    return [Tenth(int(count), probability, label) for count, probability, label in tenths if count]


def _history_lengths(statistics_uri: str, column: str) -> dict[str, HistoryLengths]:
    lengths = {}
    for split in SPLITS:
        statistics = tfdv.load_stats_binary(os.path.join(statistics_uri, f"Split-{split}", STATISTICS_FILE))
        found = tfdv.get_feature_stats(statistics.datasets[0], tfdv.FeaturePath([column]))
        values = found.string_stats if found.HasField("string_stats") else found.num_stats
        common = values.common_stats
        buckets = common.num_values_histogram.buckets
        median = buckets[len(buckets) // 2].low_value
        lengths[split] = HistoryLengths(common.avg_num_values, median, common.max_num_values)
    return lengths
