"""Checks of arguments that several classes share."""

from __future__ import annotations

from typing import Any


def check_positive_integers(**arguments: Any) -> None:
    """Refuses anything but positive integers.

    Args:
        **arguments: values by the name of the argument that the caller's user set.

    Raises:
        ValueError: naming the first argument that is no positive `int` (`bool` does not count), and what was received.
    """
    for name, value in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
