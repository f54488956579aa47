from __future__ import annotations

import collections
import dataclasses
import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform as tft

from keras_eta import Age, Calendar, Feature, FeatureLookup, Features
from keras_eta.columns import HISTORY_AGE, HISTORY_LENGTH, LABEL, TIMESTAMP, history_name
from keras_eta.names import scope_name
from tests.tfx_pipeline.transformed import Impression, raw_columns, run_transform
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.layouts import Label, Layout
from tfx_pipeline.schema import make_schema
from tfx_pipeline.training.batches import transformed_batches
from tfx_pipeline.transform import preprocessing_fn, read_scales

LONGEST, L = 10, 6
LARGE = 2**62
BOUNDARIES = (60, 3600)
INDIA = datetime.timezone(datetime.timedelta(hours=5.5))
ITEMS = [0, 7, 9, 10, 11, LARGE, LARGE + 1, *range(100, 130)]
CATEGORIES = [b"a b", b"\xff\xfe", b"caf\xc3\xa9", b" b", b"b", b"zero\0"]

FEATURES = Features(
    item_id=Feature("item_id", vocabulary_size=20, num_oov_indices=3),
    item_attributes=(Feature("category", "string", num_oov_indices=3), Feature("price", "float32")),
    behaviour_attributes=(Feature("liked"), Feature("dwell", "float32", optional=True)),
    user=(Feature("user_id", "string", vocabulary_size=5, num_oov_indices=3, min_count=45),),
    context=(Feature("page"), Feature("row", "float32")),
    age=Age(BOUNDARIES),
    calendar=Calendar("seconds", 5.5),
    max_history_length=L,
)


def make_config(features: Features = FEATURES) -> PipelineConfig:
    layout = Layout(features, pattern="*.csv", label=Label("label"))
    return PipelineConfig(data="", layout=layout, schema="", output="", serving_dir="")


def make_impressions(count: int, items: list[int], seed: int) -> list[Impression]:
    """Random impressions; the first 40 have no history."""
    rng = np.random.default_rng(seed)

    def draw(values: list[Any], length: int) -> list[Any]:
        return [values[index] for index in rng.integers(0, len(values), length)]

    impressions = []
    for row in range(count):
        length = 0 if row < 40 else int(rng.integers(0, LONGEST + 1))
        now = 1_600_000_000 + row
        # On the boundaries, beside them, and after the impression.
        ages = draw([-5, 0, 59, 60, 61, 3599, 3600, 10**9], length)
        impressions.append(
            {
                "user_id": draw([b"u%d" % user for user in range(9)], 1)[0],
                "item_id": draw(items, 1)[0],
                "category": draw(CATEGORIES, 1)[0],
                "price": float(np.float32(rng.normal())),
                "page": int(rng.integers(-2, 3)),
                "row": float(row),
                "timestamp": now,
                "label": int(rng.integers(0, 2)),
                "history_bucket": b"0-9",
                "history_item_id": draw(items, length),
                "history_category": draw(CATEGORIES, length),
                "history_price": [float(np.float32(x)) for x in rng.normal(size=length)],
                "history_liked": draw([0, 1], length),
                "history_dwell": [np.nan if x < -1 else float(np.float32(x)) for x in rng.normal(size=length)],
                "history_timestamp": [now - age for age in ages],
            }
        )
    return impressions


def expected_vocabulary(impressions: list[Impression], feature: Feature) -> list[bytes]:
    """Counts of candidates and of the L most recent behaviours; equal counts by descending bytes."""
    counts: collections.Counter[bytes] = collections.Counter()
    for row in impressions:
        for value in [
            *row.get(history_name(feature.name), [])[:L],
            *([row[feature.name]] if feature.name in row else []),
        ]:
            counts[value if isinstance(value, bytes) else str(value).encode()] += 1
    ordered = sorted(counts, key=lambda value: (counts[value], value), reverse=True)
    return [value for value in ordered if counts[value] >= feature.min_count][: feature.vocabulary_size]


class Run(NamedTuple):
    output: Path
    graph: tft.TFTransformOutput
    train: list[Impression]
    validation: list[Impression]

    def rows(self, split: str) -> dict[int, dict[str, Any]]:
        """The transformed impressions of a split by the number of the row: column -> value or list of values."""
        rows = {}
        for path in sorted((self.output / split).iterdir()):
            for record in tf.data.TFRecordDataset(str(path), "GZIP").as_numpy_iterator():
                columns = tf.train.Example.FromString(record).features.feature
                values = {
                    name: list((column.int64_list or column.float_list).value) for name, column in columns.items()
                }
                for name, column in columns.items():
                    values[name] = list(getattr(column, column.WhichOneof("kind")).value)
                rows[int(values["row"][0])] = values
        return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    output = tmp_path_factory.mktemp("transform")
    # With this seed the 20th and the 21st item are equally frequent.
    train = make_impressions(400, ITEMS, seed=1)
    validation = make_impressions(80, [*ITEMS, -1, -2, -3, -LARGE, 1000, 1001, 1002, 2**63 - 1], seed=0)
    config = make_config()
    graph = run_transform(config, make_schema(config.layout), {"train": train, "validation": validation}, output)
    return Run(output, graph, train, validation)


