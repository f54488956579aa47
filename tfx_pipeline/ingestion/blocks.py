"""Blocks of impressions: successive ones of a user, which travel and are written together.

A block is a part of a gzip file, its content TFRecords, so files are made of blocks as they come. The histories of a
block differ by a few behaviours, and 32 of them compress to little more than one.
"""

from __future__ import annotations

import os
import struct
import zlib
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
# Deflate without a header, of which `zlib` takes the negative of the window's bits.
_RAW = -zlib.MAX_WBITS
# RFC 1952: magic, deflate, no flags, no time, no extra flags, unknown system.
_HEADER = bytes.fromhex("1f8b08000000000000ff")
# What Z_SYNC_FLUSH ends with.
_FLUSHED = b"\x00\x00\xff\xff"
# An empty block of deflate that is the last one.
_LAST = b"\x03\x00"
# CRC-32 and the size of a member's content, modulo 2 ** 32.
_TRAILER = struct.Struct("<II")
# From here on a member of a file ends: Beam's reader copies what is behind a member with each, and inflates 16 MiB of a
# member at once.
_MEMBER_BYTES = 2**18
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
    deflate = zlib.compressobj(_COMPRESSION_LEVEL, wbits=_RAW)
    # Up to a whole byte, so that another block can follow.
    return deflate.compress(b"".join(parts)) + deflate.flush(zlib.Z_SYNC_FLUSH)


def read_block(block: bytes) -> list[bytes]:
    """The records of a block; an error of zlib, or a ValueError, if it is none."""
    content = memoryview(_content(block))
    records = []
    while content:
        (length,) = _LENGTH.unpack_from(content)
        end = _HEADER_BYTES + length
        records.append(bytes(content[_HEADER_BYTES:end]))
        content = content[end + _CHECKSUM.size :]
    return records


def _content(block: bytes) -> bytes:
    if not block.endswith(_FLUSHED):
        raise ValueError(f"A block ends with {_FLUSHED!r}. Received: {block[-len(_FLUSHED) :]!r}")
    return zlib.decompressobj(_RAW).decompress(block)


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
    """Writes blocks one behind the other."""

    def __init__(self, prefix: str) -> None:
        super().__init__(
            prefix,
            coder=beam.coders.BytesCoder(),
            file_name_suffix=FILE_SUFFIX,
            mime_type="application/octet-stream",
            compression_type=CompressionTypes.UNCOMPRESSED,
        )

    def open(self, temp_path: str) -> BlockFile:
        return BlockFile(super().open(temp_path))

    def write_encoded_record(self, file_handle: BlockFile, value: bytes) -> None:
        file_handle.write(value)


class BlockFile:
    """A gzip file of blocks.

    Args:
        file: where to write; it is closed with this.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._checksum = self._size = self._written = 0

    def write(self, block: bytes) -> None:
        """Writes a block."""
        if not self._written:
            self._file.write(_HEADER)
        content = _content(block)
        self._checksum, self._size = zlib.crc32(content, self._checksum), self._size + len(content)
        self._file.write(block)
        self._written += len(block)
        if self._written >= _MEMBER_BYTES:
            self._end_member()

    def close(self) -> None:
        """Ends the file, which is empty if nothing was written."""
        if self._written:
            self._end_member()
        self._file.close()

    def _end_member(self) -> None:
        self._file.write(_LAST + _TRAILER.pack(self._checksum, self._size % 2**32))
        self._checksum = self._size = self._written = 0
