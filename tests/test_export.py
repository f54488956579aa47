"""The exported SavedModel: agreement with the model in Python, checks in the graph, and how it is written."""

import collections
import dataclasses
import importlib
import json
import pathlib
import subprocess
import sys
import textwrap
import threading
import types
from concurrent import futures
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from keras_eta import Age, Feature, FeatureLookup, Features, Ranker, ops
from keras_eta.export import export_model
from keras_eta.export.signatures import WARMUP_CANDIDATES
from keras_eta.interest import FullInterest, InnerProductInterest, MatchInterest, PoolingInterest, RecentInterest
from keras_eta.ops import _counting
from tests import reference
from tests.paper import paper_eta

MAX_HISTORY = 12
TOP_K = 4
NUM_BITS = 70

FEATURES = Features(
    item_id=Feature("item_id", "string", embedding_dim=8),
    item_attributes=(Feature("category_id", "int64", embedding_dim=4),),
    behaviour_attributes=(Feature("action", "string", embedding_dim=3), Feature("dwell", "float32", mean=0.0, std=1.0)),
    user=(Feature("user_id", "int64", embedding_dim=5),),
    context=(Feature("price", "float32", mean=0.0, std=1.0),),
    hashed=("item_id", "category_id"),
    max_history_length=MAX_HISTORY,
)
ITEMS = [f"item {number}" for number in range(40)]
ACTIONS = ["view", "buy"]
ITEM_COLUMNS = ("item_id", "category_id")
# The function of the same name hides the module.
SEARCH = importlib.import_module("keras_eta.ops.hamming_top_k")


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
    model = paper_eta(
        lookup=lookup, top_k=TOP_K, num_bits=NUM_BITS, short_history_length=3, similarity_bias=True, hidden_units=(8,)
    )
    model.build()
    for layer in model.embeddings.values():
        layer.embeddings.assign(tf.random.normal(layer.embeddings.shape))
    return model


@pytest.fixture(scope="module")
def small_model():
    """What is quickly exported, where it does not matter what."""
    features = Features(item_id=Feature("item_id", vocabulary_size=5, embedding_dim=2), max_history_length=2)
    return Ranker(features, interests=[RecentInterest(2)], hidden_units=(2,))


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
        layer = model.embeddings[name]
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


NOT_FINITE: dict[str, tuple[dict, str, str]] = {
    "NaN in a row": ({"price": np.array([1, np.nan, 2], np.float32)}, "`price` must be finite", "[nan]"),
    "inf in a row": ({"price": np.array([1, 2, np.inf], np.float32)}, "`price` must be finite", "[inf]"),
    "last behaviour that counts": (
        {"history_dwell": np.array([[0, 0, -np.inf], [0, 0, 0], [0, 0, 0]], np.float32)},
        "`history_dwell` must be finite",
        "[-inf]",
    ),
}


@pytest.mark.parametrize("case", NOT_FINITE)
@pytest.mark.parametrize("signature", ["rank", "explain", "serving_default", "examples"])
def test_floats_that_are_not_finite_are_refused_with_their_names(signatures, signature, case):
    change, message, received = NOT_FINITE[case]
    columns = {**make_requests(3, 1, 3), "history_length": np.array([3, 0, 3]), **change}
    if signature in ("serving_default", "examples"):
        columns = candidate(columns, 0)
    if signature == "examples":
        columns = {"examples": np.array([example_of(columns, row).SerializeToString() for row in range(3)], object)}
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        call(signatures, signature, columns)
    assert message in str(caught.value)
    assert received in str(caught.value)


def test_candidates_that_are_not_finite_are_refused(tmp_path):
    features = Features(
        item_id=Feature("item_id", embedding_dim=4, vocabulary_size=20),
        item_attributes=(Feature("price", "float32", mean=0.0, std=1.0),),
        max_history_length=3,
    )
    signatures = tf.saved_model.load(str(export_model(paper_eta(features, top_k=2), tmp_path, warmup=False))).signatures
    columns = {
        "item_id": np.array([[1, 2]]),
        "price": np.array([[1.0, np.nan]], np.float32),
        "history_item_id": np.array([[3]]),
        "history_price": np.ones((1, 1), np.float32),
        "history_length": np.array([1]),
    }
    with pytest.raises(tf.errors.InvalidArgumentError, match="`price` must be finite"):
        call(signatures, "rank", columns)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("length", [0, 2])
