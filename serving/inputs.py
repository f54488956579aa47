"""From what a caller holds, lists by role, to the arrays that a signature takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_eta.features import HISTORY_LENGTH, history_name

Columns = Mapping[str, Any]

_FORMS = ("one value", "a list of values", "a list of lists, one for each request")


def ranking_inputs(
    candidates: Columns,
    history: Columns,
    user: Columns | None = None,
    context: Columns | None = None,
    history_length: Any = None,
) -> tuple[dict[str, tuple[str, Any]], bool]:
    """Brings one request, or several, to the form of the signatures `rank` and `explain`.

    Args:
        candidates: by name, C values (one request) or R lists of C values.
        history: by name, without the prefix, a list of behaviours or R lists that may differ in length, most recent
            first. `{"item_id": [5, 3]}` becomes `history_item_id`; shorter lists are padded behind.
        user: by name, a value or R values.
        context: by name, a value or R values.
        history_length: behaviours that count, a number or R numbers. Default: as many as there are.

    Returns:
        By the signature's name, what an error message should call the input, and its values with one row a request.
        And whether there were several requests.

    Raises:
        ValueError: if the numbers of requests, candidates or behaviours do not fit together.
    """
    if not candidates:
        raise ValueError("`candidates` must have at least one column. Received: candidates={}")
    several = max(map(_depth, candidates.values())) > 1

    def rows(argument: str, values: Any, depth: int) -> Any:
        if _depth(values) != depth + several:
            raise ValueError(f"`{argument}` must be {_FORMS[depth + several]}. Received: {_shown(values)}")
        return values if several else [values]

    inputs: dict[str, tuple[str, Any]] = {}
    for role, columns, depth in (("user", user, 0), ("context", context, 0), ("candidates", candidates, 1)):
        for name, values in (columns or {}).items():
            argument = f"{role}[{name!r}]"
            if name in inputs:
                raise ValueError(f"`{argument}` and `{inputs[name][0]}` are the same input.")
            inputs[name] = argument, rows(argument, values, depth)
    counts = {len(row) for name in candidates for row in inputs[name][1]}
    if len(counts) > 1:
        raise ValueError(
            f"`candidates` must have as many values in every column and request. Received: {sorted(counts)}"
        )

    lengths: list[int] = []
    for name, values in history.items():
        argument = f"history[{name!r}]"
        behaviours = rows(argument, values, 1)
        found = [len(row) for row in behaviours]
        if lengths and found != lengths:
            raise ValueError(
                "`history` must have one value a behaviour in every column. "
                f"Received: {found} in `{argument}`, {lengths} in `history[{next(iter(history))!r}]`"
            )
        lengths = found
        inputs[history_name(name)] = argument, _padded(behaviours, max(lengths, default=0))
    if history_length is not None:
        chosen = rows("history_length", history_length, 0)
        if len(chosen) != len(lengths) or any(not 0 <= n <= most for n, most in zip(chosen, lengths, strict=True)):
            raise ValueError(
                f"`history_length` must be between 0 and the number of behaviours, {lengths}. Received: {chosen}"
            )
        lengths = chosen
    if history:
        inputs[HISTORY_LENGTH] = "history_length", lengths

    requests = {argument: len(values) for argument, values in inputs.values()}
    if len(set(requests.values())) > 1:
        raise ValueError(f"Every column must have one row a request. Received: {requests}")
    return inputs, several


def typed_array(argument: str, values: Any, dtype: np.dtype) -> np.ndarray:
    """The values as an array of exactly that dtype, where nothing is lost by it.

    Args:
        argument: what an error message should call the values.
        values: anything that NumPy makes an array of.
        dtype: the dtype wanted; `object` means strings.

    Returns:
        The array. Text becomes UTF-8 bytes.

    Raises:
        ValueError: if the values are of another kind, or do not fit into the dtype.
    """
    try:
        array = np.asarray(values, dtype=object if dtype.kind == "O" else None)
    except ValueError:
        raise ValueError(f"`{argument}` must have rows of one length. Received: {_shown(values)}") from None
    if dtype.kind == "O":
        for value in array.flat:
            if not isinstance(value, (str, bytes)):
                raise ValueError(f"`{argument}` must be strings. Received: {value!r} ({type(value).__name__})")
        encoded = [value.encode() if isinstance(value, str) else value for value in array.flat]
        return np.array(encoded, dtype).reshape(array.shape)
    integers = array.dtype.kind in "iu" and dtype.kind in "iu"
    if array.size and not integers and not np.can_cast(array.dtype, dtype, casting="same_kind"):
        raise ValueError(f"`{argument}` must be {dtype}. Received: {_shown(values)}")
    converted = array.astype(dtype)
    if integers and (converted != array).any():
        raise ValueError(f"`{argument}` must fit into {dtype}. Received: {_shown(values)}")
    return converted


def _depth(values: Any) -> int:
    """How many lists one has to open to find a value."""
    if hasattr(values, "ndim"):
        return int(values.ndim)
    if isinstance(values, (list, tuple)):
        return 1 + (_depth(values[0]) if values else 0)
    return 0


def _padded(rows: Any, length: int) -> Any:
    if all(len(row) == length for row in rows):
        return rows
    filler = "" if any(len(row) and isinstance(row[0], (str, bytes)) for row in rows) else 0
    return [[*row, *[filler] * (length - len(row))] for row in rows]


def _shown(values: Any) -> str:
    text = repr(values)
    return text if len(text) <= 80 else f"{text[:77]}..."
