from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_eta.interest import InnerProductInterest
from tests.interest.unit_check import make_batch, make_ranker


def test_snapshot_follows_the_embeddings_every_period_and_not_in_between() -> None:
    model = make_ranker(InnerProductInterest(3, index_period=3))
    model.compile()
    batch = make_batch(12, [12, 9, 5])
    rows = {
        name: x[:, 0] if x.shape.rank == 2 and name in ("item_id", "category_id", "price") else x
        for name, x in batch.items()
    }
    table, copy = model.embeddings["item_id"].embeddings, model.interests[0].snapshot.copies["item_id"]
    model.interests[0].snapshot.take()
    seen = [copy.numpy()]
    for step in range(1, 8):
        model.train_step((rows, tf.constant([0, 1, 1])))
        if step % 3 == 0:
            np.testing.assert_array_equal(copy, table)
            assert not np.array_equal(copy, seen[-1])
            seen.append(copy.numpy())
        else:
            np.testing.assert_array_equal(copy, seen[-1])
            assert not np.array_equal(copy, table)


def test_search_goes_by_the_snapshot_and_attention_by_the_embeddings() -> None:
    model = make_ranker(InnerProductInterest(2, index_period=5))
    unit, table = model.interests[0], model.embeddings["item_id"].embeddings
    unit.snapshot.take()
    batch = make_batch(12, [12, 9, 5])
    before: Any = model.score(batch).interests[unit.name]
    table.assign(-table[::-1])
    after: Any = model.score(batch).interests[unit.name]
    np.testing.assert_array_equal(before.retrieved.positions, after.retrieved.positions)
    np.testing.assert_array_equal(before.retrieved.scores, after.retrieved.scores)
    assert not np.allclose(before.vector, after.vector)


def test_snapshot_is_no_trainable_weight_and_is_saved_with_the_weights(tmp_path) -> None:
    model = make_ranker(InnerProductInterest(3, index_period=3))
    copy = model.interests[0].snapshot.copies["item_id"]
    assert copy.ref() not in {variable.ref() for variable in model.trainable_variables}
    copy.assign(tf.random.normal(copy.shape))
    model.save_weights(str(tmp_path / "weights"))
    other = make_ranker(InnerProductInterest(3, index_period=3))
    other.load_weights(str(tmp_path / "weights")).assert_consumed()
    np.testing.assert_array_equal(other.interests[0].snapshot.copies["item_id"], copy)
