"""Blocks of impressions: successive ones of a user, which travel and are written together.

A block is a member of a gzip file, its content TFRecords, so files are made of blocks as they come. The histories of a
block differ by a few behaviours, and 32 of them compress to little more than one.
"""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import google_crc32c
from apache_beam.io.filebasedsink import FileBasedSink
from apache_beam.io.filesystem import CompressionTypes

BLOCK_SIZE = 32
# What TFX's own example generators call their files.
FILE_PREFIX = "data_tfrecord"
FILE_SUFFIX = ".gz"

_COMPRESSION_LEVEL = 6
# Of a TFRecord: the length before it, and checksums of four bytes behind the length and behind the record.
_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEADER_BYTES = _LENGTH.size + _CHECKSUM.size


def make_block(records: Sequence[bytes]) -> bytes:
    """A block of records.

    Args:
        records: serialized tf.Examples, `BLOCK_SIZE` at most.
    """
    parts: list[bytes] = []
    for record in records:
        length = _LENGTH.pack(len(record))
        parts += (length, _checksum(length), record, _checksum(record))
    return gzip.compress(b"".join(parts), _COMPRESSION_LEVEL, mtime=0)


def read_block(block: bytes) -> list[bytes]:
    """The records of a block; an error of zlib or gzip if it is none."""
    content = memoryview(gzip.decompress(block))
    records = []
    while content:
        (length,) = _LENGTH.unpack_from(content)
        end = _HEADER_BYTES + length
        records.append(bytes(content[_HEADER_BYTES:end]))
        content = content[end + _CHECKSUM.size :]
    return records


def _checksum(value: bytes) -> bytes:
    """TensorFlow's: CRC-32C, rotated and moved, so that a checksum of checksums is sound."""
    crc = google_crc32c.value(value)
    return _CHECKSUM.pack(((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


class WriteBlocks(beam.PTransform):
    """Blocks -> files of TFRecords, compressed by gzip, the blocks in random order.

    Args:
        directory: where the files go.
    """

    def __init__(self, directory: str) -> None:
        super().__init__()
        self._prefix = os.path.join(directory, FILE_PREFIX)

    def expand(self, blocks: Any) -> Any:
        return blocks | beam.Reshuffle() | beam.io.Write(_BlockSink(self._prefix))


class _BlockSink(FileBasedSink):
    """Writes blocks as they are, one behind the other."""

    def __init__(self, prefix: str) -> None:
        super().__init__(
            prefix,
            coder=beam.coders.BytesCoder(),
            file_name_suffix=FILE_SUFFIX,
            mime_type="application/octet-stream",
            compression_type=CompressionTypes.UNCOMPRESSED,
        )

    def write_encoded_record(self, file_handle: Any, value: bytes) -> None:
        file_handle.write(value)
