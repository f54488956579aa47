"""The log: what is refused, what is counted, and the order of what is kept."""

from __future__ import annotations

import datetime
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_eta.datasets import Interactions
from keras_eta.time_units import UNIT_STARTS, time_unit, usual_time_unit

from . import reference

NAN = float("nan")


def log_columns(**changes: Any) -> dict[str, Any]:
    """Four clean rows, with some columns changed."""
    columns = {
        "user_id": [1, 1, 2, 2],
        "item_id": ["a", "b", "c", "d"],
        "timestamp": [10, 20, 15, 25],
        "rating": [5, 3, 4, 2],
        "price": [0.5, 1.5, 2.5, 3.5],
    }
    return {**columns, **changes}


def values(log: Interactions) -> dict[str, list[Any]]:
    return {name: log[name].tolist() for name in log.columns}


def test_from_columns_clean_log_is_kept_as_it_is(capsys):
    log = Interactions.from_columns(log_columns())

    assert values(log) == log_columns()
    assert [log[name].dtype for name in log.columns] == ["int64", "O", "int64", "int64", "float32"]
    assert str(log.report) == "4 rows read, 4 kept"
    assert capsys.readouterr().out == ""
    assert (len(log), log.num_users, log.num_items) == (4, 2, 4)
    assert repr(log) == ("Interactions(4 rows, 2 users, 4 items; columns: user_id, item_id, timestamp, rating, price)")


def test_from_columns_sorts_by_user_then_time_then_arrival():
    log = Interactions.from_columns(
        {
            "user_id": [2, 1, 2, 1, 2, 1],
            "item_id": ["a", "b", "c", "d", "e", "f"],
            "timestamp": [30, 20, 10, 20, 30, 5],
        }
    )

    assert log["user_id"].tolist() == [1, 1, 1, 2, 2, 2]
    assert log["item_id"].tolist() == ["f", "b", "d", "c", "a", "e"]
    assert log["timestamp"].tolist() == [5, 20, 20, 10, 30, 30]


def test_from_columns_string_users_sort_by_name():
    users = pd.Categorical(["zoe", "ann", "zoe", "bob"], categories=["zoe", "bob", "ann"])
    log = Interactions.from_columns({"user_id": users, "item_id": [1, 2, 3, 4], "timestamp": [1, 2, 3, 4]})

    assert log["user_id"].tolist() == ["ann", "bob", "zoe", "zoe"]
    assert log["item_id"].tolist() == [2, 4, 1, 3]


def test_from_columns_unsorted_log_is_reported(capsys):
    log = Interactions.from_columns(log_columns(timestamp=[20, 10, 15, 25]))

    assert log["item_id"].tolist() == ["b", "a", "c", "d"]
    assert str(log.report) == "4 rows read, 4 kept; the log was not sorted by time: sorted"
    assert capsys.readouterr().out == f"Interactions: {log.report}\n"


def test_from_columns_log_in_order_of_time_is_no_unsorted_log():
    log = Interactions.from_columns(log_columns(user_id=[2, 1, 2, 1], timestamp=[1, 2, 3, 4]))

    assert log["item_id"].tolist() == ["b", "d", "a", "c"]
    assert str(log.report) == "4 rows read, 4 kept"


