"""Answers of the command line as tables and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from serving.client.answers import Attention, Explanation, Metadata, Ranking, VersionStatus
from serving.client.requests import shape_text


def _requests(answer: Ranking, request: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The answer and the columns of each request, whether one was sent or several."""
    if answer.probability.ndim == 1:
        yield answer, request
        return
    for row in range(len(answer.probability)):
        columns: dict[str, Any] = {
            role: {name: values[row] for name, values in request[role].items()}
            for role in ("candidates", "history")
            if role in request
        }
        yield _row(answer, row), columns


def _row(answer: Any, row: int) -> Any:
    """One request of an answer to several."""
    fields = {}
    for field in dataclasses.fields(answer):
        value = getattr(answer, field.name)
        if isinstance(value, np.ndarray):
            fields[field.name] = value[row]
        elif isinstance(value, Mapping):
            fields[field.name] = {
                name: part[row] if isinstance(part, np.ndarray) else _row(part, row) for name, part in value.items()
            }
    return dataclasses.replace(answer, **fields)


def _ranked(answer: Any, request: dict[str, Any], top: int | None) -> list[dict[str, Any]]:
    """The candidates, best first, each with its columns, its probability and the behaviours retrieved for it."""
    ranked = []
    for candidate in answer.order[:top]:
        entry = {name: values[candidate] for name, values in request["candidates"].items()}
        entry["probability"] = float(answer.probability[candidate])
        if isinstance(answer, Explanation):
            entry |= {f"{name}_count": counts[candidate].item() for name, counts in answer.counts.items()}
            entry["retrieved"] = _retrieved(answer, candidate, request["history"])
            if answer.others:
                entry["others"] = {
                    unit: _retrieved(attention, candidate, request["history"])
                    for unit, attention in answer.others.items()
                }
        ranked.append(entry)
    return ranked


def _retrieved(attention: Attention, candidate: int, history: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The behaviours that a unit attends to for one candidate, each with its columns, its score and its weight."""
    retrieved = []
    for place, position in enumerate(attention.positions[candidate]):
        if position >= 0:
            behaviour = {"position": int(position), **{name: values[position] for name, values in history.items()}}
            if attention.scores is not None:
                behaviour[str(attention.score_label)] = attention.scores[candidate, place].item()
            retrieved.append({**behaviour, "weight": float(attention.weights[candidate, place])})
    return retrieved


def print_answer(answer: Ranking, request: dict[str, Any], top: int | None, as_json: bool) -> None:
    """Prints the candidates of each request, best first, with what their scores rest on, as tables or as JSON."""
    rankings = [_ranked(one, columns, top) for one, columns in _requests(answer, request)]
    if as_json:
        print(json.dumps({"model_version": answer.model_version, "rankings": rankings}))
        return
    for number, ranking in enumerate(rankings, start=1):
        title = f"version {answer.model_version}" + (f", request {number}" if len(rankings) > 1 else "")
        explained = [
            (f"{place}. rests on" + (f", by {unit}" if unit else ""), retrieved)
            for place, entry in enumerate(ranking, start=1)
            for unit, retrieved in [("", entry.pop("retrieved", None)), *entry.pop("others", {}).items()]
            if retrieved is not None
        ]
        _print_table(title, ranking)
        for heading, retrieved in explained:
            _print_table(heading, retrieved)


def print_status(statuses: list[VersionStatus], as_json: bool) -> None:
    """Prints the state of every version."""
    rows = [dataclasses.asdict(status) for status in statuses]
    if as_json:
        print(json.dumps(rows))
    else:
        _print_table("versions", rows)


def print_metadata(metadata: Metadata, as_json: bool) -> None:
    """Prints what the signatures take and give."""
    if as_json:
        print(json.dumps(dataclasses.asdict(metadata)))
        return
    for name, signature in metadata.signatures.items():
        rows = [
            {"": side, "name": tensor, "dtype": spec.dtype, "shape": _shape(spec.shape)}
            for side, specs in (("in", signature.inputs), ("out", signature.outputs))
            for tensor, spec in specs.items()
        ]
        _print_table(f"{name}, version {metadata.model_version}", rows)


def _shape(shape: Sequence[int | None] | None) -> str:
    return "any" if shape is None else shape_text(shape)


def _print_table(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left")
    for name in rows[0] if rows else ["nothing"]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
