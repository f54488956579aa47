"""Moments as whole seconds since 1970 in UTC."""

from __future__ import annotations

import datetime
import re

import numpy as np
import pandas as pd

_ISO_8601 = re.compile(
    r"(?P<date>\d{4}-\d\d-\d\d)"
    r"(?:[T ](?P<time>\d\d:\d\d(?::\d\d)?)(?:(?<=:\d\d:\d\d)[.,]\d+)?"
    r" ?(?:Z|UTC|(?P<sign>[+-])(?P<hours>[01]\d|2[0-3]):?(?P<minutes>[0-5]\d)?)?)?",
    re.ASCII,
)


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


def iso_seconds(text: str) -> int | None:
    """The moment that an ISO 8601 date spells, e.g. "2023-11-14", "2023-11-14 22:13", "2023-11-14T23:13:20.5+01:00".

    Args:
        text: a date, or a date and a time with `T` or a space between them. Without `Z`, `UTC` or an offset it is in
            UTC; a fraction of a second is cut off.

    Returns:
        Seconds since 1970-01-01 00:00:00 UTC; `None` if the text is no such date.
    """
    found = _ISO_8601.fullmatch(text)
    if found is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(f"{found['date']} {found['time'] or '00:00'}+00:00")
    except ValueError:
        return None
    offset = 3600 * int(found["hours"] or 0) + 60 * int(found["minutes"] or 0)
    return int(moment.timestamp()) - (-offset if found["sign"] == "-" else offset)


def datetime_seconds(moments: pd.Series) -> np.ndarray:
    """Moments as int64 seconds since 1970-01-01 00:00:00 UTC, fractions cut off.

    Args:
        moments: datetimes or dates. Those without a time zone are in UTC, those that are missing become 0.
    """
    epoch = pd.Timestamp(0, tz="UTC")
    since = pd.to_datetime(moments, utc=True).fillna(epoch) - epoch
    return (since // pd.Timedelta(seconds=1)).to_numpy(dtype="int64")
