"""Requests that a server replays before a version takes traffic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import tensorflow as tf


class ExportedSignatures(Protocol):
    """What a SavedModel is made of.

    Attributes:
        functions: the concrete function of each signature.
        arguments: the argument by which the functions take each column.
    """

    functions: Mapping[str, Any]
    arguments: Mapping[str, str]

    def warmup_inputs(self, signature: str) -> list[dict[str, Any]]:
        """Inputs of typical requests to a signature."""


def write_warmup_requests(path: Path, signatures: ExportedSignatures, model_name: str) -> None:
    """Requests for every signature, those of its `warmup_inputs`."""
    try:
        from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2
    except ImportError as error:
        raise ImportError(
            f"{error}. Warm-up requests are written with tensorflow-serving-api: pip install 'keras-eta[serving]', "
            "or export with warmup=False."
        ) from error
    with tf.io.TFRecordWriter(str(path)) as writer:
        for name in signatures.functions:
            request = predict_pb2.PredictRequest(model_spec=model_pb2.ModelSpec(name=model_name, signature_name=name))
            for inputs in signatures.warmup_inputs(name):
                for column, values in inputs.items():
                    request.inputs[column].CopyFrom(tf.make_tensor_proto(values))
                log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
                writer.write(log.SerializeToString())
