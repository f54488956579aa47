"""An exported ETA behind the embedded server: every signature refuses what does not fit, and names the input."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_grpc
from tensorflow_serving.config import model_server_config_pb2

from keras_eta import Feature, FeatureLookup, Features
from keras_eta.export import export_model
from serving.server.config import BatchingParameters
from serving.server.embedded import EmbeddedServer
from serving.server.servables import Servable
from tests.paper import paper_eta

RANKING = ("serving_default", "rank", "explain")
N, C, L = 2, 3, 5


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    features = Features(
        item_id=Feature("item_id", "string", embedding_dim=4),
        user=(Feature("user_id", "int64", embedding_dim=2),),
        context=(Feature("price", "float32", mean=0.0, std=1.0),),
        max_history_length=L,
    )
    lookup = FeatureLookup(features)
    lookup.adapt({"item_id": np.array([f"item {i}" for i in range(9)], object), "user_id": np.arange(3)})
    model = paper_eta(lookup=lookup, top_k=2, num_bits=16, short_history_length=2, hidden_units=(4,))
    path: Path = tmp_path_factory.mktemp("models") / "eta"
    export_model(model, path, version=1)
    return path


@pytest.fixture(scope="module", params=["alone", "batched"])
def stub(request: pytest.FixtureRequest, base_path: Path) -> Iterator[Any]:
    config = model_server_config_pb2.ModelConfig(name="eta", base_path=str(base_path))
    batching = BatchingParameters() if request.param == "batched" else None
    with (
        EmbeddedServer([config], port=0, file_system_poll_wait_seconds=0, batching_parameters=batching) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield prediction_grpc.PredictionServiceStub(channel)


def test_no_call_waits_for_what_loading_left_to_do(base_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A session whose graph has grown reads all of it again before its next call.
    graphs, sizes = [], []

    class Session(tf.compat.v1.Session):
        def run(self, *arguments: Any, **options: Any) -> Any:
            graphs.append(self.graph)
            sizes.append(len(self.graph.get_operations()))
            return super().run(*arguments, **options)

    monkeypatch.setattr(tf.compat.v1, "Session", Session)
    servable = Servable.load(base_path / "1", 1)
    gc.collect()
    assert sorted(servable.calls) == sorted(["examples", *RANKING])
    assert len(sizes) >= 1 + 4  # the initialisers, and a warm-up request of each signature
    assert {*sizes, len(graphs[0].get_operations())} == {sizes[0]}


def good(signature: str) -> dict[str, np.ndarray]:
    items = (N,) if signature == "serving_default" else (N, C)
    return {
        "user_id": np.arange(N),
        "price": np.ones(N, np.float32),
        "item_id": np.full(items, b"item 1", object),
        "history_item_id": np.full((N, L), b"item 2", object),
        "history_length": np.array([L, 0]),
    }


def ask(stub: Any, signature: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    request = predict_pb2.PredictRequest(model_spec={"name": "eta", "signature_name": signature})
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    outputs = stub.Predict(request, timeout=30).outputs
    return {name: tf.make_ndarray(proto) for name, proto in outputs.items()}


def refusal(stub: Any, signature: str, **changes: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        ask(stub, signature, good(signature) | changes)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return caught.value.details()


@pytest.mark.parametrize("signature", RANKING)
def test_good_request_answers_as_in_process(stub: Any, base_path: Path, signature: str) -> None:
    function = tf.saved_model.load(str(base_path / "1")).signatures[signature]
    expected = function(**{name: tf.constant(values) for name, values in good(signature).items()})
    answer = ask(stub, signature, good(signature))
    assert answer.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(answer[name], values.numpy(), rtol=1e-5)


@pytest.mark.parametrize("signature", RANKING)
@pytest.mark.parametrize("name", ["user_id", "price", "item_id", "history_item_id", "history_length"])
def test_wrong_rank(stub: Any, signature: str, name: str) -> None:
    assert f"`{name}` must have shape" in refusal(stub, signature, **{name: good(signature)[name][..., None]})


@pytest.mark.parametrize("signature", RANKING)
@pytest.mark.parametrize("name", ["user_id", "price", "item_id", "history_item_id", "history_length"])
def test_unequal_rows(stub: Any, signature: str, name: str) -> None:
    longer = good(signature)[name]
    details = refusal(stub, signature, **{name: np.concatenate([longer, longer[:1]])})
    assert "must have as many rows as" in details
    assert f"`{name}`" in details


@pytest.mark.parametrize("signature", RANKING)
@pytest.mark.parametrize("length", [-1, L + 1, 1 << 62, -(1 << 63)])
def test_length_out_of_range(stub: Any, signature: str, length: int) -> None:
    details = refusal(stub, signature, history_length=np.array([1, length]))
    assert "`history_length` must lie between 0 and the number of history columns" in details


@pytest.mark.parametrize("signature", RANKING)
@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("user_id", np.arange(N).astype(np.int32), "to be int64 but int32 is provided: input `user_id`"),
        ("user_id", np.array([b"1", b"2"], object), "to be int64 but string is provided: input `user_id`"),
        ("history_item_id", np.ones((N, L), np.int64), "to be string but int64 is provided: input `history_item_id`"),
        ("price", np.ones(N), "to be float but double is provided: input `price`"),
    ],
)
def test_wrong_type(stub: Any, signature: str, name: str, values: np.ndarray, text: str) -> None:
    assert text in refusal(stub, signature, **{name: values})


@pytest.mark.parametrize("name", ["user_id", "item_id", "history_length"])
def test_rank_missing_input(stub: Any, name: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(stub, "rank", {key: values for key, values in good("rank").items() if key != name})
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"Missing but required: {{{name}}}." in caught.value.details()


@pytest.mark.parametrize(
    ("examples", "text"),
    [
        (np.array([[b""]], object), "`examples` must have shape (None,). Received: (1, 1)"),
        (np.array([b"\xff no example"], object), "Could not parse example input, value: '\ufffd no example'"),
        (np.array([1]), "to be string but int64 is provided: input `examples`"),
    ],
)
def test_examples(stub: Any, examples: np.ndarray, text: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(stub, "examples", {"examples": examples})
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert text in caught.value.details()


@pytest.mark.slow
def test_hostile_sizes_and_values(stub: Any) -> None:
    """A history of a million, NaN, ids that nobody has seen: answered or refused, and the next request too."""
    length = 1_000_000
    request = good("rank") | {"history_item_id": np.full((N, length), b"x", object)}
    answer = ask(stub, "rank", request | {"history_length": np.array([length, 0])})
    assert answer["probability"].shape == (N, C)
    assert "`price` must be finite" in refusal(stub, "rank", price=np.full(N, np.nan, np.float32))
    unseen = good("rank") | {"user_id": np.array([-(1 << 63), (1 << 63) - 1])}
    assert np.isfinite(ask(stub, "rank", unseen)["probability"]).all()
