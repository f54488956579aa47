"""Tasks that a ranker learns beside the click."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_eta.distribution import gather_over_replicas
from keras_eta.features import Features, Positives
from keras_eta.interest.base import Columns
from keras_eta.layers.feature_lookup import FeatureLookup
from keras_eta.models.counters import add_counter, draw
from keras_eta.validation import check_integers_from_zero, check_positive_integers, is_number


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class RetrievalTask(tf.keras.layers.Layer):
    """Makes neighbours of items that the same users like: an in-batch sampled softmax on the embeddings of items.

    For each row with a positive label one behaviour of its user is drawn, uniformly, from the positive ones among the
    `recent` last of the history (`Features.positives` says which are positive). The row's candidate c must find its own
    user's behaviour b among those drawn for all such rows of the batch:

        loss = -log softmax_b (cos(c, b) / temperature - log Q(b))

    over the cosines of embeddings, those of `Features.hashed` side by side. Q(b), how often the item was drawn in
    training so far, corrects for items that are many rows' behaviours because they are popular. Other rows' behaviours
    that are the same item as the row's own are left out, and so are rows of sample weight 0. The loss is the mean over
    the rows that have such a behaviour, by their sample weights; under `tf.distribute` over those of all replicas,
    whose behaviours compete with each other.

    A click loss alone orders items by their quality; with this one, those near each other are to one taste, and search
    by distance finds them.

    Args:
        weight: of the task's loss beside the click loss.
        temperature: what cosines are divided by.
        recent: number of most recent behaviours to draw from.
        seed: of the draws, which depend on it and the number of steps alone: a training that goes on from a checkpoint
            draws as one that was never interrupted.
        name: of the layer and its variables.

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019,
        Sections 3 and 4.1.
    """

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 0.1,
        recent: int = 20,
        seed: int = 0,
        name: str = "retrieval_task",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        check_positive_integers(recent=recent)
        check_integers_from_zero(seed=seed)
        for name, value in (("weight", weight), ("temperature", temperature)):
            if not (is_number(value) and value > 0):
                raise ValueError(f"`{name}` must be a positive number. Received: {name}={value!r}")
        self.weight = weight
        self.temperature = temperature
        self.recent = recent
        self.seed = seed

    def bind(self, features: Features, lookup: FeatureLookup | None) -> None:
        """Takes note of the columns; called once, when the ranker is constructed.

        Args:
            features: the columns, with known vocabulary sizes.
            lookup: the ranker's lookup of raw ids, which knows the rows of the values of `Features.positives`.

        Raises:
            ValueError: if `Features.positives` has values and there is no lookup.
        """
        self._searched = features.hashed
        self._item = features.item_id
        self._positives = features.positives
        if self._positives is not None and self._positives.values and lookup is None:
            raise ValueError(
                "A retrieval task by `Features.positives` with `values` needs the ranker's `lookup`, which knows "
                f"their rows. Received: positives={self._positives}, lookup=None"
            )
        attributes = {feature.name: feature for feature in features.behaviour_attributes}
        if self._positives is not None and self._positives.values:
            self._num_reserved = attributes[self._positives.attribute].num_oov_indices
        # Asked at the first step: a model that is read from a file gets its vocabularies last.
        self._encode: Any = None if lookup is None else lookup.encode

    def build(self, input_shape: Any = None) -> None:
        self.drawn = add_counter(self, "drawn", [self._item.num_indices])
        self.steps = add_counter(self, "steps")
        super().build(input_shape)

    def row_state(self) -> dict[str, list[tf.Variable]]:
        """How often each item was drawn, by row of its vocabulary; a warm start carries it by id."""
        return {self._item.name: [self.drawn]}

    def call(
        self, candidate: Columns, history: Columns, labels: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> tf.Tensor:
        """The task's loss, its weight included.

        Args:
            candidate: columns [N, 1].
            history: columns [N, L], most recent first.
            labels: [N], positive where above 0.
            sample_weight: float32 [N]; `None`: all rows count alike.

        Returns:
            float32: this replica's part of the mean over all rows.

        Raises:
            ValueError: if the vocabulary has none of the values of `Features.positives`.
        """
        positions, found = self._draw(history)
        row_weight = tf.cast(found & (tf.cast(tf.reshape(labels, [-1]), tf.float32) > 0), tf.float32)
        if sample_weight is not None:
            row_weight *= tf.cast(tf.reshape(sample_weight, [-1]), tf.float32)
        behaviour = history.take(positions[:, tf.newaxis], found[:, tf.newaxis])
        query = self._embedding(candidate)
        own = self._embedding(behaviour)
        items = behaviour.ids[self._item.name][:, 0]
        all_behaviours, all_items, all_weights = (gather_over_replicas(x) for x in (own, items, row_weight))
        self.drawn.scatter_add(tf.IndexedSlices(tf.cast(all_weights > 0, tf.int64), all_items))

        # A row's own behaviour stands in front of the others'.
        own_score = tf.reduce_sum(query * own, axis=-1) / self.temperature - self._log_drawn(items)
        scores = tf.linalg.matmul(query, all_behaviours, transpose_b=True) / self.temperature
        others = (all_weights > 0) & tf.not_equal(items[:, tf.newaxis], all_items)
        scores = tf.where(others, scores - self._log_drawn(all_items), scores.dtype.min)
        row_loss = tf.reduce_logsumexp(tf.concat([own_score[:, tf.newaxis], scores], axis=1), axis=1) - own_score
        total = tf.reduce_sum(all_weights)
        return self.weight * tf.math.divide_no_nan(tf.reduce_sum(row_weight * row_loss), total)

    def _draw(self, history: Columns) -> tuple[tf.Tensor, tf.Tensor]:
        """A position [N] among the last positive behaviours, and whether there is one [N]. Counts a step."""
        recent = history.first(self.recent)
        eligible = recent.mask
        if self._positives is not None:
            values = recent.ids[self._positives.attribute]
            if self._positives.minimum is not None:
                eligible &= tf.cast(values, tf.float32) >= self._positives.minimum
            else:
                rows = tf.constant(self._positive_rows(self._positives), values.dtype)
                eligible &= tf.reduce_any(tf.equal(values[..., tf.newaxis], rows), axis=-1)
        chance = draw(tf.shape(eligible), self.seed, self.steps.read_value())
        self.steps.assign_add(1)
        chance = tf.where(eligible, chance, -1.0)
        return tf.argmax(chance, axis=1, output_type=tf.int32), tf.reduce_any(eligible, axis=1)

    def _positive_rows(self, positives: Positives) -> list[int]:
        """Rows of the positive values; those that the vocabulary lacks share theirs with other ids and have none."""
        with tf.init_scope():
            rows = self._encode(positives.attribute, list(positives.values))
        known: list[int] = rows[rows > self._num_reserved].tolist()
        if not known:
            raise ValueError(
                f"`Features.positives` must have a value of the vocabulary of {positives.attribute!r}. "
                f"Received: {positives}"
            )
        return known

    def _embedding(self, columns: Columns) -> tf.Tensor:
        vectors = [tf.cast(columns.by_name[name], tf.float32)[:, 0] for name in self._searched]
        return tf.math.l2_normalize(tf.concat(vectors, axis=-1), axis=-1)

    def _log_drawn(self, items: tf.Tensor) -> tf.Tensor:
        """The logarithm of how often items were drawn so far, this batch included."""
        return tf.math.log(tf.cast(tf.maximum(tf.gather(self.drawn, items), 1), tf.float32))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "weight": self.weight,
            "temperature": self.temperature,
            "recent": self.recent,
            "seed": self.seed,
        }
