"""Turns the columns that callers pass into the arrays that a signature takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_eta.columns import HISTORY, length_name
from serving.client.answers import Signature
from serving.client.tensors import numpy_dtype
from serving.client.values import ValueLists, shown

Columns = Mapping[str, Any]
Sequences = Mapping[str, Columns]

_FORMS = ("one value", "a list of values", "a list of lists, one for each request")


def ranking_inputs(
    candidates: Columns | None,
    history: Columns | None,
    user: Columns | None = None,
    context: Columns | None = None,
    history_length: Any = None,
    sequences: Sequences | None = None,
) -> tuple[dict[str, tuple[str, Any]], bool]:
    """Brings one request, or several, to the form of the signatures `rank` and `explain`, and of those of user states.

    A value may be a list of values itself, where a feature has several; see `values.with_value_lengths`.

    Args:
        candidates: by name, C values (one request) or R lists of C values. `None`: the signature takes none.
        history: by name, without the prefix, a list of behaviours or R lists that may differ in length, most recent
            first. `{"item_id": [5, 3]}` becomes `history_item_id`; shorter lists are padded behind. `None`: the
            signature takes none.
        user: by name, a value or R values.
        context: by name, a value or R values.
        history_length: behaviours that count, a number or R numbers. Default: as many as there are.
        sequences: further sequences by name, each as `history`.

    Returns:
        By the signature's name, what an error message should call the input, and its values with one row per request.
        And whether there were several requests.

    Raises:
        ValueError: if the numbers of requests, candidates or behaviours do not fit together.
    """
    behaviours = {**({} if history is None else {HISTORY: history}), **(sequences or {})}
    role, columns = next(iter(behaviours.items()), (HISTORY, {})) if candidates is None else ("candidates", candidates)
    if not columns:
        raise ValueError(f"`{role}` must have at least one column. Received: {role}={{}}")
    # A list more around a value is one of several values.
    several = min(map(_depth, columns.values())) > 1

    def rows(argument: str, values: Any, depth: int) -> Any:
        def refusal() -> str:
            return f"`{argument}` must be {_FORMS[depth + several]}. Received: {shown(values)}"

        more = _depth(values) - depth - several
        if more not in (0, 1):
            raise ValueError(refusal())
        column = values if several else [values]
        return ValueLists(column, refusal) if more else column

    inputs: dict[str, tuple[str, Any]] = {}
    for role, given, depth in (("user", user, 0), ("context", context, 0), ("candidates", candidates, 1)):
        for name, values in (given or {}).items():
            argument = f"{role}[{name!r}]"
            if name in inputs:
                raise ValueError(f"`{argument}` and `{inputs[name][0]}` are the same input.")
            inputs[name] = argument, rows(argument, values, depth)
    counts = {len(row) for name in candidates or () for row in inputs[name][1]}
    if len(counts) > 1:
        raise ValueError(
            f"`candidates` must have as many values in every column and request. Received: {sorted(counts)}"
        )
    for sequence, columns in behaviours.items():
        inputs |= _sequence_inputs(sequence, columns, history_length if sequence == HISTORY else None, rows)

    requests = {argument: len(values) for argument, values in inputs.values()}
    if len(set(requests.values())) > 1 or 0 in requests.values():
        raise ValueError(
            f"Every column must have one row per request, and there must be a request. Received: {requests}"
        )
    return inputs, several


def _sequence_inputs(
    sequence: str, columns: Columns, chosen_length: Any, rows: Callable[[str, Any, int], Any]
) -> dict[str, tuple[str, Any]]:
    """The inputs of a sequence's columns and its length."""
    role = sequence if sequence == HISTORY else f"sequences[{sequence!r}]"
    inputs: dict[str, tuple[str, Any]] = {}
    lengths: list[int] = []
    for name, values in columns.items():
        argument = f"{role}[{name!r}]"
        behaviours = rows(argument, values, 1)
        found = [len(row) for row in behaviours]
        if lengths and found != lengths:
            raise ValueError(
                f"`{role}` must have one value per behaviour in every column. "
                f"Received: {found} in `{argument}`, {lengths} in `{role}[{next(iter(columns))!r}]`"
            )
        lengths = found
        padded = _padded(behaviours, max(lengths, default=0))
        lists = isinstance(behaviours, ValueLists)
        inputs[f"{sequence}_{name}"] = argument, ValueLists(padded, behaviours.refusal) if lists else padded
    if chosen_length is not None:
        values = rows("history_length", chosen_length, 0)
        chosen = typed_array("history_length", values, np.dtype(np.int64)).tolist()
        if len(chosen) != len(lengths) or any(not 0 <= n <= most for n, most in zip(chosen, lengths, strict=True)):
            raise ValueError(
                f"`history_length` must be between 0 and the number of behaviours, {lengths}. Received: {chosen}"
            )
        lengths = chosen
    if columns:
        name = length_name(sequence)
        inputs[name] = name, lengths
    return inputs


