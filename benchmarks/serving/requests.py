"""Random requests that fit a model's metadata."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras_eta.columns import HISTORY_LENGTH, HISTORY_TIMESTAMP, TIMESTAMP
from serving.client.answers import Signature
from serving.client.protocol import PredictRequest
from serving.client.tensors import numpy_dtype, write_tensor

_NOW = 1_700_000_000


def random_inputs(
    signature: Signature, *, candidates: int, history: int, ids: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Inputs of one user for `rank` or `explain`, by the names, dtypes and ranks that the server gives.

    Args:
        signature: from the model's metadata.
        candidates: C, the length of tables that are no history.
        history: L, the length of tables named `history...`, and the value of `history_length`.
        ids: integers, and the texts of strings, are drawn from 1 to this.
        rng: where from.

    Raises:
        ValueError: if an input is neither one value nor a list for each user, or of a dtype other than these.
    """
    inputs: dict[str, np.ndarray] = {}
    for name, spec in signature.inputs.items():
        if spec.shape is None or len(spec.shape) not in (1, 2):
            raise ValueError(f"Input `{name}` has shape {spec.shape}: no column of a ranking request.")
        shape = (1,) if len(spec.shape) == 1 else (1, history if name.startswith("history") else candidates)
        dtype = numpy_dtype(spec.dtype)
        drawn = rng.integers(1, ids, shape, endpoint=True)
        if name == HISTORY_LENGTH:
            drawn = np.full(shape, history)
        elif name == TIMESTAMP:
            drawn = np.full(shape, _NOW)
        elif name == HISTORY_TIMESTAMP:
            drawn = _NOW - np.cumsum(drawn, axis=1)
        if dtype.kind == "f":
            inputs[name] = rng.random(shape).astype(dtype)
        elif dtype.kind in "iu":
            inputs[name] = drawn.astype(dtype)
        elif dtype.kind == "O":
            inputs[name] = np.array([str(value).encode() for value in drawn.flat], object).reshape(shape)
        else:
            raise ValueError(f"Input `{name}` has dtype {spec.dtype}, which this tool can't make up.")
    return inputs


def serialize(model_name: str, signature_name: str, inputs: Mapping[str, np.ndarray]) -> bytes:
    """A PredictRequest as bytes, made once so that the client costs little while it measures."""
    tensors = {name: write_tensor(values) for name, values in inputs.items()}
    request = PredictRequest(model_spec={"name": model_name, "signature_name": signature_name}, inputs=tensors)
    data: bytes = request.SerializeToString()
    return data
