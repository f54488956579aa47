"""Taobao's UserBehavior.csv from handmade files, and the ETA paper's protocol."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_eta import Feature, Features
from keras_eta.datasets import Interactions, taobao

# 2017-11-25 00:00:00 and 2017-12-03 23:59:59 in UTC+8.
FIRST = 1511539200
LAST = 1512316799

CLEAN = f"""\
1,2268318,2520377,pv,{FIRST + 900}
1,2333346,2520771,buy,{FIRST + 100}
100,2576651,149192,cart,{LAST}
100,3830808,4181361,fav,{FIRST}
"""


def write(folder: Path, content: str) -> Path:
    path = folder / "UserBehavior.csv"
    path.write_bytes(content.encode())
    return path


@pytest.mark.parametrize("block_bytes", [1, 40, 2**20])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_load_reads_every_line_whatever_the_blocks(tmp_path, monkeypatch, capsys, block_bytes, ending):
    monkeypatch.setattr(taobao, "_BLOCK_BYTES", block_bytes)
    log = taobao.load(write(tmp_path, CLEAN.rstrip("\n").replace("\n", ending)))

    assert {name: log[name].tolist() for name in log.columns} == {
        "user_id": [1, 1, 100, 100],
        "item_id": [2333346, 2268318, 3830808, 2576651],
        "category_id": [2520771, 2520377, 4181361, 149192],
        "action": ["buy", "pv", "fav", "cart"],
        "timestamp": [FIRST + 100, FIRST + 900, FIRST, LAST],
    }
    captured = capsys.readouterr()
    assert captured.out == (
        "Interactions: 4 rows read, 4 kept; the log was not sorted by time: sorted\n"
        "Taobao: 4 behaviours, 2 users, 4 items.\n"
    )
    # tqdm's bar ends at 100 %.
    assert "UserBehavior.csv: 100%" in captured.err


@pytest.mark.parametrize("block_bytes", [1, 100, 2**20])
def test_load_noise_is_counted_by_reason(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(taobao, "_BLOCK_BYTES", block_bytes)
    noise = (
        f"1,2,3,click,{FIRST}\n"  # line 5
        f"1,2,3,pv,{FIRST - 1}\n"
        f"1,2,3,pv,{LAST + 1}\n"
        f"1,2,3,pv\n"  # line 8
        f"1,2,3,pv,{FIRST},0\n"
        "\n"
        "1,2,3,pv,now\n"  # line 11
        "1,2,3,pv,\n"
        f"one,2,3,pv,{FIRST}\n"
        f"-1,2,3,pv,{FIRST}\n"  # line 14
        f"1,2,,pv,{FIRST}\n"
        f"1,2,3,,{FIRST}\n"
        f"100,2576651,149192,cart,{LAST}\n"  # line 17: repeats line 3
        f"1,2,3.5,pv,{FIRST}\n"
    )
    log = taobao.load(write(tmp_path, CLEAN + noise))

    assert log["item_id"].tolist() == [2333346, 2268318, 3830808, 2576651]
    text = str(log.report)
    assert text.startswith("18 rows read, 4 kept; dropped: ")
    assert text.endswith("; the log was not sorted by time: sorted")
    assert sorted(re.findall(r"\d+ [^(]*\((?:UTC\+8\) \()?lines? [\d, ]*\)", text.split("dropped: ")[1])) == sorted(
        [
            "3 with a wrong number of columns (lines 8, 9, 10)",
            "1 non-numeric user_id (line 13)",
            "1 negative user_id (line 14)",
            "1 missing category_id (line 15)",
            "1 non-integer category_id (line 18)",
            "1 missing action (line 16)",
            "1 missing timestamp (line 12)",
            "1 non-numeric timestamp (line 11)",
            "1 with an unknown action (line 5)",
            "2 with a timestamp outside 2017-11-25..2017-12-03 (UTC+8) (lines 6, 7)",
            "1 duplicate row (line 17)",
        ]
    )


def test_load_file_that_is_missing_or_empty_is_an_error(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"There is no file {tmp_path / 'x.csv'}. UserBehavior.csv is")
    ):
        taobao.load(tmp_path / "x.csv")
    path = write(tmp_path, "")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is empty.$"):
        taobao.load(path)


def test_load_file_without_a_usable_line_is_an_error(tmp_path):
    message = "No row of the log is usable: 2 rows read, 0 kept; dropped: 2 with a wrong number of columns (lines 1, 2)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        taobao.load(write(tmp_path, "user;item\n1;2\n"))


def test_features_read_category_and_action():
    assert taobao.features(embedding_dim=4, max_history_length=9) == Features(
        item_id=Feature("item_id", "int64", 4),
        item_attributes=(Feature("category_id", "int64", 4),),
        behaviour_attributes=(Feature("action", "string", 4),),
        max_history_length=9,
    )


def make_log(rows: list[tuple[int, int, int]]) -> Interactions:
    """A log of (user, item, timestamp); an item's category is its number modulo 3."""
    users, items, times = (np.array(column) for column in zip(*rows, strict=True))
    return Interactions.from_columns(
        {"user_id": users, "item_id": items, "timestamp": times, "category_id": items % 3 + 100}
    )


