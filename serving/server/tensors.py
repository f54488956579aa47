"""Reads and writes TensorProtos, checked before anything is allocated for them."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from serving.server.status import invalid_argument

# Where a TensorProto keeps the values of a dtype, one by one.
_VALUE_FIELDS = {
    types_pb2.DT_FLOAT: "float_val",
    types_pb2.DT_DOUBLE: "double_val",
    **dict.fromkeys((types_pb2.DT_INT8, types_pb2.DT_INT16, types_pb2.DT_INT32), "int_val"),
    **dict.fromkeys((types_pb2.DT_UINT8, types_pb2.DT_UINT16), "int_val"),
    types_pb2.DT_INT64: "int64_val",
    types_pb2.DT_UINT32: "uint32_val",
    types_pb2.DT_UINT64: "uint64_val",
    types_pb2.DT_BOOL: "bool_val",
    types_pb2.DT_STRING: "string_val",
}
_NUMPY_DTYPES = {dtype: np.dtype(tf.as_dtype(dtype).as_numpy_dtype) for dtype in _VALUE_FIELDS}
_DTYPES = {numpy_dtype: dtype for dtype, numpy_dtype in _NUMPY_DTYPES.items()}

# A TensorProto may hold fewer values than its shape and mean "the last one, repeated". Up to this many elements.
_MAX_REPEATED_ELEMENTS = 1 << 10
_MAX_VALUES_ONE_BY_ONE = 1 << 10
# NumPy's, before version 2.
_MAX_RANK = 32


def read_tensor(name: str, proto: tensor_pb2.TensorProto, dtype: int, index: int) -> np.ndarray:
    """The array that a request sends for one input.

    Args:
        name: name of the input.
        proto: what the request holds.
        dtype: the DataType that the signature wants.
        index: place of the input among the signature's inputs in order of their names.

    Returns:
        An array of that dtype and of the shape that `proto` states.

    Raises:
        StatusError: INVALID_ARGUMENT if the dtype is another one, or if shape and values do not fit together.
    """
    if proto.dtype != dtype and proto.dtype != types_pb2.DT_INVALID and proto.dtype in types_pb2.DataType.values():
        raise invalid_argument(
            f"Expects arg[{index}] to be {_name(dtype)} but {_name(proto.dtype)} is provided: input `{name}`"
        )
    array = _array(proto) if proto.dtype == dtype else None
    if array is None:
        raise invalid_argument(f"tensor parsing error: {name}")
    return array


def write_tensor(array: np.ndarray, proto: tensor_pb2.TensorProto) -> None:
    """Fills an empty TensorProto. The values go into the typed field, as in TensorFlow Serving's answers."""
    dtype = _DTYPES.get(array.dtype)
    if dtype is None:
        proto.CopyFrom(tf.make_tensor_proto(array))
        return
    proto.dtype = dtype
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    getattr(proto, _VALUE_FIELDS[dtype]).extend(array.ravel().tolist())


def _array(proto: tensor_pb2.TensorProto) -> np.ndarray | None:
    """The array of a TensorProto; `None` if its shape and values do not fit together."""
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    # No value is sent in less than a byte. Zeros count as ones: a model may multiply by the huge size beside a zero.
    elements = math.prod(max(size, 1) for size in sizes)
    too_few_bytes = elements > _MAX_REPEATED_ELEMENTS and elements > proto.ByteSize()
    if too_few_bytes or len(sizes) > _MAX_RANK or proto.tensor_shape.unknown_rank:
        return None
    dtype = _NUMPY_DTYPES.get(proto.dtype)
    if dtype is not None and dtype.kind in "iuf" and min(sizes, default=0) >= 0:
        # The usual forms, several times faster than TensorFlow's own reading, which knows all forms.
        if content := proto.tensor_content:
            fits = len(content) == math.prod(sizes) * dtype.itemsize
            return np.frombuffer(content, dtype).reshape(sizes) if fits else None
        if dtype.itemsize >= 4:
            values = getattr(proto, _VALUE_FIELDS[proto.dtype])
            if len(values) == math.prod(sizes) <= _MAX_VALUES_ONE_BY_ONE:
                return np.array(values, dtype).reshape(sizes)
    try:
        # TensorFlow makes bytes, not an array, of one string without a shape.
        return np.asarray(tf.io.parse_tensor(proto.SerializeToString(), tf.as_dtype(proto.dtype)).numpy(), dtype)
    except tf.errors.InvalidArgumentError:
        return None


def _name(dtype: int) -> str:
    """TensorFlow Serving's name of a DataType: `int64`, `float`, `string`."""
    return types_pb2.DataType.Name(dtype).removeprefix("DT_").lower()
