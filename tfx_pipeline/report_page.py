"""The page that shows a run: a single HTML file that loads nothing."""

from __future__ import annotations

import io
from collections.abc import Sequence

import jinja2
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tfx_pipeline.config import HISTORY_BUCKET
from tfx_pipeline.evaluation import AUC, COMPARED, GROUPED_AUC
from tfx_pipeline.results import Results, Slice, Tenth
from tfx_pipeline.retrieval.judging import Measures

_MAX_SLICES_SHOWN = 100


def report_page(results: Results) -> str:
    """The HTML: outcome, gates, metrics beside others, calibration, slices, the retriever, data, components.

    Args:
        results: of the run.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfx_pipeline", package_path=""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    histories = [part for part in results.slices if part.name.startswith(f"{HISTORY_BUCKET}=")]
    return environment.get_template("report.html").render(
        results=results,
        compared=COMPARED,
        measure_names=Measures._fields,
        slices=results.slices[:_MAX_SLICES_SHOWN],
        calibration_plot=calibration_plot(results.reliability),
        history_plot=history_plot(histories),
    )


def calibration_plot(tenths: Sequence[Tenth]) -> str:
    """Mean label over mean probability of each tenth, as SVG, with a line where they are equal."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    probabilities = [tenth.mean_probability for tenth in tenths]
    axes.plot(probabilities, [tenth.mean_label for tenth in tenths], "o-", label="tenths of the impressions")
    if tenths:
        ends = [min(probabilities), max(probabilities)]
        axes.plot(ends, ends, color="grey", linestyle=":", label="calibrated")
    axes.set(xlabel="mean probability", ylabel="mean label")
    axes.legend()
    return _svg(figure)


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
    return _svg(figure)


def _svg(figure: Figure) -> str:
    FigureCanvasAgg(figure)
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    drawing = text.getvalue()
    # Without the XML declaration, which HTML does not take.
    return drawing[drawing.index("<svg") :]
