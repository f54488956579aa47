"""TIGER: its scores against plain NumPy, its beam search against scoring every item, and what it learns."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import TIGER, Feature, SemanticIds
from keras_eta.datasets import Impressions, Interactions
from keras_eta.models.beam_search import Reserve
from tests import tiger_reference

SIZES, L = (4, 3, 5, 6), 4
ITEMS = np.arange(100, 130)


def _ids(items: Any = ITEMS) -> SemanticIds:
    codes = np.random.default_rng(3).integers(0, SIZES[:-1], (len(items), 3))
    return SemanticIds.from_codes(items, codes, SIZES[:-1], max_collisions=SIZES[-1])


def _model(ids: SemanticIds | None = None, **arguments: Any) -> TIGER:
    tf.keras.utils.set_random_seed(1)
    sizes = {"max_history_length": L, "dim": 12, "num_heads": 3, "feed_forward_units": 20}
    model = TIGER(_ids() if ids is None else ids, **{**sizes, **arguments})
    model.build()
    generator = np.random.default_rng(0)
    # Larger than the initial ones, so that nothing is lost in rounding.
    model.set_weights(
        [w if w.dtype.kind == "i" else w + 0.3 * generator.normal(size=w.shape) for w in model.get_weights()]
    )
    return model


def _histories(model: TIGER) -> dict[str, tf.Tensor]:
    """An empty one, one of one behaviour, one with an unknown item, one longer than the model reads."""
    raw = [[107, 0, 0, 0, 0, 0], [129, 0, 0, 0, 0, 0], [7, 104, 111, 0, 0, 0], [101, 102, 103, 104, 105, 106]]
    rows = model.lookup.encode("item_id", np.array(raw))
    return {"history_item_id": tf.constant(rows), "history_length": tf.constant([0, 1, 3, 6])}


def _weights(model: TIGER) -> dict[str, Any]:
    """The model's weights as the reference takes them."""

    def of(layer: Any, **names: str) -> dict[str, Any]:
        return {name: _named(getattr(layer, attribute)) for name, attribute in names.items()}

    def attention(layer: Any) -> dict[str, Any]:
        if hasattr(layer, "project"):
            return of(layer, query="_query", key="_key", value="_value", output="_output")
        return of(layer, query="_query_dense", key="_key_dense", value="_value_dense", output="_output_dense")

    def feed_forward(layer: Any) -> dict[str, Any]:
        return of(layer, norm="norm", inner="inner", outer="outer")

    return {
        "tokens": model.tokens.embeddings.numpy(),
        "positions": model.positions.embeddings.numpy(),
        "starts": model.starts.embeddings.numpy(),
        "users": None if model.users is None else model.users.embeddings.numpy(),
        "encoder": [
            {
                **of(block, norm="norm"),
                "attention": attention(block.attention),
                "feed_forward": feed_forward(block.feed_forward),
            }
            for block in model.encoder
        ],
        "decoder": [
            {
                **of(block, self_norm="self_norm", cross_norm="cross_norm"),
                "self_attention": attention(block.self_attention),
                "cross_attention": attention(block.cross_attention),
                "feed_forward": feed_forward(block.feed_forward),
            }
            for block in model.decoder
        ],
        "encoder_norm": _named(model.encoder_norm),
        "decoder_norm": _named(model.decoder_norm),
        "heads": [_named(head) for head in model.heads],
    }


def _named(layer: Any) -> dict[str, np.ndarray]:
    return {weight.name.split("/")[-1].split(":")[0]: weight.numpy() for weight in layer.weights}


def _reference_scores(model: TIGER) -> np.ndarray:
    """Log probability [4, items] of every item after `_histories`, by the reference."""
    ids, weights = _ids(), _weights(model)
    known = dict(zip(ids.item_ids.tolist(), ids.codes.tolist(), strict=True))
    histories = [[], [known[129]], [None, known[104], known[111]], [known[item] for item in range(101, 101 + L)]]
    scores = np.zeros([4, len(ids)])
    for row, history in enumerate(histories):
        for item, codes in enumerate(ids.codes):
            logits = tiger_reference.item_logits(history, codes, SIZES, weights, model.spelt_history)
            scores[row, item] = sum(
                x[code] - math.log(np.exp(x).sum()) for x, code in zip(logits, codes.tolist(), strict=True)
            )
    return scores


@pytest.mark.parametrize("arguments", [{"spelt_history": True}, {"spelt_history": False}, {"key_dim": 5}])
def test_beams_as_wide_as_the_catalogue_equal_scoring_every_item_in_numpy(arguments: dict[str, Any]) -> None:
    model = _model(**arguments)
    expected = _reference_scores(model)
    found = model.retrieve(_histories(model), len(ITEMS), len(ITEMS))
    order = np.argsort(-expected, axis=1)
    np.testing.assert_array_equal(found.rows, order + 2)
    np.testing.assert_allclose(found.log_probability, np.take_along_axis(expected, order, axis=1), atol=2e-5)


