"""Requests in Parquet files: which columns a model reads of a row, and what makes a row one that can't be scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

from keras_eta.columns import TIMESTAMP, Feature, length_name
from keras_eta.contract import Contract
from tfx_pipeline.ingestion.values import MalformedRowError

# The axis of candidates, among those of sequences, which go by their names. No sequence has this name.
CANDIDATES = ""

_DTYPES: dict[str, np.dtype] = {
    "int64": np.dtype(np.int64),
    "float32": np.dtype(np.float32),
    "string": np.dtype(object),
}


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of requests that a model reads.

    Args:
        name: of the column and of the input of `rank`.
        dtype: `"int64"`, `"string"` or `"float32"`.
        axis: of what a row holds a list: `CANDIDATES`, or the behaviours of the sequence of this name. `None`: a row
            holds one value.
        max_values: V of a feature of several values, whose values are lists themselves.
        optional: whether values may be null or NaN, which is missing.
    """

    name: str
    dtype: str
    axis: str | None = None
    max_values: int | None = None
    optional: bool = False

    def __str__(self) -> str:
        kinds = {"string": "strings or bytes", "float32": "numbers", "int64": "integers, other than uint64"}
        lists = (self.axis is not None) + (self.max_values is not None)
        return f"{'lists of ' * lists}{kinds[self.dtype]}"

    def takes(self, arrow_type: pa.DataType) -> bool:
        """Whether a Parquet column of this type may hold the values."""
        for several in (self.axis is not None, self.max_values is not None):
            if several and not pa.types.is_null(arrow_type):
                if not _is_list(arrow_type):
                    return False
                arrow_type = arrow_type.value_type
        found = arrow_type.value_type if pa.types.is_dictionary(arrow_type) else arrow_type
        if pa.types.is_null(found):
            return True
        integers = pa.types.is_integer(found) and not pa.types.is_uint64(found)
        if self.dtype == "int64":
            return integers
        if self.dtype == "float32":
            return integers or pa.types.is_floating(found)
        text = pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_fixed_size_binary(found)
        return text or pa.types.is_binary(found) or pa.types.is_large_binary(found)

    def read(self, cell: Any) -> dict[str, np.ndarray]:
        """The inputs of `rank` that a cell holds, without the axis of requests: the values, of several their numbers.

        Args:
            cell: an Arrow array of one row.

        Raises:
            MalformedRowError: if a value is null or no finite number, missing ones of an optional column aside.
        """
        if cell.null_count and not (self.optional and self.axis is None):
            raise MalformedRowError(f"null {self.name}")
        if self.axis is not None:
            cell = self._flat(cell)
        counts = None
        if self.max_values is not None:
            # Of no values at all, Arrow may not know that they are lists.
            lengths = pa.compute.list_value_length(cell) if len(cell) else cell
            counts = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
            cell = self._flat(cell)
        values = self._values(cell)
        if counts is None or self.max_values is None:
            return {self.name: values if self.axis is not None else values.reshape(())}
        places = np.arange(self.max_values)
        real = places < counts[:, None]
        several = zeros((len(counts), self.max_values), values.dtype)
        several[real] = values[((np.cumsum(counts) - counts)[:, None] + places)[real]]
        found = {self.name: several, length_name(self.name): np.minimum(counts, self.max_values)}
        return found if self.axis is not None else {name: column[0] for name, column in found.items()}

    def _flat(self, lists: Any) -> Any:
        """What lists hold, one after another."""
        values = lists.flatten() if len(lists) else lists
        if values.null_count and not self.optional:
            raise MalformedRowError(f"null in {self.name}")
        return values

    def _values(self, values: Any) -> np.ndarray:
        dtype = _DTYPES[self.dtype]
        if not len(values):
            return np.zeros(0, dtype)
        if self.dtype == "string":
            spelt = [value.encode() if isinstance(value, str) else value for value in values.to_pylist()]
            array = np.empty(len(spelt), dtype)
            array[:] = spelt
            return array
        with np.errstate(over="ignore"):
            array = values.to_numpy(zero_copy_only=False).astype(dtype)
        finite = np.isfinite(array) | np.isnan(array) if self.optional else np.isfinite(array)
        if not finite.all():
            raise MalformedRowError(f"non-finite {self.name}")
        return array


