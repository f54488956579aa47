"""Thousands of broken requests to a server, with good ones between them: no crash, no hang, no leak, no wrong answer.

    python -m serving.fuzz --requests 20000 --seed 1         # the embedded server, in a process of its own
    python -m serving.fuzz --seed 1 --only 4711              # one request of that run again, shown

The models are that of serving.conformance and a small ETA with all its signatures. Each request is a function of the
seed and its index alone. For another server:

    python -m serving.fuzz --make_models DIR                 # and the command that starts a server of them
    python -m serving.fuzz --models DIR --target 127.0.0.1:8500
"""

from __future__ import annotations

import os
import warnings

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", category=FutureWarning, module="google.api_core")

import argparse
import collections
import contextlib
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pandas as pd
import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.message import DecodeError, Message
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)
from tensorflow_serving.config import model_server_config_pb2
from tqdm import tqdm

from keras_eta import ETA, Age, Feature, FeatureLookup, Features
from keras_eta.export import export_model
from serving.conformance import MODEL, make_model, server_command
from serving.server_process import ServerProcess
from serving.targets import proxy_option

RANKER = "ranker"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"
GOOD = "none: a good request"

_SIGNATURES = {MODEL: ("serving_default", "rank"), RANKER: ("serving_default", "rank", "explain", "examples")}
# One request in so many is a good one.
_GOOD_EVERY = 5
_DEADLINE_SECONDS = 60.0
_LATE_SECONDS = 2.0
_CONNECT_SECONDS = 10.0
_MEMORY_FACTOR = 1.10
# Memory is first taken after this part of the run, and judged in runs of so many requests: until then threads, caches
# and the memory pools of malloc and TensorFlow fill.
_WARM_UP = 0.25
_MIN_REQUESTS_FOR_MEMORY = 10_000
_LOADS = 5
_LONG = 1_000_000
_MANY_ROWS = 5_000
_INT64 = (-(1 << 63), (1 << 63) - 1, -1, 0, 1 << 32)
_FLOATS = (np.nan, np.inf, -np.inf, 3.4e38, -0.0, 1e-45)
_STRINGS = (b"", b"\0", b"\xff\xfe\x80", b"x" * 100_000, "é".encode()[:1])
_SIZES = (-(1 << 63), -2, -1, 0, 1, 3, 1 << 16, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1)
_NAMES = ("", "nope", "candidates", "x" * 10_000, "é", "a\0b", "../../etc/passwd", "rank:0", "{}")
_Code = grpc.StatusCode
_REFUSALS = (_Code.OK, _Code.INVALID_ARGUMENT, _Code.NOT_FOUND, _Code.FAILED_PRECONDITION, _Code.UNIMPLEMENTED)


