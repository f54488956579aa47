"""Ingestion: impressions against a plain loop and against keras_eta.datasets, malformed rows, splits, spans."""

from __future__ import annotations

import csv
import dataclasses
import decimal
import gzip
import json
import random
import re
import resource
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow as tf
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import Artifact
from tfx import v1 as tfx
from tfx.types import standard_artifacts

from keras_eta import Feature, Features
from keras_eta.datasets import Impressions, Interactions
from keras_eta.datasets import taobao as taobao_data
from tfx_pipeline.config import SPLITS, PipelineConfig, Split, Training
from tfx_pipeline.custom_layout import custom
from tfx_pipeline.ingestion import counting, interactions, values
from tfx_pipeline.ingestion.files import log_files
from tfx_pipeline.ingestion.impression_gen import GenerateImpressions, ImpressionGenExecutor, impression_gen
from tfx_pipeline.ingestion.log_checks import check_data
from tfx_pipeline.layouts import Label, Layout, movielens, taobao

Row = Mapping[str, Any]

# One feature of each role and kind. The label's own column is a behaviour attribute, as ratings are.
LAYOUT = Layout(
    Features(
        item_id=Feature("item_id"),
        item_attributes=(Feature("brand", "string"), Feature("price", "float32")),
        behaviour_attributes=(Feature("rating", "float32"), Feature("liked")),
        user=(Feature("user_id"), Feature("country", "string")),
        context=(Feature("hour"),),
        max_history_length=4,
    ),
    pattern="*.csv",
    label=Label("rating", minimum=4),
    columns=(("item_id", "iid"), ("timestamp", "ts"), ("liked", "label")),
    slice_columns=("device",),
)
COLUMNS = ("user_id", "iid", "ts", "rating", "brand", "price", "country", "hour", "device")


def random_rows(seed: int = 0, users: int = 6, rows: int = 150) -> list[Row]:
    """A log with ties in time, distinct rows, sorted by user, time, item and the rest."""
    rng = random.Random(seed)
    log = {
        (
            rng.randrange(users),
            rng.randrange(8),
            1_000 + rng.randrange(40),
            float(rng.randrange(6)),
            rng.choice(["acme", "zoë"]),
            rng.choice([0.0, 1.5, 20.25]),
            rng.choice(["nz", "de"]),
            rng.randrange(24),
            rng.choice(["tv", "phone"]),
        )
        for _ in range(rows)
    }
    return [dict(zip(COLUMNS, row, strict=True)) for row in log]


