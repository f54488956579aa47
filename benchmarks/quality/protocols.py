"""The data sets of the benchmark, each in three parts by time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

import keras_eta
from benchmarks.quality import own_logs
from keras_eta import Feature, Features
from keras_eta.datasets import Interactions, complete_journey, movielens, sample_negatives, taobao
from keras_eta.datasets.columns import USER_ID
from keras_eta.datasets.impressions import Impressions, temporal_split

if TYPE_CHECKING:
    import pandas as pd

    from keras_eta import FeatureLookup


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A data set as all contestants see it.

    Args:
        name: of the data set.
        train: impressions of the first part.
        validation: of the second, by which training stops.
        test: of the last, which nothing is tuned on.
        lookup: vocabularies of the training part.
        category: the item attribute that SIM's hard search goes by.
        long_history: earlier behaviours from which a history counts as long.
    """

    name: str
    train: Impressions
    validation: Impressions
    test: Impressions
    lookup: FeatureLookup
    category: str
    long_history: int

    @property
    def features(self) -> Features:
        """The columns, with known vocabulary sizes."""
        return self.lookup.features

    @property
    def new_users(self) -> np.ndarray:
        """bool [test], impressions of users whom the training part lacks."""
        known = np.unique(np.asarray(self.train.columns[USER_ID]))
        return ~np.isin(np.asarray(self.test.columns[USER_ID]), known)

    def with_user_id(self) -> Protocol:
        """The data set with the user's id among the features."""
        dtype = "int64" if np.issubdtype(np.asarray(self.train.columns[USER_ID]).dtype, np.integer) else "string"
        features = dataclasses.replace(self.features, user=(Feature(USER_ID, dtype),))
        return dataclasses.replace(self, lookup=adapted(features, self.train))


def load_movielens(path: str | None, max_history_length: int, max_rows: int | None) -> Protocol:
    """MovieLens-1M: every rating is an impression, 4 and 5 are positive; behaviours carry their rating."""
    return movielens_protocol(movielens.load(path), max_history_length, max_rows)


def movielens_protocol(
    data: movielens.MovieLens, max_history_length: int = 512, max_rows: int | None = None
) -> Protocol:
    """As `load_movielens`, of data that is loaded."""
    parts = temporal_split(movielens.impressions(data))
    features = movielens.features(max_history_length=max_history_length)
    return _protocol("movielens", parts, features, "genre", 200, max_rows)


def load_complete_journey(path: str | None, max_history_length: int, max_rows: int | None) -> Protocol:
    """Complete Journey: a quarter of the purchases, one negative of the same category, store and week each."""
    data = complete_journey.load(path)
    features = complete_journey.features(max_history_length=max_history_length)
    parts = temporal_split(complete_journey.impressions(data, share=0.25))
    return _protocol("complete_journey", parts, features, "category", 1_000, max_rows)


def load_taobao(path: str | None, max_history_length: int, max_rows: int | None) -> Protocol:
    """Taobao's log, by the protocol of the papers."""
    if path is None:
        raise ValueError("taobao needs --data: the path of UserBehavior.csv, which can't be fetched.")
    impressions = taobao.paper_impressions(taobao.load(path))
    features = taobao.features(max_history_length=max_history_length)
    parts = temporal_split(impressions, timestamps=impressions.timestamps)
    return _protocol("taobao", parts, features, "category_id", 200, max_rows)


def load_purchases(path: str | None, max_history_length: int, max_rows: int | None) -> Protocol:
    """All purchases of 300 households of Complete Journey, one negative each by the library's defaults."""
    features = Features(
        item_id=Feature("item_id"),
        item_attributes=(Feature("category", "string", 16),),
        max_history_length=max_history_length,
    )
    return _own_log("purchases", own_logs.purchases(path), features, "category", max_rows)


def load_tastes(path: str | None, max_history_length: int, max_rows: int | None) -> Protocol:
    """A synthetic log in Taobao's layout whose users like some categories and come back to items, likewise."""
    return _synthetic("tastes", own_logs.TASTES, path, max_history_length, max_rows)


def load_repeats(path: str | None, max_history_length: int, max_rows: int | None) -> Protocol:
    """The same of users who like nothing in particular."""
    return _synthetic("repeats", 0, path, max_history_length, max_rows)


def _synthetic(name: str, tastes: int, path: str | None, max_history_length: int, max_rows: int | None) -> Protocol:
    if path is not None:
        raise ValueError(f"{name} makes its own log and reads none. Received: --data {path}")
    log = own_logs.repeats(tastes=tastes)
    return _own_log(name, log, taobao.features(32, max_history_length), "category_id", max_rows)


def _own_log(name: str, frame: pd.DataFrame, features: Features, category: str, max_rows: int | None) -> Protocol:
    log = Interactions.from_frame(frame)
    parts = temporal_split(sample_negatives(log, item_attributes=(category,), min_history=5))
    return _protocol(name, parts, features, category, 200, max_rows)


LOADERS: dict[str, tuple[Callable[[str | None, int, int | None], Protocol], int]] = {
    "movielens": (load_movielens, 512),
    "complete_journey": (load_complete_journey, 2_048),
    "taobao": (load_taobao, 512),
    "purchases": (load_purchases, 512),
    "tastes": (load_tastes, 512),
    "repeats": (load_repeats, 512),
}
"""Of each data set, its loader and the history that it is read with by default."""


def _protocol(
    name: str,
    parts: tuple[Impressions, Impressions, Impressions],
    features: Features,
    category: str,
    long_history: int,
    max_rows: int | None,
) -> Protocol:
    if max_rows is not None:
        parts = tuple(part.sample(min(max_rows, len(part))) for part in parts)  # type: ignore[assignment]
    return Protocol(name, *parts, lookup=adapted(features, parts[0]), category=category, long_history=long_history)


def adapted(features: Features, train: Impressions) -> FeatureLookup:
    """A lookup of the ids of the training period.

    Args:
        features: the columns.
        train: impressions of the training part.
    """
    lookup = keras_eta.FeatureLookup(features)
    lookup.adapt(train.past_columns())
    return lookup
