"""A layout of one's own, from words that a command line can give."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from keras_eta.columns import DTYPES, HISTORY, Age, Calendar, Feature, Positives
from keras_eta.columns import Sequence as BehaviourSequence
from keras_eta.datasets.clustering import SIZE
from keras_eta.datasets.negative_draws import Period, Weighting
from keras_eta.features import Features
from tfx_pipeline.behaviours import ClusterSequence, Selection
from tfx_pipeline.joined_table import JoinedTable
from tfx_pipeline.layouts import AGE_BOUNDARIES, CSV, USER_ID, Label, Layout
from tfx_pipeline.sampling import NegativeSampling

_CLUSTERS = "clusters"


def custom(
    pattern: str,
    label: Label,
    columns: Mapping[str, str] = MappingProxyType({}),
    *,
    item_id: str = "item_id",
    item_attributes: Sequence[str] = (),
    behaviour_attributes: Sequence[str] = (),
    positives: str = "",
    user_dtype: str = "string",
    user: Sequence[str] = (),
    context: Sequence[str] = (),
    slice_columns: Sequence[str] = (),
    age_boundaries: Sequence[int] = AGE_BOUNDARIES,
    calendar: str | None = None,
    utc_offset: float = 0.0,
    file_format: str = CSV,
    separator: str = ",",
    header: Sequence[str] = (),
    encoding: str = "utf-8",
    first_timestamp: int | None = None,
    end_timestamp: int | None = None,
    max_history_length: int = 512,
    history: str = "",
    sequences: Sequence[str] = (),
    sequence_attributes: Sequence[str] = (),
    list_separator: str = "|",
    clusters: str = "",
    snapshot_period: int | None = None,
    group_by: str | None = None,
    negatives: int = 0,
    negatives_same: Sequence[str] = (),
    negatives_by: Weighting = "uniform",
    negatives_from: Period = "earlier",
    min_count: int = 1,
    join_items: Sequence[str] = (),
    join_users: Sequence[str] = (),
) -> Layout:
    """A layout of one's own, by a mapping of columns.

    A feature is `"name"` or `"name:dtype"` with a dtype of `keras_eta.Feature`; without, it is `int64`. One of at most
    six values is `"name:dtype[6]"`.

    Args:
        pattern: the files, as in `Layout`.
        label: which interactions are positive.
        columns: column of the contract -> column of the file, e.g. `{"user_id": "uid", "timestamp": "ts"}`. Those not
            named have the same name in both.
        item_id: the item's id, e.g. `"item_id:string"`.
        item_attributes: further features of an item, e.g. `"category_id"`.
        behaviour_attributes: features of a behaviour that a candidate lacks, e.g. `"action:string"`.
        positives: which behaviours of the history speak for their item, by one of their attributes, as
            `"action:buy,cart"` or, of a float32, `"rating>=4"`. Empty: all. Read by the retrieval task.
        user_dtype: of the user's id, `"int64"` or `"string"`; not read where it is among `user`.
        user: features of the user. Only with `"user_id"` among them does the model read that id, which tells nothing of
            users who come later.
        context: features of the impression, e.g. `"price:float32"`.
        slice_columns: columns that evaluation slices by, whether the model reads them or not.
        age_boundaries: of the age of a behaviour, ascending, in the units of the log's timestamps. Empty: the model
            does not read ages.
        calendar: the unit of the timestamps, e.g. `"seconds"`, whose hour and weekday the model reads. `None`: it does
            not.
        utc_offset: of the hours, by which the users' time is ahead of UTC.
        file_format: `"csv"` or `"parquet"`.
        separator: between two values of a CSV row.
        header: names of a CSV file's columns, where its first line is data.
        encoding: of a CSV file.
        first_timestamp: rows before it are malformed.
        end_timestamp: rows from it on are malformed.
        max_history_length: L, the number of most recent behaviours that the model reads of each sequence.
        history: which interactions are behaviours of the history, as `"action:pv,fav"`: a column and its values. Empty:
            all.
        sequences: further sequences of behaviours, each a name and which interactions belong to it, as
            `"purchases=action:buy"`.
        sequence_attributes: features of their behaviours, as `"purchases=price:float32"`.
        list_separator: between the values of a feature of several.
        clusters: `item_vectors` of a `ClusterSequence` of the name `"clusters"`. Its attributes are `size` and those of
            `sequence_attributes`, of which float32 ones are means over the cluster. Empty: there is none.
        snapshot_period: of the clusters.
        group_by: of the clusters, e.g. `"rating"`.
        negatives: number sampled per positive. 0: the log has negatives of its own.
        negatives_same: `same` of a `NegativeSampling`, e.g. `("category_id",)`.
        negatives_by: `by` of it.
        negatives_from: `candidates` of it.
        min_count: times that the training split must hold an id for its vocabulary to have it.
        join_items: a CSV file of items in the data directory, whose first line names its columns, and those that are
            read as if they stood in the log, e.g. `("items.csv", "category_id", "brand")`. The id's column has the name
            that it has in the log; separators and encoding are the log's too. Empty: there is none.
        join_users: likewise of users.

    Raises:
        ValueError: if a feature, a sequence or `positives` is not written so, `snapshot_period` or `group_by` come
            without `clusters`, `negatives_same` and its like without `negatives`, or as `Layout` and `ClusterSequence`.
    """
    selections = [_selection(HISTORY, history)] if history else []
    attributes: dict[str, list[Feature]] = {}
    for text in sequences:
        name, _, rule = text.partition("=")
        selections.append(_selection(name, rule))
        attributes[name] = []
    if clusters:
        attributes[_CLUSTERS] = [_feature(f"{SIZE}:float32", embedding_dim=8)]
    elif snapshot_period is not None or group_by is not None:
        raise ValueError(
            "`snapshot_period` and `group_by` must go with `clusters`. "
            f"Received: snapshot_period={snapshot_period!r}, group_by={group_by!r}"
        )
    if utc_offset and calendar is None:
        raise ValueError(f"`utc_offset` must go with `calendar`. Received: utc_offset={utc_offset!r}")
    sampling = None
    if negatives:
        sampling = NegativeSampling(negatives, tuple(negatives_same), negatives_by, negatives_from)
    elif negatives_same or negatives_by != "uniform" or negatives_from != "earlier":
        raise ValueError(
            "`negatives_same`, `negatives_by` and `negatives_from` must go with `negatives`. "
            f"Received: negatives={negatives!r}"
        )
    tables = {}
    for role, key, words in (("items", item_id.partition(":")[0], join_items), ("users", USER_ID, join_users)):
        if words:
            file, *joined = words
            if not joined:
                raise ValueError(f"A table of {role} must be joined by some of its columns. Received: {file!r} alone")
            source = columns.get(key, key)
            tables[role] = JoinedTable(file, (), source, tuple(joined), separator, encoding)
    for text in sequence_attributes:
        name, _, attribute = text.partition("=")
        if name not in attributes or not attribute:
            raise ValueError(
                f"A sequence's attribute must be written SEQUENCE=FEATURE, with a sequence among {list(attributes)}. "
                f"Received: {text!r}"
            )
        attributes[name].append(_feature(attribute, embedding_dim=8))
    own = tuple(_feature(text, embedding_dim=8) for text in behaviour_attributes)
    features = Features(
        item_id=_feature(item_id),
        item_attributes=tuple(_feature(text, embedding_dim=16) for text in item_attributes),
        behaviour_attributes=own,
        user=tuple(map(_feature, user)),
        context=tuple(_feature(text, embedding_dim=8) for text in context),
        age=Age(tuple(age_boundaries)) if age_boundaries else None,
        calendar=None if calendar is None else Calendar(calendar, utc_offset),
        max_history_length=max_history_length,
        sequences=tuple(BehaviourSequence(name, tuple(of), max_history_length) for name, of in attributes.items()),
        positives=_positives(positives, own) if positives else None,
    )
    return Layout(
        features.with_min_count(min_count),
        pattern=pattern,
        label=label,
        columns=tuple(columns.items()),
        file_format=file_format,
        separator=separator,
        header=tuple(header),
        encoding=encoding,
        slice_columns=tuple(slice_columns),
        first_timestamp=first_timestamp,
        end_timestamp=end_timestamp,
        selections=tuple(selections),
        list_separator=list_separator,
        clusters=_cluster_sequence(clusters, snapshot_period, group_by, attributes[_CLUSTERS]) if clusters else None,
        negatives=sampling,
        user_dtype=user_dtype,
        **tables,
    )


def _cluster_sequence(
    item_vectors: str, snapshot_period: int | None, group_by: str | None, attributes: Sequence[Feature]
) -> ClusterSequence:
    means = tuple(feature.name for feature in attributes if feature.dtype == "float32" and feature.name != SIZE)
    # `ClusterSequence` refuses None.
    return ClusterSequence(item_vectors, snapshot_period, _CLUSTERS, group_by, means=means)  # type: ignore[arg-type]


def _selection(sequence: str, text: str) -> Selection:
    """The selection that `"column:value,value"` describes."""
    column, _, values = text.partition(":")
    if not sequence or not column or not all(values.split(",")):
        raise ValueError(
            "Which interactions belong to a sequence must be written COLUMN:VALUE,VALUE. "
            f"Received: {text!r} of sequence {sequence!r}"
        )
    return Selection(sequence, column, tuple(values.split(",")))


def _positives(text: str, attributes: Sequence[Feature]) -> Positives:
    """The positives that `"attribute:value,value"` or `"attribute>=minimum"` describes."""
    name, bound, minimum = text.rpartition(">=")
    try:
        if bound and name:
            return Positives(name, minimum=float(minimum))
        name, _, values = text.rpartition(":")
        if not name or not all(values.split(",")):
            raise ValueError
        integers = any(feature.name == name and feature.dtype == "int64" for feature in attributes)
        return Positives(name, tuple(int(value) if integers else value for value in values.split(",")))
    except ValueError as error:
        raise ValueError(
            "`positives` must be written ATTRIBUTE:VALUE,VALUE or ATTRIBUTE>=MINIMUM, with integers of an int64 and a "
            f"finite minimum. Received: {text!r}"
        ) from error


def _feature(text: str, embedding_dim: int = 32) -> Feature:
    """The feature that `"name"`, `"name:dtype"`, `"name:dtype[max_values]"` or, optional, `"name:dtype?"` describes."""
    name, _, kind = text.rpartition(":") if ":" in text else (text, "", "int64")
    found = re.fullmatch(r"([a-z0-9]+)(?:\[([0-9]+)\])?(\?)?", kind)
    if not name or found is None or found[1] not in DTYPES:
        raise ValueError(
            "A feature must be written `name`, `name:dtype`, `name:dtype[max_values]` or `name:float32?`, dtype one of "
            f"{DTYPES}. Received: {text!r}"
        )
    most = None if found[2] is None else int(found[2])
    return Feature(name, found[1], embedding_dim, max_values=most, optional=found[3] is not None)
