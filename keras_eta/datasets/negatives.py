"""Negatives for logs that hold positives only: items that a user could have taken and did not.

A sample of negatives moves the log-odds that a model learns. `corrected_logits` moves them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

from keras_eta.columns import TIMESTAMP
from keras_eta.datasets.columns import ITEM_ID, REQUIRED_COLUMNS, USER_ID, id_numbers
from keras_eta.datasets.impressions import Impressions
from keras_eta.datasets.interactions import Interactions
from keras_eta.validation import check_positive_integers

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


def sample_negatives(
    log: Interactions,
    rate: int = 1,
    *,
    item_attributes: Sequence[str] = (),
    context: Sequence[str] = (),
    same: Sequence[str] = (),
    by: Weighting = "uniform",
    candidates: Period = "earlier",
    exclude: Exclusion = "moment",
    positives: np.ndarray | None = None,
    min_history: int = 0,
    seed: int = 0,
) -> Impressions:
    """Take interactions of a log as positives, and draw negatives for each.

    The candidates of a positive are the items of the log's rows that agree with it in the columns `same`: with an
    attribute of items, those of the same category; with columns of the context, those that were sold in the same store
    in the same week. A row counts as its item's attributes of its earliest row. Each negative is an independent draw
    from them, so a positive may have the same one twice.

    A negative is never an item that its user took at that very moment. With the defaults nothing of it comes from the
    future: a candidate was seen before the positive, and its popularity is the number of its rows by then. With
    `candidates="all"` an item may be drawn before it first appears, and popularity counts what is yet to come; that is
    right where the rows say what was on offer, as sales of a store and week do, and elsewhere tells a model of a new
    item that it is a positive. `exclude="user"` looks ahead too: what a user takes later is no negative now.

    Positives without any candidate are left out and counted in a printed line.

    Args:
        log: the interactions, n rows; also the behaviours that make up the histories.
        rate: negatives per positive.
        item_attributes: columns that describe the item; a negative has its own.
        context: columns that describe the user or the moment; a negative has those of its positive.
        same: columns, of either kind, in which the candidates agree with the positive. Empty: any item.
        by: "uniform", every candidate alike, or "popularity", in proportion to its rows.
        candidates: "earlier", rows strictly before the positive, or "all" rows.
        exclude: what a user took at the "moment" of the positive, or all that the "user" ever took.
        positives: rows of the log, as indices or a bool mask [n]. Default: all.
        min_history: positives with fewer earlier behaviours are left out, and the number of impressions printed.
        seed: of the draws.

    Returns:
        Impressions: a positive (label 1), its negatives (label 0), the next positive, ... Their columns are `user_id`,
        `item_id`, `timestamp`, those of `item_attributes` and `context`, and `sampling_probability`, float32: the
        probability of one draw for this positive to give this item, for `corrected_logits`. Columns of the log that are
        not named are left out, so no model can read what is known of positives alone.

    Raises:
        ValueError: if an argument is out of its range, a column is missing, or no positive has a candidate.

    Example:
        >>> impressions = sample_negatives(
        ...     log, rate=4, item_attributes=("category",), same=("category",), by="popularity"
        ... )
    """
    check_positive_integers(rate=rate)
    check_choices(by=by, candidates=candidates, exclude=exclude)
    _check_names(log, item_attributes, context, same)
    rows = _checked_rows(log, positives)
    draws = draw_negatives(
        log,
        rows,
        rate,
        same_attributes=[name for name in same if name in item_attributes],
        same_context=[name for name in same if name in context],
        by=by,
        candidates=candidates,
        exclude=exclude,
        generator=np.random.default_rng(seed),
    )
    found = draws.rows[:, 0] >= 0
    if not found.any():
        raise ValueError(f"None of the {len(rows):,} positives has a candidate to draw a negative from.")
    print(
        f"Negatives: {rate} for each of {found.sum():,} positives. Positives left out, because they have no candidate: "
        f"{(~found).sum():,}."
    )
    rows, draws = rows[found], Draws(*(column[found] for column in draws))
    candidate = np.column_stack([rows, draws.rows]).ravel()
    moment = np.repeat(rows, rate + 1)
    probability = np.column_stack([draws.own_probability, draws.probability]).ravel()
    columns = {name: log.columns[name][moment] for name in (USER_ID, TIMESTAMP, *context)}
    columns |= {name: log.columns[name][candidate] for name in (ITEM_ID, *item_attributes)}
    columns[SAMPLING_PROBABILITY] = probability.astype("float32")
    label = np.tile(np.append(1, np.zeros(rate, "int64")), len(rows))
    return Impressions.from_columns(log, columns, label, min_history=min_history)


def corrected_logits(logits: np.ndarray, sampling_probability: np.ndarray, rate: int = 1) -> np.ndarray:
    """Log-odds among all candidates, from those of a model that was trained on sampled negatives.

    Of a candidate that a draw gives with probability q, `rate` draws keep rate * q rows in place of one, so the sampled
    odds are the true ones divided by rate * q: logit + log(rate * q). With q the same for all this is the correction of
    He et al., Practical Lessons from Predicting Clicks on Ads at Facebook, 2014, section 6.3.

    It is exact for uniform draws. For draws by popularity q is that of one positive's draw, whose own item was left
    out; another positive leaves another item out, which matters where one item is a large part of all rows.

    Args:
        logits: floats [n], of the model.
        sampling_probability: floats [n] in (0, 1], the impressions' column of that name.
        rate: negatives per positive.

    Returns:
        float64 [n]. Their sigmoid is the probability that the user takes this one among all candidates.

    Raises:
        ValueError: if the shapes differ, a probability is not in (0, 1], or `rate` is not positive.
    """
    check_positive_integers(rate=rate)
    logits, probability = np.asarray(logits, "float64"), np.asarray(sampling_probability, "float64")
    if logits.shape != probability.shape:
        raise ValueError(
            f"`logits` and `sampling_probability` must have one shape. Received: {logits.shape}, {probability.shape}"
        )
    wrong = ~((probability > 0) & (probability <= 1))
    if wrong.any():
        raise ValueError(f"`sampling_probability` must lie in (0, 1]. Received: {probability[wrong][:5].tolist()}")
    return logits + np.log(rate * probability)


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


def _check_names(
    log: Interactions, item_attributes: Sequence[str], context: Sequence[str], same: Sequence[str]
) -> None:
    for argument, names in (("item_attributes", item_attributes), ("context", context), ("same", same)):
        if isinstance(names, str):
            raise ValueError(f"`{argument}` must be a sequence of names. Received: {argument}={names!r}")
    named = [*item_attributes, *context]
    free = [name for name in log.columns if name not in (*REQUIRED_COLUMNS, SAMPLING_PROBABILITY)]
    wrong = [name for name in named if name not in free]
    if wrong or len(set(named)) < len(named):
        raise ValueError(
            f"`item_attributes` and `context` must name different columns among {free}. Received: "
            f"item_attributes={list(item_attributes)}, context={list(context)}"
        )
    if not set(same) <= set(named):
        raise ValueError(
            f"`same` must name columns of `item_attributes` and `context`, which are {named}. "
            f"Received: same={list(same)}"
        )


def _checked_rows(log: Interactions, positives: np.ndarray | None) -> np.ndarray:
    if positives is None:
        return np.arange(len(log))
    rows = np.asarray(positives)
    if rows.dtype == bool and rows.shape == (len(log),):
        rows = np.flatnonzero(rows)
    integers = np.issubdtype(rows.dtype, np.integer) and rows.ndim == 1
    if not integers or not len(rows) or rows.min() < 0 or rows.max() >= len(log):
        raise ValueError(
            f"`positives` must be indices of the log's {len(log):,} rows, or a bool mask of them, at least one. "
            f"Received: {rows.dtype} of shape {list(rows.shape)}"
        )
    return rows
