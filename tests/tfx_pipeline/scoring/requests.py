"""Requests of every kind of column, as rows of Parquet files, and a ranker that reads them."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from keras_eta import Age, Feature, Features, Sequence

ITEMS = [b"a", b"caf\xc3\xa9", b"\xff\x00", b"d", b"\x00e", b"f"]
MAX_HISTORY, MAX_PURCHASES, MAX_TAGS = 6, 3, 2
FEATURES = Features(
    item_id=Feature("film", "string", 4),
    item_attributes=(Feature("tags", embedding_dim=3, max_values=MAX_TAGS),),
    behaviour_attributes=(Feature("dwell", "float32", mean=0.0, std=1.0),),
    user=(Feature("user_id", embedding_dim=2), Feature("langs", "string", 2, max_values=2)),
    context=(Feature("device type", "string", 2), Feature("price", "float32", mean=0.0, std=1.0)),
    age=Age((60, 3_600), embedding_dim=2),
    max_history_length=MAX_HISTORY,
    sequences=(Sequence("bought", (Feature("store", embedding_dim=2),), MAX_PURCHASES),),
)
NOW = 1_000_000

_TYPES = {
    "user_id": pa.int64(),
    "langs": pa.list_(pa.string()),
    "device type": pa.string(),
    "price": pa.float64(),
    "timestamp": pa.int64(),
    "film": pa.list_(pa.binary()),
    "tags": pa.list_(pa.list_(pa.int32())),
    "history_film": pa.list_(pa.binary()),
    "history_tags": pa.list_(pa.list_(pa.int32())),
    "history_dwell": pa.list_(pa.float32()),
    "history_timestamp": pa.list_(pa.int64()),
    "bought_film": pa.list_(pa.binary()),
    "bought_tags": pa.list_(pa.list_(pa.int32())),
    "bought_store": pa.list_(pa.int64()),
    "bought_timestamp": pa.list_(pa.int64()),
    "request": pa.string(),
    "shown_at": pa.timestamp("ms"),
    "history_rating": pa.list_(pa.int64()),
}
SCHEMA = pa.schema(list(_TYPES.items()))


def make_requests(number: int, seed: int = 0, most: int = 9) -> list[dict[str, Any]]:
    """Requests of up to `most` candidates and behaviours; the first has no behaviours, the second no candidates."""
    rng = np.random.default_rng(seed)

    def films(count: int) -> list[bytes]:
        return [ITEMS[index] for index in rng.integers(0, len(ITEMS), count)]

    def tags(count: int) -> list[list[int]]:
        return [rng.integers(0, 4, rng.integers(0, MAX_TAGS + 2)).tolist() for _ in range(count)]

    def moments(count: int) -> list[int]:
        return sorted((NOW - rng.integers(1, 9_000, count)).tolist(), reverse=True)

    made = []
    for row in range(number):
        candidates, behaviours, bought = rng.integers(1, most + 1, 3).tolist()
        candidates, behaviours, bought = (
            [(candidates, 0, 0), (0, behaviours, bought)][row]
            if row < 2
            else (
                candidates,
                behaviours,
                bought,
            )
        )
        made.append(
            {
                "user_id": row % 5,
                "langs": [["en"], [], ["de", "en", "fr"]][row % 3],
                "device type": ["tv", "phone"][row % 2],
                "price": float(rng.random()),
                "timestamp": NOW + row,
                "film": films(candidates),
                "tags": tags(candidates),
                "history_film": films(behaviours),
                "history_tags": tags(behaviours),
                "history_dwell": rng.random(behaviours, np.float32).tolist(),
                "history_timestamp": moments(behaviours),
                "bought_film": films(bought),
                "bought_tags": tags(bought),
                "bought_store": rng.integers(0, 3, bought).tolist(),
                "bought_timestamp": moments(bought),
                "request": f"r{row}",
                "shown_at": 1_700_000_000_000 + row,
                "history_rating": [1, 2],
            }
        )
    return made


def write(path: Path, requests: Rows[dict[str, Any]], schema: pa.Schema = SCHEMA, row_group_size: int = 1_000) -> Path:
    """A Parquet file of requests."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(requests), schema=schema)
    pa.parquet.write_table(table, path, row_group_size=row_group_size)
    return path


def signature_inputs(request: dict[str, Any]) -> dict[str, Any]:
    """The inputs of `rank` for one request alone: nothing is padded but values of several."""

    def several(lists: list[list[Any]], most: int, filler: Any) -> tuple[list[list[Any]], list[int]]:
        return [(x + [filler] * most)[:most] for x in lists], [min(len(x), most) for x in lists]

    inputs: dict[str, Any] = {}
    for name in ("user_id", "device type", "price", "timestamp"):
        inputs[name] = request[name]
    for name in ("film", "history_film", "history_dwell", "history_timestamp"):
        inputs[name] = request[name]
    for name in ("bought_film", "bought_store", "bought_timestamp"):
        inputs[name] = request[name]
    langs, lengths = several([request["langs"]], 2, "")
    inputs["langs"], inputs["langs_length"] = langs[0], lengths[0]
    for name in ("tags", "history_tags", "bought_tags"):
        inputs[name], inputs[f"{name}_length"] = several(request[name], MAX_TAGS, 0)
    inputs["history_length"] = len(request["history_film"])
    inputs["bought_length"] = len(request["bought_film"])
    return inputs
