"""The export of a retriever: its signatures against the model in Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from keras_eta import TIGER, Feature, SemanticIds
from keras_eta.contract import Contract
from keras_eta.export import export_retriever
from keras_eta.export.examples import make_example

L, C = 3, 6
NUMBERS, NAMES = np.arange(50, 70), np.array([b"item \xff%d" % number for number in range(20)], object)


def _model(item_ids: np.ndarray, **arguments: Any) -> TIGER:
    codes = np.random.default_rng(1).integers(0, 3, (len(item_ids), 2))
    ids = SemanticIds.from_codes(item_ids, codes, (3, 3), max_collisions=8)
    tf.keras.utils.set_random_seed(2)
    sizes: dict[str, Any] = {
        "max_history_length": L,
        "dim": 8,
        "num_heads": 2,
        "feed_forward_units": 8,
        "num_layers": 1,
    }
    return TIGER(ids, **sizes, **arguments)


def _inputs(item_ids: np.ndarray) -> dict[str, Any]:
    """A history longer than is read, one with an unknown item and one that is empty; 0, 2 and 1 items excluded."""
    unknown = b"no item" if item_ids.dtype == object else 7
    history = [[*item_ids[[3, 1, 4, 2]]], [item_ids[5], unknown, item_ids[0], unknown], [item_ids[9]] * 4]
    excluded = [[item_ids[9]] * 2, [item_ids[8], item_ids[2]], [unknown, item_ids[1]]]
    return {
        "history_item_id": np.array(history, item_ids.dtype),
        "history_length": np.array([4, 3, 0]),
        "excluded_item_id": np.array(excluded, item_ids.dtype),
        "excluded_length": np.array([0, 2, 1]),
    }


@pytest.fixture(scope="module", params=["int64", "string"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TIGER, Path, Any]:
    item_ids = NUMBERS if request.param == "int64" else NAMES
    model = _model(item_ids)
    path = export_retriever(model, tmp_path_factory.mktemp("tiger"), num_results=C, num_beams=20)
    return model, path, item_ids


def test_signatures_agree_with_the_model_in_python(exported: tuple[TIGER, Path, Any]) -> None:
    model, path, item_ids = exported
    assert path.name == "1"
    signatures = tf.saved_model.load(str(path)).signatures
    inputs = _inputs(item_ids)
    found = signatures["retrieve"](**{name: tf.constant(values) for name, values in inputs.items()})
    rows = {
        "history_item_id": tf.constant(model.lookup.encode("item_id", inputs["history_item_id"])),
        "history_length": tf.constant(inputs["history_length"]),
    }
    excluded = [[0, 0], [10, 4], [0, 0]]
    expected = model.retrieve(rows, C, 20, tf.constant(excluded))
    np.testing.assert_array_equal(found["item_id"], item_ids[expected.rows.numpy() - 2])
    np.testing.assert_allclose(found["log_probability"], expected.log_probability, rtol=1e-5)
    assert not np.isin(found["item_id"][1], item_ids[[8, 2]]).any()

    lists = [
        {
            name: inputs[name][row, : inputs[name.replace("item_id", "length")][row]]
            for name in ("history_item_id", "excluded_item_id")
        }
        for row in range(3)
    ]
    examples = tf.constant([make_example(columns).SerializeToString() for columns in lists])
    of_examples = signatures["examples"](examples=examples)
    for name, values in found.items():
        np.testing.assert_array_equal(of_examples[name], values)


def test_a_compiled_export_answers_as_one_that_is_not(tmp_path: Path) -> None:
    model = _model(NAMES)
    paths = [
        export_retriever(model, tmp_path / str(xla), num_results=C, num_beams=20, warmup=False, jit_compile=xla)
        for xla in (False, True)
    ]
    inputs = {name: tf.constant(values) for name, values in _inputs(NAMES).items()}
    expected, found = (tf.saved_model.load(str(path)).signatures["retrieve"](**inputs) for path in paths)
    np.testing.assert_array_equal(found["item_id"], expected["item_id"])
    np.testing.assert_allclose(found["log_probability"], expected["log_probability"], rtol=1e-5)


def test_results_are_kept_for_items_that_training_never_saw(tmp_path: Path) -> None:
    model = _model(NAMES)
    unseen = NAMES[[2, 7, 12]]
    path = export_retriever(model, tmp_path, num_results=C, num_beams=20, unseen=unseen, unseen_share=0.3, warmup=False)
    inputs = {name: tf.constant(values) for name, values in _inputs(NAMES).items()}
    found = tf.saved_model.load(str(path)).signatures["retrieve"](**inputs)
    # Two of six, and the second request excludes one of the three.
    there = np.isin(found["item_id"], unseen)
    assert (there.sum(axis=1) >= 2).all()
    assert (np.diff(found["log_probability"], axis=1) <= 0).all()
    plain = model.retrieve(
        {
            "history_item_id": tf.constant(model.lookup.encode("item_id", _inputs(NAMES)["history_item_id"])),
            "history_length": inputs["history_length"],
        },
        20,
        20,
        tf.constant([[0, 0], [10, 4], [0, 0]]),
    )
    best = NAMES[plain.rows[0].numpy() - 2]
    kept = [item for item in best if item in unseen][:2]
    expected = [item for item in best if item in kept or item in [x for x in best if x not in kept][: C - 2]]
    assert found["item_id"][0].numpy().tolist() == expected


@pytest.mark.parametrize("dtype", ["int64", "string"])
def test_a_user_is_read_where_the_model_reads_one(tmp_path: Path, dtype: str) -> None:
    model = _model(NUMBERS, user=Feature("user_id", dtype, num_oov_indices=50))
    users = np.array([7, 8, -9]) if dtype == "int64" else np.array([b"7", b"", b"x\xff"], object)
    path = export_retriever(model, tmp_path, num_results=C, num_beams=20)
    inputs = {**_inputs(NUMBERS), "user_id": users}
    signatures = tf.saved_model.load(str(path)).signatures
    found = signatures["retrieve"](**{name: tf.constant(values) for name, values in inputs.items()})
    rows = {
        "history_item_id": tf.constant(model.lookup.encode("item_id", inputs["history_item_id"])),
        "history_length": tf.constant(inputs["history_length"]),
        "user_id": tf.constant(model.lookup.encode("user_id", users)),
    }
    expected = model.retrieve(rows, C, 20, tf.constant([[0, 0], [10, 4], [0, 0]]))
    np.testing.assert_array_equal(found["item_id"], NUMBERS[expected.rows.numpy() - 2])
    np.testing.assert_allclose(found["log_probability"], expected.log_probability, rtol=1e-5)
    example = make_example({"history_item_id": NUMBERS[[9]], "user_id": users[2:]})
    assert [*Contract.read(path).vocabularies] == ["item_id"]
    one = signatures["examples"](examples=tf.constant([example.SerializeToString()]))
    alone = {
        **{name: tf.constant(values[2:]) for name, values in inputs.items()},
        "history_length": tf.constant([1], tf.int64),
    }
    alone["excluded_length"] = tf.constant([0], tf.int64)
    np.testing.assert_array_equal(one["item_id"], signatures["retrieve"](**alone)["item_id"])


def test_warmup_requests_and_contract(exported: tuple[TIGER, Path, Any]) -> None:
    model, path, item_ids = exported
    contract = Contract.read(path)
    assert contract.features == model.features
    np.testing.assert_array_equal(contract.vocabularies["item_id"], np.sort(item_ids))
    records = tf.data.TFRecordDataset(str(path / "assets.extra" / "tf_serving_warmup_requests"))
    signatures = tf.saved_model.load(str(path)).signatures
    names = []
    for record in records.as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        names.append(request.model_spec.signature_name)
        inputs = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
        assert signatures[names[-1]](**inputs)["item_id"].shape == (1, C)
    assert names == ["retrieve", "examples"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history_length": np.array([4, 3, 5])}, "`history_length` must lie between 0 and the number of history"),
        ({"excluded_length": np.array([0, -1, 0])}, "`excluded_length` must lie between 0 and the number of excluded"),
        (
            {"excluded_item_id": np.array([[50], [51]])},
            "`excluded_item_id` must have as many rows as `hist",
        ),
    ],
)
def test_bad_inputs_are_refused_by_the_graph(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    signatures = tf.saved_model.load(str(export_retriever(_model(NUMBERS), tmp_path, num_results=2, warmup=False)))
    inputs = {name: tf.constant(values) for name, values in {**_inputs(NUMBERS), **changes}.items()}
    with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape(message)):
        signatures.signatures["retrieve"](**inputs)


def test_refuses_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=re.escape("`model` must be a keras_eta.TIGER. Received: model=None")):
        export_retriever(None, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`num_results` must be a positive integer\. Received: num_res"):
        export_retriever(_model(NUMBERS), tmp_path, num_results=0)
    with pytest.raises(ValueError, match="`num_beams` must be at least `num_results`"):
        export_retriever(_model(NUMBERS), tmp_path, num_results=9, num_beams=8)
    with pytest.raises(ValueError, match=r"`unseen_share` must be a number from 0 to 1\. Received: unseen_share=1\.1"):
        export_retriever(_model(NUMBERS), tmp_path, unseen_share=1.1)
    with pytest.raises(ValueError, match=r"`unseen` must be items of the model\. Received 2 that are none, 7 among"):
        export_retriever(_model(NUMBERS), tmp_path, num_results=5, unseen=[50, 7, 8])
    assert not list(tmp_path.iterdir())
