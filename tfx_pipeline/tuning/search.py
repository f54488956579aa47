"""The search: a seeded random one, judged by the validation AUC, which goes on where it was interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_tuner import HyperParameters, Objective
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.oracles import RandomSearchOracle

from tfx_pipeline.training.backups import MONITORED
from tfx_pipeline.tuning.space import Dimension, Value

_SECONDS, _EPOCHS, _PARAMETERS = "seconds", "epochs", "parameters"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What training with some values came to.

    Args:
        auc: the best validation AUC of its epochs.
        epochs: how many there were.
        parameters: of the model.
    """

    auc: float
    epochs: int
    parameters: int


@dataclasses.dataclass(frozen=True)
class Finished:
    """A trial that is over.

    Args:
        number: from 0; trial 0 has the values of the flags.
        values: by name of the dimension.
        outcome: `None` if it failed.
        seconds: it took.
        error: why it failed; empty if it did not.
    """

    number: int
    values: Mapping[str, Value]
    outcome: Outcome | None
    seconds: float
    error: str = ""


class Search:
    """Trials of random values, each by a function; the first has the values that were given.

    Values are drawn by KerasTuner's `RandomSearchOracle`, never the same twice. A trial that the end of the process
    interrupted runs again first, in the same directory, and no trial that is over runs again.

    Args:
        dimensions: what is searched.
        given: the values of the first trial.
        run: trains with some values in a directory that is the trial's own, which it may find as an interrupted trial
            left it.
        directory: of the search, and of no other.
        seed: of the draws.
        clock: seconds.
    """

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        given: Mapping[str, Value],
        run: Callable[[Mapping[str, Value], str], Outcome],
        directory: str,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dimensions = dimensions
        self._given = dict(given)
        self._run = run
        self._directory = directory
        self._seed = seed
        self._clock = clock

    def go_on(
        self,
        max_trials: int,
        max_seconds: float | None = None,
        began: Callable[[int, Mapping[str, Value]], None] = lambda *_: None,
        ended: Callable[[list[Finished]], None] = lambda _: None,
    ) -> list[Finished]:
        """Runs trials until a budget is used up or there are no further values.

        Args:
            max_trials: of the whole search, those of earlier calls included.
            max_seconds: of this call: no trial begins that would not be over by then if it took as long as the longest
                so far. `None`: as long as it takes.
            began: called with the number and the values of each trial that begins.
            ended: called after each trial with all that are over, it as the last.

        Returns:
            All trials of the search that are over, in order.

        Raises:
            RuntimeError: if three trials in a row failed.
        """
        start = self._clock()
        oracle = _Oracle(
            self._given,
            lambda longest: max_seconds is None or self._clock() - start + longest <= max_seconds,
            objective=Objective(MONITORED, "max"),
            max_trials=max_trials,
            # It takes 0 for none.
            seed=1 + self._seed,
            hyperparameters=_hyperparameters(self._dimensions),
        )
        oracle.verbose = 0
        # It says on stdout that it found an earlier search.
        with contextlib.redirect_stdout(io.StringIO()):
            tuner = _Tuner(oracle, self._run, self._clock, began, ended, self._directory)
        tuner.search()
        return _all_finished(oracle)


def best(trials: Sequence[Finished]) -> Finished | None:
    """The first of the trials with the highest validation AUC; `None` if all failed."""
    succeeded = [trial for trial in trials if trial.outcome is not None]
    return max(succeeded, key=lambda trial: trial.outcome.auc, default=None)  # type: ignore[union-attr]


class _Oracle(RandomSearchOracle):
    """Begins with the given values, and begins no trial that there is no time for."""

    def __init__(self, given: dict[str, Value], may_begin: Callable[[float], bool], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._given, self._may_begin = given, may_begin

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        seconds = [_seconds(trial) for trial in self.trials.values() if _is_over(trial)]
        if not self._may_begin(max(seconds, default=0.0)):
            return {"status": TrialStatus.STOPPED, "values": None}
        if not self.trials:
            return {"status": TrialStatus.RUNNING, "values": self._given}
        populated: dict[str, Any] = super().populate_space(trial_id)
        return populated


class _Tuner(BaseTuner):
    """Runs a function in place of a Keras model's `fit`, which would have to be one of Keras 3."""

    def __init__(self, oracle: _Oracle, run: Any, clock: Any, began: Any, ended: Any, directory: str) -> None:
        self._run, self._clock, self._began, self._ended = run, clock, began, ended
        parent, name = os.path.split(directory)
        super().__init__(oracle, directory=parent, project_name=name)

    def run_trial(self, trial: Trial) -> dict[str, float]:
        start = self._clock()
        self._began(int(trial.trial_id), trial.hyperparameters.values)
        outcome = self._run(trial.hyperparameters.values, os.path.join(self.project_dir, f"run_{trial.trial_id}"))
        if math.isnan(outcome.auc):
            raise ValueError("The validation AUC is no number")
        return {
            MONITORED: outcome.auc,
            _EPOCHS: outcome.epochs,
            _PARAMETERS: outcome.parameters,
            _SECONDS: self._clock() - start,
        }

    def on_trial_end(self, trial: Trial) -> None:
        super().on_trial_end(trial)
        self._ended(_all_finished(self.oracle))


def _hyperparameters(dimensions: Sequence[Dimension]) -> HyperParameters:
    space = HyperParameters()
    for dimension in dimensions:
        if dimension.choices:
            space.Choice(dimension.name, list(dimension.choices))
        elif isinstance(dimension.default, int):
            space.Int(dimension.name, *dimension.limits)
        else:
            space.Float(dimension.name, *dimension.limits, sampling="log" if dimension.logarithmic else "linear")
    return space


def _is_over(trial: Trial) -> bool:
    return trial.status in (TrialStatus.COMPLETED, TrialStatus.FAILED)


def _all_finished(oracle: RandomSearchOracle) -> list[Finished]:
    return [_finished(oracle.trials[key]) for key in sorted(oracle.trials, key=int) if _is_over(oracle.trials[key])]


def _seconds(trial: Trial) -> float:
    """How long a trial took; of a failed one nothing is known."""
    return float(trial.metrics.get_best_value(_SECONDS)) if trial.status == TrialStatus.COMPLETED else 0.0


def _finished(trial: Trial) -> Finished:
    outcome, error = None, ""
    if trial.status == TrialStatus.COMPLETED:
        epochs, parameters = (int(trial.metrics.get_best_value(name)) for name in (_EPOCHS, _PARAMETERS))
        outcome = Outcome(float(trial.score), epochs, parameters)
    else:
        # The last line of a traceback is the error.
        error = trial.message.strip().splitlines()[-1]
    return Finished(int(trial.trial_id), dict(trial.hyperparameters.values), outcome, _seconds(trial), error)