@pytest.mark.parametrize(
    ("changes", "dropped"),
    [
        ({"user_id": [1, -1, 2, -7]}, "2 negative user_id (lines 2, 4)"),
        ({"item_id": [-3, 4, 5, 6]}, "1 negative item_id (line 1)"),
        ({"category_id": [1, 2, 3, -3]}, "1 negative category_id (line 4)"),
        ({"user_id": [1, None, 2, 2]}, "1 missing user_id (line 2)"),
        ({"user_id": [1, "", 2, 2]}, "1 missing user_id (line 2)"),
        ({"user_id": ["x", "y", "", None]}, "2 missing user_id (lines 3, 4)"),
        ({"item_id": ["a", "", "c", NAN]}, "2 missing item_id (lines 2, 4)"),
        ({"item_id": pd.Categorical(["a", "", None, "b"])}, "2 missing item_id (lines 2, 3)"),
        ({"item_id": pd.array([1, None, 3, 4], dtype="Int64")}, "1 missing item_id (line 2)"),
        ({"item_id": [1.0, 2.5, 3.0, NAN]}, "1 missing item_id (line 4), 1 non-integer item_id (line 2)"),
        ({"rating": [NAN, 1, 2, 3]}, "1 missing rating (line 1)"),
        ({"price": [0.5, NAN, float("inf"), 1e300]}, "1 missing price (line 2), 2 non-finite price (lines 3, 4)"),
        # 2**53 + 1 is rounded to 2**53, as float32 2**24 + 1 to 2**24: another integer may be meant.
        ({"user_id": [1.0, 2.0**53, -(2.0**53), 2.0**53 - 1]}, "2 non-integer user_id (lines 2, 3)"),
        (
            {"user_id": np.array([1, 2**24, 2**24 + 2, 2**24 - 1], "float32")},
            "2 non-integer user_id (lines 2, 3)",
        ),
        (
            {"user_id": pd.array([1, 2**24, None, 2], "Float32")},
            "1 missing user_id (line 3), 1 non-integer user_id (line 2)",
        ),
        ({"timestamp": ["9007199254740993.0", "10", "15", "9007199254740991.0"]}, "1 non-integer timestamp (line 1)"),
        (
            {"item_id": [b"a", b"b\xff", None, b"\xc3"]},
            "1 missing item_id (line 3), 2 undecodable item_id (lines 2, 4)",
        ),
        ({"item_id": pd.Categorical([b"a", b"\xff", b"c", b"\xff"])}, "2 undecodable item_id (lines 2, 4)"),
        ({"timestamp": ["10", "soon", "15", "25"]}, "1 non-numeric timestamp (line 2)"),
        ({"timestamp": ["10", "", None, "25"]}, "2 missing timestamp (lines 2, 3)"),
        ({"timestamp": [10.0, 20.5, 15.0, float("inf")]}, "2 non-integer timestamp (lines 2, 4)"),
        (
            {"timestamp": ["10", "20.5", "15", "x"]},
            "1 non-numeric timestamp (line 4), 1 non-integer timestamp (line 2)",
        ),
    ],
)
def test_from_columns_bad_rows_are_counted_and_left_out(changes, dropped, capsys):
    log = Interactions.from_columns(log_columns(**changes))

    bad = {int(line) for group in re.findall(r"\(lines? ([^)]*)\)", dropped) for line in group.split(", ")}
    assert str(log.report) == f"4 rows read, {4 - len(bad)} kept; dropped: {dropped}"
    assert capsys.readouterr().out == f"Interactions: {log.report}\n"
    # "price" or "timestamp" may be what was changed; the rating tells the rows apart.
    ratings = [5, 3, 4, 2] if "rating" not in changes else [NAN, 1, 2, 3]
    assert log["rating"].tolist() == [ratings[row] for row in range(4) if row + 1 not in bad]


def test_from_columns_integer_column_with_words_is_counted_not_made_strings():
    log = Interactions.from_columns(log_columns(rating=["5", "good", "4", "4.5"]), integers=("rating",))

    assert str(log.report) == (
        "4 rows read, 2 kept; dropped: 1 non-numeric rating (line 2), 1 non-integer rating (line 4)"
    )
    assert values(log)["rating"] == [5, 4]


def test_from_columns_large_timestamps_beside_a_bad_one_stay_exact():
    log = Interactions.from_columns(
        {"user_id": [1, 1, 1], "item_id": [1, 2, 3], "timestamp": ["1511539200000000001", "x", "1511539200000000003"]}
    )

    assert log["timestamp"].tolist() == [1511539200000000001, 1511539200000000003]


