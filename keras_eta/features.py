"""The data contract in code: which columns an impression has, their types, and how each is embedded.

Models, export, the TFX pipeline and serving clients all read these dataclasses. The module itself needs no TensorFlow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_eta.columns import (
    HISTORY,
    LABEL,
    TIMESTAMP,
    Age,
    Calendar,
    Feature,
    Positives,
    Sequence,
    checked_features,
    length_name,
)
from keras_eta.validation import check_positive_integers, is_integer


@dataclasses.dataclass(frozen=True)
class Features:
    """All columns of an impression, by the role they play.

    | role | one value a row as | a sequence as |
    |---|---|---|
    | `item_id`, `item_attributes` | `<name>`: of the candidate | `history_<name>`: of each behaviour |
    | `behaviour_attributes` | | `history_<name>` |
    | `user`, `context` | `<name>` | |
    | `age` | `timestamp` | `history_timestamp` |
    | `calendar` | `timestamp` | |

    Every sequence holds the behaviours strictly before the impression, most recent first; those of `sequences` have
    the names of their own in place of `history`. These are the raw columns, of logs, tf.Examples and serving requests.
    The encoded ones, which a `FeatureLookup` makes and the model reads, have the same names, but for the timestamps: in
    their place come `timestamp_hour` and `timestamp_weekday`, and the bucket `history_age` of each behaviour. A feature
    of several values is one column of indices then, padded with 0, and needs no length.

    Args:
        item_id: the item's id. Its embedding is hashed.
        item_attributes: further columns of an item, e.g. its category.
        behaviour_attributes: columns of a behaviour that a candidate lacks, e.g. the action or the rating.
        user: columns of the user.
        context: columns of the impression, e.g. hour or position.
        hashed: names of the item features whose embeddings are hashed; a behaviour's fingerprint is the concatenation
            of theirs. Empty: the item id alone.
        max_history_length: L, the number of most recent behaviours that the model reads.
        age: how the age of each behaviour is cut into buckets. `None`: the model reads no timestamps.
        calendar: how the hour and the weekday of the impression are read. `None`: they are not.
        sequences: sequences of behaviours beside the history.
        positives: which behaviours of the history speak for their item, for tasks that need to know. `None`: all.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if names collide, `hashed` names no id of the item that has one value, the item id has several, a
            length is not positive, or `positives` do not go with a behaviour attribute and its dtype.
    """

    item_id: Feature
    item_attributes: tuple[Feature, ...] = ()
    behaviour_attributes: tuple[Feature, ...] = ()
    user: tuple[Feature, ...] = ()
    context: tuple[Feature, ...] = ()
    hashed: tuple[str, ...] = ()
    max_history_length: int = 512
    age: Age | None = None
    calendar: Calendar | None = None
    sequences: tuple[Sequence, ...] = ()
    positives: Positives | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.item_id, Feature) or not self.item_id.is_id or self.item_id.max_values:
            raise ValueError(
                "`item_id` must be a Feature of dtype 'int64' or 'string' with one value. "
                f"Received: item_id={self.item_id!r}"
            )
        for role in ("item_attributes", "behaviour_attributes", "user", "context"):
            object.__setattr__(self, role, checked_features(role, getattr(self, role)))
        for role, kind in (("hashed", str), ("sequences", Sequence)):
            object.__setattr__(self, role, tuple(getattr(self, role)))
            wrong = [part for part in getattr(self, role) if not isinstance(part, kind)]
            if wrong:
                what = "names" if kind is str else "Sequence objects"
                raise TypeError(f"`{role}` must hold {what}. Received: {wrong}")
        if self.age is not None and not isinstance(self.age, Age):
            raise TypeError(f"`age` must be a keras_eta.Age or None. Received: age={self.age!r}")
        if self.calendar is not None and not isinstance(self.calendar, Calendar):
            raise TypeError(f"`calendar` must be a keras_eta.Calendar or None. Received: calendar={self.calendar!r}")
        if self.positives is not None and not isinstance(self.positives, Positives):
            raise TypeError(
                f"`positives` must be a keras_eta.Positives or None. Received: positives={self.positives!r}"
            )
        if not self.hashed:
            object.__setattr__(self, "hashed", (self.item_id.name,))
        hashable = [feature.name for feature in self.item_features if feature.is_id and not feature.max_values]
        unknown = [name for name in self.hashed if name not in hashable]
        if unknown or len(set(self.hashed)) != len(self.hashed):
            raise ValueError(
                f"`hashed` must name different id features of the item with one value, among {hashable}. "
                f"Received: hashed={self.hashed}"
            )
        check_positive_integers(max_history_length=self.max_history_length)
        lengths = [length_name(feature.name) for feature in self.row_features if feature.max_values]
        columns = [LABEL, TIMESTAMP, *self.encoded_row_names, *lengths]
        for sequence in self.all_sequences:
            columns += [*self.sequence_names(sequence), sequence.length]
            columns += [] if self.age is None else [sequence.age]
        twice = sorted({name for name in columns if columns.count(name) > 1})
        if twice:
            raise ValueError(f"Every column must have a name of its own. Used twice: {twice}")
        self._check_attributes()
        self._check_positives()

    def _check_positives(self) -> None:
        if self.positives is None:
            return
        attributes = {feature.name: feature for feature in self.behaviour_attributes if not feature.max_values}
        feature = attributes.get(self.positives.attribute)
        if feature is None:
            raise ValueError(
                f"`positives` must go by a behaviour attribute with one value, among {list(attributes)}. "
                f"Received: {self.positives}"
            )
        if feature.is_id != bool(self.positives.values):
            raise ValueError(
                f"`positives` must have `values` of an id and a `minimum` of a float32. Received: {self.positives} of "
                f"{feature.dtype}"
            )
        text = feature.dtype == "string"
        wrong = [x for x in self.positives.values if not (isinstance(x, str) if text else is_integer(x))]
        if wrong:
            raise ValueError(
                f"`positives` must have values of {feature.dtype}, the dtype of {feature.name!r}. Received: {wrong}"
            )

    def _check_attributes(self) -> None:
        """Refuses two features of one name, whose embedding tables would be taken for each other."""
        known = {feature.name: feature for feature in (*self.user, *self.context)}
        for sequence in self.all_sequences:
            for feature in sequence.attributes:
                if known.setdefault(feature.name, feature) != feature:
                    raise ValueError(
                        f"A name must stand for one feature. Received: {feature} in sequence {sequence.name!r} and "
                        f"{known[feature.name]} elsewhere"
                    )

    @property
    def item_features(self) -> tuple[Feature, ...]:
        """The item id and the item's attributes: what a candidate has."""
        return (self.item_id, *self.item_attributes)

    @property
    def row_features(self) -> tuple[Feature, ...]:
        """The features with one value per impression: of user, context and candidate."""
        return (*self.user, *self.context, *self.item_features)

    @property
    def history_features(self) -> tuple[Feature, ...]:
        """What each behaviour of the history has: the item's features, then the behaviour's own."""
        return (*self.item_features, *self.behaviour_attributes)

    @property
    def all_sequences(self) -> tuple[Sequence, ...]:
        """The history and the sequences beside it."""
        return (Sequence(HISTORY, self.behaviour_attributes, self.max_history_length), *self.sequences)

    def sequence(self, name: str) -> Sequence:
        """The sequence of that name; `"history"` is the history.

        Raises:
            ValueError: if there is none.
        """
        sequences = {sequence.name: sequence for sequence in self.all_sequences}
        if name not in sequences:
            raise ValueError(f"There is no sequence {name!r} in `features`. It has: {', '.join(sequences)}")
        return sequences[name]

    def sequence_features(self, sequence: Sequence) -> tuple[Feature, ...]:
        """What each behaviour of a sequence has: the item's features, then the behaviour's own."""
        return (*self.item_features, *sequence.attributes)

    @property
    def all_features(self) -> tuple[Feature, ...]:
        """Every feature once."""
        attributes = {feature.name: feature for sequence in self.all_sequences for feature in sequence.attributes}
        rows = {feature.name: feature for feature in (*self.user, *self.context, *self.item_features)}
        return tuple({**rows, **attributes}.values())

    @property
    def row_names(self) -> tuple[str, ...]:
        """Raw columns with one entry per impression: user, context, candidate, and the timestamp where it is read."""
        names = [feature.name for feature in self.row_features]
        lengths = [length_name(feature.name) for feature in self.row_features if feature.max_values]
        return (*names, *lengths, *([TIMESTAMP] if self.reads_timestamp else []))

    @property
    def reads_timestamp(self) -> bool:
        """Whether the moment of the impression is among the raw columns: for ages or the calendar."""
        return self.age is not None or self.calendar is not None

    @property
    def history_names(self) -> tuple[str, ...]:
        """Raw columns with one entry per behaviour of the history; with `age`, the timestamps are among them."""
        return self.sequence_names(self.all_sequences[0])

    def sequence_names(self, sequence: Sequence) -> tuple[str, ...]:
        """Raw columns with one entry per behaviour of a sequence; with `age`, the timestamps are among them."""
        names = [sequence.column(feature.name) for feature in self.sequence_features(sequence)]
        names += [
            length_name(sequence.column(feature.name))
            for feature in self.sequence_features(sequence)
            if feature.max_values
        ]
        return (*names, *([] if self.age is None else [sequence.timestamp]))

    @property
    def by_column(self) -> dict[str, Feature]:
        """The feature of every column that holds one, by the column's name."""
        return {
            **{feature.name: feature for feature in self.row_features},
            **{
                sequence.column(feature.name): feature
                for sequence in self.all_sequences
                for feature in self.sequence_features(sequence)
            },
        }

    @property
    def encoded_row_names(self) -> tuple[str, ...]:
        """Columns with one entry per impression, as the model reads them."""
        return (*(feature.name for feature in self.row_features), *self.calendar_names)

    @property
    def calendar_names(self) -> tuple[str, ...]:
        """The encoded columns of the calendar, if there is one."""
        return () if self.calendar is None else tuple(self.calendar.num_indices)

    def encoded_sequence_names(self, sequence: Sequence) -> tuple[str, ...]:
        """Columns with one entry per behaviour of a sequence, as the model reads them."""
        names = tuple(sequence.column(feature.name) for feature in self.sequence_features(sequence))
        return names if self.age is None else (*names, sequence.age)

    def with_vocabulary_sizes(self, sizes: Mapping[str, int]) -> Features:
        """A copy in which the features named by `sizes` have those vocabulary sizes."""
        return self._with({name: {"vocabulary_size": size} for name, size in sizes.items()})

    def with_scales(self, scales: Mapping[str, tuple[float, float]]) -> Features:
        """A copy in which the features named by `scales` have those means and standard deviations."""
        return self._with({name: {"mean": mean, "std": std} for name, (mean, std) in scales.items()})

    def with_min_count(self, min_count: int) -> Features:
        """A copy in which every id feature has that `min_count`."""
        return self._with({feature.name: {"min_count": min_count} for feature in self.all_features if feature.is_id})

    def _with(self, changes: Mapping[str, Mapping[str, Any]]) -> Features:
        """A copy in which some features, by name, have other arguments."""

        def changed(feature: Feature) -> Feature:
            return dataclasses.replace(feature, **changes.get(feature.name, {}))

        return dataclasses.replace(
            self,
            item_id=changed(self.item_id),
            item_attributes=tuple(map(changed, self.item_attributes)),
            behaviour_attributes=tuple(map(changed, self.behaviour_attributes)),
            user=tuple(map(changed, self.user)),
            context=tuple(map(changed, self.context)),
            sequences=tuple(
                dataclasses.replace(sequence, attributes=tuple(map(changed, sequence.attributes)))
                for sequence in self.sequences
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """The description as JSON-ready values; `Features.from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Features:
        """The description that `to_dict` wrote."""
        roles = ("item_attributes", "behaviour_attributes", "user", "context")
        # Older descriptions lack these.
        age, sequences, positives = values.get("age"), values.get("sequences", ()), values.get("positives")
        calendar = values.get("calendar")
        return cls(
            item_id=Feature(**values["item_id"]),
            **{role: tuple(Feature(**feature) for feature in values[role]) for role in roles},
            hashed=tuple(values["hashed"]),
            max_history_length=values["max_history_length"],
            age=None if age is None else Age(**age),
            calendar=None if calendar is None else Calendar(**calendar),
            sequences=tuple(
                Sequence(**{**sequence, "attributes": tuple(Feature(**feature) for feature in sequence["attributes"])})
                for sequence in sequences
            ),
            positives=None if positives is None else Positives(**positives),
        )
