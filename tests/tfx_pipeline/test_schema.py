import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_data_validation as tfdv
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_transform.tf_metadata import schema_utils

import tfx_pipeline
from keras_eta.columns import Feature
from keras_eta.features import Features
from tfx_pipeline import propose_schema
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.layouts import Label, Layout, movielens, taobao
from tfx_pipeline.schema import make_schema, read_schema, schema_text
from tfx_pipeline.schema_draft import impression_statistics

SCHEMAS = Path(tfx_pipeline.__file__).parent / "schemas"
LAYOUT = Layout(
    Features(
        item_id=Feature("item_id", "string"),
        item_attributes=(Feature("brand", "string"),),
        behaviour_attributes=(Feature("rating", "int64"),),
        context=(Feature("price", "float32"), Feature("hour")),
        max_history_length=3,
    ),
    pattern="*.csv",
    label=Label("rating", minimum=4),
    slice_columns=("country",),
)


@pytest.mark.parametrize("layout", [movielens(), taobao()], ids=["movielens", "taobao"])
def test_committed_schemas_are_those_of_their_layouts(layout, request):
    name = request.node.callspec.id
    assert read_schema(SCHEMAS / f"{name}.pbtxt") == make_schema(layout)
    assert (SCHEMAS / f"{name}.pbtxt").read_text() == schema_text(make_schema(layout))


def test_a_schema_declares_every_column_of_the_contract():
    columns = {column.name: column for column in make_schema(LAYOUT).feature}
    assert {name: schema_pb2.FeatureType.Name(column.type) for name, column in columns.items()} == {
        "user_id": "BYTES",
        "timestamp": "INT",
        "item_id": "BYTES",
        "brand": "BYTES",
        "price": "FLOAT",
        "hour": "INT",
        "country": "BYTES",
        "label": "INT",
        "history_bucket": "BYTES",
        "history_item_id": "BYTES",
        "history_brand": "BYTES",
        "history_rating": "INT",
        "history_timestamp": "INT",
    }
    for name, column in columns.items():
        assert column.presence.min_fraction == 1.0, name
        if name.startswith("history_") and name != "history_bucket":
            assert (column.value_count.min, column.value_count.max) == (0, 3), name
            assert not column.HasField("shape"), name
        else:
            assert [dim.size for dim in column.shape.dim] == [1], name
    assert (columns["label"].int_domain.min, columns["label"].int_domain.max) == (0, 1)
    assert list(columns["history_bucket"].string_domain.value) == ["0-9", "10-49", "50-199", "200+"]
    compared = [name for name, c in columns.items() if c.HasField("drift_comparator") and c.HasField("skew_comparator")]
    assert compared == ["item_id"]
    assert next(c for c in make_schema(movielens()).feature if c.name == "item_id").int_domain.is_categorical


def test_a_schema_parses_rows_dense_and_histories_ragged_whatever_their_lengths():
    spec = schema_utils.schema_as_feature_spec(make_schema(LAYOUT)).feature_spec

    def example(history):
        integers = {"timestamp": [7], "hour": [3], "label": [0], "history_rating": [4] * history}
        strings = {"user_id": [b"u"], "item_id": [b"i"], "brand": [b"b"], "country": [b"c"], "history_bucket": [b"0-9"]}
        strings |= {"history_item_id": [b"x"] * history, "history_brand": [b"y"] * history}
        integers["history_timestamp"] = [6] * history
        feature = {name: tf.train.Feature(int64_list=tf.train.Int64List(value=v)) for name, v in integers.items()}
        feature |= {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=v)) for name, v in strings.items()}
        feature["price"] = tf.train.Feature(float_list=tf.train.FloatList(value=[0.0]))
        return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

    # All of one length, and none at all: inferred shapes would differ.
    for lengths in ((2, 2, 2), (0, 0, 0), (0, 3, 1)):
        columns = tf.io.parse_example([example(length) for length in lengths], spec)
        for name, column in columns.items():
            if name.startswith("history_") and name != "history_bucket":
                assert isinstance(column, tf.RaggedTensor)
                assert column.row_lengths().numpy().tolist() == list(lengths), name
            else:
                assert isinstance(column, tf.Tensor)
                assert column.shape == (3, 1)


