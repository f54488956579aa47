"""The unit of timestamps, which their size tells."""

from __future__ import annotations

import numpy as np

# Moments from 1973 to 2286 in each unit begin here and end at a hundredfold: no number stands for two of them.
UNIT_STARTS = {"seconds": 10**8, "milliseconds": 10**11, "microseconds": 10**14, "nanoseconds": 10**17}


def time_unit(timestamp: int) -> str:
    """The unit in which a number is a moment since 1970, between 1973 and 2286: a key of `UNIT_STARTS`.

    Returns:
        The unit; "" of numbers that are such moments in none, as a counter's.
    """
    return next((unit for unit, start in UNIT_STARTS.items() if start <= timestamp < 100 * start), "")


def usual_time_unit(timestamps: np.ndarray) -> tuple[str, np.ndarray]:
    """The unit of most timestamps, and which are not in it.

    Args:
        timestamps: int64 [n].

    Returns:
        A key of `UNIT_STARTS`, or "" where no unit has more than half of them; and bool [n], all false where the unit
        is "".
    """
    for unit, start in UNIT_STARTS.items():
        others = (timestamps < start) | (timestamps // 100 >= start)
        if 2 * others.sum() < len(timestamps):
            return unit, others
    return "", np.zeros(len(timestamps), bool)


def per_second(unit: str) -> int:
    """How many of a unit, a key of `UNIT_STARTS`, are a second."""
    return UNIT_STARTS[unit] // UNIT_STARTS["seconds"]
