import json
import sqlite3

import pytest
import tensorflow as tf
import tensorflow_data_validation as tfdv
from tensorflow_data_validation.statistics.stats_impl import generate_statistics_in_memory
from tfx import v1 as tfx
from tfx_bsl.coders.example_coder import ExamplesToRecordBatchDecoder

from tfx_pipeline.components.validator import (
    ImpressionValidator,
    ValidatedStatistics,
    describe,
    find_anomalies,
    statistics_options,
)
from tfx_pipeline.config import EVAL, SPLITS, TRAIN, PipelineConfig
from tfx_pipeline.layouts import movielens
from tfx_pipeline.schema import MAX_ITEM_SHARE_DRIFT, make_schema, schema_text

LENGTH = 4
LAYOUT = movielens(LENGTH)
SCHEMA = make_schema(LAYOUT)
CONFIG = PipelineConfig(data="", layout=LAYOUT, schema="", output="", serving_dir="")
ROWS = 200


def feature_of(values):
    feature = tf.train.Feature()
    if values and isinstance(values[0], bytes):
        feature.bytes_list.value.extend(values)
    elif values and isinstance(values[0], float):
        feature.float_list.value.extend(values)
    else:
        feature.int64_list.SetInParent()
        feature.int64_list.value.extend(values)
    return feature


def impressions(rows=ROWS, **changes):
    """Serialized impressions that fit the schema, but for columns that `changes` makes of the row's number."""
    for row in range(rows):
        length = row % (LENGTH + 1)
        columns = {
            "user_id": [row % 7],
            "timestamp": [1000 + row],
            "item_id": [row % 50],
            "genre": [b"Drama"],
            "label": [row % 2],
            "history_bucket": [b"0-9"],
            "history_item_id": list(range(length)),
            "history_rating": [4] * length,
            "history_timestamp": [999 - i for i in range(length)],
        }
        columns |= {name: change(row) for name, change in changes.items()}
        feature = {name: feature_of(values) for name, values in columns.items() if values is not None}
        yield tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def statistics_of(with_schema=True, **changes):
    options = statistics_options(CONFIG)
    if with_schema:
        options.schema = SCHEMA
    batch = ExamplesToRecordBatchDecoder().DecodeBatch(list(impressions(**changes)))
    return generate_statistics_in_memory(batch, options)


def anomalies_of(statistics, baseline=None):
    return describe(statistics, SCHEMA, find_anomalies(statistics, SCHEMA, baseline or {}))


@pytest.fixture(scope="module")
def good():
    return statistics_of()


def test_impressions_that_fit_have_no_anomalies(good):
    statistics = dict.fromkeys(SPLITS, good)
    assert anomalies_of(statistics, statistics) == []


def test_impressions_without_any_behaviour_have_no_anomalies(good):
    empty = statistics_of(**dict.fromkeys(("history_item_id", "history_rating", "history_timestamp"), lambda row: []))
    assert anomalies_of({TRAIN: empty}) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"label": lambda row: [row % 3]}, "label: Out-of-range values. Unexpectedly large value: 2."),
        ({"label": lambda row: [-1]}, "label: Out-of-range values. Unexpectedly small value: -1."),
        ({"genre": lambda row: None}, "genre: Column dropped. Column is completely missing"),
        (
            {"history_rating": lambda row: None if row == 3 else []},
            "history_rating: Column dropped. The feature was present in fewer examples than expected: "
            "minimum fraction = 1.000000, actual = 0.995000",
        ),
        (
            {"history_item_id": lambda row: [1] * (LENGTH + (row == 3))},
            "history_item_id: Superfluous values. Some examples have more values than expected.",
        ),
        (
            {"user_id": lambda row: [b"x"]},
            "user_id: Unexpected data type. Expected data of type: INT but got STRING",
        ),
        (
            {"history_timestamp": lambda row: [0.5]},
            "history_timestamp: Unexpected data type. Expected data of type: INT but got FLOAT",
        ),
        (
            {"item_id": lambda row: [row % 50, 1]},
            "item_id: Feature shape dropped. The feature has fixed value length 2 but it's not compatible with the "
            "specified shape.",
        ),
        (
            {"history_bucket": lambda row: [b"1000+"]},
            "history_bucket: Unexpected string values. Examples contain values missing from the schema: 1000+ (~100%).",
        ),
        ({"price": lambda row: [0.5]}, "price: New column. New column (column in data but not in schema)"),
    ],
)
def test_an_anomaly_is_named_with_its_split_and_column(good, changes, expected):
    statistics = dict.fromkeys(SPLITS, good) | {"validation": statistics_of(**changes)}
    lines = anomalies_of(statistics)
    assert f"validation: {expected}" in lines
    assert all(line.startswith(f"validation: {expected.partition(':')[0]}: ") for line in lines)


def drawn(share):
    """Impressions of which a share beyond the usual 2 % are of item 0."""
    return statistics_of(item_id=lambda row: [0 if row < share * ROWS else row % 50])


