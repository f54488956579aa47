"""The items that a retriever can find, and what is known of them."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import tensorflow as tf
from apache_beam.io.filesystems import FileSystems
from tfx.dsl.io import fileio

from keras_eta.columns import TIMESTAMP
from keras_eta.datasets.delimited import WRONG_COLUMNS
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.ingestion.interactions import parse_line
from tfx_pipeline.ingestion.rows import value_dtype
from tfx_pipeline.ingestion.values import PARSERS, MalformedRowError
from tfx_pipeline.joined_table import JoinedTable
from tfx_pipeline.layouts import Layout
from tfx_pipeline.training.batches import files_of, impressions_of

# With a byte order mark, as spreadsheets write it, or without.
_ENCODING = "utf-8-sig"
_PARQUET_SUFFIX = ".parquet"
_BATCH_SIZE = 4096


class Items(NamedTuple):
    """Items and what is known of them.

    Attributes:
        ids: different raw ids, integers or bytes.
        table: a row per item.
        text: its columns of texts.
        categories: its columns of categories, lists among them.
    """

    ids: list[int | bytes]
    table: pd.DataFrame
    text: tuple[str, ...]
    categories: tuple[str, ...]


def check_items(config: PipelineConfig) -> None:
    """Refuses, before any work is done, an item table that is not there or lacks a column; only headers are looked at.

    Args:
        config: of the pipeline, which may have none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it lacks a column, or is no Parquet file.
    """
    path = config.retriever.item_table
    if path is None:
        return
    if not fileio.exists(path):
        raise FileNotFoundError(f"`item_table` must be a file. There is no {path!r}")
    with FileSystems.open(path) as file:
        if path.endswith(_PARQUET_SUFFIX):
            try:
                present = pa.parquet.ParquetFile(file).schema_arrow.names
            except pa.ArrowInvalid as error:
                raise ValueError(f"{path} is not a Parquet file: {error}") from error
        else:
            # A line that is not in UTF-8 has none of the columns.
            present = next(csv.reader([file.readline().decode(_ENCODING, "replace")]), [])
    missing = [name for name in _columns(config) if name not in present]
    if missing:
        raise ValueError(f"{path} lacks columns that the retriever needs: {missing}. Present: {present}")
    twice = [name for name in _columns(config) if present.count(name) > 1]
    if twice:
        raise ValueError(f"{path} has several columns of the same name: {twice}")


def read_items(config: PipelineConfig, patterns: Sequence[str]) -> Items:
    """All items, of the item table if there is one, else of the layout's table, else of the impressions.

    Of an item whose attributes differ between impressions, those of the latest one count, of equally late ones the
    greatest.

    Args:
        config: of the pipeline, with a retriever.
        patterns: of the files of impressions, as ingestion writes them.

    Raises:
        ValueError: if an id can't be read or is there twice, or there are no items.
    """
    retriever, layout = config.retriever, config.layout
    if retriever.item_table is not None:
        return _read_file(config, retriever.item_table)
    if layout.items is not None and (layout.items.text or layout.items.categories):
        return _read_layout_table(layout, layout.items, os.path.join(config.data, layout.items.file))
    return _read_impressions(layout, patterns)


def _columns(config: PipelineConfig) -> tuple[str, ...]:
    """The columns of `item_table` that are read, the item's id first; it is named as in the log."""
    item_id = config.layout.source(config.layout.features.item_id.name)
    return (item_id, *config.retriever.item_text, *config.retriever.item_category)


def _read_file(config: PipelineConfig, path: str) -> Items:
    check_items(config)
    names, retriever = _columns(config), config.retriever
    cells: dict[str, list[Any]]
    with FileSystems.open(path) as file:
        if path.endswith(_PARQUET_SUFFIX):
            cells = pa.parquet.read_table(file, columns=list(names)).to_pydict()
        else:
            cells = _read_csv(file, path, names)
            for name in retriever.item_category:
                cells[name] = [cell.split(config.layout.list_separator) for cell in cells[name]]
    parse, ids = PARSERS[_id_dtype(config.layout)], []
    for value in cells[names[0]]:
        try:
            ids.append(parse(value))
        except MalformedRowError as error:
            raise ValueError(f"{path} has a row with a {error} {names[0]}: {value!r}") from None
    return _items(ids, {name: cells[name] for name in names[1:]}, retriever.item_text, retriever.item_category, path)