def test_from_columns_row_with_two_faults_is_counted_once():
    log = Interactions.from_columns(log_columns(user_id=[-1, 1, 2, 2], item_id=["", "b", "c", "d"]))

    assert str(log.report) == "4 rows read, 3 kept; dropped: 1 negative user_id (line 1)"


def test_from_columns_duplicates_are_dropped_after_the_first():
    log = Interactions.from_columns(
        {
            "user_id": [1, 1, 1, 1, 2, 1],
            "item_id": ["a", "b", "a", "a", "a", "a"],
            "timestamp": [7, 7, 7, 8, 7, 7],
            "rating": [5, 5, 5, 5, 5, 4],
        }
    )

    # Line 3 repeats line 1; lines 4 to 6 differ from it in one column each.
    assert str(log.report) == (
        "6 rows read, 5 kept; dropped: 1 duplicate row (line 3); the log was not sorted by time: sorted"
    )
    assert values(log) == {
        "user_id": [1, 1, 1, 1, 2],
        "item_id": ["a", "b", "a", "a", "a"],
        "timestamp": [7, 7, 7, 8, 7],
        "rating": [5, 5, 4, 5, 5],
    }


def test_report_names_the_first_five_lines_of_each_reason():
    log = Interactions.from_columns(
        {"user_id": [1] * 1008, "item_id": [1] + [7] * 1007, "timestamp": [1] + [2] * 1007}, lines=np.arange(2, 1010)
    )

    assert str(log.report) == ("1,008 rows read, 2 kept; dropped: 1,006 duplicate rows (lines 4, 5, 6, 7, 8, ...)")


def test_from_columns_missing_columns_are_named():
    with pytest.raises(
        ValueError, match=re.escape("Missing columns in the log: ['timestamp']. Present: ['user_id', 'item_id']")
    ):
        Interactions.from_columns({"user_id": [1], "item_id": [1]})


@pytest.mark.parametrize("empty", [[], np.zeros(0, "int64"), pd.Series([], dtype=object)])
def test_from_columns_empty_log_is_an_error(empty):
    with pytest.raises(ValueError, match=re.escape("The log is empty: it has no rows.")):
        Interactions.from_columns({"user_id": empty, "item_id": empty, "timestamp": empty})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"user_id": [-1] * 4},
            "No row of the log is usable: 4 rows read, 0 kept; dropped: 4 negative user_id (lines 1, 2, 3, 4)",
        ),
        (
            {"item_id": ["a"]},
            "All columns of the log must be equally long. Received lengths: "
            "{'user_id': 4, 'item_id': 1, 'timestamp': 4, 'rating': 4, 'price': 4}",
        ),
        ({"item_id": np.zeros((4, 2))}, "Column 'item_id' must have one dimension. Received: shape (4, 2)"),
        (
            {"item_id": [1, "a", 2, "b"]},
            "Column 'item_id' must hold integers, floats or strings, one of them only. Received: mixed-integer values",
        ),
        (
            {"user_id": ["7", "1.0", "1", "7.0"]},
            "Column 'user_id' spells 2 ids in two ways, the first as '1' and '1.0'. Spell each in one.",
        ),
        (
            {"item_id": np.array([1, 2, 3, 2**64 - 1], "uint64")},
            "Column 'item_id' holds integers beyond 64 bits with sign. Give such ids as strings.",
        ),
    ],
)
def test_from_columns_unusable_columns_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Interactions.from_columns(log_columns(**changes))


