"""The benchmark of an index that lags behind: what it knows, by which weights it searches, and what is reported."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.freshness import index as module
from benchmarks.freshness.__main__ import main
from benchmarks.freshness.index import INDEX, Point, indexed_until, lag_table, lost, measure, with_index
from benchmarks.freshness.worth import stream
from benchmarks.quality import staleness, training
from benchmarks.quality.protocols import Protocol
from keras_eta.datasets import movielens
from keras_eta.interest import InterestUnit

EVENTS = 12


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MovieLens's official folder: 300 ratings of 10 users, one a second."""
    rng = np.random.default_rng(0)
    lines = [f"{rng.integers(1, 11)}::{rng.integers(1, 9)}::{rng.integers(1, 6)}::{moment}\n" for moment in range(300)]
    (tmp_path / "ratings.dat").write_text("".join(lines))
    (tmp_path / "movies.dat").write_text("".join(f"{n}::Film {n} (199{n})::{'AB'[n % 2]}\n" for n in range(1, 9)))
    (tmp_path / "users.dat").write_text("".join(f"{n}::M::25::1::12345\n" for n in range(1, 11)))
    load = movielens.load
    monkeypatch.setattr(movielens, "load", lambda path: load(path, check_counts=False))
    return tmp_path


def flags_of(folder: Path, **changes: Any) -> argparse.Namespace:
    settings = {"data": str(folder), "first_events": 60, "events": EVENTS, "rounds": 6, "history": 16}
    return argparse.Namespace(**{**settings, **changes})


def test_an_index_knows_what_was_before_it_was_built(folder: Path) -> None:
    data = with_index(stream(flags_of(folder))[0])
    part = data.test[:40]
    moment = int(part.timestamps[25])
    late = indexed_until(part, moment)
    users, times = data.train.log.columns["user_id"], data.train.log.timestamps
    for row, (user, time) in enumerate(zip(part.columns["user_id"], part.timestamps, strict=True)):
        before = int(np.sum((users == user) & (times < min(time, moment))))
        assert late.histories[INDEX].end[row] - late.histories[INDEX].start[row] == before
    assert (late.history_counts == part.history_counts).all()
    assert (late.history_counts > late.histories[INDEX].end - late.histories[INDEX].start).sum() > 3


def test_each_lag_searches_by_its_own_weights_and_behaviours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = with_index(stream(flags_of(folder))[0])
    seen = []
    readers = module.units()
    made: list[InterestUnit] = []

    def make(data: Protocol) -> InterestUnit:
        made.append(readers["sim-soft"](data))
        return made[0]

    monkeypatch.setattr(module, "units", lambda: {"sim-soft": make})

    def predict(model: Any, data: Any, part: Any) -> np.ndarray:
        state = staleness.search_state(made[0])
        known = part.histories[INDEX].end - part.histories[INDEX].start
        seen.append((float(sum(np.abs(variable.numpy()).sum() for variable in state)), known, part.history_counts))
        return np.arange(len(part), dtype="float32")

    monkeypatch.setattr(training, "predict", predict)
    points = measure(data, "sim-soft", EVENTS, rounds=4, seed=0, lags=(0, 1, 2))
    assert [(point.round, point.lag) for point in points] == [(2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)]
    sums = [state for state, _, _ in seen]
    # Round 3 searches one round late by what round 2 had as the weights of the moment.
    assert (sums[4], sums[5]) == (sums[0], sums[1])
    assert len(set(sums)) == 4
    for number, (_, known, counts) in enumerate(seen):
        missing = counts - known
        assert (missing >= 0).all()
        assert missing.sum() == 0 if number in (0, 3) else missing.sum() > 0
    assert seen[2][1].sum() < seen[1][1].sum()


def points_of(unit: str, lag: int, *values: float) -> list[Point]:
    return [Point(unit, number, lag, value, value) for number, value in enumerate(values)]


def test_what_a_lag_costs_is_told_by_round() -> None:
    points = [
        *points_of("eta", 0, 0.8, 0.6),
        *points_of("sim-soft", 0, 0.7, 0.6, 0.5),
        *points_of("sim-soft", 5, 0.6, float("nan"), 0.5),
    ]
    assert lost(points, "sim-soft", 5, "auc") == pytest.approx([0.1, 0.0])
    table = lag_table(points)
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    assert cells == [
        ("eta", "none", "0.7000", "-", "0.7000", "-"),
        ("sim-soft", "now", "0.6000", "-", "0.6000", "-"),
        ("sim-soft", "5 rounds ago", "0.5500", "0.0500 ± 0.0500", "0.5500", "0.0500 ± 0.0500"),
    ]


def test_command_judges_all_units_and_reports(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report, image = tmp_path / "index.json", tmp_path / "index.png"
    flags = ["--first_events", "30", "--events", "40", "--history", "16", "--data", str(folder)]
    assert main(["index", *flags, "--rounds", "20"]) == 1
    assert "`--rounds` must be above 20, the age of the oldest index. Received: 5" in capsys.readouterr().err
    monkeypatch.setattr(module, "LAGS", (0, 1))
    monkeypatch.setattr(module.measure, "__defaults__", ((0, 1),))
    assert main(["index", *flags, "--rounds", "3", "--json", str(report), "--plot", str(image)]) == 0
    points = json.loads(report.read_text())["points"]
    judged = [(point["unit"], point["round"], point["lag"]) for point in points]
    rounds = [(unit, number, lag) for unit in ("sim-soft", "sim-hard") for number in (1, 2) for lag in (0, 1)]
    assert judged == [("eta", 1, 0), ("eta", 2, 0), *rounds]
    assert "impressions of the next round" in capsys.readouterr().out
    assert image.read_bytes().startswith(b"\x89PNG")
