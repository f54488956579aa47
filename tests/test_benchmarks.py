"""The benchmarks run, on tiny sizes, and report every contestant; `tests/serving/test_load.py` has the load tool."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import retrieval, timing, training

SIZES = ["--dim", "8", "--top_k", "3", "--items", "50", "--rounds", "2"]


def _run(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark", *SIZES, *flags])
    main()


def test_training_reports_every_contestant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    _run(training.main, monkeypatch, "--rows", "4", "--lengths", "20", "--json", str(report))
    steps = json.loads(report.read_text())["steps"]
    assert list(steps) == [f"{kind} L=20" for kind in ("eta", "eta-learned", "inner-product", "full")]
    assert steps["eta L=20"]["over_base"] == 1.0
    assert all(0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"] for row in steps.values())


def test_retrieval_reports_requests_and_searches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report, image = tmp_path / "report.json", tmp_path / "times.png"
    _run(
        retrieval.main,
        monkeypatch,
        "--lengths",
        "20",
        "40",
        "--candidates",
        "5",
        "--json",
        str(report),
        "--plot",
        str(image),
    )
    found = json.loads(report.read_text())
    for length in ("20", "40"):
        assert list(found["request"][length]) == [
            *("ETA, XLA", "ETA", "full attention", "inner product", "ETA, C rows"),
        ]
        assert list(found["search"][length]) == ["counting, XLA", "sorting", "matmul + top_k"]
    assert found["settings"]["candidates"] == 5
    assert image.read_bytes().startswith(b"\x89PNG")


def test_contestants_are_measured_in_turn_after_a_warm_up() -> None:
    calls: list[str] = []
    times = timing.measure({name: functools.partial(calls.append, name) for name in "ab"}, rounds=3, warm_up=2)
    assert "".join(calls) == "aabb" + "ab" * 3
    assert [len(values) for values in times.values()] == [3, 3]


def test_summary_worked_by_hand() -> None:
    report = timing.summary({"a": [2.0, 4.0, 6.0], "b": [1.0, 1.0, 10.0]}, base="a")
    assert report["b"] == {"median_ms": 1.0, "p10_ms": 1.0, "p90_ms": pytest.approx(8.2), "over_base": 0.25}
    assert report["a"]["median_ms"] == np.median([2, 4, 6])
