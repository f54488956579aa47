"""The command that searches, on impressions as Transform leaves them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from keras_eta import Feature, Ranker
from tests.tfx_pipeline.training.test_trainer import make_impressions
from tests.tfx_pipeline.transformed import run_transform
from tfx_pipeline import tune
from tfx_pipeline.config import EVAL, TRAIN, VALIDATION, PipelineConfig
from tfx_pipeline.flags import config_from_flags
from tfx_pipeline.run import parser
from tfx_pipeline.schema import make_schema
from tfx_pipeline.training.batches import Part
from tfx_pipeline.tuning.search import Finished, Outcome, Search
from tfx_pipeline.tuning.space import space
from tfx_pipeline.tuning.trial import Data, run_trial

LAYOUT = [
    *("--layout", "custom", "--schema", "s.pbtxt", "--pattern", "*.csv", "--label_column", "label"),
    *("--behaviour_attribute", "liked", "--user_feature", "user_id:string", "--context_feature", "row:float32"),
    *("--age_boundaries", "60", "3600", "--max_history_length", "6"),
]
FLAGS = [
    *LAYOUT,
    *("--batch_size", "64", "--epochs", "1", "--hidden_units", "4", "--top_k", "2", "--num_bits", "16"),
    *("--short_history_length", "0", "--no-matches", "--retrieval_weight", "0", "--dense_learning_rate", ".02"),
]


def config_of(*flags: str) -> PipelineConfig:
    return config_from_flags(parser().parse_args(["--data", "", *flags]))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of Transform; their eval part can't be read."""
    path = tmp_path_factory.mktemp("transform")
    splits = {TRAIN: make_impressions(300, 0, seed=0), VALIDATION: make_impressions(50, 300, seed=1)}
    config = config_of(*LAYOUT)
    run_transform(config, make_schema(config.layout), splits, path, batch_size=150)
    for name in splits:
        (path / name).rename(path / f"Split-{name}")
    (path / f"Split-{EVAL}").mkdir()
    (path / f"Split-{EVAL}" / "part.gz").write_bytes(b"no records")
    return path


def read(directory: Path, config: PipelineConfig) -> Data:
    return Data.read(str(directory / "graph"), str(directory), config.layout.features)


def test_command_searches_prints_the_best_flags_and_goes_on(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune, "_data", lambda config: read(directory, config))
    flags = [*FLAGS, "--output", str(tmp_path)]
    search = ["--search", "top_k=1,2", "cosine=yes,no", "dense_learning_rate=1e-3..1e-1", "--trials"]
    assert tune.main([*search, "2", *flags]) == 0
    printed = capsys.readouterr().out
    assert "[1/2] top_k 2, cosine yes, dense_learning_rate 0.02\n" in printed
    content = json.loads((tmp_path / "tuning" / "trials.json").read_text())
    first, second = content["trials"]
    aucs = [trial["outcome"]["auc"] for trial in (first, second)]
    assert all(0 < auc < 1 for auc in aucs)
    assert first["values"] == {"top_k": "2", "cosine": "yes", "dense_learning_rate": 0.02}
    assert (first["outcome"]["epochs"], second["outcome"]["epochs"]) == (1, 1)
    best = aucs.index(max(aucs))
    assert content["best"] == best
    assert (content["flags"], content["best_flags"][:2]) == (
        flags,
        ["--top_k", content["trials"][best]["values"]["top_k"]],
    )
    assert f"Trial {best} has the highest validation AUC." in printed
    (command,) = [line for line in printed.splitlines() if line.startswith("python -m tfx_pipeline.run ")]
    assert command.endswith(" ".join(content["best_flags"]))
    assert "--trials" not in command
    # What is printed is a configuration.
    config = config_of(*command.split()[3:])
    assert config.training.epochs == 1
    assert f'"top_k": {content["trials"][best]["values"]["top_k"]}' in config.model.interests[-1]
    assert not list(tmp_path.rglob("ckpt*"))

    monkeypatch.setattr(
        Ranker, "fit", lambda *_, **__: types.SimpleNamespace(history={"loss": [1], "val_auc": [0.999]})
    )
    assert tune.main([*search, "3", *flags]) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "tuning" / "trials.json").read_text())
    assert content["trials"][:2] == [first, second]
    assert content["trials"][2]["outcome"]["auc"] == 0.999
    assert "[1/3]" not in printed
    assert "[2/3]" not in printed
    assert "[3/3]" in printed
    assert "Trial 2 has the highest validation AUC." in printed

    # Another configuration is another search.
    assert tune.main([*search, "1", *flags, "--seed", "7"]) == 0
    content = json.loads((tmp_path / "tuning" / "trials.json").read_text())
    assert [trial["number"] for trial in content["trials"]] == [0]