def test_floats_behind_a_history_are_not_read(signatures, value, length):
    columns = make_requests(2, 3, 8)
    columns["history_length"][:] = length
    padded = {**columns, "history_dwell": columns["history_dwell"].copy()}
    padded["history_dwell"][:, length:] = value
    for name in ("rank", "explain"):
        expected = call(signatures, name, columns)
        for key, values in call(signatures, name, padded).items():
            np.testing.assert_array_equal(values, expected[key])


@pytest.mark.parametrize("unit", [RecentInterest, FullInterest, lambda: InnerProductInterest(2)])
def test_floats_behind_a_history_are_not_read_without_a_lookup(tmp_path, unit):
    features = Features(
        item_id=Feature("item_id", embedding_dim=4, vocabulary_size=20),
        behaviour_attributes=(Feature("dwell", "float32", mean=0.0, std=1.0),),
        max_history_length=6,
    )
    ranker = Ranker(features, interests=[unit()], hidden_units=(4,))
    signatures = tf.saved_model.load(str(export_model(ranker, tmp_path, warmup=False))).signatures

    def probability(*behind):
        columns = {
            "item_id": np.array([[2, 3]]),
            "history_item_id": np.array([[4, 5, 6]]),
            "history_dwell": np.array([[0.5, *behind]], np.float32),
            "history_length": np.array([1]),
        }
        return call(signatures, "rank", columns)["probability"]

    np.testing.assert_array_equal(probability(np.nan, np.inf), probability(0, 0))


def test_exports_of_one_model_at_once(small_model, tmp_path):
    """Keras traces a model in one thread at a time."""
    with futures.ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(lambda _: export_model(small_model, tmp_path, warmup=False), range(3)))
    assert sorted(path.name for path in paths) == ["1", "2", "3"]


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
            embeddings = variables[f"embeddings/{name}/embeddings:0"]
            expected = ops.simhash(embeddings, variables[f"embeddings/{name}/hash/planes:0"]).numpy()
            np.testing.assert_array_equal(variables[f"embeddings/{name}/fingerprints:0"], expected)
            assert len(np.unique(expected)) > 4

    check(tf.saved_model.load(str(path)))
    # A write to the raw handle goes unseen; the export repairs what it left.
    layer = model.embeddings["item_id"]
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
    assert tf.make_ndarray(requests["rank"].inputs["item_id"]).shape == (1, WARMUP_CANDIDATES)
    assert tf.make_ndarray(requests["rank"].inputs["history_length"]).tolist() == [MAX_HISTORY]


@pytest.fixture(scope="module")
def long_model():
    tf.keras.utils.set_random_seed(0)
    features = Features(item_id=Feature("item_id", vocabulary_size=50, embedding_dim=8), max_history_length=600)
    model = paper_eta(features, top_k=TOP_K, num_bits=16, short_history_length=3, hidden_units=(8,))
    model.build()
    model.embeddings["item_id"].embeddings.assign(tf.random.normal([52, 8]))
    return model


@pytest.fixture(scope="module")
def compiled_path(long_model, tmp_path_factory):
    return export_model(long_model, tmp_path_factory.mktemp("compiled") / "eta", jit_compile=True)


@pytest.fixture(scope="module")
def compiled(compiled_path):
    return tf.saved_model.load(str(compiled_path)).signatures


@pytest.fixture(scope="module")
def not_compiled(long_model, tmp_path_factory):
    path = export_model(long_model, tmp_path_factory.mktemp("not compiled") / "eta", warmup=False)
    return tf.saved_model.load(str(path)).signatures


