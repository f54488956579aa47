"""The page of the loop: a single HTML file that loads nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence

from matplotlib.figure import Figure

from tfx_pipeline.continuous.judging import Judged
from tfx_pipeline.continuous.ledger import HISTORY, PUSHED, QUIET, REFUSED, Ledger, Round
from tfx_pipeline.continuous.settings import Loop
from tfx_pipeline.report_page import svg, template

# Rounds that are drawn, and those that are listed with their files.
_DRAWN, _LISTED = 500, 50
_MEASURES = ("auc", "grouped_auc", "log_loss", "calibration", "label_rate")


def write_report(loop: Loop, ledger: Ledger) -> None:
    """Writes the page, whole or not at all.

    Args:
        loop: says where.
        ledger: says what.
    """
    loop.report.parent.mkdir(parents=True, exist_ok=True)
    temporary = loop.report.with_name(".index.html")
    temporary.write_text(page(ledger.rounds(_DRAWN), ledger), encoding="utf-8")
    os.replace(temporary, loop.report)


def page(rounds: Sequence[Round], ledger: Ledger) -> str:
    """The HTML: the latest outcome, metrics by round, rounds with their reasons, files that were left out.

    Args:
        rounds: the oldest first.
        ledger: for the files.
    """
    return template("tfx_pipeline.continuous").render(
        rounds=[(one, judged_of(one), outcome(one)) for one in reversed(rounds[-_LISTED:])],
        plot=metrics_plot(rounds),
        left_out=ledger.refused_files(_LISTED),
    )


def judged_of(one: Round) -> Judged | None:
    """What the served version was worth on the new impressions of a round."""
    found = one.facts.get("judged")
    return None if found is None else Judged.from_json(found)


def outcome(one: Round) -> str:
    """What a round pushed, or why it pushed nothing."""
    if one.status == PUSHED:
        challenged = one.facts["trained_from"] == one.facts["challenger_path"] != ""
        return f"Pushed: {one.facts['version']}" + (", from the challenger" if challenged else "")
    if one.status == REFUSED:
        return "Not pushed. " + " ".join(one.facts["reasons"])
    return {QUIET: "No impressions", HISTORY: "History alone"}.get(one.status, "Not finished")


def line(one: Round) -> str:
    """A round in one line."""
    facts, judged = one.facts, judged_of(one)
    parts = [f"{facts['impressions']:,} impressions"] if "impressions" in facts else []
    if judged is not None:
        parts.append(f"AUC before training on them {judged.auc:.4f}, within users {judged.grouped_auc:.4f}")
    if "seconds" in facts:
        parts.append(f"{facts['seconds']['all']:.1f} s")
    return f"Round {one.number}: {'; '.join([*parts, outcome(one)])}"


def metrics_plot(rounds: Sequence[Round]) -> str:
    """Metrics of the served version on the events of each round, before it was trained on them, as SVG."""
    judged = [(one, found) for one in rounds if (found := judged_of(one)) is not None]
    figure = Figure(figsize=(9, 2.2 * len(_MEASURES)), layout="constrained")
    for axes, measure in zip(figure.subplots(len(_MEASURES), 1, sharex=True), _MEASURES, strict=True):
        axes.plot([one.number for one, _ in judged], [getattr(found, measure) for _, found in judged], "-", linewidth=1)
        for status, color in ((PUSHED, "tab:green"), (REFUSED, "tab:red")):
            chosen = [(one.number, getattr(found, measure)) for one, found in judged if one.status == status]
            axes.plot([x for x, _ in chosen], [y for _, y in chosen], "o", color=color, markersize=3, label=status)
        axes.set_ylabel(measure.replace("_", " "))
    figure.axes[0].legend(fontsize="small")
    figure.axes[-1].set_xlabel("round")
    return svg(figure)
