"""TensorProtos in and out, checked before anything is allocated for them."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from serving.status import invalid_argument

# Where a TensorProto keeps the values of a dtype, one by one.
_VALUE_FIELDS = {
    types_pb2.DT_FLOAT: "float_val",
    types_pb2.DT_DOUBLE: "double_val",
    types_pb2.DT_INT8: "int_val",
    types_pb2.DT_INT16: "int_val",
    types_pb2.DT_INT32: "int_val",
    types_pb2.DT_INT64: "int64_val",
    types_pb2.DT_UINT8: "int_val",
    types_pb2.DT_UINT16: "int_val",
    types_pb2.DT_UINT32: "uint32_val",
    types_pb2.DT_UINT64: "uint64_val",
    types_pb2.DT_BOOL: "bool_val",
    types_pb2.DT_STRING: "string_val",
}

# A TensorProto may hold fewer values than its shape and mean "the last one, repeated". Up to this many elements.
_MAX_REPEATED_ELEMENTS = 1 << 10
_MAX_VALUES_ONE_BY_ONE = 1 << 10
# NumPy's, before version 2.
_MAX_RANK = 32


def dtype_name(dtype: int) -> str:
    """TensorFlow's own name of a DataType enum value: `int64`, `float`, `string`."""
    return types_pb2.DataType.Name(dtype).removeprefix("DT_").lower()


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
    unreadable = invalid_argument(f"tensor parsing error: {name}")
    if proto.dtype != dtype:
        if proto.dtype not in types_pb2.DataType.values() or proto.dtype == types_pb2.DT_INVALID:
            raise unreadable
        raise invalid_argument(
            f"Expects arg[{index}] to be {dtype_name(dtype)} but {dtype_name(proto.dtype)} is provided: input `{name}`"
        )
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    # No value is sent in less than a byte. Zeros count as ones: a model may multiply by the huge size beside a zero.
    elements = math.prod(max(size, 1) for size in sizes)
    if elements > max(proto.ByteSize(), _MAX_REPEATED_ELEMENTS):
        raise unreadable
    if len(sizes) > _MAX_RANK or proto.tensor_shape.unknown_rank:
        raise unreadable
    numpy_dtype = np.dtype(tf.as_dtype(dtype).as_numpy_dtype)
    if numpy_dtype.kind in "iuf" and min(sizes, default=0) >= 0:
        # The usual forms, several times faster than TensorFlow's own reading, which knows all forms.
        if proto.tensor_content:
            if len(proto.tensor_content) != math.prod(sizes) * numpy_dtype.itemsize:
                raise unreadable
            return np.frombuffer(proto.tensor_content, numpy_dtype).reshape(sizes)
        if dtype in _VALUE_FIELDS and numpy_dtype.itemsize >= 4:
            values = getattr(proto, _VALUE_FIELDS[dtype])
            if len(values) == math.prod(sizes) <= _MAX_VALUES_ONE_BY_ONE:
                return np.array(values, numpy_dtype).reshape(sizes)
    try:
        # TensorFlow makes bytes, not an array, of one string without a shape.
        return np.asarray(tf.io.parse_tensor(proto.SerializeToString(), tf.as_dtype(dtype)).numpy(), numpy_dtype)
    except tf.errors.InvalidArgumentError:
        raise unreadable from None


def write_tensor(array: np.ndarray) -> tensor_pb2.TensorProto:
    """The TensorProto of an output, its values in the typed field, where TensorFlow Serving puts them too."""
    dtype = tf.as_dtype(array.dtype).as_datatype_enum
    if dtype not in _VALUE_FIELDS:
        return tf.make_tensor_proto(array)
    proto = tensor_pb2.TensorProto(dtype=dtype)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    getattr(proto, _VALUE_FIELDS[dtype]).extend(array.ravel().tolist())
    return proto
