"""Malformed rows by file and by span: what is refused, what is let pass, and what is reported of very many files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tfx_pipeline.ingestion.files import span_names
from tfx_pipeline.ingestion.malformed import Parts, check_malformed, log_parts
from tfx_pipeline.layouts import Label, Layout, movielens

BAD = "non-numeric user_id"


def parts_of(files: Mapping[str, tuple[int, int]], spans: Mapping[str, str] | None = None) -> Parts:
    """Of (rows read, malformed rows) by file of the folder `logs`."""
    counts = {}
    for file, (rows_read, malformed) in files.items():
        counts[f"rows_read\tlogs/{file}"] = rows_read
        if malformed:
            counts[f"malformed\t{BAD}\tlogs/{file}"] = malformed
    return log_parts(counts, "logs", {f"logs/{file}": (spans or {}).get(file, "") for file in files})


def check(parts: Parts, max_bad_share: float = 0.01, examples: Any = None) -> None:
    check_malformed(parts, examples or {}, "dead/letters", max_bad_share)


def test_bad_day_stops_the_run_however_large_the_log_is() -> None:
    parts = parts_of(
        {"1/a.csv": (60_000, 0), "2/a.csv": (5_000, 0), "2/b.csv": (5_000, 500)},
        {"1/a.csv": "2024-01-01", "2/a.csv": "2024-01-02", "2/b.csv": "2024-01-02"},
    )
    examples = {"2/b.csv": {BAD: ["x,1", "y,1", "z,1"]}, "2/a.csv": {BAD: ["w,1"]}}
    message = (
        "Too many rows are malformed; `max_bad_share` allows 1.00%.\n"
        "  2024-01-02: 500 of 10,000 rows, 5.00%\n"
        "  2/b.csv: 500 of 5,000 rows, 10.00%\n"
        "In 2/b.csv:\n"
        "  500 non-numeric user_id, e.g. 2/b.csv: 'x,1'; 2/b.csv: 'y,1'; 2/b.csv: 'z,1'\n"
        "All of them: dead/letters"
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        check(parts, examples=examples)
    check(parts, max_bad_share=0.1)


def test_span_of_many_small_bad_files_stops_the_run() -> None:
    files = {f"{day}/{number}.csv": (9_000 if day == 1 else 100, day - 1) for day in (1, 2) for number in range(12)}
    parts = parts_of(files, {file: f"span {file[0]}" for file in files})
    with pytest.raises(RuntimeError, match=r"^Too many rows.*\n  span 2: 12 of 1,200 rows, 1.00%\nIn span 2:\n"):
        check(parts, max_bad_share=0.0099)
    check(parts)


@pytest.mark.parametrize(("rows_read", "malformed"), [(3, 1), (12, 9), (1_000, 10)])
def test_few_malformed_rows_of_a_file_stop_no_run(rows_read: int, malformed: int) -> None:
    check(parts_of({"a.csv": (5_000, 0), "b.csv": (rows_read, malformed)}))


def test_ten_malformed_rows_of_a_small_file_stop_it() -> None:
    with pytest.raises(RuntimeError, match=r"\n  b.csv: 10 of 12 rows, 83.33%\n"):
        check(parts_of({"a.csv": (5_000, 0), "b.csv": (12, 10)}))


def test_few_malformed_rows_count_in_the_share_of_the_log() -> None:
    with pytest.raises(RuntimeError, match=r"\n  the log: 40 of 120 rows, 33.33%\nIn the log:\n  40 non-numeric"):
        check(parts_of({f"{number}.csv": (3, 1) for number in range(40)}))
    with pytest.raises(RuntimeError, match=r"allows 0.00%\.\n  the log: 1 of 5,003 rows, 0.02%\n"):
        check(parts_of({"a.csv": (5_000, 0), "b.csv": (3, 1)}), max_bad_share=0.0)


def test_of_very_many_files_the_worst_are_named_and_reported() -> None:
    parts = parts_of({f"{number:04d}.csv": (1_000, number) for number in range(400)})
    with pytest.raises(RuntimeError) as caught:
        check(parts)
    lines = str(caught.value).splitlines()
    assert lines[1:3] == ["  the log: 79,800 of 400,000 rows, 19.95%", "  0399.csv: 399 of 1,000 rows, 39.90%"]
    assert lines[11:13] == ["  and 380 more spans and files", "In 0399.csv:"]
    reported = parts.reported()
    assert list(reported["malformed_by_file"]) == [f"{number:04d}.csv" for number in range(399, 299, -1)]
    assert reported["malformed_by_file"]["0300.csv"] == {"rows_read": 1_000, "malformed": 300}
    assert (reported["files_not_listed"], reported["spans_not_listed"]) == (300, 0)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{YYYY}/{MM}/{DD}.csv", {"2024/02/29.csv": "2024-02-29", "2024/03/01.csv": "2024-03-01"}),
        ("2024/03/{SPAN}.csv", {"2024/03/01.csv": "span 1"}),
        ("2024/*/*.csv", {"2024/02/29.csv": "", "2024/03/01.csv": ""}),
    ],
)
def test_spans_are_named(tmp_path: Path, pattern: str, expected: dict[str, str]) -> None:
    for file in ("2024/02/29.csv", "2024/03/01.csv"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    layout = Layout(movielens().features, pattern=pattern, label=Label("rating", minimum=4))
    found = span_names(str(tmp_path), layout)
    assert found == {str(tmp_path / file): span for file, span in expected.items()}
