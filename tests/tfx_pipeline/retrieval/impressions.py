"""Files of impressions as ingestion writes them, for the tests of the retriever."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tests.tfx_pipeline.transformed import serialized
from tfx_pipeline.layouts import Layout


def write_impressions(path: Path, layout: Layout, rows: Sequence[tuple[Any, list[Any], int]], **columns: Any) -> str:
    """Writes (item, history, label) as a gzip-compressed TFRecord file, and returns its path.

    Args:
        path: of the file; its folder is made.
        layout: has the item's feature.
        rows: one per impression.
        **columns: further columns, of which each impression has one value.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = layout.features.item_id.name
    with tf.io.TFRecordWriter(str(path), options="GZIP") as writer:
        for row, (item, history, label) in enumerate(rows):
            impression = {name: item, f"history_{name}": history, "label": label, "timestamp": 0}
            impression |= {column: values[row] for column, values in columns.items()}
            writer.write(serialized(impression, layout.features))
    return str(path)
