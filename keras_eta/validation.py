"""Checks of arguments that several classes share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def is_integer(value: Any, minimum: int | None = None) -> bool:
    """Whether a value is an `int`, of at least `minimum` where there is one; `bool` does not count."""
    return isinstance(value, int) and not isinstance(value, bool) and (minimum is None or value >= minimum)


def is_number(value: Any) -> bool:
    """Whether a value is an `int` or a finite `float`; `bool` does not count."""
    return is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def check_positive_integers(**arguments: Any) -> None:
    """Refuses anything but positive integers.

    Args:
        **arguments: values by the name of the argument that the caller's user set.

    Raises:
        ValueError: naming the first argument that is no positive `int` (`bool` does not count), and what was received.
    """
    for name, value in arguments.items():
        if not is_integer(value, 1):
            raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")


def check_integers_from_zero(**arguments: Any) -> None:
    """Raises ValueError unless every argument is an integer of at least 0."""
    for name, value in arguments.items():
        if not is_integer(value, 0):
            raise ValueError(f"`{name}` must be an integer of at least 0. Received: {name}={value!r}")


def check_hidden_units(hidden_units: Sequence[Any]) -> None:
    """Raises ValueError unless there are hidden layers and the width of each is a positive integer."""
    if not hidden_units or not all(is_integer(units, 1) for units in hidden_units):
        raise ValueError(f"`hidden_units` must be positive integers. Received: hidden_units={hidden_units!r}")


def check_planes_period(planes_period: Any, trainable_planes: bool) -> None:
    """Raises ValueError unless `planes_period` is a positive integer, and 1 for planes that do not learn."""
    check_positive_integers(planes_period=planes_period)
    if planes_period > 1 and not trainable_planes:
        raise ValueError(
            "`planes_period` above 1 needs `trainable_planes=True`. "
            f"Received: planes_period={planes_period}, trainable_planes={trainable_planes}"
        )


def exact_integers(values: np.ndarray) -> np.ndarray:
    """Which of some values are integers that int64 holds.

    Args:
        values: of any shape and type. Floats count where they are whole and so small that no other integer is rounded
            to them (for float64 below 2**53); text never does.

    Returns:
        bool, of the same shape.
    """
    if values.dtype.kind == "f":
        largest = 2 ** (np.finfo(values.dtype).nmant + 1) - 1
        whole: np.ndarray = (np.abs(values) <= largest) & (values == np.floor(values))
        return whole
    if values.dtype.kind == "O":
        limits = np.iinfo(np.int64)
        fitting = [isinstance(x, (int, np.integer)) and limits.min <= x <= limits.max for x in values.flat]
        return np.array(fitting, bool).reshape(values.shape)
    if values.dtype.kind == "u":
        return values <= np.iinfo(np.int64).max
    return np.full(values.shape, values.dtype.kind in "bi")


def check_vectors(name: str, vectors: Any) -> np.ndarray:
    """Vectors as float32 [n, D]."""
    values = np.asarray(vectors)
    if values.ndim != 2 or not values.shape[1] or values.dtype.kind not in "fiu":
        raise ValueError(
            f"`{name}` must be floats of shape [n, D]. Received: shape {list(values.shape)}, {values.dtype}"
        )
    with np.errstate(over="ignore"):
        values = values.astype("float32")
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise ValueError(f"`{name}` must be finite as float32. Received at row {bad.argmax()}: {values[bad.argmax()]}")
    return values
