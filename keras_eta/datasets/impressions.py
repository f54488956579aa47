"""Impressions: rows to train and evaluate on, each with the behaviours strictly before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from keras_eta.columns import HISTORY, TIMESTAMP
from keras_eta.datasets.columns import REQUIRED_COLUMNS, USER_ID, Column, count_rows, parse_column
from keras_eta.datasets.histories import BehaviourLog, Histories
from keras_eta.datasets.interactions import Interactions, Rejection, Report
from keras_eta.features import Features
from keras_eta.validation import check_integers_from_zero

if TYPE_CHECKING:
    import tensorflow as tf

    from keras_eta.datasets.batches import Lookup


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Impressions:
    """Impressions over a log: the candidate and context of each, its label, and where its history lies.

    The history of row i is `log` rows `start[i]:end[i]`: behaviours of the same user, ascending in time, strictly
    before the impression. Behaviours at the impression's own timestamp are never among them: order inside a tie is
    not real order. Nothing is copied until a batch is made.

    `impressions[rows]` (an index array, a bool mask or a slice) is a selection over the same log.

    Args:
        log: the behaviours.
        start: int64 [n], first log row of each history.
        end: int64 [n], the log row after the last of each history.
        columns: name -> column [n]: the candidate's `item_id` and attributes, `user_id` and user features, context,
            `timestamp`. In the forms that `Interactions.from_columns` takes; values of `log.optional` may be missing.
        label: int64 [n], 0 or 1.
        sequences: where further sequences of behaviours lie, by name; `with_sequence` adds one.

    Raises:
        ValueError: if a column is missing or has bad values, lengths differ, a label is not 0 or 1, or a history is not
            of the same user or reaches the impression's own timestamp.
    """

    log: Interactions
    start: np.ndarray
    end: np.ndarray
    columns: Mapping[str, Column]
    label: np.ndarray
    sequences: Mapping[str, Histories] = MappingProxyType({})

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", _checked_columns(self.columns, self.log.optional))
        size = len(self.columns[USER_ID])
        object.__setattr__(self, "label", _checked_label(self.label, size))
        for name in ("start", "end"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), "int64"))
        for log, start, end in self.histories.values():
            log.check_bounds(start, end, self.columns[USER_ID], self.timestamps)

    @classmethod
    def from_columns(
        cls, log: Interactions, columns: Mapping[str, Any], label: Any, *, min_history: int = 0
    ) -> Impressions:
        """Find the history of each impression in a log of behaviours.

        Args:
            log: the behaviours.
            columns: name -> column [n] of the impressions; `user_id`, `item_id` and `timestamp` are required. A user
                whom the log lacks has an empty history.
            label: bool or integers [n], 0 or 1.
            min_history: impressions with fewer earlier behaviours are left out, and the number of them printed.

        Raises:
            ValueError: as the constructor; if `min_history` is negative; if it leaves no impression.
        """
        check_integers_from_zero(min_history=min_history)
        checked = _checked_columns(columns, log.optional)
        start, end = log.bounds(checked[USER_ID], np.asarray(checked[TIMESTAMP]))
        impressions = cls(log, start, end, checked, label)
        counts = impressions.history_counts
        kept = np.flatnonzero(counts >= min_history)
        if len(kept) == len(counts):
            return impressions
        if not len(kept):
            raise ValueError(
                f"No impression has `min_history`={min_history} earlier behaviours; the longest history has "
                f"{counts.max()}."
            )
        short = Rejection(f"with fewer than {min_history} earlier behaviours", len(counts) - len(kept))
        print(f"Impressions: {Report(len(counts), len(kept), (short,))}")
        return impressions[kept]

    @classmethod
    def from_interactions(
        cls,
        log: Interactions,
        label: Any | Callable[[Interactions], Any],
        *,
        min_history: int = 5,
        outcomes: Sequence[str] = (),
    ) -> Impressions:
        """Take every interaction of a log as an impression of its item.

        Args:
            log: the interactions; also the behaviours that make up the histories.
            label: a function of the log that returns bool or integers [n], 0 or 1. Or these values themselves, where
                the rows of the log stand in the order in which they came.
            min_history: impressions with fewer earlier behaviours are left out, and the number of them printed.
            outcomes: columns that are known only once the impression is over (rating, dwell, action). The impressions
                lack them, so no model can read the answer; histories have them.

        Raises:
            ValueError: as `from_columns`; if the log lacks one of `outcomes`; if `label` is no function and the rows of
                the log were sorted or left out.

        Example:
            >>> impressions = Impressions.from_interactions(
            ...     log, label=lambda log: log["rating"] >= 4, outcomes=("rating",)
            ... )
        """
        unknown = [name for name in outcomes if name not in log.columns or name in REQUIRED_COLUMNS]
        if unknown:
            raise ValueError(
                f"`outcomes` must name columns of {list(log.columns)}, the required ones excepted. Received: {unknown}"
            )
        if not callable(label):
            left_out = np.size(label) == log.report.rows_read != len(log)
            if log.reordered or left_out:
                happened = "left out" if left_out else "sorted"
                raise ValueError(
                    f"Rows of the log were {happened}, so the values of `label` may belong to other rows. Make what "
                    "tells the label a column of the log, and `label` a function of the log, e.g. label=lambda log: "
                    f"log['clicked'], outcomes=('clicked',). Received: label={type(label).__name__}"
                )
        columns = {name: column for name, column in log.columns.items() if name not in outcomes}
        return cls.from_columns(log, columns, label(log) if callable(label) else label, min_history=min_history)

    def with_sequence(self, name: str, log: BehaviourLog) -> Impressions:
        """The impressions with one more sequence: the behaviours of another log before each.

        Args:
            name: name of the sequence, as `Features.sequences` has it.
            log: the behaviours: `Interactions`, e.g. of purchases beside clicks.

        Raises:
            ValueError: if there is a sequence of that name already.

        Example:
            >>> impressions = Impressions.from_interactions(clicks, label).with_sequence("purchases", purchases)
        """
        if name in self.histories:
            raise ValueError(f"There is a sequence {name!r} already. Received: name={name!r}")
        found = Histories(log, *log.bounds(self.columns[USER_ID], self.timestamps))
        return dataclasses.replace(self, sequences={**self.sequences, name: found})

    @property
    def histories(self) -> dict[str, Histories]:
        """Where the behaviours of every sequence lie, by name; that of the history is `"history"`."""
        return {HISTORY: Histories(self.log, self.start, self.end), **self.sequences}

    @property
    def timestamps(self) -> np.ndarray:
        """int64 [n], when each impression was."""
        return np.asarray(self.columns[TIMESTAMP])

    @property
    def timestamp_range(self) -> tuple[int, int]:
        """When the first and the last impression was: what `export_model(timestamps=...)` takes of a training part.

        Raises:
            ValueError: if there are no impressions.
        """
        if not len(self):
            raise ValueError("There are no impressions, which a range of timestamps could be of.")
        return int(self.timestamps.min()), int(self.timestamps.max())

    @property
    def history_counts(self) -> np.ndarray:
        """int64 [n], how many behaviours lie before each impression, before any truncation."""
        return self.end - self.start

    def past_columns(self) -> dict[str, np.ndarray]:
        """The columns of the log up to the last impression: of the training part, what a vocabulary may know.

        Columns that the log lacks are those of further sequences, up to the same moment, or of the impressions. An id
        that is in the vocabulary but not in the training part has an embedding that is never trained.

        Example:
            >>> lookup.adapt(train.past_columns())
        """
        last = self.timestamps.max()
        columns = {name: np.asarray(column) for name, column in self.columns.items()}
        for log in (*(sequence.log for sequence in self.sequences.values()), self.log):
            past = np.asarray(log.columns[TIMESTAMP]) <= last
            columns |= {name: np.asarray(column[past]) for name, column in log.columns.items()}
        return columns

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: Any) -> Impressions:
        return Impressions(
            self.log,
            self.start[rows],
            self.end[rows],
            {name: column[rows] for name, column in self.columns.items()},
            self.label[rows],
            {name: Histories(log, start[rows], end[rows]) for name, (log, start, end) in self.sequences.items()},
        )

    def __repr__(self) -> str:
        return f"Impressions({len(self):,} rows, columns: {', '.join(self.columns)}; log: {self.log!r})"

    def sample(self, size: int, seed: int = 0) -> Impressions:
        """`size` impressions drawn without replacement, in their order.

        Raises:
            ValueError: if there are fewer.
        """
        if not 0 < size <= len(self):
            raise ValueError(f"`size` must be between 1 and {len(self)}, the number of rows. Received: size={size}")
        return self[np.sort(np.random.default_rng(seed).choice(len(self), size, replace=False))]

    def to_dataset(
        self,
        features: Features,
        batch_size: int,
        *,
        lookup: Lookup | None = None,
        shuffle: bool = False,
        seed: int | None = None,
        drop_remainder: bool = False,
    ) -> tf.data.Dataset:
        """Batches of (inputs, label) for `model.fit`, of known cardinality, and of sizes that differ by at most 1.

        With L = `features.max_history_length` the inputs hold, for each column that `features` names, `<name>` [N] of
        the row and `history_<name>` [N, L] of its behaviours, most recent first, and `history_length` int64 [N], the
        number of behaviours among the L. Histories are padded with 0, 0.0 or "". The label is int64 [N].

        Ids are raw (int64 or string), and refused by rankers, unless a `lookup` is given. It turns each column into
        indices once, here, so batches carry int32 indices under the same names, padded with 0, and training pays for no
        lookup.

        A feature of V values has an axis of V more, and in raw batches a column `<name>_length`. The columns of
        `features.sequences`, which `with_sequence` gives the impressions, are like those of the history.

        With `features.age` raw batches hold `timestamp` int64 [N] and `history_timestamp` int64 [N, L], and batches of
        indices `history_age` int32 [N, L] in place of both.

        Args:
            features: the columns that the model reads.
            batch_size: the largest N. Rows are spread evenly: a last batch of a few rows would move the weights as far
                as a full one.
            lookup: a `keras_eta.layers.FeatureLookup` of the same features.
            shuffle: whether to go through all rows in a new random order every epoch.
            seed: of the shuffle; `None` draws one.
            drop_remainder: whether all batches have `batch_size` rows, and those that are left over are left out.

        Raises:
            ValueError: if there are no rows, `batch_size` is not positive, a column or a sequence is missing, or its
                type is not the feature's.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a positive integer. Received: batch_size={batch_size!r}")
        if not len(self):
            raise ValueError("There are no impressions to make a dataset of.")
        # TensorFlow, which logs are read without.
        from keras_eta.datasets.batches import make_dataset

        return make_dataset(
            self.columns, self.label, self.histories, features, batch_size, lookup, shuffle, seed, drop_remainder
        )


