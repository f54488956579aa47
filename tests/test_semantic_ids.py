from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_eta import SemanticIds
from tests import retrieval_reference as reference

CODES = np.array([[3, 1], [0, 2], [3, 1], [3, 1], [0, 3]])


def make_ids(**changes: Any) -> SemanticIds:
    arguments = {"item_ids": [10, 20, 30, 40, 50], "codes": CODES, "codebook_sizes": (4, 5), "max_collisions": 4}
    return SemanticIds.from_codes(**{**arguments, **changes})


def test_from_codes_numbers_equal_codes_in_the_order_of_the_items() -> None:
    ids = make_ids()
    expected = np.array([[3, 1, 0], [0, 2, 0], [3, 1, 1], [3, 1, 2], [0, 3, 0]], np.int32)
    np.testing.assert_array_equal(ids.codes, expected, strict=True)
    np.testing.assert_array_equal(ids.item_ids, np.array([10, 20, 30, 40, 50]), strict=True)
    assert (ids.sizes, ids.levels, len(ids)) == ((4, 5, 4), 2, 5)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=30), st.integers(1, 30))
def test_from_codes_then_extended_equals_counting(codes: list[tuple[int, int]], known: int) -> None:
    tokens = reference.collision_tokens(codes)
    item_ids = np.arange(len(codes)) * 7 % 31
    ids = SemanticIds.from_codes(item_ids[:known], np.array(codes[:known]), (2, 3), max_collisions=max(tokens) + 1)
    if known < len(codes):
        ids = ids.extended(item_ids[known:], np.array(codes[known:]))
    np.testing.assert_array_equal(ids.codes[:, -1], tokens)
    np.testing.assert_array_equal(ids.codes[:, :-1], codes)
    np.testing.assert_array_equal(ids.item_ids, item_ids)


def test_from_codes_refuses_more_equal_codes_than_tokens() -> None:
    message = "At most 2 items can share their codes, but 3 have [3, 1]. Use more levels or larger codebooks"
    with pytest.raises(ValueError, match=re.escape(message)):
        make_ids(max_collisions=2)
    assert make_ids(max_collisions=3).codes[:, -1].max() == 2


def test_extended_keeps_old_ids_and_numbers_on() -> None:
    ids = make_ids()
    longer = ids.extended([60, 5], [[3, 1], [2, 2]])
    np.testing.assert_array_equal(longer.codes[:5], ids.codes)
    np.testing.assert_array_equal(longer.codes[5:], [[3, 1, 3], [2, 2, 0]])
    assert longer.item_ids.tolist() == [10, 20, 30, 40, 50, 60, 5]
    assert longer.sizes == ids.sizes
    assert len(ids) == 5
    with pytest.raises(ValueError, match="At most 4 items can share their codes, but 5 have"):
        longer.extended([70], [[3, 1]])


def test_extended_refuses_known_items_and_other_types() -> None:
    with pytest.raises(ValueError, match=r"`item_ids` must be new; 1 of 2 have an id already.*Received: 30"):
        make_ids().extended([30, 60], [[0, 0], [0, 0]])
    with pytest.raises(ValueError, match=r"`item_ids` must be integers, as those that are there. Received: strings"):
        make_ids().extended(["60"], [[0, 0]])
    with pytest.raises(ValueError, match=re.escape("`codes` must be integers of shape [1, 2]")):
        make_ids().extended([60], [[0, 0, 0]])


