"""From what a caller holds to the arrays that a signature takes: nothing is lost, and what is wrong is named."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from serving.client.answers import Signature, TensorSpec
from serving.client.requests import ranking_inputs, signature_arrays, typed_array

SIGNATURE = Signature(
    {
        "user_id": TensorSpec("int64", (None,)),
        "price": TensorSpec("float32", (None,)),
        "item_id": TensorSpec("string", (None, None)),
        "history_item_id": TensorSpec("string", (None, None)),
        "history_dwell": TensorSpec("float32", (None, None)),
        "history_length": TensorSpec("int64", (None,)),
        "vector": TensorSpec("float32", (None, 3)),
    },
    {},
)
GOOD: dict[str, Any] = {
    "user_id": [1, 2],
    "price": [0.5, 1.5],
    "item_id": [["a"], ["b"]],
    "history_item_id": [["x", "y"], ["z", ""]],
    "history_dwell": [[1.0, 2.0], [3.0, 0.0]],
    "history_length": [2, 1],
    "vector": np.zeros((2, 3)),
}


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    inputs = {name: (f"inputs[{name!r}]", values) for name, values in (GOOD | changes).items()}
    return signature_arrays(inputs, SIGNATURE)


@pytest.mark.parametrize(
    ("values", "dtype", "text"),
    [
        ([1e39], "float32", "`x` must be finite and fit into float32. Received: 1e+39 at [0]"),
        ([[0.0, -1e39]], "float32", "`x` must be finite and fit into float32. Received: -1e+39 at [0, 1]"),
        ([10**39], "float32", "`x` must be float32. Received: [1000000000"),
        ([0.5, float("nan")], "float32", "`x` must be finite and fit into float32. Received: nan at [1]"),
        ([float("inf")], "float32", "`x` must be finite and fit into float32. Received: inf at [0]"),
        (np.array([-np.inf]), "float64", "`x` must be finite and fit into float64. Received: -inf at [0]"),
        ([1.7], "int64", "`x` must be int64. Received: [1.7]"),
        ([2.0**53], "int64", "`x` must be int64. Received: [9007199254740992.0]"),
        (np.array([2**63 + 5], np.uint64), "int64", "`x` must fit into int64. Received: array([9223372036854775813]"),
        ([-1, 2**63], "int64", "`x` must be int64. Received: [-1, 9223372036854775808]"),
        ([2**31], "int32", "`x` must fit into int32. Received: [2147483648]"),
        ([-1], "uint64", "`x` must fit into uint64. Received: [-1]"),
        (["a\ud800"], "O", "`x` must be text that UTF-8 can spell. Received: 'a\\ud800'"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_values_that_a_dtype_can_not_hold(values: Any, dtype: str, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        typed_array("x", values, np.dtype(dtype))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([2**63 - 1, -(2**63)], "int64"), ([3.4028234e38, -3.4028234e38], "float32"), (["é", ""], "O"), ([], "float32")],
)
def test_values_at_the_ends_of_a_dtype(values: Any, dtype: str) -> None:
    array = typed_array("x", values, np.dtype(dtype))
    assert array.dtype == np.dtype(dtype)
    expected = [value.encode() for value in values] if dtype == "O" else values
    np.testing.assert_array_equal(array, np.array(expected, dtype))


def test_none_among_floats_is_a_missing_value() -> None:
    found = typed_array("x", [[1, None], [None, 2.5]], np.dtype(np.float32))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([[1, np.nan], [np.nan, 2.5]], np.float32))
    with pytest.raises(ValueError, match=re.escape("`x` must be finite and fit into float32. Received: nan at [1]")):
        typed_array("x", [None, np.nan], np.dtype(np.float32))
    for values, dtype in (([1, None], "int64"), (["a", None], "float32"), (["a", None], "O")):
        with pytest.raises(ValueError, match="`x` must be"):
            typed_array("x", values, np.dtype(dtype))


def test_what_lies_behind_a_history_may_be_anything() -> None:
    """The graph does not read it, and tables with gaps hold NaN there."""
    dwell = arrays(history_dwell=[[1.0, 2.0], [3.0, np.nan]])["history_dwell"]
    np.testing.assert_array_equal(dwell, np.array([[1, 2], [3, np.nan]], np.float32))
    with pytest.raises(ValueError, match=re.escape("Received: nan at [0, 1]")):
        arrays(history_dwell=[[1.0, np.nan], [3.0, np.nan]])


def test_arrays_of_a_signature() -> None:
    found = arrays()
    assert {name: (array.dtype.name, array.shape) for name, array in found.items()} == {
        "user_id": ("int64", (2,)),
        "price": ("float32", (2,)),
        "item_id": ("object", (2, 1)),
        "history_item_id": ("object", (2, 2)),
        "history_dwell": ("float32", (2, 2)),
        "history_length": ("int64", (2,)),
        "vector": ("float32", (2, 3)),
    }
    assert found["history_item_id"].tolist() == [[b"x", b"y"], [b"z", b""]]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"price": [[1], [2]]}, "`inputs['price']` must have shape (?). Received shape: (2, 1)"),
        ({"user_id": 3}, "`inputs['user_id']` must have shape (?). Received shape: ()"),
        ({"item_id": ["a", "b"]}, "`inputs['item_id']` must have shape (?, ?). Received shape: (2)"),
        ({"vector": np.zeros((2, 4))}, "`inputs['vector']` must have shape (?, 3). Received shape: (2, 4)"),
        ({"price": [1, 2, 3]}, "`inputs['price']` must have as many rows as `inputs['user_id']`, 2. Received: 3"),
        ({"history_length": [1]}, "`inputs['history_length']` must have as many rows as `inputs['user_id']`, 2."),
        (
            {"history_dwell": [[1.0], [2.0]]},
            "`inputs['history_dwell']` must have as many behaviours as `inputs['history_item_id']`, 2. Received: 1",
        ),
        (
            {"history_length": [3, 1]},
            "`inputs['history_length']` must be between 0 and the number of behaviours, 2. Received: [3, 1]",
        ),
        ({"history_length": [0, -1]}, "must be between 0 and the number of behaviours, 2. Received: [0, -1]"),
    ],
)
def test_shapes_that_do_not_fit(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        arrays(**changes)


def test_empty_histories_get_one_column_that_does_not_count() -> None:
    found = arrays(history_item_id=[[], []], history_dwell=[[], []], history_length=[0, 0])
    assert found["history_item_id"].tolist() == [[b""], [b""]]
    assert found["history_dwell"].tolist() == [[0.0], [0.0]]
    assert found["history_dwell"].dtype == np.float32
    assert found["history_length"].tolist() == [0, 0]


def test_a_column_of_rows_with_the_prefix_of_histories() -> None:
    """A user's column may be called `history_depth`: it is no history."""
    signature = Signature({**SIGNATURE.inputs, "history_depth": TensorSpec("int64", (None,))}, {})
    inputs = {name: (name, values) for name, values in (GOOD | {"history_depth": [5, 6]}).items()}
    assert signature_arrays(inputs, signature)["history_depth"].tolist() == [5, 6]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"candidates": {"item_id": np.zeros((0, 3), int)}, "history": {"item_id": np.zeros((0, 2), int)}},
            "Every column must have one row per request, and there must be a request. "
            "Received: {\"candidates['item_id']\": 0, \"history['item_id']\": 0, 'history_length': 0}",
        ),
        (
            {"candidates": {"item_id": [1]}, "history": {"item_id": [1]}, "history_length": "1"},
            "`history_length` must be int64. Received: ['1']",
        ),
        (
            {"candidates": {"item_id": [1]}, "history": {"item_id": [1]}, "history_length": 0.7},
            "`history_length` must be int64. Received: [0.7]",
        ),
    ],
)
def test_requests_that_do_not_fit(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        ranking_inputs(**arguments)