def write_csv(path: Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def make_config(folder: Path, layout: Layout = LAYOUT, **arguments: Any) -> PipelineConfig:
    """A configuration whose log lies in `folder`/data."""
    return PipelineConfig(
        data=str(folder / "data"),
        layout=layout,
        schema="",
        output=str(folder / "output"),
        serving_dir="",
        **{"min_history": 1, "split": Split(validation_from=1_020, eval_from=1_030), **arguments},
    )


def ingest(
    config: PipelineConfig, *beam_args: str, splits: Sequence[str] = SPLITS
) -> tuple[dict[str, Any], dict[str, list[Row]]]:
    """The report and the impressions of `splits`, sorted."""
    artifact = standard_artifacts.Examples()
    artifact.uri = f"{config.output}/examples/1"
    shutil.rmtree(artifact.uri, ignore_errors=True)
    properties = {**impression_gen(config).exec_properties, "span": 0}
    context = (
        ImpressionGenExecutor.Context(beam_pipeline_args=list(beam_args), pipeline_run_id="run") if beam_args else None
    )
    ImpressionGenExecutor(context).Do({}, {"examples": [artifact]}, properties)
    assert artifact.split_names == '["train", "validation", "eval"]'
    report = json.loads(Path(artifact.uri, "report.json").read_text())
    return report, {split: read_split(artifact.uri, split) for split in splits}


def read_item_counts(config: PipelineConfig) -> dict[Any, tuple[int, int]]:
    files = sorted(Path(config.output, "examples", "1").glob("item_counts-*.parquet"))
    rows = [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]
    counts = {row["item"]: (row["positives"], row["impressions"]) for row in rows}
    assert len(counts) == len(rows)
    return counts


def read_split(uri: str, split: str) -> list[Row]:
    files = sorted(str(path) for path in Path(uri, f"Split-{split}").glob("*.gz"))
    rows = []
    for record in tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator():
        example = tf.train.Example.FromString(record)
        row = {}
        for name, feature in example.features.feature.items():
            kind = feature.WhichOneof("kind")
            values = list(getattr(feature, kind).value)
            row[name] = values if name.startswith("history_") and name != "history_bucket" else values[0]
            assert name.startswith("history_") or len(values) == 1, name
        rows.append(row)
    return sorted(rows, key=canonical)


def impressions_by_loop(rows: Sequence[Row], layout: Layout, min_history: int) -> list[Row]:
    """The contract as a plain loop over rows: one impression a row, in the form of `read_split`."""
    source = layout.source
    features = layout.features
    history_names = [feature.name for feature in features.history_features]

    def value(row: Row, name: str) -> Any:
        found = int(row["rating"] >= 4) if source(name) == "label" else row[source(name)]
        return found.encode() if isinstance(found, str) else found

    def order(row: Row) -> tuple:
        names = [*layout.row_columns, *(feature.name for feature in features.behaviour_attributes)]
        model = [name for name in names if name not in ("user_id", "timestamp", *layout.slice_columns)]
        return (row["ts"], *(value(row, name) for name in (*model, *layout.slice_columns)))

    found = []
    for row in rows:
        before = [other for other in rows if other["user_id"] == row["user_id"] and other["ts"] < row["ts"]]
        if len(before) < min_history:
            continue
        recent = sorted(before, key=order, reverse=True)[: features.max_history_length]
        impression = {name: value(row, name) for name in layout.row_columns}
        impression |= {f"history_{name}": [value(other, name) for other in recent] for name in history_names}
        impression["history_timestamp"] = [other["ts"] for other in recent]
        impression["history_bucket"] = b"0-9" if len(before) < 10 else b"10-49"
        impression["label"] = int(row["rating"] >= 4)
        found.append(impression)
    return sorted(found, key=canonical)


def item_counts_by_loop(rows: Sequence[Row]) -> dict[Any, tuple[int, int]]:
    """Positives and impressions of each item among impressions of the training split."""
    counts: dict[Any, tuple[int, int]] = {}
    for row in rows:
        positives, shown = counts.get(row["item_id"], (0, 0))
        counts[row["item_id"]] = positives + row["label"], shown + 1
    return counts


def in_split(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The impressions of `make_config`'s split by dates."""
    return {
        "train": [row for row in rows if row["timestamp"] < 1_020],
        "validation": [row for row in rows if 1_020 <= row["timestamp"] < 1_030],
        "eval": [row for row in rows if row["timestamp"] >= 1_030],
    }


def test_handmade_log_gives_these_impressions(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ratings.dat").write_text(
        "1::10::3::100\n1::11::3::200\n1::12::4::200\n1::10::2::300\n2::11::4::150\n2::12::1::250\n2::10::5::301\n"
    )
    (tmp_path / "data" / "movies.dat").write_bytes(
        "10::Amélie (2001)::Comedy|Romance\n11::Heat (1995)::Crime\n12::M (1931)::Crime|Film-Noir\n".encode("latin-1")
    )
    config = make_config(tmp_path, movielens(2), split=Split(validation_from=200, eval_from=300), min_history=0)
    report, found = ingest(config)

    def impression(user: int, item: int, genre: str, stars: int, time: int, history: list[tuple[int, int, int]]) -> Row:
        return {
            "user_id": user,
            "item_id": item,
            "genre": genre.encode(),
            "timestamp": time,
            "label": int(stars >= 4),
            "history_bucket": b"0-9",
            "history_item_id": [item for item, _, _ in history],
            "history_rating": [stars for _, stars, _ in history],
            "history_timestamp": [time for _, _, time in history],
        }

    expected = {
        "train": [impression(1, 10, "Comedy", 3, 100, []), impression(2, 11, "Crime", 4, 150, [])],
        "validation": [
            impression(1, 11, "Crime", 3, 200, [(10, 3, 100)]),
            impression(1, 12, "Crime", 4, 200, [(10, 3, 100)]),
            impression(2, 12, "Crime", 1, 250, [(11, 4, 150)]),
        ],
        "eval": [
            # L = 2: the oldest behaviour is cut off. In the tie at 200 the larger values count as the more recent.
            impression(1, 10, "Comedy", 2, 300, [(12, 4, 200), (11, 3, 200)]),
            impression(2, 10, "Comedy", 5, 301, [(12, 1, 250), (11, 4, 150)]),
        ],
    }
    assert found == {split: sorted(rows, key=canonical) for split, rows in expected.items()}
    size = report.pop("bytes")
    assert size == sum(file.stat().st_size for file in Path(config.output).rglob("*.gz")) > 0
    assert report.pop("bytes_per_impression") == round(size / 7, 1)
    assert report == {
        "files": 1,
        "rows_read": 7,
        "rows_kept": 7,
        "malformed": {},
        "malformed_by_span": {},
        "spans_not_listed": 0,
        "malformed_by_file": {"ratings.dat": {"malformed": 0, "rows_read": 7}},
        "files_not_listed": 0,
        "dead_letters": None,
        "users": 2,
        "items": 3,
        "left_out_for_short_history": 0,
        "sampled_negatives": 0,
        "positives_without_candidate": 0,
        "impressions": {"train": 2, "validation": 3, "eval": 2},
        "positives": {"train": 1, "validation": 1, "eval": 1},
        "split": {"validation_from": 200, "eval_from": 300},
    }
    assert not list(Path(config.dead_letter_dir).rglob("*.jsonl"))


def test_impressions_of_any_role_and_type_equal_a_plain_loop_whatever_the_order_of_rows_and_files(tmp_path):
    rows = random_rows()
    random.Random(1).shuffle(rows)
    # The columns stand in another order in the second file, which also has one nobody reads.
    write_csv(tmp_path / "data" / "a.csv", rows[:70])
    write_csv(tmp_path / "data" / "b.csv", [{**row, "more": 1} for row in rows[70:]], ["more", *reversed(COLUMNS)])
    expected = impressions_by_loop(rows, LAYOUT, min_history=3)
    config = make_config(tmp_path, min_history=3)
    report, found = ingest(config)

    assert found == in_split(expected)
    assert read_item_counts(config) == item_counts_by_loop(found["train"])
    assert len(item_counts_by_loop(found["train"])) > 5
    assert all(found.values())
    assert report["rows_kept"] == len(rows)
    assert report["left_out_for_short_history"] == len(rows) - len(expected)
    assert max(len(row["history_item_id"]) for row in expected) == 4
    assert {row["history_bucket"] for row in expected} == {b"0-9", b"10-49"}


def test_impressions_equal_those_of_keras_eta(tmp_path):
    rows = sorted(random_rows(seed=2), key=lambda row: tuple(row[name] for name in COLUMNS))
    # Within a tie both keep the order of the rows, which here is that of the values.
    names = ("user_id", "ts", "country", "hour", "iid", "brand", "price", "rating", "device")
    rows.sort(key=lambda row: tuple(row[name] for name in names))
    write_csv(tmp_path / "data" / "log.csv", rows)
    contract = {"iid": "item_id", "ts": "timestamp"}
    columns = {contract.get(name, name): [row[name] for row in rows] for name in COLUMNS}
    columns["liked"] = [int(row["rating"] >= 4) for row in rows]
    log = Interactions.from_columns(columns)
    impressions = Impressions.from_interactions(log, columns["liked"], min_history=2, outcomes=("rating", "liked"))
    ((inputs, labels),) = impressions.to_dataset(LAYOUT.features, len(impressions)).as_numpy_iterator()
    expected = []
    for index, length in enumerate(inputs["history_length"]):
        row = {name: inputs[name][index] for name in LAYOUT.features.row_names}
        row |= {name: inputs[name][index, :length].tolist() for name in LAYOUT.features.history_names}
        expected.append({**row, "label": labels[index], "timestamp": impressions.columns["timestamp"][index]})

    _, found = ingest(make_config(tmp_path, min_history=2))
    not_there = ("device", "history_bucket", "history_timestamp")
    impressions_found = [
        {name: row[name] for name in row if name not in not_there} for split in SPLITS for row in found[split]
    ]
    assert sorted(map(canonical, impressions_found)) == sorted(map(canonical, expected))
    assert len(expected) > 100


def canonical(row: Row) -> str:
    return json.dumps(row, sort_keys=True, default=lambda value: value.item() if hasattr(value, "item") else str(value))


def test_history_never_holds_an_item_touched_only_at_or_after_the_impression(tmp_path):
    planted, rows = 777, random_rows(seed=3)
    rows += [{**rows[0], "user_id": user, "iid": planted, "ts": 1_025} for user in range(6)]
    write_csv(tmp_path / "data" / "log.csv", rows)
    _, found = ingest(make_config(tmp_path, dataclasses.replace(LAYOUT, features=dataclasses.replace(
        LAYOUT.features, max_history_length=1_000))))  # fmt: skip

    impressions = [row for split in SPLITS for row in found[split]]
    assert Counter(planted in row["history_item_id"] for row in impressions if row["timestamp"] <= 1_025) == {
        False: sum(row["timestamp"] <= 1_025 for row in impressions)
    }
    assert all(planted in row["history_item_id"] for row in impressions if row["timestamp"] > 1_025)
    assert all(time < row["timestamp"] for row in impressions for time in row["history_timestamp"])


def test_parquet_keeps_zeros(tmp_path):
    rows = [
        {"user_id": user, "iid": 0, "ts": ts, "rating": 0.0 if ts % 2 else 5.0, "brand": "acme", "price": 0.0,
         "country": "nz", "hour": 0, "device": "tv"}
        for user in (0, 1) for ts in range(1_000, 1_040, 3)
    ]  # fmt: skip
    (tmp_path / "data").mkdir()
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "log.parquet")
    layout = dataclasses.replace(LAYOUT, file_format="parquet", pattern="*.parquet")
    report, found = ingest(make_config(tmp_path, layout))

    assert report["malformed"] == {}
    assert found == in_split(impressions_by_loop(rows, layout, min_history=1))
    impressions = [row for split in SPLITS for row in found[split]]
    assert {row["user_id"] for row in impressions} == {0, 1}
    assert {row["item_id"] for row in impressions} == {row["hour"] for row in impressions} == {0}
    assert {row["price"] for row in impressions} == {0.0}
    assert Counter(row["label"] for row in impressions) == {0: 14, 1: 12}


@pytest.mark.parametrize(
    "value", [2**53 - 1, -(2**53) + 1, "9007199254740993", 2**63 - 1, 2.0**53 - 1, "-9007199254740991.0"]
)
def test_integers_that_are_exact_are_read(value):
    assert values.parse_integer(value) == int(str(value).removesuffix(".0"))


@pytest.mark.parametrize("value", [2.0**53, -(2.0**53), "9007199254740993.0", "9007199254740992.0", 2.0**62, 0.5])
def test_floats_that_stand_for_several_integers_are_malformed(value):
    with pytest.raises(values.MalformedRowError, match=r"^non-integer$"):
        values.parse_integer(value)


def test_parquet_with_gaps_and_strange_values_names_them(tmp_path):
    (tmp_path / "data").mkdir()
    table = {
        "uid": pa.array([1, 1, 1, 1, 2, 2, None, 2, 2]),
        "iid": pa.array(["a", "b", "c", "", "a", None, "a", "b", "c"]),
        "ts": pa.array([1_000.0, 1_021.0, 1_031.0, 1.0, 1_001.0, 1.0, 1.0, 1_022.5, 1_032.0]),
        "clicked": pa.array([True, False, True, True, False, True, True, True, False]),
    }
    pa.parquet.write_table(pa.table(table), tmp_path / "data" / "log.parquet")
    layout = custom(
        "log.parquet",
        Label("clicked"),
        {"user_id": "uid", "item_id": "iid", "timestamp": "ts"},
        item_id="item_id:string",
        user=(),
        file_format="parquet",
    )
    config = make_config(tmp_path, layout, min_history=0, max_bad_share=1.0,
                         split=Split(validation_from=1_010, eval_from=1_030))  # fmt: skip
    with pytest.raises(ValueError, match="The split by time leaves validation without impressions") as error:
        ingest(dataclasses.replace(config, split=Split(validation_from=1_022, eval_from=1_030)))
    assert "min_history" in str(error.value)
    report, found = ingest(config)

    assert report["malformed"] == {"missing iid": 2, "missing uid": 1, "non-integer ts": 1}
    # A user's id that is no feature is bytes.
    assert {(row["user_id"], row["item_id"], row["label"]) for row in found["eval"]} == {
        (b"1", b"c", 1),
        (b"2", b"c", 0),
    }
    (letters,) = (Path(config.dead_letter_dir) / "1").glob("rows*.jsonl")
    assert {
        "reason": "non-integer ts",
        "file": str(tmp_path / "data" / "log.parquet"),
        "row": '{"uid": 2, "ts": 1022.5, "iid": "b", "clicked": true}',
    } in [json.loads(line) for line in letters.read_text().splitlines()]


def write_taobao(folder: Path, lines: Sequence[str]) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "UserBehavior.csv").write_text("".join(f"{line}\n" for line in lines))


