"""Small SavedModels with known answers, and servers in this process to serve them."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

from serving.client import AsyncRankingClient, RankingClient
from serving.server.embedded import EmbeddedServer
from serving.tools.reference_model import ReferenceModel

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


class Authority:
    """A certificate authority, and the certificates that it signs."""

    def __init__(self, name: str) -> None:
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._signed(self._name, self._key, x509.BasicConstraints(ca=True, path_length=None))

    def issue(self, name: str) -> tuple[str, str]:
        """Key and certificate, as PEM texts, of `name` at 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return pem.decode(), self._signed(subject, key, address)

    def _signed(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType) -> str:
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(days=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=1)).add_extension(extension, critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority("ours")


@pytest.fixture(scope="session")
def stranger() -> Authority:
    """An authority that nobody here trusts."""
    return Authority("theirs")


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
def serve() -> Iterator[Callable[..., EmbeddedServer]]:
    """Starts servers on free loopback ports and stops them after the test."""
    servers = []

    def start(
        base_path: Path, *, poll: float = 0.05, threads: int = 8, server: dict[str, Any] | None = None, **config: object
    ) -> EmbeddedServer:
        model = model_server_config_pb2.ModelConfig(name="eta", base_path=str(base_path), **config)
        arguments = {"port": 0, "grpc_max_threads": threads, "file_system_poll_wait_seconds": poll, **(server or {})}
        started = EmbeddedServer([model], **arguments)
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
        server = EmbeddedServer([config], port=0, file_system_poll_wait_seconds=0)
        server.start()
        servers.append(server)
        addresses[name] = server.address
    yield addresses
    for server in servers:
        server.stop(grace=1)


@pytest.fixture
def free_target() -> str:
    """An address at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


class FakeServer(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers as it is told, to see what a client makes of it. Inputs: item_id, history_item_id, history_length.

    A candidate's probability is its item id + 1,000 times the version; what `explained` names is its item id plus the
    number there, once. `padding` candidates more are answered than asked for. Predict calls get the codes of
    `failures` first, each once and with `details`, then the versions of `versions`, the last one for good. A call that
    asks for a version of `gone` gets NOT_FOUND.
    """

    def __init__(self) -> None:
        self.address = ""
        self.failures: list[grpc.StatusCode] = []
        self.details = "told so"
        self.versions = [1]
        self.gone: set[int] = set()
        self.padding = 0
        self.explained = {"positions": 0, "distances": 1, "weights": 2}
        self.counted: dict[str, int] = {}
        self.seconds = 0.0
        self.fails_at_once = False
        self.metadata_seconds = 0.0
        self.together: threading.Barrier | None = None
        self.requests: list[predict_pb2.PredictRequest] = []
        self.running = self.most_running = 0
        self.ended = 0
        self._lock = threading.Lock()

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's name
        time.sleep(self.metadata_seconds)
        shape = {"unknown_rank": True}
        integer, real = (
            meta_graph_pb2.TensorInfo(dtype=dtype.as_datatype_enum, tensor_shape=shape)
            for dtype in (tf.int64, tf.float32)
        )
        inputs = {name: integer for name in ("item_id", "history_item_id", "history_length")}
        explained = {name: real if name.endswith("weights") else integer for name in self.explained}
        explained |= dict.fromkeys(self.counted, integer)
        signature = meta_graph_pb2.SignatureDef(inputs=inputs, outputs={"probability": real, **explained})
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.metadata["signature_def"].Pack(
            get_model_metadata_pb2.SignatureDefMap(signature_def={"rank": signature, "explain": signature})
        )
        return response

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's name
        if not context.add_callback(self._end):
            # The call was over before this handler began.
            self._end()
        with self._lock:
            self.requests.append(request)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            failure = self.failures.pop(0) if self.failures else None
            version = request.model_spec.version.value or self.versions[0]
            if not request.model_spec.HasField("version") and len(self.versions) > 1:
                self.versions.pop(0)
        if self.together is not None:
            self.together.wait(timeout=10)
        if failure is None or not self.fails_at_once:
            time.sleep(self.seconds)
        with self._lock:
            self.running -= 1
        if failure is not None:
            context.abort(failure, self.details)
        if request.model_spec.version.value in self.gone:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no version {version}")
        response = predict_pb2.PredictResponse(model_spec={"name": "eta", "version": {"value": version}})
        item_id = tf.make_ndarray(request.inputs["item_id"])
        outputs = {
            "probability": (item_id + 1_000 * version).astype(np.float32),
            **{
                name: (item_id[..., None] + number).astype(np.float32 if name.endswith("weights") else np.int64)
                for name, number in self.explained.items()
            },
            **{name: item_id + number for name, number in self.counted.items()},
        }
        for name in request.output_filter or outputs:
            padding = [(0, 0), (0, self.padding), *[(0, 0)] * (outputs[name].ndim - 2)]
            response.outputs[name].CopyFrom(tf.make_tensor_proto(np.pad(outputs[name], padding)))
        return response

    def candidates(self) -> list[list[int]]:
        """The candidates of the first request of each call, in order."""
        return sorted(tf.make_ndarray(request.inputs["item_id"])[0].tolist() for request in self.requests)

    def _end(self) -> None:
        with self._lock:
            self.ended += 1


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A server that answers as it is told, at `fake.address`."""
    fake = FakeServer()
    server = grpc.server(futures.ThreadPoolExecutor(24), options=[("grpc.max_receive_message_length", -1)])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(fake, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield fake
    server.stop(grace=None).wait()


@pytest.fixture(params=["sync", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Calls a method of a client of either kind: `ask(target, "rank", {arguments}, **options_of_the_client)`."""

    def ask_(target: str, method: str, arguments: dict[str, Any] | None = None, **options: Any) -> Any:
        if request.param == "sync":
            with RankingClient(target, **options) as client:
                return getattr(client, method)(**arguments or {})

        async def awaited() -> Any:
            async with AsyncRankingClient(target, **options) as client:
                return await getattr(client, method)(**arguments or {})

        return asyncio.run(awaited())

    return ask_