def test_users_are_hashed_to_vectors_that_stand_before_the_history(tmp_path: Path) -> None:
    model = _model(user=Feature("user_id", num_oov_indices=4))
    assert model.users.embeddings.shape == (5, 12)
    raw = np.array([3, 90, -7, 1000, 2**62])
    rows = model.lookup.encode("user_id", raw)
    # A number is hashed to its remainder; row 0 is padding.
    assert rows.tolist() == [1 + id_ % 4 for id_ in raw.tolist()]
    history = {name: column[1:2] for name, column in _histories(model).items()}
    known = dict(zip(_ids().item_ids.tolist(), _ids().codes.tolist(), strict=True))
    for row in rows[:2]:
        inputs = {**history, "user_id": tf.constant([row]), "item_id": tf.constant([7])}
        expected = tiger_reference.item_logits([known[129]], _ids().codes[5], SIZES, _weights(model), False, int(row))
        for logits, of_level in zip(model(inputs), expected, strict=True):
            np.testing.assert_allclose(logits[0], of_level, atol=1e-5)
    model.save(tmp_path / "tiger.keras")
    again = tf.keras.models.load_model(tmp_path / "tiger.keras")
    assert again.get_config() == model.get_config()
    np.testing.assert_array_equal(again.retrieve(inputs, 5, 10).rows, model.retrieve(inputs, 5, 10).rows)
    assert again.lookup.encode("user_id", raw).tolist() == rows.tolist()


def test_a_user_that_cannot_be_hashed_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`user` must be a keras_eta\.Feature or None\. Received: user='user_id'"):
        _model(user="user_id")
    with pytest.raises(ValueError, match=r"`user` must be an id feature with one value\. Received: user=Feature"):
        _model(user=Feature("age", "float32"))


def test_teacher_forced_logits_equal_those_of_the_reference() -> None:
    model = _model()
    expected = _reference_scores(model)
    for item in (0, 17):
        inputs = {**_histories(model), "item_id": tf.fill([4], item + 2)}
        codes = _ids().codes[item]
        scores = sum(
            tf.nn.log_softmax(logits)[:, code] for logits, code in zip(model(inputs), codes.tolist(), strict=True)
        )
        np.testing.assert_allclose(scores, expected[:, item], atol=2e-5)


def test_narrow_beams_find_different_items_and_leave_out_what_is_excluded() -> None:
    model = _model()
    inputs = _histories(model)
    best = model.retrieve(inputs, 3, 30).rows.numpy()
    # The first two of each, and no item.
    excluded = tf.constant(np.column_stack([best[:, :2], np.zeros(4, int), np.ones(4, int)]))
    for beams in (5, 30):
        rows = model.retrieve(inputs, 5, beams, excluded).rows.numpy()
        for found, left_out in zip(rows, best[:, :2], strict=True):
            real = found[found > 0]
            assert len(set(real)) == len(real)
            assert not set(real) & set(left_out)
            assert real.min() >= 2
            assert real.max() < len(ITEMS) + 2
    np.testing.assert_array_equal(model.retrieve(inputs, 5, 30, excluded).rows[:, 0], best[:, 2])


@pytest.mark.parametrize("graph", [False, True])
def test_reserved_results_are_the_likeliest_of_their_items_among_the_likeliest_of_all(graph: bool) -> None:
    model = _model()
    scores = _reference_scores(model)
    # Two of the items are excluded, one of them reserved, and row 1 is no item.
    reserved, excluded, number = np.array([3, 8, 11, 20, 28]), [8, 17], 3
    reserve = Reserve(model.table.nodes_above(np.append(reserved + 2, 1)), number)
    scores[:, excluded] = -np.inf
    retrieve = tf.function(model.retrieve, autograph=False) if graph else model.retrieve
    found = retrieve(_histories(model), 7, 30, tf.constant([[10, 19]] * 4), reserve)
    for row, of_items in enumerate(scores):
        best = sorted(range(len(ITEMS)), key=lambda item: -of_items[item])
        kept = [item for item in best if item in reserved][:number]
        expected = sorted([*kept, *[item for item in best if item not in kept][: 7 - number]], key=best.index)
        assert found.rows[row].numpy().tolist() == [item + 2 for item in expected]
        np.testing.assert_allclose(found.log_probability[row], of_items[expected], atol=2e-5)


