"""From files of requests to files of scores, on Beam."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from apache_beam.utils.shared import Shared

from keras_eta.export import PROBABILITY
from tfx_pipeline.ingestion.counting import COUNTS, MALFORMED, ROWS_READ, CountingDoFn
from tfx_pipeline.ingestion.values import MalformedRowError
from tfx_pipeline.scoring.files import DEAD_LETTER, Requests
from tfx_pipeline.scoring.ranking import RankSignature, probabilities
from tfx_pipeline.scoring.requests import CANDIDATES, Request, RequestReader

FILE_PREFIX, FILE_SUFFIX = "scores", ".parquet"
COUNTS_FILE = "counts.json"

# What is counted beside malformed requests; `CUT` and `EMPTY` by sequence.
SCORED, CANDIDATES_SCORED, ROWS_WRITTEN, CUT, EMPTY = "scored", "candidates", "rows_written", "cut", "empty"

DEAD_LETTER_SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("request", pa.string(), nullable=False),
    ]
)

# Requests that are looked at together, to group those of like sizes.
_BATCH_ROWS = 512


class RowGroup(NamedTuple):
    """A row group of a file: its number, and the number of its first row."""

    path: str
    number: int
    first_row: int


class Batch(NamedTuple):
    """Successive rows of a file: its path, the number of the first, and their columns."""

    path: str
    first_row: int
    rows: Any


class Form(NamedTuple):
    """What scores look like.

    Args:
        requests: says which columns are carried over.
        item_id: name of the column with candidates.
        top: how many of the best candidates are kept. `None`: all, in the request's order.
        lists: whether there is one row for each request, with lists, in place of one for each candidate.
    """

    requests: Requests
    item_id: str
    top: int | None
    lists: bool

    @property
    def schema(self) -> pa.Schema:
        """Of the files: the columns carried over, the candidate's id and its probability."""
        fields = [pa.field(name, arrow_type) for name, arrow_type in self.requests.carried.items()]
        scores = {self.item_id: self.requests.item_type, PROBABILITY: pa.float32()}
        for name, arrow_type in scores.items():
            fields.append(pa.field(name, pa.list_(arrow_type) if self.lists else arrow_type, nullable=False))
        return pa.schema(fields)

    def table(self, rows: pa.RecordBatch, scores: list[np.ndarray]) -> pa.Table:
        """The scores of some requests.

        Args:
            rows: the requests, none malformed.
            scores: probabilities of the candidates of each.
        """
        order = [self._order(row) for row in scores]
        counts = np.array([len(row) for row in scores], np.int64)
        kept = np.array([len(row) for row in order], np.int64)
        starts = np.cumsum(counts) - counts
        places = np.concatenate([start + row for start, row in zip(starts, order, strict=True)]).astype(np.int64)
        lists = rows.column(rows.schema.get_field_index(self.item_id))
        items = lists.flatten().take(pa.array(places))
        probability = pa.array(np.concatenate(scores)[places], pa.float32())
        repeated = np.arange(len(scores)) if self.lists else np.repeat(np.arange(len(scores)), kept)
        columns = [
            rows.column(rows.schema.get_field_index(name)).take(pa.array(repeated, pa.int64()))
            for name in self.requests.carried
        ]
        found = [items, probability]
        if self.lists:
            offsets = pa.array(np.append(0, np.cumsum(kept)), pa.int32())
            found = [pa.ListArray.from_arrays(offsets, column) for column in found]
        # It casts what a file holds as codes of values, or as nulls of no type.
        return pa.Table.from_arrays([*columns, *found], schema=self.schema)

    def _order(self, probability: np.ndarray) -> np.ndarray:
        """Which candidates are kept; of equal ones the first come first."""
        if self.top is None:
            return np.arange(len(probability))
        return np.argsort(-probability, kind="stable")[: self.top]


