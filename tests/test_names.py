"""Columns whose names neither Keras, TensorFlow nor Python can take, from the lookup to the server's answer."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from keras_eta import ETA, Feature, FeatureLookup, Features
from keras_eta.columns import HISTORY_LENGTH, history_name
from keras_eta.export import export_model
from keras_eta.names import scope_name
from serving.server.servables import Servable
from tests.paper import paper_eta

# Plain names sort as 0, 1, ... does; the odd ones sort otherwise, and otherwise again once made words of.
CONTEXT = ("C1-site", "C1_a", "device type", "device_type", "101", "self", "größe", "_x")
ATTRIBUTE = "brand name (full)"


def _names(plain: bool) -> tuple[tuple[str, ...], str]:
    return (tuple(f"c{index:02d}" for index in range(len(CONTEXT))), "brand") if plain else (CONTEXT, ATTRIBUTE)


def _model(plain: bool) -> ETA:
    context, attribute = _names(plain)
    features = Features(
        item_id=Feature("item_id", embedding_dim=4),
        item_attributes=(Feature(attribute, "string", embedding_dim=3),),
        context=tuple(Feature(name, embedding_dim=2) for name in context),
        max_history_length=6,
    )
    lookup = FeatureLookup(features)
    lookup.adapt(
        {"item_id": np.arange(1, 9), attribute: np.array(["x", "y"]), **{name: np.arange(5) for name in context}}
    )
    model = paper_eta(lookup=lookup, top_k=2, num_bits=8, short_history_length=2, hidden_units=(4,))
    model.compile()
    model.build()
    return model


def _raw(plain: bool, rows: int = 6) -> dict[str, np.ndarray]:
    context, attribute = _names(plain)
    generator = np.random.default_rng(1)
    return {
        "item_id": generator.integers(1, 9, rows),
        attribute: generator.choice([b"x", b"y"], rows).astype(object),
        **{name: generator.integers(0, 5, rows) for name in context},
        "history_item_id": generator.integers(1, 9, (rows, 6)),
        history_name(attribute): generator.choice([b"x", b"y"], (rows, 6)).astype(object),
        HISTORY_LENGTH: generator.integers(0, 7, rows),
    }


def _logits(model: Any, raw: dict[str, np.ndarray]) -> np.ndarray:
    return model(model.lookup({name: tf.constant(column) for name, column in raw.items()})).numpy()


def _example(columns: dict[str, np.ndarray], row: int) -> bytes:
    example = tf.train.Example()
    for name, column in columns.items():
        values = column[row, : columns[HISTORY_LENGTH][row]] if column.ndim == 2 else column[row : row + 1]
        kind = example.features.feature[name]
        (kind.bytes_list if column.dtype == object else kind.int64_list).value.extend(values.tolist())
    return example.SerializeToString()


@pytest.fixture(scope="module")
def model() -> ETA:
    model = _model(plain=False)
    lookup: Any = model.lookup
    inputs = lookup({name: tf.constant(column) for name, column in _raw(plain=False).items()})
    model.fit(tf.data.Dataset.from_tensors((inputs, np.array([0, 1, 0, 1, 1, 0]))), epochs=2, verbose=0)
    return model


@pytest.fixture(scope="module")
def expected(model: ETA) -> np.ndarray:
    """The logits of a model with plain names and the same weights."""
    plain = _model(plain=True)
    (names, attribute), (odd_names, odd_attribute) = _names(plain=True), _names(plain=False)
    renamed = dict(zip((*names, attribute, "item_id"), (*odd_names, odd_attribute, "item_id"), strict=True))
    for name, layer in plain.embeddings.items():
        layer.embeddings.assign(model.embeddings[renamed[name]].embeddings)
    for variable, trained in zip(plain.dense_variables(), model.dense_variables(), strict=True):
        variable.assign(trained)
    plain.refresh()
    return _logits(plain, _raw(plain=True))


@pytest.mark.slow
def test_model_with_odd_names_fits_and_scores(model: ETA, expected: np.ndarray) -> None:
    np.testing.assert_allclose(_logits(model, _raw(plain=False)), expected, rtol=1e-5)


@pytest.mark.slow
def test_model_with_odd_names_survives_a_keras_file(model: ETA, expected: np.ndarray, tmp_path: Path) -> None:
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(_logits(loaded, _raw(plain=False)), expected, rtol=1e-5)


@pytest.mark.slow
def test_export_with_odd_names_answers_by_the_columns(model: ETA, expected: np.ndarray, tmp_path: Path) -> None:
    servable = Servable.load(export_model(model, tmp_path, version=1), 1)
    raw = _raw(plain=False)
    per_candidate = {name: raw[name][:, np.newaxis] for name in ("item_id", ATTRIBUTE)}
    requests = {
        "serving_default": raw,
        "rank": raw | per_candidate,
        "explain": raw | per_candidate,
        "examples": {"examples": np.array([_example(raw, row) for row in range(6)], object)},
    }
    for signature, inputs in requests.items():
        assert set(servable.signature_defs[signature].inputs) == set(inputs)
        request = predict_pb2.PredictRequest(model_spec={"signature_name": signature})
        for name, values in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
        probability = tf.make_ndarray(servable.predict(request).outputs["probability"])
        np.testing.assert_allclose(np.ravel(probability), 1 / (1 + np.exp(-expected)), rtol=1e-5)


@pytest.mark.slow
def test_loaded_export_with_spaces_and_hyphens_takes_the_columns_as_keywords(tmp_path: Path) -> None:
    features = Features(
        item_id=Feature("item id", vocabulary_size=5, embedding_dim=4),
        context=(Feature("C1-site", vocabulary_size=3, embedding_dim=2), Feature("101", "float32", mean=0.0, std=1.0)),
        max_history_length=3,
    )
    model = paper_eta(features, top_k=1, num_bits=8, short_history_length=1, hidden_units=(2,))
    loaded = tf.saved_model.load(str(export_model(model, tmp_path, warmup=False)))
    columns = {
        "item id": tf.constant([3], tf.int64),
        "C1-site": tf.constant([2], tf.int64),
        "101": tf.constant([0.5]),
        "history_item id": tf.constant([[2, 4]], tf.int64),
        HISTORY_LENGTH: tf.constant([2], tf.int64),
    }
    answered = loaded.signatures["serving_default"](**columns)["probability"]
    logits = model({name: x if name == "101" else tf.cast(x, tf.int32) for name, x in columns.items()})
    np.testing.assert_allclose(answered, tf.sigmoid(logits), rtol=1e-5)


@pytest.mark.slow
def test_model_with_odd_names_survives_a_directory(tmp_path: Path) -> None:
    names = ("device type", "self")
    features = Features(
        item_id=Feature("item_id", vocabulary_size=5, embedding_dim=4),
        context=tuple(Feature(name, vocabulary_size=3, embedding_dim=2) for name in names),
        max_history_length=3,
    )
    columns = {
        **{name: tf.constant([row]) for row, name in enumerate(("item_id", *names), start=2)},
        "history_item_id": tf.constant([[2, 4]]),
        HISTORY_LENGTH: tf.constant([2]),
    }
    model = paper_eta(features, top_k=1, num_bits=8, short_history_length=1, hidden_units=(2,))
    expected = model(columns)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(tf.keras.models.load_model(tmp_path / "model")(columns), expected)


@pytest.mark.parametrize("name", ["item_id", "C1-site", "101", "a.b"])
def test_scope_name_of_a_plain_name_is_the_name(name: str) -> None:
    assert scope_name(name) == name


def test_scope_names_are_safe_and_differ() -> None:
    names = [
        *CONTEXT,
        ATTRIBUTE,
        "a/b",
        "x\\y",
        "年",
        "device-type",
        "device+type",
        "年龄",
        "龄年",
        "n" * 300,
        "n" * 301,
        "..",
        "-x",
    ]
    scopes = [scope_name(name) for name in names]
    assert len(set(scopes)) == len(names)
    for scope in scopes:
        assert len(scope) <= 109
        assert re.fullmatch("[A-Za-z0-9][A-Za-z0-9_.-]*", scope)
    # The checksum is the one in `printf 'device type' | gzip`.
    assert scope_name("device type") == "device_type_7e65f50d"


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "\ud800", "tab\t"])
def test_feature_refuses_a_name_that_cannot_be_printed(name: str) -> None:
    with pytest.raises(ValueError, match="`name` must be a non-empty string of printable characters"):
        Feature(name)
    with pytest.raises(ValueError, match="printable"):
        dataclasses.replace(Feature("x"), name=name)