def test_places_that_nothing_reserved_can_fill_go_to_others() -> None:
    model = _model()
    inputs = _histories(model)
    # All that is reserved is excluded but item 4.
    reserve, excluded = Reserve(model.table.nodes_above(np.array([5, 6, 7])), 3), tf.constant([[5, 7]] * 4)
    rows = model.retrieve(inputs, 10, 30, excluded, reserve).rows.numpy()
    assert all(len(set(row)) == 10 and 6 in row and row.min() >= 2 for row in rows)
    everything = model.retrieve(inputs, 29, 30, excluded, reserve)
    assert (np.sort(everything.rows.numpy())[:, 0] == 0).all()
    assert np.isneginf(everything.log_probability[:, 28]).all()
    with pytest.raises(ValueError, match=r"`reserve\.number` must be from 1 to `num_results`, 2\. Received: 3"):
        model.retrieve(inputs, 2, 30, None, reserve)


def test_fewer_items_than_asked_for_are_filled_up_with_none() -> None:
    ids = SemanticIds.from_codes(["a", "b", "c"], [[0, 1], [0, 1], [1, 0]], (2, 2), max_collisions=2)
    model = _model(ids)
    inputs = {"history_item_id": tf.zeros([1, 0], tf.int32), "history_length": tf.constant([0])}
    found = model.retrieve(inputs, 20, 30, excluded=tf.constant([[3]]))
    assert sorted(found.rows[0].numpy().tolist()) == [0] * 18 + [2, 4]
    assert np.isneginf(found.log_probability[0, 2:]).all()
    assert np.isfinite(found.log_probability[0, :2]).all()
    assert model.lookup.encode("item_id", ["c", "z", "a"]).tolist() == [4, 1, 2]


@pytest.mark.parametrize("compiled", [None, False, True])
def test_graph_and_xla_retrieve_as_eager_does_and_so_does_a_reloaded_model(
    tmp_path: Path, compiled: bool | None
) -> None:
    model = _model()
    inputs = _histories(model)
    expected = model.retrieve(inputs, 5, 10)
    if compiled is None:
        model.save(tmp_path / "tiger.keras")
        again = tf.keras.models.load_model(tmp_path / "tiger.keras")
        assert again.get_config() == model.get_config()
        retrieve: Callable[..., Any] = again.retrieve
        assert again.lookup.encode("item_id", [100, 129, 5]).tolist() == [2, 31, 1]
    else:
        retrieve = tf.function(model.retrieve, jit_compile=compiled, autograph=False)
    found = retrieve(inputs, 5, 10)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_allclose(found.log_probability, expected.log_probability, rtol=1e-5)


def test_a_search_compiled_for_each_request_finds_the_same() -> None:
    model = _model(user=Feature("user_id", num_oov_indices=4), num_layers=1)
    inputs = {**_histories(model), "user_id": tf.constant([1, 2, 3, 4])}
    reserve = Reserve(model.table.nodes_above(np.array([3, 8, 9])), 2)
    # Of different numbers; no item, and twice the same.
    excluded = tf.constant([[10, 0, 0, 0], [0, 0, 0, 0], [5, 1, 5, 20], [31, 2, 3, 4]])
    expected = model.retrieve(inputs, 6, 10, excluded, reserve)
    traced = tf.function(
        lambda inputs, excluded: model.retrieve(inputs, 6, 10, excluded, reserve, jit_compile=True), autograph=False
    )
    for length in (6, 4, 1):
        columns = {**inputs, "history_item_id": inputs["history_item_id"][:, :length]}
        columns["history_length"] = tf.minimum(inputs["history_length"], length)
        of_length = expected if length > 1 else model.retrieve(columns, 6, 10, excluded, reserve)
        found = traced(columns, excluded)
        np.testing.assert_array_equal(found.rows, of_length.rows)
        np.testing.assert_allclose(found.log_probability, of_length.log_probability, rtol=1e-5)
    none = traced({name: column[:0] for name, column in inputs.items()}, excluded[:0])
    assert none.rows.shape == (0, 6)


@pytest.mark.parametrize("suffix", [".weights.h5", ".ckpt"])
def test_weights_of_other_items_are_refused_and_change_nothing(tmp_path: Path, suffix: str) -> None:
    other = _model(_ids(ITEMS + 1))
    other.set_weights([w + 2 if w.dtype.kind == "f" else w for w in other.get_weights()])
    other.save_weights(tmp_path / f"other{suffix}")
    model = _model(dropout=0.0)
    model.save_weights(tmp_path / f"own{suffix}")
    before = model.get_weights()
    model.set_weights([w + 1 if w.dtype.kind == "f" else w for w in before])
    model.load_weights(tmp_path / f"own{suffix}")
    for _ in range(2):
        for weight, expected in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(weight, expected)
        with pytest.raises(ValueError, match="The weights are of other items or other semantic ids than the model's"):
            model.load_weights(tmp_path / f"other{suffix}")


