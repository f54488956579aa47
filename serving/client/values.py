"""Values of requests: lists where a feature has several, and how messages show them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_eta.columns import length_name
from serving.client.answers import Signature


class ValueLists(list[Any]):
    """A column whose values are lists, which only a feature of several values takes.

    Args:
        rows: the column.
        refusal: gives what to say where the signature takes one value.
    """

    def __init__(self, rows: Sequence[Any], refusal: Callable[[], str]) -> None:
        super().__init__(rows)
        self.refusal = refusal


def with_value_lengths(inputs: Mapping[str, tuple[str, Any]], signature: Signature) -> dict[str, tuple[str, Any]]:
    """The inputs with those of several values padded to what the signature takes, and how many are real beside them.

    Args:
        inputs: by name, what an error message should call the input, and its values: lists of any length where a
            feature has several.
        signature: has an input `<name>_length` for each input of several values.

    Returns:
        The inputs, and by `<name>_length` the numbers of values.

    Raises:
        ValueError: if there are more values than the signature takes, or no list of them, or lists where it takes one
            value.
    """
    result = dict(inputs)
    for name, (argument, values) in inputs.items():
        spec = signature.inputs.get(name)
        if spec is not None and isinstance(values, ValueLists) and length_name(name) not in signature.inputs:
            raise ValueError(values.refusal())
        if length_name(name) in signature.inputs and length_name(name) not in inputs and spec and spec.shape:
            most, depth = spec.shape[-1] or 0, len(spec.shape) - 1
            filler = "" if spec.dtype == "string" else 0
            padded = _map_lists(argument, values, depth, functools.partial(_padded, argument, most, filler))
            if depth > 1:
                # Without candidates or behaviours, lists do not tell how many axes they have.
                padded = np.reshape(np.array(padded, object), [len(values), len(values[0]), most]).tolist()
            empty = np.zeros([len(values), 0, most], object)
            result[name] = argument, padded if depth == 1 or len(values[0]) else empty
            result[length_name(name)] = argument, _map_lists(argument, values, depth, len)
    return result


def _map_lists(argument: str, values: Any, depth: int, function: Callable[[Any], Any]) -> Any:
    """The function of each list that lies `depth` lists deep."""
    if not isinstance(values, (list, tuple, np.ndarray)):
        raise ValueError(f"`{argument}` must hold a list of values each. Received: {shown(values)}")
    return function(values) if depth == 0 else [_map_lists(argument, value, depth - 1, function) for value in values]


def _padded(argument: str, most: int, filler: Any, values: Sequence[Any]) -> list[Any]:
    if len(values) > most:
        raise ValueError(f"`{argument}` must have at most {most} values each. Received: {shown(values)}")
    return [*values, *[filler] * (most - len(values))]


def shown(values: Any) -> str:
    """Values as messages show them."""
    text = repr(values)
    return text if len(text) <= 80 else f"{text[:77]}..."
