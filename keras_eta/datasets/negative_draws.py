"""Draws of items that a user could have taken and did not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

from keras_eta.columns import ITEM_ID
from keras_eta.datasets.columns import USER_ID, id_numbers
from keras_eta.datasets.interactions import Interactions

# The column of impressions that tells how probable a draw of the item was.
SAMPLING_PROBABILITY = "sampling_probability"

Weighting = Literal["uniform", "popularity"]
Period = Literal["earlier", "all"]
Exclusion = Literal["moment", "user"]

# Draws in one round, about, and pairs of a positive and an item that its user took that are counted at once.
_DRAWS = 2**20
_PAIRS = 2**23


class Draws(NamedTuple):
    """Negatives of P positives.

    Args:
        rows: int64 [P, rate], the earliest log row of each item drawn; -1 where a positive has no candidate.
        probability: float64 [P, rate], with which one draw gives that item; 0 where there is none.
        own_probability: float64 [P], what it would be of the positive's own item.
    """

    rows: np.ndarray
    probability: np.ndarray
    own_probability: np.ndarray


def check_choices(by: str = "uniform", candidates: str = "earlier", exclude: str = "moment") -> None:
    """Raises ValueError unless each argument of `sample_negatives` of that name is one of its choices."""
    for name, value, choices in (
        ("by", by, Weighting),
        ("candidates", candidates, Period),
        ("exclude", exclude, Exclusion),
    ):
        if value not in get_args(choices):
            raise ValueError(f"`{name}` must be one of {get_args(choices)}. Received: {name}={value!r}")


def draw_negatives(
    log: Interactions,
    positives: np.ndarray,
    rate: int,
    *,
    generator: np.random.Generator,
    same_attributes: Sequence[str] = (),
    same_context: Sequence[str] = (),
    by: Weighting = "uniform",
    candidates: Period = "earlier",
    exclude: Exclusion = "moment",
) -> Draws:
    """The draws of `sample_negatives`, whose arguments these are.

    Args:
        log: the interactions.
        positives: int64 [P], log rows.
        rate: draws per positive.
        generator: the source of randomness.
        same_attributes: those of `same` that describe the item.
        same_context: those of `same` that describe the moment.
        by: the weights of candidates.
        candidates: which rows count.
        exclude: what is no candidate.
    """
    moments, time = np.unique(log.timestamps, return_inverse=True)
    span = len(moments) + 1
    item = _codes(log, (ITEM_ID,))
    num_items = int(item.max()) + 1
    in_time = np.argsort(time, kind="stable")[::-1]
    earliest = np.empty(num_items, "int64")
    earliest[item[in_time]] = in_time

    attribute = _codes(log, same_attributes)
    num_attributes = int(attribute.max()) + 1
    item_attribute = attribute[earliest]
    situation = _codes(log, same_context)

    # A group is what the candidates of a positive have in common.
    wanted = attribute[positives]
    groups, group = np.unique(situation[positives] * num_attributes + wanted, return_inverse=True)
    # An item's earliest row tells all of it where rows count but once and in any situation.
    rows = np.arange(len(item)) if by == "popularity" or same_context else earliest
    row_group = _find(groups, situation[rows] * num_attributes + item_attribute[item[rows]])
    rows, row_group = rows[row_group >= 0], row_group[row_group >= 0]
    pool = _Pool(row_group, item[rows], time[rows], num_items, span, distinct=by == "uniform")
    until = time[positives] if candidates == "earlier" else np.full(len(positives), span - 1)
    start, end = pool.bounds(group, until)

    owner_key = _codes(log, (USER_ID,))
    if exclude == "moment":
        owner_key = owner_key * span + time
    owners, owner = np.unique(owner_key[positives], return_inverse=True)
    log_owner = _find(owners, owner_key)
    taken = np.unique((log_owner * num_items + item)[log_owner >= 0])

    # Positives that share owner, group and time share what is taken out of their pool.
    cell_key = _compact(owner * len(groups) + group) * span + until
    _, first, cell = np.unique(cell_key, return_index=True, return_inverse=True)
    taken_item = taken % num_items
    taken_key = taken // num_items * num_attributes + item_attribute[taken_item]
    order = np.argsort(taken_key, kind="stable")
    taken_key, taken_item = taken_key[order], taken_item[order]
    low = np.searchsorted(taken_key, owner[first] * num_attributes + wanted[first])
    lengths = np.searchsorted(taken_key, owner[first] * num_attributes + wanted[first], side="right") - low
    removed = np.zeros(len(first), "int64")
    for part in np.array_split(np.arange(len(first)), lengths.sum() // _PAIRS + 1):
        pair = np.repeat(part, lengths[part])
        within = np.arange(len(pair)) - np.repeat(np.cumsum(lengths[part]) - lengths[part], lengths[part])
        at = first[pair]
        counts = pool.count(group[at], taken_item[low[pair] + within], until[at])
        removed[part] = np.bincount(pair - part[0], counts, len(part)) if len(part) else 0
    allowed = end - start - removed[cell]

    drawn = np.full(len(positives) * rate, -1)
    left = np.flatnonzero(np.repeat(allowed > 0, rate))
    tries = 1
    while len(left):
        of = left // rate
        places = generator.integers(start[of][:, None], end[of][:, None], (len(left), tries))
        tried = pool.items[places]
        free = _find(taken, owner[of][:, None] * num_items + tried) < 0
        hit = free.any(axis=1)
        drawn[left[hit]] = tried[hit, free[hit].argmax(axis=1)]
        left = left[~hit]
        # Where most of a pool is taken, few draws count: the fewer positives are left, the more each tries.
        tries = min(4 * tries, _DRAWS // max(len(left), 1) + 1)

    def probability(items: np.ndarray, of: np.ndarray) -> np.ndarray:
        return pool.count(group[of], items, until[of]) / np.maximum(allowed[of], 1)

    rows = np.where(drawn >= 0, earliest[drawn], -1).reshape(-1, rate)
    every = np.arange(len(positives))
    drawn_probability = np.where(drawn >= 0, probability(np.maximum(drawn, 0), np.repeat(every, rate)), 0)
    # An item that is new in the pool counts as seen once, since the logarithm of 0 corrects nothing.
    own = np.maximum(probability(item[positives], every), 1 / np.maximum(allowed, 1))
    return Draws(rows, drawn_probability.reshape(-1, rate), np.minimum(own, 1))


class _Pool:
    """The rows whose items are candidates, in the order of group and time: those of a positive are one range of them.

    Args:
        group: int64 [n].
        item: int64 [n], below `num_items`.
        time: int64 [n], below `span`.
        num_items: more than any item.
        span: more than any time.
        distinct: whether to keep only the earliest row of each item in a group.
    """

    def __init__(
        self, group: np.ndarray, item: np.ndarray, time: np.ndarray, num_items: int, span: int, *, distinct: bool
    ) -> None:
        order = np.lexsort((time, group))
        if distinct:
            order = order[np.sort(np.unique((group * num_items + item)[order], return_index=True)[1])]
        group, time = group[order], time[order]
        self.items = item[order]
        self._num_items, self._span = num_items, span
        self._moments = group * span + time
        # A shelf holds the rows of one item in one group.
        self._shelves, shelf = np.unique(group * num_items + self.items, return_inverse=True)
        self._shelf_moments = np.sort(shelf * span + time)

    def bounds(self, group: np.ndarray, until: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 [m] twice, the range of `items` of `group` [m] before the times `until` [m]."""
        first = np.searchsorted(self._moments, group * self._span)
        return first, np.searchsorted(self._moments, group * self._span + until)

    def count(self, group: np.ndarray, item: np.ndarray, until: np.ndarray) -> np.ndarray:
        """int64 [m], how many rows of `item` [m] in `group` [m] come before the times `until` [m]."""
        shelf = _find(self._shelves, group * self._num_items + item)
        before = np.searchsorted(self._shelf_moments, shelf * self._span + until)
        return np.where(shelf >= 0, before - np.searchsorted(self._shelf_moments, shelf * self._span), 0)


def _find(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Position of each value among the ascending `keys`, or -1."""
    if not len(keys):
        return np.full(np.shape(values), -1)
    place = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    return np.where(keys[place] == values, place, -1)


def _compact(keys: np.ndarray) -> np.ndarray:
    """Integers from 0 that are equal exactly where the keys are."""
    return pd.factorize(keys)[0].astype("int64")


def _codes(log: Interactions, names: Sequence[str]) -> np.ndarray:
    """int64 [n], equal exactly where the log's rows agree in all the columns."""
    joint = np.zeros(len(log), "int64")
    for name in names:
        codes = _compact(id_numbers(log.columns[name]))
        joint = _compact(joint * (codes.max() + 1) + codes)
    return joint
