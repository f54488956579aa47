"""The benchmark of next items: what it measures, and what counting gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.next_item.__main__ import measures
from benchmarks.next_item.contestants import CONTESTANTS
from benchmarks.next_item.protocols import Protocol
from keras_eta.datasets import Interactions, sequences


def _protocol() -> Protocol:
    # After 11 comes 12 twice and 13 once; 14 is the most popular of those that user 4 has not seen.
    histories = {1: [11, 12, 14, 15], 2: [11, 12, 14, 13], 3: [14, 11, 13, 12, 15], 4: [13, 15, 11, 10]}
    rows = [(user, item, time) for user, items in histories.items() for time, item in enumerate(items)]
    user, item, time = zip(*rows, strict=True)
    log = Interactions.from_columns({"user_id": user, "item_id": item, "timestamp": time})
    ids = np.array([15, 14, 13, 12, 11, 10])
    return Protocol("tiny", sequences.leave_one_out(log), ids, np.zeros((6, 2), np.float32))


def test_measures_count_ranks_up_to_ten() -> None:
    found = np.arange(10) + np.array([[0], [100], [200]])
    values = measures(found, np.array([2, 106, 5]))
    assert values == pytest.approx(
        {"recall_5": 1 / 3, "ndcg_5": 0.5 / 3, "recall_10": 2 / 3, "ndcg_10": (0.5 + 1 / math.log2(8)) / 3}
    )


def test_co_occurrence_finds_what_followed_the_last_item_most_often() -> None:
    data = _protocol()
    # Of training: (11, 12) twice, (14, 11), (11, 13) and (13, 15).
    found = data.item_ids[CONTESTANTS["co-occurrence"](data, 0, 1)(data.parts.test, 2)]
    # Nothing followed the last item of user 3, 12, so the most popular of what is left goes first.
    assert found[2].tolist() == [15, 10]
    assert found[3, 0] == 12


def test_popularity_is_that_of_training_and_leaves_out_what_was_seen() -> None:
    data = _protocol()
    trained = data.parts.train.columns["item_id"].tolist()
    assert sorted(trained) == [11, 12, 12, 13, 15]
    found = data.item_ids[CONTESTANTS["popularity"](data, 0, 1)(data.parts.test, 1)]
    # Users 1, 2 and 3 know 12; of the others 13 and 15 are as popular.
    assert found[3, 0] == 12
    assert found[0, 0] in (13, 15)
