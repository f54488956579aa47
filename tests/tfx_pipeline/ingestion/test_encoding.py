"""tf.Examples that are made of bytes, against protobuf's own; blocks of them, against TensorFlow's reader."""

from __future__ import annotations

import gzip
import itertools
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from google.protobuf.wrappers_pb2 import Int64Value
from hypothesis import example as with_example
from hypothesis import given
from hypothesis import strategies as st

from keras_eta.export.examples import LISTS
from tfx_pipeline.ingestion import encoding
from tfx_pipeline.ingestion.blocks import make_block, read_block
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


def test_blocks_are_files_of_records_one_behind_the_other(tmp_path: Path) -> None:
    path = tmp_path / "blocks.gz"
    path.write_bytes(make_block(RECORDS) + make_block(RECORDS[1:]))
    dataset = tf.data.TFRecordDataset(str(path), "GZIP")
    assert list(dataset.as_numpy_iterator()) == RECORDS + RECORDS[1:]
    assert read_block(make_block(RECORDS)) == RECORDS
    assert make_block(RECORDS) == make_block(RECORDS)


@pytest.mark.parametrize("position", [3, 10, 16, -1])
def test_records_carry_checksums_of_their_length_and_content(position: int, tmp_path: Path) -> None:
    content = bytearray(gzip.decompress(make_block([b"a record"])))
    content[position] ^= 1
    path = tmp_path / "broken"
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
    for content in (planted, zlib.compress(planted)):
        with pytest.raises(gzip.BadGzipFile):
            read_block(content)
    assert not (tmp_path / "ran").exists()
