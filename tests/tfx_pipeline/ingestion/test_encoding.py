"""tf.Examples that are made of bytes, against protobuf's own; blocks of them, against TensorFlow's reader."""

from __future__ import annotations

import gzip
import io
import itertools
import pickle
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import apache_beam as beam
import google_crc32c
import numpy as np
import pytest
import tensorflow as tf
from apache_beam.io import tfrecordio
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from google.protobuf.wrappers_pb2 import Int64Value
from hypothesis import example as with_example
from hypothesis import given
from hypothesis import strategies as st

from keras_eta.export.examples import LISTS
from tfx_pipeline.checksums import use_google_crc32c
from tfx_pipeline.ingestion import encoding
from tfx_pipeline.ingestion.blocks import BlockFile, make_block, read_block
from tfx_pipeline.ingestion.encoding import Column

VALUES: dict[str, st.SearchStrategy[Any]] = {
    LISTS["int64"]: st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**21)),
    LISTS["float32"]: st.floats(allow_nan=True, allow_infinity=True, width=32),
    LISTS["string"]: st.binary(max_size=300),
}


@pytest.mark.parametrize("value", [0, 1, 127, 128, 2**14 - 1, 2**14, 2**32, 2**63 - 1, -1, -(2**63)])
def test_integers_are_written_as_by_protobuf(value: int) -> None:
    # Field 1 of a message in wire type "varint".
    written = b"\x08" + encoding.varint(value)
    field = Int64Value.FromString(written)
    assert (field.value, field.SerializeToString()) == (value, written if value else b"")


@st.composite
def columns(draw: st.DrawFn) -> dict[str, tuple[str, list[Any], bool]]:
    """Name -> kind, entries, and whether each has several values; as many entries in each column."""
    number = draw(st.integers(0, 5))
    found = {}
    for name in draw(st.lists(st.text(max_size=8), unique=True, max_size=5)):
        kind, several = draw(st.sampled_from(sorted(VALUES))), draw(st.booleans())
        entry = st.lists(VALUES[kind], max_size=4) if several else VALUES[kind]
        found[name] = (kind, draw(st.lists(entry, min_size=number, max_size=number)), several)
    return found


LONG = {"b": (LISTS["int64"], [2**40] * 5_000, False), "a": (LISTS["string"], [b"x" * 20_000] * 5_000, False)}


@given(columns())
@with_example(
    {"é": (LISTS["int64"], [1], False), "z": (LISTS["float32"], [0.1], False), "": (LISTS["string"], [b""], False)}
)
@with_example({"a": (LISTS["int64"], [[], [1, 2], []], True)})
@with_example(LONG)
def test_examples_are_written_as_by_protobuf(drawn: dict[str, tuple[str, list[Any], bool]]) -> None:
    made = sorted(
        (Column(name, kind, values, several=several) for name, (kind, values, several) in drawn.items()),
        key=lambda column: column.key,
    )
    number = max((len(values) for _, values, _ in drawn.values()), default=0)
    ends = (0, 1, number) if number > 10 else range(number + 1)
    for start, stop in itertools.combinations_with_replacement(ends, 2):
        expected = tf.train.Example()
        for name, (kind, values, several) in drawn.items():
            field = getattr(expected.features.feature[name], kind)
            field.SetInParent()
            own = values[start:stop]
            field.value.extend([value for some in own for value in some] if several else own)
        found = encoding.example([column.entry(start, stop) for column in made])
        if not drawn:
            # Nothing is set, where ours has features of which there are none.
            expected.features.SetInParent()
        assert found == expected.SerializeToString(deterministic=True)


RECORDS = [b"", b"\n\0", b"x" * 70_000]


def write_blocks(path: Path, blocks: Iterable[list[bytes]]) -> None:
    file = BlockFile(path.open("wb"))
    for block in blocks:
        file.write(make_block(block))
    file.close()


@pytest.mark.parametrize("blocks", [0, 1, 2, 300])
def test_blocks_make_a_gzip_file_of_records(blocks: int, tmp_path: Path) -> None:
    path, random = tmp_path / "blocks.gz", np.random.default_rng(0)
    records = [[*RECORDS, random.bytes(3_000)] for _ in range(blocks)]
    write_blocks(path, records)
    flat = [record for block in records for record in block]
    assert list(tf.data.TFRecordDataset(str(path), "GZIP").as_numpy_iterator()) == flat
    # Which reads the checksum and the size of each member, as TensorFlow does not.
    assert sum(map(len, flat)) + 16 * len(flat) == len(gzip.decompress(path.read_bytes()))
    with TestPipeline() as pipeline:
        assert_that(pipeline | beam.io.ReadFromTFRecord(str(path)), equal_to(flat))


def test_beam_checks_records_by_google_crc32c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfrecordio._default_crc32c_fn, "fn", None)
    use_google_crc32c()
    assert tfrecordio._default_crc32c_fn.fn is google_crc32c.value  # type: ignore[attr-defined]
    with (tmp_path / "records").open("wb") as file:
        for record in RECORDS:
            tfrecordio._TFRecordUtil.write_record(file, record)
    assert list(tf.data.TFRecordDataset(str(tmp_path / "records")).as_numpy_iterator()) == RECORDS
    content = bytearray((tmp_path / "records").read_bytes())
    content[-10] ^= 1
    broken = io.BytesIO(bytes(content))
    assert tfrecordio._TFRecordUtil.read_record(broken) == RECORDS[0]
    assert tfrecordio._TFRecordUtil.read_record(broken) == RECORDS[1]
    with pytest.raises(ValueError, match="Not a valid TFRecord"):
        tfrecordio._TFRecordUtil.read_record(broken)


def test_members_of_a_file_end_before_readers_must_hold_too_much(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    write_blocks(tmp_path / "blocks.gz", [[random.bytes(50_000)] for _ in range(20)])
    content, sizes = (tmp_path / "blocks.gz").read_bytes(), []
    while content:
        member = zlib.decompressobj(wbits=31)
        sizes.append(len(member.decompress(content)))
        assert member.eof
        content = member.unused_data
    # Of 50,016 bytes a record, which do not compress; members of at least 256 KiB.
    assert sizes == [6 * 50_016, 6 * 50_016, 6 * 50_016, 2 * 50_016]


def test_a_block_is_read_back() -> None:
    assert read_block(make_block(RECORDS)) == RECORDS
    assert make_block(RECORDS) == make_block(RECORDS)


@pytest.mark.parametrize("position", [3, 10, 16, -1])
def test_records_carry_checksums_of_their_length_and_content(position: int, tmp_path: Path) -> None:
    path = tmp_path / "broken"
    write_blocks(path, [[b"a record"]])
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(tf.errors.DataLossError):
        list(tf.data.TFRecordDataset(str(path)))


class _Planted:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_block_is_data_and_runs_no_code(tmp_path: Path) -> None:
    planted = pickle.dumps(_Planted(tmp_path / "ran"))
    deflate = zlib.compressobj(wbits=-15)
    for content in (planted, deflate.compress(planted) + deflate.flush()):
        with pytest.raises(ValueError, match="A block ends with"):
            read_block(content)
    # No record of it is anything but bytes.
    assert all(type(record) is bytes for record in read_block(make_block([planted])))
    assert not (tmp_path / "ran").exists()
