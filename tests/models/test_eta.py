"""ETA: equal to full attention where nothing is left out, the gradient through the hash, and what it never computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import op_callbacks

from keras_eta import ETA, Feature, Features, Ranker, metrics
from keras_eta.interest import ETAInterest, FullInterest, RecentInterest, Retrieved
from keras_eta.models import RetrievalTask
from tests import reference
from tests.paper import paper_eta

Batch = dict[str, np.ndarray]
MakeBatch = Callable[..., Batch]


def _randomise(model: Ranker) -> None:
    rng = np.random.default_rng(5)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(scale=0.5, size=variable.shape))


# Full attention


@pytest.mark.parametrize("candidates", [1, 4])
@pytest.mark.parametrize("top_k", [12, 15])
def test_retrieving_the_whole_history_equals_full_attention(
    features: Features, make_batch: MakeBatch, top_k: int, candidates: int
) -> None:
    eta = paper_eta(features, top_k=top_k, short_history_length=4, hidden_units=(6,), cross_layers=1)
    full = Ranker(features, interests=[RecentInterest(4), FullInterest()], hidden_units=(6,), cross_layers=1)
    eta.build()
    full.build()
    _randomise(eta)
    for name, layer in eta.embeddings.items():
        full.embeddings[name].embeddings.assign(layer.embeddings)
    for ours, theirs in zip(full.interests, eta.interests, strict=True):
        ours.attention.set_weights(theirs.attention.get_weights())
    full.mlp.set_weights(eta.mlp.get_weights())
    full.cross[0].set_weights(eta.cross[0].get_weights())
    # Empty, one behaviour, full, and between; the rest is padding.
    batch = make_batch(features, 10, 12, candidates=candidates)
    expected, scores = full.score(batch), eta.score(batch)
    np.testing.assert_allclose(scores.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert np.std(expected.logits) > 0.1
    retrieved: Any = scores.interests["eta_interest"].retrieved
    weights: Any = scores.interests["eta_interest"].weights
    of_all: Any = expected.interests["full_interest"].weights
    # Each behaviour has the same weight, at the place where it was retrieved.
    for index in np.ndindex(10, candidates):
        found = retrieved.mask[index].numpy()
        positions = retrieved.positions[index].numpy()[found]
        assert sorted(positions) == list(range(batch["history_length"][index[0]]))
        np.testing.assert_allclose(weights[index].numpy()[:, found], of_all[index].numpy()[:, positions], atol=1e-5)


def test_retrieving_less_differs_from_full_attention(features: Features, make_batch: MakeBatch) -> None:
    # Without this the test above could compare two models that ignore the long history.
    models = [paper_eta(features, top_k=top_k, short_history_length=4, hidden_units=(6,)) for top_k in (2, 12)]
    for model in models:
        model.build()
        _randomise(model)
    batch = make_batch(features, 10, 12)
    few, all_of_them = (model(batch).numpy() for model in models)
    short = batch["history_length"] <= 2
    np.testing.assert_allclose(few[short], all_of_them[short], rtol=1e-4, atol=1e-5)
    assert (np.abs(few[~short] - all_of_them[~short]) > 1e-3).any()


def test_training_and_inference_give_the_same_logits(features: Features, make_batch: MakeBatch) -> None:
    # Codes in training, distances at inference; gathered then projected, projected then gathered.
    model = paper_eta(features, top_k=3, num_bits=33, similarity_bias=True, hidden_units=(6,))
    model.build()
    _randomise(model)
    for candidates in (1, 4):
        batch = make_batch(features, 10, 12, candidates=candidates)
        training, inference = (model.score(batch, training=mode) for mode in (True, False))
        np.testing.assert_allclose(training.logits, inference.logits, rtol=1e-4, atol=1e-5)
        for name in inference.interests:
            learning, serving = (scores.interests[name].weights for scores in (training, inference))
            np.testing.assert_allclose(learning, serving, rtol=1e-4, atol=1e-6)
        assert np.std(inference.logits) > 0.1


# The gradient through the hash


@pytest.fixture(scope="module")
def biased(features: Features) -> ETA:
    """Two hashed features, learned planes; projections on both sides of the clip."""
    hashed = Features(**{**vars(features), "hashed": ("item_id", "category_id")})
    model = paper_eta(
        hashed,
        top_k=3,
        num_bits=9,
        short_history_length=2,
        hidden_units=(6,),
        similarity_bias=True,
        trainable_planes=True,
    )
    model.build()
    _randomise(model)
    for layer in model.eta.tables.values():
        layer.embeddings.assign(3.0 * layer.embeddings)
    return model


def _gradients(model: ETA, batch: Batch, labels: np.ndarray, watched: list[tf.Variable]) -> list[Any]:
    with tf.GradientTape() as tape:
        tape.watch(watched)
        loss = model.compute_loss((batch, labels), training=True)
    gradients = tape.gradient(loss, watched)
    return [None if gradient is None else tf.convert_to_tensor(gradient).numpy() for gradient in gradients]


def test_loss_reaches_planes_and_embeddings_through_the_hash(
    biased: ETA, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = biased
    batch, labels = make_batch(model.features, 10, 12), np.arange(10) % 2
    layers = model.eta.tables
    tables = [layer.embeddings for layer in layers.values()]
    planes = [layer.hash.planes for layer in layers.values()]
    gradients = _gradients(model, batch, labels, tables + planes)

    # The same loss with the similarity as a constant: what reaches the tables in other ways, and its own gradient.
    calls: list[dict[str, Any]] = []
    similarity = ETAInterest.similarity
    with tf.GradientTape() as tape:

        def constant(self: ETAInterest, *arguments: Any) -> tf.Tensor:
            value = tf.stop_gradient(similarity(self, *arguments))
            tape.watch(value)
            calls.append({"value": value})
            return value

        with monkeypatch.context() as patch:
            patch.setattr(ETAInterest, "similarity", constant)
            patch.setattr(ETAInterest, "search", _keeping(calls))
            loss = model.compute_loss((batch, labels), training=True)
    (found,) = (call["found"] for call in calls if "found" in call)
    (inner,) = (call for call in calls if "value" in call)
    upstream, *elsewhere = tape.gradient(loss, [inner["value"], *tables])
    upstream = upstream.numpy()
    assert np.abs(upstream[found.mask.numpy()]).max() > 1e-3
    assert not upstream[~found.mask.numpy()].any()

    bits = 9 * len(layers)
    rows = [index for index in np.ndindex(upstream.shape) if found.mask[index]]
    for number, (name, layer) in enumerate(layers.items()):
        table, normals = layer.embeddings.numpy(), layer.hash.planes.numpy()
        projected = reference.projections(table, normals)
        codes = np.where(projected > 0, 1.0, -1.0)
        assert 0.1 < (np.abs(projected) > 1.0).mean() < 0.9
        # d similarity / d code of one side is the code of the other, over the bits.
        for_codes = np.zeros(codes.shape)
        for r, c, k in rows:
            one = batch[name][r]
            other = batch[f"history_{name}"][r, found.positions[r, c, k]]
            for_codes[one] += upstream[r, c, k] * codes[other] / bits
            for_codes[other] += upstream[r, c, k] * codes[one] / bits
        for_table, for_planes = reference.straight_through_gradient(table, normals, for_codes)
        through_hash = gradients[number] - tf.convert_to_tensor(elsewhere[number]).numpy()
        np.testing.assert_allclose(through_hash, for_table, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(gradients[len(layers) + number], for_planes, rtol=1e-3, atol=1e-6)
        assert np.abs(for_table).max() > 1e-4
        assert np.abs(for_planes).max() > 1e-4


def _keeping(calls: list[dict[str, Any]]) -> Callable[..., Retrieved]:
    """An `ETAInterest.search` that notes what was retrieved."""
    search = ETAInterest.search

    def note(self: ETAInterest, *args: Any) -> Retrieved:
        found = search(self, *args)
        calls.append({"found": found})
        return found

    return note


def test_without_the_bias_retrieval_carries_no_gradient(
    features: Features, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = paper_eta(features, top_k=3, num_bits=9, short_history_length=2, hidden_units=(6,))
    model.build()
    _randomise(model)
    batch, labels = make_batch(features, 10, 12), np.arange(10) % 2
    layer = model.eta.tables["item_id"]
    table, planes = _gradients(model, batch, labels, [layer.embeddings, layer.hash.planes])
    assert planes is None

    # The same positions as constants.
    calls: list[dict[str, Any]] = []
    with monkeypatch.context() as patch:
        patch.setattr(ETAInterest, "search", _keeping(calls))
        model(batch)
    found = tf.nest.map_structure(lambda part: tf.constant(part.numpy()), calls[0]["found"])
    monkeypatch.setattr(ETAInterest, "search", lambda self, *args: found)
    (expected,) = _gradients(model, batch, labels, [layer.embeddings])
    np.testing.assert_array_equal(table, expected)
    assert np.abs(expected).max() > 1e-4


def test_planes_learn_only_on_request(features: Features) -> None:
    for trainable, names in ((False, 0), (True, 1)):
        model = paper_eta(features, top_k=3, similarity_bias=True, trainable_planes=trainable)
        model.build()
        assert sum("planes" in variable.name for variable in model.trainable_variables) == names


# What is never computed

N, L, D = 7, 53, 11


def _distinctive_model(unit: str) -> tuple[Ranker, tuple[Batch, np.ndarray]]:
    """A model and a batch in which no other product of sizes is a multiple of N * L * D."""
    features = Features(
        item_id=Feature("item_id", vocabulary_size=37, embedding_dim=D),
        user=(Feature("user_id", vocabulary_size=3, embedding_dim=4),),
        max_history_length=L,
    )
    options: dict[str, Any] = {"short_history_length": 3, "num_heads": 1, "hidden_units": (8,)}
    if unit == "full":
        units = [RecentInterest(3, num_heads=1), FullInterest(num_heads=1)]
        model = Ranker(features, interests=units, hidden_units=(8,))
    else:
        learned = unit == "hamming with learned planes"
        model = paper_eta(features, top_k=5, num_bits=64, similarity_bias=learned, trainable_planes=learned, **options)
    rng = np.random.default_rng(0)
    batch = {
        "user_id": rng.integers(1, 5, N).astype(np.int32),
        "item_id": rng.integers(1, 39, N).astype(np.int32),
        "history_item_id": rng.integers(1, 39, (N, L)).astype(np.int32),
        "history_length": rng.integers(0, L + 1, N).astype(np.int32),
    }
    return model, (batch, rng.integers(0, 2, N).astype(np.float32))


def _is_whole_history(shape: tuple[int, ...]) -> bool:
    size = int(np.prod(shape))
    return size > 0 and size % (N * L * D) == 0


def _shapes_in_graph(graph: Any) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Shapes of all tensors of a graph and of the functions that it calls; `None` where they are not known."""
    definition = graph.as_graph_def(add_shapes=True)
    nodes = [*definition.node, *(node for body in definition.library.function for node in body.node_def)]
    for node in nodes:
        for proto in node.attr["_output_shapes"].list.shape:
            shape = tf.TensorShape(proto)
            yield node.op, tuple(shape) if shape.is_fully_defined() else None


