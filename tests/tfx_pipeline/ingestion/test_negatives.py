"""Sampled negatives by Beam, against the plain loops that the library's are compared with."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pickle
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
import tensorflow as tf
from apache_beam.testing import test_pipeline
from tfx.types import standard_artifacts

from keras_eta import Feature, Features
from tests.datasets import reference
from tfx_pipeline.components.scores import score_columns
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.flags import add_flags, config_from_flags
from tfx_pipeline.ingestion import impressions
from tfx_pipeline.ingestion.blocks import read_block
from tfx_pipeline.ingestion.counting import COUNTS, MALFORMED
from tfx_pipeline.ingestion.impression_gen import ImpressionGenExecutor, impression_gen
from tfx_pipeline.ingestion.impressions import UserLog
from tfx_pipeline.ingestion.negatives import SampleNegatives
from tfx_pipeline.ingestion.rows import Interaction, value_names
from tfx_pipeline.layouts import Label, Layout
from tfx_pipeline.sampling import NegativeSampling
from tfx_pipeline.schema import make_schema

LAYOUT = Layout(
    Features(
        item_id=Feature("item_id", "string"),
        item_attributes=(Feature("category"),),
        behaviour_attributes=(Feature("price", "float32"),),
        user=(Feature("user_id"),),
        context=(Feature("store"),),
    ),
    pattern="*.csv",
    label=Label("bought"),
)
NAMES = ["item_id", "category", "store", "price"]


def _rows() -> list[dict[str, Any]]:
    """A log with ties in time; user 3 alone buys category 9, and so has no candidate of it."""
    rng = random.Random(0)
    rows = {
        (rng.randrange(3), f"é{(item := rng.randrange(9))}".encode(), rng.randrange(12), item % 3, rng.randrange(2))
        for _ in range(90)
    } | {(3, b"only", 5, 9, 0)}
    names = ("user_id", "item_id", "timestamp", "category", "store")
    return [dict(zip(names, row, strict=True), price=0.5 * number) for number, row in enumerate(sorted(rows))]


def _sampled(rows: list[dict[str, Any]], path: Path, **options: Any) -> tuple[list[UserLog], dict[str, int]]:
    users: dict[int, list[Interaction]] = {}
    for row in rows:
        values = tuple(row[name] for name in value_names(LAYOUT))
        interaction = Interaction(row["timestamp"], values, row.get("label", 1), 1, (True,), 0)
        users.setdefault(row["user_id"], []).append(interaction)
    with test_pipeline.TestPipeline() as pipeline:
        logs = (
            pipeline
            | beam.Create(list(users.items()))
            | beam.ParDo(impressions.SortUserLog(LAYOUT, ["log.csv"])).with_outputs(
                impressions.ITEMS, MALFORMED, COUNTS, main="logs"
            )
        )
        sampled = logs["logs"] | "Sample" >> SampleNegatives(LAYOUT, NegativeSampling(**{"rate": 1, **options}))
        for name, values in (("logs", sampled["logs"]), ("counts", sampled[COUNTS])):
            pickled = values | f"Pickle[{name}]" >> beam.Map(pickle.dumps)
            pickled | f"Write[{name}]" >> beam.io.WriteToTFRecord(f"{path}/{name}", shard_name_template="")
    found, counted = (
        [pickle.loads(record) for record in tf.data.TFRecordDataset(f"{path}/{name}").as_numpy_iterator()]
        for name in ("logs", "counts")
    )
    counts: Counter[str] = Counter()
    for name, number in counted:
        counts[name] += number
    return sorted(found, key=lambda log: log.user), dict(counts)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"by": "popularity", "candidates": "all"},
        {"same": ("category",), "by": "popularity"},
        {"same": ("store", "category")},
        {"same": ("store", "category"), "candidates": "all"},
    ],
    ids=str,
)
def test_negatives_keep_the_rules_of_the_library(options: dict[str, Any], tmp_path: Path) -> None:
    rows = _rows()
    found, counts = _sampled(rows, tmp_path, rate=2, **options)

    same = options.get("same", ())
    rules = (
        [name for name in same if name == "category"],
        [name for name in same if name == "store"],
        options.get("by", "uniform"),
        options.get("candidates", "earlier"),
        "moment",
    )
    category = {row["item_id"]: row["category"] for row in rows}
    names = value_names(LAYOUT)
    expected_counts: Counter[str] = Counter()
    assert [log.user for log in found] == [0, 1, 2, 3]
    for log in found:
        probability = log.probability
        assert probability is not None
        columns = dict(zip(names, log.values, strict=True))
        table = [
            dict(zip(NAMES, values, strict=True)) for values in zip(*(columns[name] for name in NAMES), strict=True)
        ]
        own = sorted((row for row in rows if row["user_id"] == log.user), key=lambda row: row["timestamp"])
        at = 0
        for row in sorted(own, key=lambda row: (row["timestamp"], tuple(row[name] for name in names))):
            weights, own_weight = reference.candidate_weights(rows, row, *rules)
            total = sum(weights.values())
            before = sum(other["timestamp"] < row["timestamp"] for other in own)
            assert table[at] == {name: row[name] for name in NAMES}
            assert log.timestamps[at] == row["timestamp"]
            assert log.labels[at] == 1
            assert log.sequences[0][at]
            assert log.ends[at] == (before if weights else -1)
            if weights:
                assert probability[at] == min(1, max(own_weight, 1) / total)
            for negative in range(at + 1, at + 3 if weights else at):
                item = table[negative]["item_id"]
                assert probability[negative] == weights[item] / total
                assert table[negative] == {**table[at], "item_id": item, "category": category[item]}
                assert log.timestamps[negative] == row["timestamp"]
                assert log.labels[negative] == 0
                assert log.ends[negative] == before
                assert not log.sequences[0][negative]
            expected_counts["negatives" if weights else "positives_without_candidate"] += 2 if weights else 1
            at += 3 if weights else 1
        assert at == len(table) == len(probability)
    assert counts == dict(expected_counts)
    assert counts["negatives"] > 40
    if "category" in same:
        assert counts["positives_without_candidate"] >= 1


def test_negatives_become_examples_whose_history_lacks_them(tmp_path: Path) -> None:
    rows = [
        {"user_id": user, "item_id": item, "timestamp": time, "category": 0, "store": 0, "price": 1.0}
        for user, item, time in ((1, b"a", 10), (1, b"b", 20), (1, b"c", 30))
    ]
    (log,), _ = _sampled(rows, tmp_path, rate=2)
    # a is the first of all: no candidate. b has a; c has a and b.
    with test_pipeline.TestPipeline() as pipeline:
        examples = (
            pipeline
            | beam.Create([log])
            | beam.ParDo(impressions.MakeExamples(LAYOUT, 0), impressions.Cuts(40, 41)).with_outputs(
                "train", "validation", "eval", COUNTS
            )
        )
        blocks = examples["train"] | beam.FlatMap(read_block)
        blocks | beam.io.WriteToTFRecord(f"{tmp_path}/examples", shard_name_template="")
    found = [
        tf.train.Example.FromString(record)
        for record in tf.data.TFRecordDataset(f"{tmp_path}/examples").as_numpy_iterator()
    ]
    label = [example.features.feature["label"].int64_list.value[0] for example in found]
    item = [example.features.feature["item_id"].bytes_list.value[0] for example in found]
    history = [list(example.features.feature["history_item_id"].bytes_list.value) for example in found]
    assert label == [1, 0, 0] * 2
    assert item[:4] == [b"b", b"a", b"a", b"c"]
    assert {*item[4:]} <= {b"a", b"b"}
    assert history == [[b"a"]] * 3 + [[b"b", b"a"]] * 3


def test_negatives_rows_of_label_0_stay_and_get_none(tmp_path: Path) -> None:
    rows = [
        {"user_id": 1, "item_id": item, "timestamp": time, "category": 0, "store": 0, "price": 1.0, "label": label}
        for item, time, label in ((b"a", 10, 0), (b"b", 20, 1))
    ]
    (log,), counts = _sampled(rows, tmp_path)
    assert log.probability is not None
    assert (log.labels.tolist(), log.ends.tolist(), log.probability.tolist()) == ([0, 1, 0], [0, 1, 1], [1, 1, 1])
    assert counts == {"negatives": 1}


def test_negatives_seed_decides_and_a_crowded_pool_is_drawn_from(tmp_path: Path) -> None:
    # Of 404 rows before the last, all but 4 are of the item that is taken.
    items = [b"hit"] * 400 + [b"%d" % number for number in range(4)]
    rows = [
        {"user_id": 1, "item_id": item, "timestamp": time, "category": 0, "store": 0, "price": 0.0}
        for time, item in enumerate(items)
    ]
    rows.append({"user_id": 2, "item_id": b"hit", "timestamp": 500, "category": 0, "store": 0, "price": 0.0})
    drawn = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (_, log), _ = _sampled(rows, folder, rate=40, by="popularity", seed=seed)
        drawn.append(log.values[value_names(LAYOUT).index("item_id")][1:])
        assert log.probability is not None
        assert log.probability.tolist() == [1] + [1 / 4] * 40
    assert drawn[0] == drawn[1] != drawn[2]
    assert {*drawn[0]} == {*items[-4:]}


def test_negatives_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("`rate` must be a positive integer. Received: rate=0")):
        NegativeSampling(0)
    message = "`by` must be one of ('uniform', 'popularity'). Received: by='rank'"
    with pytest.raises(ValueError, match=re.escape(message)):
        NegativeSampling(1, by="rank")  # type: ignore[arg-type]
    message = "`same` must name columns among ['store', 'category']. Received: ['price', 'item_id']"
    with pytest.raises(ValueError, match=re.escape(message)):
        SampleNegatives(LAYOUT, NegativeSampling(1, same=("price", "item_id")))


def test_negatives_of_a_user_do_not_depend_on_the_others_order(tmp_path: Path) -> None:
    rows = _rows()
    found = []
    for number, order in enumerate((rows, rows[::-1])):
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append([log.values for log in _sampled(order, folder, rate=3)[0]])
    assert found[0] == found[1]


def _write_purchases(folder: Path) -> None:
    """Households 1 to 6 buy from a shelf of twelve items in four categories; item 99 is alone in its category."""
    rng = random.Random(1)
    lines = ["user_id,item_id,timestamp,category,store"]
    for time in range(120):
        item = rng.randrange(12)
        lines.append(f"{1 + time % 6},{item},{time},{item % 4},{rng.randrange(2)}")
    lines.append("3,99,115,9,0")
    folder.mkdir()
    (folder / "purchases.csv").write_text("\n".join(lines) + "\n")


def _config(folder: Path, *flags: str) -> PipelineConfig:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    words = ["--data", str(folder / "data"), "--output", str(folder / "output"), "--schema", "none.pbtxt"]
    words += ["--layout", "custom", "--pattern", "*.csv", "--item_attribute", "category", "--context_feature", "store"]
    words += ["--validation_from", "80", "--eval_from", "100", "--min_history", "2", *flags]
    return config_from_flags(parser.parse_args(words))


def _ingest(config: PipelineConfig) -> tuple[dict[str, Any], list[bytes]]:
    artifact = standard_artifacts.Examples()
    artifact.uri = f"{config.output}/examples"
    ImpressionGenExecutor().Do({}, {"examples": [artifact]}, {**impression_gen(config).exec_properties, "span": 0})
    files = sorted(map(str, Path(artifact.uri).glob("*/*.gz")))
    report = json.loads(Path(artifact.uri, "report.json").read_text())
    return report, list(tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator())


def test_a_log_of_positives_alone_becomes_impressions_that_fit_the_schema(tmp_path: Path) -> None:
    _write_purchases(tmp_path / "data")
    config = _config(tmp_path, "--negatives", "3", "--negatives_same", "category", "store", "--negatives_from", "all")
    assert PipelineConfig.from_json(config.to_json()) == config
    report, records = _ingest(config)
    assert report["rows_kept"] == 121
    assert report["positives_without_candidate"] == 1
    assert report["sampled_negatives"] == 3 * 120
    # The first two purchases of each household have too short a history, and so have their negatives.
    assert report["left_out_for_short_history"] == 6 * 2 * 4
    assert sum(report["positives"].values()) == 108
    assert len(records) == sum(report["impressions"].values()) == 4 * 108

    schema = make_schema(config.layout)
    for record in records:
        feature = tf.train.Example.FromString(record).features.feature
        (probability,) = feature["sampling_probability"].float_list.value
        # Two of the three items of a category can be drawn; that of the positive would be one of two, were it free.
        assert probability == 0.5
        assert feature["item_id"].int64_list.value[0] % 4 == feature["category"].int64_list.value[0]
        assert len(feature["history_item_id"].int64_list.value) >= 2
        assert {*feature} == {column.name for column in schema.feature}
    assert score_columns(config)["sampling_probability"] == "float32"


def test_a_log_whose_positives_have_no_candidates_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    # Each category has one item.
    rows = [f"{user},{user},{time},{user},0" for time in range(0, 120, 3) for user in (1, 2)]
    (folder / "purchases.csv").write_text("\n".join(["user_id,item_id,timestamp,category,store", *rows]) + "\n")
    message = "and 80 positives had no candidate to draw a negative from. Use another `split`"
    with pytest.raises(ValueError, match=re.escape(message)):
        _ingest(_config(tmp_path, "--negatives", "2", "--negatives_same", "category"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--layout custom needs --label_column."),
        (
            ["--label_column", "store", "--negatives_same", "category"],
            "`negatives_same`, `negatives_by` and `negatives_from` must go with `negatives`. Received: negatives=0",
        ),
        (["--negatives", "-1"], "`rate` must be a positive integer. Received: rate=-1"),
        (
            ["--negatives", "1", "--label_minimum", "3"],
            "`column` of the label must be a column of the file. Received: column=None",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        _config(tmp_path, *flags)


def test_a_layout_of_positives_alone_needs_negatives() -> None:
    message = "A log whose interactions are all positive needs `negatives`. Received: negatives=None"
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(LAYOUT, label=Label(None))