def make_models(folder: Path) -> None:
    """Writes the reference model, a small ETA and `folder`/models.config, which serves both."""
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.append(make_model(folder))
    features = Features(
        item_id=Feature("item_id", "string", embedding_dim=4),
        item_attributes=(Feature("category_id", "int64", embedding_dim=2),),
        behaviour_attributes=(Feature("rating", "float32"),),
        user=(Feature("user_id", "int64", embedding_dim=2),),
        context=(Feature("price", "float32"),),
        age=Age((10, 100), embedding_dim=2),
        max_history_length=16,
    )
    lookup = FeatureLookup(features)
    lookup.adapt({"item_id": _ids(np.arange(9)), "category_id": np.arange(5), "user_id": np.arange(3)})
    model = ETA(lookup=lookup, top_k=3, num_bits=16, short_history_length=4, hidden_units=(4,))
    base_path = folder.absolute() / RANKER
    export_model(model, base_path, version=1)
    config.model_config_list.config.add(name=RANKER, base_path=str(base_path), model_platform="tensorflow")
    (folder / "models.config").write_text(text_format.MessageToString(config), encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Request:
    """One request, as the bytes that are sent.

    Args:
        mutation: what is wrong with it.
        method: path of the method.
        data: the serialized message.
        message_class: what the data should parse as.
        expected: outputs of a request that must succeed; `None` if any refusal will do.
        version: of the model that must have answered, if outputs are expected.
        timeout: deadline in seconds.
    """

    mutation: str
    method: str
    data: bytes
    message_class: Any
    expected: Mapping[str, np.ndarray] | None = None
    version: int = 0
    timeout: float = _DEADLINE_SECONDS

    def __str__(self) -> str:
        try:
            text = text_format.MessageToString(self.message_class.FromString(self.data))
        except DecodeError:
            text = repr(self.data)
        return f"{self.mutation}: {self.method}, {len(self.data)} bytes\n{text[:4_000]}"


class Requests:
    """The requests of a run: `requests[index]` is the same one whenever the seed is.

    Args:
        folder: what `make_models` wrote.
        seed: the run's.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._seed = seed
        self._ranker = tf.saved_model.load(str(folder / RANKER / "1"))
        config = text_format.Parse(
            (folder / "models.config").read_text(encoding="utf-8"), model_server_config_pb2.ModelServerConfig()
        )
        self._reload = model_management_pb2.ReloadConfigRequest(config=config)
        weights = np.array([weight for weight, _ in _MUTATIONS.values()])
        self._chances = weights / weights.sum()

    def __getitem__(self, index: int) -> Request:
        rng = np.random.default_rng([self._seed, index])
        if index % _GOOD_EVERY == 0:
            return dataclasses.replace(self.good(rng), mutation=GOOD)
        mutation = str(rng.choice(list(_MUTATIONS), p=self._chances))
        return dataclasses.replace(_MUTATIONS[mutation][1](rng, self), mutation=mutation)

    @property
    def reload(self) -> model_management_pb2.ReloadConfigRequest:
        """A reload of the configuration of the start."""
        request = model_management_pb2.ReloadConfigRequest()
        request.CopyFrom(self._reload)
        return request

    def some(self, rng: np.random.Generator, **sizes: int) -> predict_pb2.PredictRequest:
        """A good request to any signature."""
        model = _one(rng, list(_SIGNATURES))
        signature = _one(rng, _SIGNATURES[model])
        return _predict(model, signature, _inputs(rng, model, signature, **sizes))

    def good(self, rng: np.random.Generator, **sizes: int) -> Request:
        """A good request, with the answer that it must get."""
        message = self.some(rng, **sizes)
        model, signature = message.model_spec.name, message.model_spec.signature_name
        inputs = {name: tf.make_ndarray(proto) for name, proto in message.inputs.items()}
        version = 1
        if model == MODEL:
            choice = rng.choice(4)
            version = (2, 1, 2, 1)[choice]
            if choice in (1, 2):
                message.model_spec.version.value = version
            elif choice == 3:
                message.model_spec.version_label = "stable"
            expected = {"probability": _reference(**inputs) + np.float32(version)}
        else:
            outputs = self._ranker.signatures[signature](**{name: tf.constant(x) for name, x in inputs.items()})
            expected = {name: output.numpy() for name, output in outputs.items()}
        if signature == "serving_default" and rng.random() < 0.5:
            message.model_spec.signature_name = ""
        return dataclasses.replace(_request(PREDICT, message), expected=expected, version=version)


_Rng = np.random.Generator
_Make = Callable[[_Rng, Requests], Request]


def _request(method: str, message: Message) -> Request:
    # Not a matter of the process's hash seed, so that mutated bytes are the same in every run.
    return Request("", method, message.SerializeToString(deterministic=True), type(message))


def _predict(model: str, signature: str, inputs: Mapping[str, np.ndarray]) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest(model_spec={"name": model, "signature_name": signature})
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    return request


def _ids(numbers: np.ndarray) -> np.ndarray:
    names = np.array([f"item {number}".encode() for number in range(int(numbers.max(initial=0)) + 1)], object)
    return names[numbers]


def _inputs(
    rng: _Rng, model: str, signature: str, R: int | None = None, C: int | None = None, L: int | None = None
) -> dict[str, np.ndarray]:
    """Good inputs of R rows, C candidates and L behaviours; few of each unless the caller says otherwise."""
    R = int(rng.integers(1, 4)) if R is None else R
    C = int(rng.integers(0, 8)) if C is None else C
    L = int(rng.integers(0, 20)) if L is None else L
    items = (R, C) if signature in ("rank", "explain") else (R,)

    def numbers(*shape: int) -> np.ndarray:
        return rng.integers(0, 12, shape)

    inputs: dict[str, np.ndarray] = {"history_length": rng.integers(0, L + 1, R)}
    if model == MODEL:
        candidates = "candidates" if signature == "rank" else "candidate"
        return {**inputs, "history": numbers(R, L), candidates: numbers(*items)}
    inputs |= {
        "user_id": numbers(R),
        "price": rng.random(R, np.float32),
        "timestamp": rng.integers(0, 1_000, R),
        "item_id": _ids(numbers(*items)),
        "category_id": numbers(*items),
        "history_item_id": _ids(numbers(R, L)),
        "history_category_id": numbers(R, L),
        "history_rating": rng.random((R, L), np.float32),
        "history_timestamp": rng.integers(0, 1_000, (R, L)),
    }
    if signature != "examples":
        return inputs
    lengths = inputs.pop("history_length")
    rows = [
        {name: x[row, : lengths[row]] if x.ndim == 2 else x[row : row + 1] for name, x in inputs.items()}
        for row in range(R)
    ]
    return {"examples": np.array([_example(row) for row in rows], object)}


def _example(columns: Mapping[str, np.ndarray]) -> bytes:
    kinds = {"O": "bytes_list", "f": "float_list", "i": "int64_list"}
    example = tf.train.Example()
    for name, values in columns.items():
        getattr(example.features.feature[name], kinds[values.dtype.kind]).value.extend(values.tolist())
    return example.SerializeToString(deterministic=True)


def _reference(history: np.ndarray, history_length: np.ndarray, **candidates: np.ndarray) -> np.ndarray:
    """How often each candidate is in its row's history."""
    (ids,) = candidates.values()
    rows = [
        [np.count_nonzero(row[:length] == wanted) for wanted in np.ravel(some)]
        for row, length, some in zip(history, history_length, ids, strict=True)
    ]
    return np.array(rows, np.float32).reshape(ids.shape)


def _bytes(mutate: Callable[[_Rng, bytearray], bytearray]) -> _Make:
    """A mutation of the serialized request, of any method."""

    def make(rng: _Rng, requests: Requests) -> Request:
        other = _one(rng, list(_OTHERS)) if rng.random() < 0.2 else ""
        request = _OTHERS[other](rng, requests) if other else _request(PREDICT, requests.some(rng))
        return dataclasses.replace(request, data=bytes(mutate(rng, bytearray(request.data))))

    return make


def _flipped(rng: _Rng, data: bytearray) -> bytearray:
    for place in rng.integers(0, max(len(data), 1), rng.integers(1, 9)):
        if data:
            data[place] ^= int(rng.integers(1, 256))
    return data


def _truncated(rng: _Rng, data: bytearray) -> bytearray:
    return data[: rng.integers(0, max(len(data), 1))]


def _extended(rng: _Rng, data: bytearray) -> bytearray:
    place = int(rng.integers(0, len(data) + 1))
    return data[:place] + rng.bytes(int(rng.integers(1, 64))) + data[place:]


def _doubled(rng: _Rng, data: bytearray) -> bytearray:
    place = int(rng.integers(0, len(data) + 1))
    return data + data[place:]


def _message(mutate: Callable[[_Rng, predict_pb2.PredictRequest], None], **sizes: int) -> _Make:
    """A mutation of a Predict message."""

    def make(rng: _Rng, requests: Requests) -> Request:
        message = requests.some(rng, **sizes)
        mutate(rng, message)
        return _request(PREDICT, message)

    return make


def _tensor(mutate: Callable[[_Rng, tensor_pb2.TensorProto], None]) -> _Make:
    """A mutation of one input, or two, of a Predict message."""

    def mutate_some(rng: _Rng, message: predict_pb2.PredictRequest) -> None:
        for name in rng.choice(sorted(message.inputs), rng.integers(1, 3)):
            mutate(rng, message.inputs[name])

    return _message(mutate_some)


def _one(rng: _Rng, choices: Sequence[Any]) -> Any:
    # Not rng.choice, which makes an array of the choices: slow with long strings, and no Python values.
    return choices[int(rng.integers(len(choices)))]


def _name(rng: _Rng) -> str:
    return _one(rng, _NAMES)


def _dropped(rng: _Rng, message: predict_pb2.PredictRequest) -> None:
    for name in rng.choice(sorted(message.inputs), rng.integers(1, len(message.inputs) + 1), replace=False):
        del message.inputs[name]


def _added(rng: _Rng, message: predict_pb2.PredictRequest) -> None:
    for number in range(_one(rng, [1, 3, 1_000])):
        message.inputs[f"{_name(rng)}{number or ''}"].CopyFrom(tf.make_tensor_proto([1]))


def _renamed(rng: _Rng, message: predict_pb2.PredictRequest) -> None:
    old = _one(rng, sorted(message.inputs))
    message.inputs[f"{old}:0" if rng.random() < 0.5 else _name(rng)].CopyFrom(message.inputs[old])
    del message.inputs[old]


def _misaddressed(rng: _Rng, message: Any) -> None:
    spec = message.model_spec
    kind = rng.integers(6)
    if kind == 0:
        message.ClearField("model_spec")
    elif kind == 1:
        spec.name = _name(rng)
    elif kind == 2:
        spec.version.value = _one(rng, [-(1 << 63), -1, 0, 99, (1 << 63) - 1])
    elif kind == 3:
        spec.version_label = _name(rng)
    elif kind == 4:
        spec.signature_name = _one(rng, [*_NAMES, "__saved_model_init_op"])
    else:
        spec.Clear()


def _filtered(rng: _Rng, message: predict_pb2.PredictRequest) -> None:
    names = [*_NAMES, "probability", "probability", "positions"]
    message.output_filter.extend(_one(rng, names) for _ in range(_one(rng, [1, 2, 1_000])))


def _retyped(rng: _Rng, proto: tensor_pb2.TensorProto) -> None:
    if rng.random() < 0.5:
        proto.dtype = _one(rng, [*types_pb2.DataType.values(), 12345, -1, (1 << 31) - 1])
        return
    dtype = tf.as_dtype(_one(rng, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 17, 18, 19, 22, 23]))
    values = np.zeros([dim.size for dim in proto.tensor_shape.dim], dtype.as_numpy_dtype)
    proto.CopyFrom(tf.make_tensor_proto(values.astype(str) if dtype == tf.string else values, dtype=dtype))


