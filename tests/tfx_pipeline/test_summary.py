"""What a run prints and what its page shows."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from tfx_pipeline import report_page as report_page_module
from tfx_pipeline.components.baselines import Measured
from tfx_pipeline.evaluation import COMPARED, MEAN_LABEL, Gate
from tfx_pipeline.progress import Timing
from tfx_pipeline.report_page import report_page
from tfx_pipeline.results import HistoryLengths, Results, Slice, Tenth
from tfx_pipeline.retrieval.judging import Measures, Verdict
from tfx_pipeline.retrieval.results import RetrieverResults
from tfx_pipeline.summary import METRICS, _timing_table, comparison_table, metrics_table, retriever_table


def part(name: str, count: int, mean_label: float, *values: float, tenths: Sequence[Tenth] = ()) -> Slice:
    return Slice(name, count, {MEAN_LABEL: mean_label, **dict(zip(COMPARED, values, strict=True))}, tenths)


SLICES = [
    part(
        "overall",
        1_234_567,
        0.25,
        *[0.7531] * 4,
        0.002,
        tenths=[Tenth(600_000, 0.0125, 0.01), Tenth(634_567, 0.5, 0.48)],
    ),
    part("history_bucket=0-9", 1_000_000, 0.25, 0.7111, 0.6111, 0.5, 1.0, 0.0, tenths=[Tenth(1_000_000, 0.2, 0.25)]),
    part("category=a very long name of a category that nobody would read to its end", 9, 0.5, *[0.5] * 5),
    part("genre=Noir", 3, 1.0, math.nan, math.nan, 0.61, 1.02, 0.0),
    part("genre=<b>None</b>", 2, 0.0, math.nan, math.nan, 0.61, math.nan, 0.0),
]
INGESTION: dict[str, Any] = {
    "rows_read": 2_000_010,
    "rows_kept": 2_000_000,
    "files": 2,
    "users": 9_001,
    "items": 77,
    "left_out_for_short_history": 1_234,
    "sampled_negatives": 0,
    "impressions": {"train": 8, "validation": 4, "eval": 4},
    "positives": {"train": 2, "validation": 1, "eval": 3},
    "split": {"validation_from": 1_000, "eval_from": 2_000},
    "malformed": {"missing <script>alert(1)</script>": 10},
    "dead_letters": "out/dead_letter/1",
    "malformed_by_span": {"2024-03-01": {"rows_read": 80, "malformed": 10}},
    "malformed_by_file": {"1.csv": {"rows_read": 80, "malformed": 10}, "0.csv": {"rows_read": 0, "malformed": 0}},
    "spans_not_listed": 0,
    "files_not_listed": 1_300,
}
BASELINES = {"popularity": Measured(0.5512, 0.5413), "recency": Measured(0.5, math.nan)}


def results_of(**changes: Any) -> Results:
    arguments: dict[str, Any] = {
        "outcome": "Pushed: serving/7",
        "ingestion": INGESTION,
        "history_lengths": {
            "train": HistoryLengths(12.25, 9.0, 64),
            "validation": HistoryLengths(13.5, 10.0, 64),
            "eval": HistoryLengths(14.75, 11.0, 63),
        },
        "slices": SLICES,
        "last": {**SLICES[0].values, "auc": 0.7421},
        "baselines": BASELINES,
        "gates": [
            Gate("auc", 0.7531, "at least 0.6000", True),
            Gate("grouped_auc", 0.5312, "at least 0.5413: the baseline popularity has 0.5413", False),
        ],
        "calibration": {
            "kind": "platt",
            "rows": 1_234,
            "mean_label": 0.25,
            "log_loss": [0.5123, 0.4321],
            "mean_probability": [0.333333, 0.25],
            "calibrator": {"class_name": "PlattCalibrator", "config": {"slope": 0.75, "intercept": -1.5}},
        },
        "timings": [Timing("Trainer", 2.0, 12.34, 2**31, False), Timing("Transform", 0.0, 0.1, 2**30, True)],
        "artifacts": {"Trainer: model": ["out/model/6"]},
    }
    return Results(**{**arguments, **changes})


def printed(table: Any) -> list[str]:
    console = Console(width=80, record=True)
    console.print(table)
    return console.export_text().splitlines()


def cells(lines: list[str], name: str) -> list[str]:
    (line,) = [line for line in lines if name in line]
    return [cell.strip() for cell in line.split("│")[2:-1]]


def test_table_fits_80_columns_with_whole_numbers() -> None:
    lines = printed(metrics_table(SLICES))
    assert max(map(len, lines)) <= 80
    assert cells(lines, "overall") == ["1,234,567", *["0.7531"] * len(METRICS)]
    assert cells(lines, "Noir") == ["3", "-", "-", "0.6100", "1.0200"]
    assert "genre=Noir,oneclass" in re.sub(r"[│\s\d.-]", "", "".join(lines))
    assert "…" not in "".join(lines)
    assert "one class" not in "".join(printed(metrics_table(SLICES[:3])))


def test_model_is_shown_beside_the_last_one_and_the_baselines() -> None:
    lines = printed(comparison_table(results_of()))
    assert max(map(len, lines)) <= 80
    assert cells(lines, "this model") == ["0.7531", "0.7531", "0.7531", "0.7531", "0.0020"]
    assert cells(lines, "last blessed") == ["0.7421", "0.7531", "0.7531", "0.7531", "0.0020"]
    assert cells(lines, "popularity") == ["0.5512", "0.5413", "-", "-", "-"]
    assert cells(lines, "recency") == ["0.5000", "-", "-", "-", "-"]
    assert "last blessed" not in "".join(printed(comparison_table(results_of(last=None))))


def rows_of(page: str, first: str) -> list[list[str]]:
    """Text of the cells of the table rows of a page whose first cell is this."""
    rows = [
        re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    ]
    return [row[1:] for row in rows if row and row[0] == first]


def test_page_shows_the_whole_run() -> None:
    page = report_page(results_of())
    assert '<p class="passed">Pushed: serving/7</p>' in page
    assert rows_of(page, "grouped_auc") == [
        ["0.5312", "at least 0.5413: the baseline popularity has 0.5413", "refused"]
    ]
    assert rows_of(page, "auc") == [["0.7531", "at least 0.6000", "passed"]]
    assert rows_of(page, "last blessed") == [["0.7421", "0.7531", "0.7531", "0.7531", "0.0020"]]
    assert rows_of(page, "popularity") == [["0.5512", "0.5413", "-", "-", "-"]]
    assert rows_of(page, "634,567") == [["0.500000", "0.480000"]]
    assert rows_of(page, "genre=Noir") == [["3", "1.0000", "one class", "-", "0.6100", "1.0200", "0.0000"]]
    assert rows_of(page, "eval") == [["4", "75.00%", "14.8", "11", "63"]]
    assert rows_of(page, "rows kept") == [["2,000,000"]]
    assert rows_of(page, "items") == [["77"]]
    assert rows_of(page, "2024-03-01") == rows_of(page, "1.csv") == [["80", "10", "12.50%"]]
    assert rows_of(page, "0.csv") == [["0", "0", "0.00%"]]
    assert "1,300 more are not listed" in page
    assert rows_of(page, "Trainer") == [["12.3 s", "2.0 GiB"]]
    assert rows_of(page, "Transform") == [["unchanged", "1.0 GiB"]]
    assert rows_of(page, "Trainer: model") == [["out/model/6"]]
    # Both plots, with the bucket and its size on an axis.
    assert page.count("<svg") == page.count("</svg>") == 3
    assert ">0-9<" in page
    assert ">1,000,000<" in page


def test_page_tells_what_was_fitted_to_the_validation_part() -> None:
    page = report_page(results_of())
    assert "1,234 impressions of the validation part, whose mean label is 0.250000:" in page
    assert "PlattCalibrator(slope=0.75, intercept=-1.5)." in page
    assert rows_of(page, "log loss there") == [["0.5123", "0.4321"]]
    assert rows_of(page, "mean probability there") == [["0.333333", "0.250000"]]
    assert "nothing was fitted" not in page
    points = {"class_name": "IsotonicCalibrator", "config": {"logits": [0, 1, 2], "probabilities": [0.1, 0.2, 0.3]}}
    page = report_page(results_of(calibration={**results_of().calibration, "calibrator": points}))  # type: ignore[dict-item]
    assert "IsotonicCalibrator(logits=3 points, probabilities=3 points)." in page
    page = report_page(results_of(calibration=None))
    assert "The probabilities are the sigmoid of the logits: nothing was fitted (--calibrate)." in page
    assert not rows_of(page, "log loss there")


def test_page_escapes_what_the_log_holds_and_loads_nothing() -> None:
    page = report_page(results_of())
    assert rows_of(page, "missing &lt;script&gt;alert(1)&lt;/script&gt;") == [["10"]]
    assert "genre=&lt;b&gt;None&lt;/b&gt;" in page
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!#)', re.sub(r'xlink:href="#', "", page))


def test_page_of_a_first_run_that_was_refused() -> None:
    ingestion = {**INGESTION, "malformed": {}, "malformed_by_file": {"1.csv": {"rows_read": 80, "malformed": 0}}}
    page = report_page(results_of(outcome="The model was not pushed.", last=None, ingestion=ingestion))
    assert '<p class="refused">The model was not pushed.</p>' in page
    assert "No row was malformed." in page
    assert not rows_of(page, "1.csv")
    assert not rows_of(page, "last blessed")


def test_calibration_is_drawn_by_slice_of_each_column(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(report_page_module, "svg", figures.append)
    many = [part(f"_price=${n}", 9 - n, 0.5, *[0.5] * 5, tenths=[Tenth(1, n / 10, 0.5)]) for n in range(9)]
    report_page_module.calibration_plot([*SLICES, *many])
    (figure,) = figures
    assert [axes.get_title() for axes in figure.axes] == [
        "all impressions",
        "history_bucket",
        "category",
        "genre",
        "price",
    ]
    lines = [[(line.get_label(), line.get_xydata().tolist()) for line in axes.lines] for axes in figure.axes]
    everything = [
        ("all 1,234,567", [[0.0125, 0.01], [0.5, 0.48]]),
        ("calibrated", [[0.0125, 0.0125], [0.5, 0.5]]),
    ]
    assert lines[0] == everything
    assert lines[1] == [("0-9", [[0.2, 0.25]]), *everything]
    # The eight largest.
    assert lines[4] == [*((rf"\${n}", [[n / 10, 0.5]]) for n in range(8)), *everything]


def test_components_are_drawn_from_start_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(report_page_module, "svg", figures.append)
    report_page_module.components_plot(results_of().timings)
    (axes,) = figures[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Trainer", "Transform"]
    drawn = [edge for bar in axes.patches for edge in (bar.get_x(), bar.get_width())]
    assert drawn == pytest.approx([2.0, 12.34, 0.0, 0.1])


def test_all_components_took_as_long_as_from_the_first_to_the_last() -> None:
    timings = [Timing("A", 0.0, 5.0, 2**30, False), Timing("B", 1.0, 9.5, 2**30, False), Timing("C", 5.0, 1.0, 1, True)]
    assert cells(printed(_timing_table(timings)), "all") == ["10.5 s", ""]


def test_smaller_slices_are_counted() -> None:
    more = [part(f"item={number}", 1, 0.0, *[0.5] * 5) for number in range(120)]
    page = report_page(results_of(slices=[*SLICES, *more]))
    assert rows_of(page, "item=94") == [["1", "0.0000", "one class", *["0.5000"] * 4]]
    assert not rows_of(page, "item=95")
    assert "25 smaller slices are in summary.json." in page


MEASURES = {
    "this retriever": Measures(0.25, 0.125, 0.5, 0.0625, math.nan),
    "popularity": Measures(0.1, 0.05, 0.2, 0, 0),
}
VERDICT = Verdict(
    20_000, 9_000, 1_000, 30, 40, 5_000, 600, MEASURES, [Gate("recall_10", 0.25, "above popularity's 0.1000", True)]
)
RETRIEVER = RetrieverResults(
    "The retriever was not pushed. RetrieverEvaluator did not bless it: <b>. See the log.",
    VERDICT._replace(gates=[*VERDICT.gates, Gate("excluded_items", 1_234, "0", False)]),
    {
        "positives": {"training": 70_000, "validation": 8_000},
        "positives_of_unknown_items": {"training": 70, "validation": 8},
        "semantic_ids": {"colliding": 0.125, "largest_collision": 9},
    },
)


def test_retriever_has_a_table_and_lines() -> None:
    lines = printed(retriever_table(RETRIEVER))
    assert max(map(len, lines)) <= 80
    assert cells(lines, "this retriever") == ["0.2500", "0.1250", "0.5000", "0.0625", "-"]
    assert cells(lines, "popularity") == ["0.1000", "0.0500", "0.2000", "0.0000", "0.0000"]
    assert RETRIEVER.lines() == [
        "Retriever: 5,000 items, 600 of which training never saw; trained on 70,000 positives, 70 of unknown items "
        "left out",
        "Judged by 9,000 of 20,000 positives of the eval part: 30 of unknown items, 40 of items that training never "
        "saw; 1,000 more are of items in the user's history, which are not to be found",
        "Gate passed: recall_10 is 0.2500 and must be above popularity's 0.1000",
        "Gate refused: excluded_items is 1,234 and must be 0",
        RETRIEVER.outcome,
    ]
    warm = dataclasses.replace(RETRIEVER, training={**RETRIEVER.training, "base_version": 7})
    assert warm.lines()[0].endswith(", 70 of unknown items left out; warm start from version 7")


def test_page_shows_the_retriever_where_there_is_one() -> None:
    page = report_page(results_of(retriever=RETRIEVER))
    assert '<p class="refused">The retriever was not pushed. RetrieverEvaluator did not bless it: &lt;b&gt;.' in page
    assert rows_of(page, "recall_10") == [["0.2500", "above popularity&#39;s 0.1000", "passed"]]
    assert rows_of(page, "excluded_items") == [["1,234", "0", "refused"]]
    assert rows_of(page, "this retriever") == [["0.2500", "0.1250", "0.5000", "0.0625", "-"]]
    assert rows_of(page, "items that can be found") == [["5,000"]]
    assert rows_of(page, "training positives of unknown items") == [["70"]]
    assert "12.5% of the items share their codes, at most 9 the same." in page
    assert "<h2>Retriever</h2>" not in report_page(results_of())
    assert json.loads(json.dumps(RETRIEVER.to_json()))["measures"]["popularity"]["recall_10"] == 0.1
