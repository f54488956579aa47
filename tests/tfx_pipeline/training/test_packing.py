"""Impressions in memory against the same read from files, and what they have in common against plain loops."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_eta import Feature, Features, Sequence
from keras_eta.columns import Age
from tfx_pipeline.training import packing
from tfx_pipeline.training.batches import Part, measure, transformed_batches
from tfx_pipeline.training.packing import new_behaviours, pack, part_batches, younger

L = 6
PRICE = Feature("price", "float32", optional=True)
FEATURES = Features(
    item_id=Feature("item_id"),
    item_attributes=(Feature("genres", max_values=2), PRICE),
    behaviour_attributes=(Feature("action"),),
    context=(Feature("hour", "float32"), Feature("tags", max_values=3)),
    sequences=(Sequence("carts", max_length=3),),
    max_history_length=L,
    age=Age((2, 5)),
)


def behaviours_of(user: int) -> list[dict[str, Any]]:
    """A user's behaviours, the oldest first; prices are missing now and then."""
    rng = np.random.default_rng(user)
    return [
        {
            "item_id": int(rng.integers(1, 6)),
            "genres": rng.integers(1, 9, rng.integers(0, 3)).tolist(),
            "price": math.nan if rng.random() < 0.3 else round(float(rng.random()), 3),
            "action": int(rng.integers(1, 4)),
            "time": time,
        }
        for time in range(int(rng.integers(0, 14)))
    ]


def impressions() -> list[dict[str, Any]]:
    """Impressions of eleven users, by user, two for each behaviour; the second has seen the behaviour."""
    rows = []
    for user in range(11):
        log = behaviours_of(user)
        carts = [one for one in log if one["action"] == 1]
        for number, last in enumerate(sorted([*range(len(log) + 1)] * 2)):
            seen = sum(one["action"] == 1 for one in log[:last])
            rows.append(
                {
                    "item_id": 1 + number % 5,
                    "genres": [7] * (number % 3),
                    "price": 0.5,
                    "hour": float(number),
                    "tags": [user + 1] * (number % 4),
                    "label": number % 2,
                    "timestamp": last,
                    "history": log[:last][::-1][:L],
                    "carts": carts[:seen][::-1][:3],
                }
            )
    return rows