def _miscounted(rng: _Rng, proto: tensor_pb2.TensorProto) -> None:
    """Values that are more or fewer than the shape says, in one field or in several."""
    kind = rng.integers(5)
    if kind == 0:
        proto.tensor_content = rng.bytes(_one(rng, [1, 3, 8, 24, 1_000]))
    elif kind == 1:
        proto.tensor_content = proto.tensor_content[:-1]
    elif kind == 2:
        proto.int64_val.extend(rng.integers(-9, 9, _one(rng, [1, 2, 1_000])).tolist())
    elif kind == 3:
        proto.string_val.extend([b"item 1"] * _one(rng, [1, 2, 1_000]))
    else:
        for field in ("tensor_content", "int64_val", "float_val", "string_val", "int_val"):
            proto.ClearField(field)


def _resized(rng: _Rng, proto: tensor_pb2.TensorProto) -> None:
    for dim in proto.tensor_shape.dim:
        if rng.random() < 0.7:
            dim.size = _one(rng, _SIZES)


def _repeated(rng: _Rng, proto: tensor_pb2.TensorProto) -> None:
    """A large shape with one value, which TensorFlow reads as that value over and over."""
    dtype, rank = proto.dtype, len(proto.tensor_shape.dim)
    sizes = [_one(rng, [1, 16, 256, 1 << 16, (1 << 16) + 1]) for _ in range(rank)]
    proto.CopyFrom(tensor_pb2.TensorProto(dtype=dtype, tensor_shape={"dim": [{"size": size} for size in sizes]}))
    values = {types_pb2.DT_STRING: proto.string_val, types_pb2.DT_FLOAT: proto.float_val}.get(dtype, proto.int64_val)
    values.append(b"item 1" if dtype == types_pb2.DT_STRING else 1)


