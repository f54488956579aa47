"""How popular the candidate is: the numbers, where the counts come from, and that they travel with the model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import ETA, Feature, FeatureLookup, Features, Ranker
from keras_eta.export import export_model
from keras_eta.interest import RecentInterest
from keras_eta.models.popularity import Popularity

ITEM = Feature("item_id", vocabulary_size=3, num_oov_indices=2)
FEATURES = Features(item_id=Feature("item_id", embedding_dim=4), max_history_length=3)
LOG = {"item_id": np.repeat([30, 10, 20], [7, 1, 3])}
# Rows 2, 3 and 4 are 30, 20 and 10; log(1 + 7), log(1 + 3), log(1 + 1) are 3, 2 and 1 times log 2.
STANDARD = 1 / np.sqrt(2 / 3)
BATCH = {
    "item_id": np.array([2, 3, 4, 1]),
    "history_item_id": np.array([[3, 2, 0]] * 4),
    "history_length": np.array([2, 1, 0, 2]),
}


def adapted(features: Features = FEATURES) -> FeatureLookup:
    lookup = FeatureLookup(features)
    lookup.adapt(LOG)
    return lookup


def make_ranker(popularity: bool = True, **arguments: Any) -> Ranker:
    tf.keras.utils.set_random_seed(0)
    return Ranker(lookup=adapted(), interests=[RecentInterest(2)], popularity=popularity, **arguments)


def popularity_of(model: Ranker) -> Popularity:
    assert model.popularity is not None
    return model.popularity


def test_logarithms_are_standardised_over_the_vocabulary_and_unknown_items_are_never_taken() -> None:
    layer = Popularity(ITEM, [99, 98, 97, 7, 3, 1])
    values = layer(tf.constant([[3, 4, 5], [1, 2, 0]])).numpy()
    assert values.shape == (2, 3, 1)
    never = -2 * STANDARD
    np.testing.assert_allclose(values[..., 0], [[STANDARD, 0, -STANDARD], [never] * 3], atol=1e-6)


def test_unknown_counts_and_equal_ones_give_nothing() -> None:
    assert not Popularity(ITEM)(tf.constant([[0, 1, 3, 5]])).numpy().any()
    assert not Popularity(ITEM, [0, 0, 0, 4, 4, 4])(tf.constant([[0, 1, 3, 5]])).numpy().any()


def test_counts_can_be_set_again_and_derived_again() -> None:
    layer = Popularity(ITEM)
    layer.set_counts(np.array([0, 0, 0, 1, 3, 7], "uint8"))
    ids = tf.constant([[3, 4, 5]])
    np.testing.assert_allclose(layer(ids).numpy()[0, :, 0], [-STANDARD, 0, STANDARD], atol=1e-6)
    layer.counts.assign([0, 0, 0, 7, 3, 1])
    layer.refresh()
    np.testing.assert_allclose(layer(ids).numpy()[0, :, 0], [STANDARD, 0, -STANDARD], atol=1e-6)


@pytest.mark.parametrize(
    ("counts", "received"),
    [
        ([1, 2, 3], r"shape \(3,\), dtype int64, least 1"),
        ([0, 0, 0, 1, -2, 3], r"shape \(6,\), dtype int64, least -2"),
        ([0.0] * 6, r"shape \(6,\), dtype float64, least 0\.0"),
        ([], r"shape \(0,\), dtype float64"),
    ],
)
def test_other_counts_are_refused(counts: list[Any], received: str) -> None:
    message = rf"`counts` must be integers of at least 0 of shape \(6,\).* 'item_id'\. Received: {received}$"
    with pytest.raises(ValueError, match=message):
        Popularity(ITEM, counts)
    with pytest.raises(ValueError, match=message):
        Popularity(ITEM).set_counts(counts)


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        (Feature("item_id"), [0, 0, 7, 3, 1]),
        (Feature("item_id", min_count=3, num_oov_indices=2), [0, 0, 0, 7, 3]),
        (Feature("item_id", vocabulary_size=1), [0, 0, 7]),
    ],
)
def test_a_lookup_counts_the_items_that_it_was_adapted_to(feature: Feature, expected: list[int]) -> None:
    lookup = adapted(Features(item_id=feature))
    counts = lookup.item_counts
    assert counts is not None
    assert counts.tolist() == expected
    lookup.set_vocabulary("item_id", [30])
    assert lookup.item_counts is None


def test_the_ranker_reads_it_beside_everything_else() -> None:
    with_it, without = make_ranker(), make_ranker(popularity=False)
    with_it.build()
    without.build()
    kernels = [model.mlp.layers[0].kernel for model in (with_it, without)]
    assert [kernel.shape[0] for kernel in kernels] == [9, 8]
    # Behind the candidate, before the units; all other weights alike.
    for ours, theirs in zip(without.trainable_variables, with_it.trainable_variables, strict=True):
        ours.assign(theirs if ours is not kernels[1] else tf.gather(theirs, [0, 1, 2, 3, 5, 6, 7, 8]))
    kernels[0][4].assign(np.zeros(kernels[0].shape[1]))
    np.testing.assert_allclose(with_it(BATCH), without(BATCH), rtol=1e-6)
    kernels[0][4].assign(np.ones(kernels[0].shape[1]))
    differs = np.abs(with_it(BATCH).numpy() - without(BATCH).numpy()) > 1e-6
    # Row 3 has the mean popularity.
    assert differs.tolist() == [True, False, True, True]


def test_counts_travel_with_weights_and_exports_and_are_not_trained(tmp_path: Path) -> None:
    model = make_ranker()
    model.compile()
    labels = np.array([1, 0, 1, 0])
    model.fit(tf.data.Dataset.from_tensor_slices((BATCH, labels)).batch(4), epochs=2, verbose=0)
    assert popularity_of(model).counts.numpy().tolist() == [0, 0, 7, 3, 1]
    expected = model(BATCH).numpy()

    model.save_weights(tmp_path / "weights.h5")
    again = Ranker.from_config({**model.get_config(), "lookup": None})
    again.build()
    assert not popularity_of(again).counts.numpy().any()
    again.load_weights(tmp_path / "weights.h5")
    np.testing.assert_allclose(again(BATCH), expected, rtol=1e-6)

    signatures = tf.saved_model.load(str(export_model(model, tmp_path / "export", version=1))).signatures
    raw = {
        "item_id": tf.constant([[30, 20, 10, 99]], tf.int64),
        "history_item_id": tf.constant([[20, 30]], tf.int64),
        "history_length": tf.constant([2], tf.int64),
    }
    assert model.lookup is not None
    np.testing.assert_allclose(
        signatures["rank"](**raw)["probability"], tf.sigmoid(model.score(model.lookup(raw)).logits), rtol=1e-5
    )


def test_eta_has_it_by_default_and_can_do_without() -> None:
    assert ETA(lookup=adapted(), top_k=2).popularity is not None
    assert ETA(lookup=adapted(), top_k=2, popularity=False).popularity is None
    assert Ranker(lookup=adapted(), interests=[RecentInterest(2)]).popularity is None


def test_fit_warns_where_nobody_has_counted(caplog: pytest.LogCaptureFixture) -> None:
    batches = tf.data.Dataset.from_tensor_slices((BATCH, np.array([1, 0, 1, 0]))).batch(4)
    features = adapted().features
    model = Ranker(features, interests=[RecentInterest(2)], popularity=True)
    model.compile()
    with caplog.at_level(logging.WARNING):
        model.fit(batches, verbose=0)
        assert "How popular items are is unknown" in caplog.text
        caplog.clear()
        model.fit(batches, verbose=0)
        assert "How popular items are is unknown" in caplog.text
        caplog.clear()
        popularity_of(model).set_counts([0, 0, 7, 3, 1])
        model.fit(batches, verbose=0)
        known = make_ranker()
        known.compile()
        known.fit(batches, verbose=0)
        assert "popular" not in caplog.text
