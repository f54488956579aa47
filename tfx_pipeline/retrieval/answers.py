"""What a retriever's answers must be, whoever asked."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# What rounding may add to a log probability of 0.
_TOLERANCE = 1e-5


class Faults(NamedTuple):
    """How many of the items that were found are wrong.

    Attributes:
        not_numbers: log probabilities that are NaN or above 0.
        out_of_order: log probabilities above the one before.
        repeated_items: items that were found before for the same request.
        excluded_items: items that must not have been found.
        unknown_items: ids of no item that could be found.
    """

    not_numbers: int
    out_of_order: int
    repeated_items: int
    excluded_items: int
    unknown_items: int


def faults(
    items: np.ndarray,
    log_probability: np.ndarray,
    excluded: np.ndarray,
    lengths: np.ndarray,
    known: np.ndarray | None = None,
) -> Faults:
    """Counts what is wrong in the answers to R requests.

    Args:
        items: ids [R, C]; those with the log probability -inf are none.
        log_probability: floats [R, C].
        excluded: ids [R, E] that must not be found.
        lengths: integers [R], how many of them are real.
        known: ids [n] of all items that can be found, in ascending order. `None`: nobody knows them.
    """
    wrong = np.isnan(log_probability) | (log_probability > _TOLERANCE)
    real = log_probability != -np.inf
    before, after = log_probability[:, :-1], log_probability[:, 1:]
    unknown = np.zeros(items.shape, bool)
    if known is not None:
        places = np.minimum(np.searchsorted(known, items.ravel()), len(known) - 1).reshape(items.shape)
        unknown = (known[places] != items) & real
    repeated = among = 0
    for row, of_request in enumerate(items):
        found = of_request[real[row]].tolist()
        repeated += len(found) - len(set(found))
        among += len({*found} & {*excluded[row, : lengths[row]].tolist()})
    return Faults(
        not_numbers=int(wrong.sum()),
        out_of_order=int((after > before).sum()),
        repeated_items=repeated,
        excluded_items=among,
        unknown_items=int(unknown.sum()),
    )