def test_drift_against_the_last_validated_statistics_is_found(good):
    assert MAX_ITEM_SHARE_DRIFT == 0.05
    lines = anomalies_of({TRAIN: drawn(0.3)}, {TRAIN: good})
    assert lines == [
        "train: item_id: High Linfty distance between these and the last validated statistics (drift). "
        "The Linfty distance between these and the last validated statistics (drift) is 0.29 (up to six significant "
        "digits), above the threshold 0.05. The feature value with maximum difference is: 0"
    ]
    assert anomalies_of({TRAIN: drawn(0.04)}, {TRAIN: good}) == []


def test_skew_between_train_and_eval_is_found(good):
    (line,) = anomalies_of({TRAIN: good, EVAL: drawn(0.3)})
    assert line.startswith("train: item_id: High Linfty distance between train and eval (skew).")
    assert "0.29" in line
    assert anomalies_of({TRAIN: good, EVAL: drawn(0.04)}) == []


def test_item_ids_that_were_not_counted_are_an_anomaly():
    statistics = {TRAIN: statistics_of(with_schema=False)}
    assert anomalies_of(statistics) == [
        "train: item_id: Its values were not counted, so neither drift nor skew can be seen. "
        "StatisticsGen must be given the schema."
    ]


def test_a_split_without_impressions_is_an_anomaly(good):
    (line,) = anomalies_of({TRAIN: good, "validation": statistics_of(rows=0)})
    assert line.startswith("validation: There are no impressions. If the statistics are of a sample, none was drawn")


def test_sampled_statistics_are_validated_alike(tmp_path):
    config = PipelineConfig(data="", layout=LAYOUT, schema="", output="", serving_dir="", statistics_sample_rate=0.5)
    # As StatisticsGen hands them on.
    options = tfdv.StatsOptions.from_json(statistics_options(config).to_json())
    options.schema = SCHEMA
    # Batches are drawn, so there must be many.
    for number in range(10):
        with tf.io.TFRecordWriter(str(tmp_path / f"{number}.tfrecord")) as writer:
            for record in impressions(rows=30, label=lambda row: [2]):
                writer.write(record)
    statistics = tfdv.generate_statistics_from_tfrecord(str(tmp_path / "*.tfrecord"), stats_options=options)
    assert 0 < statistics.datasets[0].num_examples < 300
    assert anomalies_of({TRAIN: statistics}) == ["train: label: Out-of-range values. Unexpectedly large value: 2."]


class Runs:
    """A pipeline of the validator alone, on statistics that were computed before."""

    def __init__(self, directory):
        self.directory = directory
        self.number = 0
        (directory / "schema").mkdir()
        (directory / "schema" / "schema.pbtxt").write_text(schema_text(SCHEMA))
        self.database = str(directory / "metadata.sqlite")

    def __call__(self, statistics):
        self.number += 1
        imported = self.directory / f"statistics-{self.number}"
        for split in SPLITS:
            (imported / f"Split-{split}").mkdir(parents=True)
            (imported / f"Split-{split}" / "FeatureStats.pb").write_bytes(statistics.SerializeToString())
        artifacts = tfx.types.standard_artifacts
        gen = tfx.dsl.Importer(
            source_uri=str(imported),
            artifact_type=artifacts.ExampleStatistics,
            properties={"split_names": json.dumps(list(SPLITS)), "span": self.number},
        ).with_id("statistics")
        schema = tfx.dsl.Importer(source_uri=str(self.directory / "schema"), artifact_type=artifacts.Schema).with_id(
            "schema"
        )
        latest = tfx.dsl.Resolver(
            strategy_class=tfx.dsl.experimental.LatestArtifactStrategy,
            statistics=tfx.dsl.Channel(type=ValidatedStatistics),
        ).with_id("latest_validated_statistics")
        validator = ImpressionValidator(gen.outputs["result"], schema.outputs["result"], latest.outputs["statistics"])
        pipeline = tfx.dsl.Pipeline(
            pipeline_name="validation",
            pipeline_root=str(self.directory / "root"),
            components=[gen, schema, latest, validator],
            metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(self.database),
        )
        tfx.orchestration.LocalDagRunner().run(pipeline)

    def validated(self):
        """Directories of published validated statistics, oldest first."""
        query = (
            "SELECT Artifact.uri FROM Artifact JOIN Type ON Type.id = Artifact.type_id "
            "WHERE Type.name = 'keras_eta.ValidatedStatistics' AND Artifact.state = 2 ORDER BY Artifact.id"
        )
        with sqlite3.connect(self.database) as connection:
            return [uri for (uri,) in connection.execute(query)]


def test_a_failed_run_stops_and_never_becomes_the_baseline(good, tmp_path):
    run = Runs(tmp_path)
    run(good)
    (first,) = run.validated()
    for split in SPLITS:
        assert tfdv.load_stats_binary(f"{first}/Split-{split}/FeatureStats.pb") == good

    bad = statistics_of(item_id=lambda row: [0], label=lambda row: [5])
    with pytest.raises(RuntimeError) as caught:
        run(bad)
    message = str(caught.value)
    assert "Data validation found anomalies. Nothing is trained on them." in message
    for split in SPLITS:
        assert f"{split}: label: Out-of-range values. Unexpectedly large value: 5." in message
        assert f"{split}: item_id: High Linfty distance between these and the last validated" in message
    assert run.validated() == [first]

    # Against the bad run's statistics this would be drift.
    run(good)
    assert len(run.validated()) == 2
