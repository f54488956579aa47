"""A model whose right answers are easy to compute, and requests to it, for the tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.config import model_server_config_pb2

MODEL = "eta"
CANDIDATES = "candidates"
_ROWS, _TABLE = [None], [None, None]


class ReferenceModel(tf.Module):
    """A candidate's score is how often the history holds it, plus the version.

    Args:
        version: number of the version.
    """

    def __init__(self, version: int) -> None:
        super().__init__()
        self.version = tf.Variable(float(version))

    @tf.function(
        input_signature=[
            tf.TensorSpec(_TABLE, tf.int64, "history"),
            tf.TensorSpec(_ROWS, tf.int64, "history_length"),
            tf.TensorSpec(_TABLE, tf.int64, CANDIDATES),
        ]
    )
    def rank(self, history: tf.Tensor, history_length: tf.Tensor, candidates: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scores [R, C]."""
        real = tf.sequence_mask(history_length, tf.shape(history)[1])
        hits = tf.equal(candidates[:, :, None], history[:, None, :]) & real[:, None, :]
        return {"probability": tf.reduce_sum(tf.cast(hits, tf.float32), axis=2) + self.version}

    @tf.function(
        input_signature=[
            tf.TensorSpec(_TABLE, tf.int64, "history"),
            tf.TensorSpec(_ROWS, tf.int64, "history_length"),
            tf.TensorSpec(_ROWS, tf.int64, "candidate"),
        ]
    )
    def pointwise(self, history: tf.Tensor, history_length: tf.Tensor, candidate: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scores [N]."""
        return {"probability": self.rank(history, history_length, candidate[:, None])["probability"][:, 0]}

    def save(self, base_path: Path) -> None:
        """Writes the version under a base path."""
        signatures = {"serving_default": self.pointwise, "rank": self.rank}
        tf.saved_model.save(self, str(base_path / str(int(self.version.numpy()))), signatures=signatures)


def server_command(models_config: Path) -> str:
    """The command that starts TensorFlow Serving on models with labels, of which none is loaded at first."""
    return (
        f"tensorflow_model_server --port=8500 --model_config_file={models_config} --grpc_max_threads=64 "
        "--allow_version_labels_for_unavailable_models"
    )


def make_model(folder: Path) -> model_server_config_pb2.ModelConfig:
    """Writes versions 1 and 2 under `folder`/eta, and returns what serves both under labels."""
    base_path = folder.absolute() / MODEL
    for version in (1, 2):
        ReferenceModel(version).save(base_path)
    model = model_server_config_pb2.ModelConfig(name=MODEL, base_path=str(base_path), model_platform="tensorflow")
    model.model_version_policy.specific.versions.extend([1, 2])
    model.version_labels.update({"stable": 1, "canary": 2})
    return model


HISTORY = np.arange(200).reshape(2, 100) % 50
LENGTHS = np.array([100, 40])
# Row 0 has all of 0..49 twice; the first 40 behaviours of row 1 are 0..39, once each.
IDS = np.array([[0, 39, 40, 49, 50, -1, 7]] * 2)
HITS = np.array([[2, 2, 2, 2, 0, 0, 2], [1, 1, 0, 0, 0, 0, 1]], np.float32)


def tensor(values: Any, dtype: tf.DType = tf.int64) -> tensor_pb2.TensorProto:
    """A TensorProto as clients make it."""
    return tf.make_tensor_proto(values, dtype=dtype)


def raw_tensor(sizes: Sequence[int], dtype: int = types_pb2.DT_INT64, **values: Any) -> tensor_pb2.TensorProto:
    """A TensorProto whose parts need not fit together."""
    return tensor_pb2.TensorProto(dtype=dtype, tensor_shape={"dim": [{"size": size} for size in sizes]}, **values)


def rank_request(
    drop: str = "", spec: dict[str, Any] | None = None, filters: Sequence[str] = (), **changes: Any
) -> predict_pb2.PredictRequest:
    """A good request to `rank`, except for what is dropped or changed."""
    inputs = {"history": tensor(HISTORY), "history_length": tensor(LENGTHS), CANDIDATES: tensor(IDS)}
    inputs = {name: value for name, value in (inputs | changes).items() if name != drop}
    return predict_request({"name": MODEL, "signature_name": "rank", **(spec or {})}, inputs, filters)


def predict_request(
    spec: dict[str, Any], inputs: Mapping[str, tensor_pb2.TensorProto], filters: Sequence[str] = ()
) -> predict_pb2.PredictRequest:
    """A Predict request of tensors that need not fit."""
    request = predict_pb2.PredictRequest(model_spec=spec, output_filter=filters)
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(value)
    return request