@pytest.mark.parametrize("unit", ["hamming", "hamming with learned planes", "full"])
def test_training_graph_holds_no_embedded_history(unit: str) -> None:
    model, data = _distinctive_model(unit)
    model.compile()
    model.build()
    step = tf.function(model.train_step)
    shapes = list(_shapes_in_graph(step.get_concrete_function(tf.nest.map_structure(tf.constant, data)).graph))
    assert len(shapes) > 300
    found = [(op, shape) for op, shape in shapes if shape is not None and _is_whole_history(shape)]
    assert bool(found) == (unit == "full"), found


@pytest.mark.parametrize("unit", ["hamming", "hamming with learned planes", "full"])
def test_training_step_makes_no_embedded_history(unit: str) -> None:
    # Op by op, so that shapes that a graph does not know are seen too.
    model, data = _distinctive_model(unit)
    model.compile()
    model.build()
    made: list[tuple[str, tuple[int, ...]]] = []

    def note(op_type: str, inputs: Any, attributes: Any, outputs: Any, op_name: Any = None, graph: Any = None) -> None:
        made.extend((str(op_type), tuple(output.shape)) for output in outputs if output.shape.is_fully_defined())

    op_callbacks.add_op_callback(note)
    try:
        model.train_step(tf.nest.map_structure(tf.constant, data))
    finally:
        op_callbacks.remove_op_callback(note)
    assert len(made) > 300
    assert any("Grad" in op for op, _ in made)
    found = [(op, shape) for op, shape in made if _is_whole_history(shape)]
    assert bool(found) == (unit == "full"), found


