"""Mutations of good requests: of their bytes, of Predict messages, of the other methods' messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    predict_pb2,
    regression_pb2,
)

from keras_eta.export.examples import make_example
from serving.tools.fuzz import tensors
from serving.tools.fuzz.requests import (
    PREDICT,
    RANKER,
    RELOAD,
    SIGNATURES,
    GoodRequests,
    RawRequest,
    Rng,
    good_inputs,
    one_of,
    predict_request,
    raw_request,
)
from serving.tools.fuzz.tensors import NAMES, STRINGS, odd_name
from serving.tools.reference_model import MODEL

GOOD = "none: a good request"

# One request in so many is a good one.
_GOOD_EVERY = 5
_LONG = 1_000_000
_MANY_ROWS = 5_000
_Make = Callable[[Rng, GoodRequests], RawRequest]


def _bytes(mutate: Callable[[Rng, bytearray], bytearray]) -> _Make:
    """A mutation of the serialized request, of any method."""

    def make(rng: Rng, requests: GoodRequests) -> RawRequest:
        other = one_of(rng, list(_OTHERS)) if rng.random() < 0.2 else ""
        request = _OTHERS[other](rng, requests) if other else raw_request(PREDICT, requests.some(rng))
        return dataclasses.replace(request, data=bytes(mutate(rng, bytearray(request.data))))

    return make


def _flipped(rng: Rng, data: bytearray) -> bytearray:
    for place in rng.integers(0, max(len(data), 1), rng.integers(1, 9)):
        if data:
            data[place] ^= int(rng.integers(1, 256))
    return data


def _truncated(rng: Rng, data: bytearray) -> bytearray:
    return data[: rng.integers(0, max(len(data), 1))]


def _extended(rng: Rng, data: bytearray) -> bytearray:
    place = int(rng.integers(0, len(data) + 1))
    return data[:place] + rng.bytes(int(rng.integers(1, 64))) + data[place:]


def _doubled(rng: Rng, data: bytearray) -> bytearray:
    place = int(rng.integers(0, len(data) + 1))
    return data + data[place:]


def _message(mutate: Callable[[Rng, predict_pb2.PredictRequest], None], **sizes: int) -> _Make:
    """A mutation of a Predict message."""

    def make(rng: Rng, requests: GoodRequests) -> RawRequest:
        message = requests.some(rng, **sizes)
        mutate(rng, message)
        return raw_request(PREDICT, message)

    return make


def _tensor(mutate: Callable[[Rng, tensor_pb2.TensorProto], None]) -> _Make:
    """A mutation of one input, or two, of a Predict message."""

    def mutate_some(rng: Rng, message: predict_pb2.PredictRequest) -> None:
        for name in rng.choice(sorted(message.inputs), rng.integers(1, 3)):
            mutate(rng, message.inputs[name])

    return _message(mutate_some)


def _dropped(rng: Rng, message: predict_pb2.PredictRequest) -> None:
    for name in rng.choice(sorted(message.inputs), rng.integers(1, len(message.inputs) + 1), replace=False):
        del message.inputs[name]


def _added(rng: Rng, message: predict_pb2.PredictRequest) -> None:
    for number in range(one_of(rng, [1, 3, 1_000])):
        message.inputs[f"{odd_name(rng)}{number or ''}"].CopyFrom(tf.make_tensor_proto([1]))


def _renamed(rng: Rng, message: predict_pb2.PredictRequest) -> None:
    old = one_of(rng, sorted(message.inputs))
    message.inputs[f"{old}:0" if rng.random() < 0.5 else odd_name(rng)].CopyFrom(message.inputs[old])
    del message.inputs[old]


def _misaddressed(rng: Rng, message: Any) -> None:
    spec = message.model_spec
    kind = rng.integers(6)
    if kind == 0:
        message.ClearField("model_spec")
    elif kind == 1:
        spec.name = odd_name(rng)
    elif kind == 2:
        spec.version.value = one_of(rng, [-(1 << 63), -1, 0, 99, (1 << 63) - 1])
    elif kind == 3:
        spec.version_label = odd_name(rng)
    elif kind == 4:
        spec.signature_name = one_of(rng, [*NAMES, "__saved_model_init_op"])
    else:
        spec.Clear()


def _filtered(rng: Rng, message: predict_pb2.PredictRequest) -> None:
    names = [*NAMES, "probability", "probability", "positions"]
    message.output_filter.extend(one_of(rng, names) for _ in range(one_of(rng, [1, 2, 1_000])))


def _mislengthed(rng: Rng, message: predict_pb2.PredictRequest) -> None:
    if "history_length" in message.inputs:  # not so in tf.Examples
        tensors.revalued(rng, message.inputs["history_length"])


def _misparsed(rng: Rng, requests: GoodRequests) -> RawRequest:
    """Broken tf.Examples."""
    inputs = good_inputs(rng, RANKER, "examples")
    whole = tf.train.Example.FromString(inputs["examples"][0])
    feature = whole.features.feature[one_of(rng, sorted(whole.features.feature))]
    kind = rng.integers(4)
    if kind == 0:
        feature.Clear()
    elif kind == 1:
        feature.int64_list.value.extend([1, -1])
    elif kind == 2:
        feature.bytes_list.value.append(STRINGS[rng.integers(len(STRINGS))])
    data = whole.SerializeToString(deterministic=True)
    if kind == 3:
        data = bytes((_flipped, _truncated, _extended)[rng.integers(3)](rng, bytearray(data)))
    inputs["examples"][0] = data
    return raw_request(PREDICT, predict_request(RANKER, "examples", inputs))


def _long(rng: Rng, requests: GoodRequests) -> RawRequest:
    return requests.good(rng, R=1, C=3, L=_LONG)


def _many(rng: Rng, requests: GoodRequests) -> RawRequest:
    return requests.good(rng, R=_MANY_ROWS, C=2, L=5)


def _hurried(rng: Rng, requests: GoodRequests) -> RawRequest:
    request = raw_request(PREDICT, requests.some(rng))
    return dataclasses.replace(request, timeout=one_of(rng, [1e-6, 1e-3, 3e-3]))


def _unknown_method(rng: Rng, requests: GoodRequests) -> RawRequest:
    paths = ("/tensorflow.serving.PredictionService/Nope", "/nope", "/tensorflow.serving.SessionService/SessionRun")
    return dataclasses.replace(raw_request(PREDICT, requests.some(rng)), method=one_of(rng, paths))


def _metadata(rng: Rng, requests: GoodRequests) -> RawRequest:
    message = get_model_metadata_pb2.GetModelMetadataRequest(model_spec={"name": one_of(rng, [MODEL, RANKER])})
    message.metadata_field.extend(one_of(rng, ["signature_def", *NAMES]) for _ in range(rng.integers(0, 3)))
    if rng.random() < 0.7:
        _misaddressed(rng, message)
    return raw_request("/tensorflow.serving.PredictionService/GetModelMetadata", message)


def _status(rng: Rng, requests: GoodRequests) -> RawRequest:
    message = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": one_of(rng, [MODEL, RANKER])})
    _misaddressed(rng, message)
    return raw_request("/tensorflow.serving.ModelService/GetModelStatus", message)


def _classified(rng: Rng, requests: GoodRequests) -> RawRequest:
    examples = [make_example({"x": rng.random(3)}) for _ in range(rng.integers(0, 3))]
    examples_input = {"example_list": {"examples": examples}}
    name, kind = "MultiInference", rng.integers(3)
    message: Any = inference_pb2.MultiInferenceRequest(input=examples_input)
    if kind < 2:
        name = ("Classify", "Regress")[kind]
        message_class = (classification_pb2.ClassificationRequest, regression_pb2.RegressionRequest)[kind]
        message = message_class(input=examples_input)
    specs = [message.tasks.add() for _ in range(rng.integers(0, 3))] if name == "MultiInference" else [message]
    for holder in specs:
        holder.model_spec.name = one_of(rng, [MODEL, RANKER])
        holder.model_spec.signature_name = one_of(rng, ["", *SIGNATURES[RANKER]])
        if rng.random() < 0.5:
            _misaddressed(rng, holder)
    return raw_request(f"/tensorflow.serving.PredictionService/{name}", message)


def _reloaded(rng: Rng, requests: GoodRequests) -> RawRequest:
    message = requests.reload
    models = message.config.model_config_list.config
    model = models[rng.integers(len(models))]
    root = model.base_path
    kind = rng.integers(9)
    if kind == 0:
        del models[rng.integers(len(models))]
    elif kind == 1:
        model.model_platform = odd_name(rng)
    elif kind == 2:
        paths = ["", "/", "/etc", "a\0b", "nope", ".", f"{root}/..", f"{root}/1", f"{root}/nope", "x" * 10_000, "~"]
        model.base_path = one_of(rng, paths)
    elif kind == 3:
        model.name = one_of(rng, [*NAMES, MODEL])
    elif kind == 4:
        model.version_labels[odd_name(rng)] = one_of(rng, [-1, 0, 1, 99, (1 << 63) - 1])
    elif kind == 5:
        model.model_version_policy.specific.versions.extend(rng.integers(-2, 4, rng.integers(0, 4)).tolist())
    elif kind == 6:
        model.model_version_policy.latest.num_versions = one_of(rng, [0, 1, 2, (1 << 32) - 1])
    elif kind == 7:
        message.config.custom_model_config.type_url = odd_name(rng)
    else:
        message.ClearField("config")
    return raw_request(RELOAD, message)


_OTHERS: Mapping[str, _Make] = {
    "GetModelMetadata": _metadata,
    "GetModelStatus": _status,
    "Classify, Regress, MultiInference": _classified,
}
# How often each comes, against 1 for most: some cost a second of work.
MUTATIONS: Mapping[str, tuple[float, _Make]] = {
    "bytes flipped": (3, _bytes(_flipped)),
    "bytes truncated": (2, _bytes(_truncated)),
    "bytes extended": (2, _bytes(_extended)),
    "bytes doubled": (1, _bytes(_doubled)),
    "inputs missing": (1, _message(_dropped)),
    "inputs added": (1, _message(_added)),
    "input renamed": (1, _message(_renamed)),
    "model_spec": (2, _message(_misaddressed)),
    "output_filter": (1, _message(_filtered)),
    "dtype": (2, _tensor(tensors.retyped)),
    "number of values": (2, _tensor(tensors.miscounted)),
    "sizes": (2, _tensor(tensors.resized)),
    "one value repeated": (1, _tensor(tensors.repeated)),
    "rank": (1, _tensor(tensors.reranked)),
    "empty tensors": (1, _tensor(tensors.emptied)),
    "values": (2, _tensor(tensors.revalued)),
    "history_length": (1, _message(_mislengthed)),
    "unequal rows": (1, _tensor(tensors.unequal)),
    "odd fields": (1, _tensor(tensors.odd_fields)),
    "tf.Examples": (2, _misparsed),
    f"history of {_LONG:,}": (0.1, _long),
    f"{_MANY_ROWS:,} rows": (0.2, _many),
    "short deadline": (0.5, _hurried),
    "unknown method": (0.3, _unknown_method),
    **{name: (1.0, make) for name, make in _OTHERS.items()},
    "HandleReloadConfigRequest": (0.3, _reloaded),
}


class Requests(GoodRequests):
    """The requests of a run: `requests[index]` is the same one whenever the seed is.

    Args:
        folder: what `make_models` wrote.
        seed: the run's.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder)
        self._seed = seed
        weights = np.array([weight for weight, _ in MUTATIONS.values()])
        self._chances = weights / weights.sum()

    def __getitem__(self, index: int) -> RawRequest:
        rng = np.random.default_rng([self._seed, index])
        if index % _GOOD_EVERY == 0:
            return dataclasses.replace(self.good(rng), mutation=GOOD)
        mutation = str(rng.choice(list(MUTATIONS), p=self._chances))
        return dataclasses.replace(MUTATIONS[mutation][1](rng, self), mutation=mutation)
