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
