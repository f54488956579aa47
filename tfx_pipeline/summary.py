"""What a run made: artifacts, metrics by slice with a plot, timings and memory by component."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import ml_metadata as mlmd
import tensorflow_model_analysis as tfma
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tfx import v1 as tfx

from tfx_pipeline.components.infra_validator import BLESSED_PROPERTY, REASON_PROPERTY
from tfx_pipeline.config import HISTORY_BUCKET, HISTORY_BUCKETS, PipelineConfig
from tfx_pipeline.evaluation import AUC, CALIBRATION, EXAMPLE_COUNT, GROUPED_AUC, LOG_LOSS, refusals
from tfx_pipeline.ingestion.impression_gen import REPORT_FILE
from tfx_pipeline.progress import Timing

# Of ML Metadata: `uri` and `custom_properties`.
Artifact: TypeAlias = Any

METRICS = (AUC, GROUPED_AUC, LOG_LOSS, CALIBRATION)
OVERALL = "overall"
_MAX_SLICES_SHOWN = 16


@dataclasses.dataclass(frozen=True)
class Slice:
    """Metrics of one slice of the eval part.

    Args:
        name: `"overall"` or `"<column>=<value>"`.
        count: impressions in it.
        values: metric -> value; NaN where it has none.
    """

    name: str
    count: int
    values: Mapping[str, float]


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


def read_slices(evaluation_uri: str) -> list[Slice]:
    """Metrics by slice that Evaluator wrote: overall, by length of history, then the others, the largest first."""
    slices = []
    for key, outputs in tfma.load_eval_result(evaluation_uri).slicing_metrics:
        values = {}
        for by_metric in outputs[""].values():
            values.update({name: _number(value) for name, value in by_metric.items()})
        name = ", ".join(f"{column}={value}" for column, value in key) or OVERALL
        count = int(values.pop(EXAMPLE_COUNT))
        slices.append(Slice(name, count, {metric: values[metric] for metric in METRICS}))
    first = [OVERALL, *(f"{HISTORY_BUCKET}={bucket}" for bucket in HISTORY_BUCKETS)]
    order = {name: place for place, name in enumerate(first)}
    return sorted(slices, key=lambda part: (order.get(part.name, len(first)), -part.count, part.name))


def _number(value: Mapping[str, Any]) -> float:
    return float(value["doubleValue"]) if "doubleValue" in value else math.nan


def plot_slices(slices: Sequence[Slice], path: Path) -> None:
    """Draws the AUC of each slice, overall and within users, with the value of all impressions as a line."""
    figure = Figure(figsize=(12, 1.5 + 0.3 * len(slices)), layout="constrained")
    FigureCanvasAgg(figure)
    names = [f"{part.name} ({part.count:,})" for part in slices]
    for axes, metric in zip(figure.subplots(1, 2, sharey=True), (AUC, GROUPED_AUC), strict=True):
        values = [part.values[metric] for part in slices]
        axes.plot(values, range(len(slices)), "o")
        axes.axvline(values[0], color="grey", linestyle=":")
        axes.set(xlabel=metric)
        axes.set_yticks(range(len(slices)), names)
        axes.grid(axis="y", alpha=0.3)
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)


def report(config: PipelineConfig, timings: Sequence[Timing], console: Console) -> None:
    """Prints the summary of the latest run, and writes it and the plot to `<output>/report`.

    Args:
        config: what was run.
        timings: of its components.
        console: where to print.
    """
    directory = Path(config.output) / "report"
    directory.mkdir(parents=True, exist_ok=True)
    artifacts = artifacts_of_latest_run(config.metadata_path)
    evaluation = artifacts["Evaluator"]["evaluation"][0]
    slices = read_slices(evaluation.uri)
    plot = directory / "metrics.png"
    plot_slices(slices[:_MAX_SLICES_SHOWN], plot)

    ingestion = json.loads((Path(artifacts["ImpressionGen"]["examples"][0].uri) / REPORT_FILE).read_text())
    console.print(_ingestion_line(ingestion), highlight=False, soft_wrap=True)
    console.print(_timing_table(timings))
    console.print(metrics_table(slices[:_MAX_SLICES_SHOWN]))
    if len(slices) > _MAX_SLICES_SHOWN:
        console.print(f"{len(slices) - _MAX_SLICES_SHOWN:,} smaller slices are in summary.json.")
    uris = {
        f"{component}: {key}": [artifact.uri for artifact in found]
        for component, outputs in artifacts.items()
        for key, found in outputs.items()
    }
    for name, paths in uris.items():
        console.print(f"{name}: {', '.join(paths)}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Plot: {plot}")
    outcome = _outcome(artifacts)
    console.print(outcome, markup=False, highlight=False, soft_wrap=True)
    summary = {
        "outcome": outcome,
        "ingestion": ingestion,
        "slices": [dataclasses.asdict(part) for part in slices],
        "components": [dataclasses.asdict(timing) for timing in timings],
        "artifacts": uris,
    }
    (directory / "summary.json").write_text(json.dumps(summary, indent=2))


def _outcome(artifacts: Mapping[str, Mapping[str, Sequence[Artifact]]]) -> str:
    """One line: what was pushed, or why nothing was."""
    pushed = artifacts["AtomicPusher"]["pushed_model"][0].custom_properties
    if pushed["pushed"].int_value:
        return f"Pushed: {pushed['pushed_destination'].string_value}"
    reasons = []
    if not artifacts["Evaluator"]["blessing"][0].custom_properties["blessed"].int_value:
        found = refusals(tfma.load_validation_result(artifacts["Evaluator"]["evaluation"][0].uri))
        reasons.append(f"Evaluator did not bless it: {', '.join(found)}")
    infra = artifacts["LocalInfraValidator"]["blessing"][0].custom_properties
    if not infra[BLESSED_PROPERTY].int_value:
        reasons.append(f"LocalInfraValidator did not bless it: {infra[REASON_PROPERTY].string_value}")
    return f"The model was not pushed. {'; '.join(reasons)}. See the log."


def _ingestion_line(ingestion: Mapping[str, Any]) -> str:
    malformed = ", ".join(f"{count:,} {reason}" for reason, count in ingestion["malformed"].items())
    impressions = ", ".join(f"{split} {count:,}" for split, count in ingestion["impressions"].items())
    return (
        f"{ingestion['rows_read']:,} rows read, {ingestion['rows_kept']:,} kept"
        + (f"; malformed: {malformed}, in {ingestion['dead_letters']}" if malformed else "")
        + f"\nImpressions: {impressions}; {ingestion['left_out_for_short_history']:,} left out for a short history; "
        f"{ingestion['bytes_per_impression']:,.0f} bytes each on disk"
    )


def _timing_table(timings: Sequence[Timing]) -> Table:
    table = Table(title="Components")
    table.add_column("component")
    table.add_column("time", justify="right")
    table.add_column("peak memory", justify="right")
    for timing in timings:
        time = "unchanged" if timing.cached else f"{timing.seconds:.1f} s"
        table.add_row(timing.component, time, f"{timing.peak_bytes / 2**30:.1f} GiB")
    table.add_row("all", f"{sum(timing.seconds for timing in timings):.1f} s", "")
    return table


def metrics_table(slices: Sequence[Slice]) -> Table:
    """A row per slice, which fits 80 columns: names are wrapped, numbers are whole, and what is none is a dash."""
    table = Table(title="The eval part")
    table.add_column("slice", overflow="fold")
    for column in ("impressions", *METRICS):
        table.add_column(column.replace("_", " "), justify="right", min_width=6)
    for part in slices:
        values = (part.values[metric] for metric in METRICS)
        table.add_row(part.name, f"{part.count:,}", *("-" if math.isnan(x) else f"{x:.4f}" for x in values))
    return table
