"""The store of events: its impressions are those of a full run, and a round reads no more than it needs."""

from __future__ import annotations

import csv
import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tfx.types import standard_artifacts

from keras_eta import Age, Feature, Features
from keras_eta.columns import Sequence
from tests.tfx_pipeline.continuous.events import LAYOUT, make_loop, write_span
from tfx_pipeline.behaviours import Selection
from tfx_pipeline.config import SPLITS, PipelineConfig, Split
from tfx_pipeline.continuous.database import opened, transaction
from tfx_pipeline.continuous.impressions import read_impressions, write_impressions
from tfx_pipeline.continuous.store import EventStore
from tfx_pipeline.continuous.taking import Taking
from tfx_pipeline.ingestion.impression_gen import ImpressionGenExecutor, impression_gen
from tfx_pipeline.layouts import Label, Layout

# A column of each kind, and a sequence of few behaviours.
ALL_KINDS = Layout(
    Features(
        item_id=Feature("item_id", "string"),
        item_attributes=(Feature("genres", max_values=2), Feature("price", "float32", optional=True)),
        behaviour_attributes=(Feature("rating", "float32"),),
        user=(Feature("user_id", "string"),),
        context=(Feature("page"),),
        sequences=(Sequence("favourites", max_length=2),),
        age=Age((60, 3600)),
        max_history_length=5,
    ),
    pattern="events-{SPAN}.csv",
    label=Label("rating", minimum=4),
    selections=(Selection("favourites", "rating", ("5",)),),
    slice_columns=("device",),
)
COLUMNS = ("user_id", "item_id", "timestamp", "rating", "genres", "price", "page", "device")


def log(rows: int = 900, users: int = 3) -> list[tuple[Any, ...]]:
    """Rows with ties in time, in order of time, more than 200 of each user, a few of them twice."""
    rng = random.Random(0)
    made = [
        (
            f"ü{rng.randrange(users)}",
            rng.choice(["a", "b", "zoë"]),
            1_600_000_000 + rng.randrange(400),
            rng.choice([1, 2, 4, 5]),
            rng.choice(["", "1", "2|3", "4|5|6"]),
            rng.choice(["", "0.5", "2"]),
            rng.randrange(3),
            rng.choice(["tv", "phone"]),
        )
        for _ in range(rows)
    ]
    return sorted([*made, *made[:5]], key=lambda row: row[2])


def full_run(config: PipelineConfig, folder: Path) -> list[bytes]:
    """The impressions that ingestion makes of the whole log, sorted."""
    config = dataclasses.replace(
        config, output=str(folder), split=Split(validation_from=1_600_000_200, eval_from=1_600_000_300)
    )
    artifact = standard_artifacts.Examples()
    artifact.uri = str(folder / "examples")
    ImpressionGenExecutor().Do({}, {"examples": [artifact]}, {**impression_gen(config).exec_properties, "span": 10**9})
    files = [str(path) for split in SPLITS for path in Path(artifact.uri, f"Split-{split}").glob("*.gz")]
    return sorted(tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator())


@pytest.mark.parametrize("order", ["in order", "in one"])
def test_impressions_are_those_of_a_full_run_of_the_same_log(order: str, tmp_path: Path) -> None:
    loop = make_loop(tmp_path, ALL_KINDS)
    config = dataclasses.replace(loop.config, max_bad_share=0.5, min_history=2)
    rows = log()
    parts = 4 if order == "in order" else 1
    found: list[bytes] = []
    with opened(loop.database, config.layout, config.min_history) as connection:
        store = EventStore(connection, config.layout, config.min_history)
        for part in range(parts):
            path = Path(config.data, f"events-{part}.csv")
            with path.open("w", newline="") as file:
                csv.writer(file).writerows(
                    [COLUMNS, *rows[part * len(rows) // parts : (part + 1) * len(rows) // parts]]
                )
            number = Taking(config, connection, loop.dead_letters).take({str(path): part}, "")
            assert number == part + 1
            records = str(tmp_path / "records.gz")
            counts = write_impressions(store, number, config, records)
            made = read_impressions(records)
            assert counts["impressions"] == len(made.records) == len(made.labels) > 150
            found += made.records
            with transaction(connection):
                connection.execute("UPDATE round SET status = 'pushed'")
                connection.execute("DELETE FROM newcomer")
    expected = full_run(config, tmp_path / "full")
    assert len(expected) > 800
    assert sorted(found) == expected


def test_round_reads_the_reach_of_its_users_and_no_more(tmp_path: Path) -> None:
    """Of a user with 1,000 behaviours 200 are read, up to which lengths of history are told apart."""
    loop = make_loop(tmp_path)
    with opened(loop.database, LAYOUT, 1) as connection:
        store = EventStore(connection, LAYOUT, 1)
        taking = Taking(loop.config, connection, loop.dead_letters)
        old = [f"{user},{number},{1_600_000_000 + number},1" for user in (1, 2) for number in range(1_000)]
        path = write_span(loop, 1, old)
        taking.take({str(path): 1}, "")
        connection.execute("DELETE FROM newcomer")
        path = write_span(loop, 2, ["1,5,1600002000,0", "3,5,1600002000,0"])
        number = taking.take({str(path): 2}, "")
        assert number == 2
        logs = {entry.user: entry for entry in store.new_logs(number)}
    assert sorted(logs) == [1, 3]
    assert len(logs[1].timestamps) == 201
    assert logs[1].timestamps[0] == 1_600_000_800
    assert logs[1].ends.tolist() == [-1] * 200 + [200]


def test_store_is_of_one_layout(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with opened(path, LAYOUT, 1):
        pass
    with opened(path, LAYOUT, 1):
        pass
    with pytest.raises(ValueError, match="were read with another layout or `min_history`"), opened(path, LAYOUT, 2):
        pass
    with pytest.raises(ValueError, match="begin with a new --state"), opened(path, ALL_KINDS, 1):
        pass


def test_counts_of_ids_are_kept_where_a_minimum_is_asked_for(tmp_path: Path) -> None:
    features = dataclasses.replace(LAYOUT.features, item_id=Feature("item_id", embedding_dim=4, min_count=3))
    loop = make_loop(tmp_path, dataclasses.replace(LAYOUT, features=features))
    with opened(loop.database, loop.config.layout, 1) as connection:
        store = EventStore(connection, loop.config.layout, 1)
        taking = Taking(loop.config, connection, loop.dead_letters)
        taking.take({str(write_span(loop, 1, ["1,7,1600000000,0", "2,7,1600000000,0", "2,8,1600000000,0"])): 1}, "")
        assert [store.count_of("item_id", id_) for id_ in (7, 8, 9)] == [2, 1, 0]
        taking.take({str(write_span(loop, 2, ["1,7,1600000001,0"])): 2}, "")
        assert store.count_of("item_id", 7) == 3
