"""What is looked at before a log is read."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet
from apache_beam.io.filesystems import FileSystems
from tfx.dsl.io import fileio

from keras_eta.columns import TIMESTAMP
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.ingestion.clusters import read_item_vectors
from tfx_pipeline.ingestion.files import log_files, read_header
from tfx_pipeline.ingestion.interactions import with_header
from tfx_pipeline.layouts import PARQUET, Layout

_NUM_LISTED = 10


def check_data(config: PipelineConfig) -> None:
    """Refuse, before any work is done, a log that can't be read. Only headers are looked at.

    Args:
        config: of the pipeline.

    Raises:
        FileNotFoundError: if the directory, the log's files, a joined table or the item vectors are missing.
        ValueError: if a file or a joined table lacks a column that the layout reads or holds it in a type that can't be
            read, if the item vectors can't be read or are of ids of another type, or if the log is empty.
    """
    layout = config.layout
    if not fileio.isdir(config.data):
        raise FileNotFoundError(f"`data` must be the directory of the raw log. There is no directory {config.data!r}")
    files = log_files(config.data, layout)
    if not files:
        raise FileNotFoundError(
            f"No file in {config.data} matches the layout's pattern {layout.pattern!r}. "
            f"Present: {listed([str(name) for name in fileio.listdir(config.data)])}"
        )
    for table in layout.joined_tables:
        path = os.path.join(config.data, table.file)
        if not fileio.exists(path):
            whose = "items" if table is layout.items else "users"
            raise FileNotFoundError(f"The layout's table of {whose} is missing: {path}")
        with_header(table, config.data)
    if layout.clusters is not None:
        read_item_vectors(layout.clusters.item_vectors, layout.features.item_id)
    if not any([check_file(path, layout) for path in files]):
        raise ValueError(f"The log is empty: {listed(files)} have no rows.")


def check_file(path: str, layout: Layout) -> bool:
    """Whether a file has rows.

    Args:
        path: of the file.
        layout: how it is read.

    Raises:
        ValueError: if it lacks a column that the layout reads or holds it in a type that can't be read.
    """
    return (_check_parquet if layout.file_format == PARQUET else _check_csv)(path, layout)


def _check_csv(path: str, layout: Layout) -> bool:
    """Whether a file has rows."""
    if not layout.header:
        header = read_header(path, layout)
        if header:
            _check_columns(path, header, layout)
    with FileSystems.open(path) as file:
        lines = [file.readline(), file.readline()]
    return bool(lines[0] if layout.header else lines[1])


def _check_parquet(path: str, layout: Layout) -> bool:
    """Whether a file has rows."""
    try:
        with FileSystems.open(path) as file:
            parquet = pa.parquet.ParquetFile(file)
            schema, num_rows = parquet.schema_arrow, parquet.metadata.num_rows
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error
    _check_columns(path, schema.names, layout)
    several = {layout.source(feature.name) for feature in layout.features.all_features if feature.max_values}
    for name in layout.sources:
        dtype = schema.field(name).type
        if name in several and pa.types.is_list(dtype):
            dtype = dtype.value_type
        moments = name == layout.source(TIMESTAMP) and (pa.types.is_timestamp(dtype) or pa.types.is_date(dtype))
        if (pa.types.is_temporal(dtype) and not moments) or pa.types.is_nested(dtype):
            hint = ". A feature of several values is written NAME:DTYPE[N]" if pa.types.is_list(dtype) else ""
            raise ValueError(
                f"The column {name!r} of {path} must hold integers, floats or strings, or dates where it is the "
                f"timestamp. Received: {dtype}{hint}"
            )
    return num_rows > 0


def _check_columns(path: str, present: Sequence[str], layout: Layout) -> None:
    missing = [name for name in layout.sources if name not in present]
    if missing:
        raise ValueError(f"{path} lacks columns that the layout reads: {missing}. Present: {list(present)}")
    twice = sorted({name for name in layout.sources if list(present).count(name) > 1})
    if twice:
        raise ValueError(f"{path} has several columns of the same name: {twice}")


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - _NUM_LISTED:,} more" if len(names) > _NUM_LISTED else ""
    return f"{list(names[:_NUM_LISTED])}{more}"