def write(folder: Path, features: Features, rows: list[dict[str, Any]]) -> None:
    """Writes impressions as Transform does, into two files."""
    for shard in range(2):
        with tf.io.TFRecordWriter(str(folder / f"{shard}.gz"), "GZIP") as writer:
            for row in rows[shard * len(rows) // 2 : (shard + 1) * len(rows) // 2]:
                columns = {name: row[name] for name in (*features.encoded_row_names, "label", "timestamp")}
                for sequence in features.all_sequences:
                    own = row["history" if sequence.name == "history" else sequence.name]
                    columns[sequence.length] = len(own)
                    ages = [row["timestamp"] - one["time"] for one in own]
                    columns[sequence.age] = [1 + (age >= 2) + (age >= 5) for age in ages]
                    for feature in features.sequence_features(sequence):
                        name, values = sequence.column(feature.name), [one[feature.name] for one in own]
                        if feature.max_values:
                            columns[f"{name}_length"] = [len(some) for some in values]
                            values = [value for some in values for value in some]
                        columns[name] = values
                example = tf.train.Example()
                for name, values in columns.items():
                    values = values if isinstance(values, list) else [values]
                    floats = "price" in name or name == "hour"
                    kind = (
                        example.features.feature[name].float_list
                        if floats
                        else example.features.feature[name].int64_list
                    )
                    kind.value.extend(values)
                writer.write(example.SerializeToString())


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Part:
    folder = tmp_path_factory.mktemp("impressions")
    write(folder, FEATURES, impressions())
    return measure([str(folder / "*")], "item_id")


def rows_of(batches: Any) -> list[dict[str, Any]]:
    """Rows of batches, sequences without padding, as bytes, so that a missing value equals another."""
    rows = []
    for columns, label in batches:
        arrays = {name: values.numpy() for name, values in columns.items()}
        for number in range(len(label)):
            row: dict[str, Any] = {"label": int(label[number])}
            for name, values in sorted(arrays.items()):
                row[name] = (values[number].dtype.str, values[number].shape, values[number].tobytes())
            rows.append(row)
    return rows


def test_batches_are_those_of_the_files(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several batches are read, so that one user's impressions lie in two.
    monkeypatch.setattr(packing, "_READ_VALUES", 32 * L)
    for file in part.files:
        alone = measure([file], "item_id")
        packed = pack([file], FEATURES)
        assert (packed.files, packed.num_examples, packed.file_bytes) == ([file], alone.num_examples, alone.file_bytes)
        assert packed.timestamps == alone.timestamps is not None
        assert packed.positives.tolist() == alone.positives.tolist()
        assert packed.packed is not None
        assert len(packed.packed) == alone.num_examples == len(impressions()) // 2
        for size in (1, 7, 1_000):
            found, expected = part_batches(packed, FEATURES, size), part_batches(alone, FEATURES, size)
            assert found.cardinality() == -(-alone.num_examples // size)
            assert rows_of(found) == rows_of(expected)
    both = rows_of(part_batches(pack(part.files, FEATURES), FEATURES, 1))
    assert sorted(map(repr, both)) == sorted(map(repr, rows_of(transformed_batches(part.files, FEATURES, 1))))


def test_longer_sequences_than_are_read_are_cut(part: Part) -> None:
    features = dataclasses.replace(FEATURES, max_history_length=3, sequences=(Sequence("carts", max_length=1),))
    packed = pack(part.files, features)
    for one in (part, packed):
        for columns, _ in part_batches(one, features, 50):
            assert columns["history_item_id"].shape[1] == columns["history_genres"].shape[1] == 3
            assert columns["carts_item_id"].shape[1] == 1
            assert int(tf.reduce_max(columns["history_length"])) == 3
    (found, _), (whole, _) = (
        next(iter(transformed_batches(part.files[:1], some, 1_000))) for some in (features, FEATURES)
    )
    for name in ("history_item_id", "history_price", "history_genres", "history_age"):
        np.testing.assert_array_equal(found[name], whole[name][:, :3])
    np.testing.assert_array_equal(found["history_length"], np.minimum(whole["history_length"], 3))
    held, read = (rows_of(batches) for batches in (part_batches(packed, features, 1), part_batches(part, features, 1)))
    assert sorted(map(repr, held)) == sorted(map(repr, read))


def test_what_histories_have_in_common_is_held_once(part: Part) -> None:
    packed = pack(part.files, FEATURES).packed
    assert packed is not None
    columns, _, _, length = packed._sequences["history_length"]
    behaviours = sum(len(behaviours_of(user)) for user in range(11))
    # Each once, and padding; those of the user in both files once more, and fewer where they repeat by chance.
    assert 1 + 0.7 * behaviours < len(columns["history_item_id"]) <= 1 + behaviours + L
    assert int(tf.reduce_sum(length)) > 4 * behaviours


def test_an_order_is_of_all_impressions_and_goes_on_at_a_batch(part: Part) -> None:
    packed = pack(part.files, FEATURES)
    in_order, first, second = (rows_of(part_batches(packed, FEATURES, 1, seed=seed)) for seed in (None, 1, 2))
    assert first != second
    assert first != in_order
    assert sorted(map(repr, first)) == sorted(map(repr, second)) == sorted(map(repr, in_order))
    assert rows_of(part_batches(packed, FEATURES, 1, seed=1)) == first
    assert rows_of(part_batches(packed, FEATURES, 1, seed=1, first=5)) == first[5:]


def test_what_is_too_large_or_out_of_order_stays_in_its_files(
    part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = impressions()
    rows[-1]["history"] = rows[-1]["history"][::-1]
    write(tmp_path, FEATURES, rows)
    reversed_once = pack([str(tmp_path / "*")], FEATURES)
    assert reversed_once.packed is None
    assert reversed_once.num_examples == part.num_examples
    assert reversed_once.shuffle_buffer == part.shuffle_buffer
    packed = pack(part.files, FEATURES).packed
    assert packed is not None
    size = sum(values.numpy().nbytes for values in packed._rows.values())
    for columns, ages, _, _ in packed._sequences.values():
        # Without padding.
        size += sum(values[1:].numpy().nbytes for values in columns.values())
        size += sum(values.numpy().nbytes for values in ages.values())
    monkeypatch.setattr(packing, "PACKED_BYTES", size)
    assert pack(part.files, FEATURES).packed is not None
    monkeypatch.setattr(packing, "PACKED_BYTES", size - 1)
    too_large = pack(part.files, FEATURES)
    assert too_large.packed is None
    assert too_large.positives.tolist() == part.positives.tolist()
    assert pack([], FEATURES).num_examples == 0


def new_in_loops(length: list[int], rows: list[list[Any]]) -> list[int]:
    """`new_behaviours`, one row after the other."""
    found = [length[0]]
    for row in range(1, len(length)):
        own, above = rows[row][: length[row]], rows[row - 1][: length[row - 1]]
        shifts = [s for s in range(min(len(own), 65)) if own[s:] == above[: len(own) - s]]
        found.append(min(shifts, default=len(own)))
    return found


@settings(max_examples=200)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 2), st.sampled_from([0.0, math.inf])), max_size=5), min_size=1, max_size=5
    )
)
def test_new_behaviours_as_in_loops(rows: list[list[tuple[int, float]]]) -> None:
    length = [len(row) for row in rows]
    ids, prices = np.zeros([len(rows), 5], "int32"), np.zeros([len(rows), 5, 1], "float32")
    for number, row in enumerate(rows):
        ids[number, : len(row)] = [one for one, _ in row]
        prices[number, : len(row), 0] = [price for _, price in row]
    found = new_behaviours(np.array(length, "int32"), [ids, prices])
    assert found.tolist() == new_in_loops(length, rows)


def test_new_behaviours_of_long_histories() -> None:
    log = np.arange(200, 0, -1)
    # 3, 64 and 65 more behaviours than the row above, one that was truncated, and one of another user.
    ends = [100, 103, 167, 232]
    rows = np.stack([np.arange(end, end - 90, -1) for end in ends] + [log[:90]]).astype("int32")
    assert new_behaviours(np.full(5, 90, "int32"), [rows]).tolist() == [90, 3, 64, 90, 32 + 58]
    assert new_behaviours(np.zeros(3, "int32"), [np.zeros([3, 0], "int32")]).tolist() == [0, 0, 0]
    # A zero that is a value is not the padding of the row above.
    assert new_behaviours(np.array([1, 2], "int32"), [np.zeros([2, 2], "int32")]).tolist() == [1, 1]


def test_ages_are_held_as_numbers_of_younger_behaviours() -> None:
    buckets = np.array([[1, 1, 2, 4], [4, 4, 0, 0], [0, 0, 0, 0]], "int32")
    length = np.array([4, 2, 0], "int32")
    found = younger(length, buckets, 3)
    assert found.tolist() == [[2, 3, 3], [0, 0, 0], [0, 0, 0]]
    assert packing._buckets(tf.range(4), tf.constant(found))[:2].numpy().tolist() == [[1, 1, 2, 4], [4, 4, 4, 4]]
