"""Tables of attributes from DataFrames and logs: which value counts, what is unknown, what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from keras_eta import Feature, FeatureLookup, Features, Ranker
from keras_eta.datasets import Interactions
from keras_eta.export import AttributeTable, export_model
from keras_eta.interest import RecentInterest

FEATURES = Features(
    item_id=Feature("item_id", embedding_dim=2),
    item_attributes=(
        Feature("shelf", "string", embedding_dim=2),
        Feature("topics", embedding_dim=2, max_values=2),
        Feature("price", "float32"),
    ),
    user=(Feature("user_id", "string", embedding_dim=2), Feature("age", "float32")),
    context=(Feature("hour", "float32"),),
)
CATALOGUE = pd.DataFrame(
    {
        "item_id": [7, 8, 7, 9, 8],
        "shelf": ["dairy", b"\xff\0", "bread", None, b"\xff\0"],
        "topics": [[1, 2, 3], [], [4], None, np.array([5])],
        "price": [1.0, np.nan, np.nan, 2.5, 3.0],
        "title": ["Milk", "?", "Rye", "Salt", "?"],
    }
)


def values_of(table: AttributeTable) -> dict[str, list[Any]]:
    """What is known of each id, `None` what is not."""
    found = {}
    for attribute in table.attributes:
        values = attribute.values.tolist()
        if attribute.lengths is not None:
            values = [value[:length] for value, length in zip(values, attribute.lengths, strict=True)]
        found[attribute.feature.name] = [
            value if known else None for value, known in zip(values, attribute.known, strict=True)
        ]
    return found


def test_the_last_value_that_is_there_counts_and_the_rest_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    table = AttributeTable.from_frame(CATALOGUE, FEATURES)
    assert (table.key, table.ids.tolist(), table.ids.dtype) == (Feature("item_id"), [7, 8, 9], np.int64)
    assert values_of(table) == {
        "shelf": [b"bread", b"\xff\0", None],
        "topics": [[4], [5], None],
        "price": [1.0, 3.0, 2.5],
    }
    assert table.notes == (
        "1 of 3 item_id have several values of 'shelf', of which the last counts",
        "1 of 3 item_id have no 'shelf', which is unknown",
        "2 of 3 item_id have several values of 'topics', of which the last counts",
        "1 of 3 item_id have no 'topics', which is unknown",
    )
    assert capsys.readouterr().out == f"AttributeTable: {'; '.join(table.notes)}\n"
    assert repr(table) == "AttributeTable(3 item_id; attributes: shelf, topics, price)"


def test_a_table_gives_the_attributes_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    table = AttributeTable.from_frame(CATALOGUE, FEATURES, attributes=["price"])
    assert (table.names, table.notes) == (("price",), ())
    assert capsys.readouterr().out == ""


def test_only_the_first_values_count(capsys: pytest.CaptureFixture[str]) -> None:
    table = AttributeTable.from_frame(CATALOGUE[:1], FEATURES, attributes=["topics"])
    assert values_of(table) == {"topics": [[1, 2]]}


def test_a_log_gives_what_it_says_last() -> None:
    columns = {
        "user_id": ["a", "a", "b", "b"],
        "item_id": [7, 8, 7, 8],
        "timestamp": [30, 10, 20, 40],
        "shelf": ["dairy", "bread", "old", "bread"],
        "topics": [[1], [2, 3], [9], [2, 3]],
    }
    log = Interactions.from_columns(columns | {"age": [30.0, 30.0, 5.0, 6.0]})
    table = AttributeTable.from_log(log, FEATURES)
    found = {name: dict(zip(table.ids.tolist(), values, strict=True)) for name, values in values_of(table).items()}
    assert found == {"shelf": {7: b"dairy", 8: b"bread"}, "topics": {7: [1], 8: [2, 3]}}
    assert table.notes == (
        "1 of 2 item_id have several values of 'shelf', of which the last counts",
        "1 of 2 item_id have several values of 'topics', of which the last counts",
    )
    users = AttributeTable.from_log(log, FEATURES, "user_id")
    assert dict(zip(users.ids, values_of(users)["age"], strict=True)) == {b"a": 30.0, b"b": 6.0}


@pytest.mark.parametrize(
    ("ids", "dtype", "expected"),
    [([3, 2**62], "int64", [3, 2**62]), (["é", b"\0"], "string", ["é".encode(), b"\0"])],
)
def test_a_user_may_have_an_id_that_the_model_does_not_read(ids: list[Any], dtype: str, expected: list[Any]) -> None:
    table = AttributeTable.from_frame(pd.DataFrame({"account": ids, "age": [1, 2]}), FEATURES, "account")
    assert (table.key, table.ids.tolist()) == (Feature("account", dtype), expected)
    assert values_of(table) == {"age": [1.0, 2.0]}


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no key": (
        {"shelf": ["a"]},
        {},
        "`key` must be a column of `frame`, among ['shelf']. Received: key='item_id'",
    ),
    "missing ids": (
        {"item_id": [1, None], "price": [1.0, 2.0]},
        {},
        "Every row of `frame` must have its 'item_id', and there must be one. Received: 1 of 2 without",
    ),
    "no rows": (
        {"item_id": [], "price": []},
        {},
        "Every row of `frame` must have its 'item_id', and there must be one. Received: 0 of 0 without",
    ),
    "no attributes": (
        {"item_id": [1], "title": ["a"]},
        {},
        "A table by 'item_id' can give the features of the item that `frame` has, [] of ['shelf', 'topics', 'price']. "
        "Received: attributes=[]",
    ),
    "attribute of another": (
        {"user_id": ["a"], "age": [1.0], "price": [1.0]},
        {"key": "user_id", "attributes": ["age", "price"]},
        "A table by 'user_id' can give the features of the user that `frame` has, ['age'] of ['age']. "
        "Received: attributes=['age', 'price']",
    ),
    "key that is no id": (
        {"age": [1.0], "user_id": ["a"]},
        {"key": "age"},
        "`key` must be an id with one value. Received: key='age', which is " + repr(FEATURES.user[1]),
    ),
    "key that is another column": (
        {"hour": [1], "age": [2.0]},
        {"key": "hour"},
        "Every column must have a name of its own. Used twice: ['hour']",
    ),
    "fraction as an id": (
        {"item_id": [1.5], "price": [1.0]},
        {},
        "Feature 'item_id' must hold integers of 64 bits, as floats only where they are exact. "
        "Received: 1.5 (dtype=float64). Fractions, such as half stars, take a feature of dtype 'float32'",
    ),
    "number as text": (
        {"item_id": [1], "shelf": [5]},
        {},
        "Feature 'shelf' must hold text or bytes. Received: 5",
    ),
    "text as a number": ({"item_id": [1], "price": ["3"]}, {}, "Feature 'price' must hold numbers. Received: '3'"),
    "too large": (
        {"item_id": [1, 2], "price": [1.0, 1e39]},
        {},
        "Feature 'price' must hold finite numbers. Received: 1 that are not, of 2, the first of them inf",
    ),
    "no lists": (
        {"item_id": [1], "topics": [4]},
        {},
        "Feature 'topics' must hold lists of values. Received: 4",
    ),
    "missing in a list": (
        {"item_id": [1], "topics": [[4, None]]},
        {},
        "Feature 'topics' must hold integers of 64 bits, as floats only where they are exact. "
        "Received: None (dtype=object)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_table_is_refused(name: str) -> None:
    columns, arguments, text = REFUSED[name]
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        AttributeTable.from_frame(pd.DataFrame(columns), FEATURES, **arguments)


def test_features_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^`features` must be a keras_eta\.Features\. Received: features=5$"):
        AttributeTable.from_frame(CATALOGUE, 5)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model() -> Ranker:
    tf.keras.utils.set_random_seed(0)
    lookup = FeatureLookup(FEATURES)
    lookup.adapt(
        {"item_id": [7], "shelf": ["a"], "topics": [[1]], "price": [1.0, 2.0], "user_id": ["a"]}
        | {"age": [1.0, 2.0], "hour": [1.0, 2.0]}
    )
    return Ranker(lookup=lookup, interests=[RecentInterest(2)], hidden_units=(2,))


def test_exports_refuse_tables_that_do_not_fit(model: Ranker, tmp_path: Path) -> None:
    items = AttributeTable.from_frame(CATALOGUE, FEATURES)
    prices = AttributeTable.from_frame(CATALOGUE, FEATURES, attributes=["price"])
    account = AttributeTable.from_frame(pd.DataFrame({"account": [1], "user_id": ["a"]}), FEATURES, "account")
    users = AttributeTable.from_frame(pd.DataFrame({"user_id": ["a"], "age": [1.0]}), FEATURES, "user_id")
    ages = AttributeTable.from_frame(pd.DataFrame({"account": [1], "age": [1.0]}), FEATURES, "account")
    spelt = Features(item_id=Feature("item_id", "string"), item_attributes=(Feature("price", "float32"),))
    by_text = AttributeTable.from_frame(pd.DataFrame({"item_id": ["7"], "price": [1.0]}), spelt)
    wide = Features(item_id=Feature("item_id"), item_attributes=(Feature("topics", max_values=3),))
    three = AttributeTable.from_frame(CATALOGUE, wide)
    ours = {feature.name: feature for feature in model.features.all_features}
    fits = "`tables` must hold what the model has, with its dtype and `max_values`. Received: "
    for tables, text in (
        ([items, prices], "`tables` must have one key each. Received more than once: ['item_id']"),
        ([users, ages], "`tables` must give a feature once. Received more than once: ['age']"),
        ([users, account], "`tables` must not give the key of another. Received more than once: ['user_id']"),
        ([by_text], f"{fits}{by_text.key} in {by_text!r}, where the model has {ours['item_id']}"),
        ([three], f"{fits}{three.attributes[0].feature} in {three!r}, where the model has {ours['topics']}"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            export_model(model, tmp_path, tables=tables)
    with pytest.raises(TypeError, match=r"^`tables` must hold AttributeTable objects\. Received: \['items'\]$"):
        export_model(model, tmp_path, tables=["items"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"^`tables` must be a list of AttributeTable objects\. Received: "):
        export_model(model, tmp_path, tables=items)  # type: ignore[arg-type]
    sized = model.features
    bare = Ranker(sized, interests=[RecentInterest(2)], hidden_units=(2,))
    with pytest.raises(ValueError, match=r"^`tables` are of raw ids, which take a model with a `lookup`\. Received: "):
        export_model(bare, tmp_path, tables=[items])
    assert [*tmp_path.iterdir()] == []