def _reranked(rng: _Rng, proto: tensor_pb2.TensorProto) -> None:
    rank = int(rng.integers(0, 41))
    if rng.random() < 0.2:
        proto.tensor_shape.unknown_rank = True
    sizes = [dim.size for dim in proto.tensor_shape.dim][:rank]
    del proto.tensor_shape.dim[:]
    for size in [1] * (rank - len(sizes)) + sizes:
        proto.tensor_shape.dim.add(size=size)


def _emptied(rng: _Rng, proto: tensor_pb2.TensorProto) -> None:
    dtype = proto.dtype
    proto.Clear()
    if rng.random() < 0.7:
        proto.dtype = dtype
    for _ in range(rng.integers(0, 4)):
        proto.tensor_shape.dim.add(size=_one(rng, [0, 1, 5]))


def _revalued(rng: _Rng, proto: tensor_pb2.TensorProto) -> None:
    """Values at the ends of their types, or that no vocabulary holds."""
    shape = [dim.size for dim in proto.tensor_shape.dim]
    pool: Sequence[Any] = {types_pb2.DT_STRING: _STRINGS, types_pb2.DT_FLOAT: _FLOATS}.get(proto.dtype, _INT64)
    dtype = tf.as_dtype(proto.dtype)
    values = np.array(pool, dtype.as_numpy_dtype)[rng.integers(0, len(pool), shape)]
    proto.CopyFrom(tf.make_tensor_proto(values, dtype=dtype, shape=shape))


