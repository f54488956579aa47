"""Ids that training takes for unknown ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from keras_eta.features import Features
from keras_eta.models.counters import add_counter, draw
from keras_eta.validation import is_number

# Seeds of the features' draws count from here: the retrieval task's own are small, and its draws must be others.
_FIRST_SEED = 2**31


class IdDropout(tf.keras.layers.Layer):
    """Replaces ids of users, contexts and candidates by out-of-vocabulary ones, at random.

    A vocabulary that holds every id of the training data leaves its out-of-vocabulary rows untrained, and what a model
    says of an id that it has never seen is then noise. Each id is replaced with probability `rate`, independently of
    the row's others, by a random one of its feature's out-of-vocabulary buckets. Behaviours keep their ids.

    The draws depend on the number of steps alone: a training that goes on from a checkpoint draws as one that was never
    interrupted.

    Args:
        features: the columns.
        rate: probability, from 0 to below 1; one for all id features, or by feature name, the others' being 0.

    Raises:
        ValueError: if a rate is out of its range, or of a feature that users, contexts and candidates do not have.
    """

    def __init__(self, features: Features, rate: float | Mapping[str, float], name: str = "id_dropout") -> None:
        super().__init__(name=name)
        ids = {feature.name: feature for feature in features.row_features if feature.is_id}
        rates = rate if isinstance(rate, Mapping) else dict.fromkeys(ids, rate)
        unknown = sorted(set(rates) - set(ids))
        if unknown or not all(is_number(value) and 0 <= value < 1 for value in rates.values()):
            raise ValueError(
                "`id_dropout` must be a number from 0 to below 1, or such numbers by name of an id feature of users, "
                f"contexts or items, which are {list(ids)}. Received: id_dropout={rate!r}"
            )
        self.rate = rate
        self._rates = [(ids[name], float(value)) for name, value in rates.items() if value]

    def build(self, input_shape: Any = None) -> None:
        if self._rates:
            self.steps = add_counter(self, "steps")
        super().build(input_shape)

    def call(self, columns: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The columns of a batch, some ids of its rows replaced. Counts a step."""
        replaced = dict(columns)
        if not self._rates:
            return replaced
        step = self.steps.read_value()
        self.steps.assign_add(1)
        for seed, (feature, rate) in enumerate(self._rates, _FIRST_SEED):
            ids = columns[feature.name]
            chance = draw(tf.shape(ids), seed, step)
            # Given that it is below the rate, chance / rate is uniform again: it picks the bucket.
            bucket = 1 + tf.cast(chance / rate * feature.num_oov_indices, ids.dtype)
            replaced[feature.name] = tf.where((chance < rate) & (ids > 0), bucket, ids)
        return replaced
