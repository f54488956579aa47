"""Good requests to the models of a fuzz run, with the answers that they must get."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.message import DecodeError, Message
from tensorflow_serving.apis import model_management_pb2, predict_pb2
from tensorflow_serving.config import model_server_config_pb2

from keras_eta import ETA, Age, Feature, FeatureLookup, Features
from keras_eta.export import export_model
from keras_eta.export.examples import make_example
from serving.tools.reference_model import MODEL, make_model

RANKER = "ranker"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"

SIGNATURES = {MODEL: ("serving_default", "rank"), RANKER: ("serving_default", "rank", "explain", "examples")}
DEADLINE_SECONDS = 60.0
Rng = np.random.Generator


def make_models(folder: Path) -> None:
    """Writes the reference model, a small ETA and `folder`/models.config, which serves both."""
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.append(make_model(folder))
    features = Features(
        item_id=Feature("item_id", "string", embedding_dim=4),
        item_attributes=(Feature("category_id", "int64", embedding_dim=2),),
        behaviour_attributes=(Feature("rating", "float32", mean=0.0, std=1.0),),
        user=(Feature("user_id", "int64", embedding_dim=2),),
        context=(Feature("price", "float32", mean=0.0, std=1.0),),
        age=Age((10, 100), embedding_dim=2),
        max_history_length=16,
    )
    lookup = FeatureLookup(features)
    lookup.adapt({"item_id": item_ids(np.arange(9)), "category_id": np.arange(5), "user_id": np.arange(3)})
    model = ETA(lookup=lookup, top_k=3, num_bits=16, short_history_length=4, hidden_units=(4,))
    base_path = folder.absolute() / RANKER
    export_model(model, base_path, version=1)
    config.model_config_list.config.add(name=RANKER, base_path=str(base_path), model_platform="tensorflow")
    (folder / "models.config").write_text(text_format.MessageToString(config), encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class RawRequest:
    """One request, as the bytes that are sent.

    Args:
        mutation: what is wrong with it.
        method: path of the method.
        data: the serialized message.
        message_class: what the data should parse as.
        expected: outputs of a request that must succeed; `None` if any refusal will do.
        version: of the model that must have answered, if outputs are expected.
        timeout: deadline in seconds.
    """

    mutation: str
    method: str
    data: bytes
    message_class: Any
    expected: Mapping[str, np.ndarray] | None = None
    version: int = 0
    timeout: float = DEADLINE_SECONDS

    def __str__(self) -> str:
        try:
            text = text_format.MessageToString(self.message_class.FromString(self.data))
        except DecodeError:
            text = repr(self.data)
        return f"{self.mutation}: {self.method}, {len(self.data)} bytes\n{text[:4_000]}"


class GoodRequests:
    """Good requests to the models that `make_models` wrote, with the answers that they must get.

    Args:
        folder: the one of `make_models`.
    """

    def __init__(self, folder: Path) -> None:
        self._ranker = tf.saved_model.load(str(folder / RANKER / "1"))
        config = text_format.Parse(
            (folder / "models.config").read_text(encoding="utf-8"), model_server_config_pb2.ModelServerConfig()
        )
        self._reload = model_management_pb2.ReloadConfigRequest(config=config)

    @property
    def reload(self) -> model_management_pb2.ReloadConfigRequest:
        """A reload of the configuration of the start."""
        request = model_management_pb2.ReloadConfigRequest()
        request.CopyFrom(self._reload)
        return request

    def some(self, rng: np.random.Generator, **sizes: int) -> predict_pb2.PredictRequest:
        """A good request to any signature."""
        model = one_of(rng, list(SIGNATURES))
        signature = one_of(rng, SIGNATURES[model])
        return predict_request(model, signature, good_inputs(rng, model, signature, **sizes))

    def good(self, rng: np.random.Generator, **sizes: int) -> RawRequest:
        """A good request, with the answer that it must get."""
        message = self.some(rng, **sizes)
        model, signature = message.model_spec.name, message.model_spec.signature_name
        inputs = {name: tf.make_ndarray(proto) for name, proto in message.inputs.items()}
        version = 1
        if model == MODEL:
            choice = rng.choice(4)
            version = (2, 1, 2, 1)[choice]
            if choice in (1, 2):
                message.model_spec.version.value = version
            elif choice == 3:
                message.model_spec.version_label = "stable"
            expected = {"probability": reference_scores(**inputs) + np.float32(version)}
        else:
            outputs = self._ranker.signatures[signature](**{name: tf.constant(x) for name, x in inputs.items()})
            expected = {name: output.numpy() for name, output in outputs.items()}
        if signature == "serving_default" and rng.random() < 0.5:
            message.model_spec.signature_name = ""
        return dataclasses.replace(raw_request(PREDICT, message), expected=expected, version=version)


def raw_request(method: str, message: Message) -> RawRequest:
    """A message to a method."""
    # Not a matter of the process's hash seed, so that mutated bytes are the same in every run.
    return RawRequest("", method, message.SerializeToString(deterministic=True), type(message))


def predict_request(model: str, signature: str, inputs: Mapping[str, np.ndarray]) -> predict_pb2.PredictRequest:
    """A Predict message."""
    request = predict_pb2.PredictRequest(model_spec={"name": model, "signature_name": signature})
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    return request


def item_ids(numbers: np.ndarray) -> np.ndarray:
    """Item ids, as bytes, by their numbers."""
    names = np.array([f"item {number}".encode() for number in range(int(numbers.max(initial=0)) + 1)], object)
    return names[numbers]


def good_inputs(
    rng: Rng, model: str, signature: str, R: int | None = None, C: int | None = None, L: int | None = None
) -> dict[str, np.ndarray]:
    """Good inputs of R rows, C candidates and L behaviours; few of each unless the caller says otherwise."""
    R = int(rng.integers(1, 4)) if R is None else R
    C = int(rng.integers(0, 8)) if C is None else C
    L = int(rng.integers(0, 20)) if L is None else L
    items = (R, C) if signature in ("rank", "explain") else (R,)

    def numbers(*shape: int) -> np.ndarray:
        return rng.integers(0, 12, shape)

    inputs: dict[str, np.ndarray] = {"history_length": rng.integers(0, L + 1, R)}
    if model == MODEL:
        candidates = "candidates" if signature == "rank" else "candidate"
        return {**inputs, "history": numbers(R, L), candidates: numbers(*items)}
    inputs |= {
        "user_id": numbers(R),
        "price": rng.random(R, np.float32),
        "timestamp": rng.integers(0, 1_000, R),
        "item_id": item_ids(numbers(*items)),
        "category_id": numbers(*items),
        "history_item_id": item_ids(numbers(R, L)),
        "history_category_id": numbers(R, L),
        "history_rating": rng.random((R, L), np.float32),
        "history_timestamp": rng.integers(0, 1_000, (R, L)),
    }
    if signature != "examples":
        return inputs
    lengths = inputs.pop("history_length")
    rows = [
        {name: x[row, : lengths[row]] if x.ndim == 2 else x[row : row + 1] for name, x in inputs.items()}
        for row in range(R)
    ]
    return {"examples": np.array([make_example(row).SerializeToString(deterministic=True) for row in rows], object)}


def reference_scores(history: np.ndarray, history_length: np.ndarray, **candidates: np.ndarray) -> np.ndarray:
    """How often each candidate is in its row's history."""
    (ids,) = candidates.values()
    rows = [
        [np.count_nonzero(row[:length] == wanted) for wanted in np.ravel(some)]
        for row, length, some in zip(history, history_length, ids, strict=True)
    ]
    return np.array(rows, np.float32).reshape(ids.shape)


def one_of(rng: Rng, choices: Sequence[Any]) -> Any:
    """One of the choices, as it is."""
    # Not rng.choice, which makes an array of the choices: slow with long strings, and no Python values.
    return choices[int(rng.integers(len(choices)))]
