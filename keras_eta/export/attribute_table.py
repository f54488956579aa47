"""What is known of items or users, by their raw ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from keras_eta.columns import Feature
from keras_eta.features import Features
from keras_eta.raw_values import finite, raw_ids

if TYPE_CHECKING:
    from keras_eta.datasets import Interactions


@dataclasses.dataclass(frozen=True, eq=False)
class Attribute:
    """A feature of each key of a table.

    Args:
        feature: its description.
        values: raw, int64, float32 or, as objects, bytes: [n], or [n, V] of a feature of V values.
        known: bool [n]. Elsewhere `values` may hold anything.
        lengths: int64 [n], how many of V values are real. `None`: the feature has one value.
    """

    feature: Feature
    values: np.ndarray
    known: np.ndarray
    lengths: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AttributeTable:
    """Attributes of items, or of users, that `export_model(tables=...)` puts into an export: requests send ids alone.

    It is keyed by raw ids, so an item that training never saw has its category. Build it with `from_frame` or
    `from_log`, of each id the last value; what there is none of is unknown, as are all attributes of an id that the
    table lacks. `export_model` says what the model reads then.

    Args:
        key: the column of the ids.
        ids: different raw ids, [n]: int64 or, as objects, bytes.
        attributes: what is known of each.
        notes: what was done to the rows that it was made of.

    Example:
        >>> features = Features(Feature("item_id"), item_attributes=(Feature("shelf", "string"),))
        >>> catalogue = pd.DataFrame({"item_id": [7, 8, 9], "shelf": ["dairy", "bread", None]})
        >>> table = AttributeTable.from_frame(catalogue, features)
        AttributeTable: 1 of 3 item_id have no 'shelf', which is unknown
    """

    key: Feature
    ids: np.ndarray
    attributes: tuple[Attribute, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def from_frame(
        cls, frame: pd.DataFrame, features: Features, key: str | None = None, attributes: Iterable[str] | None = None
    ) -> AttributeTable:
        """A table of the rows of a DataFrame, e.g. a catalogue of items. It prints what was done, if anything was.

        Where an id has several rows, the last value of each attribute counts. A value that is None, NaN or NA is
        missing, and an earlier one counts in its place.

        Args:
            frame: a row per id, or several, the latest last. Values of an int64 feature are integers, those of a
                string feature text or bytes, those of a feature of several values lists, of which the first
                `max_values` count.
            features: the columns of the model. Others of the frame are not read.
            key: name of the column of ids: of the item, whose attributes the table then gives, or of the user. A user's
                may be one that the model does not read: integers, or else text or bytes. `None`: that of the item.
            attributes: names of the features that the table gives; requests send the others, such as a price that
                changes by the hour. `None`: all that the frame has.

        Raises:
            TypeError: if `features` is no `Features`.
            ValueError: if the key or an attribute is not in the frame, or is no feature that such a table can give; if
                there are no rows, or an id is missing; or if a value does not go with its feature's dtype.
        """
        if not isinstance(features, Features):
            raise TypeError(f"`features` must be a keras_eta.Features. Received: features={features!r}")
        key = features.item_id.name if key is None else key
        if key not in frame.columns:
            raise ValueError(f"`key` must be a column of `frame`, among {list(frame.columns)}. Received: key={key!r}")
        missing = int(frame[key].isna().sum())
        if missing or not len(frame):
            raise ValueError(
                f"Every row of `frame` must have its {key!r}, and there must be one. "
                f"Received: {missing:,} of {len(frame):,} without"
            )
        column = _key_feature(features, key, frame[key])
        chosen = _chosen(frame, features, key, attributes)
        codes, ids = pd.factorize(_raw(column, frame[key].to_numpy()))
        found = [_attribute(feature, frame[feature.name], codes, len(ids)) for feature in chosen]
        notes = tuple(f"{count:,} of {len(ids):,} {key} have {what}" for _, counts in found for count, what in counts)
        if notes:
            print(f"AttributeTable: {'; '.join(notes)}")
        return cls(column, ids, tuple(attribute for attribute, _ in found), notes)

    @classmethod
    def from_log(
        cls, log: Interactions, features: Features, key: str | None = None, attributes: Iterable[str] | None = None
    ) -> AttributeTable:
        """A table of what a log says of each id last, as `from_frame` of its rows in the order of time."""
        order = np.argsort(log.timestamps, kind="stable")
        return cls.from_frame(log.to_frame().iloc[order], features, key, attributes)

    @property
    def names(self) -> tuple[str, ...]:
        """The features that the table gives."""
        return tuple(attribute.feature.name for attribute in self.attributes)

    def __repr__(self) -> str:
        return f"AttributeTable({len(self.ids):,} {self.key.name}; attributes: {', '.join(self.names)})"


def possible_attributes(features: Features, key: str) -> tuple[Feature, ...]:
    """The features that a table of this key can give: those of the item by its id, those of the user by any other."""
    return features.item_attributes if key == features.item_id.name else features.user


def _chosen(frame: pd.DataFrame, features: Features, key: str, names: Iterable[str] | None) -> list[Feature]:
    possible = {feature.name: feature for feature in possible_attributes(features, key) if feature.name != key}
    there = [name for name in possible if name in frame.columns]
    chosen = there if names is None else list(names)
    wrong = [name for name in chosen if name not in there]
    if wrong or not chosen:
        whose = "item" if key == features.item_id.name else "user"
        raise ValueError(
            f"A table by {key!r} can give the features of the {whose} that `frame` has, {there} of {list(possible)}. "
            f"Received: attributes={chosen}"
        )
    return [possible[name] for name in chosen]


def _key_feature(features: Features, key: str, ids: pd.Series) -> Feature:
    """The key's name and dtype."""
    known = {feature.name: feature for feature in (features.item_id, *features.user)}.get(key)
    if known is not None:
        if not known.is_id or known.max_values:
            raise ValueError(f"`key` must be an id with one value. Received: key={key!r}, which is {known}")
        return Feature(key, known.dtype)
    found = Feature(key, "int64" if pd.api.types.is_integer_dtype(ids.dtype) else "string")
    # Which refuses the name of another column.
    dataclasses.replace(features, user=(*features.user, found))
    return found