# What it is for


def _planted(rows: int, seed: int) -> tuple[Batch, np.ndarray]:
    """The label is whether the candidate occurs in the history, where it never occurs among the last 4 behaviours."""
    length, items, short = 40, 60, 4
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows)
    candidate, history = rng.integers(0, items, rows), rng.integers(0, items, (rows, length))
    history = np.where(history == candidate[:, np.newaxis], (history + 1) % items, history)
    for _ in range(2):
        place = rng.integers(short, length, rows)
        row = np.arange(rows)
        history[row, place] = np.where(labels == 1, candidate, history[row, place])
    batch = {
        "item_id": (candidate + 2).astype(np.int32),
        "history_item_id": (history + 2).astype(np.int32),
        "history_length": np.full(rows, length, np.int32),
    }
    return batch, labels.astype(np.float32)


@pytest.mark.slow
def test_eta_learns_what_lies_beyond_the_short_history() -> None:
    features = Features(item_id=Feature("item_id", vocabulary_size=60, embedding_dim=16))
    models: dict[str, Callable[[], Ranker]] = {
        "eta": lambda: paper_eta(features, top_k=4, similarity_bias=True, short_history_length=4, hidden_units=(32,)),
        "short": lambda: Ranker(features, interests=[RecentInterest(4)], hidden_units=(32,)),
    }
    test, test_labels = _planted(1_000, seed=1)
    auc, losses = {}, {}
    for name, make in models.items():
        tf.keras.utils.set_random_seed(0)
        model = make()
        model.compile(tf.keras.optimizers.Adam(0.01))
        losses[name] = model.fit(*_planted(3_000, seed=0), batch_size=100, epochs=5, verbose=0).history["total_loss"]
        auc[name] = metrics.auc(test_labels, model.predict(test, batch_size=500, verbose=0))
    assert auc["eta"] > 0.95
    assert 0.45 < auc["short"] < 0.55
    assert losses["eta"][-1] < 0.2 < 0.6 < losses["eta"][0]


def test_defaults_are_learned_planes_cosines_counts_and_a_task(features: Features) -> None:
    config = ETA(features).get_config()
    names = ("similarity_bias", "trainable_planes", "cosine", "matches", "top_k", "num_bits", "id_dropout")
    assert [config[name] for name in names] == [True, True, True, True, 48, 64, 0.01]
    assert [unit.name for unit in ETA(features).interests] == ["recent_interest", "match", "eta_interest"]
    assert [unit.name for unit in ETA(features, matches=False).interests] == ["recent_interest", "eta_interest"]
    assert config["distance_edges"] == (0, 1, 3, 6, 9, 12, 16, 20, 26)
    assert ETA(features, num_bits=16).eta.distance_edges == (0, 1, 2, 3, 4, 5, 6)
    assert ETA(features, distance_edges=()).eta.distance_edges == ()
    assert config["retrieval_task"]["config"] == RetrievalTask().get_config()
    assert ETA(features, retrieval_task=None).get_config()["retrieval_task"] is None
    assert ETA.from_config(config).get_config() == config
