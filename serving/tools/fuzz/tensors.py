"""Mutations of one input of a Predict message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from serving.tools.fuzz.requests import Rng, one_of

NAMES = ("", "nope", "candidates", "x" * 10_000, "é", "a\0b", "../../etc/passwd", "rank:0", "{}")
STRINGS = (b"", b"\0", b"\xff\xfe\x80", b"x" * 100_000, "é".encode()[:1])
_INT64 = (-(1 << 63), (1 << 63) - 1, -1, 0, 1 << 32)
_FLOATS = (np.nan, np.inf, -np.inf, 3.4e38, -0.0, 1e-45)
_SIZES = (-(1 << 63), -2, -1, 0, 1, 3, 1 << 16, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1)


def odd_name(rng: Rng) -> str:
    """A name that does not exist, or that belongs to something else."""
    return one_of(rng, NAMES)


def retyped(rng: Rng, proto: tensor_pb2.TensorProto) -> None:
    """Another dtype, with the values it had or with zeros of that dtype."""
    if rng.random() < 0.5:
        proto.dtype = one_of(rng, [*types_pb2.DataType.values(), 12345, -1, (1 << 31) - 1])
        return
    dtype = tf.as_dtype(one_of(rng, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 17, 18, 19, 22, 23]))
    values = np.zeros([dim.size for dim in proto.tensor_shape.dim], dtype.as_numpy_dtype)
    proto.CopyFrom(tf.make_tensor_proto(values.astype(str) if dtype == tf.string else values, dtype=dtype))


def miscounted(rng: Rng, proto: tensor_pb2.TensorProto) -> None:
    """Values that are more or fewer than the shape says, in one field or in several."""
    kind = rng.integers(5)
    if kind == 0:
        proto.tensor_content = rng.bytes(one_of(rng, [1, 3, 8, 24, 1_000]))
    elif kind == 1:
        proto.tensor_content = proto.tensor_content[:-1]
    elif kind == 2:
        proto.int64_val.extend(rng.integers(-9, 9, one_of(rng, [1, 2, 1_000])).tolist())
    elif kind == 3:
        proto.string_val.extend([b"item 1"] * one_of(rng, [1, 2, 1_000]))
    else:
        for field in ("tensor_content", "int64_val", "float_val", "string_val", "int_val"):
            proto.ClearField(field)


def resized(rng: Rng, proto: tensor_pb2.TensorProto) -> None:
    """Other sizes, which the values need not fit."""
    for dim in proto.tensor_shape.dim:
        if rng.random() < 0.7:
            dim.size = one_of(rng, _SIZES)


def repeated(rng: Rng, proto: tensor_pb2.TensorProto) -> None:
    """A large shape with one value, which TensorFlow repeats to fill it."""
    dtype, rank = proto.dtype, len(proto.tensor_shape.dim)
    sizes = [one_of(rng, [1, 16, 256, 1 << 16, (1 << 16) + 1]) for _ in range(rank)]
    proto.CopyFrom(tensor_pb2.TensorProto(dtype=dtype, tensor_shape={"dim": [{"size": size} for size in sizes]}))
    values = {types_pb2.DT_STRING: proto.string_val, types_pb2.DT_FLOAT: proto.float_val}.get(dtype, proto.int64_val)
    values.append(b"item 1" if dtype == types_pb2.DT_STRING else 1)


def reranked(rng: Rng, proto: tensor_pb2.TensorProto) -> None:
    """Another number of dimensions, or an unknown one."""
    rank = int(rng.integers(0, 41))
    if rng.random() < 0.2:
        proto.tensor_shape.unknown_rank = True
    sizes = [dim.size for dim in proto.tensor_shape.dim][:rank]
    del proto.tensor_shape.dim[:]
    for size in [1] * (rank - len(sizes)) + sizes:
        proto.tensor_shape.dim.add(size=size)


def emptied(rng: Rng, proto: tensor_pb2.TensorProto) -> None:
    """No values."""
    dtype = proto.dtype
    proto.Clear()
    if rng.random() < 0.7:
        proto.dtype = dtype
    for _ in range(rng.integers(0, 4)):
        proto.tensor_shape.dim.add(size=one_of(rng, [0, 1, 5]))


def revalued(rng: Rng, proto: tensor_pb2.TensorProto) -> None:
    """Values at the limits of their types, or outside of every vocabulary."""
    shape = [dim.size for dim in proto.tensor_shape.dim]
    pool: Sequence[Any] = {types_pb2.DT_STRING: STRINGS, types_pb2.DT_FLOAT: _FLOATS}.get(proto.dtype, _INT64)
    dtype = tf.as_dtype(proto.dtype)
    values = np.array(pool, dtype.as_numpy_dtype)[rng.integers(0, len(pool), shape)]
    proto.CopyFrom(tf.make_tensor_proto(values, dtype=dtype, shape=shape))


def unequal(rng: Rng, proto: tensor_pb2.TensorProto) -> None:
    """Another number of rows than the other inputs have."""
    values = tf.make_ndarray(proto)
    proto.CopyFrom(tf.make_tensor_proto(np.concatenate([values] * int(rng.integers(2, 5)))))


def odd_fields(rng: Rng, proto: tensor_pb2.TensorProto) -> None:
    """Fields that mean nothing in a dense tensor of numbers or strings."""
    proto.version_number = int(rng.integers(-9, 9))
    proto.resource_handle_val.add(device=odd_name(rng), container=odd_name(rng))
    proto.variant_val.add(type_name=odd_name(rng), metadata=rng.bytes(8))
    proto.half_val.extend([1, 2, -3])