def _attribute(
    feature: Feature, column: pd.Series, codes: np.ndarray, num_ids: int
) -> tuple[Attribute, list[tuple[int, str]]]:
    """The last value of each id, and of how many ids what has to be said."""
    present = column.notna().to_numpy()
    held = column.to_numpy()[present]
    if feature.max_values is not None:
        held = _tuples(feature, held)
    keyed = pd.DataFrame({"id": codes[present], "value": pd.factorize(held)[0]})
    last = keyed.drop_duplicates("id", keep="last")
    rows = last["id"].to_numpy()
    several = int((keyed.drop_duplicates()["id"].value_counts() > 1).sum())
    known = np.zeros(num_ids, bool)
    known[rows] = True
    kept, lengths = held[last.index], None
    if feature.max_values is not None:
        kept = [values[: feature.max_values] for values in kept]
        lengths = np.zeros(num_ids, np.int64)
        lengths[rows] = [len(values) for values in kept]
        kept = _array_of([value for values in kept for value in values])
    raw = _raw(feature, kept)
    values = np.full((num_ids, *feature.values_shape), b"" if feature.dtype == "string" else 0, raw.dtype)
    if lengths is None:
        values[rows] = raw
    else:
        each = lengths[rows]
        values[np.repeat(rows, each), np.arange(len(raw)) - np.repeat(np.cumsum(each) - each, each)] = raw
    counts = (
        (several, f"several values of {feature.name!r}, of which the last counts"),
        (num_ids - len(rows), f"no {feature.name!r}, which is unknown"),
    )
    return Attribute(feature, values, known, lengths), [note for note in counts if note[0]]


def _tuples(feature: Feature, lists: np.ndarray) -> np.ndarray:
    wrong = [values for values in lists if not isinstance(values, (list, tuple, np.ndarray))]
    if wrong:
        raise ValueError(f"Feature {feature.name!r} must hold lists of values. Received: {wrong[0]!r}")
    return _array_of([tuple(values) for values in lists])


def _array_of(values: list[Any]) -> np.ndarray:
    """Any values as an array of one axis."""
    return np.fromiter(values, object, len(values))


def _raw(feature: Feature, values: np.ndarray) -> np.ndarray:
    """Values as a table holds them: int64, float32 or, as objects, bytes."""
    if feature.dtype == "int64":
        return raw_ids(feature, values)
    if feature.dtype == "string":
        wrong = [value for value in values if not isinstance(value, (str, bytes))]
        if wrong:
            raise ValueError(f"Feature {feature.name!r} must hold text or bytes. Received: {wrong[0]!r}")
        return _array_of([value.encode() if isinstance(value, str) else value for value in values])
    values = np.array(values.tolist())
    if len(values) and values.dtype.kind not in "iuf":
        raise ValueError(f"Feature {feature.name!r} must hold numbers. Received: {values[0]!r}")
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    finite(feature, numbers)
    return numbers
