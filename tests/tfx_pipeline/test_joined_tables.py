"""Tables of items and users that come with a log: joined to its rows, and looked up in the export."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tfx import v1 as tfx
from tfx.types import standard_artifacts

from keras_eta import FeatureLookup
from keras_eta.contract import Contract
from keras_eta.export import AttributeTable, export_model
from keras_eta.export.attribute_table import Attribute
from tests.paper import paper_eta
from tests.tfx_pipeline import servable
from tests.tfx_pipeline.ingestion.test_ingestion import ingest, make_config, random_rows, write_csv
from tfx_pipeline.components.infra_validator import InfraValidatorExecutor, LocalInfraValidator, check_signatures
from tfx_pipeline.components.model_server import ModelServer, UnservableModelError
from tfx_pipeline.components.serving_requests import requests_to, serving_requests
from tfx_pipeline.config import Evaluation, PipelineConfig, Training
from tfx_pipeline.custom_layout import custom
from tfx_pipeline.ingestion.log_checks import check_data
from tfx_pipeline.joined_table import JoinedTable
from tfx_pipeline.layouts import Label, Layout, movielens
from tfx_pipeline.model_config import Model
from tfx_pipeline.pipeline import make_pipeline
from tfx_pipeline.training.attribute_tables import attribute_tables

BRANDS, PRICES, COUNTRIES = ("acme", "zoë", "bo"), (0.0, 1.5, 20.25), ("nz", "de")


def layout_of(**tables: Any) -> Layout:
    return custom(
        "log.csv",
        Label("rating", minimum=4),
        {"item_id": "iid", "timestamp": "ts"},
        item_attributes=("brand:string", "price:float32"),
        user_dtype="int64",
        user=("country:string",),
        slice_columns=("device",),
        max_history_length=4,
        **tables,
    )


def test_what_is_joined_gives_the_impressions_of_a_log_that_holds_it(tmp_path: Path) -> None:
    rows = [
        {
            **row,
            "brand": BRANDS[row["iid"] % 3],
            "price": PRICES[row["iid"] % 2],
            "country": COUNTRIES[row["user_id"] % 2],
        }
        for row in random_rows()
    ]
    whole, apart = tmp_path / "whole", tmp_path / "apart"
    write_csv(whole / "data" / "log.csv", rows, [*rows[0]])
    log = ("user_id", "iid", "ts", "rating", "device")
    write_csv(apart / "data" / "log.csv", [{name: row[name] for name in log} for row in rows], log)
    # With columns that nobody reads, in another order.
    items = [{"price": PRICES[i % 2], "name": f"item {i}", "iid": i, "brand": BRANDS[i % 3]} for i in range(8)]
    write_csv(apart / "data" / "items.csv", items, [*items[0]])
    users = [{"user_id": user, "country": COUNTRIES[user % 2]} for user in range(6)]
    write_csv(apart / "data" / "users.csv", users, [*users[0]])
    joined = layout_of(join_items=("items.csv", "brand", "price"), join_users=("users.csv", "country"))
    assert Layout.from_dict(joined.to_dict()) == joined
    assert joined.sources == ("user_id", "ts", "iid", "device", "rating")
    expected_report, expected = ingest(make_config(whole, layout_of()))
    report, found = ingest(make_config(apart, joined))
    assert found == expected
    assert sum(map(len, found.values())) > 50
    assert report["rows_kept"] == expected_report["rows_kept"]

    write_csv(apart / "data" / "users.csv", users[1:], [*users[0]])
    report, _ = ingest(make_config(apart, joined, max_bad_share=0.5))
    assert report["malformed"] == {"of an unknown user": sum(row["user_id"] == 0 for row in rows)}
    (apart / "data" / "users.csv").write_text("user_id,land\n1,nz\n")
    message = (
        "`key` and `columns` must be among the columns of the table users.csv, ('user_id', 'land'), once each. "
        "Received: ['country']"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_data(make_config(apart, joined))
    (apart / "data" / "users.csv").unlink()
    with pytest.raises(FileNotFoundError, match="The layout's table of users is missing: "):
        check_data(make_config(apart, joined))


def test_tables_of_an_export_hold_what_the_files_hold(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("iid,tags,price,made\n7,red|big|old,1.5,x\n9,,nan,y\n8,red,,\n")
    (tmp_path / "users.csv").write_text("user_id,country\nann,nz\nb\u00f6,\n", encoding="utf-8")
    layout = custom(
        "log.csv",
        Label("clicked"),
        {"item_id": "iid"},
        item_attributes=("tags:string[2]", "price:float32?"),
        user=("country:string",),
        slice_columns=("made",),
        join_items=("items.csv", "tags", "price", "made"),
        join_users=("users.csv", "country"),
    )
    items, users = attribute_tables(layout, str(tmp_path))
    assert (items.key.name, items.key.dtype, items.ids.tolist()) == ("item_id", "int64", [7, 9, 8])
    tags, price = items.attributes
    assert tags.values[0].tolist() == [b"red", b"big"]
    assert tags.lengths is not None
    assert tags.lengths.tolist() == [2, 0, 1]
    # "nan" is no number of a log, and an optional one may be missing.
    assert (price.known.tolist(), price.values[0]) == ([True, False, False], 1.5)
    assert (users.key.name, users.key.dtype) == ("user_id", "string")
    assert users.ids.tolist() == [b"ann", "bö".encode()]
    assert (users.attributes[0].values[0], users.attributes[0].known.tolist()) == (b"nz", [True, False])
    # The genre of MovieLens is a column to slice by, which the model does not read.
    assert attribute_tables(movielens(), "nowhere") == []


def trainers(layout: Layout, **arguments: Any) -> list[PipelineConfig]:
    """What the Trainers of a pipeline are told: that of the model, and that of the short history."""
    pipeline = make_pipeline(PipelineConfig(layout, "folder", "x.pbtxt", "output", "served", **arguments))
    custom_configs = [
        json.loads(component.exec_properties["custom_config"])["config"]
        for component in sorted(pipeline.components, key=lambda component: component.id, reverse=True)
        if component.id in ("Trainer", "ShortHistoryTrainer")
    ]
    return [PipelineConfig.from_json(text) for text in custom_configs]


def test_the_short_history_is_trained_afresh_and_not_calibrated_and_may_be_left_out() -> None:
    model, short = trainers(movielens(), training=Training(calibrate="platt", batch_size=64))
    assert (model.training.warm_start, model.training.calibrate, model.model) == (True, "platt", Model())
    assert (short.training.warm_start, short.training.calibrate, short.training.batch_size) == (False, None, 64)
    assert short.model == Model().short_history()
    assert len(trainers(movielens(), evaluation=Evaluation(short_history_baseline=False))) == 1


def test_only_components_that_read_tables_depend_on_where_they_are() -> None:
    assert [config.data for config in trainers(layout_of(join_users=("users.csv", "country")))] == ["folder", "folder"]
    assert [config.data for config in trainers(layout_of())] == ["", ""]
    assert [config.data for config in trainers(movielens())] == ["", ""]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layout_of(join_items=("items.csv",)), "A table of items must be joined by some of its columns."),
        (
            lambda: layout_of(join_items=("items.csv", "country")),
            "A table of items gives attributes of items, and columns to slice by. Received: ['country']",
        ),
        (
            lambda: layout_of(join_users=("users.csv", "brand", "device")),
            "A table of users gives features of users, and columns to slice by. Received: ['brand']",
        ),
        (
            lambda: layout_of(join_items=("i.csv", "device"), join_users=("u.csv", "device")),
            "The tables of items and of users must give different columns, and not the ids or times of the log. "
            "Received: ['device', 'device']",
        ),
        (
            lambda: layout_of(join_users=("u.csv", "iid")),
            "The tables of items and of users must give different columns, and not the ids or times of the log. "
            "Received: ['iid']",
        ),
    ],
)
def test_tables_that_do_not_go_with_the_layout_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        make()


def test_a_version_that_looks_features_up_is_asked_without_them(tmp_path: Path) -> None:
    features = servable.LAYOUT.features
    tf.keras.utils.set_random_seed(0)
    lookup = FeatureLookup(features)
    lookup.adapt({"item_id": np.array(servable.ITEMS, object), "category_id": np.arange(4), "user_id": np.arange(4)})
    model = paper_eta(lookup=lookup, top_k=2, num_bits=16, hidden_units=(8,))
    items = AttributeTable(
        features.item_id,
        np.array([item.encode() for item in servable.ITEMS], object),
        (Attribute(features.item_attributes[0], np.arange(20) % 4, np.ones(20, bool)),),
    )
    exported = export_model(model, tmp_path / "export", version=1, tables=[items])
    contract = Contract.read(exported)
    records = [servable.serialized(impression) for impression in servable.impressions(5)]
    requests = requests_to(contract, records)
    assert "category_id" not in requests["rank"]
    assert "history_category_id" not in requests["serving_default"]
    with ModelServer(exported, loading_seconds=100, request_seconds=30) as server:
        check_signatures(server, requests)
        with pytest.raises(UnservableModelError, match="category_id"):
            check_signatures(server, serving_requests(records, features))


def test_the_validator_knows_what_the_layout_joins() -> None:
    layout = layout_of(join_items=("items.csv", "price"), join_users=("users.csv", "country"))
    component: Any = LocalInfraValidator(
        model=tfx.dsl.Channel(type=standard_artifacts.Model),
        examples=tfx.dsl.Channel(type=standard_artifacts.Examples),
        config=PipelineConfig(layout, "", "", "", ""),
    )
    tables = InfraValidatorExecutor.tables_of(component.exec_properties)
    assert [(key.name, key.dtype, names) for key, names in tables] == [
        ("item_id", "int64", ("price",)),
        ("user_id", "int64", ("country",)),
    ]


def test_a_table_without_a_header_of_its_own_is_checked_when_its_file_is_read() -> None:
    JoinedTable("items.csv", (), "id", ("genre",))
    with pytest.raises(ValueError, match=re.escape("among the columns of the table items.csv, ('id', 'name'), once")):
        JoinedTable("items.csv", ("id", "name"), "id", ("genre",))