def test_taobao_keeps_the_rows_that_keras_eta_keeps(tmp_path):
    first = taobao_data.FIRST_TIMESTAMP
    rng = random.Random(0)
    lines = [
        f"{rng.randrange(4)},{rng.randrange(9)},{rng.randrange(3)},{rng.choice(taobao_data.ACTIONS)},{first + second}"
        for second in range(300)
    ]
    bad = [
        lines[5],  # a duplicate
        f"1,2,3,look,{first + 1}",
        f"1,2,3,pv,{first - 1}",
        f"1,2,3,pv,{taobao_data.END_TIMESTAMP}",
        f"-1,2,3,pv,{first + 1}",
        f"1,2,x,pv,{first + 1}",
        f"1,2,,pv,{first + 1}",
        "1,2,3,pv",
    ]
    write_taobao(tmp_path, [*lines, *bad])
    config = make_config(
        tmp_path,
        taobao(3),
        min_history=0,
        max_bad_share=0.03,
        split=Split(validation_from=first + 200, eval_from=first + 250),
    )
    report, found = ingest(config)

    log = taobao_data.load(tmp_path / "data" / "UserBehavior.csv")
    names = ("user_id", "item_id", "category_id", "timestamp")
    kept = zip(*(log[name].tolist() for name in names), (log["action"] != "pv").astype(int).tolist(), strict=True)
    impressions = [row for split in SPLITS for row in found[split]]
    assert sorted(tuple(row[name] for name in (*names, "label")) for row in impressions) == sorted(kept)
    assert (report["rows_read"], report["rows_kept"]) == (log.report.rows_read, log.report.rows_kept) == (308, 300)
    assert report["malformed"] == {
        "with a timestamp outside the layout's range": 2,
        "duplicate rows": 1,
        "missing category_id": 1,
        "negative user_id": 1,
        "non-numeric category_id": 1,
        "with a wrong number of columns": 1,
        "with an unknown action": 1,
    }
    by_time = {row["timestamp"]: row for row in impressions}
    user = by_time[first + 299]["user_id"]
    earlier = [time for time in sorted(by_time) if by_time[time]["user_id"] == user][-4:-1]
    actions = {int(line.split(",")[4]): line.split(",")[3].encode() for line in lines}
    assert by_time[first + 299]["history_timestamp"] == earlier[::-1]
    assert by_time[first + 299]["history_action"] == [actions[time] for time in earlier[::-1]]


