"""The client's own messages and tensors against those of TensorFlow Serving, and a client without TensorFlow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import any_pb2, wrappers_pb2
from google.protobuf.descriptor import FieldDescriptor
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
    status_pb2,
)

from serving.client import protocol
from serving.client.tensors import dtype_name, numpy_dtype, read_tensor, write_tensor

_ROOT = Path(__file__).parents[3]
_GENERATED: dict[str, Any] = {
    "Any": any_pb2.Any,
    "Int64Value": wrappers_pb2.Int64Value,
    "Dim": tensor_shape_pb2.TensorShapeProto.Dim,
    "TensorShapeProto": tensor_shape_pb2.TensorShapeProto,
    "TensorProto": tensor_pb2.TensorProto,
    "TensorInfo": meta_graph_pb2.TensorInfo,
    "SignatureDef": meta_graph_pb2.SignatureDef,
    "SignatureDefMap": get_model_metadata_pb2.SignatureDefMap,
    "ModelSpec": model_pb2.ModelSpec,
    "PredictRequest": predict_pb2.PredictRequest,
    "PredictResponse": predict_pb2.PredictResponse,
    "GetModelMetadataRequest": get_model_metadata_pb2.GetModelMetadataRequest,
    "GetModelMetadataResponse": get_model_metadata_pb2.GetModelMetadataResponse,
    "GetModelStatusRequest": get_model_status_pb2.GetModelStatusRequest,
    "StatusProto": status_pb2.StatusProto,
    "ModelVersionStatus": get_model_status_pb2.ModelVersionStatus,
    "GetModelStatusResponse": get_model_status_pb2.GetModelStatusResponse,
}
_NUMBERS = ["float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


def _kind(field: Any) -> int:
    """The type of a field as it travels: enums are int32."""
    return FieldDescriptor.TYPE_INT32 if field.type == FieldDescriptor.TYPE_ENUM else field.type


@pytest.mark.parametrize("name", _GENERATED)
def test_fields_are_those_of_the_generated_messages(name: str) -> None:
    generated = _GENERATED[name].DESCRIPTOR
    own_class = protocol._CLASSES[name]
    own = own_class.DESCRIPTOR
    assert own.fields
    for field in own.fields:
        other = generated.fields_by_name[field.name]
        assert (field.number, field.type) == (other.number, _kind(other)), field.name
        if field.message_type is not None:
            assert field.message_type.name == other.message_type.name, field.name
            assert field.message_type.GetOptions().map_entry == other.message_type.GetOptions().map_entry
        repeated = [hasattr(getattr(message(), field.name), "extend") for message in (own_class, _GENERATED[name])]
        assert repeated[0] == repeated[1], field.name


def test_no_message_is_compared_with_none() -> None:
    assert set(protocol._CLASSES) == set(_GENERATED)


def test_every_dtype_has_tensorflows_name() -> None:
    numbers = [number for number in types_pb2.DataType.values() if 0 < number < 100]
    for number in numbers:
        try:
            name = tf.as_dtype(number).name
        except TypeError:  # a newer DataType, which TensorFlow's Python has not
            continue
        assert dtype_name(number) == name
    assert dtype_name(99) == "dtype 99"


def test_every_state_has_its_name() -> None:
    states = get_model_status_pb2.ModelVersionStatus.State
    assert [protocol.state_name(number) for number in states.values()] == states.keys()
    assert protocol.state_name(60) == "STATE_60"


@pytest.mark.parametrize("dtype", [*_NUMBERS, "bool", "complex64", "complex128"])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0, 4)])
def test_written_numbers_are_read_by_tensorflow(dtype: str, shape: tuple[int, ...]) -> None:
    array = (np.arange(np.prod(shape, dtype=int)) % 2 * 7).astype(dtype).reshape(shape)
    read = tf.make_ndarray(tensor_pb2.TensorProto.FromString(write_tensor(array).SerializeToString()))
    assert (read.dtype, read.shape, read.tolist()) == (array.dtype, array.shape, array.tolist())


@pytest.mark.parametrize("dtype", [*_NUMBERS, "bool", "complex64", "complex128"])
@pytest.mark.parametrize("values", [[[1, 0, 1], [0, 1, 1]], [[1]], 1, [[]]])
def test_numbers_written_by_tensorflow_are_read(dtype: str, values: Any) -> None:
    array = np.array(values, dtype) * np.array(3, dtype)
    content = tf.make_tensor_proto(array)
    single = tensor_pb2.TensorProto(dtype=content.dtype, tensor_shape=content.tensor_shape)
    field = {"float32": "float_val", "float64": "double_val", "float16": "half_val", "complex64": "scomplex_val"}.get(
        dtype, "dcomplex_val" if dtype == "complex128" else f"{dtype}_val"
    )
    if not hasattr(single, field):
        field = "int_val"
    if dtype == "float16":
        getattr(single, field).extend(array.view(np.uint16).ravel().tolist())
    elif dtype.startswith("complex"):
        getattr(single, field).extend(part for value in array.ravel() for part in (value.real, value.imag))
    else:
        getattr(single, field).extend(array.ravel().tolist())
    for proto in (content, single):
        read = read_tensor(protocol.TensorProto.FromString(proto.SerializeToString()))
        assert (read.dtype, read.shape, read.tolist()) == (array.dtype, array.shape, array.tolist())


def test_strings_travel_as_bytes() -> None:
    array = np.array([[b"a", b""], [b"\xff\0", b"d"]], object)
    proto = tensor_pb2.TensorProto.FromString(write_tensor(array).SerializeToString())
    assert tf.make_ndarray(proto).tolist() == array.tolist()
    assert read_tensor(write_tensor(array)).tolist() == array.tolist()
    assert read_tensor(write_tensor(array[:0])).shape == (0, 2)


def test_slices_travel_in_their_own_order() -> None:
    array = np.arange(12, dtype=np.int64).reshape(3, 4)
    assert read_tensor(write_tensor(array[:, 1:3])).tolist() == [[1, 2], [5, 6], [9, 10]]


def test_bfloat16_is_read_as_float32() -> None:
    values = np.array([[1.5, -2.0, 3.140625]], ml_dtypes.bfloat16)
    content = protocol.TensorProto.FromString(tf.make_tensor_proto(values).SerializeToString())
    single = protocol.TensorProto(dtype=14, tensor_shape=content.tensor_shape, half_val=[0x3FC0, 0xC000, 0x4049])
    for proto in (content, single):
        read = read_tensor(proto)
        assert (read.dtype, read.tolist()) == (np.float32, [[1.5, -2.0, 3.140625]])


def test_values_that_are_left_out_repeat_the_last_one() -> None:
    shape = {"dim": [{"size": 2}, {"size": 2}]}
    repeated = protocol.TensorProto(dtype=9, tensor_shape=shape, int64_val=[5, 6])
    assert read_tensor(repeated).tolist() == [[5, 6], [6, 6]]
    assert read_tensor(protocol.TensorProto(dtype=7, tensor_shape=shape)).tolist() == [[b"", b""], [b"", b""]]
    assert read_tensor(protocol.TensorProto(dtype=1, tensor_shape=shape)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("proto", "text"),
    [
        ({"dtype": 1, "float_val": [1, 2]}, "A tensor of shape () must hold at most 1 values. Received: 2"),
        ({"dtype": 20}, "NumPy has no arrays of TensorFlow's dtype 'resource'."),
        ({"dtype": 99}, "NumPy has no arrays of TensorFlow's dtype 'dtype 99'."),
    ],
)
def test_tensors_that_are_no_arrays_are_refused(proto: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        read_tensor(protocol.TensorProto(**proto))


def test_dtypes_to_send() -> None:
    assert [numpy_dtype(name).str for name in ("string", "int64", "bool", "float16")] == ["|O", "<i8", "|b1", "<f2"]
    with pytest.raises(ValueError, match=r"^NumPy has no arrays of TensorFlow's dtype 'bfloat16'\.$"):
        numpy_dtype("bfloat16")


_SCRIPT = """
import asyncio, json, sys
from serving.client import AsyncRankingClient, RankingClient

