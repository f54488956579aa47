"""Turns the columns that callers pass into the arrays that a signature takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_eta.features import HISTORY_LENGTH, history_name
from serving.client.answers import Signature

Columns = Mapping[str, Any]

_FORMS = ("one value", "a list of values", "a list of lists, one for each request")


def ranking_inputs(
    candidates: Columns | None,
    history: Columns | None,
    user: Columns | None = None,
    context: Columns | None = None,
    history_length: Any = None,
) -> tuple[dict[str, tuple[str, Any]], bool]:
    """Brings one request, or several, to the form of the signatures `rank` and `explain`, and of those of user states.

    Args:
        candidates: by name, C values (one request) or R lists of C values. `None`: the signature takes none.
        history: by name, without the prefix, a list of behaviours or R lists that may differ in length, most recent
            first. `{"item_id": [5, 3]}` becomes `history_item_id`; shorter lists are padded behind. `None`: the
            signature takes none.
        user: by name, a value or R values.
        context: by name, a value or R values.
        history_length: behaviours that count, a number or R numbers. Default: as many as there are.

    Returns:
        By the signature's name, what an error message should call the input, and its values with one row per request.
        And whether there were several requests.

    Raises:
        ValueError: if the numbers of requests, candidates or behaviours do not fit together.
    """
    role, columns = ("history", history) if candidates is None else ("candidates", candidates)
    if not columns:
        raise ValueError(f"`{role}` must have at least one column. Received: {role}={{}}")
    several = max(map(_depth, columns.values())) > 1

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
    counts = {len(row) for name in candidates or () for row in inputs[name][1]}
    if len(counts) > 1:
        raise ValueError(
            f"`candidates` must have as many values in every column and request. Received: {sorted(counts)}"
        )

    lengths: list[int] = []
    for name, values in (history or {}).items():
        argument = f"history[{name!r}]"
        behaviours = rows(argument, values, 1)
        found = [len(row) for row in behaviours]
        if lengths and found != lengths:
            raise ValueError(
                "`history` must have one value per behaviour in every column. "
                f"Received: {found} in `{argument}`, {lengths} in `history[{next(iter(history or ()))!r}]`"
            )
        lengths = found
        inputs[history_name(name)] = argument, _padded(behaviours, max(lengths, default=0))
    if history_length is not None:
        chosen = typed_array("history_length", rows("history_length", history_length, 0), np.dtype(np.int64)).tolist()
        if len(chosen) != len(lengths) or any(not 0 <= n <= most for n, most in zip(chosen, lengths, strict=True)):
            raise ValueError(
                f"`history_length` must be between 0 and the number of behaviours, {lengths}. Received: {chosen}"
            )
        lengths = chosen
    if history:
        inputs[HISTORY_LENGTH] = "history_length", lengths

    requests = {argument: len(values) for argument, values in inputs.values()}
    if len(set(requests.values())) > 1 or 0 in requests.values():
        raise ValueError(
            f"Every column must have one row per request, and there must be a request. Received: {requests}"
        )
    return inputs, several


def signature_arrays(inputs: Mapping[str, tuple[str, Any]], signature: Signature) -> dict[str, np.ndarray]:
    """The inputs as a signature takes them, checked before they are sent: servers do not name every wrong one.

    Where there is a `history_length`, the inputs `history_*` of rank 2 are histories. Empty ones get one column that
    does not count: a server that joins calls to batches fails all calls of a batch in which one has an empty tensor.

    Args:
        inputs: by name, what an error message should call the input, and its values.
        signature: dtypes and shapes, of at least these inputs.

    Returns:
        By name, the arrays.

    Raises:
        ValueError: if an input has another dtype or shape, not as many rows as the first one or, as a history, not as
            many behaviours; if a length lies outside of its history; or if a float that counts is not finite.
    """

    def array(name: str, lengths: np.ndarray | None = None) -> np.ndarray:
        argument, values = inputs[name]
        spec = signature.inputs[name]
        found = typed_array(argument, values, np.dtype(tf.as_dtype(spec.dtype).as_numpy_dtype), lengths)
        if spec.shape is not None and (
            found.ndim != len(spec.shape)
            or any(size not in (None, length) for size, length in zip(spec.shape, found.shape, strict=True))
        ):
            raise ValueError(
                f"`{argument}` must have shape {shape_text(spec.shape)}. Received shape: {shape_text(found.shape)}"
            )
        return found

    lengths = array(HISTORY_LENGTH) if HISTORY_LENGTH in inputs else None
    prefix = history_name("")
    arrays = {name: array(name, lengths if name.startswith(prefix) else None) for name in inputs}
    # A first axis of a fixed size does not count requests.
    fixed = {name for name in inputs if (signature.inputs[name].shape or (None,))[0] is not None}
    rows = {name: len(found) for name, found in arrays.items() if found.ndim and name not in fixed}
    _check_equal("rows", rows, inputs)
    if lengths is None:
        return arrays
    # A user state may have such a name, too, but is of a fixed size.
    histories = [
        name
        for name, found in arrays.items()
        if name.startswith(prefix) and found.ndim == 2 and (signature.inputs[name].shape or (None, None))[1] is None
    ]
    behaviours = {name: arrays[name].shape[1] for name in histories}
    _check_equal("behaviours", behaviours, inputs)
    most = next(iter(behaviours.values()), None)
    if most is not None and ((lengths < 0) | (lengths > most)).any():
        raise ValueError(
            f"`{inputs[HISTORY_LENGTH][0]}` must be between 0 and the number of behaviours, {most}. "
            f"Received: {_shown(lengths.tolist())}"
        )
    if most == 0:
        for name in histories:
            filler = b"" if arrays[name].dtype.kind == "O" else 0
            arrays[name] = np.full((len(arrays[name]), 1), filler, arrays[name].dtype)
    return arrays


def typed_array(argument: str, values: Any, dtype: np.dtype, lengths: np.ndarray | None = None) -> np.ndarray:
    """The values as an array of exactly that dtype. Floats may lose digits; nothing else may be lost.

    Args:
        argument: what an error message should call the values.
        values: anything that NumPy makes an array of.
        dtype: the dtype wanted; `object` means strings.
        lengths: [N], how many values of each row of a table count. Floats behind them need not be finite. Default: all.

    Returns:
        The array. Text becomes UTF-8 bytes.

    Raises:
        ValueError: if the values are of another kind, do not fit into the dtype or are not finite.
    """
    try:
        array = np.asarray(values, dtype=object if dtype.kind == "O" else None)
    except ValueError:
        raise ValueError(f"`{argument}` must have rows of one length. Received: {_shown(values)}") from None
    if dtype.kind == "O":
        for value in array.flat:
            if not isinstance(value, (str, bytes)):
                raise ValueError(f"`{argument}` must be strings. Received: {value!r} ({type(value).__name__})")
        try:
            encoded = [value.encode() if isinstance(value, str) else value for value in array.flat]
        except UnicodeEncodeError as error:
            raise ValueError(
                f"`{argument}` must be text that UTF-8 can spell. Received: {_shown(error.object)}"
            ) from None
        return np.array(encoded, dtype).reshape(array.shape)
    integers = array.dtype.kind in "iu" and dtype.kind in "iu"
    if array.size and not integers and not np.can_cast(array.dtype, dtype, casting="same_kind"):
        raise ValueError(f"`{argument}` must be {dtype}. Received: {_shown(values)}")
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    if integers and (converted != array).any():
        raise ValueError(f"`{argument}` must fit into {dtype}. Received: {_shown(values)}")
    if dtype.kind == "f":
        wrong = ~np.isfinite(converted)
        if lengths is not None and wrong.ndim == 2 and lengths.shape == wrong.shape[:1]:
            wrong &= np.arange(wrong.shape[1]) < lengths[:, None]
        if wrong.any():
            place = np.argwhere(wrong)[0].tolist()
            raise ValueError(
                f"`{argument}` must be finite and fit into {dtype}. Received: {array[tuple(place)]} at {place}"
            )
    return converted


def shape_text(shape: Sequence[int | None]) -> str:
    """A shape as messages and tables show it: `(?, 3)`."""
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"


def _check_equal(what: str, sizes: Mapping[str, int], inputs: Mapping[str, tuple[str, Any]]) -> None:
    first = next(iter(sizes), "")
    for name, size in sizes.items():
        if size != sizes[first]:
            wanted = f"as many {what} as `{inputs[first][0]}`, {sizes[first]}"
            raise ValueError(f"`{inputs[name][0]}` must have {wanted}. Received: {size}")


def _depth(values: Any) -> int:
    """How deeply the lists are nested."""
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
