"""Raw ids to embedding rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from sklearn.preprocessing import StandardScaler

from keras_eta.columns import TIMESTAMP, Feature, length_name
from keras_eta.features import Features
from keras_eta.names import scope_name
from keras_eta.ops import age_bucket
from keras_eta.ops.calendar import calendar_columns
from keras_eta.raw_values import as_array, finite, raw_ids
from keras_eta.tf_data import without_autotuning


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class FeatureLookup(tf.keras.layers.Layer):
    """Turns the raw columns of impressions into what a ranker reads: ids become rows of embedding tables.

    Each id feature has one vocabulary, for the candidate and for the history alike. Its rows are: 0 for padding, then
    the out-of-vocabulary buckets, then the vocabulary, most frequent ids first. No raw value, not even 0 or -1, stands
    for padding: `history_length` alone says which behaviours are real. Vocabularies are saved with the model. An id of
    dtype `string` may be any bytes; text stands for its UTF-8. Floats pass through as they came; what `adapt` learns of
    them, their mean and standard deviation, is in `features`, by which the model scales them.

    Where `features` have an `age`, timestamps become the bucket of each behaviour's age.

    Args:
        features: the columns.
        scales: mean and standard deviation of float32 features by name, as `adapt` learns them and a saved lookup has
            them.

    Call arguments:
        inputs: a dict of raw columns, int64, string or float32: [...] for user, context and candidate,
            [..., L] for `history_*`, and `history_length` int64 [...]. With an `age`, `timestamp` int64 [...] and
            `history_timestamp` int64 [..., L] are among them. A feature of V values has an axis of V more, and a column
            `<name>_length`. The columns of `features.sequences` are like those of the history. Columns that `features`
            lacks are left out.

    Returns:
        A dict of the same names: int32 rows for ids (0 at padding), float32 as it came, `history_length` int32. In
        place of the two timestamps comes `history_age` int32 [..., L], as `keras_eta.ops.age_bucket` makes it. Lengths
        of features of several values are left out.

    Raises:
        TypeError: if `features` is no `Features`, or lengths, timestamps or the ids of an int64 feature have a type
            that int64 does not hold, e.g. float32 or uint64.
        ValueError: if a column is missing, or a vocabulary is empty.

    Example:
        >>> lookup = keras_eta.layers.FeatureLookup(Features(item_id=Feature("item_id", "string")))
        >>> lookup.adapt({"item_id": np.array(["bread", "milk", "milk"])})
        >>> lookup.encode("item_id", ["milk", "bread", "caviar"])
        array([2, 3, 1], dtype=int32)
    """

    def __init__(
        self, features: Features, scales: Mapping[str, tuple[float, float]] | None = None, **kwargs: Any
    ) -> None:
        # Under mixed precision Keras would round floats, which the model scales in float32, to 16 bits.
        super().__init__(**{"autocast": False, **kwargs})
        if isinstance(features, Mapping):
            features = Features.from_dict(features)
        if not isinstance(features, Features):
            raise TypeError(f"`features` must be a keras_eta.Features. Received: features={features!r}")
        self._features = features
        self._scales: dict[str, tuple[float, float]] = {}
        self._item_counts: np.ndarray | None = None
        for name, (mean, std) in (scales or {}).items():
            self.set_scale(name, mean, std)
        self.tables = {feature.name: _table(feature) for feature in features.all_features if feature.is_id}

    @property
    def features(self) -> Features:
        """The columns, with the sizes of the adapted vocabularies, and means and standard deviations of floats."""
        sizes = {}
        for feature in self._features.all_features:
            if feature.is_id:
                size = self.tables[feature.name].vocabulary_size() - feature.num_oov_indices
                if size < 1:
                    raise ValueError(f"The vocabulary of feature {feature.name!r} is empty. Call `adapt` first.")
                sizes[feature.name] = size
        return self._features.with_vocabulary_sizes(sizes).with_scales(self._scales)

    def adapt(self, data: Mapping[str, Any] | tf.data.Dataset) -> None:
        """Learns the vocabularies from data: the most frequent ids, up to each feature's `vocabulary_size`.

        Of float32 features without a `mean` it learns mean and standard deviation.

        Args:
            data: columns as a dict of 1-D arrays (a log: `item_id`, `user_id`, ...; of several values a list per row),
                or batches of impressions (a `tf.data.Dataset` of dicts, or of pairs whose first part is a dict), where
                candidates and sequences count.

        Raises:
            ValueError: if the data lacks a feature or has no id of one often enough, an int64 feature has a value that
                is no integer of 64 bits, or a float32 feature one that is not finite, NaN of an optional one aside.
        """
        floats = [feature for feature in self._features.all_features if not feature.is_id and feature.mean is None]
        scalers = {feature.name: StandardScaler() for feature in floats}
        counts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in self.tables}
        batches: Iterator[Any] = (
            iter([data]) if isinstance(data, Mapping) else without_autotuning(data).as_numpy_iterator()
        )
        for batch in batches:
            columns = batch[0] if isinstance(batch, tuple) else batch
            for name, found in counts.items():
                feature = self._id_feature(name)
                occurrences = _occurrences(columns, feature, self._features)
                found.extend(np.unique(raw_ids(feature, values), return_counts=True) for values in occurrences)
            for feature in floats:
                for values in _occurrences(columns, feature, self._features):
                    numbers = finite(feature, values)
                    if len(numbers):
                        scalers[feature.name].partial_fit(numbers[:, np.newaxis])
        for name, scaler in scalers.items():
            if not hasattr(scaler, "mean_"):
                raise ValueError(f"`data` holds no value of feature {name!r}.")
            self.set_scale(name, scaler.mean_.item(), scaler.scale_.item())
        for name, found in counts.items():
            if not sum(len(values) for values, _ in found):
                raise ValueError(f"`data` holds no value of feature {name!r}.")
            values, inverse = np.unique(np.concatenate([values for values, _ in found]), return_inverse=True)
            totals = np.bincount(inverse, np.concatenate([count for _, count in found]))
            # Most frequent first; the order among equals is that of the values, so the result is deterministic.
            order = np.argsort(-totals, kind="stable")
            least = self._id_feature(name).min_count
            if totals[order[0]] < least:
                raise ValueError(
                    f"No id of feature {name!r} is in `data` {least:,} times, its `min_count`; the most frequent is "
                    f"there {totals[order[0]]:,.0f} times."
                )
            self.set_vocabulary(name, values[order][totals[order] >= least])
            if name == self._features.item_id.name:
                self._item_counts = totals[order]

    def set_vocabulary(self, name: str, vocabulary: Sequence[Any] | np.ndarray) -> None:
        """Sets the vocabulary of one feature; ids beyond its `vocabulary_size` are cut off.

        Args:
            name: name of the id feature.
            vocabulary: 1-D, different ids, the ones to keep first. Integers may be spelt in bytes, as TensorFlow
                Transform hands vocabularies over.

        Raises:
            ValueError: if `name` is no id feature, or the feature is int64 and an id is no integer of 64 bits.
        """
        feature, table = self._id_feature(name), self.tables[name]
        if name == self._features.item_id.name:
            self._item_counts = None
        if feature.dtype == "int64" and np.asarray(vocabulary).dtype.kind in "SO":
            vocabulary = [int(id_) if isinstance(id_, bytes) else id_ for id_ in vocabulary]
        ids = raw_ids(feature, vocabulary)[: feature.vocabulary_size]
        if feature.dtype == "string":
            ids = np.array([tf.compat.as_bytes(id_) for id_ in ids], object)
        # Without the reserved ids in front, Keras would take an id that equals them for one of them and leave it out.
        table.set_vocabulary(np.concatenate([np.full(feature.num_oov_indices, table.oov_token, ids.dtype), ids]))

    @property
    def item_counts(self) -> np.ndarray | None:
        """How often the data that was last adapted to has each item, int64 [num_indices] by row.

        0 for padding and the out-of-vocabulary buckets. `None` where the vocabulary does not come from `adapt`.
        """
        if self._item_counts is None:
            return None
        reserved = 1 + self._features.item_id.num_oov_indices
        known = self.features.item_id.num_indices - reserved
        return np.concatenate([np.zeros(reserved, "int64"), self._item_counts[:known].astype("int64")])

    def set_scale(self, name: str, mean: float, std: float) -> None:
        """Sets what a float32 feature is scaled by.

        Args:
            name: name of the feature.
            mean: of its values in the training data.
            std: their standard deviation, above 0.

        Raises:
            ValueError: if `name` is no float32 feature, or a number is out of its range.
        """
        floats = [feature.name for feature in self._features.all_features if not feature.is_id]
        if name not in floats:
            raise ValueError(f"`name` must be a float32 feature, one of {sorted(floats)}. Received: name={name!r}")
        scale = {name: (mean, std)}
        # Which checks them.
        self._features.with_scales(scale)
        # A new dict: Keras refuses to save one that changed since it saw it.
        self._scales = {**self._scales, **scale}

    def encode(self, name: str, values: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Rows of the embedding table for raw ids of one feature, outside of any graph.

        Args:
            name: name of the id feature.
            values: raw ids, any shape.

        Returns:
            int32, the same shape; never 0, which is padding.

        Raises:
            ValueError: if `name` is no id feature, its vocabulary is empty, or the feature is int64 and a value is no
                integer of 64 bits.
        """
        feature = self._id_feature(name)
        return self._rows(name, tf.constant(raw_ids(feature, values), feature.dtype)).numpy()

    def call(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return self.encode_columns(inputs, self._features)

    def encode_columns(self, inputs: Mapping[str, tf.Tensor], features: Features) -> dict[str, tf.Tensor]:
        """As a call, of the columns of some features alone.

        Args:
            inputs: their raw columns.
            features: the lookup's own, of which some may be left out.
        """
        wanted = [*features.row_names]
        for sequence in features.all_sequences:
            wanted += [*features.sequence_names(sequence), sequence.length]
        missing = sorted(set(wanted) - set(inputs))
        if missing:
            raise ValueError(f"Columns are missing: {missing}. Received: {sorted(inputs)}")
        outputs = {feature.name: self._encoded(feature, feature.name, inputs) for feature in features.row_features}
        outputs |= calendar_columns(features, inputs)
        for sequence in features.all_sequences:
            outputs[sequence.length] = lengths = tf.cast(_int64_column(sequence.length, inputs), tf.int32)
            for feature in features.sequence_features(sequence):
                name = sequence.column(feature.name)
                outputs[name] = masked(self._encoded(feature, name, inputs), lengths, feature)
            if features.age is not None:
                moments = inputs[sequence.timestamp]
                real = tf.sequence_mask(lengths, tf.shape(moments)[-1])
                outputs[sequence.age] = age_bucket(inputs[TIMESTAMP], moments, features.age.boundaries, real)
        return outputs

    @property
    def non_trainable_weights(self) -> list[tf.Variable]:
        """None: a vocabulary is no variable, which Keras's callbacks and H5 files take all weights for."""
        return []

    def _encoded(self, feature: Feature, name: str, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        column = inputs[name] if feature.dtype != "int64" else _int64_column(name, inputs)
        column = tf.cast(column, tf.float32) if feature.dtype == "float32" else column
        if not feature.is_id:
            return column
        rows = self._rows(feature.name, column)
        if feature.max_values is None:
            return rows
        lengths = _int64_column(length_name(name), inputs)
        return tf.where(tf.sequence_mask(lengths, tf.shape(rows)[-1]), rows, 0)[..., : feature.max_values]

    def _id_feature(self, name: str) -> Feature:
        for feature in self._features.all_features:
            if feature.name == name and feature.is_id:
                return feature
        raise ValueError(f"`name` must be an id feature, one of {sorted(self.tables)}. Received: name={name!r}")

    def _rows(self, name: str, ids: tf.Tensor) -> tf.Tensor:
        try:
            rows = self.tables[name](ids)
        except tf.errors.FailedPreconditionError as error:
            raise ValueError(f"The vocabulary of feature {name!r} is empty. Call `adapt` first.") from error
        # The table counts from its first out-of-vocabulary bucket; row 0 is kept for padding.
        return tf.cast(rows, tf.int32) + 1

    def get_config(self) -> dict[str, Any]:
        # Keras wraps a dict among the attributes into one that JSON does not take.
        scales = {name: list(scale) for name, scale in self._scales.items()}
        return {**super().get_config(), "features": self._features.to_dict(), "scales": scales}


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class StringVocabulary(tf.keras.layers.StringLookup):
    """A `StringLookup` of bytes, whose saved vocabulary is what it was: Keras's is lines of text, without NULs."""

    def _tensor_vocab_to_numpy(self, vocabulary: tf.Tensor) -> np.ndarray:
        ids: np.ndarray = vocabulary.numpy()
        return ids

    def save_assets(self, dir_path: str) -> None:
        ids = tf.constant(self.get_vocabulary(include_special_tokens=False), tf.string)
        tf.io.write_file(os.path.join(dir_path, "vocabulary"), tf.io.serialize_tensor(ids))

    def load_assets(self, dir_path: str) -> None:
        ids = tf.io.parse_tensor(tf.io.read_file(os.path.join(dir_path, "vocabulary")), tf.string)
        if len(ids):
            self.set_vocabulary(ids)


def _table(feature: Feature) -> tf.keras.layers.Layer:
    # The layers reserve one id as the name of the out-of-vocabulary buckets; by default one that logs do hold.
    options = {
        "mask_token": None,
        "num_oov_indices": feature.num_oov_indices,
        "name": f"{scope_name(feature.name)}_vocabulary",
    }
    if feature.dtype == "string":
        return StringVocabulary(oov_token="\0out of vocabulary", **options)
    return tf.keras.layers.IntegerLookup(oov_token=tf.int64.min, **options)


def _int64_column(name: str, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
    column = tf.convert_to_tensor(inputs[name])
    fits = column.dtype.is_bool or (column.dtype.is_integer and column.dtype != tf.uint64)
    # An empty list is one of floats to TensorFlow.
    if not fits and column.shape.num_elements() != 0:
        raise TypeError(f"Column {name!r} must hold integers that int64 holds. Received: dtype={column.dtype.name}")
    return tf.cast(column, tf.int64)


def masked(column: tf.Tensor, lengths: tf.Tensor, feature: Feature) -> tf.Tensor:
    """The encoded column of a sequence, [..., L] or [..., L, V], zero behind its length."""
    axes = 1 + len(feature.values_shape)
    real = tf.sequence_mask(lengths, tf.shape(column)[-axes])
    real = tf.reshape(real, tf.concat([tf.shape(real), [1] * (axes - 1)], axis=0))
    return tf.where(real, column, tf.zeros_like(column))


def _occurrences(columns: Mapping[str, Any], feature: Feature, features: Features) -> Iterator[np.ndarray]:
    """The values of a feature in a batch: the rows' own and those of real behaviours."""
    if feature.name in columns:
        column = as_array(feature, columns[feature.name])
        if feature.max_values and column.ndim == 1:
            # Of a log, a list per row.
            column = np.concatenate([as_array(feature, values)[: feature.max_values] for values in column])
        yield column[_real_values(column, columns, feature, feature.name)]
    for sequence in features.all_sequences:
        name = sequence.column(feature.name)
        if name in columns:
            column = as_array(feature, columns[name])
            real = _real_values(column, columns, feature, name)
            inside = np.arange(column.shape[1]) < np.reshape(columns[sequence.length], [-1, 1])
            yield column[real & np.reshape(inside, inside.shape + (1,) * (column.ndim - 2))]


def _real_values(column: np.ndarray, columns: Mapping[str, Any], feature: Feature, name: str) -> np.ndarray:
    if feature.max_values is None or length_name(name) not in columns:
        return np.ones(column.shape, bool)
    return np.arange(column.shape[-1]) < np.asarray(columns[length_name(name)])[..., None]