@pytest.mark.parametrize(("rows", "candidates", "length"), [(1, 400, 600), (2, 300, 300), (2, 5, 20), (1, 400, 700)])
def test_compiled_export_answers_as_one_that_is_not(compiled, not_compiled, rows, candidates, length):
    """(1, 400, 600) and (2, 300, 300) are counted by XLA, (2, 5, 20) sorted."""
    generator = np.random.default_rng(0)
    columns = {
        "item_id": generator.integers(2, 52, (rows, candidates)),
        "history_item_id": generator.integers(2, 52, (rows, length)),
        "history_length": generator.integers(length // 2, length + 1, rows),
    }
    expected, answer = call(not_compiled, "explain", columns), call(compiled, "explain", columns)
    for name in ("positions", "distances"):
        np.testing.assert_array_equal(answer[name], expected[name])
    np.testing.assert_allclose(answer["weights"], expected["weights"], atol=1e-6)
    for name in ("rank", "explain"):
        np.testing.assert_allclose(call(compiled, name, columns)["probability"], expected["probability"], atol=1e-6)


def test_only_a_compiled_export_holds_functions_for_xla(path, compiled_path):
    def must_compile(folder):
        functions = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        library = functions.meta_graphs[0].graph_def.library.function
        return [function for function in library if function.attr["_XlaMustCompile"].b]

    assert not must_compile(path)
    assert must_compile(compiled_path)


def test_warmup_requests_cover_every_shape_that_is_compiled(compiled_path):
    records = tf.data.TFRecordDataset(str(compiled_path / "assets.extra" / "tf_serving_warmup_requests"))
    shapes = collections.defaultdict(list)
    for record in records:
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        if request.model_spec.signature_name in ("rank", "explain"):
            sizes = [tf.make_ndarray(request.inputs[name]).shape[1] for name in ("item_id", "history_item_id")]
            assert bool(SEARCH._counting_pays(*map(tf.constant, sizes)))
            shapes[request.model_spec.signature_name].append(int(_counting.history_bucket(tf.constant(sizes[1]))))
    live = {int(_counting.history_bucket(tf.constant(length))) for length in range(1, 601)}
    assert shapes == {"rank": sorted(live), "explain": sorted(live)}


def test_features_travel_with_the_export(model, path):
    description = json.loads((path / "assets.extra" / "features.json").read_text())
    assert Features.from_dict(description) == model.features


def test_versions_count_up_and_never_overwrite(small_model, path, tmp_path):
    assert path.name == "7"
    (tmp_path / "3").mkdir()
    (tmp_path / "not a version").mkdir()
    assert export_model(small_model, tmp_path, warmup=False) == tmp_path / "4"
    with pytest.raises(FileExistsError, match="Version 4 exists"):
        export_model(small_model, tmp_path, version=4)
    with pytest.raises(ValueError, match=r"`version` must be a positive integer. Received: version=0"):
        export_model(small_model, tmp_path, version=0)
    with pytest.raises(TypeError, match="`model` must be a keras_eta Ranker"):
        export_model(tf.keras.Sequential(), tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["3", "4", "not a version"]


def test_names_that_a_server_takes_for_no_version_do_not_count(small_model, tmp_path):
    for name in ("1" + "0" * 21, str(2**63), "\u0663", "-5", "0x9", "5.0", ".12"):
        (tmp_path / name).mkdir()
    assert export_model(small_model, tmp_path, warmup=False) == tmp_path / "1"
    (tmp_path / "007").mkdir()
    with pytest.raises(FileExistsError, match="Version 7 exists"):
        export_model(small_model, tmp_path, version=7)
    (tmp_path / str(2**63 - 1)).mkdir()
    with pytest.raises(
        ValueError, match=r"`version` must be at most 2\*\*63 - 1. Received: version=9223372036854775808"
    ):
        export_model(small_model, tmp_path, warmup=False)
    with pytest.raises(ValueError, match=r"`version` must be at most 2\*\*63 - 1. Received: version=1000000"):
        export_model(small_model, tmp_path, version=10**30)


def together(monkeypatch, count):
    """From now on exports write next to nothing, and all of `count` are written before one takes its place."""
    barrier = threading.Barrier(count)

    def save(_, path, **__):
        (pathlib.Path(path) / "variables").mkdir(parents=True)
        barrier.wait(timeout=60)

    stub = types.SimpleNamespace(functions={}, arguments={})
    monkeypatch.setattr("keras_eta.export.export.Signatures", lambda *_: stub)
    monkeypatch.setattr(tf.saved_model, "save", save)


def test_exports_at_once_take_the_next_free_versions(model, tmp_path, monkeypatch):
    (tmp_path / "3").mkdir()
    together(monkeypatch, 8)
    with futures.ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: export_model(model, tmp_path, warmup=False), range(8)))
    assert sorted(int(path.name) for path in paths) == list(range(4, 12))
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(3, 12))
    assert all((path / "variables").is_dir() and (path / "assets.extra").is_dir() for path in paths)