class ScoreFiles(beam.PTransform):
    """Pipeline -> files in a directory: scores, malformed requests under `DEAD_LETTER`, and `COUNTS_FILE`.

    Args:
        version_dir: of the version that scores.
        reader: of its requests.
        form: of the scores.
        directory: where to write.
        progress: file to which a line with a number is appended for every so many requests.
    """

    def __init__(self, version_dir: str, reader: RequestReader, form: Form, directory: str, progress: str) -> None:
        super().__init__()
        self._score = _Score(version_dir, reader, form, progress)
        self._row_groups = []
        for path, sizes in form.requests.row_groups.items():
            firsts = np.append(0, np.cumsum(sizes))[:-1].tolist()
            self._row_groups += [RowGroup(path, number, first) for number, first in enumerate(firsts)]
        self._names = [*form.requests.carried, *(column.name for column in reader.columns)]
        self._schema = form.schema
        self._directory = directory

    def expand(self, pipeline: Any) -> None:
        scored = (
            pipeline
            | "RowGroups" >> beam.Create(self._row_groups)
            | beam.Reshuffle()
            | "Read" >> beam.FlatMap(_read, list(dict.fromkeys(self._names)))
            | "Score" >> beam.ParDo(self._score).with_outputs(MALFORMED, COUNTS, main="scores")
        )
        _ = scored["scores"] | "Write" >> _write(self._directory, self._schema)
        dead_letter = os.path.join(self._directory, DEAD_LETTER)
        _ = scored[MALFORMED] | "WriteMalformed" >> _write(dead_letter, DEAD_LETTER_SCHEMA)
        _ = (
            scored[COUNTS]
            | beam.GroupByKey()
            | "Sum" >> beam.MapTuple(lambda name, numbers: (name, sum(numbers)))
            | "ToDict" >> beam.combiners.ToDict()
            | "ToJson" >> beam.Map(json.dumps)
            | "WriteCounts" >> beam.io.WriteToText(os.path.join(self._directory, COUNTS_FILE), shard_name_template="")
        )


class _Score(CountingDoFn):
    """`Batch` -> a table of scores, a table of malformed requests under `MALFORMED`, and counts."""

    def __init__(self, version_dir: str, reader: RequestReader, form: Form, progress: str) -> None:
        super().__init__()
        self._version_dir = version_dir
        self._reader = reader
        self._form = form
        self._progress = progress
        self._shared = Shared()

    def setup(self) -> None:
        self._rank = self._shared.acquire(lambda: RankSignature(self._version_dir))

    def process(self, batch: Batch) -> Iterator[Any]:
        self.count(f"{ROWS_READ}\t{batch.path}", batch.rows.num_rows)
        requests: dict[int, Request] = {}
        malformed: dict[int, str] = {}
        for row in range(batch.rows.num_rows):
            try:
                requests[row] = self._reader.read(batch.rows, row)
            except MalformedRowError as error:
                malformed[row] = str(error)
        if malformed:
            for reason in malformed.values():
                self.count(f"{MALFORMED}\t{reason}\t{batch.path}")
            yield beam.pvalue.TaggedOutput(MALFORMED, _dead_letters(batch, malformed))
        if requests:
            scores = probabilities(self._rank, list(requests.values()), self._reader.axes)
            table = self._form.table(_taken(batch.rows, list(requests)), scores)
            self._count(list(requests.values()), table.num_rows)
            yield table
        with open(self._progress, "a") as file:
            file.write(f"{batch.rows.num_rows}\n")

    def _count(self, requests: list[Request], rows: int) -> None:
        self.count(SCORED, len(requests))
        self.count(ROWS_WRITTEN, rows)
        self.count(CANDIDATES_SCORED, sum(request.sizes[CANDIDATES] for request in requests))
        for request in requests:
            for sequence in request.cut:
                self.count(f"{CUT}\t{sequence}")
            for axis, size in request.sizes.items():
                if not size:
                    self.count(f"{EMPTY}\t{axis}")


def _read(group: RowGroup, columns: list[str]) -> Iterator[Batch]:
    """The rows of a row group, some at a time."""
    row = group.first_row
    with pa.parquet.ParquetFile(group.path) as file:
        for rows in file.iter_batches(_BATCH_ROWS, row_groups=[group.number], columns=columns):
            yield Batch(group.path, row, rows)
            row += rows.num_rows


def _write(directory: str, schema: pa.Schema) -> Any:
    return beam.io.WriteToParquetBatched(
        os.path.join(directory, FILE_PREFIX), schema, codec="snappy", file_name_suffix=FILE_SUFFIX
    )


def _dead_letters(batch: Batch, reasons: dict[int, str]) -> pa.Table:
    """Malformed requests with their places and reasons, the requests as JSON."""
    texts = [json.dumps(request, default=repr) for request in _taken(batch.rows, list(reasons)).to_pylist()]
    rows = [batch.first_row + row for row in reasons]
    return pa.Table.from_arrays(
        [pa.array(column) for column in ([batch.path] * len(rows), rows, list(reasons.values()), texts)],
        schema=DEAD_LETTER_SCHEMA,
    )


def _taken(rows: pa.RecordBatch, numbers: list[int]) -> pa.RecordBatch:
    return rows if len(numbers) == rows.num_rows else pa.compute.take(rows, pa.array(numbers, pa.int64()))