def request_columns(contract: Contract) -> tuple[Column, ...]:
    """The columns that the signature `rank` of a version reads, but for lengths, which lists have themselves.

    Args:
        contract: of the version, with its vocabularies.
    """
    features = contract.features

    def column(feature: Feature, name: str, axis: str | None = None) -> Column:
        # An export without a lookup has no vocabulary, and reads indices.
        indices = feature.is_id and not contract.vocabularies
        return Column(name, "int64" if indices else feature.dtype, axis, feature.max_values, feature.optional)

    columns = [column(feature, feature.name) for feature in (*features.user, *features.context)]
    columns += [column(feature, feature.name, CANDIDATES) for feature in features.item_features]
    if features.reads_timestamp:
        columns.append(Column(TIMESTAMP, "int64"))
    for sequence in features.all_sequences:
        of_behaviours = features.sequence_features(sequence)
        columns += [column(feature, sequence.column(feature.name), sequence.name) for feature in of_behaviours]
        if features.age is not None:
            columns.append(Column(sequence.timestamp, "int64", sequence.name))
    columns += [column(key, key.name) for key in contract.unread_keys]
    return tuple(column for column in columns if column.name not in contract.joined_columns)


class Request(NamedTuple):
    """One row, as the signature `rank` takes it but for the axis of requests.

    Args:
        inputs: by name.
        sizes: number of candidates and, by the name of each sequence, of behaviours; those in `inputs`.
        cut: the sequences that had more behaviours than the model reads.
    """

    inputs: dict[str, np.ndarray]
    sizes: dict[str, int]
    cut: tuple[str, ...]


class RequestReader:
    """Reads requests from the rows of Parquet files.

    Args:
        contract: of the version that they are for, with its vocabularies.
    """

    def __init__(self, contract: Contract) -> None:
        self.columns = request_columns(contract)
        self.item_id = contract.features.item_id.name
        self.sequences = {sequence.name: sequence.max_length for sequence in contract.features.all_sequences}

    @property
    def axes(self) -> dict[str, str | None]:
        """The axis of every input of `rank`, as of its column; lengths of sequences have none."""
        axes: dict[str, str | None] = {length_name(sequence): None for sequence in self.sequences}
        for column in self.columns:
            axes[column.name] = column.axis
            if column.max_values is not None:
                axes[length_name(column.name)] = column.axis
        return axes

    def problems(self, schema: pa.Schema) -> Iterator[str]:
        """What makes a file of this schema one that holds no requests for the version, in words."""
        for name in sorted({name for name in schema.names if schema.names.count(name) > 1}):
            yield f"it has more than one column {name!r}"
        for name in sorted(self.axes.keys() - {column.name for column in self.columns}):
            if name in schema.names:
                yield f"leave out the column {name!r}: lists tell their own lengths"
        for column in self.columns:
            if column.name not in schema.names:
                yield f"it lacks the column {column.name!r}, which must hold {column}"
            elif not column.takes(found := schema.field(column.name).type):
                yield f"column {column.name!r} must hold {column}. Received: {found}"

    def read(self, batch: pa.RecordBatch, row: int) -> Request:
        """A row as a request.

        Args:
            batch: of a file without `problems`.
            row: its number in the batch.

        Raises:
            MalformedRowError: if a value is null or no finite number, or lists of one axis differ in length.
        """
        inputs: dict[str, np.ndarray] = {}
        sizes: dict[str, int] = {}
        first: dict[str, str] = {}
        for column in self.columns:
            found = column.read(batch.column(batch.schema.get_field_index(column.name)).slice(row, 1))
            if column.axis is not None:
                size = len(found[column.name])
                if size != sizes.setdefault(column.axis, size):
                    raise MalformedRowError(f"{column.name} of another length than {first[column.axis]}")
                first.setdefault(column.axis, column.name)
            inputs |= found
        cut = tuple(sequence for sequence, longest in self.sequences.items() if sizes[sequence] > longest)
        axes = self.axes if cut else {}
        for name, axis in axes.items():
            if axis in cut:
                inputs[name] = inputs[name][: self.sequences[axis]]
        for sequence, longest in self.sequences.items():
            sizes[sequence] = min(sizes[sequence], longest)
            inputs[length_name(sequence)] = np.array(sizes[sequence], np.int64)
        return Request(inputs, sizes, cut)


def zeros(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Zeros; of strings, empty ones."""
    return np.full(shape, b"" if dtype.kind == "O" else 0, dtype)


def _is_list(arrow_type: pa.DataType) -> bool:
    types = pa.types
    return types.is_list(arrow_type) or types.is_large_list(arrow_type) or types.is_fixed_size_list(arrow_type)