@pytest.mark.parametrize(
    ("given_values", "kept"),
    [
        ([True, False, True, True], [1, 0, 1, 1]),
        ([b"ab", "ü".encode(), b"c", b"d"], ["ab", "ü", "c", "d"]),
        (np.array(["x", "y", "x", "NA"]), ["x", "y", "x", "NA"]),
        (pd.Categorical([3, 1, 3, 2]), [3, 1, 3, 2]),
        (np.array([7, 8, 9, 10], object), [7, 8, 9, 10]),
        ([1, 2.5, 3, 4], [1.0, 2.5, 3.0, 4.0]),
    ],
)
def test_from_columns_accepts_the_usual_forms_of_a_column(given_values, kept):
    log = Interactions.from_columns(log_columns(extra=given_values))

    assert log["extra"].tolist() == kept


# 2023-11-14 22:13:20 UTC is 1,700,000,000 seconds after 1970.
BERLIN = datetime.timezone(datetime.timedelta(hours=1))
MOMENT = datetime.datetime(2023, 11, 14, 22, 13, 20, 999_999)


@pytest.mark.parametrize(
    "moment",
    [
        pd.Series(pd.to_datetime(["2023-11-14 22:13:20"])),
        pd.Series(pd.to_datetime(["2023-11-14 22:13:20.9"])),
        pd.Series(pd.to_datetime(["2023-11-14 22:13:20"])).dt.tz_localize("UTC"),
        pd.Series(pd.to_datetime(["2023-11-14 22:13:20"])).dt.tz_localize("UTC").dt.tz_convert("Asia/Kolkata"),
        pd.Series(pd.to_datetime(["2023-11-14 22:13:20"])).astype("category"),
        np.array(["2023-11-14T22:13:20"], "datetime64[s]"),
        [MOMENT],
        [MOMENT.replace(tzinfo=datetime.timezone.utc).astimezone(BERLIN)],
        ["2023-11-14 22:13:20"],
        ["2023-11-14T22:13:20Z"],
        ["2023-11-14T23:13:20.999+01:00"],
        ["2023-11-14 16:43:20 -0530"],
        [b"2023-11-14 22:13:20 UTC"],
        pd.Categorical(["2023-11-14 22:13:20"]),
        ["1700000000"],
    ],
)
def test_from_columns_takes_moments_as_they_are(moment):
    log = Interactions.from_columns({"user_id": [1], "item_id": [1], "timestamp": moment})

    assert log["timestamp"].tolist() == [1_700_000_000]
    assert log["timestamp"].dtype == np.int64


def test_from_columns_takes_dates_and_moments_before_1970():
    days = [datetime.date(2023, 11, 14), datetime.date(1969, 12, 31), None, datetime.date(1970, 1, 2)]
    before = pd.to_datetime(["1969-12-31 23:59:59.5", None, "1970-01-01", "1970-01-01 00:00:01"])
    log = Interactions.from_columns(log_columns(timestamp=days, user_id=[1] * 4))
    # 2023-11-14 is the 19,675th day after 1970-01-01.
    assert log["timestamp"].tolist() == [-86_400, 86_400, 19_675 * 86_400]
    assert str(log.report.rejected[0]) == "1 missing timestamp (line 3)"
    log = Interactions.from_columns(log_columns(timestamp=before, user_id=[1] * 4))
    assert log["timestamp"].tolist() == [-1, 0, 1]


def test_from_columns_takes_a_column_of_moments_besides_the_timestamp():
    log = Interactions.from_columns(log_columns(extra=pd.to_datetime(["1970-01-02"] * 4)))
    assert log["extra"].tolist() == [86_400] * 4


def test_from_columns_dates_that_are_none_are_counted():
    times = ["2023-11-14 22:13:20", "14/11/2023", "2023-02-30", "1700000001"]
    log = Interactions.from_columns(log_columns(timestamp=times, user_id=[1] * 4))
    assert log["timestamp"].tolist() == [1_700_000_000, 1_700_000_001]
    assert str(log.report.rejected[0]) == "2 non-numeric timestamp (lines 2, 3)"


