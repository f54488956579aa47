"""Columns of the data contract: their names, their types, and how each is embedded."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_eta.time_units import UNIT_STARTS
from keras_eta.validation import check_positive_integers, is_integer, is_number

LABEL = "label"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
HISTORY = "history"
HISTORY_LENGTH = "history_length"
HISTORY_TIMESTAMP = "history_timestamp"
HISTORY_AGE = "history_age"
HOUR = "timestamp_hour"
WEEKDAY = "timestamp_weekday"

ID_DTYPES = ("int64", "string")
DTYPES = (*ID_DTYPES, "float32")


def history_name(name: str) -> str:
    """Name of the sequence that holds `name` for each behaviour: `item_id` -> `history_item_id`."""
    return f"{HISTORY}_{name}"


def length_name(name: str) -> str:
    """Name of the raw column that says how many values count: `genres` -> `genres_length`."""
    return f"{name}_length"


@dataclasses.dataclass(frozen=True)
class Feature:
    """One column of the data contract.

    An id feature (`int64` or `string`) is looked up in a vocabulary and embedded. Its indices are: 0 for padding, then
    `num_oov_indices` buckets for ids that the vocabulary lacks, then the vocabulary. Of a `float32` feature x the model
    reads (x - mean) / std, cut off at 10 standard deviations: a price of 10,000 among prices of 3 would drown all else.

    Args:
        name: column name, e.g. `"item_id"`; any printable text, so `"device type"` and `"C1-site"` are allowed.
        dtype: `"int64"`, `"string"` or `"float32"`.
        embedding_dim: width of the embedding of an id feature.
        vocabulary_size: number of ids in the vocabulary, without padding and out-of-vocabulary buckets. `None`: as many
            as the data holds when the vocabulary is adapted; a number then keeps the most frequent ids.
        num_oov_indices: out-of-vocabulary buckets of an id feature.
        min_count: times that the data must hold an id for the vocabulary to have it. An embedding that was trained by
            one or two rows says little; the out-of-vocabulary one has learned from all such ids.
        max_values: V of an id feature with several values, e.g. the genres of a film: the mean of the embeddings of the
            first V counts. Raw columns then have an axis of V more, and a column `<name>_length` says how many of them
            are real. `None`: one value.
        mean: of a float32 feature's values in the training data. `None`: learned where vocabularies are adapted; where
            they are not, the model reads the values as they are. `mean=0, std=1` leaves them so, but for the cut.
        std: their standard deviation; given with `mean` or not at all.
        optional: whether values of a float32 feature may be missing, which is NaN in columns. The model then reads the
            mean in place of a missing value, and a second number, 1 where the value is missing and 0 elsewhere.

    Raises:
        ValueError: if an argument is out of its range.
    """

    name: str
    dtype: str = "int64"
    embedding_dim: int = 32
    vocabulary_size: int | None = None
    num_oov_indices: int = 1
    max_values: int | None = None
    min_count: int = 1
    mean: float | None = None
    std: float | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or not self.name.isprintable():
            raise ValueError(f"`name` must be a non-empty string of printable characters. Received: name={self.name!r}")
        if self.dtype not in DTYPES:
            raise ValueError(
                f"`dtype` of feature {self.name!r} must be one of {DTYPES}. Received: dtype={self.dtype!r}"
            )
        for argument in ("embedding_dim", "num_oov_indices", "min_count"):
            value = getattr(self, argument)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"`{argument}` of feature {self.name!r} must be a positive integer. Received: {argument}={value!r}"
                )
        if self.vocabulary_size is not None and not is_integer(self.vocabulary_size, 1):
            raise ValueError(
                f"`vocabulary_size` of feature {self.name!r} must be a positive integer or None. "
                f"Received: vocabulary_size={self.vocabulary_size!r}"
            )
        if self.max_values is not None and not (self.is_id and is_integer(self.max_values, 1)):
            raise ValueError(
                f"`max_values` of feature {self.name!r} must be a positive integer, and the feature an id, or None. "
                f"Received: max_values={self.max_values!r}, dtype={self.dtype!r}"
            )
        if not isinstance(self.optional, bool) or (self.optional and self.is_id):
            raise ValueError(
                f"`optional` of feature {self.name!r} must be True or False, and True only of a float32. "
                f"Received: optional={self.optional!r}, dtype={self.dtype!r}"
            )
        scale = [number for number in (self.mean, self.std) if number is not None]
        if scale and (self.is_id or len(scale) < 2 or not all(map(is_number, scale)) or scale[1] <= 0):
            raise ValueError(
                f"`mean` and `std` of feature {self.name!r} must be finite numbers, `std` above 0, and the feature a "
                f"float32, or both None. Received: mean={self.mean!r}, std={self.std!r}, dtype={self.dtype!r}"
            )

    @property
    def is_id(self) -> bool:
        """Whether the feature is looked up and embedded."""
        return self.dtype in ID_DTYPES

    @property
    def values_shape(self) -> tuple[int, ...]:
        """The shape of what one row or behaviour holds: `()`, or `(max_values,)`."""
        return () if self.max_values is None else (self.max_values,)

    @property
    def num_indices(self) -> int:
        """Rows of the embedding table: padding, out-of-vocabulary buckets and the vocabulary.

        Raises:
            ValueError: if the feature is no id or its vocabulary size is not known yet.
        """
        if not self.is_id:
            raise ValueError(f"Feature {self.name!r} has dtype {self.dtype!r} and no vocabulary.")
        if self.vocabulary_size is None:
            raise ValueError(
                f"The vocabulary size of feature {self.name!r} is not known. Set `vocabulary_size`, or adapt a "
                "`FeatureLookup` and use its `features`."
            )
        return 1 + self.num_oov_indices + self.vocabulary_size

    @property
    def width(self) -> int:
        """Number of floats that the feature contributes to the model's input."""
        if self.is_id:
            return self.embedding_dim
        return 2 if self.optional else 1


