"""The benchmark of quality: its command, its results and that it goes on where it stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import __main__ as command
from benchmarks.quality.protocols import LOADERS, Protocol, load_taobao
from benchmarks.quality.results import Result, print_table, read_results, write_results
from benchmarks.quality.units import UNITS, make_ranker
from keras_eta import Feature, FeatureLookup, Features
from keras_eta.datasets import Impressions, Interactions
from keras_eta.datasets.impressions import temporal_split


def _protocol(path: str | None, max_history_length: int, max_rows: int | None) -> Protocol:
    """Users who choose items of one category, early and late."""
    rng = np.random.default_rng(0)
    rows = 400
    user = rng.integers(0, 12, rows)
    item = (user % 4) * 5 + rng.integers(0, 5, rows)
    log = Interactions.from_columns(
        {
            "user_id": user,
            "item_id": item,
            "category": [f"c{number // 5}" for number in item],
            "timestamp": np.sort(rng.integers(0, 10_000, rows)),
        }
    )
    impressions = Impressions.from_interactions(log, lambda log: log["item_id"] % 2, min_history=1)
    features = Features(
        Feature("item_id"), item_attributes=(Feature("category", "string"),), max_history_length=max_history_length
    )
    lookup = FeatureLookup(features)
    lookup.adapt({"item_id": log["item_id"], "category": log["category"]})
    train, validation, test = temporal_split(impressions)
    return Protocol("tiny", train, validation, test, lookup, category="category", long_history=20)


def _result(**changes: object) -> Result:
    values: dict[str, object] = dict.fromkeys((field for field in Result.__dataclass_fields__), 0.5)
    values |= {"data": "tiny", "unit": "eta", "seed": 0, "task": True, "cosine": True, "epochs": 2}
    return Result(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.slow
def test_command_trains_judges_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(LOADERS, "movielens", (_protocol, 24))
    file = tmp_path / "results.json"
    arguments = ["quality", "movielens", "--units", "recent", "eta-counts", "--seeds", "0", "--epochs", "2"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--json", str(file)])
    command.main()
    rows = json.loads(file.read_text())
    assert [(row["unit"], row["seed"], row["max_history_length"]) for row in rows] == [
        ("recent", 0, 24),
        ("eta-counts", 0, 24),
    ]
    for row in rows:
        assert row["rows"] > 300
        assert row["epochs"] in (1, 2)
        assert 0.3 < row["auc"] <= 1
        assert row["log_loss"] > 0
        assert row["training_seconds"] > 0
        assert row["request_ms"] > 0
    # Both are known: nothing is trained again.
    monkeypatch.setattr(command, "run", None)
    command.main()
    assert json.loads(file.read_text()) == rows
    assert "eta-counts (cosine)" in capsys.readouterr().out


def test_every_contestant_can_be_made() -> None:
    data = _protocol(None, 24, None)
    for name in UNITS:
        ranker = make_ranker(name, data, task=True, cosine=False)
        assert ranker.interests[0].name == "recent_interest"
        assert ranker.retrieval_task is not None


def test_results_survive_a_file(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "results.json"
    assert read_results(file) == []
    results = [_result(), _result(seed=1)]
    write_results(file, results)
    assert read_results(file) == results
    assert [path.name for path in file.parent.iterdir()] == ["results.json"]
    file.write_text("[{}]")
    with pytest.raises(ValueError, match="holds no results of this benchmark"):
        read_results(file)


def test_table_has_mean_and_spread(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([_result(auc=0.7), _result(seed=1, auc=0.8), _result(unit="full", auc=0.6)])
    out = capsys.readouterr().out
    # The standard deviation of .7 and .8, of one degree of freedom.
    assert "0.7500 ± 0.0707" in out
    assert "0.6000" in out


def test_taobao_needs_a_path() -> None:
    with pytest.raises(ValueError, match="taobao needs --data"):
        load_taobao(None, 10, None)