def filled_lookup(graph: tft.TFTransformOutput) -> FeatureLookup:
    lookup = FeatureLookup(FEATURES)
    for feature in FEATURES.all_features:
        if feature.is_id:
            lookup.set_vocabulary(feature.name, np.array(graph.vocabulary_by_name(feature.name), object))
    return lookup


def test_vocabularies_hold_candidates_and_histories_of_the_train_part_most_frequent_first(run: Run) -> None:
    for feature in FEATURES.all_features:
        if feature.is_id:
            assert run.graph.vocabulary_by_name(feature.name) == expected_vocabulary(run.train, feature), feature.name


def test_ids_below_the_minimum_count_are_left_out(run: Run) -> None:
    (user,) = FEATURES.user
    kept = run.graph.vocabulary_by_name("user_id")
    assert 0 < len(kept) < 9
    assert kept == expected_vocabulary(run.train, user)


def test_scales_are_those_of_candidates_and_histories_of_the_train_part(run: Run) -> None:
    scales = read_scales(run.graph, FEATURES)
    assert {*scales} == {"price", "dwell", "row"}
    for name, (mean, std) in scales.items():
        values = [row[name] for row in run.train if name in row]
        values += [x for row in run.train for x in row.get(history_name(name), [])[:L]]
        assert np.isnan(values).any() == (name == "dwell")
        np.testing.assert_allclose([mean, std], [np.nanmean(values), np.nanstd(values)], rtol=1e-5, err_msg=name)


def test_vocabularies_cut_ties_by_their_bytes(run: Run) -> None:
    whole = Feature("item_id")
    counts = collections.Counter(
        str(item).encode() for row in run.train for item in [row["item_id"], *row["history_item_id"][:L]]
    )
    ordered = expected_vocabulary(run.train, whole)
    assert counts[ordered[19]] == counts[ordered[20]], (
        "the cut must fall between equal counts for this test to say a thing"
    )
    assert run.graph.vocabulary_by_name("item_id") == ordered[:20]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_columns_equal_a_plain_reference(run: Run, split: str) -> None:
    vocabularies = {
        feature.name: expected_vocabulary(run.train, feature) for feature in FEATURES.all_features if feature.is_id
    }
    lookup = filled_lookup(run.graph)

    def encoded(feature: Feature, value: Any) -> Any:
        if not feature.is_id:
            return pytest.approx(value, abs=0, nan_ok=True)
        token = value if isinstance(value, bytes) else str(value).encode()
        if token in vocabularies[feature.name]:
            return 1 + feature.num_oov_indices + vocabularies[feature.name].index(token)
        if isinstance(value, int):
            return 1 + value % feature.num_oov_indices
        return int(lookup.encode(feature.name, np.array([value], object))[0])

    impressions = getattr(run, split)
    rows = run.rows(split)
    assert sorted(rows) == list(range(len(impressions)))
    for number, impression in enumerate(impressions):
        expected: dict[str, Any] = {name: [impression[name]] for name in (LABEL, TIMESTAMP)}
        for feature in (*FEATURES.user, *FEATURES.context, *FEATURES.item_features):
            expected[feature.name] = [encoded(feature, impression[feature.name])]
        for feature in FEATURES.history_features:
            name = history_name(feature.name)
            expected[name] = [encoded(feature, value) for value in impression[name][:L]]
        ages = [impression["timestamp"] - moment for moment in impression["history_timestamp"][:L]]
        expected[HISTORY_AGE] = [1 + (age >= 60) + (age >= 3600) for age in ages]
        local = datetime.datetime.fromtimestamp(impression["timestamp"], INDIA)
        expected |= {"timestamp_hour": [1 + local.hour], "timestamp_weekday": [1 + local.weekday()]}
        expected[HISTORY_LENGTH] = [min(len(impression["history_item_id"]), L)]
        assert rows[number] == expected


def test_columns_equal_feature_lookup_on_raw_ids(run: Run) -> None:
    """Unseen ids fall in the same bucket of the three in training as they do when served."""
    lookup = filled_lookup(run.graph)
    ((columns, label),) = transformed_batches([str(run.output / "validation" / "*")], FEATURES, 1000)
    order = columns["row"].numpy().astype(int)
    impressions = [
        {name: value[:L] if isinstance(value, list) else value for name, value in run.validation[row].items()}
        for row in order
    ]
    expected = lookup(raw_columns(impressions, FEATURES))
    assert sorted(columns) == sorted(expected)
    for name, column in expected.items():
        np.testing.assert_array_equal(columns[name], column, err_msg=name)
    np.testing.assert_array_equal(label, [row["label"] for row in impressions])
    for name, buckets in (("item_id", {1, 2, 3}), ("history_item_id", {1, 2, 3}), ("user_id", {1, 2})):
        assert buckets <= set(columns[name].numpy().ravel()), f"{name} must reach several buckets"


