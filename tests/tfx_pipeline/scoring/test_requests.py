"""Rows of Parquet files as requests: what is read, what is cut, what is malformed, and which files hold none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from keras_eta import Feature, Features
from keras_eta.contract import Contract, LookedUp
from tests.tfx_pipeline.scoring.requests import FEATURES, SCHEMA, make_requests, write
from tfx_pipeline.ingestion.values import MalformedRowError
from tfx_pipeline.scoring.requests import RequestReader, request_columns

VOCABULARIES = {"film": np.array([b"a"], object), "user_id": np.array([1])}
READER = RequestReader(Contract(FEATURES, VOCABULARIES))


def batch_of(*requests: dict[str, Any], schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    (batch,) = pa.Table.from_pylist(list(requests), schema=schema).to_batches()
    return batch


def with_type(**types: pa.DataType) -> pa.Schema:
    schema = SCHEMA
    for name, arrow_type in types.items():
        schema = schema.set(schema.get_field_index(name), pa.field(name, arrow_type))
    return schema


def test_row_becomes_the_inputs_of_rank() -> None:
    request = {
        **make_requests(1)[0],
        "langs": ["de", "en", "fr"],
        "film": [b"a\x00", b""],
        "tags": [[5], [1, 2, 3]],
        "history_film": [b"x"] * 7,
        "history_tags": [[], [7, 8, 9], [1], [], [], [], [4]],
        "history_dwell": [0.5] * 7,
        "history_timestamp": [70, 60, 50, 40, 30, 20, 10],
    }
    # The row before it must not shift anything.
    found = READER.read(batch_of(make_requests(3)[2], request), 1)
    assert found.sizes == {"": 2, "history": 6, "bought": 0}
    assert found.cut == ("history",)
    expected: dict[str, Any] = {
        "user_id": 0,
        "langs": [b"de", b"en"],
        "langs_length": 2,
        "device type": b"tv",
        "price": np.float32(request["price"]),
        "timestamp": 1_000_000,
        "film": [b"a\x00", b""],
        "tags": [[5, 0], [1, 2]],
        "tags_length": [1, 2],
        "history_film": [b"x"] * 6,
        "history_tags": [[0, 0], [7, 8], [1, 0], [0, 0], [0, 0], [0, 0]],
        "history_tags_length": [0, 2, 1, 0, 0, 0],
        "history_dwell": [0.5] * 6,
        "history_timestamp": [70, 60, 50, 40, 30, 20],
        "history_length": 6,
        "bought_film": [],
        "bought_tags": np.zeros([0, 2]),
        "bought_tags_length": [],
        "bought_store": [],
        "bought_timestamp": [],
        "bought_length": 0,
    }
    assert set(found.inputs) == set(expected) == set(READER.axes)
    for name, values in expected.items():
        kind = "f" if name in ("price", "history_dwell") else "O" if name.endswith(("film", "langs", "type")) else "i"
        assert found.inputs[name].dtype.kind == kind
        wanted = np.array(values, object if kind == "O" else None)
        np.testing.assert_array_equal(found.inputs[name], wanted, err_msg=name)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("user_id", None, "null user_id"),
        ("film", None, "null film"),
        ("film", [b"a", None], "null in film"),
        ("tags", [[1], None], "null in tags"),
        ("tags", [[1], [None]], "null in tags"),
        ("tags", [[1]], "tags of another length than film"),
        ("langs", [None], "null in langs"),
        ("price", float("nan"), "non-finite price"),
        ("price", 1e39, "non-finite price"),
        ("history_dwell", [float("inf")], "non-finite history_dwell"),
        ("history_dwell", [0.5, 0.5], "history_dwell of another length than history_film"),
        ("history_timestamp", [], "history_timestamp of another length than history_film"),
        ("bought_store", [1], "bought_store of another length than bought_film"),
    ],
)
def test_malformed_row_says_why(column: str, value: Any, reason: str) -> None:
    good = {
        **make_requests(1)[0],
        "film": [b"a", b"d"],
        "tags": [[1], [2]],
        "history_film": [b"a"],
        "history_tags": [[1]],
        "history_dwell": [1.0],
        "history_timestamp": [5],
    }
    READER.read(batch_of(good), 0)
    with pytest.raises(MalformedRowError, match=f"^{reason}$"):
        READER.read(batch_of(good, {**good, column: value}), 1)


@pytest.mark.parametrize(
    "types",
    [
        {"film": pa.large_list(pa.large_binary()), "tags": pa.large_list(pa.large_list(pa.int8()))},
        {"user_id": pa.uint32(), "price": pa.float32(), "history_dwell": pa.list_(pa.float64())},
        {
            "device type": pa.dictionary(pa.int8(), pa.string()),
            "user_id": pa.dictionary(pa.int8(), pa.int32()),
            "history_tags": pa.list_(pa.list_(pa.uint16(), 2)),
        },
    ],
    ids=["large", "numbers", "dictionary"],
)
def test_other_arrow_types_hold_the_same(types: dict[str, pa.DataType], tmp_path: Path) -> None:
    requests = [
        {**request, "price": 0.5, "history_tags": [[1, 2]] * len(request["history_film"])}
        for request in make_requests(4)
    ]
    file = write(tmp_path / "a.parquet", requests, with_type(**types))
    schema = pa.parquet.read_schema(file)
    assert list(READER.problems(schema)) == []
    (batch,) = pa.parquet.read_table(file).to_batches()
    for row in range(4):
        found, expected = READER.read(batch, row), READER.read(batch_of(*requests), row)
        for name, values in expected.inputs.items():
            np.testing.assert_array_equal(found.inputs[name], values, err_msg=name)
            assert found.inputs[name].dtype == values.dtype


def test_lists_of_nothing_need_no_type() -> None:
    names = [name for name in SCHEMA.names if name.startswith("history_") and name != "history_rating"]
    nothing = {name: pa.list_(pa.null()) for name in names}
    assert list(READER.problems(with_type(**nothing))) == []
    found = READER.read(batch_of(make_requests(1)[0], schema=with_type(**nothing)), 0)
    assert found.sizes["history"] == 0
    assert found.inputs["history_tags"].shape == (0, 2)
    assert found.inputs["history_film"].dtype == object


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (with_type(user_id=pa.string()), "column 'user_id' must hold integers, other than uint64. Received: string"),
        (with_type(user_id=pa.uint64()), "column 'user_id' must hold integers, other than uint64. Received: uint64"),
        (with_type(user_id=pa.bool_()), "column 'user_id' must hold integers, other than uint64. Received: bool"),
        (with_type(film=pa.binary()), "column 'film' must hold lists of strings or bytes. Received: binary"),
        (
            with_type(history_tags=pa.list_(pa.int64())),
            "column 'history_tags' must hold lists of lists of integers, other than uint64. "
            "Received: list<item: int64>",
        ),
        (with_type(price=pa.list_(pa.float32())), "column 'price' must hold numbers. Received: list<item: float>"),
        (
            SCHEMA.remove(SCHEMA.get_field_index("bought_store")),
            "it lacks the column 'bought_store', which must hold lists of integers, other than uint64",
        ),
        (
            SCHEMA.append(pa.field("history_length", pa.int64())),
            "leave out the column 'history_length': lists tell their own lengths",
        ),
        (
            SCHEMA.append(pa.field("tags_length", pa.int64())),
            "leave out the column 'tags_length': lists tell their own lengths",
        ),
        (SCHEMA.append(pa.field("request", pa.int64())), "it has more than one column 'request'"),
    ],
)
def test_file_of_other_columns_is_refused(change: pa.Schema, problem: str) -> None:
    assert list(READER.problems(SCHEMA)) == []
    assert list(READER.problems(change)) == [problem]


def test_export_without_a_lookup_reads_indices() -> None:
    reader = RequestReader(Contract(FEATURES, {}))
    types = {column.name: column.dtype for column in reader.columns}
    assert (types["film"], types["device type"], types["price"]) == ("int64", "int64", "float32")


def test_missing_values_of_an_optional_float_are_read_as_nan() -> None:
    price = Feature("price", "float32", optional=True)
    dwell = Feature("dwell", "float32", optional=True)
    features = Features(
        item_id=Feature("film", "string"), item_attributes=(price,), behaviour_attributes=(dwell,), max_history_length=3
    )
    floats, texts = pa.list_(pa.float64()), pa.list_(pa.binary())
    schema = pa.schema([("film", texts), ("price", floats), ("history_film", texts), ("history_price", floats)])
    schema = schema.append(pa.field("history_dwell", floats))
    row = {"film": [b"a", b"b"], "price": [None, 2.5], "history_film": [b"c"], "history_price": [float("nan")]}
    batch = batch_of({**row, "history_dwell": [1.0]}, {**row, "history_dwell": [float("inf")]}, schema=schema)
    reader = RequestReader(Contract(features, {"film": VOCABULARIES["film"]}))
    found = reader.read(batch, 0).inputs
    np.testing.assert_array_equal(found["price"], np.array([np.nan, 2.5], np.float32))
    np.testing.assert_array_equal(found["history_price"], np.array([np.nan], np.float32))
    with pytest.raises(MalformedRowError, match="non-finite history_dwell"):
        reader.read(batch, 1)


def test_columns_that_the_version_looks_up_are_no_part_of_requests() -> None:
    features = Features(item_id=Feature("film", "string"), item_attributes=(Feature("shelf", "string"),))
    tables = (LookedUp(features.item_id, ("shelf",)), LookedUp(Feature("user_id", "string"), ()))
    columns = request_columns(Contract(features, VOCABULARIES, tables=tables))
    # The user's id is asked for, though the model does not read it.
    assert [column.name for column in columns] == ["film", "history_film", "user_id"]
    assert (columns[-1].dtype, columns[-1].axis) == ("string", None)