@pytest.mark.parametrize(("flags", "seconds"), [([], None), (["--minutes", "1.5"], 90.0)])
def test_budget_reaches_the_search_and_no_success_is_said(
    flags: list[str],
    seconds: float | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    budgets = []

    def go_on(self: Search, max_trials: int, max_seconds: float | None, *_: object) -> list[Finished]:
        budgets.append((max_trials, max_seconds))
        return [Finished(0, {"top_k": "4"}, None, 0.0, "ValueError: no")]

    nothing = Part([], 0, 0, 0, None, np.zeros(0))
    monkeypatch.setattr(tune, "_data", lambda _: Data("graph", nothing, nothing))
    monkeypatch.setattr(Search, "go_on", go_on)
    assert tune.main([*FLAGS, "--output", str(tmp_path), "--search", "top_k=4,8", "--trials", "7", *flags]) == 1
    assert budgets == [(7, seconds)]
    printed = capsys.readouterr().out
    assert "No trial succeeded." in printed
    assert "python -m" not in printed


def test_table_has_the_best_trial_first_and_failed_ones_last() -> None:
    dimensions = space(["top_k=4,8", "dense_learning_rate=1e-4..1e-2"], of_eta=True)
    trials = [
        Finished(0, {"top_k": "4", "dense_learning_rate": 0.001}, Outcome(0.71239, 2, 9), 12.6),
        Finished(1, {"top_k": "8", "dense_learning_rate": 0.0012345678}, None, 0.0, "ValueError: no"),
        Finished(2, {"top_k": "8", "dense_learning_rate": 0.005}, Outcome(0.72, 3, 9), 20.0),
    ]
    console = Console(width=100, record=True)
    console.print(tune.table(trials, dimensions))
    rows = [re.findall(r"[\w.-]+", line) for line in console.export_text().splitlines() if "│" in line]
    assert rows == [
        ["2", "0.7200", "3", "20", "8", "0.005"],
        ["0", "0.7124", "2", "13", "4", "0.001"],
        ["1", "failed", "-", "-", "8", "0.00123457"],
    ]


def test_a_trial_is_worth_its_best_epoch(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(*FLAGS, "--epochs", "9", "--patience", "2")
    aucs = iter([0.5, 0.75, 0.7, 0.6, 0.9])
    monkeypatch.setattr(
        Ranker, "fit", lambda *_, **__: types.SimpleNamespace(history={"loss": [1.0], "val_auc": [next(aucs)]})
    )
    outcome = run_trial(config, read(directory, config), str(tmp_path))
    assert (outcome.auc, outcome.epochs) == (0.75, 4)
    losses = types.SimpleNamespace(history={"loss": [math.nan], "val_auc": [0.5]})
    monkeypatch.setattr(Ranker, "fit", lambda *_, **__: losses)
    with pytest.raises(FloatingPointError, match="The loss is not finite in epoch 1"):
        run_trial(config, read(directory, config), str(tmp_path))


def test_impressions_of_another_layout_are_refused(directory: Path, tmp_path: Path) -> None:
    features = config_of(*LAYOUT).layout.features
    others = dataclasses.replace(features, context=(*features.context, Feature("hour")))
    with pytest.raises(ValueError, match=r"have no hour: .* Give the layout's flags as in that run"):
        Data.read(str(directory / "graph"), str(directory), others)
    with pytest.raises(ValueError, match=f"The train part of {tmp_path} holds no impressions"):
        Data.read(str(directory / "graph"), str(tmp_path), features)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trials", "0"], "`trials` must be a positive integer. Received: trials=0"),
        (["--minutes", "0"], "`minutes` must be a positive number. Received: minutes=0.0"),
        (["--minutes", "nan"], "`minutes` must be a positive number. Received: minutes=nan"),
        (["--search", "seed=1,2"], "--search can't vary 'seed'"),
        (["--search", "batch_size=16,0"], "`batch_size` must be a positive integer. Received: batch_size=0"),
        (["--search", "id_dropout=0..2"], "`id_dropout` must be a number from 0 to below 1. Received: id_dropout=2.0"),
        ([], "has no impressions to search with. Run `python -m tfx_pipeline.run` with the same flags first."),
    ],
)
def test_errors_come_before_any_trial(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune.main([*flags, *FLAGS, "--output", str(tmp_path)]) == 1
    assert re.search(f"^error: .*{re.escape(message)}", capsys.readouterr().err, re.MULTILINE)
    assert not [path for path in tmp_path.glob("tuning/*") if path.is_dir()]
    assert not (tmp_path / "metadata.sqlite").exists()


def test_an_interrupted_command_says_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "tune", interrupted)
    assert tune.main(FLAGS) == 130
    assert capsys.readouterr().err == "Interrupted. The same command goes on.\n"