@pytest.mark.parametrize(
    "item_ids",
    [
        np.array([-(2**63), 2**63 - 1, 0]),
        [b"\xff\x00", b"\x00", b""],
        ["film::1", "é", "b\0"],
        np.array([b"a", "b", "\0"], object),
    ],
    ids=["integers", "bytes", "strings", "objects"],
)
def test_save_and_load_give_the_same_ids(item_ids: Any, tmp_path: Path) -> None:
    ids = SemanticIds.from_codes(item_ids, [[1], [1], [0]], (2,), max_collisions=3)
    ids.save(tmp_path / "ids")
    loaded = SemanticIds.load(tmp_path / "ids")
    values = [id_.encode() if isinstance(id_, str) else id_ for id_ in list(item_ids)]
    assert loaded.item_ids.tolist() == ids.item_ids.tolist() == values
    assert loaded.item_ids.dtype == (object if isinstance(values[0], bytes) else np.int64)
    np.testing.assert_array_equal(loaded.codes, ids.codes, strict=True)
    assert loaded.sizes == (2, 3)
    with np.load(tmp_path / "ids", allow_pickle=False) as arrays:
        assert set(arrays) >= {"codes", "sizes", "item_ids"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item_ids": [1, 2, 3, 2, 5]}, "`item_ids` must be different. Received twice: 2"),
        ({"item_ids": ["a", "b", "c", b"b", "d"]}, "`item_ids` must be different. Received twice: b'b'"),
        ({"item_ids": [1.0, 2, 3, 4, 5]}, "`item_ids` must hold integers of 64 bits, strings or bytes"),
        ({"item_ids": ["1", 2, 3, 4, 5]}, "`item_ids` must hold integers of 64 bits, strings or bytes"),
        ({"item_ids": np.full(5, 2**63, "uint64")}, "`item_ids` must hold integers of 64 bits, strings or bytes"),
        ({"item_ids": [[1], [2], [3], [4], [5]]}, "Received: shape [5, 1], int64"),
        ({"item_ids": []}, "at least one, in one dimension. Received: shape [0]"),
        ({"item_ids": [1, 2, 3, 4]}, "`codes` must be integers of shape [4, 2], a row per item and a column per size."),
        ({"codes": CODES.astype(float)}, "Received: shape [5, 2], float64"),
        ({"codes": CODES[:, :1]}, "Received: shape [5, 1], int64"),
        ({"codes": CODES - 1}, "`codes` must be from 0 to 3 in column 0. Received: -1 in row 1"),
        ({"codebook_sizes": (4, 3)}, "`codes` must be from 0 to 2 in column 1. Received: 3 in row 4"),
        ({"codebook_sizes": ()}, "`codebook_sizes` must be a sequence of at least 1 positive integers"),
        ({"codebook_sizes": 4}, "Received: codebook_sizes=4"),
        ({"codebook_sizes": (4, 0)}, "Received: codebook_sizes=(4, 0)"),
        ({"codebook_sizes": (4, 2**31)}, "positive integers that int32 holds"),
        ({"max_collisions": 0}, "`max_collisions` must be a positive integer. Received: max_collisions=0"),
    ],
)
def test_wrong_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_ids(**changes)


def test_equal_semantic_ids_are_refused() -> None:
    message = "`codes` must be different; `from_codes` numbers equal ones. Received twice: [1, 0]"
    with pytest.raises(ValueError, match=re.escape(message)):
        SemanticIds(np.arange(3), np.array([[0, 0], [1, 0], [1, 0]]), (2, 2))
    with pytest.raises(ValueError, match="`sizes` must be a sequence of at least 2 positive integers"):
        SemanticIds(np.arange(2), np.array([[0], [1]]), (2,))


def test_report_equals_the_reference() -> None:
    rng = np.random.default_rng(0)
    codes, vectors = rng.integers(0, 4, (40, 2)), rng.standard_normal((40, 5)).astype(np.float32)
    # Of very different lengths, which cosines do not see.
    vectors *= rng.uniform(0.01, 10.0, (40, 1)).astype(np.float32)
    report = SemanticIds.from_codes(np.arange(40), codes, (5, 4)).report(vectors)
    for level, size in enumerate((5, 4)):
        expected = reference.usage_and_perplexity(codes[:, level].tolist(), size)
        np.testing.assert_allclose((report.usage[level], report.perplexity[level]), expected, rtol=1e-12)
    rows = [tuple(row) for row in codes.tolist()]
    assert report.colliding == pytest.approx(np.mean([rows.count(row) > 1 for row in rows]))
    assert report.largest_collision == max(rows.count(row) for row in rows)
    near, chance = reference.prefix_sharing(codes[:, 0].tolist(), vectors, 10)
    assert (report.near_sharing, report.chance_sharing) == pytest.approx((near, chance), rel=1e-12)


def test_report_worked_by_hand() -> None:
    # Items 0, 2 and 3 share their codes. Items 0, 1 and 4 have content, and all others are neighbours of each: item 0
    # has the first code 3, items 1 and 4 have 0, so that shares are 0, 1/2 and 1/2.
    vectors = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    report = make_ids().report(vectors)
    assert (report.items, report.sizes, report.usage) == (5, (4, 5), (2 / 4, 3 / 5))
    assert (report.colliding, report.largest_collision) == (3 / 5, 3)
    assert (report.near_sharing, report.chance_sharing) == pytest.approx((1 / 3, 1 / 3))
    assert report.perplexity[0] == pytest.approx(1 / (0.6**0.6 * 0.4**0.4))
    assert str(report) == (
        "5 items, 2 levels\n"
        "level 1: 50.0% of 4 codes used, perplexity 2.0\n"
        "level 2: 60.0% of 5 codes used, perplexity 2.6\n"
        "60.0% of items share their codes, at most 3 the same\n"
        "33.3% of the 10 nearest items share the first code (33.3% of all items)"
    )


def test_report_without_content_says_nothing_of_neighbours() -> None:
    for report in (make_ids().report(), make_ids().report(np.eye(5)[[0] * 5] * [[1], [0], [0], [0], [0]])):
        assert (report.near_sharing, report.chance_sharing) == (None, None)
        assert "nearest" not in str(report)
    with pytest.raises(ValueError, match=r"`vectors` must have a row per item. Received: 4 rows, 5 items"):
        make_ids().report(np.eye(4))
    with pytest.raises(ValueError, match=r"`vectors` must be finite as float32. Received at row 1"):
        make_ids().report(np.array([[1.0], [np.nan], [1.0], [1.0], [1.0]]))
