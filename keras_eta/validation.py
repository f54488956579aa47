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


def check_planes_period(planes_period: Any, trainable_planes: bool) -> None:
    """Raises ValueError unless `planes_period` is a positive integer, and 1 for planes that do not learn."""
    check_positive_integers(planes_period=planes_period)
    if planes_period > 1 and not trainable_planes:
        raise ValueError(
            "`planes_period` above 1 needs `trainable_planes=True`. "
            f"Received: planes_period={planes_period}, trainable_planes={trainable_planes}"
        )
