"""Impressions as serialized tf.Examples, of bytes that are made once for all impressions of a user.

In protobuf's wire format the values of a list lie one behind the other, so a history is a slice of the bytes of all
behaviours. The result is what `tf.train.Example.SerializeToString(deterministic=True)` gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from keras_eta.export.examples import LISTS

INT64_LIST, FLOAT_LIST, BYTES_LIST = LISTS["int64"], LISTS["float32"], LISTS["string"]

# Keys of the wire format: a field's number and "length-delimited". Of Example, Features, a map's entry, and all lists.
_FIRST, _SECOND = b"\x0a", b"\x12"
# Of Feature.
_KEYS = {BYTES_LIST: b"\x0a", FLOAT_LIST: b"\x12", INT64_LIST: b"\x1a"}
_UINT64 = 2**64 - 1


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


# Most lengths and many ids.
_SMALL = [_varint(value) for value in range(2**14)]


def varint(value: int) -> bytes:
    """An int64 as protobuf writes it: 7 bits a byte, negative ones by their two's complement.

    Args:
        value: from -2**63 to 2**63 - 1.
    """
    return _SMALL[value] if 0 <= value < 2**14 else _varint(value & _UINT64)


class Column:
    """A column of tf.Examples, each of which holds some of its values, that follow each other.

    Args:
        name: of the column.
        kind: the field of a tf.train.Feature: `int64_list`, `float_list` or `bytes_list`.
        values: n values, or, with `several`, n sequences of values.
        several: whether an entry holds any number of values.
    """

    def __init__(self, name: str, kind: str, values: Sequence[Any], *, several: bool = False) -> None:
        flat = [value for some in values for value in some] if several else values
        parts: Sequence[bytes]
        if kind == FLOAT_LIST:
            self._payload = np.array(flat, "<f4").tobytes()
            sizes: Iterable[int] = [4] * len(flat)
        else:
            parts = [_bytes(value) for value in flat] if kind == BYTES_LIST else [varint(value) for value in flat]
            self._payload = b"".join(parts)
            sizes = map(len, parts)
        offsets = [0, *accumulate(sizes)]
        if several:
            offsets = [offsets[end] for end in (0, *accumulate(map(len, values)))]
        self.key = name.encode()
        self._offsets = offsets
        self._name = _FIRST + varint(len(self.key)) + self.key + _SECOND
        self._feature = _KEYS[kind]
        self._packed = kind != BYTES_LIST

    def entry(self, start: int, stop: int) -> bytes:
        """The column of an example with the entries from `start` to before `stop`: an entry of Features' map."""
        values = self._payload[self._offsets[start] : self._offsets[stop]]
        if self._packed and values:
            values = _bytes(values)
        feature = self._feature + varint(len(values)) + values
        return _bytes(self._name + varint(len(feature)) + feature)


def example(entries: Sequence[bytes]) -> bytes:
    """A tf.Example.

    Args:
        entries: of `Column.entry`, in ascending order of the columns' `key`.
    """
    return _bytes(b"".join(entries))


def bytes_list(values: Sequence[bytes]) -> bytes:
    """A serialized tf.train.BytesList."""
    return b"".join(map(_bytes, values))


def _bytes(value: bytes) -> bytes:
    """The first field of a message, after its key and its length."""
    return _FIRST + varint(len(value)) + value
