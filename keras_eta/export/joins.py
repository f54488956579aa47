"""Attribute tables in the graphs of an export."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_eta.columns import Feature
from keras_eta.export.attribute_table import Attribute, AttributeTable, possible_attributes
from keras_eta.features import Features
from keras_eta.layers.feature_lookup import FeatureLookup, masked
from keras_eta.models.ranker import Inputs, Ranker

# What a FeatureLookup makes of an id that its vocabulary lacks: the first bucket.
_UNKNOWN = 1


class _Join:
    """A table that gives the encoded attributes of raw ids. Those that it lacks share row 0."""

    def __init__(self, table: AttributeTable, features: Features, lookup: FeatureLookup) -> None:
        self.key = table.key.name
        keys = FeatureLookup(Features(item_id=table.key))
        keys.set_vocabulary(self.key, table.ids)
        self._rows = keys.tables[self.key]
        by_name = {feature.name: feature for feature in possible_attributes(features, self.key)}
        self._values = {
            attribute.feature.name: tf.Variable(
                _encoded(attribute, by_name[attribute.feature.name], lookup), trainable=False
            )
            for attribute in table.attributes
        }

    @property
    def resources(self) -> list[Any]:
        """What a SavedModel has to hold of it."""
        return [self._rows.lookup_table, *self._values.values()]

    def attributes(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The attributes by name, of the ids' shape, of several values with an axis of V more."""
        rows = self._rows(ids)
        return {name: tf.gather(values, rows) for name, values in self._values.items()}


class Joins:
    """All tables of an export: which columns requests have, and how these become those that the model reads.

    Args:
        model: a ranker.
        tables: by different keys.

    Raises:
        TypeError: if one is no `AttributeTable`.
        ValueError: if the model has no lookup, two tables have one key or give one feature, or a key or an attribute
            is none of the model's features of that dtype and number of values.
    """

    def __init__(self, model: Ranker, tables: Sequence[AttributeTable]) -> None:
        self._features, self._lookup = model.features, lookup_for(model, tables)
        given = {name for table in tables for name in table.names}
        self._encoded_here = dataclasses.replace(
            self._features,
            item_attributes=tuple(feature for feature in self._features.item_attributes if feature.name not in given),
            user=tuple(feature for feature in self._features.user if feature.name not in given),
            hashed=(),
        )
        keys = [table.key for table in tables if table.key.name not in self._features.by_column]
        self.requested = dataclasses.replace(self._encoded_here, user=(*self._encoded_here.user, *keys))
        self._joins = [_Join(table, self._features, self._lookup) for table in tables]

    @property
    def resources(self) -> list[Any]:
        """What a SavedModel has to hold of the tables."""
        return [resource for join in self._joins for resource in join.resources]

    def encode(self, inputs: Inputs) -> dict[str, tf.Tensor]:
        """The columns that the model reads, of those of `requested`."""
        outputs = self._lookup.encode_columns(inputs, self._encoded_here)
        item_id = self._features.item_id.name
        by_name = {feature.name: feature for feature in self._features.item_attributes}
        for join in self._joins:
            outputs |= join.attributes(inputs[join.key])
            for sequence in self._features.all_sequences if join.key == item_id else ():
                for name, column in join.attributes(inputs[sequence.column(item_id)]).items():
                    outputs[sequence.column(name)] = masked(column, outputs[sequence.length], by_name[name])
        return outputs


def _encoded(attribute: Attribute, feature: Feature, lookup: FeatureLookup) -> np.ndarray:
    """An attribute as the model reads it, int32 or float32 [1 + n] or [1 + n, V]; first what stands for the unknown."""
    if feature.is_id:
        values = lookup.encode(feature.name, attribute.values)
        unknown = np.array(_UNKNOWN, np.int32)
        if attribute.lengths is not None:
            num_values = values.shape[1]
            values = np.where(np.arange(num_values) < attribute.lengths[:, np.newaxis], values, 0)
            unknown = np.append(unknown, np.zeros(num_values - 1, np.int32))
    else:
        # The model scales a mean to 0; a float whose scale is not known is read as it is.
        absent = np.nan if feature.optional else feature.mean or 0.0
        values, unknown = attribute.values.copy(), np.array(absent, np.float32)
    values[~attribute.known] = unknown
    return np.concatenate([unknown[np.newaxis], values])


def lookup_for(model: Ranker, tables: Any) -> FeatureLookup:
    """The model's lookup, if the tables go with the model and with each other; raises what `Joins` does if not."""
    if not isinstance(tables, (list, tuple)):
        raise TypeError(f"`tables` must be a list of AttributeTable objects. Received: {tables!r}")
    wrong = [table for table in tables if not isinstance(table, AttributeTable)]
    if wrong:
        raise TypeError(f"`tables` must hold AttributeTable objects. Received: {wrong}")
    if model.lookup is None:
        raise ValueError(f"`tables` are of raw ids, which take a model with a `lookup`. Received: {tables}")
    keys, given = [table.key.name for table in tables], [name for table in tables for name in table.names]
    for what, names in (
        ("have one key each", keys),
        ("give a feature once", given),
        ("not give the key of another", [*set(keys), *set(given)]),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"`tables` must {what}. Received more than once: {twice}")
    features = model.features
    ids = {feature.name: feature for feature in (features.item_id, *features.user)}
    for table in tables:
        possible = {feature.name: feature for feature in possible_attributes(features, table.key.name)}
        pairs = [(attribute.feature, possible.get(attribute.feature.name)) for attribute in table.attributes]
        for theirs, ours in [*pairs, (table.key, ids.get(table.key.name, table.key))]:
            if ours is None or (theirs.dtype, theirs.max_values) != (ours.dtype, ours.max_values):
                raise ValueError(
                    "`tables` must hold what the model has, with its dtype and `max_values`. "
                    f"Received: {theirs} in {table!r}, where the model has {ours}"
                )
    return model.lookup