def test_exports_of_one_version_at_once_leave_the_first(model, tmp_path, monkeypatch):
    together(monkeypatch, 4)

    def attempt(_):
        try:
            return export_model(model, tmp_path, version=5, warmup=False)
        except FileExistsError as error:
            return str(error)

    with futures.ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(attempt, range(4)))
    assert outcomes.count(tmp_path / "5") == 1
    refusal = f"Version 5 exists: {tmp_path / '5'}. Choose another `version`, or None for the next."
    assert outcomes.count(refusal) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["5"]


def test_a_failed_export_leaves_nothing(small_model, tmp_path, monkeypatch):
    def fail(path, *_):
        assert list(tmp_path.iterdir()) == [path.parents[1]]
        assert path.parents[1].name.startswith(".")
        raise OSError("No space left on device")

    monkeypatch.setattr("keras_eta.export.versions.write_warmup_requests", fail)
    with pytest.raises(OSError, match="No space left on device"):
        export_model(small_model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_export_without_serving_stubs_says_what_to_install(small_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.raises(ImportError, match=r"pip install 'keras-eta\[serving\]', or export with warmup=False"):
        export_model(small_model, tmp_path)
    assert list(tmp_path.iterdir()) == []
    export_model(small_model, tmp_path, warmup=False)
    assert not (tmp_path / "1" / "assets.extra" / "tf_serving_warmup_requests").exists()


@pytest.mark.parametrize(
    ("units", "outputs"),
    [
        ([PoolingInterest], None),
        ([RecentInterest], {"positions", "weights"}),
        ([lambda: RecentInterest(2), FullInterest], {"recent_interest_positions", "recent_interest_weights"}),
        ([lambda: InnerProductInterest(3), MatchInterest], {"inner_products", "match_item_id_count"}),
        ([lambda: InnerProductInterest(3, normalize=True), PoolingInterest], {"positions", "cosines", "weights"}),
    ],
)
def test_explain_has_the_outputs_of_the_units_that_attend(tmp_path, units, outputs):
    features = Features(item_id=Feature("item_id", embedding_dim=4, vocabulary_size=20), max_history_length=6)
    ranker = Ranker(features, interests=[unit() for unit in units], hidden_units=(4,))
    signatures = tf.saved_model.load(str(export_model(ranker, tmp_path, warmup=False))).signatures
    expected_signatures = {"examples", "rank", "serving_default"} | ({"explain"} if outputs else set())
    if PoolingInterest in units:
        expected_signatures |= {"user_state", "rank_from_state"}
    assert set(signatures) == expected_signatures
    columns = {
        "item_id": np.array([[1, 5, 20], [2, 3, 4]]),
        "history_item_id": np.arange(2, 14).reshape(2, 6),
        "history_length": np.array([6, 1]),
    }
    scores = ranker.score({name: tf.constant(value) for name, value in columns.items()})
    expected = tf.sigmoid(scores.logits)
    np.testing.assert_allclose(call(signatures, "rank", columns)["probability"], expected, atol=1e-6)
    if outputs is None:
        return
    explained = call(signatures, "explain", columns)
    assert outputs <= set(explained)
    if "match_item_id_count" in outputs:
        # Index 1 is out of the vocabulary; of the second row one behaviour counts, 8.
        np.testing.assert_array_equal(explained["match_item_id_count"], [[0, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(explained["probability"], expected, atol=1e-6)
    for row, length in enumerate(columns["history_length"]):
        for c in range(3):
            positions, weights = explained["positions"][row, c], explained["weights"][row, c]
            found = positions >= 0
            assert found.sum() == min(length, len(positions))
            assert len(set(positions[found])) == found.sum()
            np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-5)
            assert not weights[~found].any()
            for name in {"inner_products", "cosines"} & outputs:
                values = explained[name][row, c][found]
                assert (np.diff(values) <= 0).all()
                vectors = [ranker.embeddings["item_id"].embeddings.numpy()[i] for i in columns["history_item_id"][row]]
                query = ranker.embeddings["item_id"].embeddings.numpy()[columns["item_id"][row, c]]
                scale = [np.linalg.norm(query) * np.linalg.norm(v) if name == "cosines" else 1.0 for v in vectors]
                products = [float(query @ vectors[i]) / scale[i] for i in positions[found]]
                np.testing.assert_allclose(values, products, rtol=1e-4, atol=1e-6)


def test_indices_out_of_range_count_as_out_of_vocabulary(tmp_path):
    features = Features(item_id=Feature("item_id", embedding_dim=4, vocabulary_size=20), max_history_length=6)
    signatures = tf.saved_model.load(str(export_model(paper_eta(features, top_k=2), tmp_path, warmup=False))).signatures

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


# Ages

NOW = 1_700_000_000
# A user may have an `age` too.
AGED = dataclasses.replace(
    FEATURES,
    user=(Feature("user_id", embedding_dim=5), Feature("age", embedding_dim=2)),
    age=Age((60, 3_600, 86_400), embedding_dim=3),
)
AGED_INDICES = Features(
    item_id=Feature("item_id", embedding_dim=8, vocabulary_size=40),
    item_attributes=(Feature("category_id", embedding_dim=4, vocabulary_size=5),),
    user=(Feature("age", embedding_dim=2, vocabulary_size=9),),
    age=AGED.age,
    max_history_length=MAX_HISTORY,
)


@pytest.fixture(scope="module", params=["raw ids", "indices"])
def aged(request, tmp_path_factory):
    """A model with ages, with a lookup or without one; its export; and a function that makes requests."""
    tf.keras.utils.set_random_seed(1)
    arguments: dict[str, Any] = {"top_k": TOP_K, "num_bits": NUM_BITS, "short_history_length": 3, "hidden_units": (8,)}
    if request.param == "raw ids":
        lookup = FeatureLookup(AGED)
        ids = {"item_id": np.array(ITEMS, object), "category_id": np.arange(5), "action": np.array(ACTIONS, object)}
        lookup.adapt({**ids, "user_id": np.arange(10), "age": np.arange(20, 30)})
        model = paper_eta(lookup=lookup, **arguments)
    else:
        model = paper_eta(AGED_INDICES, **arguments)
    model.build()
    for layer in model.embeddings.values():
        layer.embeddings.assign(tf.random.normal(layer.embeddings.shape))

    def make(rows, candidates, length, seed=0):
        generator = np.random.default_rng(seed)
        columns = make_requests(rows, candidates, length, seed)
        if model.lookup is None:
            columns["item_id"] = generator.integers(1, 42, (rows, candidates))
            columns["history_item_id"] = generator.integers(1, 42, (rows, length))
            for name in ("category_id", "history_category_id"):
                columns[name] += 1
        columns["age"] = generator.integers(20, 35, rows)
        columns["timestamp"] = NOW + generator.integers(0, 1_000_000, rows)
        # Every side of every boundary, and one behaviour after the impression.
        ages = generator.choice([-5, 0, 59, 60, 3_599, 3_600, 86_399, 86_400, 10**8], (rows, length))
        columns["history_timestamp"] = columns["timestamp"][:, np.newaxis] - ages
        names = (*model.features.row_names, *model.features.history_names, "history_length")
        return {name: columns[name] for name in names}

    path = export_model(model, tmp_path_factory.mktemp("aged"))
    return model, path, tf.saved_model.load(str(path)).signatures, make


def encoded_by_hand(model, columns):
    """What the model reads; ages by the reference."""
    if model.lookup is None:
        inputs = {name: tf.constant(np.where(value < 42, value, 1), tf.int32) for name, value in columns.items()}
        inputs["age"] = tf.constant(np.where(columns["age"] < model.features.user[0].num_indices, columns["age"], 1))
    else:
        inputs = dict(model.lookup({name: tf.constant(value) for name, value in columns.items()}))
    moments = columns["history_timestamp"]
    ages = np.zeros(moments.shape, np.int32)
    for row, column in np.ndindex(moments.shape):
        if column < columns["history_length"][row]:
            ages[row, column] = reference.age_bucket(
                columns["timestamp"][row], moments[row, column], model.features.age.boundaries
            )
    return {**inputs, "history_age": tf.constant(ages)}


def example_of(columns, row):
    """One row of the pointwise signature as a tf.Example."""
    example = tf.train.Example()
    for name, values in columns.items():
        if name == "history_length":
            continue
        value = values[row][: columns["history_length"][row]] if name.startswith("history_") else [values[row]]
        feature = example.features.feature[name]
        if values.dtype == object:
            feature.bytes_list.value.extend(text.encode() for text in value)
        elif values.dtype.kind == "f":
            feature.float_list.value.extend(value)
        else:
            feature.int64_list.value.extend(value)
    return example


@pytest.mark.parametrize(("rows", "candidates", "length"), [(4, 5, 12), (1, 1, 1), (2, 3, 0), (2, 3, 20)])
def test_signatures_with_ages_agree_with_the_model_in_python(aged, rows, candidates, length):
    model, _, signatures, make = aged
    columns = make(rows, candidates, length)
    encoded = encoded_by_hand(model, columns)
    expected = tf.sigmoid(model.score(encoded).logits)
    ranked = call(signatures, "rank", columns)["probability"]
    np.testing.assert_allclose(ranked, expected, atol=1e-6)
    explained = call(signatures, "explain", columns)
    np.testing.assert_allclose(explained["probability"], expected, atol=1e-6)
    assert explained["positions"].shape == (rows, candidates, TOP_K)
    for number in range(candidates):
        row = candidate(columns, number)
        items = {name: encoded[name][:, number] for name in ITEM_COLUMNS}
        pointwise = call(signatures, "serving_default", row)["probability"]
        np.testing.assert_allclose(pointwise, tf.sigmoid(model({**encoded, **items})), atol=1e-6)
        np.testing.assert_allclose(pointwise, ranked[:, number], atol=1e-6)
        serialized = [example_of(row, index).SerializeToString() for index in range(rows)]
        parsed = call(signatures, "examples", {"examples": np.array(serialized, object)})["probability"]
        np.testing.assert_allclose(parsed, pointwise, atol=1e-6)


def test_only_ages_of_real_behaviours_count(aged):
    _, _, signatures, make = aged
    columns = make(3, 4, 8)
    columns["history_length"][:] = [1, 5, 8]
    before = call(signatures, "rank", columns)["probability"]
    moved = {name: columns[name] + 10**9 for name in ("timestamp", "history_timestamp")}
    np.testing.assert_array_equal(call(signatures, "rank", {**columns, **moved})["probability"], before)
    padding = {"history_timestamp": np.where(np.arange(8) < [[1], [5], [8]], columns["history_timestamp"], 7)}
    np.testing.assert_array_equal(call(signatures, "rank", {**columns, **padding})["probability"], before)
    later = call(signatures, "rank", {**columns, "timestamp": columns["timestamp"] + 10**9})["probability"]
    assert (later != before).all()


AGED_BAD_INPUTS: dict[str, tuple[dict, str, str]] = {
    "wrong rank of timestamps": ({"timestamp": np.zeros((3, 1), int)}, "`timestamp` must have shape [R]", "[3 1]"),
    "unequal rows": ({"timestamp": np.zeros(2, int)}, "`timestamp` must have as many rows as", "[2] [3]"),
    "wrong rank of a history": (
        {"history_timestamp": np.zeros(12, int)},
        "`history_timestamp` must have shape [R, L]",
        "[12]",
    ),
    "unequal histories": (
        {"history_timestamp": np.zeros((3, 11), int)},
        "`history_timestamp` must have as many behaviours as `history_item_id`",
        "[3 11] [12]",
    ),
}


@pytest.mark.parametrize("case", AGED_BAD_INPUTS)
@pytest.mark.parametrize("signature", ["rank", "explain"])
def test_bad_timestamps_are_refused_by_the_graph_with_their_names(aged, signature, case):
    _, _, signatures, make = aged
    change, message, received = AGED_BAD_INPUTS[case]
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        call(signatures, signature, {**make(3, 5, 12), **change})
    assert message in str(caught.value)
    assert received in str(caught.value)


def test_examples_with_bad_timestamps_name_them(aged):
    _, _, signatures, make = aged
    columns = candidate(make(1, 1, 3), 0)
    columns["history_length"][:] = 3

    def parsed(change):
        example = example_of(columns, 0)
        change(example.features.feature)
        return call(signatures, "examples", {"examples": np.array([example.SerializeToString()], object)})

    assert parsed(lambda _: None)["probability"].shape == (1,)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Feature: timestamp"):
        parsed(lambda feature: feature.pop("timestamp"))
    for change in (lambda f: f["history_timestamp"].int64_list.value.pop(), lambda f: f.pop("history_timestamp")):
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="`history_timestamp` must be as long as `history_item_id`"
        ):
            parsed(change)


def test_export_with_ages_describes_itself_and_warms_up(aged):
    model, path, signatures, _ = aged
    description = json.loads((path / "assets.extra" / "features.json").read_text())
    assert Features.from_dict(description) == model.features
    assert Features.from_dict(description).age == AGED.age
    assert foreign(ops_of(path)) == set()
    for name in ("serving_default", "rank", "explain"):
        inputs = signatures[name].structured_input_signature[1]
        assert "history_age" not in inputs
        assert (inputs["timestamp"].dtype, inputs["history_timestamp"].dtype) == (tf.int64, tf.int64)
        assert (inputs["timestamp"].shape.rank, inputs["history_timestamp"].shape.rank) == (1, 2)
    records = tf.data.TFRecordDataset(str(path / "assets.extra" / "tf_serving_warmup_requests"))
    requests = [prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request for record in records]
    assert sorted(request.model_spec.signature_name for request in requests) == sorted(signatures)
    for request in requests:
        inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        assert np.isfinite(call(signatures, request.model_spec.signature_name, inputs)["probability"]).all()


def test_a_context_called_length_is_not_taken_for_that_of_the_history(tmp_path):
    features = Features(
        item_id=Feature("item_id", embedding_dim=4, vocabulary_size=20),
        context=(Feature("length", embedding_dim=2, vocabulary_size=3),),
        max_history_length=6,
    )
    model = paper_eta(features, top_k=6)
    signatures = tf.saved_model.load(str(export_model(model, tmp_path, warmup=False))).signatures
    columns = {
        "length": np.array([4]),
        "item_id": np.array([[1, 5]]),
        "history_item_id": np.arange(2, 8).reshape(1, 6),
        "history_length": np.array([6]),
    }
    expected = tf.sigmoid(model.score({name: tf.constant(value) for name, value in columns.items()}).logits)
    np.testing.assert_allclose(call(signatures, "rank", columns)["probability"], expected, atol=1e-6)