def test_a_file_without_a_schema_is_refused(tmp_path):
    (tmp_path / "schema.pbtxt").write_text("feature: oops")
    with pytest.raises(ValueError, match=r"schema\.pbtxt holds no schema as text proto"):
        read_schema(tmp_path / "schema.pbtxt")


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    directory = tmp_path_factory.mktemp("log")
    random = np.random.default_rng(0)
    lines = ["user_id,item_id,timestamp,brand,price,hour,rating,country"]
    for row in range(300):
        item = random.integers(0, 150)
        lines.append(
            f"u{random.integers(4)},i{item},{1000 + row},{'xyz'[item % 3]},{row}.5,{row % 24},{row % 5 + 1},"
            f"{'NL' if row % 2 else 'BE'}"
        )
    (directory / "log.csv").write_text("\n".join([*lines, "u1,i1,never,x,1,1,1,NL"]) + "\n")
    return directory


def test_a_proposal_is_the_layouts_schema_with_small_domains_of_the_data(log, tmp_path, capsys):
    flags = ["--pattern", "*.csv", "--item_id", "item_id:string", "--item_attribute", "brand:string"]
    flags += ["--behaviour_attribute", "rating", "--user_feature", "--context_feature", "price:float32", "hour"]
    flags += ["--label_column", "rating", "--label_minimum", "4", "--slice_column", "country"]
    command = ["--data", str(log), "--layout", "custom", "--max_history_length", "3", *flags]
    file = tmp_path / "schema.pbtxt"
    assert propose_schema.main([*command, "--file", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "301 rows, 1 malformed; 300 impressions" in printed
    assert f"--schema {file}" in printed

    proposal, expected = read_schema(file), make_schema(LAYOUT)
    for column in expected.feature:
        if column.name in ("brand", "history_brand"):
            column.string_domain.value.extend("xyz")
        elif column.name == "country":
            column.string_domain.value.extend(["BE", "NL"])
        elif column.name in ("hour", "history_rating"):
            column.int_domain.min, column.int_domain.max = (0, 23) if column.name == "hour" else (1, 5)
    assert sorted(map(str, proposal.feature)) == sorted(map(str, expected.feature))

    text = file.read_text()
    assert text.startswith("# A draft made from 300 impressions. Check every column.\n")
    assert re.search(r"# In the data: from 0\.5 to 299\.5\.\nfeature \{\n  name: \"price\"", text)
    assert re.search(r"# In the data: 0 to 3 values, 2\.\d on average; from 1 to 5\.\nfeature \{\n  name: \"hist", text)
    text_format.Parse(text, schema_pb2.Schema())

    # The data that it was made of fits it.
    config = PipelineConfig(data=str(log), layout=LAYOUT, schema="", output="", serving_dir="", min_history=0)
    statistics, _ = impression_statistics(config, str(tmp_path))
    assert not tfdv.validate_statistics(statistics, proposal).anomaly_info

    # Edits are not overwritten.
    assert propose_schema.main([*command, "--file", str(file)]) == 1
    assert f"error: {file} exists, maybe with edits. Choose another --file." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "file", "message"),
    [
        ("nowhere", "schema.pbtxt", "error: `data` must be the directory of the raw log."),
        (".", "missing/schema.pbtxt", "error: There is no directory"),
    ],
)
def test_a_proposal_without_data_or_a_place_for_it_says_so(tmp_path, capsys, data, file, message):
    assert propose_schema.main(["--data", str(tmp_path / data), "--file", str(tmp_path / file)]) == 1
    assert message in capsys.readouterr().err
