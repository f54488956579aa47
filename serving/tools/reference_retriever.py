"""A small retriever, the same wherever it is made, and requests to it, for the tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.config import model_server_config_pb2

from keras_eta import TIGER, SemanticIds
from keras_eta.export import export_retriever
from serving.tools.reference_model import make_model, predict_request, tensor

RETRIEVER = "tiger"
ITEMS = np.arange(101, 113)
# Fewer than what requests hold.
MAX_HISTORY_LENGTH = 3
NUM_RESULTS = 4


def make_retriever() -> TIGER:
    """A TIGER of twelve items, whose weights are drawn by NumPy."""
    rng = np.random.default_rng(0)
    ids = SemanticIds.from_codes(ITEMS, rng.integers(0, 3, (len(ITEMS), 2)), (3, 3), max_collisions=4)
    model = TIGER(ids, max_history_length=MAX_HISTORY_LENGTH, dim=8, num_heads=2, num_layers=1, feed_forward_units=8)
    model.build()
    for variable in model.trainable_variables:
        # Without biases, so that the history decides.
        if variable.shape.rank > 1:
            variable.assign(rng.normal(0, 0.5, variable.shape))
    return model


def make_models(folder: Path) -> list[model_server_config_pb2.ModelConfig]:
    """Writes the reference model, the retriever and `folder`/models.config, which serves both."""
    model = make_model(folder)
    path = folder.absolute() / RETRIEVER
    # With more beams than items the search is exact.
    export_retriever(make_retriever(), path, version=1, num_results=NUM_RESULTS, num_beams=2 * len(ITEMS))
    retriever = model_server_config_pb2.ModelConfig(name=RETRIEVER, base_path=str(path), model_platform="tensorflow")
    config = model_server_config_pb2.ModelServerConfig(model_config_list={"config": [model, retriever]})
    (folder / "models.config").write_text(text_format.MessageToString(config), encoding="utf-8")
    return [model, retriever]


# The second history has an item that the model does not know, and an item behind its length.
HISTORIES = np.array([[103, 101, 104], [105, 999, 110]])
LENGTHS = np.array([3, 2])
EXCLUDED = np.array([[109, 101], [108, 102]])
EXCLUDED_LENGTHS = np.array([0, 2])


def retrieve_request(
    drop: str = "", spec: dict[str, Any] | None = None, filters: Sequence[str] = (), **changes: Any
) -> predict_pb2.PredictRequest:
    """A good request to `retrieve`, except for what is dropped or changed."""
    inputs = {
        "history_item_id": tensor(HISTORIES),
        "history_length": tensor(LENGTHS),
        "excluded_item_id": tensor(EXCLUDED),
        "excluded_length": tensor(EXCLUDED_LENGTHS),
    }
    inputs = {name: value for name, value in (inputs | changes).items() if name != drop}
    return predict_request({"name": RETRIEVER, "signature_name": "retrieve", **(spec or {})}, inputs, filters)
