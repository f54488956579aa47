"""Requests of the command line: one JSON file, or CSV files with one line per candidate and per behaviour."""

from __future__ import annotations

import csv
import json
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_eta.columns import history_name
from serving.client.answers import Signature
from serving.client.states import UserState
from serving.client.tensors import numpy_dtype

_COLUMNS = ("candidates", "history", "user", "context", "sequences")
_RANKING = {"candidates", "history"}, {"user", "context", "history_length", "sequences"}
_FROM_STATE = {"candidates"}, {"user", "context", "history", "history_length", "sequences"}
_STATE = {"history"}, {"context", "history_length", "sequences"}
_RECOMMENDING = {"history"}, {"user", "context", "sequences", "excluded"}


def read_json(path: str, *, command: str, from_state: bool = False) -> dict[str, Any]:
    """The arguments of a method of the client from a JSON file, or from stdin if `path` is `-`.

    Args:
        path: of the file.
        command: `rank`, `explain`, `user-state` or `recommend`.
        from_state: whether a state stands for the history.

    Raises:
        ValueError: if it is no JSON object of columns by role and name.
        OSError: if it can't be read.
    """
    text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    try:
        request = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    others = {"user-state": _STATE, "recommend": _RECOMMENDING}
    needed, more = others.get(command, _FROM_STATE if from_state else _RANKING)
    if not isinstance(request, dict) or not needed <= set(request) <= needed | more:
        found = sorted(request) if isinstance(request, dict) else type(request).__name__
        needs = " and ".join(f"`{role}`" for role in sorted(needed))
        may_have = ", ".join(f"`{role}`" for role in sorted(more))
        raise ValueError(f"{path} must be a JSON object with {needs}, and maybe {may_have}. Received: {found}")
    for role in _COLUMNS:
        if not isinstance(request.get(role, {}), dict):
            raise ValueError(f"`{role}` must be an object of columns by name. Received: {request[role]!r}")
    return request


def read_state(path: str) -> UserState:
    """The user states in a file that `write_state` wrote.

    Raises:
        ValueError: if it is another file.
        OSError: if it can't be read.
    """
    with open(path, "rb") as file:
        try:
            arrays = np.load(file)
            if not isinstance(arrays, Mapping):
                raise ValueError("it holds one array")
            return UserState.from_arrays(arrays)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} must be a file that `user-state` wrote: {error}") from error


def write_state(path: str, state: UserState) -> None:
    """Writes user states, as `np.savez` does.

    Raises:
        OSError: if they can't be written.
    """
    with open(path, "wb") as file:
        np.savez(file, **state.to_arrays())


def read_csv(
    candidates: str, history: str, user: Sequence[str], context: Sequence[str], signature: Signature
) -> dict[str, Any]:
    """The arguments of `rank` and `explain` for one request, from CSV files and values.

    Args:
        candidates: file with a header and a line for each candidate.
        history: file with a header and a line for each behaviour, most recent first.
        user: `name=value` for each column of the user.
        context: `name=value` for each column of the context.
        signature: what the values are for; text becomes numbers where it wants numbers.

    Returns:
        Columns by role and name. A column that the signature does not know stays text.

    Raises:
        ValueError: if a file has no header, a line of another length or a value of the wrong kind; it says where.
        OSError: if a file can't be read.
    """
    request: dict[str, Any] = {
        "candidates": _read_columns(candidates, signature, str),
        "history": _read_columns(history, signature, history_name),
    }
    for role, pairs in (("user", user), ("context", context)):
        columns: dict[str, Any] = {}
        for pair in pairs:
            name, equals, text = pair.partition("=")
            if not name or not equals or name in columns:
                raise ValueError(f"--{role} must be name=value, each name once. Received: {pair}")
            columns[name] = _value(f"--{role} {name}", text, signature, name)
        request[role] = columns
    return request


def read_items(path: str) -> dict[str, list[str]]:
    """What is known of items from a CSV file with a header, as text.

    Raises:
        ValueError: if it has no header, or a line of another length; it says where.
        OSError: if it can't be read.
    """
    return _read_columns(path, Signature({}, {}), str)


def read_attributes(path: str, item_id: str, signature: Signature) -> Callable[[np.ndarray], dict[str, list[Any]]]:
    """What a ranker reads of candidates beside their ids, from a CSV file with a line per item.

    Args:
        path: of the file, whose header has the item's id and the further columns.
        item_id: name of the id.
        signature: of the ranker; text becomes numbers where it wants numbers.

    Returns:
        A function of ids, which gives the columns by name; it raises ValueError for an id that the file lacks.

    Raises:
        ValueError: as `read_items`; or if the file lacks the id, or has one twice.
        OSError: if it can't be read.
    """
    columns = _read_columns(path, signature, str)
    if item_id not in columns:
        raise ValueError(f"{path} must have the column {item_id!r}. Received: {list(columns)}")
    lines = {shown_id(id_): line for line, id_ in enumerate(columns[item_id])}
    if len(lines) < len(columns[item_id]):
        raise ValueError(f"{path} must have one line per item. Received: {len(columns[item_id]) - len(lines)} twice")

    def attributes(ids: np.ndarray) -> dict[str, list[Any]]:
        names = list(map(shown_id, ids.tolist()))
        unknown = [name for name in names if name not in lines]
        if unknown:
            raise ValueError(f"{path} lacks the item {unknown[0]!r}, which was retrieved.")
        found = [lines[name] for name in names]
        return {name: [column[line] for line in found] for name, column in columns.items() if name != item_id}

    return attributes


def shown_id(id_: Any) -> str:
    """An id as text."""
    return id_.decode(errors="backslashreplace") if isinstance(id_, bytes) else str(id_)


def _read_columns(path: str, signature: Signature, input_name: Callable[[str], str]) -> dict[str, list[Any]]:
    # A spreadsheet's files begin with a byte order mark.
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        try:
            header = next(lines, [])
            if not all(header) or len(header) != len(set(header)) or not header:
                raise ValueError(f"{path} must begin with a line of column names, each once. Received: {header}")
            columns: dict[str, list[Any]] = {name: [] for name in header}
            for values in lines:
                place = f"{path}, line {lines.line_num}"
                if len(values) != len(header):
                    raise ValueError(f"{place}: must have {len(header)} values. Received: {values}")
                for name, text in zip(header, values, strict=True):
                    columns[name].append(_value(f"{place}: `{name}`", text, signature, input_name(name)))
        except csv.Error as error:
            raise ValueError(f"{path}, line {lines.line_num}: {error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    return columns


def _value(place: str, text: str, signature: Signature, input_name: str) -> Any:
    spec = signature.inputs.get(input_name)
    if spec is None:
        return text
    kind = numpy_dtype(spec.dtype).kind
    try:
        return int(text) if kind in "iu" else float(text) if kind == "f" else text
    except ValueError:
        raise ValueError(f"{place} must be {spec.dtype}. Received: {text!r}") from None