def test_rows_that_are_negative_or_of_unknown_items_say_nothing() -> None:
    model = _model(dropout=0.0)
    inputs = {**_histories(model), "item_id": tf.constant([5, 1, 9, 7])}
    of_rows = []
    for row in (0, 2):
        logits = [tf.nn.log_softmax(x[row]).numpy() for x in model(inputs)]
        codes = _ids().codes[inputs["item_id"][row].numpy() - 2]
        of_rows.append(-sum(x[code] for x, code in zip(logits, codes, strict=True)))
    for training in (True, False):
        loss = model.compute_losses((inputs, tf.constant([1, 1, 1, 0])), training)["loss"]
        np.testing.assert_allclose(loss, np.mean(of_rows), rtol=1e-5)
        loss = model.compute_losses((inputs, tf.constant([1, 1, 1, 0]), tf.constant([3.0, 1, 1, 1])), training)["loss"]
        np.testing.assert_allclose(loss, (3 * of_rows[0] + of_rows[1]) / 4, rtol=1e-5)
    assert model.compute_losses((inputs, tf.zeros(4, tf.int64)))["loss"].numpy() == 0


def test_smoothed_labels_spread_a_share_over_all_codes_in_training_alone() -> None:
    model = _model(dropout=0.0, label_smoothing=0.25)
    inputs = {name: column[:1] for name, column in _histories(model).items()} | {"item_id": tf.constant([5])}
    logs = [tf.nn.log_softmax(x[0]).numpy() for x in model(inputs)]
    codes = _ids().codes[3]
    plain = -sum(x[code] for x, code in zip(logs, codes, strict=True))
    smoothed = 0.75 * plain - 0.25 * sum(x.mean() for x in logs)
    np.testing.assert_allclose(model.compute_losses((inputs, tf.constant([1])))["loss"], plain, rtol=1e-5)
    np.testing.assert_allclose(model.compute_losses((inputs, tf.constant([1])), True)["loss"], smoothed, rtol=1e-5)


@pytest.mark.slow
def test_training_on_a_log_learns_what_follows() -> None:
    """Every user goes round the same circle of items."""
    steps = np.arange(40)
    log = Interactions.from_columns(
        {
            "user_id": np.repeat(np.arange(60), 40),
            "item_id": ITEMS[(np.add.outer(np.arange(60) * 7, steps)).ravel() % len(ITEMS)],
            "timestamp": np.tile(steps, 60),
        }
    )
    impressions = Impressions.from_interactions(log, label=np.ones(len(log), int), min_history=1)
    tf.keras.utils.set_random_seed(0)
    model = TIGER(_ids(), max_history_length=L, dim=24, feed_forward_units=32, dropout=0.0)
    model.compile(model.default_optimizer(5e-3, 5e-3))
    batches = impressions.to_dataset(model.features, 64, lookup=model.lookup, shuffle=True, seed=0)
    history = model.fit(batches, epochs=4, verbose=0, validation_data=batches).history
    assert history["val_loss"][-1] < 0.3 < history["val_loss"][0]
    rows = model.lookup.encode("item_id", np.array([[103, 102, 101, 100], [100, 129, 128, 127]]))
    found = model.retrieve(
        {"history_item_id": tf.constant(rows), "history_length": tf.constant([L, L])}, num_results=1, num_beams=4
    )
    assert model.table.raw_ids_by_row()[found.rows].tolist() == [[104], [101]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim": 10, "num_heads": 4}, ValueError, "`num_heads` must divide `dim`. Received: num_heads=4, dim=10"),
        ({"key_dim": 0}, ValueError, "`key_dim` must be a positive integer. Received: key_dim=0"),
        ({"dim": 0}, ValueError, "`dim` must be a positive integer. Received: dim=0"),
        ({"num_layers": 1.5}, ValueError, "`num_layers` must be a positive integer. Received: num_layers=1.5"),
        ({"dropout": 1.0}, ValueError, "`dropout` must be a number from 0 to below 1. Received: dropout=1.0"),
        ({"label_smoothing": -0.1}, ValueError, "`label_smoothing` must be a number from 0 to below 1. Received: lab"),
        ({"ids": [1, 2]}, TypeError, "`ids` must be keras_eta.SemanticIds. Received: ids=[1, 2]"),
    ],
)
def test_refuses_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        TIGER(**{"ids": _ids(), **arguments})


def test_refuses_fewer_beams_than_results() -> None:
    model = _model()
    with pytest.raises(
        ValueError, match=re.escape("`num_beams` must be at least `num_results`. Received: num_beams=4")
    ):
        model.retrieve(_histories(model), 5, 4)
