"""Small SavedModels with known answers, and servers in this process to serve them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tensorflow_serving.config import model_server_config_pb2

from serving.conformance import ReferenceModel
from serving.server import ModelServer

ROWS = [None]
TABLE = [None, None]
K = 2


class BatchModel(tf.Module):
    """Tells how many rows it was given at once, and the sum of each row; refuses negative numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.one = tf.Variable(1, dtype=tf.int64)

    @tf.function(input_signature=[tf.TensorSpec(TABLE, tf.int64, "x"), tf.TensorSpec(ROWS, tf.string, "name")])
    def __call__(self, x: tf.Tensor, name: tf.Tensor) -> dict[str, tf.Tensor]:
        check = tf.debugging.Assert(tf.reduce_all(x >= 0), ["`x` must not be negative. Received:", x])
        with tf.control_dependencies([check]):
            total = tf.reduce_sum(x, axis=1) * self.one
        rows = tf.fill(tf.shape(name), tf.shape(name)[0])
        return {"rows": rows, "total": total, "name": tf.strings.join([name, "!"])}


class ContractModel(tf.Module):
    """The signatures of the data contract: user_id, hour (context), item_id and category_id (item), rating (behaviour).

    A candidate's score is the sum of the ratings of the behaviours with its item id, plus 0.5 for each behaviour of its
    category, plus user_id / 1,000 and hour / 100. Distance: 0 for the same item, 1 for another one. Weight: the rating.
    """

    def __init__(self, item_id_dtype: tf.DType) -> None:
        super().__init__()
        self.concrete = {}
        for name, rows, candidates in (
            ("serving_default", ROWS, ROWS),
            ("rank", ROWS, TABLE),
            ("explain", ROWS, TABLE),
        ):
            function = tf.function(getattr(self, name))
            self.concrete[name] = function.get_concrete_function(
                user_id=tf.TensorSpec(rows, tf.int64, "user_id"),
                hour=tf.TensorSpec(rows, tf.int64, "hour"),
                item_id=tf.TensorSpec(candidates, item_id_dtype, "item_id"),
                category_id=tf.TensorSpec(candidates, tf.int64, "category_id"),
                history_item_id=tf.TensorSpec(TABLE, item_id_dtype, "history_item_id"),
                history_category_id=tf.TensorSpec(TABLE, tf.int64, "history_category_id"),
                history_rating=tf.TensorSpec(TABLE, tf.float32, "history_rating"),
                history_length=tf.TensorSpec(ROWS, tf.int64, "history_length"),
            )
        self.concrete["examples"] = tf.function(self.examples).get_concrete_function(
            examples=tf.TensorSpec(ROWS, tf.string, "examples")
        )

    def rank(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probability": self.explain(**inputs)["probability"]}

    def serving_default(self, item_id: tf.Tensor, category_id: tf.Tensor, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        scores = self.rank(item_id=item_id[:, None], category_id=category_id[:, None], **inputs)["probability"]
        return {"probability": scores[:, 0]}

    def examples(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(examples, {"user_id": tf.io.FixedLenFeature([], tf.int64)})
        return {"probability": tf.cast(parsed["user_id"], tf.float32) / 1000}

    def explain(
        self,
        user_id: tf.Tensor,
        hour: tf.Tensor,
        item_id: tf.Tensor,
        category_id: tf.Tensor,
        history_item_id: tf.Tensor,
        history_category_id: tf.Tensor,
        history_rating: tf.Tensor,
        history_length: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        L = tf.shape(history_item_id, tf.int64)[1]
        in_range = tf.reduce_all((history_length >= 0) & (history_length <= L))
        with tf.control_dependencies(
            [tf.debugging.Assert(in_range, ["`history_length` must be between 0 and", L, "Received:", history_length])]
        ):
            real = tf.sequence_mask(history_length, L)[:, None, :]
        same_item = tf.equal(item_id[:, :, None], history_item_id[:, None, :]) & real
        same_category = tf.equal(category_id[:, :, None], history_category_id[:, None, :]) & real
        ratings = tf.reduce_sum(tf.where(same_item, history_rating[:, None, :], 0.0), axis=2)
        probability = ratings + 0.5 * tf.reduce_sum(tf.cast(same_category, tf.float32), axis=2)
        rows = tf.cast(user_id, tf.float32) / 1000 + tf.cast(hour, tf.float32) / 100
        order = tf.pad(2 * tf.cast(same_item, tf.int32) + tf.cast(real, tf.int32), [[0, 0], [0, 0], [0, K]])
        nearness, positions = tf.math.top_k(order, K)
        padded = tf.pad(history_rating, [[0, 0], [0, K]])
        return {
            "probability": probability + rows[:, None],
            "positions": tf.where(nearness > 0, positions, -1),
            "distances": tf.where(nearness == 3, 0, 1),
            "weights": tf.gather(padded, positions, batch_dims=1),
        }


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SavedModels to copy from: `1`, `2`, `3` of the reference model, `batch`, the contract with each type of id."""
    folder = tmp_path_factory.mktemp("saved_models")
    for version in (1, 2, 3):
        ReferenceModel(version).save(folder)
    batch = BatchModel()
    tf.saved_model.save(batch, str(folder / "batch"), signatures=batch.__call__)
    for name, dtype in (("int64", tf.int64), ("string", tf.string)):
        contract = ContractModel(dtype)
        tf.saved_model.save(contract, str(folder / name), signatures=contract.concrete)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def push(saved_models: dict[str, Path]) -> Callable[..., Path]:
    """Puts a version in place as a pusher should: under a temporary name first, then renamed."""

    def place(name: str, base_path: Path, version: int) -> Path:
        temporary = base_path / f"{version}.tmp"
        shutil.copytree(saved_models[name], temporary)
        return temporary.rename(base_path / str(version))

    return place


@pytest.fixture
def serve() -> Iterator[Callable[..., ModelServer]]:
    """Starts servers on free loopback ports and stops them after the test."""
    servers = []

    def start(
        base_path: Path, *, poll: float = 0.05, threads: int = 8, server: dict[str, Any] | None = None, **config: object
    ) -> ModelServer:
        model = model_server_config_pb2.ModelConfig(name="eta", base_path=str(base_path), **config)
        arguments = {"port": 0, "grpc_max_threads": threads, "file_system_poll_wait_seconds": poll, **(server or {})}
        started = ModelServer([model], **arguments)
        servers.append(started)
        started.start()
        return started

    yield start
    for server in servers:
        server.stop(grace=1)


@pytest.fixture(scope="session")
def contract_servers(
    saved_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Addresses of servers of the contract model, with `int64` and with `string` ids."""
    addresses, servers = {}, []
    for name in ("int64", "string"):
        base_path = tmp_path_factory.mktemp(name)
        shutil.copytree(saved_models[name], base_path / "7")
        config = model_server_config_pb2.ModelConfig(name="eta", base_path=str(base_path))
        server = ModelServer([config], port=0, file_system_poll_wait_seconds=0)
        server.start()
        servers.append(server)
        addresses[name] = server.address
    yield addresses
    for server in servers:
        server.stop(grace=1)
