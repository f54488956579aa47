"""Hours and weekdays of moments."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from keras_eta.columns import TIMESTAMP
from keras_eta.features import Features
from keras_eta.time_units import per_second

# 1970 began on a Thursday.
_FIRST_WEEKDAY = 3
_HOUR, _DAY = 3_600, 86_400


def hour_and_weekday(timestamp: tf.Tensor, unit: str, utc_offset: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The hour of the day and the day of the week of moments since 1970, in local time.

    Args:
        timestamp: integers [...].
        unit: of the timestamps, a key of `keras_eta.time_units.UNIT_STARTS`.
        utc_offset: seconds by which local time is ahead of UTC.

    Returns:
        int32 [...] each: 1 + the hour, 1 to 24; and 1 + the days since Monday, 1 to 7.
    """
    seconds = tf.math.floordiv(tf.cast(timestamp, tf.int64), per_second(unit)) + utc_offset
    hour = tf.math.floordiv(tf.math.floormod(seconds, _DAY), _HOUR)
    weekday = tf.math.floormod(tf.math.floordiv(seconds, _DAY) + _FIRST_WEEKDAY, 7)
    return 1 + tf.cast(hour, tf.int32), 1 + tf.cast(weekday, tf.int32)


def calendar_columns(features: Features, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The encoded columns of `features.calendar`, none without one.

    Args:
        features: the columns.
        inputs: `timestamp`, integers [...], where there is a calendar.

    Returns:
        int32 [...] by name.
    """
    calendar = features.calendar
    if calendar is None:
        return {}
    moments = hour_and_weekday(inputs[TIMESTAMP], calendar.unit, calendar.offset_seconds)
    return dict(zip(features.calendar_names, moments, strict=True))
