"""Tasks that a ranker learns beside the click."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_eta.distribution import gather_over_replicas, sum_over_replicas
from keras_eta.features import Features
from keras_eta.interest.base import Columns
from keras_eta.layers.feature_lookup import FeatureLookup
from keras_eta.validation import check_positive_integers, is_number


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class RetrievalTask(tf.keras.layers.Layer):
    """Makes neighbours of items that the same users like: an in-batch sampled softmax on the embeddings of items.

    For each row with a positive label one behaviour of its user is drawn, uniformly, from the positive ones among the
    `recent` last of the history (`Features.positives` says which are positive). The row's candidate c must find its own
    user's behaviour b among those of all rows of the batch:

        loss = -log softmax_b (cos(c, b) / temperature - log Q(b))

    over the cosines of embeddings, those of `Features.hashed` side by side. Q(b), how often the item was drawn in
    training so far, corrects for items that are many rows' behaviours because they are popular. Other rows' behaviours
    that are the same item as the row's own are left out. The loss is the mean over the rows that have such a behaviour,
    by their sample weights; under `tf.distribute` over those of all replicas, whose behaviours compete with each other.

    A click loss alone orders items by their quality; with this one, those near each other are to one taste, and search
    by distance finds them.

    Args:
        weight: of the task's loss beside the click loss.
        temperature: what cosines are divided by.
        recent: number of most recent behaviours to draw from.

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019,
        Sections 3 and 4.1.
    """

    def __init__(self, weight: float = 1.0, temperature: float = 0.1, recent: int = 20, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive_integers(recent=recent)
        for name, value in (("weight", weight), ("temperature", temperature)):
            if not (is_number(value) and value > 0):
                raise ValueError(f"`{name}` must be a positive number. Received: {name}={value!r}")
        self.weight = weight
        self.temperature = temperature
        self.recent = recent

    def bind(self, features: Features, lookup: FeatureLookup | None) -> None:
        """Takes note of the columns; called once, when the ranker is constructed.

        Args:
            features: the columns, with known vocabulary sizes.
            lookup: the ranker's lookup of raw ids, which `Features.positives` of an id needs.

        Raises:
            ValueError: if `Features.positives` has values and there is no lookup, or its vocabulary lacks one.
        """
        self._searched = features.hashed
        self._item = features.item_id
        self._positives = features.positives
        self._positive_rows: list[int] = []
        if self._positives is not None and self._positives.values:
            name, values = self._positives.attribute, self._positives.values
            if lookup is None:
                raise ValueError(
                    "A retrieval task by `Features.positives` with `values` needs the ranker's `lookup`, which knows "
                    f"their rows. Received: positives={self._positives}, lookup=None"
                )
            feature = next(f for f in features.behaviour_attributes if f.name == name)
            rows = lookup.encode(name, list(values))
            unknown = [value for value, row in zip(values, rows, strict=True) if row <= feature.num_oov_indices]
            if unknown:
                raise ValueError(
                    f"`Features.positives` must have values of the vocabulary of {name!r}. Received beside those: "
                    f"{unknown}"
                )
            self._positive_rows = rows.tolist()

    def build(self, input_shape: Any = None) -> None:
        self.drawn = self.add_weight(
            name="drawn",
            shape=[self._item.num_indices],
            dtype=tf.float32,
            initializer="zeros",
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            experimental_autocast=False,
        )
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
        """
        positions, found = self._draw(history)
        real = found & (tf.cast(tf.reshape(labels, [-1]), tf.float32) > 0)
        behaviour = history.take(positions[:, tf.newaxis], found[:, tf.newaxis])
        query = self._embedding(candidate)
        own = self._embedding(behaviour)
        items = behaviour.ids[self._item.name][:, 0]
        all_behaviours, all_items, all_real = (gather_over_replicas(x) for x in (own, items, real))
        log_share = tf.math.log(tf.maximum(self._count(all_items, all_real), 1.0))

        # A row's own behaviour stands in front of the others'.
        own_score = tf.reduce_sum(query * own, axis=-1) / self.temperature
        own_score -= tf.math.log(tf.maximum(tf.gather(self.drawn, items), 1.0))
        scores = tf.linalg.matmul(query, all_behaviours, transpose_b=True) / self.temperature - log_share
        others = all_real & tf.not_equal(items[:, tf.newaxis], all_items)
        scores = tf.where(others, scores, scores.dtype.min)
        row_loss = tf.reduce_logsumexp(tf.concat([own_score[:, tf.newaxis], scores], axis=1), axis=1) - own_score

        row_weight = tf.cast(real, tf.float32)
        if sample_weight is not None:
            row_weight *= tf.cast(tf.reshape(sample_weight, [-1]), tf.float32)
        total = sum_over_replicas(tf.reduce_sum(row_weight))
        return self.weight * tf.math.divide_no_nan(tf.reduce_sum(row_weight * row_loss), total)

    def _draw(self, history: Columns) -> tuple[tf.Tensor, tf.Tensor]:
        """A position [N] among the positive ones of the last behaviours, and whether there is one [N]."""
        recent = history.first(self.recent)
        eligible = recent.mask
        if self._positives is not None:
            values = recent.ids[self._positives.attribute]
            if self._positives.minimum is not None:
                eligible &= tf.cast(values, tf.float32) >= self._positives.minimum
            else:
                rows = tf.constant(self._positive_rows, values.dtype)
                eligible &= tf.reduce_any(tf.equal(values[..., tf.newaxis], rows), axis=-1)
        chance = tf.where(eligible, tf.random.uniform(tf.shape(eligible)), -1.0)
        return tf.argmax(chance, axis=1, output_type=tf.int32), tf.reduce_any(eligible, axis=1)

    def _embedding(self, columns: Columns) -> tf.Tensor:
        vectors = [tf.cast(columns.by_name[name], tf.float32)[:, 0] for name in self._searched]
        return tf.math.l2_normalize(tf.concat(vectors, axis=-1), axis=-1)

    def _count(self, items: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
        """Counts what was drawn, and gives how often each of `items` was so far."""
        self.drawn.scatter_add(tf.IndexedSlices(tf.cast(real, tf.float32), items))
        return tf.gather(self.drawn, items)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "weight": self.weight,
            "temperature": self.temperature,
            "recent": self.recent,
        }
