"""One version of a model: loading it, warming it up, answering calls."""

from __future__ import annotations

import dataclasses
import gc
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from grpc import StatusCode
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from keras_eta.contract import Contract
from keras_eta.quiet import QUIET_GRAPHS
from keras_eta.tf_data import without_autotuning
from serving.monitor import read_contract
from serving.server.batching import Call, batched, callable_of
from serving.server.errors import status_of
from serving.server.status import StatusError, invalid_argument
from serving.server.tensors import read_tensor, write_tensor

Observe = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], None]

WARMUP_REQUESTS = Path("assets.extra", "tf_serving_warmup_requests")

_TAGS = ["serve"]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Input:
    """One input of a signature, and the checks of what calls send for it.

    Args:
        name: its name.
        dtype: its DataType.
        sizes: of its dimensions, `None` for any; `None` for any number of them.
    """

    name: str
    dtype: int
    sizes: Sequence[int | None] | None

    def check_shape(self, shape: Sequence[int]) -> None:
        """Checks the shape: a graph that was traced for one rank is not safe with another.

        Raises:
            StatusError: INVALID_ARGUMENT, naming the input.
        """
        sizes = shape if self.sizes is None else self.sizes
        if len(sizes) != len(shape) or any(size not in (None, sent) for size, sent in zip(sizes, shape, strict=True)):
            raise invalid_argument(f"input `{self.name}` must have shape {tf.TensorShape(sizes)}. Received: {shape}")

    def check_number(self, shape: Sequence[int], limit: int) -> None:
        """Checks the number of candidates: rows, or rows x columns, as far as the signature leaves them open.

        Histories have no candidates. By the data contract they are the inputs whose names begin with `history`.

        Raises:
            StatusError: INVALID_ARGUMENT, naming the input.
        """
        sizes = [None] * len(shape) if self.sizes is None else self.sizes
        number = math.prod(sent for size, sent in zip(sizes[:2], shape[:2], strict=True) if size is None)
        if number > limit and not self.name.startswith("history"):
            allowed = f"at most {limit} candidates in one call (--max_candidates)"
            raise invalid_argument(f"input `{self.name}` must hold {allowed}. Received: {number}")


