"""The exported SavedModel: agreement with the model in Python, checks in the graph, and how it is written."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from keras_eta import ETA, Feature, FeatureLookup, Features, Ranker, export, ops, search
from keras_eta.export import export_model
from tests import reference

MAX_HISTORY = 12
TOP_K = 4
NUM_BITS = 70

FEATURES = Features(
    item_id=Feature("item_id", "string", embedding_dim=8),
    item_attributes=(Feature("category_id", "int64", embedding_dim=4),),
    behaviour_attributes=(Feature("action", "string", embedding_dim=3), Feature("dwell", "float32")),
    user=(Feature("user_id", "int64", embedding_dim=5),),
    context=(Feature("price", "float32"),),
    hashed=("item_id", "category_id"),
    max_history_length=MAX_HISTORY,
)
ITEMS = [f"item {number}" for number in range(40)]
ACTIONS = ["view", "buy"]
ITEM_COLUMNS = ("item_id", "category_id")


def make_requests(rows, candidates, length, seed=0):
    """Raw columns of the `rank` signature, with unseen ids among them."""
    generator = np.random.default_rng(seed)

    def items(*shape):
        return np.array([*ITEMS, "never seen"], object)[generator.integers(0, len(ITEMS) + 1, shape)]

    return {
        "user_id": generator.integers(-2, 12, rows),
        "price": generator.random(rows, np.float32),
        "item_id": items(rows, candidates),
        "category_id": generator.integers(0, 6, (rows, candidates)),
        "history_item_id": items(rows, length),
        "history_category_id": generator.integers(0, 6, (rows, length)),
        "history_action": np.array(ACTIONS, object)[generator.integers(0, 2, (rows, length))],
        "history_dwell": generator.random((rows, length), np.float32),
        "history_length": generator.integers(0, length + 1, rows),
    }


def call(signatures, name, columns):
    outputs = signatures[name](**{key: tf.constant(value) for key, value in columns.items()})
    return {key: value.numpy() for key, value in outputs.items()}


@pytest.fixture(scope="module")
def model():
    tf.keras.utils.set_random_seed(0)
    lookup = FeatureLookup(FEATURES)
    lookup.adapt(
        {
            "item_id": np.array(ITEMS, object),
            "category_id": np.arange(5),
            "action": np.array(ACTIONS, object),
            "user_id": np.arange(10),
        }
    )
    model = ETA(
        lookup=lookup, top_k=TOP_K, num_bits=NUM_BITS, short_history_length=3, similarity_bias=True, hidden_units=(8,)
    )
    model.build()
    for layer in model.embeddings.values():
        layer.embeddings.assign(tf.random.normal(layer.embeddings.shape))
    return model


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    return export_model(model, tmp_path_factory.mktemp("models") / "eta", version=7)


@pytest.fixture(scope="module")
def signatures(path):
    return tf.saved_model.load(str(path)).signatures


def in_python(model, columns):
    raw = {name: tf.constant(value) for name, value in columns.items()}
    return tf.sigmoid(model(model.lookup(raw))).numpy()


def candidate(columns, number):
    return {name: value[:, number] if name in ITEM_COLUMNS else value for name, value in columns.items()}


@pytest.mark.parametrize(
    ("rows", "candidates", "length"),
    [(3, 5, 12), (1, 1, 1), (2, 4, 2), (2, 3, 0), (2, 0, 5), (0, 3, 5), (1, 30, 12), (2, 3, 20)],
)
def test_signatures_agree_with_the_model_in_python(model, signatures, rows, candidates, length):
    columns = make_requests(rows, candidates, length)
    ranked = call(signatures, "rank", columns)["probability"]
    explained = call(signatures, "explain", columns)["probability"]
    assert ranked.shape == (rows, candidates)
    np.testing.assert_allclose(explained, ranked, atol=1e-6)
    for number in range(candidates):
        row = candidate(columns, number)
        pointwise = call(signatures, "serving_default", row)["probability"]
        np.testing.assert_allclose(pointwise, in_python(model, row), atol=1e-6)
        np.testing.assert_allclose(ranked[:, number], pointwise, atol=1e-6)
    assert np.isfinite(ranked).all()
    assert candidates * rows < 2 or np.ptp(ranked) > 1e-3


def test_examples_agree_with_the_pointwise_signature(signatures):
    columns = candidate(make_requests(6, 1, MAX_HISTORY, seed=1), 0)
    serialized = []
    for row in range(6):
        length = columns["history_length"][row]
        example = tf.train.Example()
        for name, values in columns.items():
            if name == "history_length":
                continue
            value = values[row][:length] if name.startswith("history_") else [values[row]]
            feature = example.features.feature[name]
            if name in ("price", "history_dwell"):
                feature.float_list.value.extend(value)
            elif name in ("item_id", "history_item_id", "history_action"):
                feature.bytes_list.value.extend(text.encode() for text in value)
            else:
                feature.int64_list.value.extend(value)
        serialized.append(example.SerializeToString())
    assert min(columns["history_length"]) < max(columns["history_length"])
    parsed = call(signatures, "examples", {"examples": np.array(serialized, object)})["probability"]
    np.testing.assert_allclose(parsed, call(signatures, "serving_default", columns)["probability"], atol=1e-6)


def test_examples_without_a_column_name_it(signatures):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Feature: (category_id|item_id|price|user_id)"):
        call(signatures, "examples", {"examples": np.array([tf.train.Example().SerializeToString()], object)})


def test_examples_with_histories_of_different_lengths_name_the_column(signatures):
    example = tf.train.Example()
    for name in ("user_id", "category_id"):
        example.features.feature[name].int64_list.value.append(1)
    example.features.feature["item_id"].bytes_list.value.append(b"item 1")
    example.features.feature["price"].float_list.value.append(1.0)
    example.features.feature["history_item_id"].bytes_list.value.extend([b"item 1", b"item 2"])
    example.features.feature["history_action"].bytes_list.value.extend([b"buy", b"buy"])
    example.features.feature["history_dwell"].float_list.value.extend([1.0, 2.0])
    example.features.feature["history_category_id"].int64_list.value.extend([1])
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="`history_category_id` must be as long as `history_item_id`"
    ):
        call(signatures, "examples", {"examples": np.array([example.SerializeToString()], object)})


def test_explain_returns_what_the_reference_retrieves(model, signatures):
    columns = make_requests(3, 5, 9, seed=2)
    columns["history_length"][:] = [0, 2, 9]
    explained = call(signatures, "explain", columns)
    codes = {name: model.lookup.encode(name, columns[name]) for name in ITEM_COLUMNS}
    history = {name: model.lookup.encode(name, columns[f"history_{name}"]) for name in ITEM_COLUMNS}
    tables = {}
    for name in ITEM_COLUMNS:
        layer = model.search_unit.embeddings[name]
        tables[name] = reference.simhash(layer.embeddings.numpy(), layer.hash.planes.numpy())
    for row in range(3):
        queries = np.concatenate([tables[name][codes[name][row]] for name in ITEM_COLUMNS], axis=-1)
        keys = np.concatenate([tables[name][history[name][row]] for name in ITEM_COLUMNS], axis=-1)
        length = columns["history_length"][row]
        positions, distances, found = reference.hamming_top_k(queries, keys, TOP_K, np.arange(9) < length)
        np.testing.assert_array_equal(explained["positions"][row], np.where(found, positions, -1))
        np.testing.assert_array_equal(explained["distances"][row], np.where(found, distances, -1))
        np.testing.assert_array_equal(explained["weights"][row] > 0, found)
        np.testing.assert_allclose(explained["weights"][row].sum(axis=-1), min(length, 1), atol=1e-6)


def test_behaviours_beyond_the_length_do_not_count(signatures):
    columns = make_requests(2, 3, 8)
    columns["history_length"][:] = [3, 5]
    changed = {name: value.copy() for name, value in columns.items()}
    changed["history_item_id"][0, 3:] = "item 0"
    changed["history_dwell"][1, 5:] = 99.0
    before, after = (call(signatures, "rank", c)["probability"] for c in (columns, changed))
    np.testing.assert_array_equal(before, after)
    changed["history_length"][:] = 8
    assert not np.allclose(before, call(signatures, "rank", changed)["probability"])


BAD_INPUTS: dict[str, tuple[dict, str, str]] = {
    "wrong rank of a row": ({"user_id": np.zeros((3, 1), int)}, "`user_id` must have shape [R]", "[3 1]"),
    "wrong rank of candidates": ({"item_id": np.array(["a"] * 3)}, "`item_id` must have shape [R, C]", "[3]"),
    "wrong rank of a history": (
        {"history_category_id": np.zeros(12, int)},
        "`history_category_id` must have shape [R, L]",
        "[12]",
    ),
    "wrong rank of lengths": ({"history_length": np.int64(1)}, "`history_length` must have shape [R]", "[]"),
    "unequal rows": ({"price": np.zeros(2, np.float32)}, "`price` must have as many rows as `user_id`", "[2] [3]"),
    "unequal candidates": (
        {"category_id": np.zeros((3, 4), int)},
        "`category_id` must have as many candidates as `item_id`",
        "[3 4] [5]",
    ),
    "unequal histories": (
        {"history_dwell": np.zeros((3, 11), np.float32)},
        "`history_dwell` must have as many behaviours as `history_item_id`",
        "[3 11] [12]",
    ),
    "length above L": ({"history_length": np.array([1, 13, 2])}, "`history_length` must lie between 0 and", "[1 13 2]"),
    "negative length": (
        {"history_length": np.array([1, 2, -1])},
        "`history_length` must lie between 0 and",
        "[1 2 -1]",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
@pytest.mark.parametrize("signature", ["rank", "explain"])
def test_bad_inputs_are_refused_by_the_graph_with_their_names(signatures, signature, case):
    change, message, received = BAD_INPUTS[case]
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        call(signatures, signature, {**make_requests(3, 5, 12), **change})
    assert message in str(caught.value)
    assert received in str(caught.value)


def test_bad_inputs_of_the_pointwise_signature_are_refused(signatures):
    columns = candidate(make_requests(3, 1, 12), 0)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`item_id` must have shape \[N\]"):
        call(signatures, "serving_default", {**columns, "item_id": np.array([["a"]] * 3)})
    with pytest.raises(tf.errors.InvalidArgumentError, match="`history_length` must lie between"):
        call(signatures, "serving_default", {**columns, "history_length": np.array([1, 2, 99])})


def test_exported_table_is_exact(model, path, tmp_path):
    def check(loaded):
        variables = {variable.name: variable.numpy() for variable in loaded.model_variables}
        for name in ITEM_COLUMNS:
            embeddings = variables[f"{name}/embeddings:0"]
            expected = ops.simhash(embeddings, variables[f"{name}/hash/planes:0"]).numpy()
            np.testing.assert_array_equal(variables[f"{name}/fingerprints:0"], expected)
            assert len(np.unique(expected)) > 4

    check(tf.saved_model.load(str(path)))
    # A write to the raw handle goes unseen; the export repairs what it left.
    layer = model.search_unit.embeddings["item_id"]
    tf.raw_ops.AssignAddVariableOp(
        resource=layer.embeddings.handle, value=tf.random.normal(layer.embeddings.shape, seed=1)
    )
    stale = layer.fingerprints_table.numpy()
    check(tf.saved_model.load(str(export_model(model, tmp_path, warmup=False))))
    assert (stale != layer.fingerprints_table.numpy()).any()


def ops_of(path):
    """Names of all operations of a SavedModel, those in functions included."""
    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((path / "saved_model.pb").read_bytes())
    names: set[str] = set()
    for meta_graph in proto.meta_graphs:
        names.update(node.op for node in meta_graph.graph_def.node)
        for function in meta_graph.graph_def.library.function:
            names.update(node.op for node in function.node_def)
    return names


def foreign(names):
    """Those that TensorFlow's own core does not register (`tf.raw_ops` was generated from it)."""
    return {name for name in names if not hasattr(tf.raw_ops, name)}


