"""Layouts: what they refuse, what a custom one becomes, and their way through JSON."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from keras_eta import Age, Calendar, Feature, Features, Positives
from tfx_pipeline.custom_layout import custom
from tfx_pipeline.joined_table import JoinedTable
from tfx_pipeline.layouts import AGE_BOUNDARIES, Label, Layout, movielens, taobao


def test_custom_mapping_makes_the_features_and_columns():
    layout = custom(
        "day-{SPAN}/*.parquet",
        Label("action", positives=("buy",)),
        {"user_id": "uid", "item_id": "iid", "timestamp": "ts"},
        item_id="item_id:string",
        item_attributes=("category_id", "price:float32"),
        behaviour_attributes=("action:string",),
        user=("user_id", "country:string"),
        context=("hour:int64",),
        slice_columns=("device",),
        file_format="parquet",
        max_history_length=100,
    )

    assert layout == Layout(
        Features(
            item_id=Feature("item_id", "string", 32),
            item_attributes=(Feature("category_id", "int64", 16), Feature("price", "float32", 16)),
            behaviour_attributes=(Feature("action", "string", 8),),
            user=(Feature("user_id", "int64", 32), Feature("country", "string", 32)),
            context=(Feature("hour", "int64", 8),),
            age=Age(AGE_BOUNDARIES),
            max_history_length=100,
        ),
        pattern="day-{SPAN}/*.parquet",
        label=Label("action", positives=("buy",)),
        columns=(("user_id", "uid"), ("item_id", "iid"), ("timestamp", "ts")),
        file_format="parquet",
        slice_columns=("device",),
    )
    assert layout.sources == ("uid", "ts", "country", "hour", "iid", "category_id", "price", "device", "action")
    assert layout.row_columns == (
        "user_id", "timestamp", "country", "hour", "item_id", "category_id", "price", "device",
    )  # fmt: skip


def test_custom_takes_names_with_spaces_and_colons():
    layout = custom("*.csv", Label("clicked"), context=("device type", "a:b:float32"))
    assert [(feature.name, feature.dtype) for feature in layout.features.context] == [
        ("device type", "int64"),
        ("a:b", "float32"),
    ]


def test_custom_reads_hours_and_weekdays_where_asked():
    layout = custom("log.csv", Label("clicked"), calendar="milliseconds", utc_offset=-8)
    assert layout.features.calendar == Calendar("milliseconds", -8)
    assert custom("log.csv", Label("clicked")).features.calendar is None
    with pytest.raises(ValueError, match=r"`utc_offset` must go with `calendar`\. Received: utc_offset=2\.0"):
        custom("log.csv", Label("clicked"), utc_offset=2.0)


def test_custom_without_age_boundaries_reads_no_ages():
    layout = custom("log.csv", Label("clicked"), age_boundaries=())

    assert layout.features.age is None
    assert layout.features.history_names == ("history_item_id",)
    assert layout.sources == ("user_id", "timestamp", "item_id", "clicked")


@pytest.mark.parametrize(
    ("text", "positives"),
    [
        ("", None),
        ("action:buy,cart", Positives("action", ("buy", "cart"))),
        ("rating>=3.5", Positives("rating", minimum=3.5)),
        ("stars:4,5", Positives("stars", (4, 5))),
        ("a:b:4", Positives("a:b", (4,))),
    ],
)
def test_custom_reads_which_behaviours_are_positive(text, positives):
    attributes = ("action:string", "rating:float32", "stars", "a:b:int64")
    layout = custom("log.csv", Label("clicked"), behaviour_attributes=attributes, positives=text)

    assert layout.features.positives == positives


@pytest.mark.parametrize("text", ["stars", "stars:", ":4", "stars:4,", "stars:four", "rating>=", "rating>=inf", ">=3"])
def test_custom_refuses_positives_that_are_not_written_so(text):
    attributes = ("rating:float32", "stars")
    message = (
        "`positives` must be written ATTRIBUTE:VALUE,VALUE or ATTRIBUTE>=MINIMUM, with integers of an int64 and a "
        f"finite minimum. Received: {text!r}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        custom("log.csv", Label("clicked"), behaviour_attributes=attributes, positives=text)


def test_ready_made_layouts_declare_as_positive_what_their_label_does():
    assert movielens().features.positives == Positives("rating", (4, 5))
    assert taobao().features.positives == Positives("action", taobao().label.positives)


@pytest.mark.parametrize("layout", [movielens(64), taobao(), custom("*.csv", Label("stars", minimum=3.5))])
def test_layout_is_the_same_after_json(layout):
    assert Layout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


def test_joined_columns_and_the_label_are_not_asked_of_the_file():
    assert movielens().sources == ("user_id", "timestamp", "item_id", "rating")
    assert taobao().sources == ("user_id", "timestamp", "item_id", "category_id", "action")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pattern": ""}, "`pattern` must name files. Received: pattern=''"),
        (
            {"pattern": "{SPAN}/{VERSION}/*"},
            "`pattern` must not have a {VERSION}. Received: pattern='{SPAN}/{VERSION}/*'",
        ),
        ({"file_format": "json"}, "`file_format` must be 'csv' or 'parquet'. Received: file_format='json'"),
        ({"separator": ""}, "`separator` must be a character or more. Received: separator=''"),
        (
            {"columns": {"itm": "iid"}},
            "`columns` must map columns of the model, among ['item_id', 'timestamp', 'user_id']. Received: ['itm']",
        ),
        (
            {"header": ("user_id", "iid", "timestamp", "clicked")},
            "`header` ('user_id', 'iid', 'timestamp', 'clicked') lacks columns that the layout reads: ['item_id']",
        ),
        ({"header": ("a", "a")}, "`header` must name each column once. Received: header=('a', 'a')"),
        (
            {"context": ("hour:int32",)},
            "A feature must be written `name`, `name:dtype`, `name:dtype[max_values]` or `name:float32?`, dtype one of "
            "('int64', 'string', 'float32'). "
            "Received: 'hour:int32'",
        ),
        (
            {"item_id": ":string"},
            "A feature must be written `name`, `name:dtype`, `name:dtype[max_values]` or `name:float32?`, dtype one of "
            "('int64', 'string', 'float32'). "
            "Received: ':string'",
        ),
    ],
)
def test_custom_refuses(arguments: dict[str, Any], message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        custom(**{"pattern": "*.csv", "label": Label("clicked"), **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"column": ""}, "`column` of the label must be a column of the file. Received: column=''"),
        (
            {"column": "x", "minimum": float("nan")},
            "`minimum` of the label must be a finite number. Received: minimum=nan",
        ),
        ({"column": "x", "minimum": True}, "`minimum` of the label must be a finite number. Received: minimum=True"),
        (
            {"column": "x", "minimum": 1, "positives": ("y",)},
            "Give a label either a `minimum` or `positives`. Received: minimum=1, positives=('y',)",
        ),
        (
            {"column": "x", "negatives": ("pv",)},
            "`negatives` of a label must go with `positives` and differ from them. "
            "Received: positives=(), negatives=('pv',)",
        ),
        (
            {"column": "x", "positives": ("buy", "pv"), "negatives": ("pv",)},
            "`negatives` of a label must go with `positives` and differ from them. "
            "Received: positives=('buy', 'pv'), negatives=('pv',)",
        ),
    ],
)
def test_label_refuses(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Label(**arguments)


def test_item_table_refuses_a_column_that_it_lacks():
    message = "`key` and `columns` must be among the columns of the table items.csv, ('id', 'name'), once each. "
    message += "Received: ['genre']"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        JoinedTable("items.csv", ("id", "name"), "id", ("genre",))


def test_custom_layout_gives_every_id_its_minimum_count() -> None:
    layout = custom(
        "*.csv", Label("clicked"), item_attributes=("brand:string", "price:float32"), context=("hour",), min_count=3
    )
    counts = {feature.name: feature.min_count for feature in layout.features.all_features}
    assert counts == {"item_id": 3, "brand": 3, "price": 1, "hour": 3}
    with pytest.raises(ValueError, match=r"`min_count` of feature 'item_id' must be a positive integer"):
        custom("*.csv", Label("clicked"), min_count=0)