def _read_csv(file: Any, path: str, names: Sequence[str]) -> dict[str, list[Any]]:
    """The cells of these columns of a CSV file with a header."""
    try:
        header, *rows = csv.reader(io.StringIO(file.read().decode(_ENCODING), newline=""), strict=True)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"{path} has a line {WRONG_COLUMNS}, {len(header)}: {row}")
    places = [header.index(name) for name in names]
    return {name: [row[place] for row in rows] for name, place in zip(names, places, strict=True)}


def _read_layout_table(layout: Layout, table: JoinedTable, path: str) -> Items:
    extracted = {name: (column, re.compile(part)) for name, column, part in table.extracted}
    wanted = (*table.text, *table.categories)
    sources = tuple(dict.fromkeys(extracted[name][0] if name in extracted else name for name in wanted))
    read = dataclasses.replace(table, columns=sources)
    with FileSystems.open(path) as file:
        lines = [line.rstrip(b"\r\n") for line in iter(file.readline, b"")]
    rows = [parse_line(line, read, path, _id_dtype(layout)) for line in lines]
    cells: dict[str, list[Any]] = {}
    for name in wanted:
        column, part = extracted.get(name, (name, None))
        cells[name] = [values[sources.index(column)] for _, values in rows]
        if part is not None:
            matches = map(part.search, cells[name])
            cells[name] = [(match and match[1]) or "" for match in matches]
        if name in table.categories and table.list_separator:
            cells[name] = [cell.split(table.list_separator) for cell in cells[name]]
    return _items([key for key, _ in rows], cells, table.text, table.categories, path)


def _read_impressions(layout: Layout, patterns: Sequence[str]) -> Items:
    names, item_id = layout.item_categories, layout.features.item_id
    dtypes = {feature.name: tf.as_dtype(feature.dtype) for feature in layout.features.item_features}
    spec: dict[str, Any] = {name: tf.io.RaggedFeature(dtypes[name]) for name in names}
    spec[item_id.name] = tf.io.FixedLenFeature([], dtypes[item_id.name])
    spec[TIMESTAMP] = tf.io.FixedLenFeature([], tf.int64)
    latest: dict[Any, tuple[Any, ...]] = {}
    files = files_of(patterns)
    for records in impressions_of(files).batch(_BATCH_SIZE) if files else ():
        columns = tf.io.parse_example(records, spec)
        rows = zip(*(columns[name].numpy().tolist() for name in (item_id.name, TIMESTAMP)), strict=True)
        values = zip(*(columns[name].to_list() for name in names), strict=True)
        for (item, moment), attributes in zip(rows, values, strict=True):
            known = moment, *attributes
            if item not in latest or latest[item] < known:
                latest[item] = known
    # In the order of the ids, as the files are in a random one.
    ids = sorted(latest)
    cells = {name: [_text(latest[item][place]) for item in ids] for place, name in enumerate(names, 1)}
    return _items(ids, cells, (), names, "the impressions")


def _text(values: Sequence[Any]) -> list[Any]:
    """Values with their bytes as text, whatever these are."""
    return [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value for value in values]


def _id_dtype(layout: Layout) -> type:
    return value_dtype(layout, layout.features.item_id.name)


def _items(
    ids: list[Any], cells: dict[str, list[Any]], text: tuple[str, ...], categories: tuple[str, ...], source: str
) -> Items:
    if not ids:
        raise ValueError(f"{source} has no items.")
    known = set()
    for id_ in ids:
        if id_ in known:
            raise ValueError(f"{source} has more than one row of the item {id_!r}")
        known.add(id_)
    table = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in cells.items()})
    return Items(ids, table, text, categories)