def test_from_columns_id_with_a_missing_value_is_spelt_as_without():
    whole = pd.DataFrame({"user_id": [1, 2], "item_id": ["a", "b"], "timestamp": [1, 2]})
    gap = pd.DataFrame({"user_id": [1.0, np.nan], "item_id": ["c", "d"], "timestamp": [3, 4]})
    log = Interactions.from_frame(pd.concat([whole, gap]))
    assert log["user_id"].tolist() == [1, 1, 2]
    assert log["user_id"].dtype == np.int64


def test_from_columns_says_whether_rows_were_moved():
    assert not Interactions.from_columns(log_columns(user_id=[1] * 4, timestamp=[1, 2, 2, 3])).reordered
    assert Interactions.from_columns(log_columns(user_id=[1, 2, 1, 2], timestamp=[1, 2, 3, 4])).reordered


def test_from_frame_ignores_the_index_and_to_frame_returns_the_columns():
    frame = pd.DataFrame(log_columns(), index=[9, 9, 9, 9])
    log = Interactions.from_frame(frame)

    assert log.to_frame().astype({"item_id": object}).to_dict("list") == log_columns()


def test_getitem_unknown_column_names_those_present():
    log = Interactions.from_columns({"user_id": [1], "item_id": [1], "timestamp": [1]})

    with pytest.raises(
        KeyError, match=re.escape("The log has no column 'genre'. Present: ['user_id', 'item_id', 'timestamp']")
    ):
        log["genre"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2, -1]), st.sampled_from(["a", "b", "", None]), st.integers(0, 4), st.integers(0, 1)
        ),
        min_size=1,
        max_size=25,
    )
)
def test_from_columns_any_log_equals_the_loop(rows):
    columns = dict(zip(("user_id", "item_id", "timestamp", "rating"), map(list, zip(*rows, strict=True)), strict=True))
    expected = reference.clean_log(reference.rows_of(columns))

    if not expected:
        with pytest.raises(ValueError, match="No row of the log is usable"):
            Interactions.from_columns(columns)
        return
    log = Interactions.from_columns(columns)
    assert reference.rows_of(values(log)) == expected
    assert log.report.rows_read == len(rows)
    assert log.report.rows_kept == len(expected)
    assert sum(rejection.count for rejection in log.report.rejected) == len(rows) - len(expected)


@pytest.mark.parametrize("unit", ["seconds", "milliseconds", "microseconds", "nanoseconds"])
def test_timestamps_of_another_unit_than_most_are_left_out_and_counted(unit, capsys):
    factor = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
    start = 1_700_000_000
    others = [start * other for name, other in factor.items() if name != unit]
    times = [start * factor[unit] + step for step in range(9)] + [*others, 0, -5]
    columns = {"user_id": [1] * len(times), "item_id": list(range(len(times))), "timestamp": times}
    log = Interactions.from_columns(columns)
    assert log.timestamps.tolist() == times[:9]
    (rejection,) = log.report.rejected
    assert (rejection.reason, rejection.count) == (f"with a timestamp that is not in {unit}, as most are", 5)
    note = f"timestamps are {unit} since 1970: give ages and periods in {unit} too"
    assert log.report.notes == (() if unit == "seconds" else (note,))
    assert f"not in {unit}" in capsys.readouterr().out


def test_timestamps_of_a_clock_of_ones_own_are_taken_as_they_are():
    times = [0, 5, 10**6, 10**9, 1_700_000_000, 10**12]
    log = Interactions.from_columns({"user_id": [1] * 6, "item_id": list(range(6)), "timestamp": times})
    assert log.timestamps.tolist() == times
    assert log.report.notes == ()


@given(st.integers(-(2**63), 2**63 - 1))
def test_no_number_is_a_moment_in_two_units(number: int) -> None:
    found = [unit for unit, start in UNIT_STARTS.items() if start <= number < 100 * start]
    assert found == ([time_unit(number)] if time_unit(number) else [])
    unit, others = usual_time_unit(np.array([number, number]))
    assert unit == time_unit(number)
    assert not others.any()