def _mislengthed(rng: _Rng, message: predict_pb2.PredictRequest) -> None:
    if "history_length" in message.inputs:  # not so in tf.Examples
        _revalued(rng, message.inputs["history_length"])


def _unequal(rng: _Rng, proto: tensor_pb2.TensorProto) -> None:
    """Another number of rows than the other inputs have."""
    values = tf.make_ndarray(proto)
    proto.CopyFrom(tf.make_tensor_proto(np.concatenate([values] * int(rng.integers(2, 5)))))


def _odd_fields(rng: _Rng, proto: tensor_pb2.TensorProto) -> None:
    """What a dense tensor of numbers or strings has no use for."""
    proto.version_number = int(rng.integers(-9, 9))
    proto.resource_handle_val.add(device=_name(rng), container=_name(rng))
    proto.variant_val.add(type_name=_name(rng), metadata=rng.bytes(8))
    proto.half_val.extend([1, 2, -3])


def _misparsed(rng: _Rng, requests: Requests) -> Request:
    """Broken tf.Examples."""
    inputs = _inputs(rng, RANKER, "examples")
    whole = tf.train.Example.FromString(inputs["examples"][0])
    feature = whole.features.feature[_one(rng, sorted(whole.features.feature))]
    kind = rng.integers(4)
    if kind == 0:
        feature.Clear()
    elif kind == 1:
        feature.int64_list.value.extend([1, -1])
    elif kind == 2:
        feature.bytes_list.value.append(_STRINGS[rng.integers(len(_STRINGS))])
    data = whole.SerializeToString(deterministic=True)
    if kind == 3:
        data = bytes((_flipped, _truncated, _extended)[rng.integers(3)](rng, bytearray(data)))
    inputs["examples"][0] = data
    return _request(PREDICT, _predict(RANKER, "examples", inputs))


def _long(rng: _Rng, requests: Requests) -> Request:
    return requests.good(rng, R=1, C=3, L=_LONG)


def _many(rng: _Rng, requests: Requests) -> Request:
    return requests.good(rng, R=_MANY_ROWS, C=2, L=5)


def _hurried(rng: _Rng, requests: Requests) -> Request:
    request = _request(PREDICT, requests.some(rng))
    return dataclasses.replace(request, timeout=_one(rng, [1e-6, 1e-3, 3e-3]))


def _unknown_method(rng: _Rng, requests: Requests) -> Request:
    paths = ("/tensorflow.serving.PredictionService/Nope", "/nope", "/tensorflow.serving.SessionService/SessionRun")
    return dataclasses.replace(_request(PREDICT, requests.some(rng)), method=_one(rng, paths))


