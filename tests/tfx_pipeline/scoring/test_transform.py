"""What scores look like: which candidates are kept, in which order, beside which columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tfx_pipeline.scoring.files import Requests
from tfx_pipeline.scoring.transform import Form

SCORES = [[0.25, 0.5, 0.5, 0.75, 0.5], [], [0.5]]
ITEMS: list[list[Any]] = [["a", "b", "c", "d", "e"], [], ["f"]]


def form(top: int | None, lists: bool, **carried: pa.DataType) -> Form:
    return Form(Requests({"a.parquet": [3]}, carried, pa.string(), ()), "item", top, lists)


def table(form: Form, **columns: pa.Array) -> pa.Table:
    rows = pa.RecordBatch.from_pydict({"item": pa.array(ITEMS), "unread": pa.array([1, 2, 3]), **columns})
    return form.table(rows, [np.array(row, np.float32) for row in SCORES])


@pytest.mark.parametrize(
    ("top", "kept"),
    [
        (None, [["a", "b", "c", "d", "e"], [], ["f"]]),
        (1, [["d"], [], ["f"]]),
        (3, [["d", "b", "c"], [], ["f"]]),
        (9, [["d", "b", "c", "e", "a"], [], ["f"]]),
    ],
)
def test_best_come_first_and_of_equal_ones_the_earlier(top: int | None, kept: list[list[str]]) -> None:
    ids = pa.array([7, 8, 9])
    lists = table(form(top, True, id=pa.int64()), id=ids)
    scores = dict(zip("abcdef", [*SCORES[0], *SCORES[2]], strict=True))
    assert lists.to_pydict() == {
        "id": [7, 8, 9],
        "item": kept,
        "probability": [[scores[item] for item in row] for row in kept],
    }
    rows = table(form(top, False, id=pa.int64()), id=ids)
    items = [item for row in kept for item in row]
    assert rows.to_pydict() == {
        "id": [7] * len(kept[0]) + [9],
        "item": items,
        "probability": [scores[item] for item in items],
    }
    nulls = {field.name: field.nullable for field in rows.schema}
    assert nulls == {"id": True, "item": False, "probability": False}


def test_columns_have_one_type_in_all_files() -> None:
    columns = {"kind": pa.array(["x", None, "y"]).dictionary_encode(), "nothing": pa.nulls(3)}
    items = pa.array(ITEMS, pa.list_(pa.dictionary(pa.int8(), pa.string())))
    found = table(form(None, True, kind=pa.string(), nothing=pa.int32()), item=items, **columns)
    assert found.schema.field("kind").type == pa.string()
    assert found.schema.field("nothing").type == pa.int32()
    assert found.to_pydict() == {"kind": ["x", None, "y"], "nothing": [None] * 3, "item": ITEMS, "probability": SCORES}


def test_requests_without_any_candidate() -> None:
    rows = pa.RecordBatch.from_pydict({"item": pa.array([[], []], pa.list_(pa.null()))})
    none = [np.zeros(0, np.float32)] * 2
    assert form(2, False).table(rows, none).to_pydict() == {"item": [], "probability": []}
    assert form(2, True).table(rows, none).to_pydict() == {"item": [[], []], "probability": [[], []]}
