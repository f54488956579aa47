"""What a run made, on the terminal and as JSON, with a link to the page that shows all of it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.evaluation import AUC, CALIBRATION, COMPARED, GROUPED_AUC, LOG_LOSS
from tfx_pipeline.progress import Timing
from tfx_pipeline.report_page import report_page
from tfx_pipeline.results import Results, Slice, read_results
from tfx_pipeline.retrieval.judging import Measures
from tfx_pipeline.retrieval.results import RetrieverResults

METRICS = (AUC, GROUPED_AUC, LOG_LOSS, CALIBRATION)
_MAX_SLICES_SHOWN = 16


def report(config: PipelineConfig, timings: Sequence[Timing], console: Console) -> None:
    """Prints the summary of the latest run, and writes `summary.json` and `index.html` to `<output>/report`.

    Args:
        config: what was run.
        timings: of its components.
        console: where to print.
    """
    directory = Path(config.output) / "report"
    directory.mkdir(parents=True, exist_ok=True)
    results = read_results(config, timings)
    page = directory / "index.html"
    page.write_text(report_page(results), encoding="utf-8")
    (directory / "summary.json").write_text(json.dumps(_as_json(results), indent=2))

    console.print(_ingestion_line(results.ingestion), highlight=False, soft_wrap=True)
    console.print(_timing_table(timings))
    console.print(metrics_table(results.slices[:_MAX_SLICES_SHOWN]))
    if len(results.slices) > _MAX_SLICES_SHOWN:
        console.print(f"{len(results.slices) - _MAX_SLICES_SHOWN:,} smaller slices are in summary.json.")
    console.print(comparison_table(results))
    if results.retriever is not None:
        console.print(retriever_table(results.retriever))
        for line in results.retriever.lines():
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    for name, paths in results.artifacts.items():
        console.print(f"{name}: {', '.join(paths)}", markup=False, highlight=False, soft_wrap=True)
    console.print(results.outcome, markup=False, highlight=False, soft_wrap=True)
    console.print(f"Report: {page.resolve().as_uri()}", markup=False, highlight=False, soft_wrap=True)


def _as_json(results: Results) -> dict[str, Any]:
    return {
        "outcome": results.outcome,
        "ingestion": results.ingestion,
        "slices": [dataclasses.asdict(part) for part in results.slices],
        "last_blessed": results.last,
        "baselines": {name: found._asdict() for name, found in results.baselines.items()},
        "calibration": results.calibration,
        "gates": [gate._asdict() for gate in results.gates],
        "components": [dataclasses.asdict(timing) for timing in results.timings],
        "artifacts": results.artifacts,
        "retriever": None if results.retriever is None else results.retriever.to_json(),
    }


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
    table.add_row("all", f"{max(timing.start + timing.seconds for timing in timings):.1f} s", "")
    return table


def metrics_table(slices: Sequence[Slice]) -> Table:
    """A row per slice, which fits 80 columns: names are wrapped, numbers are whole, and what is none is a dash.

    A slice of one class, which has no AUC, says so.
    """
    table = Table(title="The eval part")
    table.add_column("slice", overflow="fold")
    for column in ("impressions", *METRICS):
        table.add_column(column.replace("_", " "), justify="right", min_width=6)
    for part in slices:
        name = f"{part.name}, one class" if part.one_class else part.name
        table.add_row(name, f"{part.count:,}", *(_cell(part.values[metric]) for metric in METRICS))
    return table


def comparison_table(results: Results) -> Table:
    """A row for the model, the last blessed one and each baseline, of the same impressions; a dash for what is none."""
    table = Table(title="Beside others, on the same impressions")
    table.add_column("", overflow="fold")
    for column in COMPARED:
        table.add_column(column.replace("_", " "), justify="right", min_width=6)
    for name, values in results.compared.items():
        table.add_row(name, *(_cell(values.get(metric, math.nan)) for metric in COMPARED))
    return table


def retriever_table(retriever: RetrieverResults) -> Table:
    """A row for the retriever, the one pushed last and each way of counting, of the same positives."""
    table = Table(title="The retriever beside others, on the same positives")
    table.add_column("", overflow="fold")
    for column in Measures._fields:
        table.add_column(column.replace("_", " "), justify="right", min_width=6)
    for name, values in retriever.verdict.measures.items():
        table.add_row(name, *map(_cell, values))
    return table


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
