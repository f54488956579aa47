"""The data sets' rules as plain loops over rows: what the vectorised code is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.cluster import KMeans

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


def quantile_groups(values: Sequence[float], num_groups: int) -> list[int]:
    """The group of each value: how many of the `num_groups - 1` inner quantiles lie below it."""
    ordered = sorted(values)
    quantiles = [ordered[math.ceil(j * len(values) / num_groups) - 1] for j in range(1, num_groups)]
    return [sum(quantile < value for quantile in quantiles) for value in values]


def hierarchical_clusters(
    vectors: Sequence[Sequence[float]], members: Sequence[int], max_size: int, seed: int
) -> list[list[int]]:
    """Recursive k-means of `members`, positions in `vectors`, until no cluster has more than `max_size`."""
    if len(members) <= max_size:
        return [list(members)]
    points = sorted({tuple(vectors[i]) for i in members})
    parts: list[list[int]] = []
    if len(points) > 1:
        counts = [sum(tuple(vectors[i]) == point for i in members) for point in points]
        num_clusters = min(max(int(len(members) ** 0.3), 2), len(points))
        kmeans = KMeans(num_clusters, n_init=1, max_iter=20, random_state=seed)
        labels = dict(zip(points, kmeans.fit_predict(np.array(points, float), sample_weight=counts), strict=True))
        parts = [[i for i in members if labels[tuple(vectors[i])] == label] for label in set(labels.values())]
    if len(parts) < 2:
        parts = [list(part) for part in np.array_split(members, math.ceil(len(members) / max_size))]
    return [cluster for part in parts for cluster in hierarchical_clusters(vectors, part, max_size, seed)]


def clusters(
    log: Sequence[Row],
    vectors: Mapping[Any, Sequence[float]],
    snapshot: int,
    *,
    group_by: str,
    num_groups: int,
    max_size: int,
    means: Sequence[str],
) -> list[Row]:
    """The clusters of one user's behaviours strictly before a snapshot, by time."""
    past = [row for row in log if row["timestamp"] < snapshot]
    past.sort(key=lambda row: (row["timestamp"], row["item_id"], *(row[name] for name in sorted(row))))
    groups = quantile_groups([row[group_by] for row in past], num_groups)
    points = [tuple(vectors.get(row["item_id"], (0.0, 0.0))) for row in past]
    # Unknown items stay among themselves.
    keys = [(group, row["item_id"] in vectors) for group, row in zip(groups, past, strict=True)]
    result = []
    for key in set(keys):
        for members in hierarchical_clusters(points, [i for i in range(len(past)) if keys[i] == key], max_size, 0):
            size = len(members)
            total = [sum(points[i][d] for i in members) for d in range(2)]
            distances = {i: sum((size * points[i][d] - total[d]) ** 2 for d in range(2)) for i in members}
            nearest = max(i for i in members if distances[i] == min(distances.values()))
            row = dict(past[nearest])
            row |= {name: np.float32(sum(past[i][name] for i in members) / size) for name in means}
            row["timestamp"] = sum(past[i]["timestamp"] for i in members) // size
            result.append((row["timestamp"], max(members), {**row, "snapshot": snapshot, "size": size}))
    return [row for _, _, row in sorted(result, key=lambda entry: entry[:2])]


def candidate_weights(
    log: Sequence[Row],
    positive: Row,
    same_attributes: Sequence[str],
    same_context: Sequence[str],
    by: str,
    candidates: str,
    exclude: str,
) -> tuple[dict[Any, int], int]:
    """The weight of each candidate for a negative of `positive`, and that of the positive's own item.

    A row stands for its item with the attributes of the item's earliest row.
    """
    weights: dict[Any, int] = {}
    for row in log:
        earliest = min((other for other in log if other["item_id"] == row["item_id"]), key=lambda r: r["timestamp"])
        fits = all(earliest[name] == positive[name] for name in same_attributes)
        fits = fits and all(row[name] == positive[name] for name in same_context)
        if fits and (candidates == "all" or row["timestamp"] < positive["timestamp"]):
            weights[row["item_id"]] = weights.get(row["item_id"], 0) + 1 if by == "popularity" else 1
    own = weights.get(positive["item_id"], 0)
    for row in log:
        if row["user_id"] == positive["user_id"] and (exclude == "user" or row["timestamp"] == positive["timestamp"]):
            weights.pop(row["item_id"], None)
    return weights, own
