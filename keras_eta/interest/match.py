"""Counts of the behaviours that share a value with the candidate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_eta.columns import HISTORY_AGE
from keras_eta.features import Features
from keras_eta.interest.base import Columns, Interest, InterestUnit, Tables
from keras_eta.ops import matches


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class MatchInterest(InterestUnit):
    """Counts the behaviours that have the candidate's item, its category, and so on, and finds the latest of them.

    Where people come back to an item, how often they took it is what tells most, and no attention gives it: softmax
    averages. For each feature the interest vector holds log(1 + n) of the n behaviours with the candidate's value,
    their share of the history, and 1 / (1 + p) of the latest one's position p (0: the most recent behaviour); with
    `features.age` the embedding of its age as well. All are 0 where n is 0. A value out of the vocabulary matches none.
    `explain` gives the numbers n, e.g. as `match_item_id_count`.

    Args:
        matched: names of the item's features to compare, ids with one value. `None`: all of these.
        name: of the unit, unique in a ranker.
        **kwargs: as `InterestUnit`.

    Raises:
        ValueError: if the item has no such feature.
    """

    def __init__(self, matched: Sequence[str] | None = None, name: str = "match", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.matched = None if matched is None else tuple(matched)

    def bind(self, features: Features, tables: Tables) -> None:
        single = {f.name: f for f in features.item_features if f.is_id and not f.max_values}
        names = tuple(single) if self.matched is None else self.matched
        if not names or not set(names) <= set(single):
            raise ValueError(
                f"Interest unit {self.name!r} compares features of the item that are ids with one value, "
                f"{sorted(single)}. Received: matched={self.matched!r}"
            )
        self._features = [single[name] for name in names]
        self._has_age = features.age is not None

    def call(self, candidate: Columns, history: Columns, training: bool = False, jit_compile: bool = False) -> Interest:
        length = tf.reduce_sum(tf.cast(history.mask, tf.float32), axis=-1)[:, tf.newaxis]
        parts, counts = [], {}
        for feature in self._features:
            wanted = candidate.ids[feature.name]
            count, latest = matches(wanted, history.ids[feature.name], history.mask)
            count = tf.where(wanted > feature.num_oov_indices, count, 0)
            found, number = tf.cast(count > 0, tf.float32), tf.cast(count, tf.float32)
            nearness = found / (1.0 + tf.cast(latest, tf.float32))
            numbers = [tf.math.log1p(number), tf.math.divide_no_nan(number, length), nearness]
            parts.append(tf.cast(tf.stack(numbers, axis=-1), self.compute_dtype))
            if self._has_age:
                age = history.take(latest, count > 0).by_name[HISTORY_AGE]
                parts.append(tf.cast(age * tf.cast(found, age.dtype)[..., tf.newaxis], self.compute_dtype))
            counts[feature.name] = count
        return Interest(tf.concat(parts, axis=-1), matches=counts)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "matched": self.matched}
