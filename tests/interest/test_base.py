from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import Ranker
from keras_eta.interest import SDIM, ETAInterest, FullInterest, InterestUnit, PoolingInterest, RecentInterest, SIMHard
from keras_eta.interest.base import Columns
from tests.interest.unit_check import FEATURES, make_batch, make_ranker


def _columns(looked_up: list[str]) -> Columns:
    def embed(ids: dict[str, Any]) -> dict[str, tf.Tensor]:
        looked_up.extend(ids)
        return {name: tf.cast(values, tf.float32)[..., tf.newaxis] for name, values in ids.items()}

    ids = {"a": tf.constant([[1, 2, 3], [4, 5, 6]]), "b": tf.constant([[10, 20, 30], [40, 50, 60]])}
    return Columns(ids, tf.constant([[True, True, False], [True, False, False]]), embed)


def test_columns_are_looked_up_once_and_only_when_asked_for() -> None:
    looked_up: list[str] = []
    columns = _columns(looked_up)
    taken = columns.take(tf.constant([[[2, 0]], [[1, 1]]]), tf.constant([[[True, False]], [[True, True]]]))
    recent = columns.first(2)
    assert looked_up == []
    np.testing.assert_array_equal(taken.vectors, [[[[3, 30], [1, 10]]], [[[5, 50], [5, 50]]]])
    np.testing.assert_array_equal(recent.by_name["b"], [[[10], [20]], [[40], [50]]])
    np.testing.assert_array_equal(recent.mask, [[True, True], [True, False]])
    assert looked_up == ["a", "b", "a", "b"]
    taken.by_name, recent.vectors, taken.vectors  # noqa: B018
    assert looked_up == ["a", "b", "a", "b"]


@pytest.mark.parametrize(
    ("unit", "name"),
    [(ETAInterest, "eta_interest"), (SDIM, "sdim"), (SIMHard, "sim_hard"), (RecentInterest, "recent_interest")],
)
def test_name_of_a_unit_does_not_depend_on_what_was_made_before(unit: type[InterestUnit], name: str) -> None:
    assert [unit().name for _ in range(2)] == [name, name]
    assert unit(name="mine").name == "mine"


def test_ranker_concatenates_the_vectors_in_order() -> None:
    tf.keras.utils.set_random_seed(1)
    model = Ranker(FEATURES, interests=[PoolingInterest(), FullInterest(), RecentInterest(2)], hidden_units=(4,))
    batch = make_batch(5, [5, 2, 0])
    scores = model.score(batch)
    assert list(scores.interests) == ["pooling_interest", "full_interest", "recent_interest"]
    candidate = model.feature_embedding.candidates(batch).vectors
    user = model.embeddings["user_id"](batch["user_id"])
    x = np.concatenate(
        [candidate, *(interest.vector for interest in scores.interests.values()), np.repeat(user[:, np.newaxis], 4, 1)],
        axis=-1,
    )
    np.testing.assert_allclose(model.mlp(x)[..., 0], scores.logits, rtol=1e-6)


def test_units_share_one_table_of_fingerprints() -> None:
    model = Ranker(FEATURES, interests=[ETAInterest(3, num_bits=64), SDIM()], hidden_units=(4,))
    eta, sdim = model.interests
    assert eta.tables["item_id"] is sdim.tables["item_id"] is model.embeddings["item_id"]
    assert not model.own_embeddings


def test_own_embeddings_are_shared_with_no_unit_and_trained() -> None:
    units = [RecentInterest(3), ETAInterest(3, num_bits=8, own_embeddings=True, name="alone")]
    model = Ranker(FEATURES, interests=units, hidden_units=(4,))
    model.build()
    own = model.own_embeddings["alone"].tables
    # Users and contexts are no part of a sequence.
    assert sorted(own) == ["action", "category_id", "history_age", "item_id"]
    assert own["item_id"] is model.interests[1].tables["item_id"]
    assert all(own[name] is not model.embeddings[name] for name in own)
    variables = {variable.ref() for variable in model.embedding_variables()}
    assert {table.embeddings.ref() for table in (*own.values(), *model.embeddings.values())} == variables
    assert len({variable.name for variable in model.variables}) == len(model.variables)


@pytest.mark.parametrize(
    ("units", "error", "message"),
    [
        ([], ValueError, "`interests` must hold at least one interest unit. Received: interests=[]"),
        (["eta"], TypeError, "`interests` must hold interest units. Received: ['eta']"),
        (
            [RecentInterest(2), RecentInterest(3)],
            ValueError,
            "Every interest unit must have a `name` of its own. Used twice: ['recent_interest']",
        ),
        (
            [ETAInterest(3, num_bits=64), ETAInterest(3, num_bits=32, name="second")],
            ValueError,
            "Another interest unit made the fingerprints of 'item_id' with num_bits=64. Give one of them "
            "`own_embeddings=True`. Received by 'second': num_bits=32",
        ),
        (
            [ETAInterest(3, num_bits=16), SDIM()],
            ValueError,
            "The fingerprints of 'item_id' have 16 bits, of which interest unit 'sdim' needs 48. Give it "
            "`own_embeddings=True`, or the unit that makes them more bits. Received: num_hashes=48, group_size=3",
        ),
        (
            [SIMHard(category="price")],
            ValueError,
            "Interest unit 'sim_hard' needs a `category` among the item attributes that are ids with one value, "
            "['category_id']. Received: category='price'",
        ),
    ],
)
def test_ranker_refuses_units_that_do_not_fit(units: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        Ranker(FEATURES, interests=units)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RecentInterest(0), "`length` must be a positive integer. Received: length=0"),
        (
            lambda: FullInterest(num_heads=True),
            "`num_heads` must be a positive integer. Received: num_heads=True",
        ),
        (lambda: FullInterest(key_dim=0), "`key_dim` must be a positive integer. Received: key_dim=0"),
        (lambda: SIMHard(-1), "`top_k` must be a positive integer. Received: top_k=-1"),
        (
            lambda: SDIM(48, group_size=5),
            "`num_hashes` must be a multiple of `group_size`, which is at most 8. "
            "Received: num_hashes=48, group_size=5",
        ),
        (lambda: SDIM(0), "`num_hashes` must be a positive integer. Received: num_hashes=0"),
    ],
)
def test_unit_refuses_a_bad_argument(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


def test_signatures_of_sdim_never_cross_words() -> None:
    unit = SDIM(66, group_size=3)
    # 21 signatures of 3 bits fill bits 0 to 62 of a word; the 22nd starts the next one.
    assert unit.num_bits == 67
    make_ranker(unit).score(make_batch(4, [4, 2, 0]))