@dataclasses.dataclass(frozen=True)
class Servable:
    """One loaded version of a model.

    Args:
        version: its number.
        signature_defs: the signatures as the SavedModel describes them.
        calls: for each signature a function of its inputs in order of their names, which returns its outputs so too.
        inputs: for each signature its inputs in that order.
        contract: what it was trained on; `None`: not known.
    """

    version: int
    signature_defs: Mapping[str, SignatureDef]
    calls: Mapping[str, Call]
    inputs: Mapping[str, Sequence[Input]]
    contract: Contract | None = None

    @classmethod
    def load(cls, path: Path, version: int, batching: Any = None, *, vocabularies: bool = False) -> Servable:
        """Loads a SavedModel and replays its warm-up requests.

        Args:
            path: directory of the SavedModel.
            version: its number.
            batching: BatchingParameters; without them requests are not joined.
            vocabularies: whether to keep them for the counts of unknown ids.

        Raises:
            StatusError: if the directory holds no SavedModel with the tag `serve`, or its warm-up file is corrupt.
            Exception: whatever TensorFlow raises for a broken SavedModel or a warm-up request that fails.
        """
        try:
            saved_model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        except DecodeError as error:
            raise StatusError(StatusCode.DATA_LOSS, f"{path / 'saved_model.pb'} is corrupt: {error}") from error
        graphs = [graph for graph in saved_model.meta_graphs if list(graph.meta_info_def.tags) == _TAGS]
        if not graphs:
            raise StatusError(StatusCode.NOT_FOUND, f"The SavedModel in {path} has no graph with the tag 'serve'.")
        signature_defs = dict(graphs[0].signature_def)
        inputs = {name: _inputs(signature) for name, signature in signature_defs.items()}
        v1 = tf.compat.v1
        # As in TensorFlow Serving a session of its own, which takes variables, tables, threads and batch queues with
        # it when it goes; what eager functions leave behind would add up from version to version.
        with tf.Graph().as_default():
            # TensorFlow's threads would spin after each call, on the cores that take the next one off the network.
            config = v1.ConfigProto(experimental={"disable_thread_spinning": True}, graph_options=QUIET_GRAPHS)
            session = v1.Session(config=config)
            loaded = tf.saved_model.load(str(path), tags=_TAGS)
            calls = {
                name: _call(session, name, _arguments(name, signature_defs[name]), function, batching)
                for name, function in loaded.signatures.items()
            }
            # Its tables add ops to the graph as they go, and the next call would wait until the session knows them.
            del loaded
            gc.collect()
            session.run([v1.global_variables_initializer(), v1.local_variables_initializer(), v1.tables_initializer()])
        servable = cls(version, signature_defs, calls, inputs, read_contract(path, vocabularies=vocabularies))
        servable._warm_up(path / WARMUP_REQUESTS)
        return servable

    def _warm_up(self, path: Path) -> None:
        if not path.exists():
            return
        replayed = 0
        try:
            for record in without_autotuning(tf.data.TFRecordDataset(str(path))).as_numpy_iterator():
                log = PredictionLog.FromString(record)
                if not log.HasField("predict_log"):
                    kind = log.WhichOneof("log_type")
                    raise StatusError(StatusCode.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
                self.predict(log.predict_log.request)
                replayed += 1
        except tf.errors.DataLossError as error:
            message = f"{status_of(error)[1]}. Please verify your warmup data is in TFRecord format: {path}"
            raise StatusError(StatusCode.DATA_LOSS, message) from error
        except DecodeError as error:
            raise invalid_argument(f"Failed to parse warmup record {replayed} from {path}") from error
        _log.info("Replayed %d warm-up requests of %s", replayed, path)

    def predict(
        self, request: PredictRequest, max_candidates: int | None = None, observe: Observe | None = None
    ) -> PredictResponse:
        """Answers a Predict request as TensorFlow Serving does; the caller has chosen the model.

        Args:
            request: what is asked.
            max_candidates: the most that it may hold; any number if None.
            observe: is given the inputs and the outputs, by name.

        Raises:
            StatusError: if the request does not fit the signature.
            tf.errors.OpError: if the graph refuses it.
        """
        name = request.model_spec.signature_name or tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
        if name not in self.calls:
            raise StatusError(StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        names = sorted(self.signature_defs[name].outputs)
        _check_names(request, {wanted.name for wanted in self.inputs[name]}, names)
        columns = []
        for index, wanted in enumerate(self.inputs[name]):
            column = read_tensor(wanted.name, request.inputs[wanted.name], wanted.dtype, index)
            wanted.check_shape(column.shape)
            if max_candidates is not None:
                wanted.check_number(column.shape, max_candidates)
            columns.append(column)
        outputs = dict(zip(names, self.calls[name](*columns), strict=True))
        if observe is not None:
            observe({wanted.name: column for wanted, column in zip(self.inputs[name], columns, strict=True)}, outputs)
        response = PredictResponse(
            model_spec={"name": request.model_spec.name, "version": {"value": self.version}, "signature_name": name}
        )
        for key in request.output_filter or names:
            write_tensor(outputs[key], response.outputs[key])
        return response


def _inputs(signature: SignatureDef) -> list[Input]:
    shapes = [(name, info.dtype, tf.TensorShape(info.tensor_shape)) for name, info in sorted(signature.inputs.items())]
    return [Input(name, dtype, None if shape.rank is None else shape.as_list()) for name, dtype, shape in shapes]


def _arguments(name: str, signature: SignatureDef) -> list[str]:
    """What TensorFlow's function of a signature calls the inputs, in order of their names in the signature.

    An argument must be a word and an input need not be. The tensor of an input is called `<signature>_<argument>:0`.
    """
    return [info.name.removeprefix(f"{name}_").removesuffix(":0") for _, info in sorted(signature.inputs.items())]


def _call(session: tf.compat.v1.Session, name: str, arguments: Sequence[str], function: Any, batching: Any) -> Call:
    """A signature as a function of arrays, run by a session whose graph is the default."""

    def outputs(*columns: tf.Tensor) -> list[tf.Tensor]:
        answered = function(**dict(zip(arguments, columns, strict=True)))
        return [value for _, value in sorted(answered.items())]

    specs = [function.structured_input_signature[1][argument] for argument in arguments]
    inputs = [tf.compat.v1.placeholder(spec.dtype, spec.shape) for spec in specs]
    direct = callable_of(session, outputs(*inputs), inputs)
    return direct if batching is None else batched(session, name, outputs, inputs, direct, batching)


def _check_names(request: PredictRequest, inputs: set[str], outputs: Sequence[str]) -> None:
    sent = set(request.inputs)
    if sent != inputs:
        sizes = f"{len(sent)}!={len(inputs)} len({_set(sent)}) != len({_set(inputs)})"
        difference = f"Sent extra: {_set(sent - inputs)}. Missing but required: {_set(inputs - sent)}."
        raise invalid_argument(f"input size does not match signature: {sizes}. {difference}")
    for position, alias in enumerate(request.output_filter):
        if alias not in outputs:
            expected = f"Outputs expected to be in the set {_set(outputs)}."
            raise invalid_argument(f"output tensor alias not found in signature: {alias} {expected}")
        if alias in request.output_filter[:position]:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")


def _set(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
