"""Requests that a server replays before a version takes traffic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_eta.export.columns import EXAMPLES
from keras_eta.export.examples import make_example
from keras_eta.export.signatures import Signatures

# Enough for `ops.hamming_top_k` to count rather than sort, whatever the length.
WARMUP_CANDIDATES = 512


def write_warmup_requests(path: Path, signatures: Signatures, model_name: str) -> None:
    """Requests for every signature: one row, a full history, `WARMUP_CANDIDATES` candidates."""
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
            for inputs in _inputs(signatures, name):
                for column, values in inputs.items():
                    request.inputs[column].CopyFrom(tf.make_tensor_proto(values))
                log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
                writer.write(log.SerializeToString())


def _inputs(signatures: Signatures, name: str) -> list[dict[str, np.ndarray]]:
    if name != EXAMPLES:
        return signatures.warmup_inputs(name, WARMUP_CANDIDATES)
    (columns,) = signatures.warmup_inputs("serving_default", 1)
    for sequence in signatures.features.all_sequences:
        del columns[sequence.length]
    example = make_example({name: np.ravel(values) for name, values in columns.items()})
    return [{EXAMPLES: np.array([example.SerializeToString()], object)}]
