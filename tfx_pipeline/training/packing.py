"""Transformed impressions in memory, with what the histories of successive ones have in common held once.

In the files a user's impressions lie side by side, some at a time, and the history of one is mostly that of the one
before it, with a few behaviours more. What is read, inflated and parsed here serves all epochs.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_eta.columns import TIMESTAMP
from keras_eta.columns import Sequence as BehaviourSequence
from keras_eta.datasets.batches import batch_bounds, made_ahead
from keras_eta.features import Features
from tfx_pipeline.training.batches import Part, added, files_of, measure, transformed_batches

_logger = logging.getLogger(__name__)

# Of all that is held; as much as the shuffle buffer takes where files are read in each epoch.
PACKED_BYTES = 2**28
# Values of a sequence's column that are read at a time, and impressions: the files may hold more than is read.
_READ_VALUES, _READ_ROWS = 2**22, 2**13
# Behaviours by which a history may exceed the one before it, and still be held as its continuation.
_MOST_NEW = 64


def part_batches(
    part: Part,
    features: Features,
    batch_size: int,
    *,
    seed: int | None = None,
    first: int = 0,
) -> tf.data.Dataset:
    """Batches of a part, from memory where it is there, else from its files.

    Args:
        part: as `measure` or `pack` gives it.
        features: the columns.
        batch_size: N at most; batches are as even as can be.
        seed: of the order: of all impressions, or, from files, of those in a buffer. `None`: that of the files.
        first: the number of the batch to begin with.

    Returns:
        A dataset of (columns, label), as `transformed_batches` gives them.
    """
    bounds = batch_bounds(part.num_examples, batch_size)[first:]
    if part.packed is not None:
        return part.packed.batches(bounds, seed)
    if seed is None:
        return transformed_batches(part.files, features, batch_size, bounds=bounds)
    return transformed_batches(
        part.files, features, batch_size, shuffle_buffer=part.shuffle_buffer, seed=seed, bounds=bounds
    )


class PackedImpressions:
    """N impressions in memory.

    Args:
        rows: columns of the impressions themselves, [N] or [N, V].
        label: int64 [N].
        sequences: by the name of the sequence's length, what `PackedSequence` tells.
    """

    def __init__(
        self, rows: Mapping[str, np.ndarray], label: np.ndarray, sequences: Mapping[str, PackedSequence]
    ) -> None:
        self._rows = {name: tf.constant(values) for name, values in rows.items()}
        self._label = tf.constant(label)
        self._sequences = {
            name: (
                {column: tf.constant(values) for column, values in packed.columns.items()},
                {column: tf.constant(values) for column, values in packed.ages.items()},
                tf.constant(packed.end),
                tf.constant(packed.length),
            )
            for name, packed in sequences.items()
        }

    def __len__(self) -> int:
        return len(self._label)

    def batches(self, bounds: np.ndarray, seed: int | None = None) -> tf.data.Dataset:
        """Batches like those of `transformed_batches`.

        Args:
            bounds: int64 [batches + 1], ascending: the impressions at which batches begin and end.
            seed: of the order of all impressions; `None`: that of the files.
        """
        order = np.arange(len(self)) if seed is None else np.random.default_rng(seed).permutation(len(self))
        rows = tf.constant(order)

        def gather(start: tf.Tensor, end: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            row = rows[start:end]
            columns = {name: tf.gather(values, row) for name, values in self._rows.items()}
            for name, (behaviours, ages, ends, lengths) in self._sequences.items():
                length, last = tf.gather(lengths, row), tf.gather(ends, row)
                back = tf.range(tf.reduce_max(length, axis=0))
                real = back < length[:, tf.newaxis]
                # Position 0 is padding.
                position = tf.where(real, last[:, tf.newaxis] - back, 0)
                columns[name] = length
                columns |= {column: tf.gather(values, position) for column, values in behaviours.items()}
                for column, values in ages.items():
                    columns[column] = tf.where(real, _buckets(back, tf.gather(values, row)), 0)
            return columns, tf.gather(self._label, row)

        slices = tf.data.Dataset.from_tensor_slices((bounds[:-1], bounds[1:]))
        return made_ahead(slices, gather)


class PackedSequence(NamedTuple):
    """The behaviours of all impressions.

    Attributes:
        columns: by name, the values of P behaviours in ascending order of time, behind padding: [1 + P] or [1 + P, V].
        ages: by the name of the column of ages, if there is one, what `younger` makes of it: int32 [N, B].
        end: int32 [N], the position of each impression's most recent behaviour.
        length: int32 [N], how many it has.
    """

    columns: Mapping[str, np.ndarray]
    ages: Mapping[str, np.ndarray]
    end: np.ndarray
    length: np.ndarray


def pack(patterns: Sequence[str], features: Features) -> Part:
    """Reads the impressions of a part into memory.

    Args:
        patterns: of gzip-compressed TFRecord files of transformed impressions.
        features: the columns.

    Returns:
        The part with its impressions; or as `measure` gives it, if there are none, if they take more than
        `PACKED_BYTES`, or if a behaviour is younger than one that should be more recent.
    """
    files, item = files_of(patterns), features.item_id.name
    read = _Read(features)
    # A file after the other: read side by side, a user's impressions would not follow each other.
    for columns, label in itertools.chain.from_iterable(
        transformed_batches([file], features, read.rows_at_a_time, timestamps=features.reads_timestamp)
        for file in files
    ):
        if not read.add({name: values.numpy() for name, values in columns.items()}, label.numpy()):
            return measure(files, item)
    if not read.num_examples:
        return measure(files, item)
    _logger.info("%d impressions are held in %d bytes.", read.num_examples, read.size)
    file_bytes = sum(tf.io.gfile.stat(name).length for name in files)
    return Part(
        files, read.num_examples, file_bytes, read.num_examples, read.timestamps, read.positives, read.impressions()
    )


class _Read:
    """What was read of a part so far."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self._by_length = {sequence.length: sequence for sequence in features.all_sequences}
        self._rows, self._labels = defaultdict[str, list[np.ndarray]](list), list[np.ndarray]()
        self._parts = {name: defaultdict[str, list[np.ndarray]](list) for name in self._by_length}
        self._positions = dict.fromkeys(self._by_length, 0)
        self.num_examples = self.size = 0
        self.positives = np.zeros(0, "int64")
        self.timestamps: tuple[int, int] | None = None

    @property
    def rows_at_a_time(self) -> int:
        longest = max(sequence.max_length for sequence in self._by_length.values())
        return min(max(_READ_VALUES // longest, 32), _READ_ROWS)

    def add(self, arrays: dict[str, np.ndarray], label: np.ndarray) -> bool:
        """Takes a batch; False if the part can't be held."""
        self._count(arrays, label)
        self._labels.append(label)
        for name, sequence in self._by_length.items():
            found = _continued(arrays, self._features, sequence, self._positions[name])
            if found is None:
                _logger.info("`%s` does not ascend: each epoch reads the files.", sequence.age)
                return False
            self._positions[name] += len(next(iter(found.columns.values())))
            self.size += sum(values.nbytes for some in (found.columns, found.ages) for values in some.values())
            for column, values in (*found.columns.items(), *found.ages.items()):
                self._parts[name][column].append(values)
                del arrays[column]
            self._parts[name]["end"].append(found.end)
            self._parts[name]["length"].append(found.length)
            del arrays[name]
        for name, values in arrays.items():
            self._rows[name].append(values)
        self.size += sum(values.nbytes for values in arrays.values())
        if self.size > PACKED_BYTES:
            _logger.info("The impressions take more than %d bytes: each epoch reads their files.", PACKED_BYTES)
            return False
        return True

    def _count(self, arrays: dict[str, np.ndarray], label: np.ndarray) -> None:
        self.num_examples += len(label)
        self.positives = added(self.positives, arrays[self._features.item_id.name][label > 0])
        moments = arrays.pop(TIMESTAMP, None)
        if moments is not None:
            bounds = [int(moments.min()), int(moments.max()), *(self.timestamps or ())]
            self.timestamps = min(bounds), max(bounds)

    def impressions(self) -> PackedImpressions:
        sequences = {}
        for name, lists in self._parts.items():
            end, length = np.concatenate(lists.pop("end")), np.concatenate(lists.pop("length"))
            age = self._by_length[name].age
            ages = {age: np.concatenate(lists.pop(age))} if self._features.age else {}
            behaviours = {
                column: np.concatenate([np.zeros_like(values[0], shape=(1, *values[0].shape[1:])), *values])
                for column, values in lists.items()
            }
            sequences[name] = PackedSequence(behaviours, ages, end, length)
        columns = {name: np.concatenate(values) for name, values in self._rows.items()}
        return PackedImpressions(columns, np.concatenate(self._labels), sequences)


def _continued(
    arrays: Mapping[str, np.ndarray], features: Features, sequence: BehaviourSequence, position: int
) -> PackedSequence | None:
    """A sequence of a batch, without padding before it; the first behaviour stands at `position` + 1.

    `None` if its ages do not ascend.
    """
    names = [name for name in features.encoded_sequence_names(sequence) if features.age is None or name != sequence.age]
    length, ages = arrays[sequence.length], {}
    if features.age is not None:
        real = np.arange(1, arrays[sequence.age].shape[1]) < length[:, np.newaxis]
        if (real & (np.diff(arrays[sequence.age]) < 0)).any():
            return None
        ages[sequence.age] = younger(length, arrays[sequence.age], len(features.age.boundaries))
    new = new_behaviours(length, [arrays[name] for name in names])
    # Of each row the `new` most recent behaviours, the oldest of them first.
    row = np.repeat(np.arange(len(new)), new)
    back = np.repeat(np.cumsum(new), new) - np.arange(len(row)) - 1
    columns = {name: arrays[name][row, back] for name in names}
    return PackedSequence(columns, ages, (position + np.cumsum(new)).astype("int32"), length)


def younger(length: np.ndarray, buckets: np.ndarray, boundaries: int) -> np.ndarray:
    """How many behaviours of each row are younger than each boundary.

    Args:
        length: int [N], behaviours of each row.
        buckets: int [N, L], those of their ages, ascending from 1 to B + 1.
        boundaries: B.

    Returns:
        int32 [N, B].
    """
    real = np.arange(buckets.shape[1]) < length[:, np.newaxis]
    counts = [(real & (buckets <= bucket)).sum(1, dtype="int32") for bucket in range(1, boundaries + 1)]
    return np.stack(counts, axis=1)


def _buckets(back: tf.Tensor, younger: tf.Tensor) -> tf.Tensor:
    """The bucket of the age of each behaviour, int32 [N, L], of what `younger` gives and the positions [L]."""
    bucket = tf.ones_like(younger[:, :1] + back)
    for number in range(younger.shape[1]):
        bucket += tf.cast(back >= younger[:, number : number + 1], tf.int32)
    return bucket


def new_behaviours(length: np.ndarray, columns: Sequence[np.ndarray]) -> np.ndarray:
    """How many of the most recent behaviours of each row come before those that it has in common with the row above.

    Args:
        length: int [N], behaviours of each row.
        columns: [N, L, ...], the most recent first.

    Returns:
        int64 [N], s where the behaviours from s on are the first ones of the row above, s being at most 64; else the
        row's length.
    """
    width = columns[0].shape[1]
    # Bits, so that a missing value equals another.
    flat = [column.reshape(*column.shape[:2], math.prod(column.shape[2:])).view("int32") for column in columns]
    new = length.astype("int64")
    left = np.arange(1, len(length))
    for shift in range(min(width, _MOST_NEW + 1)):
        common = length[left] - shift
        begins = np.all([(c[left, shift] == c[left - 1, 0]).all(-1) for c in flat], axis=0)
        rows = left[(common > 0) & (common <= length[left - 1]) & begins]
        real = np.arange(width - shift) < (length[rows] - shift)[:, np.newaxis]
        for column in flat:
            equal = (column[rows, shift:] == column[rows - 1, : width - shift]).all(-1) | ~real
            kept = equal.all(-1)
            rows, real = rows[kept], real[kept]
        new[rows] = shift
        left = np.setdiff1d(left, rows, assume_unique=True)
    return new
