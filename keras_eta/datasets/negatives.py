"""Negatives for logs that hold positives only: items that a user could have taken and did not.

A sample of negatives moves the log-odds that a model learns. `corrected_logits` moves them back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_eta.columns import ITEM_ID, TIMESTAMP
from keras_eta.datasets.columns import REQUIRED_COLUMNS, USER_ID
from keras_eta.datasets.impressions import Impressions
from keras_eta.datasets.interactions import Interactions
from keras_eta.datasets.negative_draws import (
    SAMPLING_PROBABILITY,
    Draws,
    Exclusion,
    Period,
    Weighting,
    check_choices,
    draw_negatives,
)
from keras_eta.validation import check_positive_integers


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
