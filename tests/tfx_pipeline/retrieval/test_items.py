"""The items that a retriever can find: of a table, of the layout, of the log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from keras_eta.content import content_vectors
from tests.tfx_pipeline.retrieval.impressions import write_impressions
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.custom_layout import custom
from tfx_pipeline.layouts import Label, Layout, movielens
from tfx_pipeline.retrieval.items import check_items, read_items
from tfx_pipeline.retriever_config import Retriever

LAYOUT = custom(
    "log.csv", Label("clicked"), {"item_id": "iid"}, item_attributes=("brand:string", "sizes:int64[3]", "price:float32")
)


def configured(layout: Layout, data: str = "", **retriever: Any) -> PipelineConfig:
    return PipelineConfig(layout, data, "", retriever=Retriever(retriever_dir="tiger", **retriever))


def with_table(path: Path) -> PipelineConfig:
    return configured(LAYOUT, item_table=str(path), item_text=("name",), item_category=("tags",))


def test_movielens_has_titles_decades_and_genres_by_itself(tmp_path: Path) -> None:
    lines = ["1::Toy Story (1995)::Animation|Comedy", "30::Amélie (2001)::Comedy", "4::(500) Days::Drama"]
    (tmp_path / "movies.dat").write_text("\r\n".join(lines) + "\r\n", encoding="latin-1", newline="")
    items = read_items(configured(movielens(), str(tmp_path)), [])
    assert items.ids == [1, 30, 4]
    assert (items.text, items.categories) == (("name",), ("decade", "genre"))
    assert items.table["name"].tolist() == ["Toy Story", "Amélie", "(500) Days"]
    assert items.table["decade"].tolist() == [["199"], ["200"], [""]]
    assert items.table["genre"].tolist() == [["Animation", "Comedy"], ["Comedy"], ["Drama"]]
    vectors = content_vectors(items.table, items.text, items.categories)
    # One of three columns in common, of the two and three that they have.
    assert vectors[0] @ vectors[1] == pytest.approx(2**-0.5 / 3, abs=1e-5)
    assert vectors[0] @ vectors[2] == 0


def test_csv_file_has_lists_and_items_that_the_log_lacks(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text('iid,name,unread,tags\n7,"Tea, green",x,a|b\n-8.0,,y,\n', encoding="utf-8-sig")
    config = with_table(path)
    check_items(config)
    items = read_items(config, [])
    assert items.ids == [7, -8]
    assert items.table.to_dict("list") == {"name": ["Tea, green", ""], "tags": [["a", "b"], [""]]}


def test_parquet_file_has_lists_and_missing_cells(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    table = pd.DataFrame({"tags": [["a", "b"], None, []], "iid": [7, 8, 9], "name": ["x", None, "z"]})
    table.to_parquet(path)
    config = with_table(path)
    check_items(config)
    items = read_items(config, [])
    assert items.ids == [7, 8, 9]
    assert items.table.to_dict("list") == {"name": ["x", None, "z"], "tags": [["a", "b"], None, []]}
    path.write_bytes(b"no Parquet, but long enough")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} is not a Parquet file: "):
        check_items(config)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("iid,name,tags\n1,x,a\n01,y,b\n", " has more than one row of the item 1"),
        ("iid,name,tags\n1,x,a\nx,y,b\n", " has a row with a non-numeric iid: 'x'"),
        ("iid,name,tags\n,x,a\n", " has a row with a missing iid: ''"),
        ("iid,name,tags\n", " has no items."),
        ("", " lacks columns that the retriever needs: ['iid', 'name', 'tags']. Present: []"),
        ("iid,name,tags,name\n", " has several columns of the same name: ['name']"),
        (
            "iid,name,tags\n1,x,a\n2,y,b,c\n",
            " has a line with a wrong number of columns, 3: ['2', 'y', 'b', 'c']",
        ),
        ('iid,name,tags\n1,"x"y,a\n', " can't be read: ',' expected after '\"'"),
        (
            "item_id,name\n1,x\n",
            " lacks columns that the retriever needs: ['iid', 'tags']. Present: ['item_id', 'name']",
        ),
    ],
)
def test_bad_tables_are_refused_by_name(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "items.csv"
    path.write_text(lines)
    with pytest.raises(ValueError, match="^" + re.escape(f"{path}{message}") + "$"):
        read_items(with_table(path), [])


def test_missing_table_is_refused_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    with pytest.raises(FileNotFoundError, match=re.escape(f"`item_table` must be a file. There is no {str(path)!r}")):
        check_items(with_table(path))
    check_items(configured(LAYOUT))


def test_items_of_the_log_have_the_attributes_of_the_latest_impression(tmp_path: Path) -> None:
    rows = [(9, [], 1), (3, [5], 0), (9, [], 0), (9, [], 0), (4, [], 1)]
    columns: dict[str, Any] = {"timestamp": [5, 1, 8, 8, 2]}
    columns["brand"] = [b"old", b"caf\xe9", b"new", b"newer", b"-"]
    columns["sizes"] = [[1], [], [3], [2], [6, 7]]
    one = write_impressions(tmp_path / "a.gz", LAYOUT, rows[:3], **{name: x[:3] for name, x in columns.items()})
    other = write_impressions(tmp_path / "b.gz", LAYOUT, rows[3:], **{name: x[3:] for name, x in columns.items()})
    for patterns in ([one, other], [other, one]):
        items = read_items(configured(LAYOUT), patterns)
        # Neither the price, which is no category, nor item 5, which is only in a history.
        assert items.ids == [3, 4, 9]
        assert (items.text, items.categories) == ((), ("brand", "sizes"))
        assert items.table["brand"].tolist() == [["caf\\xe9"], ["-"], ["newer"]]
        assert items.table["sizes"].tolist() == [[], [6, 7], [2]]
