"""What is TWIN-V2's own: sizes of clusters in both stages, and the sequence that they come in."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import Feature, FeatureLookup, Features, Ranker, Sequence
from keras_eta.datasets import Impressions, Interactions, cluster_log
from keras_eta.interest import TWINV2
from tests.interest.unit_check import CLUSTERED, make_batch, make_ranker


def _clusters(sizes: list[list[float]]) -> dict[str, tf.Tensor]:
    """Batches of two users whose clusters are all alike but for their sizes."""
    batch = make_batch(len(sizes[0]), [len(sizes[0])] * 2, ties=True, features=CLUSTERED)
    return {**batch, "clusters_size": tf.constant(sizes), "clusters_age": tf.ones_like(batch["clusters_age"])}


def _interest(model: Any, batch: Any) -> Any:
    return model.score(batch).interests["twinv2"]


def test_a_cluster_weighs_as_the_behaviours_in_it() -> None:
    model = make_ranker(TWINV2(4, num_heads=2))
    interest = _interest(model, _clusters([[1.0, 3.0, 4.0, 2.0], [20.0, 20.0, 1.0, 1.0]]))
    # Equal relevances but for ln n: softmax gives n / 10 and n / 42, in the order in which they were retrieved.
    for c in range(4):
        assert interest.retrieved.positions[:, c].numpy().tolist() == [[2, 1, 3, 0], [0, 1, 2, 3]]
        for head in range(2):
            weights = interest.weights[:, c, head]
            np.testing.assert_allclose(weights[0], [0.4, 0.3, 0.2, 0.1], 1e-5)
            np.testing.assert_allclose(weights[1], [20 / 42, 20 / 42, 1 / 42, 1 / 42], 1e-5)


def test_the_largest_clusters_are_retrieved() -> None:
    model = make_ranker(TWINV2(2, num_heads=2))
    interest = _interest(model, _clusters([[1.0, 3.0, 4.0, 2.0], [5.0, 7.0, 6.0, 7.0]]))
    for c in range(4):
        assert interest.retrieved.positions[:, c].numpy().tolist() == [[2, 1], [1, 3]]


def test_sizes_of_padding_are_not_read_and_give_no_nan() -> None:
    model = make_ranker(TWINV2(3))
    batch = make_batch(6, [0, 2, 6], features=CLUSTERED)
    real = tf.sequence_mask([0, 2, 6], 6)
    results = []
    for padding in (0.0, -1.0, 7.0):
        columns = {**batch, "clusters_size": tf.where(real, batch["clusters_size"], padding)}
        with tf.GradientTape() as tape:
            logits = model.score(columns, training=True).logits
        gradients = [tf.convert_to_tensor(x) for x in tape.gradient(logits, model.trainable_variables) if x is not None]
        assert len(gradients) > 10
        assert all(np.isfinite(gradient).all() for gradient in gradients)
        results.append(logits.numpy())
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_sizes_below_one_count_as_one() -> None:
    model = make_ranker(TWINV2(4, num_heads=2))
    ones, below = (_interest(model, _clusters(sizes)) for sizes in ([[1.0] * 4] * 2, [[0.0, 0.5, -3.0, 1.0]] * 2))
    assert np.isfinite(below.vector).all()
    assert np.array_equal(below.weights, ones.weights)
    assert np.array_equal(below.vector, ones.vector)


def test_size_is_no_cross_feature() -> None:
    unit: Any = make_ranker(TWINV2(3, num_heads=2)).interests[0]
    # Action 2, dwell 1, age 3; items 8 + 4 + 1.
    assert unit.cross_kernel.shape == (6, 2)
    assert unit.value_kernel.shape[0] == 19


def test_only_cross_feature_is_the_size() -> None:
    sequences = (Sequence("groups", (Feature("n", "float32"),), max_length=8),)
    features = dataclasses.replace(CLUSTERED, age=None, sequences=sequences)
    unit: Any = make_ranker(TWINV2(3, sequence="groups", size="n"), features).interests[0]
    assert not hasattr(unit, "cross_kernel")
    assert (unit.sequence, unit.get_config()["size"], unit.get_config()["sequence"]) == ("groups", "n", "groups")


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (
            TWINV2(sequence="groups"),
            "Interest unit 'twinv2' needs one of the sequences of `features`, ['history', 'clusters']. "
            "Received: sequence='groups'",
        ),
        (
            TWINV2(size="n"),
            "Interest unit 'twinv2' needs a `size` among the float32 attributes of sequence 'clusters', "
            "['size', 'dwell']. Received: size='n'",
        ),
        (TWINV2(size="action"), "['size', 'dwell']. Received: size='action'"),
    ],
)
def test_a_missing_sequence_or_size_is_refused(unit: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Ranker(CLUSTERED, interests=[unit])


def test_from_a_log_to_a_trained_ranker() -> None:
    rng = np.random.default_rng(0)
    log = Interactions.from_columns(
        {
            "user_id": rng.integers(0, 5, 400),
            "item_id": rng.integers(0, 40, 400),
            "timestamp": np.arange(400) + 1_000,
            "dwell": rng.random(400),
        }
    )
    # Two kinds of items, which a ranker would have learnt.
    vectors = np.where(np.arange(40)[:, np.newaxis] % 2, 5.0, -5.0) + rng.normal(size=[40, 3])
    clusters = cluster_log(
        log, np.arange(40), vectors, snapshots=[1_100, 1_250], group_by="dwell", max_size=8, means=("dwell",)
    )
    features = Features(
        item_id=Feature("item_id", embedding_dim=4),
        behaviour_attributes=(Feature("dwell", "float32"),),
        max_history_length=4,
        sequences=(Sequence("clusters", (Feature("size", "float32"), Feature("dwell", "float32")), max_length=16),),
    )
    impressions = Impressions.from_interactions(
        log, lambda log: log["item_id"] % 2, min_history=0, outcomes=("dwell",)
    ).with_sequence("clusters", clusters)
    lookup = FeatureLookup(features)
    lookup.adapt(impressions.past_columns())
    model = Ranker(lookup=lookup, interests=[TWINV2(4)], hidden_units=(4,))
    model.compile()
    history = model.fit(impressions.to_dataset(lookup.features, 50, lookup=lookup), epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
