"""The embedding tables of a ranker, and the columns looked up in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from keras_eta.columns import HISTORY_AGE
from keras_eta.features import Features
from keras_eta.interest.base import Columns, Tables, Tensors
from keras_eta.names import scope_name
from keras_eta.ops import mean_of_values

# Standard deviations from the mean; see `Feature`.
_LARGEST_SCALED = 10.0


class FeatureEmbedding(tf.keras.layers.Layer):
    """Looks up the encoded columns of impressions: one embedding table per id feature, and one for ages.

    Args:
        features: the columns, with known vocabulary sizes.
        tables: tables that exist already, e.g. because they keep fingerprints, by feature name; the others are made.
        regularizer: of the embedding tables.
        sequence: name of the only sequence whose columns are looked up, with the candidate's; users and contexts then
            have no tables. `None`: all.
    """

    def __init__(
        self,
        features: Features,
        tables: Tables,
        regularizer: Any = None,
        sequence: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.features = features
        self.tables: dict[str, tf.keras.layers.Embedding] = dict(tables)
        needed = features.all_features if sequence is None else features.sequence_features(features.sequence(sequence))
        self._multi_valued = {feature.name for feature in needed if feature.max_values}
        self._optional = {feature.name for feature in needed if feature.optional}
        self._scales = {f.name: (f.mean, f.std) for f in features.all_features if f.mean is not None}
        sizes = {feature.name: (feature.num_indices, feature.embedding_dim) for feature in needed if feature.is_id}
        if features.age is not None:
            sizes[HISTORY_AGE] = (features.age.num_indices, features.age.embedding_dim)
        if features.calendar is not None and sequence is None:
            dim = features.calendar.embedding_dim
            sizes |= {name: (rows, dim) for name, rows in features.calendar.num_indices.items()}
        for name, (rows, dim) in sizes.items():
            if name not in self.tables:
                self.tables[name] = tf.keras.layers.Embedding(
                    rows, dim, embeddings_regularizer=regularizer, name=scope_name(name)
                )

    def build(self, input_shape: Any = None) -> None:
        for table in self.tables.values():
            if not table.built:
                # Keras scopes names only where it builds by itself; H5 files need them to differ.
                with tf.name_scope(f"{self.name}/{table.name}"):
                    table.build([None])
        super().build(input_shape)

    def candidates(self, inputs: Mapping[str, tf.Tensor]) -> Columns:
        """The item columns [R, C] of candidates."""
        columns = {feature.name: inputs[feature.name] for feature in self.features.item_features}
        real = tf.ones(tf.shape(columns[self.features.item_id.name]), tf.bool)
        return Columns(columns, real, self.embed, self.compute_dtype)

    def sequence(self, inputs: Mapping[str, tf.Tensor], name: str) -> Columns:
        """The columns [R, L] of a sequence by feature name, with L cut to the maximum and at least 1, and their mask.

        The column of ages, which no feature names, goes by its own name.
        """
        sequence = self.features.sequence(name)
        names = {feature.name: sequence.column(feature.name) for feature in self.features.sequence_features(sequence)}
        if self.features.age is not None:
            names[HISTORY_AGE] = sequence.age
        columns = {}
        for key, column_name in names.items():
            column = inputs[column_name][:, : sequence.max_length]
            # One padded column, so that position 0 exists in an empty history.
            missing = tf.maximum(1 - tf.shape(column)[1], 0)
            columns[key] = tf.pad(column, [[0, 0], [0, missing], *[[0, 0]] * (len(column.shape) - 2)])
        width = tf.shape(columns[self.features.item_id.name])[1]
        return Columns(columns, tf.sequence_mask(inputs[sequence.length], width), self.embed, self.compute_dtype)

    def rows(self, inputs: Mapping[str, tf.Tensor]) -> list[tf.Tensor]:
        """The vectors [R, width] of users, contexts and the calendar: what all candidates of a request share."""
        names = [feature.name for feature in (*self.features.user, *self.features.context)]
        vectors = self.embed({name: inputs[name] for name in (*names, *self.features.calendar_names)}).values()
        return [tf.cast(vector, self.compute_dtype) for vector in vectors]

    def embed(self, columns: Tensors) -> Tensors:
        """Embeddings of ids and scaled floats, [..., width], by feature name; of several values their mean."""
        vectors = {
            name: self.tables[name](column) if name in self.tables else self._numbers(name, column)
            for name, column in columns.items()
        }
        return {
            name: mean_of_values(vector, columns[name] > 0) if name in self._multi_valued else vector
            for name, vector in vectors.items()
        }

    def _numbers(self, name: str, column: tf.Tensor) -> tf.Tensor:
        """A float feature [..., width] in the compute dtype: (x - mean) / std, cut off; x where these are unknown.

        Of an optional feature also whether it is missing, and 0 in its place.
        """
        column = tf.cast(column, tf.float32)
        numbers = column
        if name in self._scales:
            mean, std = self._scales[name]
            numbers = tf.clip_by_value((column - mean) / std, -_LARGEST_SCALED, _LARGEST_SCALED)
        if name not in self._optional:
            return tf.cast(numbers, self.compute_dtype)[..., tf.newaxis]
        missing = tf.math.is_nan(column)
        numbers = tf.where(missing, 0.0, numbers)
        return tf.stack([tf.cast(numbers, self.compute_dtype), tf.cast(missing, self.compute_dtype)], axis=-1)