def test_only_stock_operations_are_exported(path):
    names = ops_of(path)
    assert {"PopulationCount", "BitwiseXor", "TopKV2"} <= names
    assert foreign(names) == set()
    assert foreign(names | {"ScannTopK"}) == {"ScannTopK"}


@pytest.mark.slow
def test_a_process_without_keras_eta_serves_the_export(path, signatures):
    columns = make_requests(2, 3, 4)
    program = """
        import json, sys
        import tensorflow as tf
        columns = json.loads(sys.stdin.read())
        signature = tf.saved_model.load(sys.argv[1]).signatures["rank"]
        specs = signature.structured_input_signature[1]
        outputs = signature(**{name: tf.constant(value, specs[name].dtype) for name, value in columns.items()})
        assert "keras_eta" not in sys.modules
        print(json.dumps(outputs["probability"].numpy().tolist()))
    """
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(path)],
        input=json.dumps({name: value.tolist() for name, value in columns.items()}),
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(finished.stdout.splitlines()[-1])
    np.testing.assert_allclose(answer, call(signatures, "rank", columns)["probability"], atol=1e-6)


def test_warmup_requests_cover_every_signature_and_replay(path, signatures):
    records = tf.data.TFRecordDataset(str(path / "assets.extra" / "tf_serving_warmup_requests"))
    logs = [prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in records]
    requests = {log.predict_log.request.model_spec.signature_name: log.predict_log.request for log in logs}
    assert sorted(requests) == sorted(signatures)
    for name, request in requests.items():
        assert request.model_spec.name == "eta"
        outputs = call(signatures, name, {key: tf.make_ndarray(value) for key, value in request.inputs.items()})
        assert np.isfinite(outputs["probability"]).all()
    assert tf.make_ndarray(requests["rank"].inputs["item_id"]).shape == (1, export.WARMUP_CANDIDATES)
    assert tf.make_ndarray(requests["rank"].inputs["history_length"]).tolist() == [MAX_HISTORY]