MALFORMED = [
    ("with a wrong number of columns", b"1,2,1001,5,acme,1.0,nz,3"),
    ("with a wrong number of columns", b""),
    ("missing user_id", b",2,1001,5,acme,1.0,nz,3,tv"),
    ("missing brand", b"1,2,1001,5,,1.0,nz,3,tv"),
    ("missing rating", b"1,2,1001,,acme,1.0,nz,3,tv"),
    ("non-numeric iid", b"1,two,1001,5,acme,1.0,nz,3,tv"),
    ("non-numeric ts", b"1,2,noon,5,acme,1.0,nz,3,tv"),
    ("non-numeric hour", b"1,2,1001,5,acme,1.0,nz,1_0,tv"),
    ("non-integer ts", b"1,2,1001.5,5,acme,1.0,nz,3,tv"),
    ("out-of-range iid", b"1,9223372036854775808,1001,5,acme,1.0,nz,3,tv"),
    ("negative user_id", b"-1,2,1001,5,acme,1.0,nz,3,tv"),
    ("negative iid", b"1,-2,1001,5,acme,1.0,nz,3,tv"),
    ("non-finite price", b"1,2,1001,5,acme,inf,nz,3,tv"),
    ("non-finite price", b"1,2,1001,5,acme,1e39,nz,3,tv"),
    ("non-finite price", b"1,2,1001,5,acme,nan,nz,3,tv"),
    ("not in utf-8", b"1,2,1001,5,zo\xeb,1.0,nz,3,tv"),
    ("with unmatched quotes", b'1,2,1001,5,"acme,1.0,nz,3,tv'),
]


def test_malformed_rows_go_to_the_dead_letters_with_reason_file_and_text(tmp_path):
    rows = random_rows()
    write_csv(tmp_path / "data" / "log.csv", rows)
    expected = impressions_by_loop(rows, LAYOUT, min_history=1)
    path = tmp_path / "data" / "log.csv"
    with path.open("ab") as file:
        file.write(b"".join(line + b"\r\n" for _, line in MALFORMED))
        # Not malformed: quotes that match, whole floats, a sign.
        file.write(b'1,2.0,+1015,5,"ac,""me""",1.0,nz,3,tv')
    rows.append(dict(zip(COLUMNS, (1, 2, 1_015, 5.0, 'ac,"me"', 1.0, "nz", 3, "tv"), strict=True)))
    again = ",".join(str(rows[0][name]) for name in COLUMNS)
    (tmp_path / "data" / "more.csv").write_text(",".join(COLUMNS) + "\n" + again + "\n", encoding="utf-8")
    expected = impressions_by_loop(rows, LAYOUT, min_history=1)
    config = make_config(tmp_path, max_bad_share=0.2)
    report, found = ingest(config)

    assert found == in_split(expected)
    assert report["rows_read"] == len(rows) + len(MALFORMED) + 1
    assert report["rows_kept"] == len(rows)
    counts = Counter(reason for reason, _ in MALFORMED) + Counter(["duplicate rows"])
    assert report["malformed"] == counts
    assert list(report["malformed"].values()) == sorted(counts.values(), reverse=True)
    assert report["malformed_by_span"] == {}
    assert report["malformed_by_file"] == {
        "log.csv": {"rows_read": len(rows) + len(MALFORMED), "malformed": len(MALFORMED)},
        "more.csv": {"rows_read": 1, "malformed": 1},
    }
    assert (report["spans_not_listed"], report["files_not_listed"]) == (0, 0)
    assert report["dead_letters"] == str(Path(config.dead_letter_dir) / "1")
    letters = [
        json.loads(line)
        for letter_file in (Path(config.dead_letter_dir) / "1").glob("rows*.jsonl")
        for line in letter_file.read_text().splitlines()
    ]
    texts = [
        {"reason": reason, "file": str(path), "row": line.decode("utf-8", "backslashreplace")}
        for reason, line in MALFORMED
    ]
    (duplicate,) = [letter for letter in letters if letter["reason"] == "duplicate rows"]
    assert sorted(map(canonical, letters)) == sorted(map(canonical, [*texts, duplicate]))
    assert duplicate["file"] == str(tmp_path / "data" / "more.csv")
    read = json.loads(duplicate["row"])
    assert {name: read[LAYOUT_NAMES.get(name, name)] for name in COLUMNS} == rows[0]


LAYOUT_NAMES = {"iid": "item_id", "ts": "timestamp"}


def test_malformed_rows_are_counted_by_beam_by_their_reason(tmp_path):
    write_csv(tmp_path / "data" / "log.csv", [*random_rows(), {name: "" for name in COLUMNS}, {"user_id": 1}])
    config = make_config(tmp_path)
    pipeline = beam.Pipeline()
    _ = pipeline | GenerateImpressions(config, log_files(config.data, config.layout))
    result = pipeline.run()
    result.wait_until_finish()

    found = result.metrics().query(beam.metrics.MetricsFilter().with_namespace(counting.METRICS_NAMESPACE))
    counters = {counter.key.metric.name: counter.committed for counter in found["counters"]}
    assert counters == {"malformed: missing user_id": 1, "malformed: missing ts": 1}


