"""Matches of candidates in histories, against loops."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_eta import Feature, Features
from keras_eta.interest import MatchInterest
from keras_eta.ops import matches
from tests import reference
from tests.interest.unit_check import make_ranker


@settings(deadline=None, max_examples=60)
@given(
    wanted=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    present=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    length=st.integers(0, 6),
)
def test_matches_equal_the_loop(wanted: list[int], present: list[int], length: int) -> None:
    mask = [place < length for place in range(len(present))]
    counts, latest = matches(tf.constant([wanted]), tf.constant([present]), tf.constant([mask]))
    expected = [reference.matches(value, present[:length], unknown=-1) for value in wanted]
    assert [*zip(counts[0].numpy().tolist(), latest[0].numpy().tolist(), strict=True)] == expected


def test_values_out_of_the_vocabulary_match_nothing() -> None:
    features = Features(item_id=Feature("item_id", vocabulary_size=5, num_oov_indices=2), max_history_length=4)
    model = make_ranker(MatchInterest(), features)
    inputs = {
        "item_id": tf.constant([[2, 3]]),
        "history_item_id": tf.constant([[3, 2, 2, 3]]),
        "history_length": tf.constant([4]),
    }
    interest = model.score(inputs).interests["match"]
    assert interest.matches is not None
    np.testing.assert_array_equal(interest.matches["item_id"], [[0, 2]])
    np.testing.assert_allclose(interest.vector, [[[0, 0, 0], [np.log(3), 0.5, 1]]], rtol=1e-6)


@pytest.mark.parametrize("matched", [("price",), ("tags",), ()])
def test_refuses_what_cannot_match(matched: tuple[str, ...]) -> None:
    features = Features(
        item_id=Feature("item_id", vocabulary_size=5),
        item_attributes=(Feature("price", "float32"), Feature("tags", vocabulary_size=3, max_values=2)),
    )
    text = (
        "Interest unit 'match' compares features of the item that are ids with one value, \\['item_id'\\]. "
        f"Received: matched=\\({', '.join(map(repr, matched))},?\\)"
    )
    with pytest.raises(ValueError, match=text):
        make_ranker(MatchInterest(matched), features)