@dataclasses.dataclass(frozen=True)
class Age:
    """The time between a behaviour and the impression, cut into buckets and embedded with the behaviour.

    Bucket 0 is padding. A behaviour's bucket is 1 + the number of `boundaries` that its age has reached:
    `boundaries=(60, 3600)` makes 1 of an age below a minute, 2 from a minute on, 3 from an hour on. A behaviour later
    than the impression counts as one at the same moment.

    Args:
        boundaries: ages at which a new bucket begins, in the unit of the log's timestamps (seconds), ascending.
        embedding_dim: width of the embedding of a bucket.

    Raises:
        ValueError: if an argument is out of its range.
    """

    boundaries: tuple[int, ...]
    embedding_dim: int = 8

    def __post_init__(self) -> None:
        boundaries = tuple(self.boundaries) if isinstance(self.boundaries, (tuple, list)) else ()
        whole = all(isinstance(boundary, int) and not isinstance(boundary, bool) for boundary in boundaries)
        if not boundaries or not whole or list(boundaries) != sorted(set(boundaries)) or boundaries[0] < 1:
            raise ValueError(
                "`boundaries` must be positive integers, at least one, strictly ascending. "
                f"Received: boundaries={self.boundaries!r}"
            )
        object.__setattr__(self, "boundaries", boundaries)
        check_positive_integers(embedding_dim=self.embedding_dim)

    @property
    def num_indices(self) -> int:
        """Rows of the embedding table: padding, and one more bucket than there are boundaries."""
        return len(self.boundaries) + 2


