"""The search over trials that train nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tfx_pipeline.tuning.search import Finished, Outcome, Search, best
from tfx_pipeline.tuning.space import space

DIMENSIONS = space(["top_k=1,2,3,4", "batch_size=10..1000", "dense_learning_rate=1e-4..1e-2"], of_eta=True)
GIVEN: dict[str, Any] = {"top_k": "48", "batch_size": 512, "dense_learning_rate": 0.001}

Run = Callable[[Mapping[str, Any], str], Outcome]


class Trials:
    """Gives AUCs in order, and keeps the calls."""

    def __init__(self, *aucs: float | BaseException, seconds: float = 0.0) -> None:
        self.aucs, self.seconds = list(aucs), seconds
        self.calls: list[tuple[dict[str, Any], str]] = []
        self.now = 1_000.0

    def run(self, values: Mapping[str, Any], directory: str) -> Outcome:
        self.calls.append((dict(values), os.path.basename(directory)))
        self.now += self.seconds
        auc = self.aucs[len(self.calls) - 1]
        if isinstance(auc, BaseException):
            raise auc
        return Outcome(auc, epochs=2, parameters=30)

    def search(self, directory: Path, seed: int = 0) -> Search:
        return Search(DIMENSIONS, GIVEN, self.run, str(directory / "search"), seed, clock=lambda: self.now)


def test_best_is_the_trial_with_the_highest_auc_and_the_first_has_the_given_values(tmp_path: Path) -> None:
    trials = Trials(0.6, 0.5, 0.8, 0.7, seconds=3.0)
    told: list[Any] = []
    finished = trials.search(tmp_path).go_on(
        4,
        began=lambda number, values: told.append((number, dict(values))),
        ended=lambda all_over: told.append(all_over),
    )
    assert [trial.outcome for trial in finished] == [Outcome(auc, 2, 30) for auc in (0.6, 0.5, 0.8, 0.7)]
    assert [(trial.number, trial.seconds, trial.error) for trial in finished] == [(n, 3.0, "") for n in range(4)]
    winner = best(finished)
    assert winner is finished[2]
    assert trials.calls == [(dict(trial.values), f"run_{trial.number}") for trial in finished]
    assert finished[0].values == GIVEN
    assert told[0::2] == [(trial.number, trial.values) for trial in finished]
    assert told[1::2] == [finished[: n + 1] for n in range(4)]
    for values, _ in trials.calls[1:]:
        assert values["top_k"] in ("1", "2", "3", "4")
        assert type(values["batch_size"]) is int
        assert 10 <= values["batch_size"] <= 1000
        assert 1e-4 <= values["dense_learning_rate"] <= 1e-2


def test_of_equal_trials_the_first_is_best_and_failed_ones_never_are() -> None:
    trials = [
        Finished(0, {}, None, 0.0, "no"),
        Finished(1, {}, Outcome(0.7, 1, 1), 1.0),
        Finished(2, {}, Outcome(0.7, 1, 1), 1.0),
    ]
    assert best(trials) is trials[1]
    assert best(trials[:1]) is None


def test_seed_decides_the_values(tmp_path: Path) -> None:
    def values(name: str, seed: int) -> list[Mapping[str, Any]]:
        return [x.values for x in Trials(0.5, 0.5, 0.5).search(tmp_path / name, seed).go_on(3)]

    first = values("a", 5)
    assert values("b", 5) == first
    assert values("c", 6)[1:] != first[1:]


def test_a_search_goes_on_without_repeating_finished_trials(tmp_path: Path) -> None:
    whole = Trials(*[0.5] * 5).search(tmp_path / "whole").go_on(5)
    first, second = Trials(0.5, 0.5), Trials(0.5, 0.5, 0.5)
    first.search(tmp_path).go_on(2)
    finished = second.search(tmp_path).go_on(5)
    assert [directory for _, directory in second.calls] == ["run_2", "run_3", "run_4"]
    assert [values for values, _ in (*first.calls, *second.calls)] == [trial.values for trial in whole]
    assert finished == whole
    assert Trials().search(tmp_path).go_on(5) == whole


@pytest.mark.parametrize("killed_in", [0, 2])
def test_an_interrupted_trial_runs_again_first_with_its_values_in_its_directory(tmp_path: Path, killed_in: int) -> None:
    whole = Trials(*[0.5] * 4).search(tmp_path / "whole").go_on(4)
    killed = Trials(*[0.5] * killed_in, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        killed.search(tmp_path).go_on(4)
    resumed = Trials(*[0.5] * (4 - killed_in))
    assert resumed.search(tmp_path).go_on(4) == whole
    assert resumed.calls[0] == killed.calls[-1]
    assert [directory for _, directory in resumed.calls] == [f"run_{n}" for n in range(killed_in, 4)]


def test_no_trial_begins_that_would_exceed_the_time(tmp_path: Path) -> None:
    trials = Trials(*[0.5] * 9, seconds=30.0)
    # After two, a third would end at 90.
    assert len(trials.search(tmp_path).go_on(9, max_seconds=89.0)) == 2
    assert trials.now == 1_060.0
    # A budget is a call's own, and knows how long trials took before.
    assert len(trials.search(tmp_path).go_on(9, max_seconds=29.0)) == 2
    assert len(trials.search(tmp_path).go_on(9, max_seconds=30.0)) == 3
    assert len(trials.search(tmp_path).go_on(4, max_seconds=900.0)) == 4


def test_a_failed_trial_is_told_of_and_others_go_on(tmp_path: Path) -> None:
    finished = Trials(0.5, FloatingPointError("The loss is not finite"), 0.6).search(tmp_path).go_on(3)
    assert [trial.outcome and trial.outcome.auc for trial in finished] == [0.5, None, 0.6]
    assert finished[1].error == "FloatingPointError: The loss is not finite"
    (of_nan,) = Trials(float("nan")).search(tmp_path / "nan").go_on(1)
    assert (of_nan.outcome, of_nan.error) == (None, "ValueError: The validation AUC is no number")


def test_three_failures_in_a_row_end_the_search(tmp_path: Path) -> None:
    trials = Trials(*[ValueError("`top_k` is wrong")] * 5)
    with pytest.raises(RuntimeError, match=r"(?s)consecutive failures exceeded the limit of 3.*`top_k` is wrong"):
        trials.search(tmp_path).go_on(5)
    assert len(trials.calls) == 3


def test_a_search_ends_when_there_are_no_further_values(tmp_path: Path) -> None:
    dimensions = space(["top_k=1,2,3"], of_eta=True)
    trials = Trials(*[0.5] * 3)
    finished = Search(dimensions, {"top_k": "2"}, trials.run, str(tmp_path / "search")).go_on(50)
    assert sorted(trial.values["top_k"] for trial in finished) == ["1", "2", "3"]