def _metadata(rng: _Rng, requests: Requests) -> Request:
    message = get_model_metadata_pb2.GetModelMetadataRequest(model_spec={"name": _one(rng, [MODEL, RANKER])})
    message.metadata_field.extend(_one(rng, ["signature_def", *_NAMES]) for _ in range(rng.integers(0, 3)))
    if rng.random() < 0.7:
        _misaddressed(rng, message)
    return _request("/tensorflow.serving.PredictionService/GetModelMetadata", message)


def _status(rng: _Rng, requests: Requests) -> Request:
    message = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": _one(rng, [MODEL, RANKER])})
    _misaddressed(rng, message)
    return _request("/tensorflow.serving.ModelService/GetModelStatus", message)


def _classified(rng: _Rng, requests: Requests) -> Request:
    examples = [_example({"x": rng.random(3)}) for _ in range(rng.integers(0, 3))]
    examples_input = {"example_list": {"examples": [tf.train.Example.FromString(data) for data in examples]}}
    name, kind = "MultiInference", rng.integers(3)
    message: Any = inference_pb2.MultiInferenceRequest(input=examples_input)
    if kind < 2:
        name = ("Classify", "Regress")[kind]
        message_class = (classification_pb2.ClassificationRequest, regression_pb2.RegressionRequest)[kind]
        message = message_class(input=examples_input)
    specs = [message.tasks.add() for _ in range(rng.integers(0, 3))] if name == "MultiInference" else [message]
    for holder in specs:
        holder.model_spec.name = _one(rng, [MODEL, RANKER])
        holder.model_spec.signature_name = _one(rng, ["", *_SIGNATURES[RANKER]])
        if rng.random() < 0.5:
            _misaddressed(rng, holder)
    return _request(f"/tensorflow.serving.PredictionService/{name}", message)


def _reloaded(rng: _Rng, requests: Requests) -> Request:
    message = requests.reload
    models = message.config.model_config_list.config
    model = models[rng.integers(len(models))]
    root = model.base_path
    kind = rng.integers(9)
    if kind == 0:
        del models[rng.integers(len(models))]
    elif kind == 1:
        model.model_platform = _name(rng)
    elif kind == 2:
        paths = ["", "/", "/etc", "a\0b", "nope", ".", f"{root}/..", f"{root}/1", f"{root}/nope", "x" * 10_000, "~"]
        model.base_path = _one(rng, paths)
    elif kind == 3:
        model.name = _one(rng, [*_NAMES, MODEL])
    elif kind == 4:
        model.version_labels[_name(rng)] = _one(rng, [-1, 0, 1, 99, (1 << 63) - 1])
    elif kind == 5:
        model.model_version_policy.specific.versions.extend(rng.integers(-2, 4, rng.integers(0, 4)).tolist())
    elif kind == 6:
        model.model_version_policy.latest.num_versions = _one(rng, [0, 1, 2, (1 << 32) - 1])
    elif kind == 7:
        message.config.custom_model_config.type_url = _name(rng)
    else:
        message.ClearField("config")
    return _request(RELOAD, message)


_OTHERS: Mapping[str, _Make] = {
    "GetModelMetadata": _metadata,
    "GetModelStatus": _status,
    "Classify, Regress, MultiInference": _classified,
}
# How often each comes, against 1 for most: some cost a second of work.
_MUTATIONS: Mapping[str, tuple[float, _Make]] = {
    "bytes flipped": (3, _bytes(_flipped)),
    "bytes truncated": (2, _bytes(_truncated)),
    "bytes extended": (2, _bytes(_extended)),
    "bytes doubled": (1, _bytes(_doubled)),
    "inputs missing": (1, _message(_dropped)),
    "inputs added": (1, _message(_added)),
    "input renamed": (1, _message(_renamed)),
    "model_spec": (2, _message(_misaddressed)),
    "output_filter": (1, _message(_filtered)),
    "dtype": (2, _tensor(_retyped)),
    "number of values": (2, _tensor(_miscounted)),
    "sizes": (2, _tensor(_resized)),
    "one value repeated": (1, _tensor(_repeated)),
    "rank": (1, _tensor(_reranked)),
    "empty tensors": (1, _tensor(_emptied)),
    "values": (2, _tensor(_revalued)),
    "history_length": (1, _message(_mislengthed)),
    "unequal rows": (1, _tensor(_unequal)),
    "odd fields": (1, _tensor(_odd_fields)),
    "tf.Examples": (2, _misparsed),
    f"history of {_LONG:,}": (0.1, _long),
    f"{_MANY_ROWS:,} rows": (0.2, _many),
    "short deadline": (0.5, _hurried),
    "unknown method": (0.3, _unknown_method),
    **{name: (1.0, make) for name, make in _OTHERS.items()},
    "HandleReloadConfigRequest": (0.3, _reloaded),
}


