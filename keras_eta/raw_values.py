"""Raw values of features as arrays, checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_eta.columns import Feature
from keras_eta.validation import exact_integers


def as_array(feature: Feature, values: Any) -> np.ndarray:
    """Values as an array, text and bytes in their full length."""
    # NumPy's own type of strings cuts NULs off.
    return np.asarray(values, None if isinstance(values, np.ndarray) or feature.dtype != "string" else object)


def raw_ids(feature: Feature, values: Any) -> np.ndarray:
    """Raw ids of a feature as int64, or as text and bytes of their full length.

    Raises:
        ValueError: if the feature is int64 and a value is no integer of 64 bits.
    """
    values = as_array(feature, values)
    if feature.dtype == "string":
        return values
    exact = exact_integers(values)
    if not exact.all():
        wrong = values[~exact][0]
        fraction = isinstance(wrong, (float, np.floating)) and np.isfinite(wrong) and wrong % 1
        hint = ". Fractions, such as half stars, take a feature of dtype 'float32'" if fraction else ""
        raise ValueError(
            f"Feature {feature.name!r} must hold integers of 64 bits, as floats only where they are exact. "
            f"Received: {wrong} (dtype={values.dtype}){hint}"
        )
    return values.astype(np.int64)


def finite(feature: Feature, values: Any) -> np.ndarray:
    """Values of a float32 feature in float64, without the missing ones of an optional one.

    Raises:
        ValueError: if one is not finite.
    """
    values = np.asarray(values, np.float64)
    if feature.optional:
        values = values[~np.isnan(values)]
    bad = ~np.isfinite(values)
    if bad.any():
        raise ValueError(
            f"Feature {feature.name!r} must hold finite numbers. Received: {bad.sum():,} that are not, of "
            f"{len(values):,}, the first of them {values[bad][0]}"
        )
    return values
