"""What an export knows of items and users by their ids: the tables that a layout joins."""

from __future__ import annotations

import os
from typing import Any

import pandas as pd
from apache_beam.io.filesystems import FileSystems

from keras_eta.export import AttributeTable
from tfx_pipeline.ingestion.interactions import parse_line, with_header
from tfx_pipeline.ingestion.rows import MISSING_FLOAT, joined_cell, value_dtype
from tfx_pipeline.ingestion.values import MalformedRowError
from tfx_pipeline.joined_table import JoinedTable
from tfx_pipeline.layouts import USER_ID, Layout


def attribute_tables(layout: Layout, data: str) -> list[AttributeTable]:
    """The tables of items and users whose features the model reads, with all of their ids, whether the log has them.

    Args:
        layout: how the log's files are read.
        data: the directory of the log.

    Raises:
        ValueError: if a table has changed since the log was read, so that it can't be read any more.
    """
    of_keys = ((layout.features.item_id.name, layout.items), (USER_ID, layout.users))
    return [
        AttributeTable.from_frame(_frame(layout, table, data, key), layout.features, key)
        for key, table in of_keys
        if table is not None and layout.joined_features(table)
    ]


def _frame(layout: Layout, table: JoinedTable, data: str, key: str) -> pd.DataFrame:
    """The ids of a table and its features; None where there is no value, or none that can be read."""
    path, named = os.path.join(data, table.file), with_header(table, data)
    cells = {feature.name: joined_cell(layout, table, feature.name) for feature in layout.joined_features(table)}
    columns: dict[str, list[Any]] = {name: [] for name in (key, *cells)}
    with FileSystems.open(path) as file:
        lines = [line.rstrip(b"\r\n") for line in iter(file.readline, b"")]
    for line in lines[0 if table.header else 1 :]:
        id_, row = parse_line(line, named, path, value_dtype(layout, key))
        columns[key].append(id_)
        for name, cell in cells.items():
            try:
                value = cell.parse(row)
            except MalformedRowError:
                value = None
            columns[name].append(None if value == MISSING_FLOAT else value)
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()}).infer_objects()
