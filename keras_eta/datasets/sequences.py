"""Sequences of items by user, and leaving the last ones out: the protocol of next-item retrieval."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from keras_eta.columns import ITEM_ID, TIMESTAMP
from keras_eta.datasets.columns import USER_ID
from keras_eta.datasets.impressions import Impressions
from keras_eta.datasets.interactions import Interactions


class LeaveOneOut(NamedTuple):
    """Impressions with label 1, each the item that follows its history, which is all that the user did before.

    Attributes:
        train: every interaction from the user's second to the last but two.
        validation: the last but one of each user.
        test: the last of each user.
    """

    train: Impressions
    validation: Impressions
    test: Impressions


def load(path: str | os.PathLike[str]) -> Interactions:
    """Reads a file with one line per user: the user, then the items in the order of time, separated by spaces.

    The public data sets of sequential recommendation (Beauty, Sports, Toys of Amazon) come so. Users and items are
    strings; the timestamp of an interaction is its place in the line, from 0 on.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line has no items, or a user has two lines.
    """
    users: list[str] = []
    items: list[list[str]] = []
    for number, (user, *of_user) in _lines(Path(path)):
        if not of_user:
            raise ValueError(f"{path}, line {number}: user {user!r} has no items.")
        users.append(user)
        items.append(of_user)
    twice = pd.Index(users).duplicated()
    if twice.any():
        raise ValueError(f"{path}: user {users[twice.argmax()]!r} has more than one line.")
    lengths = [len(of_user) for of_user in items]
    return Interactions.from_columns(
        {
            USER_ID: np.repeat(np.array(users, object), lengths),
            ITEM_ID: np.array([item for of_user in items for item in of_user], object),
            TIMESTAMP: np.concatenate([np.arange(length) for length in lengths]),
        }
    )


def load_attributes(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Reads a JSON object of item -> list of attributes, as it comes with such files.

    Args:
        path: of the file.

    Returns:
        Columns `item_id` and `attributes`, both of strings, the latter lists of them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    attributes = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(attributes, dict) or not all(isinstance(values, list) for values in attributes.values()):
        raise ValueError(f"{path} must hold a JSON object of lists, one per item.")
    return pd.DataFrame(
        {ITEM_ID: list(attributes), "attributes": [list(map(str, values)) for values in attributes.values()]}
    )


def leave_one_out(log: Interactions) -> LeaveOneOut:
    """Splits each user's interactions: the last one to test, the last but one to validate, the others to train.

    The order is the log's: of one moment, that in which the rows came. Users with fewer than 3 interactions are in
    histories of nobody and in no part.

    Args:
        log: the interactions.

    Raises:
        ValueError: if no user has 3.
    """
    users = pd.Series(np.asarray(log.columns[USER_ID]))
    place = users.groupby(users).cumcount().to_numpy()
    number = users.groupby(users).transform("size").to_numpy()
    if number.max() < 3:
        raise ValueError(f"A user must have 3 interactions for a part each. Received: at most {number.max()}")
    # Places for moments: what came before is in the history, whatever the clock says.
    placed = dataclasses.replace(log, columns={**log.columns, TIMESTAMP: place.astype("int64")})
    impressions = Impressions.from_interactions(placed, label=lambda log: np.ones(len(log), "int64"), min_history=0)
    back = number - 1 - place
    enough = number >= 3
    parts = (enough & (back >= 2) & (place > 0), enough & (back == 1), enough & (back == 0))
    return LeaveOneOut(*(impressions[np.flatnonzero(rows)] for rows in parts))


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.split()
