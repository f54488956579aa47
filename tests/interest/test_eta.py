from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import Feature, Features
from keras_eta.interest import Columns, ETAInterest, Retrieved
from keras_eta.layers import ActivationUnit, FingerprintedEmbedding
from tests import reference

ITEM = Feature("item_id", vocabulary_size=28, embedding_dim=6)
CATEGORY = Feature("category_id", vocabulary_size=4, embedding_dim=3)
ACTIVATION_UNIT = ActivationUnit()


def _unit(*features: Feature, **arguments: Any) -> ETAInterest:
    unit = ETAInterest(**arguments)
    columns = _features(features)
    tables = unit.make_tables(columns)
    for table in tables.values():
        table.build()
    unit.bind(columns, tables)
    return unit


def _features(features: tuple[Feature, ...]) -> Features:
    hashed = tuple(feature.name for feature in features)
    return Features(item_id=features[0], item_attributes=features[1:], hashed=hashed)


def _columns(unit: ETAInterest, ids: dict[str, np.ndarray], mask: np.ndarray | None = None) -> Columns:
    return Columns(ids, mask, lambda ids: {name: table(ids[name]) for name, table in unit.tables.items()})


def _ids(features: tuple[Feature, ...], shape: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {feature.name: rng.integers(1, feature.num_indices, shape).astype(np.int32) for feature in features}


def _mask(rows: int, length: int) -> np.ndarray:
    """A full history, an empty one, one behaviour, then random lengths."""
    lengths = np.array([length, 0, min(1, length), *np.random.default_rng(0).integers(0, length + 1, rows)])[:rows]
    return np.arange(length) < lengths[:, np.newaxis]


@pytest.mark.parametrize("features", [(ITEM,), (ITEM, CATEGORY)], ids=["item", "item and category"])
@pytest.mark.parametrize("num_bits", [1, 7, 64, 65])
@pytest.mark.parametrize(
    ("rows", "candidates", "length", "top_k"),
    [(3, 5, 17, 4), (3, 1, 17, 4), (1, 5, 2, 4), (3, 2, 1, 1), (2, 2, 0, 3), (0, 2, 5, 3), (4, 1, 30, 30)],
)
def test_search_equals_reference(
    features: tuple[Feature, ...], num_bits: int, rows: int, candidates: int, length: int, top_k: int
) -> None:
    unit = _unit(*features, num_bits=num_bits, top_k=top_k)
    candidate, history = _ids(features, (rows, candidates), 1), _ids(features, (rows, length), 2)
    mask = _mask(rows, length)
    retrieved = unit.search(_columns(unit, candidate), _columns(unit, history, tf.constant(mask)), False)
    assert isinstance(retrieved, Retrieved)
    assert retrieved.scores is not None
    assert retrieved.positions.shape == (rows, candidates, top_k)

    tables = {
        name: reference.simhash(layer.embeddings.numpy(), layer.hash.planes.numpy())
        for name, layer in unit.tables.items()
    }
    for row in range(rows):
        hashed = [
            np.concatenate([table[ids[name][row]] for name, table in tables.items()], axis=-1)
            for ids in (candidate, history)
        ]
        positions, distances, found = reference.hamming_top_k(hashed[0], hashed[1], top_k, mask[row])
        np.testing.assert_array_equal(retrieved.positions[row], positions, strict=True)
        np.testing.assert_array_equal(retrieved.mask[row], found, strict=True)
        np.testing.assert_array_equal(retrieved.scores[row], distances, strict=True)


def test_candidate_in_its_own_history_is_found_first_at_distance_zero() -> None:
    unit = _unit(ITEM, num_bits=64, top_k=3)
    history = {"item_id": np.array([[4, 9, 7, 9, 5]], np.int32)}
    candidate = {"item_id": np.array([[9]], np.int32)}
    retrieved = unit.search(_columns(unit, candidate), _columns(unit, history, tf.ones([1, 5], tf.bool)), False)
    # Both of its occurrences, the more recent one first.
    np.testing.assert_array_equal(retrieved.positions[0, 0, :2], [1, 3])
    np.testing.assert_array_equal(retrieved.scores[0, 0, :2], [0, 0])


def test_search_follows_the_embeddings() -> None:
    unit = _unit(ITEM, num_bits=64, top_k=1)
    history = {"item_id": np.array([[4, 9, 7]], np.int32)}
    candidate, mask = {"item_id": np.array([[3]], np.int32)}, tf.ones([1, 3], tf.bool)
    embeddings = unit.tables["item_id"].embeddings
    for position, item in enumerate([4, 9, 7]):
        embeddings[3].assign(embeddings[item])
        retrieved = unit.search(_columns(unit, candidate), _columns(unit, history, mask), False)
        np.testing.assert_array_equal(retrieved.positions, [[[position]]])


def test_features_have_planes_of_their_own() -> None:
    unit = _unit(ITEM, Feature("twin_id", vocabulary_size=28, embedding_dim=6), num_bits=64, seed=3)
    one, other = (layer.hash.planes.numpy() for layer in unit.tables.values())
    assert not np.isclose(one, other).any()
    again = _unit(ITEM, num_bits=64, seed=3)
    np.testing.assert_array_equal(again.tables["item_id"].hash.planes, one)


def test_embeddings_are_made_as_the_features_say() -> None:
    unit = ETAInterest(num_bits=5, trainable_planes=True, similarity_bias=True)
    tables = unit.make_tables(_features((ITEM, CATEGORY)), tf.keras.regularizers.L2(0.25))
    assert list(tables) == ["item_id", "category_id"]
    for feature, layer in zip((ITEM, CATEGORY), tables.values(), strict=True):
        assert isinstance(layer, FingerprintedEmbedding)
        layer.build()
        assert layer.embeddings.shape == (feature.num_indices, feature.embedding_dim)
        assert layer.hash.planes.shape == (feature.embedding_dim, 5)
        assert layer.hash.planes.trainable
        np.testing.assert_allclose(layer.losses, [0.25 * np.sum(layer.embeddings.numpy() ** 2)], rtol=1e-5)


# Similarity


def _similarity(unit: ETAInterest, candidate: Columns, behaviours: Columns, found: Retrieved, training: bool) -> Any:
    similarity = unit.similarity(candidate, behaviours, found, training)
    assert similarity is not None
    return similarity


@pytest.mark.parametrize("num_bits", [1, 7, 64, 200])
def test_similarity_in_training_equals_that_of_inference_exactly(num_bits: int) -> None:
    features = (ITEM, CATEGORY)
    unit = _unit(*features, num_bits=num_bits, top_k=5, similarity_bias=True)
    candidate, history, mask = _ids(features, (3, 4), 1), _ids(features, (3, 17), 2), _mask(3, 17)
    retrieved = unit.search(_columns(unit, candidate), _columns(unit, history, tf.constant(mask)), False)
    behaviours = _columns(unit, history).take(retrieved.positions, retrieved.mask)
    similarities = [
        _similarity(unit, _columns(unit, candidate), behaviours, retrieved, training=training).numpy()
        for training in (True, False)
    ]
    found, bits = retrieved.mask.numpy(), 2 * num_bits
    np.testing.assert_array_equal(similarities[0][found], similarities[1][found], strict=True)
    expected = (bits - 2.0 * retrieved.scores.numpy()) / bits
    np.testing.assert_allclose(similarities[1][found], expected[found], rtol=1e-6)
    assert similarities[0].dtype == np.float32
    assert np.unique(similarities[0][found]).size > 1


def test_similarity_in_training_carries_the_straight_through_gradient() -> None:
    features = (ITEM, CATEGORY)
    unit = _unit(*features, num_bits=9, top_k=3, similarity_bias=True, trainable_planes=True)
    candidate, history, mask = _ids(features, (2, 2), 1), _ids(features, (2, 8), 2), np.ones([2, 8], bool)
    for layer in unit.tables.values():
        # From the initial +-0.05, so that some projections lie beyond the clip.
        layer.embeddings.assign(10.0 * layer.embeddings)
    retrieved = unit.search(_columns(unit, candidate), _columns(unit, history, tf.constant(mask)), False)
    queries = _columns(unit, candidate)
    behaviours = _columns(unit, history).take(retrieved.positions, retrieved.mask)
    vectors, gathered = queries.by_name, behaviours.by_name
    planes = {name: layer.hash.planes for name, layer in unit.tables.items()}
    upstream = np.random.default_rng(3).normal(size=(2, 2, 3)).astype(np.float32)
    with tf.GradientTape() as tape:
        tape.watch([vectors, gathered])
        total = tf.reduce_sum(_similarity(unit, queries, behaviours, retrieved, training=True) * upstream)
    gradients = tape.gradient(total, (vectors, gathered, planes))
    for name in planes:
        _, dim = vectors[name].shape[1:]
        q, b, h = vectors[name].numpy(), gathered[name].numpy(), planes[name].numpy()
        codes_q = np.where(reference.projections(q.reshape(-1, dim), h) > 0, 1.0, -1.0).reshape(2, 2, 1, 9)
        codes_b = np.where(reference.projections(b.reshape(-1, dim), h) > 0, 1.0, -1.0).reshape(2, 2, 3, 9)
        # The similarity is sum(q * b) / (2 * 9) over the bits of both features.
        for_q = (upstream[..., np.newaxis] * codes_b).sum(axis=2) / 18.0
        for_b = upstream[..., np.newaxis] * codes_q / 18.0
        into_q, planes_by_q = reference.straight_through_gradient(q.reshape(-1, dim), h, for_q.reshape(-1, 9))
        into_b, planes_by_b = reference.straight_through_gradient(b.reshape(-1, dim), h, for_b.reshape(-1, 9))
        np.testing.assert_allclose(gradients[0][name], into_q.reshape(q.shape), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(gradients[1][name], into_b.reshape(b.shape), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(gradients[2][name], planes_by_q + planes_by_b, rtol=1e-4, atol=1e-6)
        assert np.abs(planes_by_q + planes_by_b).max() > 1e-3
        assert (np.abs(reference.projections(b.reshape(-1, dim), h)) > 1.0).any()


def test_without_a_bias_there_is_no_similarity() -> None:
    unit = _unit(ITEM)
    columns = _columns(unit, _ids((ITEM,), (1, 1), 1))
    nothing = Retrieved(tf.zeros([1, 1, 1]), tf.zeros([1, 1, 1]), tf.zeros([1, 1, 1]))
    assert unit.similarity(columns, columns, nothing, training=True) is None
    assert unit.similarity(columns, columns, nothing, training=False) is None


def test_search_itself_carries_no_gradient() -> None:
    unit = _unit(ITEM, top_k=2, trainable_planes=True, similarity_bias=True)
    with tf.GradientTape() as tape:
        history = _columns(unit, _ids((ITEM,), (2, 8), 2), tf.ones([2, 8], tf.bool))
        retrieved = unit.search(_columns(unit, _ids((ITEM,), (2, 2), 1)), history, False)
        total = tf.add_n([tf.reduce_sum(tf.cast(part, tf.float32)) for part in retrieved])
    layer = unit.tables["item_id"]
    assert tape.gradient(total, [layer.embeddings, layer.hash.planes]) == [None, None]


# Counts of distances


@pytest.mark.parametrize("features", [(ITEM,), (ITEM, CATEGORY)], ids=["item", "item and category"])
@pytest.mark.parametrize("edges", [(0,), (3,), (0, 1, 4, 5, 200)])
@pytest.mark.parametrize(("length", "top_k"), [(17, 4), (17, 17), (2, 5), (0, 3)])
def test_counts_are_of_what_was_retrieved(
    features: tuple[Feature, ...], edges: tuple[int, ...], length: int, top_k: int
) -> None:
    unit = _unit(*features, num_bits=7, top_k=top_k, distance_edges=edges)
    candidate, history = _ids(features, (3, 2), 1), _ids(features, (3, length), 2)
    candidates, behaviours = _columns(unit, candidate), _columns(unit, history, tf.constant(_mask(3, length)))
    if not length:
        # A ranker hands over one padded column.
        behaviours = _columns(unit, {name: np.zeros([3, 1], np.int32) for name in history}, tf.zeros([3, 1], tf.bool))
    interest = unit(candidates, behaviours)
    retrieved: Any = interest.retrieved
    for place in np.ndindex(3, 2):
        found = retrieved.mask[place].numpy()
        expected = reference.log_counts(retrieved.scores[place].numpy()[found].tolist(), edges)
        np.testing.assert_allclose(interest.vector[place][-len(edges) :], expected, rtol=1e-6)
        if edges[-1] == 200:
            assert np.expm1(expected).sum() == pytest.approx(min(int(_mask(3, length)[place[0]].sum()), top_k))
    plain = _unit(*features, num_bits=7, top_k=top_k)
    plain(candidates, behaviours)
    plain.set_weights(unit.get_weights())
    np.testing.assert_array_equal(plain(candidates, behaviours).vector, interest.vector[..., : -len(edges)])


# Configuration


def test_config_holds_every_argument() -> None:
    arguments: dict[str, Any] = {
        "top_k": 3,
        "num_bits": 5,
        "seed": 7,
        "trainable_planes": True,
        "similarity_bias": True,
        "planes_period": 4,
        "distance_edges": (0, 2),
        "cosine": True,
    }
    config = tf.keras.utils.serialize_keras_object(ETAInterest(**arguments))
    assert config["registered_name"] == "keras_eta>ETAInterest"
    unit = tf.keras.utils.deserialize_keras_object(config)
    assert isinstance(unit, ETAInterest)
    assert {name: getattr(unit, name) for name in arguments} == arguments


def test_defaults_are_those_of_the_design() -> None:
    unit = ETAInterest()
    assert (unit.top_k, unit.num_bits, unit.trainable_planes, unit.similarity_bias) == (48, 64, False, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "`top_k` must be a positive integer. Received: top_k=0"),
        ({"num_bits": -1}, "`num_bits` must be a positive integer. Received: num_bits=-1"),
        ({"seed": True}, "`seed` must be an integer of at least 0. Received: seed=True"),
        ({"seed": float("nan")}, "`seed` must be an integer of at least 0. Received: seed=nan"),
        ({"num_bits": 6.4}, "`num_bits` must be a positive integer. Received: num_bits=6.4"),
        (
            {"trainable_planes": True},
            "`trainable_planes` needs `similarity_bias=True`: no gradient reaches the planes otherwise. "
            "Received: trainable_planes=True, similarity_bias=False",
        ),
        *(
            (
                {"distance_edges": edges},
                "`distance_edges` must be integers of at least 0, strictly ascending. "
                f"Received: distance_edges={edges!r}",
            )
            for edges in ((-1, 2), (3, 1), (1, 1), (0, 1.5), (True,), 3, "12")
        ),
        (
            {"cosine": True, "attention": ACTIVATION_UNIT},
            "`cosine` is for the attention that the unit makes itself; give it to `attention` instead. "
            f"Received: cosine=True, attention={ACTIVATION_UNIT!r}",
        ),
        (
            {"planes_period": 2},
            "`planes_period` above 1 needs `trainable_planes=True`. Received: planes_period=2, trainable_planes=False",
        ),
    ],
)
def test_eta_interest_refuses_a_bad_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ETAInterest(**arguments)
