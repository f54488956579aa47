"""The retriever's part of the configuration: what it refuses."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.custom_layout import custom
from tfx_pipeline.joined_table import JoinedTable
from tfx_pipeline.layouts import Label, Layout, movielens, taobao
from tfx_pipeline.retriever_config import Retriever

TABLE = JoinedTable("items.csv", ("id", "name"), "id", ())
NAN: Any = float("nan")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"item_text": ("a",)}, "`item_table`, `item_text` and `item_category` must go with `retriever_dir`."),
        ({"item_table": "t"}, "`item_table`, `item_text` and `item_category` must go with `retriever_dir`."),
        ({"retriever_dir": ""}, "`retriever_dir` must be a directory. Received: retriever_dir=''"),
        ({"retriever_dir": "r", "item_table": "t"}, "`item_table` must come with columns of `item_text` or"),
        ({"retriever_dir": "r", "item_category": ("a",)}, "`item_table` must come with columns of `item_text` or"),
        (
            {"retriever_dir": "r", "item_table": "t", "item_text": ("a",), "item_category": ("a",)},
            "`item_table` must come with columns of `item_text` or `item_category`, none of them twice, and these with "
            "it. Received: item_table='t', item_text=('a',), item_category=('a',)",
        ),
        ({"codebook_size": 0}, "`codebook_size` must be a positive integer. Received: codebook_size=0"),
        ({"retriever_epochs": True}, "`retriever_epochs` must be a positive integer. Received: retriever_epochs=True"),
        (
            {"retriever_results": 9},
            "`retriever_results` must be an integer of at least 10, as recall@10 is judged. Received: "
            "retriever_results=9",
        ),
        ({"unseen_share": 1.5}, "`unseen_share` must be a number from 0 to 1. Received: unseen_share=1.5"),
        ({"max_recall_drop": NAN}, "`max_recall_drop` must be a number of at least 0. Received: max_recall_drop=nan"),
        ({"max_recall_drop": -0.1}, "`max_recall_drop` must be a number of at least 0. Received: max_recall_drop=-0.1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Retriever(**arguments)


def configured(layout: Layout, serving_dir: str = "served/eta", **retriever: Any) -> PipelineConfig:
    return PipelineConfig(layout, "data", "", serving_dir=serving_dir, retriever=Retriever("served/tiger", **retriever))


def test_something_must_be_known_of_items() -> None:
    bare = custom("log.csv", Label("clicked"), item_attributes=("price:float32",))
    for layout in (bare, dataclasses.replace(bare, items=TABLE)):
        with pytest.raises(ValueError, match=r"^A retriever finds items by what they are, and nothing is known of"):
            configured(layout)
    configured(movielens())
    configured(taobao())
    configured(bare, item_table="t", item_text=("name",))
    configured(dataclasses.replace(bare, items=dataclasses.replace(TABLE, text=("name",))))
    assert PipelineConfig(bare, "data", "").retriever.retriever_dir is None


def test_rankers_and_retrievers_are_not_pushed_to_one_directory() -> None:
    with pytest.raises(ValueError, match=r"^`retriever_dir` must not be the `serving_dir` .*eta/\.\./tiger"):
        configured(movielens(), "served/eta/../tiger")
    with pytest.raises(ValueError, match=r"^`retriever_dir` must not be the `serving_dir` "):
        PipelineConfig(movielens(), "data", "", serving_dir="tiger", retriever=Retriever("./tiger/"))
    # Components get no directory that they do not push to.
    config = PipelineConfig(movielens(), "data", "", retriever=Retriever("."))
    assert config.only("retriever").retriever == config.retriever


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": ("title",)}, "`text`, `categories` and what they are `extracted` from must be among the table's"),
        ({"extracted": (("year", "title", "(.)"),)}, "columns ('id', 'name', 'year'). Received: ['title']"),
        ({"extracted": (("year", "name", "1..."),)}, "must hold regular expressions with a group. Received: '1...' of"),
        (
            {"extracted": (("year", "name", "("),)},
            "must hold regular expressions with a group. Received: '(' of 'year'",
        ),
    ],
)
def test_bad_tables_of_a_layout_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(TABLE, **arguments)