def temporal_split(
    impressions: Impressions,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    *,
    timestamps: np.ndarray | None = None,
) -> tuple[Impressions, Impressions, Impressions]:
    """Split by time: train on the past, evaluate on the future.

    With (0.8, 0.1, 0.1), train <= 80 % quantile < validation <= 90 % quantile < test.

    Args:
        impressions: what to split.
        fractions: shares of `timestamps` in train, validation and test.
        timestamps: 1-D numbers whose quantiles bound the parts. Default: those of the whole log, which is the usual
            choice where every interaction is an impression.

    Returns:
        Train, validation and test impressions.

    Raises:
        ValueError: if `fractions` are not three positive numbers that add up to 1, or a part is empty.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or not np.isclose(sum(fractions), 1):
        raise ValueError(
            f"`fractions` must be three positive numbers that add up to 1. Received: fractions={fractions}"
        )
    if timestamps is None:
        timestamps = impressions.log.timestamps
    lower, upper = np.quantile(timestamps, [fractions[0], 1 - fractions[2]])
    times = impressions.timestamps
    parts = {
        "train": times <= lower,
        "validation": (times > lower) & (times <= upper),
        "test": times > upper,
    }
    sizes = {name: int(mask.sum()) for name, mask in parts.items()}
    if not all(sizes.values()):
        raise ValueError(
            f"A temporal split at timestamps {lower:.10g} and {upper:.10g} leaves a part empty: {sizes}. Use other "
            "`fractions` or more data."
        )
    train, validation, test = (impressions[mask] for mask in parts.values())
    return train, validation, test


def _checked_columns(columns: Mapping[str, Any], optional: Collection[str]) -> dict[str, Column]:
    count_rows("impressions", columns)
    checked = {}
    for name, values in columns.items():
        checked[name], faults = parse_column(name, values, optional=name in optional)
        for reason, mask in faults.items():
            if mask.any():
                row = mask.argmax()
                raise ValueError(
                    f"The impressions hold {mask.sum():,} {reason}, the first at row {row}. Leave them out."
                )
    return checked


def _checked_label(label: Any, size: int) -> np.ndarray:
    values = np.asarray(label)
    if values.shape != (size,):
        raise ValueError(f"`label` must have shape [{size}]. Received: shape {list(values.shape)}")
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"`label` must hold 0 and 1 only. Received: {pd.unique(values[~np.isin(values, (0, 1))])[:5]}")
    return values.astype("int64")