def test_too_many_malformed_rows_stop_the_run_with_reasons_and_examples(tmp_path):
    lines = [
        f"{user},{item},1,{'pv' if item % 2 else 'buy'},{taobao_data.FIRST_TIMESTAMP + item}"
        for user in (1, 2)
        for item in range(96)
    ]
    write_taobao(tmp_path, [*lines, "x,1,1,pv,1512000000", "y,1,1,pv,1512000000", "1,2", "-7,1,1,pv,1512000000"])
    first = taobao_data.FIRST_TIMESTAMP
    config = make_config(tmp_path, taobao(), split=Split(validation_from=first + 50, eval_from=first + 70))
    letters = Path(config.dead_letter_dir) / "1"
    message = (
        "Too many rows are malformed; `max_bad_share` allows 1.00%.\n"
        "  the log: 4 of 196 rows, 2.04%\n"
        "In the log:\n"
        "  2 non-numeric user_id, e.g. UserBehavior.csv: 'x,1,1,pv,1512000000'; "
        "UserBehavior.csv: 'y,1,1,pv,1512000000'\n"
        "  1 negative user_id, e.g. UserBehavior.csv: '-7,1,1,pv,1512000000'\n"
        "  1 with a wrong number of columns, e.g. UserBehavior.csv: '1,2'\n"
        f"All of them: {letters}"
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        ingest(config)
    assert json.loads((letters / "report.json").read_text())["rows_read"] == 196
    # At the share itself the run goes on.
    report, _ = ingest(dataclasses.replace(config, max_bad_share=4 / 196))
    assert report["rows_kept"] == 192


def test_half_stars_are_read_as_floats_and_refused_as_integers_with_a_hint(tmp_path):
    rows = [f"{user},{10 + t},{t % 10 / 2 + 0.5},{t}" for user in (1, 2) for t in range(30)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "log.csv").write_text("\n".join(["user_id,item_id,rating,timestamp", *rows]) + "\n")
    label, split = Label("rating", minimum=4), Split(validation_from=10, eval_from=20)
    integers = custom("log.csv", label, behaviour_attributes=("rating",))
    with pytest.raises(
        RuntimeError, match=r"30 non-integer rating(?s:.*)A feature of fractions, such as half stars, is"
    ):
        ingest(make_config(tmp_path, integers, split=split))
    floats = custom("log.csv", label, behaviour_attributes=("rating:float32",))
    report, found = ingest(make_config(tmp_path, floats, split=split))
    assert report["rows_kept"] == 60
    assert {stars for row in found["eval"] for stars in row["history_rating"]} == {n / 2 for n in range(1, 11)}


def test_row_of_an_unknown_item_is_malformed_and_a_bad_item_table_refused(tmp_path):
    (tmp_path / "data").mkdir()
    ratings = "".join(f"{user}::{10 + t % 2}::{4 - (t // 2) % 2}::{t}\n" for user in (1, 2) for t in range(12))
    (tmp_path / "data" / "ratings.dat").write_text(ratings + "1::99::4::5\n")
    items = tmp_path / "data" / "movies.dat"
    items.write_text("10::A (1990)::Drama\n11::B (1990)::Crime\n")
    config = make_config(tmp_path, movielens(), max_bad_share=0.04, split=Split(validation_from=4, eval_from=8))
    report, _ = ingest(config)
    assert report["malformed"] == {"of an unknown item": 1}

    for text, message in (
        ("10::A (1990)\n", f"{items} has a line with a wrong number of columns, 3: '10::A (1990)'"),
        ("10::A::Drama\n10::B::Crime\n", f"{items} has more than one line of 10"),
        (
            "10::Caf\xe9::Dr\xe1ma\n",
            f"{items} has a line that is not in ascii, in column 'title': b'10::Caf\\xe9::Dr\\xe1ma'",
        ),
        ("ten::A::Drama\n", f"{items} has a line with a non-numeric movie_id: 'ten::A::Drama'"),
    ):
        items.write_bytes(text.encode("latin-1"))
        table: Any = config.layout.items
        files = log_files(config.data, config.layout)
        layout = dataclasses.replace(config.layout, items=dataclasses.replace(table, encoding="ascii"))
        with pytest.raises(Exception, match=re.escape(message)), beam.Pipeline() as pipeline:
            _ = pipeline | interactions.ReadInteractions(layout, config.data, files)


def test_quantile_split_is_temporal_and_ties_do_not_straddle_it(tmp_path):
    rows = random_rows(seed=4, users=4, rows=400)
    write_csv(tmp_path / "data" / "log.csv", rows)
    report, found = ingest(make_config(tmp_path, split=Split((0.6, 0.3, 0.1))))

    times = {split: [row["timestamp"] for row in found[split]] for split in SPLITS}
    assert max(times["train"]) < min(times["validation"])
    assert max(times["validation"]) < min(times["eval"])
    everything = sorted(time for split in SPLITS for time in times[split])
    assert len(everything) == sum(report["impressions"].values()) > 350
    # Train ends at the smallest timestamp up to which at least 60 % of the impressions lie; eval begins after 90 %.
    last_train = everything[-(-len(everything) * 60 // 100) - 1]
    last_validation = everything[-(-len(everything) * 90 // 100) - 1]
    assert report["split"] == {"validation_from": last_train + 1, "eval_from": last_validation + 1}
    assert max(times["train"]) == last_train
    assert max(times["validation"]) == last_validation


@pytest.mark.slow
def test_user_of_100_000_events_takes_time_and_memory_linear_in_them(tmp_path):
    layout = custom(
        "log.csv", Label("clicked"), header=("user_id", "item_id", "timestamp", "clicked"), max_history_length=512
    )
    (tmp_path / "data").mkdir()
    events = 100_000
    with (tmp_path / "data" / "log.csv").open("w") as file:
        file.writelines(f"1,{time % 977},{time},{time % 2}\n" for time in range(events))
        file.writelines(f"2,{time % 977},{time},{time % 2}\n" for time in range(6))
    config = make_config(tmp_path, layout, min_history=5, split=Split(validation_from=99_990, eval_from=99_995))
    start, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report, found = ingest(config, splits=["eval"])
    seconds = time.process_time() - start
    gibibytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 2**20

    print(f"{events:,} events of one user, L = 512: {seconds:.1f} CPU seconds, peak memory up by {gibibytes:.2f} GiB")
    assert sum(report["impressions"].values()) == events - 5 + 1
    last = max(found["eval"], key=lambda row: row["timestamp"])
    assert last["history_timestamp"] == list(range(events - 2, events - 514, -1))
    assert last["history_item_id"] == [time % 977 for time in range(events - 2, events - 514, -1)]
    # Whole histories would be 5e9 behaviours, which take many minutes and tens of gibibytes.
    assert seconds < 120
    assert gibibytes < 1


def run_pipeline(config: PipelineConfig) -> list[str]:
    """Runs a TFX pipeline of this one component; returns what it has published so far."""
    metadata = tfx.orchestration.metadata.sqlite_metadata_connection_config(config.metadata_path)
    tfx.orchestration.LocalDagRunner().run(
        tfx.dsl.Pipeline(
            pipeline_name="test",
            pipeline_root=config.pipeline_root,
            metadata_connection_config=metadata,
            components=[impression_gen(config)],
            enable_cache=True,
            beam_pipeline_args=["--direct_running_mode=in_memory", "--direct_num_workers=1"],
        )
    )
    return published(config)


def published(config: PipelineConfig) -> list[str]:
    """URIs of the artifacts in the metadata."""
    store = metadata_store.MetadataStore(
        tfx.orchestration.metadata.sqlite_metadata_connection_config(config.metadata_path)
    )
    artifacts = store.get_artifacts_by_type("Examples")
    return [artifact.uri for artifact in artifacts if artifact.state == Artifact.LIVE]


EXAMPLE = "day-9/log.csv: 'nobody,1,1000,5,acme,1.0,nz,3,tv'"


def test_new_span_is_read_with_all_before_it_and_nothing_is_done_twice(tmp_path):
    layout = dataclasses.replace(LAYOUT, pattern="day-{SPAN}/*.csv")
    rows = random_rows()
    days = {9: (0, 1_025), 10: (1_025, 1_035), 11: (1_035, 1_100)}
    parts = {day: [row for row in rows if start <= row["ts"] < end] for day, (start, end) in days.items()}
    config = make_config(tmp_path, layout)
    for day in (9, 10):
        write_csv(tmp_path / "data" / f"day-{day}" / "log.csv", parts[day])

    (first,) = run_pipeline(config)
    assert {split: read_split(first, split) for split in SPLITS} == in_split(
        impressions_by_loop([*parts[9], *parts[10]], layout, 1)
    )
    # Nothing has changed but what other components read.
    assert run_pipeline(dataclasses.replace(config, training=Training(epochs=9), bulk_inference=True)) == [first]

    write_csv(tmp_path / "data" / "day-11" / "log.csv", parts[11])
    _, second = run_pipeline(config)
    assert {split: read_split(second, split) for split in SPLITS} == in_split(impressions_by_loop(rows, layout, 1))

    # A correction of an old day counts as well; a bad one stops the run and publishes nothing, though the log is large
    # enough to hide it.
    with (tmp_path / "data" / "day-9" / "log.csv").open("a") as file:
        file.writelines("nobody,1,1000,5,acme,1.0,nz,3,tv\n" for _ in range(10))
    rows_read = len(parts[9]) + 10
    message = (
        f"Too many rows are malformed; `max_bad_share` allows {9.5 / rows_read:.2%}.\n"
        f"  span 9: 10 of {rows_read} rows, {10 / rows_read:.2%}\n"
        f"  day-9/log.csv: 10 of {rows_read} rows, {10 / rows_read:.2%}\n"
        "In day-9/log.csv:\n"
        f"  10 non-numeric user_id, e.g. {'; '.join(3 * [EXAMPLE])}\n"
        f"All of them: {config.dead_letter_dir}"
    )
    with pytest.raises(RuntimeError, match=re.escape(message)):
        run_pipeline(dataclasses.replace(config, max_bad_share=9.5 / rows_read))
    assert published(config) == [first, second]


@pytest.mark.parametrize(
    ("pattern", "last_span", "expected"),
    [
        ("day-{SPAN}/*.csv", None, ["day-1/a.csv", "day-12/a.csv", "day-2/a.csv"]),
        ("day-{SPAN}/*.csv", 2, ["day-1/a.csv", "day-2/a.csv"]),
        ("day-{SPAN:2}/?.csv", 20, ["day-12/a.csv"]),
        # Days since 1970.
        ("{YYYY}-{MM}-{DD}.csv", 19_723, ["2023-12-31.csv", "2024-01-01.csv"]),
        ("*.csv", 2, ["2023-12-31.csv", "2024-01-01.csv", "2024-01-02.csv"]),
    ],
)
def test_log_files_are_those_up_to_the_span(tmp_path, pattern, last_span, expected):
    for name in ("day-1/a.csv", "day-2/a.csv", "day-12/a.csv", "day-x/a.csv", "day-1/a.txt", "2023-12-31.csv",
                 "2024-01-01.csv", "2024-01-02.csv"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = log_files(str(tmp_path), dataclasses.replace(LAYOUT, pattern=pattern), last_span)
    assert files == [str(tmp_path / name) for name in expected]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["log.csv", "x[1].csv"]),
        ("*/*/*", ["day/0/log.csv"]),
        ("day/*/*.csv", ["day/0/log.csv"]),
        ("?log.csv", []),
        ("_*", ["_SUCCESS"]),
        ("._log.csv", ["._log.csv"]),
        ("_temporary/0/*", ["_temporary/0/log.csv"]),
        ("l*g.csv", ["log.csv"]),
        ("./log.csv", ["log.csv"]),
        # Not a set of characters.
        ("x[1].csv", ["x[1].csv"]),
        ("x[*].csv", ["x[1].csv"]),
    ],
)
def test_log_files_are_not_the_stray_ones(tmp_path, pattern, expected):
    data = tmp_path / "x[2024]"
    for name in ("log.csv", "x[1].csv", "x1.csv/", "._log.csv", ".DS_Store", "_SUCCESS", "day/0/log.csv",
                 "day/0/_log.csv", "day/_started/log.csv", "_temporary/0/log.csv"):  # fmt: skip
        (data / name).parent.mkdir(exist_ok=True, parents=True)
        if not name.endswith("/"):
            (data / name).touch()
    files = log_files(str(data), dataclasses.replace(LAYOUT, pattern=pattern))
    assert [str(Path(file).relative_to(data)) for file in files if Path(file).is_file()] == expected


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_folder_with_brackets_and_stray_files_is_read(tmp_path, file_format):
    rows = random_rows()
    data = tmp_path / "x[2024]" / "data"
    data.mkdir(parents=True)
    if file_format == "csv":
        write_csv(data / "log.csv", rows)
    else:
        pa.parquet.write_table(pa.Table.from_pylist(rows), data / "log.parquet")
    for name in (f"._log.{file_format}", f"_log.{file_format}"):
        (data / name).write_bytes(b"\x00\x05\x16\x07\xff")
    layout = dataclasses.replace(LAYOUT, file_format=file_format, pattern=f"*.{file_format}")
    config = dataclasses.replace(make_config(tmp_path, layout), data=str(data))
    report, found = ingest(config)
    assert report["files"] == 1
    assert found == in_split(impressions_by_loop(rows, layout, min_history=1))


def test_change_in_a_folder_with_brackets_changes_the_fingerprint(tmp_path):
    data = tmp_path / "x[2024]"
    config = dataclasses.replace(
        make_config(tmp_path, dataclasses.replace(LAYOUT, pattern="{SPAN}/*.csv")), data=str(data)
    )
    component: Any = impression_gen(config)

    def resolved() -> tuple[int, str]:
        properties = component.DRIVER_CLASS(None).resolve_exec_properties(dict(component.exec_properties), None, None)
        return properties["span"], properties["input_fingerprint"]

    write_csv(data / "3" / "log.csv", random_rows())
    span, before = resolved()
    assert (span, before) == (3, resolved()[1])
    write_csv(data / "3" / "log.csv", random_rows(seed=1))
    assert resolved() == (3, resolved()[1])
    assert resolved()[1] != before
    write_csv(data / "12" / "log.csv", [])
    assert resolved()[0] == 12


def test_header_that_is_not_in_the_encoding_is_named(tmp_path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "log.csv"
    path.write_bytes(b"user_id,iid,gr\xf6\xdfe\n1,1,1\n")
    message = f"{path} is not in utf-8: line 1, column 3 holds b'\\xf6'."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_data(make_config(tmp_path))


@pytest.mark.parametrize("text", ["2023-11-14 22:13:20", "2023-11-14T23:13:20.5+01:00", "1700000000", "1.7e9"])
def test_parse_timestamp_takes_dates_and_numbers(text):
    assert values.parse_timestamp(text) == 1_700_000_000


@pytest.mark.parametrize(
    ("dtype", "fraction"),
    [
        (pa.timestamp("s"), 0),
        (pa.timestamp("us"), 999_999),
        (pa.timestamp("ms", "UTC"), 999_000),
        (pa.timestamp("ns", "Asia/Kolkata"), 1),
    ],
)
def test_parquet_moments_are_seconds(dtype, fraction):
    # 2023-11-14 22:13:20 UTC, nothing, and half a second or none before 1970.
    moments = pa.array([1_700_000_000_000_000 + fraction, None, -500_000 if fraction else -1_000_000])
    column = moments.cast(pa.timestamp("us", "UTC")).cast(pa.timestamp(dtype.unit, "UTC")).cast(dtype)
    assert values.column_values(column) == [1_700_000_000, None, -1]


def test_parquet_dates_are_seconds_and_numbers_stay():
    # 1970-01-11 is day 10.
    assert values.column_values(pa.array([10, None]).cast(pa.int32()).cast(pa.date32())) == [864_000, None]
    assert values.column_values(pa.array([1.5, None])) == [1.5, None]


@pytest.mark.slow
def test_log_with_dates_gives_the_impressions_of_one_with_seconds(tmp_path):
    rows = random_rows()
    (tmp_path / "data").mkdir()
    table = pa.Table.from_pylist(rows)
    seconds = table.schema.get_field_index("ts")
    moments = pa.array([1_000_000 * row["ts"] + 999_999 for row in rows], pa.timestamp("us", "UTC"))
    pa.parquet.write_table(table.set_column(seconds, "ts", moments), tmp_path / "data" / "log.parquet")
    layout = dataclasses.replace(LAYOUT, file_format="parquet", pattern="*.parquet")
    report, found = ingest(make_config(tmp_path, layout))
    assert report["malformed"] == {}
    assert found == in_split(impressions_by_loop(rows, layout, min_history=1))


SPELT = custom("*.parquet", Label("clicked"), item_id="item_id:string", user=(), file_format="parquet")


def write_spelt(folder: Path, name: str, ids: Sequence[Any], start: int) -> None:
    """Each id as that of a user and of an item, twice in every third of the time."""
    times = [start + step for step in (0, 1, 10, 11, 20, 21) for _ in ids]
    table = {
        "user_id": list(ids) * 6,
        "item_id": list(ids) * 6,
        "timestamp": times,
        "clicked": [time % 2 for time in times],
    }
    folder.mkdir(exist_ok=True)
    if name.endswith(".csv"):
        rows = zip(*table.values(), strict=True)
        (folder / name).write_text("\n".join([",".join(table), *(",".join(map(str, row)) for row in rows)]))
    else:
        pa.parquet.write_table(pa.table(table), folder / name)


@pytest.mark.slow
def test_integers_and_floats_of_parquet_files_spell_one_id(tmp_path):
    write_spelt(tmp_path / "data", "day1.parquet", [1, 2], start=100)
    write_spelt(tmp_path / "data", "day2.parquet", [1.0, 2.0, 2.5], start=105)
    write_spelt(tmp_path / "data", "day3.parquet", [decimal.Decimal("1.00")], start=107)
    config = make_config(tmp_path, SPELT, min_history=0, split=Split(validation_from=110, eval_from=120))
    report, found = ingest(config)
    assert (report["users"], report["items"]) == (3, 3)
    for split in SPLITS:
        assert {row["user_id"] for row in found[split]} == {b"1", b"2", b"2.5"}
        assert {row["item_id"] for row in found[split]} == {b"1", b"2", b"2.5"}


@pytest.mark.slow
def test_ids_in_two_spellings_of_text_are_refused_and_the_advice_works(tmp_path):
    layout = dataclasses.replace(SPELT, file_format="csv", pattern="*.csv")
    write_spelt(tmp_path / "data", "a.csv", [1, 2], start=100)
    write_spelt(tmp_path / "data", "b.csv", ["1.0", "2.0"], start=105)
    config = make_config(tmp_path, layout, min_history=0, split=Split(validation_from=110, eval_from=120))
    message = (
        f"The column 'item_id' spells ids as integers, e.g. in {config.data}/a.csv, and as '1.0', e.g. in "
        f"{config.data}/b.csv: one id would be two. Write them in one spelling, or make the feature int64, which reads "
        "both."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ingest(config)

    advised = custom("*.csv", Label("clicked"), user_dtype="int64")
    report, _ = ingest(dataclasses.replace(config, layout=advised))
    assert (report["users"], report["items"]) == (2, 2)


def write_times(folder: Path, name: str, times: Sequence[int], user: int = 1) -> None:
    folder.mkdir(exist_ok=True)
    rows = [f"{user},{number % 5},{moment},{number % 2}" for number, moment in enumerate(times)]
    (folder / name).write_text("\n".join(["user_id,item_id,timestamp,clicked", *rows]))


START = 1_700_000_000


@pytest.mark.slow
def test_times_in_two_units_are_refused_and_the_advice_works(tmp_path):
    layout = custom("*.csv", Label("clicked"), user_dtype="int64")
    for user in (1, 2):
        write_times(tmp_path / "data", f"{user}.csv", range(START, START + 30), user)
    write_times(tmp_path / "data", "odd.csv", [1000 * START, 1000 * START + 7, 0], user=1)
    config = make_config(tmp_path, layout, split=Split(validation_from=START + 10, eval_from=START + 20))
    message = (
        f"The column 'timestamp' holds moments since 1970 in seconds, but for some rows: 2 in milliseconds, e.g. in "
        f"{config.data}/odd.csv; 1 are no moments between 1973 and 2286, e.g. in {config.data}/odd.csv. Mend these, or "
        "leave them out by `first_timestamp` and `end_timestamp`, which make them malformed rows."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ingest(config)
    advised = custom("*.csv", Label("clicked"), user_dtype="int64", first_timestamp=START, end_timestamp=START + 1_000)
    report, _ = ingest(dataclasses.replace(config, layout=advised, max_bad_share=0.1))
    assert report["malformed"] == {"with a timestamp outside the layout's range": 3}
    assert report["rows_kept"] == 60


@pytest.mark.slow
def test_times_after_the_run_are_malformed(tmp_path):
    now = int(time.time())
    for user in (1, 2):
        write_times(tmp_path / "data", f"{user}.csv", range(START, START + 30), user)
    write_times(tmp_path / "data", "late.csv", [now - 5, now + 200_000], user=1)
    layout = custom("*.csv", Label("clicked"), user_dtype="int64")
    split = Split(validation_from=START + 10, eval_from=START + 20)
    report, _ = ingest(make_config(tmp_path, layout, split=split, max_bad_share=0.1))
    assert report["malformed"] == {"with a timestamp after the run": 1}
    assert report["rows_kept"] == 61


@pytest.mark.slow
def test_ages_in_seconds_beside_times_in_milliseconds_are_refused_and_the_advice_works(tmp_path):
    for user in (1, 2):
        write_times(tmp_path / "data", f"{user}.csv", range(1000 * START, 1000 * START + 30), user)
    layout = custom("*.csv", Label("clicked"), user_dtype="int64")
    split = Split(validation_from=1000 * START + 10, eval_from=1000 * START + 20)
    config = make_config(tmp_path, layout, split=split)
    message = (
        "The column 'timestamp' holds moments since 1970 in milliseconds, but the boundaries of ages are the usual "
        "ones, which are in seconds. Give `age_boundaries` in milliseconds, or none at all."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ingest(config)
    for boundaries in ((60_000, 3_600_000), ()):
        advised = custom("*.csv", Label("clicked"), user_dtype="int64", age_boundaries=boundaries)
        report, _ = ingest(dataclasses.replace(config, layout=advised))
        assert report["rows_kept"] == 60


def test_float_that_stands_for_several_ids_is_malformed():
    assert values.parse_string(float(2**53 - 1)) == b"9007199254740991"
    with pytest.raises(values.MalformedRowError, match=r"^non-integer$"):
        values.parse_string(2.0**60)
    # A float32 of 2**24 stands for 2**24 + 1 as well.
    exact, rounded = values.column_values(pa.array([2**24 - 1, 2**24], pa.float32()))
    assert (values.parse_integer(exact), values.parse_string(exact)) == (16_777_215, b"16777215")
    for parse in (values.parse_integer, values.parse_string):
        with pytest.raises(values.MalformedRowError, match=r"^non-integer$"):
            parse(rounded)
    fraction, missing = values.column_values(pa.array([0.5, None], pa.float32()))
    assert values.parse_float(fraction) == 0.5
    assert missing is None


HEADER = ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        (None, FileNotFoundError, "`data` must be the directory of the raw log. There is no directory '{data}'"),
        (
            {"log.txt": "x"},
            FileNotFoundError,
            "No file in {data} matches the layout's pattern '*.csv'. Present: ['log.txt']",
        ),
        (
            {"a.csv": f"{HEADER}\n1", "b.csv": "user_id,item,ts,rating,brand,price,country,hour\n1"},
            ValueError,
            "{data}/b.csv lacks columns that the layout reads: ['iid', 'device']. Present: ['user_id', 'item', 'ts', "
            "'rating', 'brand', 'price', 'country', 'hour']",
        ),
        (
            {"a.csv": f"{HEADER},brand\n1"},
            ValueError,
            "{data}/a.csv has several columns of the same name: ['brand']",
        ),
        (
            {"a.csv": f"{HEADER}\n", "b.csv": ""},
            ValueError,
            "The log is empty: ['{data}/a.csv', '{data}/b.csv'] have no rows.",
        ),
    ],
)
def test_check_data_names_what_is_wrong(tmp_path, files, error, message):
    config = make_config(tmp_path)
    if files is not None:
        (tmp_path / "data").mkdir()
        for name, text in files.items():
            (tmp_path / "data" / name).write_text(text)
    with pytest.raises(error, match=f"^{re.escape(message.format(data=config.data))}$"):
        check_data(config)


def test_check_data_looks_into_parquet_and_for_the_item_table(tmp_path):
    (tmp_path / "data").mkdir()
    layout = custom("log.parquet", Label("clicked"), file_format="parquet")
    config, path = make_config(tmp_path, layout), tmp_path / "data" / "log.parquet"
    table = pa.table({"user_id": [1], "item_id": [1], "timestamp": [1], "clicked": [1]})
    for content, message in (
        (table.drop(["clicked"]), f"{path} lacks columns that the layout reads: ['clicked']. Present: ['user_id', "),
        (table.slice(0, 0), f"The log is empty: ['{path}'] have no rows."),
        (
            table.set_column(2, "timestamp", table["timestamp"].cast(pa.int32()).cast(pa.time32("ms"))),
            f"The column 'timestamp' of {path} must hold integers, floats or strings, or dates where it is the "
            "timestamp. Received: time32[ms]",
        ),
        (
            table.set_column(1, "item_id", pa.array([[1]])),
            "or dates where it is the timestamp. Received: list<item: int64>. A feature of several values is written "
            "NAME:DTYPE[N]",
        ),
    ):
        pa.parquet.write_table(content, path)
        with pytest.raises(ValueError, match=re.escape(message)):
            check_data(config)
    path.write_text("not Parquet")
    with pytest.raises(ValueError, match=re.escape(f"{path} is not a Parquet file: ")):
        check_data(config)
    pa.parquet.write_table(table, path)
    check_data(config)

    (tmp_path / "data" / "ratings.dat").write_text("1::1::5::1\n")
    message = f"The layout's table of items is missing: {tmp_path / 'data' / 'movies.dat'}"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        check_data(make_config(tmp_path, movielens()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_id": 1}, "The log must hold at least two users. Found: 1"),
        (
            {"rating": 5.0},
            "impressions of train have the label 1; a model needs both classes. The label is made of the column "
            "'rating': check its rule.",
        ),
    ],
)
def test_data_that_no_model_can_be_trained_on_is_refused(tmp_path, changes, message):
    rows = {tuple({**row, **changes}.items()) for row in random_rows()}
    write_csv(tmp_path / "data" / "log.csv", [dict(row) for row in rows])
    with pytest.raises(ValueError, match=re.escape(message)):
        ingest(make_config(tmp_path))


def test_split_that_leaves_a_part_empty_is_refused(tmp_path):
    write_csv(tmp_path / "data" / "log.csv", random_rows())
    message = r"^The split by time leaves train, eval without impressions: {'train': 0, 'validation': \d+, 'eval': 0}, "
    with pytest.raises(ValueError, match=message):
        ingest(make_config(tmp_path, split=Split(validation_from=0, eval_from=9_999)))


def test_compressed_file_with_a_byte_order_mark_and_another_separator_is_read(tmp_path):
    layout = custom(
        "*.tsv.gz",
        Label("clicked"),
        {"user_id": "Nutzer"},
        user=("user_id:string",),
        separator="\t",
        max_history_length=9,
    )
    lines = ["Nutzer\titem_id\ttimestamp\tclicked"]
    lines += [f"ü{user}\t{time % 3}\t{time}\t{time % 2}" for user in (1, 2) for time in range(8)]
    (tmp_path / "data").mkdir()
    with gzip.open(tmp_path / "data" / "log.tsv.gz", "wt", encoding="utf-8-sig") as file:
        file.write("\r\n".join(lines))
    _, found = ingest(make_config(tmp_path, layout, split=Split(validation_from=3, eval_from=6)))
    last = max(found["eval"], key=lambda row: (row["user_id"], row["timestamp"]))
    assert (last["user_id"], last["item_id"], last["label"]) == ("ü2".encode(), 1, 1)
    assert last["history_item_id"] == [0, 2, 1, 0, 2, 1, 0]


@pytest.mark.slow
def test_two_processes_give_the_same_impressions(tmp_path):
    rows = random_rows(seed=5, users=20, rows=600)
    write_csv(tmp_path / "data" / "a.csv", rows[:300])
    write_csv(tmp_path / "data" / "b.csv", rows[300:])
    config = make_config(tmp_path, split=Split())
    expected, expected_rows = ingest(config)
    report, found = ingest(config, "--direct_running_mode=multi_processing", "--direct_num_workers=2")
    assert found == expected_rows
    sizes = "bytes", "bytes_per_impression"
    assert {name: report[name] for name in report if name not in sizes} == {
        name: expected[name] for name in expected if name not in sizes
    }
