"""A version that looks attributes up, on a server: requests send ids alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from keras_eta import Feature, FeatureLookup, Features, Ranker
from keras_eta.export import AttributeTable, export_model
from keras_eta.interest import ETAInterest
from serving.client import RankingClient
from serving.monitor import Monitor
from serving.server.embedded import EmbeddedServer

SHELVES = {1: "dairy", 2: "bread", 3: "dairy", 4: "tea"}
PRICES = {1: 1.5, 2: 3.25, 3: 0.1, 4: 7.0}


@pytest.fixture(scope="module")
def base_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model, exported without and with tables. Training saw the shelf of item 4, but not the item."""
    features = Features(
        item_id=Feature("item_id", embedding_dim=4),
        item_attributes=(Feature("shelf", "string", embedding_dim=4), Feature("price", "float32", mean=2.0, std=1.0)),
        user=(Feature("city", "string", embedding_dim=2),),
        hashed=("item_id", "shelf"),
        max_history_length=6,
    )
    tf.keras.utils.set_random_seed(2)
    lookup = FeatureLookup(features)
    lookup.adapt({"item_id": [1, 2, 3], "shelf": ["dairy", "bread", "tea"], "city": ["Oslo"]})
    model = Ranker(lookup=lookup, interests=[ETAInterest(2)], hidden_units=(4,))
    items = pd.DataFrame({"item_id": [*SHELVES], "shelf": SHELVES.values(), "price": PRICES.values()})
    users = pd.DataFrame({"user_id": [8, 9], "city": ["Oslo", "Rome"]})
    tables = [AttributeTable.from_frame(items, features), AttributeTable.from_frame(users, features, "user_id")]
    folder = tmp_path_factory.mktemp("tables")
    export_model(model, folder / "plain", warmup=False)
    # The server replays what is to warm it up before it says that it serves.
    export_model(model, folder / "joined", version=3, tables=tables)
    return {name: folder / name for name in ("plain", "joined")}


def _with_attributes(ids: list[int]) -> dict[str, list[Any]]:
    return {
        "item_id": ids,
        "shelf": [SHELVES.get(id_, "unseen") for id_ in ids],
        "price": [PRICES.get(id_, 2.0) for id_ in ids],
    }


def test_clients_rank_and_explain_by_ids(base_paths: dict[str, Path], serve: Callable[..., EmbeddedServer]) -> None:
    candidates, history = [2, 3, 4, 77], [4, 1, 78]
    sent: dict[str, Any] = {
        "candidates": {"item_id": candidates},
        "history": {"item_id": history},
        "user": {"user_id": 8},
    }
    whole: dict[str, Any] = {
        "candidates": _with_attributes(candidates),
        "history": _with_attributes(history),
        "user": {"city": "Oslo"},
    }
    monitor = Monitor()
    observe = monitor.observer("eta", base_paths["joined"])
    with (
        RankingClient(serve(base_paths["plain"]).address) as plain,
        RankingClient(serve(base_paths["joined"]).address, observe=observe) as joined,
    ):
        expected, found = plain.explain(**whole), joined.explain(**sent)
        for name in ("probability", "positions", "scores", "weights"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        np.testing.assert_array_equal(joined.rank(**sent).probability, plain.rank(**whole).probability)
        assert len({*found.probability}) == len(candidates)
        nobody = joined.rank({"item_id": candidates}, {"item_id": []}, {"user_id": 5})
        stranger = plain.rank(_with_attributes(candidates), _with_attributes([]), {"city": "nowhere"})
        np.testing.assert_array_equal(nobody.probability, stranger.probability)
        text = (
            "Signature 'rank' of model 'eta' does not fit. Unknown: shelf. "
            "It takes: history_item_id, history_length, item_id, user_id."
        )
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            joined.rank({"item_id": [1], "shelf": ["tea"]}, {"item_id": [2]}, {"user_id": 8})
    counted = {
        (sample.name, sample.labels.get("column")): sample.value
        for metric in monitor.collect()
        for sample in metric.samples
    }
    ids = {key: value for key, value in counted.items() if "ids_total" in key[0]}
    assert ids == {
        ("serving_ids_total", "item_id"): 12,
        ("serving_unknown_ids_total", "item_id"): 6,
        ("serving_ids_total", "history_item_id"): 6,
        ("serving_unknown_ids_total", "history_item_id"): 4,
    }
    assert counted["serving_rows_total", None] == 3
