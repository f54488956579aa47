"""TensorProtos as NumPy arrays, and TensorFlow's dtypes as NumPy's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from serving.client.protocol import TensorProto

# TensorFlow's DataType, by its numbers, as `tf.as_dtype(number).name` names it.
_NAMES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "string",
    8: "complex64",
    9: "int64",
    10: "bool",
    11: "qint8",
    12: "quint8",
    13: "qint32",
    14: "bfloat16",
    15: "qint16",
    16: "quint16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    20: "resource",
    21: "variant",
    22: "uint32",
    23: "uint64",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
    29: "int4",
    30: "uint4",
}
_NUMBERS = {name: number for number, name in _NAMES.items()}

# Where a TensorProto keeps the values of a dtype, one by one, and as what.
_VALUE_FIELDS = {
    "float32": ("float_val", "float32"),
    "float64": ("double_val", "float64"),
    **dict.fromkeys(("int8", "int16", "int32", "uint8", "uint16"), ("int_val", "int32")),
    "int64": ("int64_val", "int64"),
    "uint32": ("uint32_val", "uint32"),
    "uint64": ("uint64_val", "uint64"),
    "bool": ("bool_val", "bool"),
    "complex64": ("scomplex_val", "float32"),
    "complex128": ("dcomplex_val", "float64"),
    # Sixteen bits each, as an integer.
    "float16": ("half_val", "uint16"),
    "bfloat16": ("half_val", "uint16"),
}


def dtype_name(number: int) -> str:
    """TensorFlow's name of a DataType: `int64`, `float32`, `string`."""
    return _NAMES.get(number, f"dtype {number}")


def numpy_dtype(name: str) -> np.dtype:
    """NumPy's dtype of arrays that are sent and received as TensorFlow's dtype `name`; `object` of bytes for strings.

    Raises:
        ValueError: if NumPy has none.
    """
    if name == "string":
        return np.dtype(object)
    if name not in _VALUE_FIELDS or name == "bfloat16":
        raise ValueError(f"NumPy has no arrays of TensorFlow's dtype {name!r}.")
    return np.dtype(name)


def write_tensor(array: np.ndarray) -> Any:
    """A TensorProto of an array of numbers or, as objects, of bytes."""
    proto = TensorProto(dtype=_NUMBERS["string" if array.dtype.kind == "O" else array.dtype.name])
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if array.dtype.kind == "O":
        proto.string_val.extend(array.ravel().tolist())
    else:
        proto.tensor_content = array.tobytes()
    return proto


def read_tensor(proto: Any) -> np.ndarray:
    """The array of a TensorProto: strings as objects of bytes, bfloat16 as float32.

    Fewer values than the shape has places stand for the last one repeated, and none for zeros.

    Raises:
        ValueError: if NumPy has no such arrays, or the values are more than the shape has places.
    """
    name = dtype_name(proto.dtype)
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if name == "string":
        return _spread(np.array(proto.string_val, object), shape, filler=b"")
    if name not in _VALUE_FIELDS:
        numpy_dtype(name)
    field, kind = _VALUE_FIELDS[name]
    raw = np.dtype(np.uint16 if name == "bfloat16" else name)
    if proto.tensor_content:
        values = np.frombuffer(bytearray(proto.tensor_content), raw)
    else:
        values = np.array(getattr(proto, field), kind)
        values = values.astype(raw) if field == "int_val" else values.view(raw)
    if name == "bfloat16":
        # The upper half of a float32.
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return _spread(values, shape, filler=0)


def _spread(values: np.ndarray, shape: list[int], filler: Any) -> np.ndarray:
    places = math.prod(shape)
    if len(values) > places:
        raise ValueError(f"A tensor of shape {tuple(shape)} must hold at most {places} values. Received: {len(values)}")
    if len(values) < places:
        rest = np.full(places - len(values), values[-1] if len(values) else filler, values.dtype)
        values = np.concatenate([values, rest])
    return values.reshape(shape)