@dataclasses.dataclass(frozen=True)
class Calendar:
    """The hour of the day and the day of the week of an impression, made of its timestamp and embedded.

    Args:
        unit: of the timestamps, moments since 1970 in UTC: `"seconds"`, `"milliseconds"`, `"microseconds"` or
            `"nanoseconds"`.
        utc_offset: hours by which the users' time is ahead of UTC, e.g. 1, 5.5 or -8.
        embedding_dim: width of either embedding.

    Raises:
        ValueError: if an argument is out of its range.
    """

    unit: str = "seconds"
    utc_offset: float = 0.0
    embedding_dim: int = 8

    def __post_init__(self) -> None:
        if self.unit not in UNIT_STARTS:
            raise ValueError(f"`unit` must be one of {list(UNIT_STARTS)}. Received: unit={self.unit!r}")
        if not is_number(self.utc_offset) or not -24 < self.utc_offset < 24:
            raise ValueError(
                f"`utc_offset` must be a number of hours between -24 and 24. Received: utc_offset={self.utc_offset!r}"
            )
        check_positive_integers(embedding_dim=self.embedding_dim)

    @property
    def num_indices(self) -> dict[str, int]:
        """Rows of the embedding table of each column; row 0 is not used."""
        return {HOUR: 25, WEEKDAY: 8}

    @property
    def offset_seconds(self) -> int:
        """`utc_offset` in seconds."""
        return round(3_600 * self.utc_offset)


@dataclasses.dataclass(frozen=True)
class Sequence:
    """A sequence of behaviours beside the history, e.g. purchases beside clicks, or clusters of behaviours.

    Each of its behaviours has the item's features and attributes of its own. Its raw columns are `<name>_<feature>` and
    `<name>_length`, and with `Features.age` `<name>_timestamp`, most recent first.

    Args:
        name: what its columns begin with, e.g. `"purchases"`.
        attributes: columns of a behaviour that a candidate lacks. A name that another sequence has, or the history,
            stands for the same feature, and shares its embedding table.
        max_length: the number of most recent behaviours that the model reads.

    Raises:
        TypeError: if an attribute is no `Feature`.
        ValueError: if the name is empty or not printable, or the length is not positive.
    """

    name: str
    attributes: tuple[Feature, ...] = ()
    max_length: int = 512

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or not self.name.isprintable():
            raise ValueError(f"`name` must be a non-empty string of printable characters. Received: name={self.name!r}")
        object.__setattr__(self, "attributes", checked_features("attributes", self.attributes))
        check_positive_integers(max_length=self.max_length)

    def column(self, name: str) -> str:
        """Name of the column that holds `name` for each behaviour: `item_id` -> `purchases_item_id`."""
        return f"{self.name}_{name}"

    @property
    def length(self) -> str:
        """Name of the column with the number of behaviours."""
        return length_name(self.name)

    @property
    def timestamp(self) -> str:
        """Name of the raw column with the behaviours' timestamps."""
        return self.column(TIMESTAMP)

    @property
    def age(self) -> str:
        """Name of the encoded column with the buckets of the behaviours' ages."""
        return self.column("age")


@dataclasses.dataclass(frozen=True)
class Positives:
    """Which behaviours of the history speak for their item: those of some values of an attribute, or from one on.

    Args:
        attribute: name of a behaviour attribute with one value, e.g. `"rating"` or `"action"`.
        values: raw ids that are positive, of an id, e.g. `("buy", "cart")`.
        minimum: values from here on are positive, of a float32.

    Raises:
        TypeError: if `values` are one text.
        ValueError: if not just one of `values` and `minimum` is given, or `minimum` is no finite number.
    """

    attribute: str
    values: tuple[int | str, ...] = ()
    minimum: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.values, (str, bytes)):
            raise TypeError(f"`values` must be a tuple of raw ids. Received: values={self.values!r}")
        object.__setattr__(self, "values", tuple(self.values))
        if bool(self.values) == (self.minimum is not None):
            raise ValueError(
                "Give either `values` or a `minimum` of positive behaviours. "
                f"Received: values={self.values}, minimum={self.minimum}"
            )
        if self.minimum is not None and not is_number(self.minimum):
            raise ValueError(f"`minimum` must be a finite number or None. Received: minimum={self.minimum!r}")


def checked_features(role: str, features: Any) -> tuple[Feature, ...]:
    """The features as a tuple, once each is one; else a TypeError."""
    features = tuple(features)
    wrong = [feature for feature in features if not isinstance(feature, Feature)]
    if wrong:
        raise TypeError(f"`{role}` must hold Feature objects. Received: {wrong}")
    return features


class RawColumns(dict[str, Any]):
    """A batch of raw columns, which no ranker takes for rows of its tables. `tf.data` and `tf.nest` keep the type."""
