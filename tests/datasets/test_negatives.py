"""Sampled negatives: worked cases, any log against plain loops, and the correction of calibration."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_eta.datasets import Interactions, corrected_logits, sample_negatives
from tests.datasets import reference


def make_log(rows: list[tuple[Any, ...]], names: str = "category store") -> Interactions:
    """A log of (user, item, time, ...)."""
    return Interactions.from_columns(
        dict(zip(["user_id", "item_id", "timestamp", *names.split()], zip(*rows, strict=True), strict=True))
    )


# User 1 buys a and b at once, then c, then a. User 2 buys d, of another category, between.
SHOP = make_log(
    [
        (1, "a", 10, "red", 1),
        (1, "b", 10, "red", 1),
        (1, "c", 20, "red", 2),
        (1, "a", 40, "red", 1),
        (2, "d", 20, "blue", 1),
        (2, "c", 30, "red", 1),
        (3, "d", 50, "blue", 2),
    ]
)


def drawn(impressions: Any) -> dict[tuple[int, str, int], set[str]]:
    """The negatives of each positive (user, item, time)."""
    columns = {name: column.tolist() for name, column in impressions.columns.items()}
    found: dict[tuple[int, str, int], set[str]] = {}
    rows = zip(columns["user_id"], columns["item_id"], columns["timestamp"], impressions.label.tolist(), strict=True)
    for user, item, time, label in rows:
        if label:
            key = (user, item, time)
            found[key] = set()
        else:
            assert (user, time) == (key[0], key[2])
            found[key].add(item)
    return found


def test_sample_negatives_default_draws_from_what_was_seen_before(capsys):
    # 200 draws of up to 3 candidates miss one with probability below 1e-30.
    impressions = sample_negatives(SHOP, 200)

    assert drawn(impressions) == {
        (1, "c", 20): {"a", "b"},
        (1, "a", 40): {"b", "c", "d"},
        (2, "d", 20): {"a", "b"},
        (2, "c", 30): {"a", "b", "d"},
        (3, "d", 50): {"a", "b", "c"},
    }
    assert list(impressions.columns) == ["user_id", "timestamp", "item_id", "sampling_probability"]
    assert impressions.label.tolist() == ([1] + [0] * 200) * 5
    assert capsys.readouterr().out == (
        "Negatives: 200 for each of 5 positives. Positives left out, because they have no candidate: 2.\n"
    )


def test_sample_negatives_same_category_store_and_exclusion_of_all_that_the_user_took():
    columns: dict[str, Any] = {"item_attributes": ("category",), "context": ("store",)}
    by_category = sample_negatives(SHOP, 200, same=("category",), candidates="all", **columns)
    assert drawn(by_category) == {
        (1, "a", 10): {"c"},
        (1, "b", 10): {"c"},
        (1, "c", 20): {"a", "b"},
        (1, "a", 40): {"b", "c"},
        (2, "c", 30): {"a", "b"},
    }
    assert list(by_category.columns) == [
        "user_id", "timestamp", "store", "item_id", "category", "sampling_probability",
    ]  # fmt: skip
    # Store 2 sold c and d alone.
    assert drawn(sample_negatives(SHOP, 200, same=("store",), candidates="all", **columns)) == {
        (1, "a", 10): {"c", "d"},
        (1, "b", 10): {"c", "d"},
        (1, "c", 20): {"d"},
        (1, "a", 40): {"b", "c", "d"},
        (2, "d", 20): {"a", "b", "c"},
        (2, "c", 30): {"a", "b", "d"},
        (3, "d", 50): {"c"},
    }
    both = sample_negatives(SHOP, 200, same=("store", "category"), **columns)
    assert drawn(both) == {(1, "a", 40): {"b", "c"}, (2, "c", 30): {"a", "b"}}
    assert drawn(sample_negatives(SHOP, 200, candidates="all", exclude="user")) == {
        (1, "a", 10): {"d"},
        (1, "b", 10): {"d"},
        (1, "c", 20): {"d"},
        (1, "a", 40): {"d"},
        (2, "d", 20): {"a", "b"},
        (2, "c", 30): {"a", "b"},
        (3, "d", 50): {"a", "b", "c"},
    }


def test_sample_negatives_columns_are_the_candidates_or_the_positives():
    impressions = sample_negatives(
        SHOP, 1, item_attributes=("category",), context=("store",), positives=np.array([5]), seed=2
    )
    columns = {name: column.tolist() for name, column in impressions.columns.items()}
    assert columns["user_id"] == [2, 2]
    assert columns["timestamp"] == [30, 30]
    assert columns["store"] == [1, 1]
    assert columns["category"] == ["red", {"a": "red", "b": "red", "d": "blue"}[columns["item_id"][1]]]
    assert impressions.history_counts.tolist() == [1, 1]


def test_sample_negatives_probabilities_of_popularity():
    impressions = sample_negatives(SHOP, 200, by="popularity", positives=SHOP["timestamp"] >= 40)

    # Before 40 a, b, d had a row each and c two, and the user takes a: of b, c, c, d each row has 1/4. As one of them,
    # a would have 1/4.
    columns = {name: column.tolist() for name, column in impressions.columns.items()}
    rows = zip(columns["user_id"], columns["item_id"], columns["sampling_probability"], strict=True)
    # Before 50 there are 2 of a, 2 of c, 1 of b, and 1 of d, which is taken.
    assert set(rows) == {
        (1, "a", 0.25), (1, "b", 0.25), (1, "c", 0.5), (1, "d", 0.25),
        (3, "a", np.float32(0.4)), (3, "b", np.float32(0.2)), (3, "c", np.float32(0.4)), (3, "d", np.float32(0.2)),
    }  # fmt: skip


def test_sample_negatives_are_drawn_with_their_probabilities():
    # One user takes item 9 at time 2; before, others took item 0 once, 1 twice, 2 three times and 9 994 times.
    history = [0, 1, 1, 2, 2, 2] + [9] * 994
    log = make_log([(user, item, 1) for user, item in enumerate(history)] + [(5000, 9, 2)], "")
    for by, shares in (("popularity", [1 / 6, 2 / 6, 3 / 6]), ("uniform", [1 / 3] * 3)):
        impressions = sample_negatives(log, 6000, by=by, positives=np.array([1000]))  # type: ignore[arg-type]
        items = impressions.columns["item_id"][1:]
        # The standard deviation is below 39.
        np.testing.assert_allclose(np.bincount(items, minlength=3), 6000 * np.array(shares), atol=180)
        probability = impressions.columns["sampling_probability"]
        np.testing.assert_allclose(probability[1:], np.array(shares)[items], rtol=1e-6)
        # 994 rows to 6 are more than all of the candidates': 1 is the most. Uniformly it is one to three.
        assert probability[0] == pytest.approx(1 if by == "popularity" else 1 / 3)


def test_sample_negatives_item_that_is_new_counts_as_seen_once():
    log = make_log([(1, "a", 1), (2, "b", 1), (3, "b", 2), (3, "new", 3)], "")
    impressions = sample_negatives(log, by="popularity", positives=log["item_id"] == "new")
    # Of a and two rows of b, by user 3 too, none is taken at 3.
    assert impressions.columns["sampling_probability"][0] == np.float32(1 / 3)


def test_sample_negatives_seed_decides():
    log = make_log([(user, item, item) for user in range(3) for item in range(50)], "")
    items = [sample_negatives(log, 3, seed=seed).columns["item_id"].tolist() for seed in (0, 0, 1)]
    assert items[0] == items[1] != items[2]


def test_sample_negatives_min_history_leaves_positive_and_negatives_out(capsys):
    impressions = sample_negatives(SHOP, 2, min_history=2)
    assert set(drawn(impressions)) == {(1, "c", 20), (1, "a", 40)}
    assert "9 with fewer than 2 earlier behaviours" in capsys.readouterr().out


ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 3), st.integers(0, 1), st.integers(0, 1)),
    min_size=1,
    max_size=20,
)


@given(
    ROWS,
    st.sets(st.sampled_from(["category", "store"])),
    st.sampled_from(["uniform", "popularity"]),
    st.sampled_from(["earlier", "all"]),
    st.sampled_from(["moment", "user"]),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_sample_negatives_any_log_keeps_the_rules(rows, same, by, candidates, exclude, rate, seed):
    log = make_log(rows)
    options: dict[str, Any] = {"by": by, "candidates": candidates, "exclude": exclude}
    plain = reference.rows_of({name: log[name].tolist() for name in log.columns})
    attributes, context = (["category"] if "category" in same else []), (["store"] if "store" in same else [])
    expected = []
    for row in plain:
        weights, own = reference.candidate_weights(plain, row, attributes, context, by, candidates, exclude)
        if weights:
            expected.append((row, weights, own))

    def sample() -> Any:
        return sample_negatives(
            log, rate, item_attributes=["category"], context=["store"], same=sorted(same), seed=seed, **options
        )

    if not expected:
        message = f"None of the {len(log)} positives has a candidate to draw a negative from."
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            sample()
        return
    impressions = sample()
    found = reference.rows_of({name: column.tolist() for name, column in impressions.columns.items()})
    assert impressions.label.tolist() == ([1] + [0] * rate) * len(expected)
    earliest: dict[int, reference.Row] = {}
    for row in sorted(plain, key=lambda row: row["timestamp"]):
        earliest.setdefault(row["item_id"], row)
    for number, (row, weights, own) in enumerate(expected):
        positive, *negatives = found[number * (rate + 1) : (number + 1) * (rate + 1)]
        total = sum(weights.values())
        assert positive == {**row, "sampling_probability": np.float32(min(1, max(own, 1) / total))}
        for negative in negatives:
            item = negative["item_id"]
            assert negative == {
                **{name: row[name] for name in ("user_id", "timestamp", "store")},
                "item_id": item,
                "category": earliest[item]["category"],
                "sampling_probability": np.float32(weights[item] / total),
            }
    again = sample()
    assert again.columns["item_id"].tolist() == impressions.columns["item_id"].tolist()


def test_sample_negatives_lists_and_strings_can_be_the_same():
    log = Interactions.from_columns(
        {
            "user_id": ["u", "v", "w"],
            "item_id": ["a", "b", "c"],
            "timestamp": [1, 2, 3],
            "genres": [["x", "y"], ["x", "y"], ["x"]],
        }
    )
    impressions = sample_negatives(log, item_attributes=("genres",), same=("genres",), candidates="all")
    assert impressions.columns["item_id"].tolist() == ["a", "b", "b", "a"]
    assert [list(genres) for genres in np.asarray(impressions.columns["genres"])] == [["x", "y"]] * 4


def test_corrected_logits_give_the_log_odds_of_the_whole_choice():
    # Each of 60,000 users takes one of three items with these probabilities.
    shares = np.array([0.6, 0.3, 0.1])
    size = 60_000
    log = make_log([(u, i, u) for u, i in enumerate(np.random.default_rng(0).choice(3, size, p=shares).tolist())], "")
    impressions = sample_negatives(log, 4, candidates="all")

    item, label = impressions.columns["item_id"], impressions.label
    counts = np.array([np.bincount(item[label == value], minlength=3) for value in (0, 1)])
    # What a calibrated model learns of the sample.
    logits = np.log(counts[1] / counts[0])[item]
    found = corrected_logits(logits, impressions.columns["sampling_probability"], rate=4)
    np.testing.assert_allclose(found, np.log(shares / (1 - shares))[item], atol=0.05)
    # By hand: 4 draws of probability 1/2 keep two rows for one.
    np.testing.assert_allclose(corrected_logits(np.array([0.0]), np.array([0.5]), 4), [0.6931472], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 0}, "`rate` must be a positive integer. Received: rate=0"),
        ({"by": "rank"}, "`by` must be one of ('uniform', 'popularity'). Received: by='rank'"),
        ({"candidates": "later"}, "`candidates` must be one of ('earlier', 'all'). Received: candidates='later'"),
        ({"exclude": None}, "`exclude` must be one of ('moment', 'user'). Received: exclude=None"),
        ({"same": "category"}, "`same` must be a sequence of names. Received: same='category'"),
        (
            {"same": ("category",)},
            "`same` must name columns of `item_attributes` and `context`, which are []. Received: same=['category']",
        ),
        (
            {"item_attributes": ("category",), "context": ("category",)},
            "`item_attributes` and `context` must name different columns among ['category', 'store']. Received: "
            "item_attributes=['category'], context=['category']",
        ),
        (
            {"item_attributes": ("item_id",)},
            "`item_attributes` and `context` must name different columns among ['category', 'store']. Received: "
            "item_attributes=['item_id'], context=[]",
        ),
        (
            {"positives": np.array([7])},
            "`positives` must be indices of the log's 7 rows, or a bool mask of them, at least one. Received: int64 of "
            "shape [1]",
        ),
        (
            {"positives": np.zeros(3, bool)},
            "`positives` must be indices of the log's 7 rows, or a bool mask of them, at least one. Received: bool of "
            "shape [3]",
        ),
        ({"min_history": -1}, "`min_history` must be an integer of at least 0. Received: min_history=-1"),
    ],
)
def test_sample_negatives_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sample_negatives(SHOP, **arguments)


def test_corrected_logits_bad_arguments_are_refused():
    message = "`logits` and `sampling_probability` must have one shape. Received: (2,), (1,)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        corrected_logits(np.zeros(2), np.ones(1))
    message = "`sampling_probability` must lie in (0, 1]. Received: [0.0, nan]"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        corrected_logits(np.zeros(3), np.array([0, 0.5, np.nan]))
    with pytest.raises(ValueError, match=re.escape("`rate` must be a positive integer. Received: rate=0")):
        corrected_logits(np.zeros(1), np.ones(1), 0)
