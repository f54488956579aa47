"""The benchmark of next items: what it measures, and what counting gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.next_item import protocols, sasrec
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
    found = np.arange(50) + np.array([[0], [100], [200], [300]])
    values = measures(found, np.array([2, 106, 5, 349]), np.array([False, True, False, True]))
    assert values == pytest.approx(
        {
            "recall_5": 1 / 4,
            "ndcg_5": 0.5 / 4,
            "recall_10": 2 / 4,
            "ndcg_10": (0.5 + 1 / math.log2(8)) / 4,
            "recall_50": 3 / 4,
            "cold_recall_10": 1 / 2,
            "cold_recall_50": 1,
        }
    )
    assert measures(found, np.array([2, 106, 5, 349]), np.zeros(4, bool))["cold_recall_10"] is None


def test_temporal_parts_keep_items_out_of_training() -> None:
    # Item 99 appears only at the end; two of the 41 items are held out.
    users, times = np.repeat(np.arange(50), 40), np.tile(np.arange(40), 50)
    items = np.random.default_rng(0).permuted(np.tile(np.arange(40), (50, 1)), axis=1).ravel()
    items[times == 39] = 99
    log = Interactions.from_columns({"user_id": users, "item_id": items, "timestamp": times})
    parts = protocols.temporal(log)
    data = Protocol("tiny", parts, np.append(np.arange(40), 99), np.zeros((41, 2), np.float32))
    for part in (parts.train, parts.validation):
        assert len(np.setdiff1d(data.item_ids, part.log["item_id"])) == 2
    assert parts.train.timestamps.max() < parts.validation.timestamps.min()
    assert parts.validation.timestamps.max() < parts.test.timestamps.min()
    wanted = parts.test.columns["item_id"]
    unseen = np.setdiff1d(np.arange(40), parts.train.columns["item_id"])
    assert data.cold.tolist() == np.isin(wanted, [*unseen, 99]).tolist()
    assert data.cold.any()
    assert not data.cold.all()
    # The histories of the test part are whole.
    assert parts.test.history_counts.max() == 39


def test_windows_cover_a_log_once() -> None:
    users, times = np.repeat([1, 2], [9, 4]), np.concatenate([np.arange(9), np.arange(4)])
    log = Interactions.from_columns({"user_id": users, "item_id": np.arange(13), "timestamp": times})
    train = sequences.leave_one_out(log).train
    # User 1 trains on what has 1 to 6 earlier items, user 2 on what has 1.
    assert sasrec.windows(train, 3).history_counts.tolist() == [3, 6, 1]


def test_sasrec_learns_all_positions_and_is_judged_by_the_last() -> None:
    model = sasrec.SASRec(np.arange(10), max_history_length=3, dim=4, num_heads=1, dropout=0.0)
    model.build()
    inputs = {
        "item_id": tf.constant([5, 2]),
        "history_item_id": tf.constant([[3, 4, 6], [7, 0, 0]]),
        "history_length": tf.constant([3, 1]),
    }
    logits = model(inputs).numpy()
    last = tf.nn.log_softmax(logits).numpy()[[0, 1], [3, 0]]
    judged = model.compute_losses((inputs, tf.ones(2)))["loss"].numpy()
    assert judged == pytest.approx(-last.mean(), rel=1e-5)
    # The same history, as it was one and two items earlier, except for where its positions begin.
    positions = model.positions.embeddings
    before = []
    for back, (target, history) in enumerate([(5, [3, 4, 6]), (3, [4, 6]), (4, [6])]):
        values = positions.numpy()
        positions.assign(np.roll(values, -back, axis=0))
        earlier = {"history_item_id": tf.constant([history]), "history_length": tf.constant([len(history)])}
        before.append(tf.nn.log_softmax(model(earlier)).numpy()[0, target - 2])
        positions.assign(values)
    learned = model.compute_losses((inputs, tf.ones(2)), training=True)["loss"].numpy()
    assert learned == pytest.approx(-np.mean([*before, last[1]]), rel=1e-5)


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
