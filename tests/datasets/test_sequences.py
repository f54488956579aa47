"""Files of one line per user, and leaving each user's last items out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from keras_eta.datasets import Interactions, sequences
from keras_eta.datasets.impressions import Impressions

LINES = "u1 5 3 3 9\n\nu2 3 5\nu3 7 5 3\n"


def _histories(part: Impressions) -> dict[tuple[str, str], list[Any]]:
    """(user, item) -> the items before it, the latest last."""
    items = part.log["item_id"]
    rows = zip(part.columns["user_id"], part.columns["item_id"], part.start, part.end, strict=True)
    return {(str(user), str(item)): items[start:end].tolist() for user, item, start, end in rows}


def test_parts_are_the_last_the_last_but_one_and_the_rest(tmp_path: Path) -> None:
    (tmp_path / "toys.txt").write_text(LINES)
    log = sequences.load(tmp_path / "toys.txt")
    assert log["user_id"].tolist() == ["u1"] * 4 + ["u2"] * 2 + ["u3"] * 3
    assert log["item_id"].tolist() == ["5", "3", "3", "9", "3", "5", "7", "5", "3"]
    assert log["timestamp"].tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2]
    parts = sequences.leave_one_out(log)
    assert _histories(parts.train) == {("u1", "3"): ["5"]}
    assert _histories(parts.validation) == {("u1", "3"): ["5", "3"], ("u3", "5"): ["7"]}
    assert _histories(parts.test) == {("u1", "9"): ["5", "3", "3"], ("u3", "3"): ["7", "5"]}
    assert all(part.label.all() for part in parts)


def test_what_was_at_one_moment_stays_in_the_order_in_which_it_came() -> None:
    log = Interactions.from_columns(
        {"user_id": [1] * 4, "item_id": [8, 6, 7, 9], "timestamp": [50, 50, 50, 10], "rating": [5, 4, 3, 2]}
    )
    parts = sequences.leave_one_out(log)
    assert _histories(parts.test) == {("1", "7"): [9, 8, 6]}
    assert _histories(parts.validation) == {("1", "6"): [9, 8]}
    assert parts.test.log["rating"].tolist() == [2, 5, 4, 3]


def test_users_of_few_items_are_in_no_part() -> None:
    log = Interactions.from_columns({"user_id": [1, 1, 2], "item_id": [8, 6, 7], "timestamp": [1, 2, 3]})
    with pytest.raises(ValueError, match=r"A user must have 3 interactions for a part each\. Received: at most 2"):
        sequences.leave_one_out(log)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("u1 5 3\nu2\n", "line 2: user 'u2' has no items."),
        ("u1 5 3\nu2 4\nu1 6\n", "user 'u1' has more than one line."),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "toys.txt").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        sequences.load(tmp_path / "toys.txt")


def test_attributes_of_items(tmp_path: Path) -> None:
    path = tmp_path / "toys_item2attributes.json"
    path.write_text(json.dumps({"5": [1, 2], "3": []}))
    table = sequences.load_attributes(path)
    assert table["item_id"].tolist() == ["5", "3"]
    assert table["attributes"].tolist() == [["1", "2"], []]
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="must hold a JSON object of lists, one per item"):
        sequences.load_attributes(path)