def ask(channel: grpc.Channel, request: Request) -> tuple[grpc.StatusCode | None, Any]:
    """Sends a request.

    Returns:
        The status code, and the answer's bytes or the error's message; `None` and "" if nothing came in time.
    """
    call = channel.unary_unary(request.method).future(request.data, timeout=request.timeout)
    try:
        return _Code.OK, call.result(timeout=request.timeout + _LATE_SECONDS)
    except grpc.FutureTimeoutError:
        call.cancel()
        return None, ""
    except grpc.RpcError as error:
        return error.code(), error.details()


def fault_of(request: Request, code: grpc.StatusCode | None, answer: Any) -> str:
    """What is wrong with an answer, in words; empty if nothing."""
    if code is None:
        return f"no answer after {request.timeout + _LATE_SECONDS} s"
    if request.expected is not None:
        return f"a good request got {code.name}: {answer}" if code is not _Code.OK else _difference(request, answer)
    allowed = [*_REFUSALS]
    if request.timeout < _DEADLINE_SECONDS:
        allowed.append(_Code.DEADLINE_EXCEEDED)
    if request.method == RELOAD:
        allowed += [_Code.PERMISSION_DENIED, _Code.UNKNOWN]  # UNKNOWN: TensorFlow Serving's for what can't be loaded
    if code is _Code.INTERNAL and not _parses(request):
        return ""  # gRPC's own code for what can't be parsed
    return "" if code in allowed else f"{code.name}: {answer}"


def _parses(request: Request) -> bool:
    try:
        request.message_class.FromString(request.data)
    except DecodeError:
        return False
    return True


def _difference(request: Request, answer: bytes) -> str:
    response = predict_pb2.PredictResponse.FromString(answer)
    expected: Mapping[str, np.ndarray] = request.expected or {}
    if response.model_spec.version.value != request.version:
        return f"version {response.model_spec.version.value} answered, not {request.version}"
    if response.outputs.keys() != expected.keys():
        return f"outputs {sorted(response.outputs)}, not {sorted(expected)}"
    for name, values in expected.items():
        received = tf.make_ndarray(response.outputs[name])
        # Sums of floats in another order; integers are equal or not.
        if received.shape != values.shape or not np.allclose(received, values, rtol=1e-5, atol=1e-6, equal_nan=True):
            return f"wrong {name!r}: {received.tolist()}, not {values.tolist()}"[:1_000]
    return ""


@dataclasses.dataclass
class Report:
    """What a run saw.

    Args:
        counts: answers by mutation and code.
        faults: what went wrong, by index of the request; the run's own under -1.
        memory: the server's resident set in bytes after the warm-up and at the end; zeros if it was not to be seen.
    """

    counts: collections.Counter[tuple[str, str]]
    faults: list[tuple[int, str]]
    memory: tuple[int, int] = (0, 0)

    def table(self) -> str:
        """The counts as text."""
        return pd.Series(self.counts).unstack(fill_value=0).to_string()


