"""The page that shows a run: a single HTML file that loads nothing."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import jinja2
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tfx_pipeline.config import HISTORY_BUCKET
from tfx_pipeline.evaluation import AUC, COMPARED, GROUPED_AUC
from tfx_pipeline.progress import Timing
from tfx_pipeline.results import Results, Slice
from tfx_pipeline.retrieval.judging import Measures

_MAX_SLICES_SHOWN = 100
_MAX_SLICES_DRAWN = 8


def template(package: str) -> jinja2.Template:
    """The template `report.html` of a package, which escapes what it shows and refuses names that it is not given."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, package_path=""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def report_page(results: Results) -> str:
    """The HTML: outcome, gates, metrics beside others, calibration, slices, the retriever, data, components.

    Args:
        results: of the run.
    """
    histories = [part for part in results.slices if part.name.startswith(f"{HISTORY_BUCKET}=")]
    return template("tfx_pipeline").render(
        results=results,
        compared=COMPARED,
        measure_names=Measures._fields,
        slices=results.slices[:_MAX_SLICES_SHOWN],
        calibration_plot=calibration_plot(results.slices),
        history_plot=history_plot(histories),
        components_plot=components_plot(results.timings),
    )


def calibration_plot(slices: Sequence[Slice]) -> str:
    """Mean label over mean probability of each tenth, as SVG: a panel per column, with its largest slices.

    Args:
        slices: overall first, the others of a column by falling size.
    """
    overall, *others = slices
    columns: dict[str, list[Slice]] = {"": []}
    for part in others:
        columns.setdefault(part.name.partition("=")[0], []).append(part)
    figure = Figure(figsize=(4.5 * len(columns), 4), layout="constrained")
    for axes, (column, parts) in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns.items(), strict=True):
        for part in parts[:_MAX_SLICES_DRAWN]:
            _draw_tenths(axes, part, linewidth=1, markersize=3, label=_escaped(part.name.partition("=")[2]))
        _draw_tenths(axes, overall, linewidth=2, markersize=5, color="black", label=f"all {overall.count:,}")
        if overall.reliability:
            ends = [pick(tenth.mean_probability for tenth in overall.reliability) for pick in (min, max)]
            axes.plot(ends, ends, color="grey", linestyle=":", label="calibrated")
        axes.set(
            xlabel="mean probability", ylabel="mean label", title=_escaped(column) if column else "all impressions"
        )
        axes.legend(fontsize="small")
    return svg(figure)


def _draw_tenths(axes: Any, part: Slice, **style: Any) -> None:
    tenths = part.reliability
    axes.plot([x.mean_probability for x in tenths], [x.mean_label for x in tenths], "o-", **style)


def _escaped(text: str) -> str:
    """As matplotlib shows it as it is: without mathematics, and not hidden from the legend."""
    return text.replace("$", r"\$").lstrip("_") or "-"


def history_plot(slices: Sequence[Slice]) -> str:
    """AUC and AUC within users by length of history, as SVG; nothing is drawn where there is none."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for metric in (AUC, GROUPED_AUC):
        axes.plot(range(len(slices)), [part.values[metric] for part in slices], "o-", label=metric.replace("_", " "))
    names = [f"{part.name.partition('=')[2]}\n{part.count:,}" for part in slices]
    axes.set_xticks(range(len(slices)), names)
    axes.set(xlabel="earlier behaviours, and impressions with so many")
    axes.legend()
    return svg(figure)


def components_plot(timings: Sequence[Timing]) -> str:
    """When each component ran, as SVG: a bar from its start to its end, the first one on top."""
    in_order = sorted(timings, key=lambda timing: timing.start, reverse=True)
    figure = Figure(figsize=(7, 1 + 0.25 * len(timings)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(
        [_escaped(timing.component) for timing in in_order],
        [timing.seconds for timing in in_order],
        left=[timing.start for timing in in_order],
    )
    axes.set(xlabel="seconds")
    return svg(figure)


def svg(figure: Figure) -> str:
    """A figure as SVG, for HTML."""
    FigureCanvasAgg(figure)
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    drawing = text.getvalue()
    # Without the XML declaration, which HTML does not take.
    return drawing[drawing.index("<svg") :]
