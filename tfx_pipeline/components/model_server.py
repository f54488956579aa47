"""A model server in a process of its own, to try a SavedModel on: TensorFlow Serving, or the embedded server."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tfx.utils import io_utils

TENSORFLOW_SERVING = "tensorflow_model_server"

_NAME = "candidate"
_VERSION = "1"
_ADDRESS = re.compile(r"Running gRPC ModelServer at (\S+)")
_POLL_SECONDS = 0.2
_STATUS_SECONDS = 2.0
_LOG_LINES = 40
_State = get_model_status_pb2.ModelVersionStatus

# Becomes the server, after asking the kernel (Linux) to kill it when the thread that started it ends: so no server
# outlives its context, not even when this process is killed.
_TIED_TO_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
prctl = getattr(ctypes.CDLL(None), "prctl", None)
if prctl:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


class UnservableModelError(Exception):
    """The model can't be served; the message says what went wrong."""


class Signature(NamedTuple):
    """Names of what a signature takes and gives, sorted."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Answering(Protocol):
    """What answers the requests of an infra validation, inside of its context."""

    log: str

    def __enter__(self) -> Answering: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def signatures(self) -> dict[str, Signature]:
        """The model's signatures by name."""
        ...

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of a signature by name."""
        ...


@contextlib.contextmanager
def local_model(model_path: str) -> Iterator[str]:
    """A SavedModel's directory on this machine: its own, or a copy of a remote one while the context lasts."""
    if "://" not in model_path:
        yield model_path
        return
    with tempfile.TemporaryDirectory(prefix="model_") as folder:
        io_utils.copy_dir(model_path, folder)
        yield folder


class ModelServer:
    """Serves one SavedModel from the start of a context to its end, reachable from this machine alone.

    A `tensorflow_model_server` on the PATH is taken if there is one; it listens on a UNIX socket, since its ports are
    open to every host. Otherwise the embedded server listens on a free port of the loopback interface.

    Args:
        model_path: directory with `saved_model.pb`.
        loading_seconds: how long the server may take to load the model.
        request_seconds: how long it may take to answer a request.

    Attributes:
        log: the last lines that the server wrote, once the context is left.
    """

    def __init__(self, model_path: str | os.PathLike[str], *, loading_seconds: float, request_seconds: float) -> None:
        self._model_path = Path(model_path).resolve()
        self._loading_seconds = loading_seconds
        self._request_seconds = request_seconds
        self._stack = contextlib.ExitStack()
        self.log = ""

    def __enter__(self) -> ModelServer:
        """Starts the server and waits until the model answers.

        Raises:
            UnservableModelError: if the model can't be loaded in time.
        """
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="model_server_")))
            self._log_file = folder / "log"
            stack.callback(self._keep_log)
            base_path = folder / _NAME
            base_path.mkdir()
            (base_path / _VERSION).symlink_to(self._model_path, target_is_directory=True)
            binary = shutil.which(TENSORFLOW_SERVING)
            if binary:
                socket = folder / "socket"
                # Without XLA, versions exported with jit_compile=True never load.
                flags = ["--port=0", "--max_num_load_retries=0", "--xla_cpu_compilation_enabled"]
                self._start(stack, [binary, f"--grpc_socket_path={socket}", *flags])
                address = f"unix:{socket}"
            else:
                self._start(stack, [sys.executable, "-m", "serving.server", "--port=0"])
                address = ""
            self._connect(stack, address)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def process_id(self) -> int:
        """The server's."""
        return self._process.pid

    def signatures(self) -> dict[str, Signature]:
        """The model's signatures by name, sorted.

        Raises:
            UnservableModelError: if the server does not tell.
        """
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = _NAME
        response = self._call(self._prediction.GetModelMetadata, request, "its signatures")
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return {
            name: Signature(tuple(sorted(signature.inputs)), tuple(sorted(signature.outputs)))
            for name, signature in sorted(signatures.signature_def.items())
            # Those that TensorFlow keeps for itself, such as `__saved_model_init_op`, are not for calls.
            if not name.startswith("__")
        }

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of a signature.

        Args:
            signature: its name.
            inputs: by name; strings as arrays of objects.

        Returns:
            The outputs by name.

        Raises:
            UnservableModelError: if the server refuses the request, ends, or does not answer in time.
        """
        request = predict_pb2.PredictRequest()
        request.model_spec.name = _NAME
        request.model_spec.signature_name = signature
        for name, values in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(values, tf.as_dtype(values.dtype)))
        response = self._call(self._prediction.Predict, request, f"`{signature}`")
        return {name: tf.make_ndarray(output) for name, output in response.outputs.items()}

    def _start(self, stack: contextlib.ExitStack, command: list[str]) -> None:
        flags = [
            f"--model_name={_NAME}",
            f"--model_base_path={self._log_file.parent / _NAME}",
            "--file_system_poll_wait_seconds=0",
        ]
        # `serving` stands beside `tfx_pipeline`, from wherever this one was imported.
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        log = stack.enter_context(self._log_file.open("wb"))
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _TIED_TO_PARENT, str(os.getpid()), *command, *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        stack.callback(self._stop)

    def _stop(self) -> None:
        # It has nothing to lose, and might hang in the model.
        self._process.kill()
        self._process.wait()

    def _connect(self, stack: contextlib.ExitStack, address: str) -> None:
        deadline = time.monotonic() + self._loading_seconds
        while not address:
            self._check_loading(deadline)
            time.sleep(_POLL_SECONDS)
            found = _ADDRESS.search(self._log_file.read_text(errors="replace"))
            address = found[1] if found else ""
        options = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 500),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        channel = stack.enter_context(grpc.insecure_channel(address, options))
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        model_service = model_service_pb2_grpc.ModelServiceStub(channel)
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = _NAME
        while True:
            self._check_loading(deadline)
            with contextlib.suppress(grpc.RpcError):
                response = model_service.GetModelStatus(request, timeout=_STATUS_SECONDS)
                for version in response.model_version_status:
                    if version.state == _State.AVAILABLE:
                        return
                    if version.status.error_code:
                        raise UnservableModelError(f"The model can't be loaded: {version.status.error_message}")
            time.sleep(_POLL_SECONDS)

    def _check_loading(self, deadline: float) -> None:
        if self._process.poll() is not None:
            raise UnservableModelError(
                f"The model can't be loaded: the server ended with exit code {self._process.returncode}."
            )
        if time.monotonic() > deadline:
            raise UnservableModelError(f"The model was not loaded within {self._loading_seconds:g} s.")

    def _call(self, method: Any, request: Any, what: str) -> Any:
        try:
            return method(request, timeout=self._request_seconds)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise UnservableModelError(
                    f"The server did not answer to {what} within {self._request_seconds:g} s."
                ) from error
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(1.0)
                raise UnservableModelError(f"The server ended at {what}, with exit code {code}.") from error
            raise UnservableModelError(
                f"The server answers {error.code().name} to {what}: {error.details()}"
            ) from error

    def _keep_log(self) -> None:
        with self._log_file.open(errors="replace") as lines:
            self.log = "".join(collections.deque(lines, _LOG_LINES))