def run(
    channel: grpc.Channel, requests: Requests, indices: Iterable[int], server: ServerProcess | None = None
) -> Report:
    """Sends requests one after the other.

    Args:
        channel: to the server.
        requests: where they are from.
        indices: which ones.
        server: the server, if it can be watched.

    Returns:
        The report; after a crash of the server, of what came before.
    """
    indices = list(indices)
    report = Report(collections.Counter(), [])
    before, warm = 0, int(len(indices) * _WARM_UP)
    for number, index in enumerate(tqdm(indices, unit="request", mininterval=1)):
        if number == warm and server:
            _load_again(channel, requests)
            before = _settled(server)
        request = requests[index]
        code, answer = ask(channel, request)
        report.counts[request.mutation, code.name if code else "none"] += 1
        if fault := fault_of(request, code, answer):
            report.faults.append((index, f"{request.mutation}: {fault}"))
        if server and server.exit_code is not None:
            report.faults.append((index, f"the server ended with {server.exit_code}: {server.last_words()}"))
            return report
        if request.method == RELOAD and code is _Code.OK:
            code, answer = ask(channel, _request(RELOAD, requests.reload))
            if code is not _Code.OK:
                report.faults.append((index, f"the reload of what was before got {code}: {answer}"))
    if server:
        report.memory = before, _settled(server)
        if len(indices) >= _MIN_REQUESTS_FOR_MEMORY and report.memory[1] > _MEMORY_FACTOR * before:
            report.faults.append((-1, f"memory grew by more than {_MEMORY_FACTOR - 1:.0%}"))
    return report


def _load_again(channel: grpc.Channel, requests: Requests) -> None:
    """Has models dropped and loaded so often that memory no longer grows by that: it levels off after a few times."""
    alone = requests.reload
    del alone.config.model_config_list.config[1:]
    for _ in range(_LOADS):
        for message in (alone, requests.reload):
            ask(channel, _request(RELOAD, message))


def _settled(server: ServerProcess) -> int:
    time.sleep(1)  # what was asked with a short deadline may still be worked on
    return server.memory


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzzes a server and prints what came back.

    Returns:
        The exit code: 1 if anything is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m serving.fuzz", description="Send a server thousands of broken requests, and good ones between."
    )
    parser.add_argument("--requests", type=int, default=20_000, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the run (default: %(default)s)")
    parser.add_argument("--only", type=int, metavar="INDEX", help="send this request of the run alone, and show it")
    parser.add_argument(
        "--target", metavar="HOST:PORT", help="a server of --models (default: the embedded server, started for it)"
    )
    parser.add_argument("--models", type=Path, metavar="DIR", help="what --make_models wrote")
    parser.add_argument("--make_models", type=Path, metavar="DIR", help="write models and a models.config, no more")
    flags = parser.parse_args(argv)
    if flags.requests < 1 or flags.seed < 0:
        parser.error("--requests must be positive and --seed not negative")
    if flags.target and not flags.models:
        parser.error("--target needs --models: answers are checked against them")
    if flags.make_models:
        make_models(flags.make_models)
        print(f"Serve them with: {server_command(flags.make_models / 'models.config')}")
        return 0
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models = flags.models or folder
        if not flags.models:
            make_models(models)
        server = None
        if not flags.target:
            server = ServerProcess(
                f"--model_config_file={models}/models.config",
                "--file_system_poll_wait_seconds=0",
                "--allow_version_labels_for_unavailable_models",
                log=folder / "server.log",
            )
            stack.enter_context(server)
        target = server.address if server else flags.target
        channel = stack.enter_context(grpc.insecure_channel(target, [*options, proxy_option(target)]))
        try:
            grpc.channel_ready_future(channel).result(timeout=_CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            print(f"error: nothing answers at {flags.target}", file=sys.stderr)
            return 1
        requests = Requests(models, flags.seed)
        if flags.only is not None:
            print(requests[flags.only])
            code, answer = ask(channel, requests[flags.only])
            print(
                f"{code.name if code else 'no answer'}: {len(answer)} bytes"
                if code is _Code.OK
                else f"{code}: {answer}"
            )
        report = run(channel, requests, range(flags.requests) if flags.only is None else [flags.only], server)
    print(report.table())
    if server:
        before, after = report.memory
        print(f"Resident memory of the server: {before >> 20} MiB after the warm-up, {after >> 20} MiB at the end")
    for index, fault in report.faults:
        again = f"--seed {flags.seed} --only {index}" if index >= 0 else "run"
        print(f"FAULT ({again}): {fault}")
    print(f"{sum(report.counts.values())} requests, {len(report.faults)} faults")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
