"""The data sets of the benchmark."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from keras_eta.columns import ITEM_ID
from keras_eta.content import content_vectors
from keras_eta.datasets import movielens, sequences
from keras_eta.datasets.sequences import LeaveOneOut


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A data set as all contestants see it.

    Args:
        name: of the data set.
        parts: every user's last interaction to test, the last but one to validate.
        item_ids: all items [items], which are ranked.
        content: float32 [items, dim], their content vectors.
    """

    name: str
    parts: LeaveOneOut
    item_ids: np.ndarray
    content: np.ndarray


def load_movielens(path: str | None) -> Protocol:
    """MovieLens-1M: every rating is an interaction; content is title, decade and genres."""
    data = movielens.load(path)
    log = data.interactions
    items = movielens.item_table(data)
    items = items[items[ITEM_ID].isin(log[ITEM_ID])]
    vectors = content_vectors(items, text=("title",), categories=("decade", "genres"))
    return Protocol("movielens", sequences.leave_one_out(log), items[ITEM_ID].to_numpy(), vectors)


def load_sequences(path: str | None) -> Protocol:
    """A file of one line per user, with `<name>_item2attributes.json` beside it for the content."""
    if path is None:
        raise ValueError("sequences needs --data: the path of a file with one line per user, e.g. Beauty.txt.")
    file = Path(path)
    log = sequences.load(file)
    items = sequences.load_attributes(file.with_name(f"{file.stem}_item2attributes.json"))
    items = items[items[ITEM_ID].isin(np.unique(log[ITEM_ID]))]
    lacking = len(np.unique(log[ITEM_ID])) - len(items)
    if lacking:
        raise ValueError(f"{lacking:,} items of {file} have no attributes.")
    vectors = content_vectors(items, categories=("attributes",))
    return Protocol(file.stem.lower(), sequences.leave_one_out(log), items[ITEM_ID].to_numpy(object), vectors)


LOADERS: dict[str, Callable[[str | None], Protocol]] = {"movielens": load_movielens, "sequences": load_sequences}