target, request = sys.argv[1], json.loads(sys.argv[2])

async def awaited():
    async with AsyncRankingClient(target) as client:
        return (await client.rank(**request)).probability.tolist()

with RankingClient(target) as client:
    before = client.rank(**request).probability.tolist()
    explanation = client.explain(**request)
    client.status()
    answers = [before, explanation.probability.tolist(), asyncio.run(awaited())]
    loaded = {name.partition(".")[0] for name in sys.modules}
    # TensorFlow has messages of the same names.
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2
    answers.append(client.rank(**request).probability.tolist())
sent = predict_pb2.PredictRequest(inputs={"x": tf.make_tensor_proto([1])})
print(json.dumps([answers, sorted(loaded), list(sent.inputs)]))
"""


@pytest.mark.slow
def test_client_needs_no_tensorflow_and_bears_it(contract_servers: dict[str, str]) -> None:
    """The other order, TensorFlow first, is that of every other test."""
    request = {
        "candidates": {"item_id": [1, 2], "category_id": [0, 0]},
        "history": {"item_id": [2, 3], "category_id": [1, 1], "rating": [0.25, 4.0]},
        "user": {"user_id": 0},
        "context": {"hour": 0},
    }
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, contract_servers["int64"], json.dumps(request)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answers, loaded, inputs = json.loads(done.stdout)
    assert answers == [[0.0, 0.25]] * 4
    assert {"numpy", "grpc", "google", "serving"} <= set(loaded)
    assert {"tensorflow", "tensorflow_serving", "pandas", "tf_keras"} & set(loaded) == set()
    assert inputs == ["x"]
