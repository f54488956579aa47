"""The data sets' rules as plain loops over rows: what the vectorised code is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]


def rows_of(columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    """The rows of a table."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def clean_log(rows: Sequence[Row]) -> list[Row]:
    """The rows that are usable, once each, sorted by user, then time, ties as they came."""
    kept: list[Row] = []
    for row in rows:
        complete = all(value is not None and value != "" and value == value for value in row.values())
        if complete and row["user_id"] >= 0 and row not in kept:
            kept.append(row)
    return sorted(kept, key=lambda row: (row["user_id"], row["timestamp"]))


def history(log: Sequence[Row], impression: Row) -> list[Row]:
    """The user's behaviours strictly before an impression, most recent first."""
    before: list[Row] = []
    for row in log:
        if row["user_id"] == impression["user_id"] and row["timestamp"] < impression["timestamp"]:
            before.insert(0, row)
    return before


def batch(
    log: Sequence[Row], impressions: Sequence[Row], row_names: Sequence[str], history_names: Sequence[str], length: int
) -> dict[str, np.ndarray]:
    """Model inputs for impressions: `<name>` of the row, `history_<name>` padded to `length`, `history_length`."""
    inputs: dict[str, list[Any]] = {name: [] for name in row_names}
    inputs |= {f"history_{name}": [] for name in history_names}
    inputs["history_length"] = []
    for impression in impressions:
        behaviours = history(log, impression)[:length]
        for name in row_names:
            inputs[name].append(impression[name])
        for name in history_names:
            padding = type(log[0][name])()
            values = [behaviour[name] for behaviour in behaviours]
            inputs[f"history_{name}"].append(values + [padding] * (length - len(values)))
        inputs["history_length"].append(len(behaviours))
    return {name: np.array(values) for name, values in inputs.items()}


def auc(label: np.ndarray, score: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counted half, over all distinct pairs of scores."""
    wins = 0.0
    for value in np.unique(score):
        positives = np.sum((score == value) & (label == 1))
        wins += positives * (np.sum((score < value) & (label == 0)) + np.sum((score == value) & (label == 0)) / 2)
    return float(wins / (np.sum(label == 1) * np.sum(label == 0)))
