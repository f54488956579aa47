"""Layouts of raw logs: where the columns of an interaction stand, what its label is, and what the model reads of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_eta.columns import LABEL, TIMESTAMP, Age, Feature, Positives, Sequence
from keras_eta.datasets.clustering import SIZE, SNAPSHOT
from keras_eta.datasets.taobao import END_TIMESTAMP, FIRST_TIMESTAMP
from keras_eta.features import Features
from keras_eta.validation import is_number
from tfx_pipeline.behaviours import ClusterSequence, Selection
from tfx_pipeline.joined_table import JoinedTable
from tfx_pipeline.sampling import NegativeSampling

USER_ID = "user_id"

CSV = "csv"
PARQUET = "parquet"

MINUTE, HOUR, DAY = 60, 3_600, 86_400
AGE_BOUNDARIES = (MINUTE, HOUR, 6 * HOUR, DAY, 3 * DAY, 7 * DAY, 14 * DAY, 30 * DAY, 90 * DAY, 180 * DAY, 365 * DAY)


@dataclasses.dataclass(frozen=True)
class Label:
    """Which interactions are positive.

    Args:
        column: the file's column that tells. `None`: every interaction is positive; `Layout.negatives` are sampled.
        minimum: values from here on are positive.
        positives: values that are positive, e.g. actions. Without `minimum` and `positives` the column holds 0 and 1.
        negatives: values that are negative; a row with a value of neither is then malformed. Empty: all other values.

    Raises:
        ValueError: if `minimum` is no number, both rules are given, `negatives` come without `positives` or one value
            is in both, `column` is empty, or there is a rule without a column.
    """

    column: str | None
    minimum: float | None = None
    positives: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("positives", "negatives"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.column == "" or (self.column is None and (self.minimum is not None or self.positives)):
            raise ValueError(f"`column` of the label must be a column of the file. Received: column={self.column!r}")
        if self.minimum is not None and not is_number(self.minimum):
            raise ValueError(f"`minimum` of the label must be a finite number. Received: minimum={self.minimum!r}")
        if self.minimum is not None and self.positives:
            raise ValueError(
                "Give a label either a `minimum` or `positives`. "
                f"Received: minimum={self.minimum}, positives={self.positives}"
            )
        if self.negatives and (not self.positives or set(self.negatives) & set(self.positives)):
            raise ValueError(
                "`negatives` of a label must go with `positives` and differ from them. "
                f"Received: positives={self.positives}, negatives={self.negatives}"
            )


@dataclasses.dataclass(frozen=True)
class Layout:
    """How files hold interactions, one a row, and the model's columns.

    Args:
        features: the model's columns. `user_id` may be among them or not; it is read in any case.
        pattern: the files, relative to the data directory, e.g. `"ratings.dat"`, `"part-*.parquet"` or
            `"day-{SPAN}/*.csv"` for daily drops: the newest span and all before it are read.
        label: which interactions are positive.
        columns: column of the contract -> column of the file; those not named have the same name in both. The file
            column `"label"` stands for the label itself, for a behaviour attribute such as "liked".
        file_format: `"csv"` or `"parquet"`.
        separator: between two values of a CSV row; more than one character is allowed, quoting then is not.
        header: names of a CSV file's columns, where its first line is data. Empty: the first line names them.
        encoding: of a CSV file.
        slice_columns: columns of the file, one value an impression, that evaluation slices by, whether the model reads
            them or not.
        items: a table of items whose columns are read as if they stood in the file. Its features are looked up by id in
            the export as well, so that requests lack them.
        users: likewise, of users.
        first_timestamp: rows before it are malformed.
        end_timestamp: rows from it on are malformed.
        selections: which interactions are behaviours of which sequence, where not all of them are.
        list_separator: between the values of a feature with `max_values`. (Parquet files hold lists.)
        clusters: the sequence that holds clusters of behaviours, where there is one.
        negatives: how negatives are sampled, where the log holds positives only.
        user_dtype: of the user's id where it is no feature: `"int64"` or `"string"`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    features: Features
    pattern: str
    label: Label
    columns: tuple[tuple[str, str], ...] = ()
    file_format: str = CSV
    separator: str = ","
    header: tuple[str, ...] = ()
    encoding: str = "utf-8"
    slice_columns: tuple[str, ...] = ()
    items: JoinedTable | None = None
    users: JoinedTable | None = None
    first_timestamp: int | None = None
    end_timestamp: int | None = None
    selections: tuple[Selection, ...] = ()
    list_separator: str = "|"
    clusters: ClusterSequence | None = None
    negatives: NegativeSampling | None = None
    user_dtype: str = "string"

    def __post_init__(self) -> None:
        for name in ("header", "slice_columns", "selections"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "columns", tuple((name, source) for name, source in self.columns))
        if not self.pattern:
            raise ValueError(f"`pattern` must name files. Received: pattern={self.pattern!r}")
        if "{VERSION" in self.pattern:
            raise ValueError(f"`pattern` must not have a {{VERSION}}. Received: pattern={self.pattern!r}")
        if self.file_format not in (CSV, PARQUET):
            raise ValueError(
                f"`file_format` must be {CSV!r} or {PARQUET!r}. Received: file_format={self.file_format!r}"
            )
        if self.user_dtype not in ("int64", "string"):
            raise ValueError(f"`user_dtype` must be 'int64' or 'string'. Received: user_dtype={self.user_dtype!r}")
        if not self.separator:
            raise ValueError(f"`separator` must be a character or more. Received: separator={self.separator!r}")
        if self.header and len(set(self.header)) != len(self.header):
            raise ValueError(f"`header` must name each column once. Received: header={self.header}")
        if not self.list_separator:
            raise ValueError(f"`list_separator` must be a character or more. Received: {self.list_separator!r}")
        if self.clusters is not None:
            self._check_clusters(self.clusters)
        if self.label.column is None and self.negatives is None:
            raise ValueError("A log whose interactions are all positive needs `negatives`. Received: negatives=None")
        sequences = [sequence.name for sequence in self.log_sequences]
        selected = [selection.sequence for selection in self.selections]
        if not {*selected} <= {*sequences} or len({*selected}) < len(selected):
            raise ValueError(f"`selections` must name each of the sequences {sequences} once. Received: {selected}")
        known = {*self.row_columns, *self.behaviour_columns}
        unknown = [name for name, _ in self.columns if name not in known]
        if unknown:
            raise ValueError(f"`columns` must map columns of the model, among {sorted(known)}. Received: {unknown}")
        self._check_joined()
        missing = [name for name in self.sources if self.header and name not in self.header]
        if missing:
            raise ValueError(f"`header` {self.header} lacks columns that the layout reads: {missing}")

    def _check_joined(self) -> None:
        columns = [name for table in self.joined_tables for name in table.columns]
        ids = (USER_ID, self.features.item_id.name, TIMESTAMP)
        twice = [name for name in columns if columns.count(name) > 1 or name in map(self.source, ids)]
        if twice:
            raise ValueError(
                f"The tables of items and of users must give different columns, and not the ids or times of the log. "
                f"Received: {twice}"
            )
        of_others = {self.source(feature.name) for feature in (*self.features.user, *self.features.context)}
        if self.items is not None and of_others & {*self.items.columns}:
            raise ValueError(
                "A table of items gives attributes of items, and columns to slice by. "
                f"Received: {sorted(of_others & {*self.items.columns})}"
            )
        of_users = {self.source(feature.name) for feature in self.features.user} | {*self.slice_columns}
        if self.users is not None and {*self.users.columns} - of_users:
            raise ValueError(
                "A table of users gives features of users, and columns to slice by. "
                f"Received: {sorted({*self.users.columns} - of_users)}"
            )

    def _check_clusters(self, clusters: ClusterSequence) -> None:
        own = {sequence.name: sequence for sequence in self.features.sequences}
        if clusters.sequence not in own:
            raise ValueError(
                f"`sequence` of the clusters must be one of the features' sequences {list(own)}. "
                f"Received: sequence={clusters.sequence!r}"
            )
        sizes = [feature for feature in own[clusters.sequence].attributes if feature.name == SIZE]
        if not sizes or sizes[0].dtype != "float32":
            raise ValueError(
                f"Sequence {clusters.sequence!r} of clusters must have an attribute {SIZE!r} of dtype 'float32'. "
                f"Received: attributes={own[clusters.sequence].attributes}"
            )
        if clusters.sequence in [selection.sequence for selection in self.selections]:
            raise ValueError(
                "`selections` must not name the sequence of clusters, which holds those of the history. "
                f"Received: {clusters.sequence!r}"
            )
        taken = [name for name in (SIZE, SNAPSHOT) if name in (*self.row_columns, *self.behaviour_columns)]
        if taken:
            raise ValueError(f"The log must not have columns that clusters add. Received: {taken}")
        columns = {*self.row_columns, *self.behaviour_columns} - {USER_ID, self.features.item_id.name}
        features = [f for f in self.features.all_features if f.name in columns and not f.max_values]
        numbers = [feature.name for feature in features if feature.dtype != "string"]
        if clusters.group_by is not None and clusters.group_by not in numbers:
            raise ValueError(
                f"`group_by` of the clusters must name a feature of numbers, among {numbers}. "
                f"Received: group_by={clusters.group_by!r}"
            )
        floats = [feature.name for feature in features if feature.dtype == "float32" and not feature.optional]
        if not {*clusters.means} <= {*floats}:
            raise ValueError(
                f"`means` of the clusters must name float32 features that are not optional, among {floats}. "
                f"Received: means={clusters.means}"
            )

    @property
    def log_sequences(self) -> tuple[Sequence, ...]:
        """The sequences whose behaviours are interactions, the history first: all but that of clusters."""
        clusters = None if self.clusters is None else self.clusters.sequence
        return tuple(sequence for sequence in self.features.all_sequences if sequence.name != clusters)

    @property
    def row_columns(self) -> tuple[str, ...]:
        """The contract's columns with one value an impression, besides label and history."""
        features = (feature.name for feature in self.features.row_features)
        names = (USER_ID, TIMESTAMP, *features, *self.slice_columns)
        return tuple(dict.fromkeys(names))

    @property
    def item_categories(self) -> tuple[str, ...]:
        """The attributes of items that are categories: what the log itself tells of them."""
        return tuple(feature.name for feature in self.features.item_attributes if feature.is_id)

    @property
    def behaviour_columns(self) -> tuple[str, ...]:
        """The contract's columns that only behaviours have, of all sequences; the sizes of clusters are made."""
        names = {sequence.name: [f.name for f in sequence.attributes] for sequence in self.features.all_sequences}
        if self.clusters is not None:
            names[self.clusters.sequence].remove(SIZE)
        return tuple(dict.fromkeys(name for attributes in names.values() for name in attributes))

    def source(self, name: str) -> str:
        """The file's column that holds a column of the contract."""
        return dict(self.columns).get(name, name)

    @property
    def joined_tables(self) -> tuple[JoinedTable, ...]:
        """The tables of items and users that there are."""
        return tuple(table for table in (self.items, self.users) if table is not None)

    def joined_features(self, table: JoinedTable | None) -> tuple[Feature, ...]:
        """The features that a table gives: of items those of its item, of users those of its user."""
        if table is None:
            return ()
        features = self.features.item_attributes if table is self.items else self.features.user
        return tuple(feature for feature in features if self.source(feature.name) in table.columns)

    @property
    def sources(self) -> tuple[str, ...]:
        """Every column that the file must have."""
        joined = [name for table in self.joined_tables for name in table.columns]
        names = (self.source(name) for name in (*self.row_columns, *self.behaviour_columns))
        wanted = [name for name in names if name != LABEL and name not in joined]
        rules = (selection.column for selection in self.selections)
        label = [] if self.label.column is None else [self.label.column]
        return tuple(dict.fromkeys([*wanted, *label, *rules]))

    def to_dict(self) -> dict[str, Any]:
        """The layout as JSON-ready values; `Layout.from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Layout:
        """The layout that `to_dict` wrote."""
        values = dict(values)
        items, users = values.pop("items"), values.pop("users", None)
        # Older descriptions lack them.
        clusters, negatives = values.pop("clusters", None), values.pop("negatives", None)
        return cls(
            features=Features.from_dict(values.pop("features")),
            label=Label(**values.pop("label")),
            items=None if items is None else JoinedTable(**items),
            users=None if users is None else JoinedTable(**users),
            selections=tuple(Selection(**selection) for selection in values.pop("selections", ())),
            clusters=None if clusters is None else ClusterSequence(**clusters),
            negatives=None if negatives is None else NegativeSampling(**negatives),
            **values,
        )


def movielens(max_history_length: int = 512) -> Layout:
    """MovieLens-1M's official folder: `ratings.dat` and `movies.dat`. Positive: 4 or 5 stars."""
    return Layout(
        Features(
            item_id=Feature("item_id"),
            behaviour_attributes=(Feature("rating", embedding_dim=8),),
            age=Age(AGE_BOUNDARIES),
            max_history_length=max_history_length,
            positives=Positives("rating", (4, 5)),
        ),
        pattern="ratings.dat",
        label=Label("rating", minimum=4),
        separator="::",
        header=(USER_ID, "item_id", "rating", TIMESTAMP),
        slice_columns=("genre",),
        items=JoinedTable(
            "movies.dat",
            header=("movie_id", "title", "genre"),
            key="movie_id",
            columns=("genre",),
            separator="::",
            encoding="latin-1",
            list_separator="|",
            text=("name",),
            categories=("decade", "genre"),
            # "Toy Story (1995)"
            extracted=(("name", "title", r"^(.*?)(?: \(\d{4}\))?$"), ("decade", "title", r"\((\d{3})\d\)$")),
        ),
        user_dtype="int64",
    )


def taobao(max_history_length: int = 512) -> Layout:
    """Taobao's `UserBehavior.csv`. Positive: a buy, a cart or a favourite, against a page view.

    As in `keras_eta.datasets.taobao`, rows with another action or a time outside the nine days are malformed.
    """
    return Layout(
        Features(
            item_id=Feature("item_id"),
            item_attributes=(Feature("category_id", embedding_dim=16),),
            behaviour_attributes=(Feature("action", "string", embedding_dim=8),),
            age=Age(AGE_BOUNDARIES),
            max_history_length=max_history_length,
            positives=Positives("action", ("buy", "cart", "fav")),
        ),
        pattern="UserBehavior.csv",
        label=Label("action", positives=("buy", "cart", "fav"), negatives=("pv",)),
        header=(USER_ID, "item_id", "category_id", "action", TIMESTAMP),
        first_timestamp=FIRST_TIMESTAMP,
        end_timestamp=END_TIMESTAMP,
        user_dtype="int64",
    )