def test_paper_impressions_last_behaviours_against_untouched_items_of_the_category(capsys):
    # Categories: {0, 3, 6}, {1, 4}, {2}. User 1 touched 0 and 3, and ends with 3; user 2 touched 4 and 6, ends with 4.
    log = make_log(
        [(1, 0, 10), (1, 2, 20), (1, 3, 30), (2, 6, 11), (2, 4, 12), (3, 1, 5), (3, 6, 6), (3, 0, 7), (3, 3, 9)]
    )
    impressions = taobao.paper_impressions(log)

    assert list(impressions.columns) == ["item_id", "category_id", "user_id", "timestamp"]
    assert impressions.columns["user_id"].tolist() == [1, 1, 2, 2, 3, 3]
    assert impressions.columns["timestamp"].tolist() == [30, 30, 12, 12, 9, 9]
    assert impressions.label.tolist() == [1, 0, 1, 0, 1, 0]
    items = impressions.columns["item_id"].tolist()
    # Only 6 is left for user 1 and only 1 for user 2. User 3 touched all of 0, 3, 6: 2 or 4 instead.
    assert items[:5] == [3, 6, 4, 1, 3]
    assert items[5] in (2, 4)
    assert impressions.columns["category_id"].tolist() == [item % 3 + 100 for item in items]
    assert impressions.history_counts.tolist() == [2, 2, 1, 1, 3, 3]
    assert capsys.readouterr().out == (
        "Impressions: 3 positives, each with a negative. Negatives of another category, because the user touched all "
        "items of the positive's: 1. Positives dropped, because the user touched all items: 0.\n"
    )


def test_paper_impressions_user_who_touched_everything_is_dropped_and_counted(capsys):
    log = make_log([(1, 0, 1), (1, 3, 2), (2, 3, 1)])
    impressions = taobao.paper_impressions(log)

    assert impressions.columns["item_id"].tolist() == [3, 0]
    assert impressions.columns["user_id"].tolist() == [2, 2]
    assert "Positives dropped, because the user touched all items: 1.\n" in capsys.readouterr().out
    message = "Every user has touched every item of the log, so there are no negatives to draw."
    with pytest.raises(ValueError, match=re.escape(message)):
        taobao.paper_impressions(make_log([(1, 0, 1), (1, 3, 2), (2, 0, 1), (2, 3, 2)]))


def test_paper_impressions_several_positives_see_the_earlier_ones():
    log = make_log([(1, item, 10 * item) for item in range(6)] + [(2, 9, 5), (2, 30, 6)])
    impressions = taobao.paper_impressions(log, num_positives=3)

    positives = impressions[impressions.label == 1]
    assert positives.columns["item_id"].tolist() == [3, 4, 5, 9, 30]
    assert positives.history_counts.tolist() == [3, 4, 5, 0, 1]


