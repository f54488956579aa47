"""A second search of the long history, by what the user did last in place of the candidate, as MIRRN has it."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_eta.interest import Columns, ETAInterest, Retrieved


class RecentQueryInterest(ETAInterest):
    """Retrieves the K behaviours nearest to the mean of the last ones, and attends to them from the candidate.

    Args:
        recent: behaviours in the mean.
        **kwargs: as `ETAInterest`.

    Reference:
        MIRRN, "Multi-granularity Interest Retrieval and Refinement Network", arXiv 2411.15005: its local-aware query.
    """

    def __init__(self, recent: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recent = recent

    def search(self, candidate: Columns, history: Columns, jit_compile: bool) -> Retrieved:
        last = history.first(self.recent)
        weights = tf.cast(last.mask, tf.float32)[..., tf.newaxis]
        total = tf.maximum(tf.reduce_sum(weights, axis=1, keepdims=True), 1.0)
        means = {name: tf.reduce_sum(last.by_name[name] * weights, 1, keepdims=True) / total for name in self.tables}
        query = tf.concat([table.hash(means[name]) for name, table in self.tables.items()], axis=-1)
        candidates = tf.shape(next(iter(candidate.ids.values())))[1]
        query = tf.repeat(query, candidates, axis=1)
        found = self.hamming_top_k(query, self._fingerprints(history.ids), history.mask, False, jit_compile)
        return Retrieved(found.positions, found.mask, found.distances)

    def similarity(
        self, candidate: Columns, behaviours: Columns, retrieved: Retrieved, training: bool
    ) -> tf.Tensor | None:
        # Not the candidate's: no gradient goes to the planes by it.
        return super().similarity(candidate, behaviours, retrieved, training=False)