def test_features_travel_with_the_export(model, path):
    description = json.loads((path / "assets.extra" / "features.json").read_text())
    assert Features.from_dict(description) == model.features


def test_versions_count_up_and_never_overwrite(model, path, tmp_path):
    assert path.name == "7"
    (tmp_path / "3").mkdir()
    (tmp_path / "not a version").mkdir()
    assert export_model(model, tmp_path, warmup=False) == tmp_path / "4"
    with pytest.raises(FileExistsError, match="Version 4 exists"):
        export_model(model, tmp_path, version=4)
    with pytest.raises(ValueError, match=r"`version` must be a positive integer. Received: version=0"):
        export_model(model, tmp_path, version=0)
    with pytest.raises(TypeError, match="`model` must be a keras_eta Ranker"):
        export_model(tf.keras.Sequential(), tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["3", "4", "not a version"]


def test_a_failed_export_leaves_nothing(model, tmp_path, monkeypatch):
    def fail(path, *_):
        assert list(tmp_path.iterdir()) == [path.parents[1]]
        assert path.parents[1].name.startswith(".")
        raise OSError("No space left on device")

    monkeypatch.setattr(export, "_write_warmup_requests", fail)
    with pytest.raises(OSError, match="No space left on device"):
        export_model(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_export_without_serving_stubs_says_what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.raises(ImportError, match=r"pip install 'keras-eta\[serving\]', or export with warmup=False"):
        export_model(model, tmp_path)
    assert list(tmp_path.iterdir()) == []
    export_model(model, tmp_path, warmup=False)
    assert not (tmp_path / "1" / "assets.extra" / "tf_serving_warmup_requests").exists()


@pytest.mark.parametrize("search_unit", [None, search.FullSearch(), search.InnerProductSearch(3)])
def test_rankers_without_fingerprints_export_no_explain(tmp_path, search_unit):
    features = Features(item_id=Feature("item_id", embedding_dim=4, vocabulary_size=20), max_history_length=6)
    ranker = Ranker(features, search_unit=search_unit, short_history_length=2, hidden_units=(4,))
    signatures = tf.saved_model.load(str(export_model(ranker, tmp_path, warmup=False))).signatures
    assert sorted(signatures) == ["examples", "rank", "serving_default"]
    columns = {
        "item_id": np.array([[1, 5, 20], [2, 3, 4]]),
        "history_item_id": np.arange(2, 14).reshape(2, 6),
        "history_length": np.array([6, 1]),
    }
    expected = tf.sigmoid(ranker.score({name: tf.constant(value) for name, value in columns.items()}).logits)
    np.testing.assert_allclose(call(signatures, "rank", columns)["probability"], expected, atol=1e-6)


def test_indices_out_of_range_count_as_out_of_vocabulary(tmp_path):
    features = Features(item_id=Feature("item_id", embedding_dim=4, vocabulary_size=20), max_history_length=6)
    signatures = tf.saved_model.load(str(export_model(ETA(features, top_k=2), tmp_path, warmup=False))).signatures

    def probability(item, behaviour):
        columns = {
            "item_id": np.array([[item]]),
            "history_item_id": np.array([[behaviour, 3]]),
            "history_length": np.array([2]),
        }
        return call(signatures, "rank", columns)["probability"][0, 0]

    unknown = probability(1, 1)
    assert probability(21, 21) != unknown
    for index in (-1, 0, 22, 2**40):
        assert probability(index, index) == unknown
