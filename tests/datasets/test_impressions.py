"""Impressions: whose behaviours a history holds, in what order, and what a batch looks like."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_eta import Age, Feature, FeatureLookup, Features
from keras_eta.datasets import Impressions, Interactions, temporal_split
from keras_eta.datasets.batches import batch_bounds

from . import reference

FEATURES = Features(
    item_id=Feature("item_id", "string"),
    item_attributes=(Feature("category_id", "int64"),),
    behaviour_attributes=(Feature("rating", "int64"), Feature("dwell", "float32")),
    user=(Feature("user_id", "int64"),),
    context=(Feature("price", "float32"),),
    max_history_length=3,
)
ROW_NAMES = ["user_id", "price", "item_id", "category_id"]
HISTORY_NAMES = ["item_id", "category_id", "rating", "dwell"]


class FakeLookup:
    """An index of its own for every value: its place in `vocabulary`, after padding and one unknown."""

    def __init__(self, vocabulary: dict[str, list[Any]]) -> None:
        self.vocabulary = vocabulary
        self.calls: list[str] = []

    def encode(self, name: str, values: Any) -> np.ndarray:
        self.calls.append(name)
        known = self.vocabulary[name]
        return np.array([known.index(value) + 2 if value in known else 1 for value in values], "int32")


def small_log() -> Interactions:
    """User 1 acts at 10, 20, 20, 30, 40; user 2 at 20 and 30."""
    return Interactions.from_columns(
        {
            "user_id": [1, 1, 1, 1, 1, 2, 2],
            "item_id": ["a", "b", "c", "d", "e", "f", "g"],
            "timestamp": [10, 20, 20, 30, 40, 20, 30],
            "category_id": [1, 2, 3, 4, 5, 6, 7],
            "rating": [5, 4, 3, 2, 1, 5, 4],
            "dwell": [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5],
            "price": [10, 20, 30, 40, 50, 60, 70],
        }
    )


def small_impressions(**options: Any) -> Impressions:
    return Impressions.from_interactions(small_log(), lambda log: log["rating"] >= 4, **{"min_history": 0, **options})


def only_batch(impressions: Impressions, features: Features = FEATURES, **options: Any) -> tuple[dict, np.ndarray]:
    """The one batch of all rows, strings decoded."""
    ((inputs, label),) = impressions.to_dataset(features, len(impressions), **options).as_numpy_iterator()
    inputs = {
        name: np.char.decode(values.astype("S"), "utf-8") if values.dtype == object else values
        for name, values in inputs.items()
    }
    return inputs, label


def test_from_interactions_history_is_strictly_before_without_ties():
    impressions = small_impressions()

    # Rows 1 and 2 share their second: neither is in the other's history. Row 3 sees both.
    assert impressions.start.tolist() == [0, 0, 0, 0, 0, 5, 5]
    assert impressions.end.tolist() == [0, 1, 1, 3, 4, 5, 6]
    assert impressions.history_counts.tolist() == [0, 1, 1, 3, 4, 0, 1]
    assert impressions.label.tolist() == [1, 1, 0, 0, 0, 1, 1]
    assert impressions.label.dtype == "int64"


def test_to_dataset_history_is_most_recent_first_truncated_and_padded():
    inputs, label = only_batch(small_impressions())

    assert inputs["user_id"].tolist() == [1, 1, 1, 1, 1, 2, 2]
    assert inputs["item_id"].tolist() == ["a", "b", "c", "d", "e", "f", "g"]
    assert inputs["price"].tolist() == [10, 20, 30, 40, 50, 60, 70]
    assert inputs["history_item_id"].tolist() == [
        ["", "", ""],
        ["a", "", ""],
        ["a", "", ""],
        ["c", "b", "a"],
        ["d", "c", "b"],
        ["", "", ""],
        ["f", "", ""],
    ]
    assert inputs["history_rating"].tolist()[3:5] == [[3, 4, 5], [2, 3, 4]]
    assert inputs["history_dwell"].tolist()[1] == [0.5, 0, 0]
    assert inputs["history_length"].tolist() == [0, 1, 1, 3, 3, 0, 1]
    assert label.tolist() == [1, 1, 0, 0, 0, 1, 1]


def test_to_dataset_has_the_contract_s_columns_types_and_shapes():
    dataset = small_impressions().to_dataset(FEATURES, 2, drop_remainder=True)

    inputs, label = dataset.element_spec
    assert {name: (spec.dtype.name, spec.shape.as_list()) for name, spec in inputs.items()} == {
        "user_id": ("int64", [2]),
        "price": ("float32", [2]),
        "item_id": ("string", [2]),
        "category_id": ("int64", [2]),
        "history_item_id": ("string", [2, 3]),
        "history_category_id": ("int64", [2, 3]),
        "history_rating": ("int64", [2, 3]),
        "history_dwell": ("float32", [2, 3]),
        "history_length": ("int64", [2]),
    }
    assert (label.dtype.name, label.shape.as_list()) == ("int64", [2])


@pytest.mark.parametrize(
    ("batch_size", "drop_remainder", "sizes"), [(3, False, [2, 2, 3]), (3, True, [3, 3]), (9, False, [7])]
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_to_dataset_knows_its_number_of_batches(batch_size, drop_remainder, sizes, shuffle):
    dataset = small_impressions().to_dataset(FEATURES, batch_size, drop_remainder=drop_remainder, shuffle=shuffle)

    assert dataset.cardinality().numpy() == len(sizes)
    assert [len(label) for _, label in dataset] == sizes


@given(size=st.integers(1, 2_000), batch_size=st.integers(1, 600))
def test_batch_bounds_are_few_and_even(size: int, batch_size: int) -> None:
    sizes = np.diff(batch_bounds(size, batch_size))
    assert sizes.sum() == size
    assert len(sizes) == -(-size // batch_size)
    assert sizes.max() <= batch_size
    assert sizes.max() - sizes.min() <= 1


def test_to_dataset_iterators_that_are_dropped_do_not_wait_for_a_tuner() -> None:
    assert small_impressions().to_dataset(FEATURES, 2).options().autotune.enabled is False


def test_to_dataset_shuffle_takes_every_row_once_in_a_new_order_each_epoch():
    size = 50
    log = Interactions.from_columns(
        {"user_id": np.ones(size, "int64"), "item_id": np.arange(size), "timestamp": np.arange(size)}
    )
    impressions = Impressions.from_interactions(log, np.arange(size) % 2, min_history=0)
    features = Features(item_id=Feature("item_id"), max_history_length=2)

    def epochs(seed: int | None) -> list[list[int]]:
        dataset = impressions.to_dataset(features, 7, shuffle=True, seed=seed)
        seen = []
        for _ in range(2):
            batches = list(dataset.as_numpy_iterator())
            seen.append(np.concatenate([inputs["item_id"] for inputs, _ in batches]).tolist())
            for inputs, label in batches:
                # The rest of a row moves with it.
                assert label.tolist() == (inputs["item_id"] % 2).tolist()
                assert inputs["history_length"].tolist() == np.minimum(inputs["item_id"], 2).tolist()
        return seen

    first, second = epochs(seed=1)
    assert sorted(first) == sorted(second) == list(range(size))
    assert first != second
    assert list(range(size)) not in (first, second)
    assert epochs(seed=1) == [first, second]
    assert epochs(seed=2)[0] != first
    assert epochs(seed=None)[0] != epochs(seed=None)[0]


def test_to_dataset_without_shuffle_keeps_the_order():
    dataset = small_impressions().to_dataset(FEATURES, 2)

    for _ in range(2):
        assert [item for inputs, _ in dataset.as_numpy_iterator() for item in inputs["item_id"]] == [
            b"a", b"b", b"c", b"d", b"e", b"f", b"g",
        ]  # fmt: skip


def test_to_dataset_lookup_encodes_each_column_once():
    lookup = FakeLookup(
        {
            "user_id": [2, 1],
            "item_id": ["g", "f", "e", "d", "c", "b"],  # "a" is unknown
            "category_id": [7, 6, 5, 4, 3, 2, 1],
            "rating": [1, 2, 3, 4, 5],
        }
    )
    dataset = small_impressions().to_dataset(FEATURES, 7, lookup=lookup)
    calls = sorted(lookup.calls)
    ((inputs, _),) = dataset.as_numpy_iterator()

    # The candidates' and the log's columns; nothing more while batches are made.
    assert calls == sorted(lookup.calls) == ["category_id"] * 2 + ["item_id"] * 2 + ["rating", "user_id"]
    assert {name: values.dtype.name for name, values in inputs.items()} == {
        "user_id": "int32",
        "price": "float32",
        "item_id": "int32",
        "category_id": "int32",
        "history_item_id": "int32",
        "history_category_id": "int32",
        "history_rating": "int32",
        "history_dwell": "float32",
        "history_length": "int64",
    }
    assert inputs["user_id"].tolist() == [3, 3, 3, 3, 3, 2, 2]
    assert inputs["item_id"].tolist() == [1, 7, 6, 5, 4, 3, 2]
    assert inputs["history_item_id"].tolist()[1] == [1, 0, 0]
    assert inputs["history_item_id"].tolist()[4] == [5, 6, 7]
    assert inputs["history_rating"].tolist()[3] == [4, 5, 6]
    assert inputs["history_dwell"].tolist()[3] == [2.5, 1.5, 0.5]


# Boundaries in the log's own unit.
AGED = dataclasses.replace(FEATURES, age=Age((10, 20)))


def test_to_dataset_with_age_holds_timestamps_while_ids_are_raw():
    inputs, _ = only_batch(small_impressions(), AGED)

    assert inputs["timestamp"].tolist() == [10, 20, 20, 30, 40, 20, 30]
    assert inputs["history_timestamp"].tolist() == [
        [0, 0, 0],
        [10, 0, 0],
        [10, 0, 0],
        [20, 20, 10],
        [30, 20, 20],
        [0, 0, 0],
        [20, 0, 0],
    ]
    assert (inputs["timestamp"].dtype, inputs["history_timestamp"].dtype) == ("int64", "int64")
    assert sorted(inputs) == sorted([*AGED.row_names, *AGED.history_names, "history_length"])


def test_to_dataset_with_age_and_lookup_holds_buckets():
    impressions = small_impressions()
    lookup = FeatureLookup(AGED)
    lookup.adapt(impressions.past_columns())
    encoded, _ = only_batch(impressions, AGED, lookup=lookup)

    assert sorted(encoded) == sorted(
        [*AGED.encoded_row_names, *AGED.encoded_sequence_names(AGED.sequence("history")), "history_length"]
    )
    # Ages at row 3: 10, 10 and 20; at row 4: 10, 20 and 20.
    expected = [[0, 0, 0], [2, 0, 0], [2, 0, 0], [2, 2, 3], [2, 3, 3], [0, 0, 0], [2, 0, 0]]
    np.testing.assert_array_equal(encoded["history_age"], np.array(expected, "int32"), strict=True)

    # The lookup makes the same of a raw batch.
    ((raw, _),) = impressions.to_dataset(AGED, len(impressions))
    for name, column in lookup(raw).items():
        np.testing.assert_array_equal(encoded[name], column, err_msg=name)


def test_to_dataset_with_age_knows_its_shapes():
    lookup = FeatureLookup(AGED)
    lookup.adapt(small_impressions().past_columns())
    inputs, _ = small_impressions().to_dataset(AGED, 2, lookup=lookup, drop_remainder=True).element_spec
    assert (inputs["history_age"].dtype.name, inputs["history_age"].shape.as_list()) == ("int32", [2, 3])
    inputs, _ = small_impressions().to_dataset(AGED, 2, drop_remainder=True).element_spec
    assert inputs["timestamp"].shape.as_list() == [2]
    assert inputs["history_timestamp"].shape.as_list() == [2, 3]


LOG_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "user_id": st.integers(0, 2),
            "item_id": st.sampled_from(["a", "b", "ü", "long name of an item"]),
            "timestamp": st.integers(0, 5),
            "category_id": st.integers(0, 3),
            "rating": st.integers(1, 5),
            "dwell": st.sampled_from([0.0, 0.5, 2.25]),
            "price": st.sampled_from([1.0, 9.5]),
        }
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=25, deadline=None)
@given(rows=LOG_ROWS, others=LOG_ROWS, length=st.integers(1, 5))
def test_to_dataset_any_log_and_impressions_equal_the_loop(rows, others, length):
    # The impressions are a table of their own, so users and moments may be unknown to the log.
    log = Interactions.from_columns({name: [row[name] for row in rows] for name in rows[0]})
    columns = {name: [row[name] for row in others] for name in others[0]}
    impressions = Impressions.from_columns(log, columns, [row["rating"] > 3 for row in others])
    expected = reference.batch(reference.clean_log(rows), others, ROW_NAMES, HISTORY_NAMES, length)

    features = dataclasses.replace(FEATURES, max_history_length=length)
    raw, label = only_batch(impressions, features)

    assert sorted(raw) == sorted(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(raw[name], values, err_msg=name)
    assert label.tolist() == [int(row["rating"] > 3) for row in others]

    vocabulary: dict[str, list[Any]] = {
        "user_id": [2, 0], "item_id": ["b", "long name of an item", "ü"], "category_id": [3, 1, 0], "rating": [5, 1, 2]
    }  # fmt: skip
    lookup = FakeLookup(vocabulary)
    encoded, encoded_label = only_batch(impressions, features, lookup=lookup)

    np.testing.assert_array_equal(encoded_label, label)
    real = np.arange(length) < expected["history_length"][:, None]
    for name, values in expected.items():
        feature = name.removeprefix("history_")
        if feature in vocabulary:
            indices = lookup.encode(feature, values.ravel().tolist()).reshape(values.shape)
            values = np.where(real, indices, 0) if name.startswith("history_") else indices
        np.testing.assert_array_equal(encoded[name], values, err_msg=name)


@settings(max_examples=60, deadline=None)
@given(rows=LOG_ROWS, min_history=st.integers(0, 3))
def test_from_interactions_any_log_equals_the_loop(rows, min_history):
    log = Interactions.from_columns({name: [row[name] for row in rows] for name in rows[0]})
    clean = reference.clean_log(rows)
    counts = [len(reference.history(clean, row)) for row in clean]
    kept = [row for row, count in zip(clean, counts, strict=True) if count >= min_history]

    if not kept:
        with pytest.raises(ValueError, match="No impression has"):
            Impressions.from_interactions(log, lambda log: log["rating"] > 3, min_history=min_history)
        return
    impressions = Impressions.from_interactions(log, lambda log: log["rating"] > 3, min_history=min_history)
    columns = {name: np.asarray(column).tolist() for name, column in impressions.columns.items()}
    assert reference.rows_of(columns) == kept
    assert impressions.label.tolist() == [int(row["rating"] > 3) for row in kept]
    for index, row in enumerate(kept):
        items = log["item_id"][impressions.start[index] : impressions.end[index]].tolist()
        assert items[::-1] == [behaviour["item_id"] for behaviour in reference.history(clean, row)]


def test_from_interactions_label_beside_a_sorted_log_is_refused_and_the_advice_works():
    raw = pd.DataFrame({"user_id": [2, 1], "item_id": [10, 11], "timestamp": [1, 2], "clicked": [1, 0]})
    log = Interactions.from_frame(raw[["user_id", "item_id", "timestamp"]])
    message = (
        "Rows of the log were sorted, so the values of `label` may belong to other rows. Make what tells the label a "
        "column of the log, and `label` a function of the log, e.g. "
        "label=lambda log: log['clicked'], outcomes=('clicked',). Received: label=Series"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Impressions.from_interactions(log, raw["clicked"], min_history=0)

    advised = Impressions.from_interactions(
        Interactions.from_frame(raw), label=lambda log: log["clicked"], outcomes=("clicked",), min_history=0
    )
    assert dict(zip(advised.columns["item_id"], advised.label, strict=True)) == {11: 0, 10: 1}


def test_from_interactions_label_beside_a_log_with_rows_left_out_is_refused():
    raw = {"user_id": [1, -1, 1], "item_id": [10, 11, 12], "timestamp": [1, 2, 3]}
    with pytest.raises(ValueError, match=r"^Rows of the log were left out, so the values of `label` may belong"):
        Impressions.from_interactions(Interactions.from_columns(raw), [0, 1, 1], min_history=0)


def test_from_interactions_label_beside_a_log_in_order_is_taken():
    raw = {"user_id": [1, 1, 2], "item_id": [10, 11, 12], "timestamp": [1, 2, 1]}
    impressions = Impressions.from_interactions(Interactions.from_columns(raw), [0, 1, 1], min_history=0)
    assert dict(zip(impressions.columns["item_id"], impressions.label, strict=True)) == {10: 0, 11: 1, 12: 1}


def test_from_interactions_short_histories_are_counted(capsys):
    impressions = small_impressions(min_history=3)

    assert np.asarray(impressions.columns["item_id"]).tolist() == ["d", "e"]
    assert capsys.readouterr().out == (
        "Impressions: 7 rows read, 2 kept; dropped: 5 with fewer than 3 earlier behaviours\n"
    )


def test_from_interactions_default_wants_five_earlier_behaviours():
    size = 8
    log = Interactions.from_columns(
        {"user_id": np.ones(size, "int64"), "item_id": np.arange(size), "timestamp": np.arange(size)}
    )

    assert Impressions.from_interactions(log, np.zeros(size)).history_counts.tolist() == [5, 6, 7]


def test_from_interactions_too_short_histories_are_an_error():
    message = "No impression has `min_history`=5 earlier behaviours; the longest history has 4."
    with pytest.raises(ValueError, match=re.escape(message)):
        small_impressions(min_history=5)


def test_from_interactions_outcomes_are_out_of_reach():
    impressions = small_impressions(outcomes=("rating", "dwell"))

    assert list(impressions.columns) == ["user_id", "item_id", "timestamp", "category_id", "price"]
    # As a behaviour attribute the rating stays readable.
    assert only_batch(impressions)[0]["history_rating"].tolist()[1] == [5, 0, 0]
    leaky = dataclasses.replace(FEATURES, behaviour_attributes=(), context=(Feature("rating", "int64"),))
    message = "The table of impressions has no column 'rating'. Present: ['user_id', 'item_id', 'timestamp'"
    with pytest.raises(ValueError, match=re.escape(message)):
        impressions.to_dataset(leaky, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"outcomes": ("stars",)},
            "`outcomes` must name columns of ['user_id', 'item_id', 'timestamp', 'category_id', 'rating', 'dwell', "
            "'price'], the required ones excepted. Received: ['stars']",
        ),
        (
            {"outcomes": ("item_id",)},
            "`outcomes` must name columns of ['user_id', 'item_id', 'timestamp', 'category_id', 'rating', 'dwell', "
            "'price'], the required ones excepted. Received: ['item_id']",
        ),
        ({"min_history": -1}, "`min_history` must be an integer of at least 0. Received: min_history=-1"),
        ({"min_history": True}, "`min_history` must be an integer of at least 0. Received: min_history=True"),
    ],
)
def test_from_interactions_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        small_impressions(**options)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([0, 1], "`label` must have shape [7]. Received: shape [2]"),
        ([0, 1, 2, 0, -1, 0, 0], "`label` must hold 0 and 1 only. Received: [ 2 -1]"),
        ([0, 1, 0.5, 0, 1, 0, 0], "`label` must hold 0 and 1 only. Received: [0.5]"),
    ],
)
def test_from_interactions_bad_labels_are_refused(label, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Impressions.from_interactions(small_log(), label, min_history=0)


def test_from_columns_user_without_behaviours_has_an_empty_history():
    columns = {
        "user_id": [3, 1, 0, 2],
        "item_id": ["new", "a", "b", "c"],
        "timestamp": [99, 31, 99, 5],
        "category_id": [1, 2, 3, 4],
        "price": [1, 2, 3, 4],
    }
    impressions = Impressions.from_columns(small_log(), columns, [1, 0, 1, 0])

    assert impressions.history_counts.tolist() == [0, 4, 0, 0]
    inputs, _ = only_batch(impressions)
    assert inputs["history_item_id"].tolist() == [["", "", ""], ["d", "c", "b"], ["", "", ""], ["", "", ""]]
    assert inputs["item_id"].tolist() == ["new", "a", "b", "c"]


def test_from_columns_string_users_are_matched_by_name():
    log = Interactions.from_columns({"user_id": ["bo", "al", "bo"], "item_id": [1, 2, 3], "timestamp": [1, 1, 2]})
    columns = {"user_id": ["zed", "bo", "al"], "item_id": [7, 8, 9], "timestamp": [5, 2, 5]}
    impressions = Impressions.from_columns(log, columns, [0, 0, 0])

    assert [log["item_id"][a:b].tolist() for a, b in zip(impressions.start, impressions.end, strict=True)] == [
        [],
        [1],
        [2],
    ]
    with pytest.raises(ValueError, match="Column 'user_id' must hold strings in both the log and the impressions"):
        Impressions.from_columns(log, {**columns, "user_id": [1, 2, 3]}, [0, 0, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestamp": None}, "Missing columns in the impressions: ['timestamp']. Present: ['user_id', 'item_id']"),
        ({"item_id": ["a", ""]}, "The impressions hold 1 missing item_id, the first at row 1. Leave them out."),
        (
            {"item_id": ["a"]},
            "All columns of the impressions must be equally long. Received lengths: "
            "{'user_id': 2, 'item_id': 1, 'timestamp': 2}",
        ),
    ],
)
def test_from_columns_bad_tables_are_refused(change, message):
    columns = {"user_id": [1, 1], "item_id": ["a", "b"], "timestamp": [30, 40], **change}
    columns = {name: values for name, values in columns.items() if values is not None}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Impressions.from_columns(small_log(), columns, [0, 1])


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        # Log row 3 is the impression itself, row 5 another user's.
        ((0, 4), "A history must hold only the user's own behaviours, strictly before the impression. "
                 "Received at row 0: start=0, end=4"),
        ((0, 6), "A history must hold only the user's own behaviours, strictly before the impression. "
                 "Received at row 0: start=0, end=6"),
        ((5, 6), "A history must hold only the user's own behaviours, strictly before the impression. "
                 "Received at row 0: start=5, end=6"),
        ((0, 8), "Histories must be ranges of the log's 7 rows, `start` <= `end`."),
        ((2, 1), "Histories must be ranges of the log's 7 rows, `start` <= `end`."),
    ],
)  # fmt: skip
def test_impressions_history_that_leaks_is_refused(bounds, message):
    columns = {"user_id": [1], "item_id": ["d"], "timestamp": [30]}

    assert Impressions(small_log(), np.array([0]), np.array([3]), columns, np.array([1])).history_counts.tolist() == [3]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Impressions(small_log(), np.array(bounds[:1]), np.array(bounds[1:]), columns, np.array([1]))


@pytest.mark.parametrize(
    ("rows", "items"),
    [
        (np.array([4, 0]), ["e", "a"]),
        ([False, True, False, False, False, True, False], ["b", "f"]),
        (slice(5, None), ["f", "g"]),
        (np.zeros(7, bool), []),
    ],
)
def test_getitem_selects_rows(rows, items):
    impressions = small_impressions()
    part = impressions[rows]

    assert np.asarray(part.columns["item_id"]).tolist() == items
    positions = ["abcdefg".index(item) for item in items]
    assert part.end.tolist() == impressions.end[positions].tolist()
    assert part.label.tolist() == impressions.label[positions].tolist()
    assert part.columns["price"].dtype == "int64"
    assert len(part) == len(items)


def test_sample_draws_different_rows_by_seed():
    impressions = small_impressions()
    drawn = [np.asarray(impressions.sample(4, seed).columns["item_id"]).tolist() for seed in range(6)]

    assert all(len(set(items)) == 4 and items == sorted(items) for items in drawn)
    assert len({tuple(items) for items in drawn}) > 1
    assert np.asarray(impressions.sample(4, 3).columns["item_id"]).tolist() == drawn[3]
    message = "`size` must be between 1 and 7, the number of rows. Received: size=8"
    with pytest.raises(ValueError, match=re.escape(message)):
        impressions.sample(8)


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (
            Feature("user_id", "string"),
            "Feature 'user_id' has dtype 'string', but the column of the impressions holds int64.",
        ),
        (
            Feature("brand"),
            "The table of impressions has no column 'brand'. Present: ['user_id', 'item_id', 'timestamp', "
            "'category_id', 'rating', 'dwell', 'price']",
        ),
    ],
)
def test_to_dataset_columns_that_do_not_fit_are_refused(feature, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        small_impressions().to_dataset(dataclasses.replace(FEATURES, user=(feature,)), 2)


def test_to_dataset_string_column_for_an_integer_feature_is_refused():
    message = "Feature 'item_id' has dtype 'int64', but the column of the impressions holds string."
    with pytest.raises(ValueError, match=re.escape(message)):
        small_impressions().to_dataset(Features(item_id=Feature("item_id")), 2)


def test_to_dataset_bad_batches_are_refused():
    impressions = small_impressions()
    with pytest.raises(ValueError, match=re.escape("`batch_size` must be a positive integer. Received: batch_size=0")):
        impressions.to_dataset(FEATURES, 0)
    with pytest.raises(ValueError, match=re.escape("There are no impressions to make a dataset of.")):
        impressions[np.zeros(7, bool)].to_dataset(FEATURES, 2)


def timed_impressions(timestamps: list[int]) -> Impressions:
    size = len(timestamps)
    log = Interactions.from_columns({"user_id": np.arange(size), "item_id": np.arange(size), "timestamp": timestamps})
    return Impressions.from_interactions(log, np.zeros(size), min_history=0)


def test_temporal_split_row_at_the_boundary_is_of_the_past():
    # Quantiles .8 and .9 of 0, 10, ..., 100 are 80 and 90, both timestamps of rows.
    parts = temporal_split(timed_impressions(list(range(100, -1, -10))))

    assert [part.columns["timestamp"].tolist() for part in parts] == [[80, 70, 60, 50, 40, 30, 20, 10, 0], [90], [100]]


def test_temporal_split_quantiles_are_of_the_whole_log():
    impressions = timed_impressions(list(range(11)))
    later = impressions[np.arange(6, 11)]

    train, validation, test = temporal_split(later, (0.7, 0.1, 0.2))
    assert [part.columns["item_id"].tolist() for part in (train, validation, test)] == [[6, 7], [8], [9, 10]]
    own = temporal_split(later, (0.5, 0.25, 0.25), timestamps=later.columns["timestamp"])
    assert [part.columns["item_id"].tolist() for part in own] == [[6, 7, 8], [9], [10]]


def test_temporal_split_empty_part_is_an_error():
    message = (
        "A temporal split at timestamps 5 and 5 leaves a part empty: {'train': 3, 'validation': 0, 'test': 0}. Use "
        "other `fractions` or more data."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        temporal_split(timed_impressions([5, 5, 5]))


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.2), (0.8, 0.2, 0.0), (0.9, 0.1), (1.2, -0.1, -0.1)])
def test_temporal_split_fractions_that_are_none_are_refused(fractions):
    message = f"`fractions` must be three positive numbers that add up to 1. Received: fractions={fractions}"
    with pytest.raises(ValueError, match=re.escape(message)):
        temporal_split(timed_impressions(list(range(11))), fractions)


def test_past_columns_end_with_the_last_impression() -> None:
    log = Interactions.from_columns(
        {"user_id": [1, 1, 2, 2], "item_id": [5, 6, 7, 8], "timestamp": [10, 30, 20, 40], "shop": ["a", "b", "c", "d"]}
    )
    impressions = Impressions.from_interactions(log, [0, 1, 1, 0], min_history=0)
    past = impressions[impressions.timestamps <= 30].past_columns()
    order = np.argsort(past["item_id"])
    assert past["item_id"][order].tolist() == [5, 6, 7]
    assert past["shop"][order].tolist() == ["a", "b", "c"]
    lookup = FeatureLookup(Features(Feature("item_id"), item_attributes=(Feature("shop", "string"),)))
    lookup.adapt(past)
    assert lookup.encode("item_id", [8]).tolist() == [1]


def test_past_columns_have_what_only_impressions_and_sequences_know() -> None:
    log = Interactions.from_columns({"user_id": [1, 1], "item_id": [5, 6], "timestamp": [10, 30]})
    bought = Interactions.from_columns(
        {"user_id": [1, 1, 1], "item_id": [7, 8, 9], "timestamp": [5, 25, 35], "price": [1.5, 2.5, 3.5]}
    )
    columns = {"user_id": [1, 1], "item_id": [5, 6], "timestamp": [15, 30], "hour": [0.25, 0.5]}
    impressions = Impressions.from_columns(log, columns, [0, 1]).with_sequence("purchases", bought)
    past = {name: column.tolist() for name, column in impressions.past_columns().items()}
    assert (past["item_id"], past["price"], past["hour"]) == ([5, 6], [1.5, 2.5], [0.25, 0.5])
