"""SIM's hard search: behaviours of the candidate's category."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_eta.features import Features
from keras_eta.interest.base import Columns, Retrieved, Tables
from keras_eta.interest.top_k import TopKUnit
from keras_eta.ops import inverted_index


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class SIMHard(TopKUnit):
    """Attends to the K most recent behaviours of the candidate's category.

    What it attends to includes the age of a behaviour where `features.age` is set, as in the paper. Categories out of
    the vocabulary are equal to none.

    Args:
        top_k: K, behaviours to retrieve.
        category: name of the item attribute that must be equal, an id with one value. `None`: the first such attribute.
        **kwargs: as `AttentionUnit`.

    Raises:
        ValueError: if an argument is out of its range, or the item has no such attribute.

    Reference:
        SIM, arXiv 2006.05639, Section 3.2, Eq. (2) (hard search) and Section 3.3 (time intervals).
    """

    def __init__(self, top_k: int = 48, category: str | None = None, **kwargs: Any) -> None:
        super().__init__(top_k, **kwargs)
        self.category = category

    def bind(self, features: Features, tables: Tables) -> None:
        super().bind(features, tables)
        single = [feature for feature in features.item_attributes if feature.is_id and not feature.max_values]
        attributes = {feature.name: feature for feature in single}
        if not attributes or self.category not in (None, *attributes):
            raise ValueError(
                f"Interest unit {self.name!r} needs a `category` among the item attributes that are ids with one "
                f"value, {sorted(attributes)}. Received: category={self.category!r}"
            )
        self._feature = attributes[self.category or next(iter(attributes))]

    def search(self, candidate: Columns, history: Columns, jit_compile: bool) -> Retrieved:
        wanted, present = candidate.ids[self._feature.name], history.ids[self._feature.name]
        known = wanted > self._feature.num_oov_indices
        if wanted.shape[1] == 1:
            return self._search_by_counting(wanted, present, known[..., tf.newaxis] & history.mask[:, tf.newaxis, :])
        order, first, end = inverted_index(wanted, present, history.mask)
        index = first[..., tf.newaxis] + tf.range(self.top_k)
        found = (index < end[..., tf.newaxis]) & known[..., tf.newaxis]
        return Retrieved(tf.gather(order, tf.where(found, index, 0), batch_dims=1) * tf.cast(found, tf.int32), found)

    def _search_by_counting(self, wanted: tf.Tensor, present: tf.Tensor, mask: tf.Tensor) -> Retrieved:
        """For one candidate per row, where sorting its history would not pay."""
        same = tf.equal(wanted[..., tf.newaxis], present[:, tf.newaxis, :]) & mask
        # The k-th behaviour of the category is the first position up to which there are k.
        counts = tf.cumsum(tf.cast(same, tf.int32), axis=-1)
        rows = tf.shape(counts)[0]
        positions = tf.searchsorted(counts, tf.broadcast_to(tf.range(1, self.top_k + 1), [rows, 1, self.top_k]))
        found = positions < tf.shape(counts)[2]
        return Retrieved(tf.where(found, positions, 0), found)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "category": self.category}