def test_outputs_are_the_encoded_columns_and_the_timestamp_alone(run: Run) -> None:
    names = {
        *FEATURES.encoded_row_names,
        *FEATURES.encoded_sequence_names(FEATURES.sequence("history")),
        HISTORY_LENGTH,
        LABEL,
        TIMESTAMP,
    }
    assert set(run.graph.transformed_feature_spec()) == names


def test_histories_are_not_padded_on_disk(run: Run) -> None:
    rows = run.rows("train")
    assert {len(row["history_item_id"]) for row in rows.values()} == set(range(L + 1))
    assert all(rows[number]["history_item_id"] == [] for number in range(40))


def test_sparse_histories_in_another_order_and_batches_give_the_same(run: Run, tmp_path: Path) -> None:
    """Bundles, batches and their order are Beam's choice; how histories are parsed is the schema's."""
    config = make_config()
    schema = make_schema(config.layout)
    schema.represent_variable_length_as_ragged = False
    impressions = [run.train[index] for index in np.random.default_rng(3).permutation(len(run.train))]
    graph = run_transform(config, schema, {"train": impressions}, tmp_path, batch_size=150)
    # As text, in which NaN equals NaN.
    found = Run(tmp_path, graph, impressions, []).rows("train")
    assert {row: str(sorted(columns.items())) for row, columns in found.items()} == {
        row: str(sorted(columns.items())) for row, columns in run.rows("train").items()
    }


def test_histories_of_different_lengths_are_refused(run: Run) -> None:
    raw = {
        name: tf.RaggedTensor.from_row_lengths(np.ravel(column)[:4], [3, 1])
        if name in FEATURES.history_names
        else tf.constant(column[:2])[:, tf.newaxis]
        for name, column in raw_columns(run.train[-2:], FEATURES).items()
        if name != HISTORY_LENGTH
    }
    encode = run.graph.transform_features_layer()
    assert encode(raw)[HISTORY_LENGTH].numpy().tolist() == [3, 1]
    raw["history_liked"] = tf.ragged.constant([[1, 1], [1, 1]], tf.int64)
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match="`history_liked` must be as long as `history_item_id` in every impression",
    ):
        encode(raw)


def test_missing_columns_are_named() -> None:
    with pytest.raises(ValueError, match=r"Columns are missing: \['history_timestamp', 'timestamp'\]"):
        preprocessing_fn(
            {
                name: tf.zeros([1, 1])
                for name in (*FEATURES.row_names, *FEATURES.history_names, LABEL)
                if "timestamp" not in name
            },
            {"config": make_config().to_json()},
        )


def test_transform_of_odd_names_keeps_the_columns_and_their_vocabularies_apart(tmp_path: Path) -> None:
    features = Features(
        item_id=Feature("item id"),
        item_attributes=(Feature("größe/cm", "string"),),
        context=(Feature("device type"), Feature("device-type"), Feature("self", "float32")),
        max_history_length=3,
    )
    rows: list[Impression] = [
        {
            "user_id": 1,
            "item id": item,
            "größe/cm": size,
            "device type": device,
            "device-type": device + 10,
            "self": 0.5,
            "timestamp": item,
            "label": 1,
            "history_bucket": b"0-9",
            "history_item id": [7] * (item - 1),
            "history_größe/cm": [b"s"] * (item - 1),
            "history_timestamp": [0] * (item - 1),
        }
        for item, size, device in ((1, b"m", 3), (2, b"s", 4), (3, b"s", 4))
    ]
    layout = Layout(dataclasses.replace(features, user=(Feature("user_id"),)), pattern="*.csv", label=Label("label"))
    config = PipelineConfig(data="", layout=layout, schema="", output="", serving_dir="")
    graph = run_transform(config, make_schema(layout), {"train": rows}, tmp_path)
    vocabularies = {
        "item id": [b"7", b"3", b"2", b"1"],
        "größe/cm": [b"s", b"m"],
        "device type": [b"4", b"3"],
        "device-type": [b"14", b"13"],
    }
    for name, ids in vocabularies.items():
        assert graph.vocabulary_by_name(scope_name(name)) == ids
    (path,) = (tmp_path / "train").iterdir()
    transformed = [
        tf.train.Example.FromString(record).features.feature
        for record in tf.data.TFRecordDataset(str(path), "GZIP").as_numpy_iterator()
    ]
    # Row 0 is padding and row 1 the one out-of-vocabulary bucket.
    by_item = {row["item id"].int64_list.value[0]: row for row in transformed}
    assert set(by_item) == {5, 4, 3}
    assert [by_item[row]["größe/cm"].int64_list.value[0] for row in (5, 4, 3)] == [3, 2, 2]
    assert [by_item[row]["device type"].int64_list.value[0] for row in (5, 4, 3)] == [3, 2, 2]
    assert [by_item[row]["device-type"].int64_list.value[0] for row in (5, 4, 3)] == [3, 2, 2]
    assert list(by_item[3]["history_item id"].int64_list.value) == [2, 2]
    assert list(by_item[3]["history_größe/cm"].int64_list.value) == [2, 2]
    assert by_item[3]["self"].float_list.value[0] == 0.5