def test_paper_impressions_negatives_are_uniform_and_seeded():
    # 3,000 users touched item 0; items 3, 6, 9, 12 of its category are free, and each user also touched 3 or 12.
    size = 3000
    rows = [(user, item, time) for user in range(size) for item, time in ((3 if user % 2 else 12, 1), (0, 2))]
    log = make_log([*rows, (size, 6, 1), (size, 9, 2), (size, 1, 3)])
    impressions = taobao.paper_impressions(log, seed=3)

    negatives = impressions.columns["item_id"][1 : 2 * size : 2]
    for odd, free in ((0, {3, 6, 9}), (1, {6, 9, 12})):
        drawn, counts = np.unique(negatives[odd::2], return_counts=True)
        assert set(drawn.tolist()) == free
        # 1,500 draws, a third each: 500, standard deviation 18.
        assert np.abs(counts - 500).max() < 90
    again = taobao.paper_impressions(log, seed=3).columns["item_id"]
    np.testing.assert_array_equal(again, impressions.columns["item_id"])
    assert (taobao.paper_impressions(log, seed=4).columns["item_id"] != again).any()


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(0, 9)), min_size=1, max_size=40),
    st.integers(1, 3),
    st.integers(0, 5),
)
def test_paper_impressions_any_log_keeps_the_protocol(rows, num_positives, seed):
    log = make_log(rows)
    touched: dict[int, list[int]] = {}
    for user, item in zip(log["user_id"].tolist(), log["item_id"].tolist(), strict=True):
        touched.setdefault(user, []).append(item)
    everything = set(log["item_id"].tolist())
    users = [user for user, items in touched.items() if set(items) != everything]
    if not users:
        with pytest.raises(ValueError, match="Every user has touched every item"):
            taobao.paper_impressions(log, num_positives, seed)
        return
    impressions = taobao.paper_impressions(log, num_positives, seed)

    columns = {name: column.tolist() for name, column in impressions.columns.items()}
    assert impressions.label.tolist() == [1, 0] * (len(impressions) // 2)
    expected = [(user, item) for user in users for item in touched[user][-num_positives:]]
    assert list(zip(columns["user_id"][::2], columns["item_id"][::2], strict=True)) == expected
    for row in range(1, len(impressions), 2):
        user, item, moment = (columns[name][row] for name in ("user_id", "item_id", "timestamp"))
        assert (user, moment) == (columns["user_id"][row - 1], columns["timestamp"][row - 1])
        assert item in everything
        assert item not in touched[user]
        assert columns["category_id"][row] == item % 3 + 100
        free = {other for other in everything - set(touched[user]) if other % 3 == columns["item_id"][row - 1] % 3}
        if free:
            assert item in free
        history = log["timestamp"][impressions.start[row] : impressions.end[row]]
        assert (history < moment).all()
        same_user = log["user_id"] == user
        assert len(history) == (same_user & (log["timestamp"] < moment)).sum()


def test_paper_impressions_bad_arguments_are_refused():
    log = make_log([(1, 0, 1), (2, 3, 2)])
    with pytest.raises(
        ValueError, match=re.escape("`num_positives` must be a positive integer. Received: num_positives=0")
    ):
        taobao.paper_impressions(log, num_positives=0)
    bare = Interactions.from_columns({"user_id": [1], "item_id": [1], "timestamp": [1]})
    message = "The log lacks the column 'category_id'. Present: ['user_id', 'item_id', 'timestamp']"
    with pytest.raises(ValueError, match=re.escape(message)):
        taobao.paper_impressions(bare)


def test_load_line_that_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / "UserBehavior.csv"
    path.write_bytes(b"1,2,3,pv,1511539300\n1,2,pv,1511539300\n1,2,3,\xff\xfe,1511539300\n")
    message = f"{path} is not in utf-8: line 3, column 'action' holds b'\\xff\\xfe'."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        taobao.load(path)