def signature_arrays(inputs: Mapping[str, tuple[str, Any]], signature: Signature) -> dict[str, np.ndarray]:
    """The inputs as a signature takes them, checked before they are sent: servers do not name every wrong one.

    Where there is a `history_length`, the inputs `history_*` whose second axis has no fixed size are histories, and so
    for other sequences. Empty ones get one column that does not count: a server that joins calls to batches fails all
    calls of a batch in which one has an empty tensor.

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
        found = typed_array(argument, values, numpy_dtype(spec.dtype), lengths)
        if spec.shape is not None and (
            found.ndim != len(spec.shape)
            or any(size not in (None, length) for size, length in zip(spec.shape, found.shape, strict=True))
        ):
            raise ValueError(
                f"`{argument}` must have shape {shape_text(spec.shape)}. Received shape: {shape_text(found.shape)}"
            )
        return found

    sequences = _sequences(inputs, signature)
    lengths = {name: array(name) for name in sequences}
    sequence_of = {column: name for name, columns in sequences.items() for column in columns}
    arrays = {
        name: lengths[name] if name in lengths else array(name, lengths.get(sequence_of.get(name, "")))
        for name in inputs
    }
    # A first axis of a fixed size does not count requests.
    fixed = {name for name in inputs if (signature.inputs[name].shape or (None,))[0] is not None}
    rows = {name: len(found) for name, found in arrays.items() if found.ndim and name not in fixed}
    _check_equal("rows", rows, inputs)
    for name, columns in sequences.items():
        behaviours = {column: arrays[column].shape[1] for column in columns if arrays[column].ndim > 1}
        _check_equal("behaviours", behaviours, inputs)
        most = next(iter(behaviours.values()), None)
        if most is not None and ((lengths[name] < 0) | (lengths[name] > most)).any():
            raise ValueError(
                f"`{inputs[name][0]}` must be between 0 and the number of behaviours, {most}. "
                f"Received: {shown(lengths[name].tolist())}"
            )
        for column in behaviours if most == 0 else ():
            filler = b"" if arrays[column].dtype.kind == "O" else 0
            shape = arrays[column].shape
            arrays[column] = np.full((shape[0], 1, *shape[2:]), filler, arrays[column].dtype)
    return arrays


def _sequences(inputs: Mapping[str, Any], signature: Signature) -> dict[str, list[str]]:
    """By the name of each sequence's length, the names of its columns."""
    found = {}
    for name in inputs:
        prefix = name.removesuffix(length_name(""))
        if name == prefix or len(signature.inputs[name].shape or (None,)) != 1:
            continue
        # A user state may have such a name, too, but is of a fixed size.
        columns = [
            other
            for other in inputs
            if other.startswith(f"{prefix}_")
            and other != name
            and (signature.inputs[other].shape is None or len(signature.inputs[other].shape or ()) > 1)
            and (signature.inputs[other].shape or (None, None))[1] is None
        ]
        if columns or name == length_name(HISTORY):
            found[name] = columns
    return found


def typed_array(argument: str, values: Any, dtype: np.dtype, lengths: np.ndarray | None = None) -> np.ndarray:
    """The values as an array of exactly that dtype. Floats may lose digits; nothing else may be lost.

    Args:
        argument: what an error message should call the values.
        values: anything that NumPy makes an array of. Among floats `None` is a missing value, and becomes NaN.
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
        raise ValueError(f"`{argument}` must have rows of one length. Received: {shown(values)}") from None
    if dtype.kind == "O":
        for value in array.flat:
            if not isinstance(value, (str, bytes)):
                raise ValueError(f"`{argument}` must be strings. Received: {value!r} ({type(value).__name__})")
        try:
            encoded = [value.encode() if isinstance(value, str) else value for value in array.flat]
        except UnicodeEncodeError as error:
            raise ValueError(
                f"`{argument}` must be text that UTF-8 can spell. Received: {shown(error.object)}"
            ) from None
        return np.array(encoded, dtype).reshape(array.shape)
    missing = np.zeros(array.shape, bool)
    if dtype.kind == "f" and array.dtype.kind == "O":
        missing = np.array([value is None for value in array.flat], bool).reshape(array.shape)
        array = np.array(np.where(missing, 0, array).tolist())
    integers = array.dtype.kind in "iu" and dtype.kind in "iu"
    if array.size and not integers and not np.can_cast(array.dtype, dtype, casting="same_kind"):
        raise ValueError(f"`{argument}` must be {dtype}. Received: {shown(values)}")
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    if integers and (converted != array).any():
        raise ValueError(f"`{argument}` must fit into {dtype}. Received: {shown(values)}")
    if dtype.kind == "f":
        wrong = ~np.isfinite(converted)
        if lengths is not None and wrong.ndim == 2 and lengths.shape == wrong.shape[:1]:
            wrong &= np.arange(wrong.shape[1]) < lengths[:, None]
        if wrong.any():
            place = np.argwhere(wrong)[0].tolist()
            raise ValueError(
                f"`{argument}` must be finite and fit into {dtype}. Received: {array[tuple(place)]} at {place}"
            )
        converted[missing] = np.nan
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
    first = next((row[0] for row in rows if len(row)), 0)
    filler: Any = [] if _depth(first) else "" if isinstance(first, (str, bytes)) else 0
    return [[*row, *[filler] * (length - len(row))] for row in rows]
