"""Results of the benchmark: rows of JSON, and a table with mean and spread."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

Row = TypeVar("Row")

SCORES = ("auc", "grouped_auc", "log_loss", "calibration", "auc_long", "grouped_auc_long", "grouped_auc_new_users")


@dataclasses.dataclass(frozen=True)
class Result:
    """One trained contestant, judged on the test part.

    Args:
        data: name of the data set.
        unit: name of the contestant.
        seed: of its initial weights and of the order of batches.
        task: whether it had a retrieval task.
        cosine: whether its attention went by cosines.
        max_history_length: behaviours that it could read.
        rows: of the training part.
        auc: of the test part, as are the others.
        grouped_auc: within users, weighted by their impressions.
        auc_long: of impressions with a long history alone.
        grouped_auc_long: likewise.
        training_seconds: of all epochs, tracing and validation included.
        epochs: passes over the training part up to the best; 0 for what learns nothing, which lacks what follows.
        validation_auc: by which training stopped.
        log_loss: mean.
        calibration: mean probability by mean label.
        request_ms: median time of 500 candidates over one longest history.
        auc_new_users: of impressions of users whom training never saw; `None` where there are none.
        grouped_auc_new_users: likewise.
    """

    data: str
    unit: str
    seed: int
    task: bool
    cosine: bool
    max_history_length: int
    rows: int
    auc: float
    grouped_auc: float
    auc_long: float
    grouped_auc_long: float
    training_seconds: float
    epochs: int = 0
    validation_auc: float | None = None
    log_loss: float | None = None
    calibration: float | None = None
    request_ms: float | None = None
    auc_new_users: float | None = None
    grouped_auc_new_users: float | None = None

    @property
    def setting(self) -> tuple[object, ...]:
        """What a run is told by: a result of the same need not be computed again."""
        return self.data, self.unit, self.seed, self.task, self.cosine, self.max_history_length, self.rows


def read_results(path: Path, kind: type[Row]) -> list[Row]:
    """The results in a file, of a dataclass; none if there is no file."""
    if not path.exists():
        return []
    try:
        return [kind(**row) for row in json.loads(path.read_text())]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} holds no results of this benchmark: {error}") from error


def write_results(path: Path, results: Sequence[Any]) -> None:
    """Writes results in place of what the file held, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
        json.dump([dataclasses.asdict(result) for result in results], file, indent=1)
    os.replace(file.name, path)


def print_table(results: Sequence[Result], console: Console | None = None) -> None:
    """A row per contestant: the mean over its seeds and, where there are several, their standard deviation."""
    table = Table(title=f"{results[0].data}, test part", caption="mean ± standard deviation over seeds")
    scores = [score for score in SCORES if any(getattr(result, score) is not None for result in results)]
    for name in ("unit", "task", "seeds", "epochs", *scores, "training", "request"):
        table.add_column(name.replace("_", " "), justify="left" if name in ("unit", "task") else "right")
    for unit, task, cosine in dict.fromkeys((r.unit, r.task, r.cosine) for r in results):
        own = [r for r in results if (r.unit, r.task, r.cosine) == (unit, task, cosine)]
        cells = [_spread([getattr(result, score) for result in own]) for score in scores]
        epochs = "-".join(str(n) for n in sorted({min(r.epochs for r in own), max(r.epochs for r in own)}))
        table.add_row(
            unit + (" (cosine)" if cosine else ""),
            "yes" if task else "no",
            str(len(own)),
            epochs,
            *cells,
            f"{np.mean([r.training_seconds for r in own]):.0f} s",
            _spread([result.request_ms for result in own], ".1f", " ms"),
        )
    (console or Console(width=200)).print(table)


def _spread(values: Sequence[float | None], form: str = ".4f", unit: str = "") -> str:
    numbers = [value for value in values if value is not None]
    if not numbers:
        return ""
    spread = f" ± {np.std(numbers, ddof=1):{form}}" if len(numbers) > 1 else ""
    return f"{np.mean(numbers):{form}}{spread}{unit}"
