"""The data sets of the benchmark, and the ways to part them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from keras_eta.columns import ITEM_ID
from keras_eta.content import content_vectors
from keras_eta.datasets import Interactions, movielens, sequences
from keras_eta.datasets.impressions import Impressions, temporal_split
from keras_eta.datasets.sequences import LeaveOneOut

# Of the temporal protocol: the share of items that training must not see, and the most impressions that are judged.
COLD_SHARE, MAX_VALIDATION, MAX_TEST = 0.05, 5_000, 10_000


@dataclasses.dataclass(frozen=True, eq=False)
class Protocol:
    """A data set as all contestants see it.

    Args:
        name: of the data set.
        parts: training, validation and test, all of label 1.
        item_ids: all items [items], which are ranked.
        content: float32 [items, dim], their content vectors.
    """

    name: str
    parts: LeaveOneOut
    item_ids: np.ndarray
    content: np.ndarray

    def places(self, items: np.ndarray) -> np.ndarray:
        """The places int64 [n] of items among `item_ids`."""
        return pd.Index(self.item_ids).get_indexer(np.asarray(items))

    @property
    def cold(self) -> np.ndarray:
        """Bool [test], whether an item of the test part is none that training had to find."""
        return np.isin(self.places(self.parts.test.columns[ITEM_ID]), self.unseen_places)

    @property
    def unseen_places(self) -> np.ndarray:
        """The places [n] of the items that training never had to find."""
        return np.setdiff1d(np.arange(len(self.item_ids)), self.places(self.parts.train.columns[ITEM_ID]))


def temporal(log: Interactions) -> LeaveOneOut:
    """Trains on the first 80 % of a log in time, and judges on the last 10 %: each interaction there is a row to find.

    Few items are new in so short a time. So a share of all items, drawn once and for all, is kept out of the training
    and validation parts, histories included, as if it appeared in the test period only.

    Args:
        log: the interactions.
    """
    items = np.unique(log[ITEM_ID])
    draws = np.random.default_rng(0)
    held_out = draws.choice(items, round(COLD_SHARE * len(items)), replace=False)
    known = ~pd.Series(np.asarray(log[ITEM_ID])).isin(held_out).to_numpy()
    past = Interactions.from_columns({name: column[known] for name, column in log.columns.items()})
    # The parts end at the same moments, though their logs differ.
    train, validation, _ = temporal_split(_impressions(past), timestamps=log.timestamps)
    *_, test = temporal_split(_impressions(log))
    return LeaveOneOut(
        train,
        validation.sample(min(MAX_VALIDATION, len(validation))),
        test.sample(min(MAX_TEST, len(test))),
    )


def _impressions(log: Interactions) -> Impressions:
    return Impressions.from_interactions(log, label=lambda log: np.ones(len(log), "int64"), min_history=1)


PROTOCOLS: dict[str, Callable[[Interactions], LeaveOneOut]] = {
    "leave-one-out": sequences.leave_one_out,
    "temporal": temporal,
}


def load_movielens(path: str | None, protocol: str) -> Protocol:
    """MovieLens-1M: every rating is an interaction."""
    films = movielens.load(path)
    return Protocol("movielens", PROTOCOLS[protocol](films.interactions), *film_content(films))


def film_content(films: movielens.MovieLens) -> tuple[np.ndarray, np.ndarray]:
    """The ids [items] of all rated films, and float32 [items, dim] vectors of title, decade and genres."""
    items = movielens.item_table(films)
    items = items[items[ITEM_ID].isin(films.interactions[ITEM_ID])]
    return items[ITEM_ID].to_numpy(), content_vectors(items, text=("title",), categories=("decade", "genres"))


def load_sequences(path: str | None, protocol: str) -> Protocol:
    """A file of one line per user, with `<name>_item2attributes.json` beside it for the content."""
    if path is None:
        raise ValueError("sequences needs --data: the path of a file with one line per user, e.g. Beauty.txt.")
    if protocol != "leave-one-out":
        raise ValueError(f"Lines of items have no times, which the {protocol} protocol needs.")
    file = Path(path)
    log = sequences.load(file)
    items = sequences.load_attributes(file.with_name(f"{file.stem}_item2attributes.json"))
    items = items[items[ITEM_ID].isin(np.unique(log[ITEM_ID]))]
    lacking = len(np.unique(log[ITEM_ID])) - len(items)
    if lacking:
        raise ValueError(f"{lacking:,} items of {file} have no attributes.")
    vectors = content_vectors(items, categories=("attributes",))
    return Protocol(file.stem.lower(), sequences.leave_one_out(log), items[ITEM_ID].to_numpy(object), vectors)


LOADERS: dict[str, Callable[[str | None, str], Protocol]] = {"movielens": load_movielens, "sequences": load_sequences}
