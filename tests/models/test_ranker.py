"""The ranker: its logits against a whole forward pass in NumPy, training, metrics, saving, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import ETA, Age, Feature, FeatureLookup, Features, Ranker, metrics
from keras_eta.interest import ETAInterest, FullInterest, InnerProductInterest, InterestUnit, RecentInterest
from keras_eta.layers import ActivationUnit, Dice
from keras_eta.models import RetrievalTask, Scores
from tests import reference
from tests.paper import paper_eta

Batch = dict[str, np.ndarray]
MakeBatch = Callable[..., Batch]

TOP_K = 3

SHORT = 4

UNITS: dict[str, Callable[[], list[InterestUnit]]] = {
    "none": lambda: [],
    "full": lambda: [FullInterest()],
    "inner product": lambda: [InnerProductInterest(TOP_K)],
    "hamming": lambda: [ETAInterest(TOP_K, num_bits=16)],
    "hamming with bias": lambda: [ETAInterest(TOP_K, num_bits=16, similarity_bias=True)],
}


def _ranker(features: Features, unit: str = "none", **arguments: Any) -> Ranker:
    """A ranker of the short history and of one more unit, if any."""
    arguments = {"hidden_units": (6, 5), "interests": [RecentInterest(SHORT), *UNITS[unit]()], **arguments}
    model = Ranker(features, **arguments)
    model.build()
    _randomise(model)
    return model


def _randomise(model: Ranker) -> None:
    """Weights large enough for every part to matter; biases and scales too."""
    rng = np.random.default_rng(5)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(scale=0.5, size=variable.shape))


@pytest.fixture(scope="module")
def models(features: Features) -> dict[str, Ranker]:
    """A ranker with each unit beside the short history."""
    return {unit: _ranker(features, unit) for unit in UNITS}


@pytest.fixture
def half_precision() -> Iterator[None]:
    policy = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    yield
    tf.keras.mixed_precision.set_global_policy(policy)


# The forward pass


def _vector(model: Ranker, features: tuple[Feature, ...], values: Mapping[str, Any]) -> np.ndarray:
    parts = [
        model.embeddings[feature.name].embeddings.numpy()[values[feature.name]]
        if feature.is_id
        else np.array([values[feature.name]], np.float32)
        for feature in features
    ]
    return np.concatenate(parts)


def _retrieved(model: Ranker, batch: Batch, row: int, item: int, length: int) -> list[int] | None:
    """Positions that the last unit must retrieve; `None`: all."""
    if isinstance(model.interests[-1], FullInterest):
        return None
    layer = model.embeddings["item_id"]
    history = batch["history_item_id"][row, :length]
    mask = np.arange(length) < batch["history_length"][row]
    table = layer.embeddings.numpy()
    if isinstance(model.interests[-1], InnerProductInterest):
        positions, found = reference.inner_product_top_k(table[[item]], table[history], TOP_K, mask)
    else:
        words = reference.simhash(table, layer.hash.planes.numpy())
        positions, _, found = reference.hamming_top_k(words[[item]], words[history], TOP_K, mask)
    return positions[found].tolist()


def _expected_logit(model: Ranker, batch: Batch, row: int, candidate: int) -> float:
    """The logit of one candidate of a batch for `score`."""
    features = model.features
    length = min(batch["history_item_id"].shape[1], features.max_history_length)
    real = int(min(batch["history_length"][row], length))
    item = _vector(
        model,
        features.item_features,
        {feature.name: batch[feature.name][row, candidate] for feature in features.item_features},
    )
    behaviours = [
        _vector(
            model,
            features.history_features,
            {feature.name: batch[f"history_{feature.name}"][row, i] for feature in features.history_features},
        )
        for i in range(real)
    ]
    if features.age is not None:
        ages = model.embeddings["history_age"].embeddings.numpy()[batch["history_age"][row, :real]]
        behaviours = [np.concatenate(parts) for parts in zip(behaviours, ages, strict=True)]

    def interest(layer: Any, positions: list[int], similarity: np.ndarray | None = None) -> np.ndarray:
        if not positions:
            return np.zeros(layer.num_heads * layer.key_dim)
        attended = np.array([behaviours[i] for i in positions])
        weights = reference.attention_weights(layer)
        return reference.target_attention(
            item, attended, [True] * len(positions), weights, layer.num_heads, similarity
        )[0]

    parts = [item, interest(model.interests[0].attention, list(range(min(real, SHORT))))]
    if len(model.interests) > 1:
        unit = model.interests[1]
        positions = _retrieved(model, batch, row, batch["item_id"][row, candidate], length)
        positions = list(range(real)) if positions is None else positions
        similarity = None
        if unit.similarity_bias:
            layer = model.embeddings["item_id"]
            words = reference.simhash(layer.embeddings.numpy(), layer.hash.planes.numpy())
            ids = batch["history_item_id"][row, positions]
            candidate_words = words[batch["item_id"][row, candidate]]
            distances = [reference.hamming_distance(candidate_words, words[i]) for i in ids]
            similarity = 1.0 - 2.0 * np.array(distances) / unit.num_bits
        parts.append(interest(unit.attention, positions, similarity))
    for feature in (*features.user, *features.context):
        parts.append(_vector(model, (feature,), {feature.name: batch[feature.name][row]}))
    x0 = x = np.concatenate(parts)
    for cross in model.cross:
        kernel, bias = cross.get_weights()
        x = x0 * (x @ kernel + bias) + x
    dense = [layer for layer in model.mlp.layers if isinstance(layer, tf.keras.layers.Dense)]
    for layer in dense[:-1]:
        x = np.maximum(x @ layer.kernel.numpy() + layer.bias.numpy(), 0.0)
    return float((x @ dense[-1].kernel.numpy() + dense[-1].bias.numpy())[0])


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    ("rows", "candidates", "length"),
    [(4, 3, 12), (4, 1, 12), (1, 5, 2), (3, 2, 30), (2, 1, 1), (2, 2, 0)],
)
def test_logits_equal_reference(
    models: dict[str, Ranker], make_batch: MakeBatch, unit: str, rows: int, candidates: int, length: int
) -> None:
    model = models[unit]
    batch = make_batch(model.features, rows, length, candidates=candidates)
    logits = model.score(batch).logits
    expected = [[_expected_logit(model, batch, row, c) for c in range(candidates)] for row in range(rows)]
    np.testing.assert_allclose(logits, expected, rtol=2e-4, atol=2e-4)
    assert np.std(expected) > 0.01 or rows * candidates == 1


def test_cross_layers_equal_reference(features: Features, make_batch: MakeBatch) -> None:
    model = _ranker(features, "full", cross_layers=2)
    for variable in model.cross[0].trainable_variables + model.cross[1].trainable_variables:
        variable.assign(0.3 * variable)
    batch = make_batch(features, 4, candidates=2)
    expected = [[_expected_logit(model, batch, row, c) for c in range(2)] for row in range(4)]
    np.testing.assert_allclose(model.score(batch).logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("unit", UNITS)
def test_score_of_many_candidates_equals_one_call_each(
    models: dict[str, Ranker], make_batch: MakeBatch, unit: str
) -> None:
    model = models[unit]
    batch = make_batch(model.features, 4, candidates=5)
    scores = model.score(batch)
    assert isinstance(scores, Scores)
    assert scores.logits.shape == (4, 5)
    for candidate in range(5):
        items = {feature.name: batch[feature.name][:, candidate] for feature in model.features.item_features}
        np.testing.assert_allclose(model({**batch, **items}), scores.logits[:, candidate], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unit", UNITS)
def test_score_of_no_requests_is_empty(models: dict[str, Ranker], make_batch: MakeBatch, unit: str) -> None:
    assert models[unit].score(make_batch(models[unit].features, 0, candidates=3)).logits.shape == (0, 3)


@pytest.mark.parametrize("unit", UNITS)
def test_padding_never_influences_the_score(models: dict[str, Ranker], make_batch: MakeBatch, unit: str) -> None:
    model = models[unit]
    for candidates in (None, 3):
        batch = make_batch(model.features, 8, candidates=candidates)
        other = make_batch(model.features, 8, candidates=candidates, seed=1)
        padding = np.arange(12) >= batch["history_length"][:, np.newaxis]
        changed = {
            **batch,
            **{name: np.where(padding, other[name], batch[name]) for name in model.features.history_names},
        }
        assert (changed["history_item_id"] != batch["history_item_id"]).any()
        score = model if candidates is None else lambda inputs: model.score(inputs).logits
        np.testing.assert_array_equal(score(changed), score(batch))
        # More padding does not either.
        longer = {name: np.pad(batch[name], [(0, 0), (0, 5)], mode="edge") for name in model.features.history_names}
        np.testing.assert_allclose(score({**batch, **longer}), score(batch), rtol=1e-5, atol=1e-6)
        # A real behaviour does.
        one_more = {**batch, "history_length": np.minimum(batch["history_length"] + 1, 12)}
        assert (score(one_more).numpy() != score(batch).numpy()).any()


@pytest.mark.parametrize("unit", UNITS)
def test_history_beyond_the_maximum_is_not_read(models: dict[str, Ranker], make_batch: MakeBatch, unit: str) -> None:
    model = models[unit]
    maximum = model.features.max_history_length
    batch = make_batch(model.features, 4, maximum + 7)
    batch["history_length"][:] = maximum + 7
    cut = {name: batch[name][:, :maximum] for name in model.features.history_names}
    expected = model({**batch, **cut, "history_length": np.full(4, maximum)})
    np.testing.assert_allclose(model(batch), expected, rtol=1e-5, atol=1e-6)
    # The last behaviour that is read matters where all are attended to.
    if unit == "full":
        batch["history_item_id"][:, maximum - 1] = batch["history_item_id"][:, maximum - 1] % 40 + 1
        assert (model(batch).numpy() != expected.numpy()).all()


@pytest.mark.parametrize("unit", UNITS)
def test_empty_history_gives_zero_interest(models: dict[str, Ranker], make_batch: MakeBatch, unit: str) -> None:
    model = models[unit]
    batch = make_batch(model.features, 3, candidates=2)
    batch["history_length"][:] = 0
    scores = model.score(batch)
    for name in scores.interests:
        read: Any = scores.interests[name]
        assert not read.vector.numpy().any()
        assert not read.retrieved.mask.numpy().any()
        assert not read.weights.numpy().any()
    # The MLP reads zeros in place of interest.
    features = model.features
    item = np.array(
        [[_vector(model, features.item_features, {f.name: batch[f.name][r, c] for f in features.item_features})
          for c in range(2)] for r in range(3)]
    )  # fmt: skip
    interest = np.zeros([3, 2, (14 if unit == "none" else 28)], np.float32)
    rows = np.array(
        [_vector(model, (*features.user, *features.context),
                 {f.name: batch[f.name][r] for f in (*features.user, *features.context)}) for r in range(3)]
    )  # fmt: skip
    x = np.concatenate([item, interest, np.repeat(rows[:, np.newaxis], 2, axis=1)], axis=-1)
    np.testing.assert_allclose(scores.logits, model.mlp(x)[..., 0], rtol=1e-5, atol=1e-6)


def test_columns_of_one_value_a_row_are_read_too(models: dict[str, Ranker], make_batch: MakeBatch) -> None:
    model = models["hamming"]
    batch = make_batch(model.features)
    wide = {name: column if column.ndim == 2 else column[:, np.newaxis] for name, column in batch.items()}
    logits = model(wide)
    assert logits.shape == (8,)
    np.testing.assert_array_equal(logits, model(batch))


@pytest.mark.parametrize("unit", ["full", "inner product", "hamming with bias"])
def test_graph_and_xla_equal_eager(models: dict[str, Ranker], make_batch: MakeBatch, unit: str) -> None:
    model = models[unit]
    batch = {name: tf.constant(column) for name, column in make_batch(model.features, candidates=3).items()}
    expected = model.score(batch)
    for options in ({"reduce_retracing": True}, {"jit_compile": True}):
        scores = tf.function(model.score, **options)(batch)
        np.testing.assert_allclose(scores.logits, expected.logits, rtol=1e-4, atol=1e-5)
        for name in expected.interests:
            found: Any = scores.interests[name].retrieved
            wanted: Any = expected.interests[name].retrieved
            np.testing.assert_array_equal(found.positions, wanted.positions)


@pytest.mark.parametrize("unit", ["none", "full", "hamming"])
@pytest.mark.parametrize("activation", ["relu", Dice])
def test_activation_unit_in_place_of_both_attentions(
    features: Features, make_batch: MakeBatch, unit: str, activation: Any
) -> None:
    units: list[InterestUnit] = [RecentInterest(SHORT, attention=ActivationUnit((3,)))]
    if unit == "full":
        units.append(FullInterest(attention=ActivationUnit((4,))))
    if unit == "hamming":
        units.append(ETAInterest(TOP_K, num_bits=16, attention=ActivationUnit((4,))))
    model = _ranker(features, interests=units, activation=activation)
    assert all(isinstance(unit.attention, ActivationUnit) for unit in model.interests)
    assert sum(isinstance(layer, Dice) for layer in model.mlp.layers) == (2 if activation is Dice else 0)
    batch = make_batch(features, candidates=3)
    scores = model.score(batch)
    assert np.isfinite(scores.logits).all()
    for candidate in range(3):
        items = {feature.name: batch[feature.name][:, candidate] for feature in features.item_features}
        np.testing.assert_allclose(model({**batch, **items}), scores.logits[:, candidate], rtol=1e-4, atol=1e-5)
    one_more = {**batch, "history_length": np.minimum(batch["history_length"] + 1, 12)}
    assert (model.score(one_more).logits.numpy() != scores.logits.numpy()).any()


def test_long_history_alone(features: Features, make_batch: MakeBatch) -> None:
    model = _ranker(features, interests=UNITS["hamming"]())
    batch = make_batch(features)
    batch["history_length"][:] = 12
    assert np.std(model(batch)) > 0


def test_dice_of_the_mlp_learns_statistics_in_training_only(features: Features, make_batch: MakeBatch) -> None:
    model = _ranker(features, activation=Dice)
    dice = next(layer for layer in model.mlp.layers if isinstance(layer, Dice))
    batch = make_batch(features)
    means = [dice.normalization.moving_mean.numpy()]
    for training in (False, True):
        model(batch, training=training)
        means.append(dice.normalization.moving_mean.numpy())
    np.testing.assert_array_equal(means[0], means[1])
    assert (means[1] != means[2]).all()


@pytest.mark.parametrize("bias", [False, True])
def test_training_and_inference_agree_in_half_precision(
    features: Features, make_batch: MakeBatch, half_precision: None, bias: bool
) -> None:
    features = dataclasses.replace(features, hashed=("item_id", "category_id"))
    model = paper_eta(
        features, top_k=TOP_K, num_bits=64, similarity_bias=bias, short_history_length=4, hidden_units=(6,)
    )
    model.build()
    _randomise(model)
    # Large scales, so that a bit that differs would show.
    kernel = model.eta.attention.output_projection.kernel
    kernel.assign(3.0 * kernel)
    batch = make_batch(features, 64)
    assert model.compute_dtype == "bfloat16"
    np.testing.assert_array_equal(model(batch, training=True), model(batch))
    # The codes are the bits that distances are counted by.
    for layer in model.eta.tables.values():
        rows = layer(tf.range(layer.input_dim))
        bits = [reference.unpack_words(words, 64) for words in layer.fingerprints_table.numpy()]
        np.testing.assert_array_equal(layer.codes(rows), np.where(bits, 1.0, -1.0))


@pytest.mark.parametrize("unit", UNITS)
def test_half_precision_is_close_to_float32_and_trains(
    features: Features, make_batch: MakeBatch, half_precision: None, unit: str
) -> None:
    model = _ranker(features, unit)
    batch = make_batch(features, 8, candidates=2)
    logits = model.score(batch).logits
    expected = [[_expected_logit(model, batch, row, c) for c in range(2)] for row in range(8)]
    assert logits.dtype == tf.float32
    np.testing.assert_allclose(logits, expected, rtol=0.2, atol=0.2)
    model.compile(tf.keras.optimizers.SGD(0.1), run_eagerly=True)
    before = model.embeddings["item_id"].embeddings.numpy()
    model.train_on_batch(make_batch(features), np.ones(8, np.float32))
    assert model.embeddings["item_id"].embeddings.dtype == tf.float32
    assert (model.embeddings["item_id"].embeddings.numpy() != before).any()


# Ages

AGE = Age((60, 3_600, 86_400), embedding_dim=3)


@pytest.fixture(scope="module")
def aged_features(features: Features) -> Features:
    """With an age, and a user's own `age` beside it."""
    user = (*features.user, Feature("age", vocabulary_size=4, embedding_dim=2))
    return dataclasses.replace(features, user=user, age=AGE)


@pytest.fixture(scope="module")
def aged_models(aged_features: Features) -> dict[str, Ranker]:
    return {unit: _ranker(aged_features, unit) for unit in UNITS}


def _aged(batch: Batch, buckets: int = 4, seed: int = 3) -> Batch:
    """The batch with buckets of ages, in padding too."""
    shape = batch["history_item_id"].shape
    return {**batch, "history_age": np.random.default_rng(seed).integers(1, buckets + 1, shape).astype(np.int32)}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("rows", "candidates", "length"), [(4, 3, 12), (4, 1, 12), (3, 2, 30), (2, 2, 0)])
def test_logits_with_ages_equal_reference(
    aged_models: dict[str, Ranker], make_batch: MakeBatch, unit: str, rows: int, candidates: int, length: int
) -> None:
    model = aged_models[unit]
    batch = _aged(make_batch(model.features, rows, length, candidates=candidates))
    logits = model.score(batch).logits
    expected = [[_expected_logit(model, batch, row, c) for c in range(candidates)] for row in range(rows)]
    np.testing.assert_allclose(logits, expected, rtol=2e-4, atol=2e-4)
    for candidate in range(candidates):
        items = {feature.name: batch[feature.name][:, candidate] for feature in model.features.item_features}
        for training in (False, True):
            one = model({**batch, **items}, training=training)
            np.testing.assert_allclose(one, logits[:, candidate], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unit", ["none", "full", "hamming"])
def test_gradients_reach_the_ages_of_attended_behaviours_alone(
    aged_models: dict[str, Ranker], make_batch: MakeBatch, unit: str
) -> None:
    model = aged_models[unit]
    batch = _aged(make_batch(model.features, 8), seed=1)
    # Buckets 1 and 2 in what is attended to, 3 in the rest, 4 in padding.
    positions = np.arange(12)
    for row, length in enumerate(batch["history_length"]):
        attended = set(range(min(length, SHORT)))
        if len(model.interests) > 1:
            found = _retrieved(
                model, {**batch, "item_id": batch["item_id"][:, np.newaxis]}, row, batch["item_id"][row], 12
            )
            attended |= set(range(length)) if found is None else set(found)
        batch["history_age"][row] = np.where(
            positions >= length, 4, np.where(np.isin(positions, list(attended)), 1 + positions % 2, 3)
        )
    table = model.embeddings["history_age"].embeddings
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(batch, training=True) ** 2)
    gradient = tf.convert_to_tensor(tape.gradient(loss, table)).numpy()
    assert gradient.shape == (5, 3)
    assert gradient.any(axis=1).tolist() == [False, True, True, False, False]


def test_long_history_with_ages_is_not_gathered_as_floats_in_training(
    aged_models: dict[str, Ranker], make_batch: MakeBatch
) -> None:
    length = 17  # no other dimension

    def floats_as_long_as_the_history(unit: str) -> list[str]:
        batch = _aged(make_batch(aged_models[unit].features, 7, length))
        specs = {name: tf.TensorSpec(column.shape, column.dtype) for name, column in batch.items()}
        model = aged_models[unit]
        traced = tf.function(lambda inputs: model(inputs, training=True), autograph=False).get_concrete_function(specs)
        # Columns that hold floats have rank 2.
        return [
            output.name
            for operation in traced.graph.get_operations()
            for output in operation.outputs
            if output.dtype == tf.float32 and output.shape.rank == 3 and length in output.shape.as_list()
        ]

    assert floats_as_long_as_the_history("hamming") == []
    assert any("history_age" in name for name in floats_as_long_as_the_history("full"))


def test_model_learns_what_only_ages_tell() -> None:
    tf.keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    # One item; a click where the one behaviour is less than an hour old.
    batch = {
        "item_id": np.full(400, 2, np.int32),
        "history_item_id": np.full([400, 1], 2, np.int32),
        "history_age": rng.integers(1, 5, [400, 1]).astype(np.int32),
        "history_length": np.ones(400, np.int32),
    }
    labels = (batch["history_age"][:, 0] <= 2).astype(np.float32)
    features = Features(item_id=Feature("item_id", vocabulary_size=5, embedding_dim=4), age=AGE)
    for age, auc in ((AGE, 1.0), (None, 0.5)):
        model = paper_eta(dataclasses.replace(features, age=age), top_k=1, num_bits=8, hidden_units=(8,))
        model.compile()
        model.fit(batch, labels, batch_size=20, epochs=3, verbose=0)
        assert metrics.auc(labels, model.predict(batch, verbose=0)) == auc


def test_ages_are_an_embedding_of_their_own(aged_models: dict[str, Ranker], features: Features) -> None:
    model = aged_models["hamming"]
    assert type(model.embeddings["history_age"]) is tf.keras.layers.Embedding
    assert set(model.interests[1].tables) == {"item_id"}
    shapes = {variable.name: tuple(variable.shape) for variable in model.embedding_variables()}
    assert shapes["embeddings/history_age/embeddings:0"] == (5, 3)
    assert shapes["embeddings/age/embeddings:0"] == (6, 2)
    assert "embeddings/history_age/embeddings:0" not in [variable.name for variable in model.dense_variables()]
    assert "history_age" not in _ranker(features, "hamming").embeddings


@pytest.mark.parametrize("save_format", ["h5", "tf", "keras"])
def test_model_with_ages_travels_by_file(
    aged_models: dict[str, Ranker], make_batch: MakeBatch, save_format: str, tmp_path: Path
) -> None:
    model = aged_models["hamming with bias"]
    batch = _aged(make_batch(model.features))
    path = str(tmp_path / {"h5": "weights.h5", "tf": "weights", "keras": "model.keras"}[save_format])
    if save_format == "keras":
        model.save(path)
        twin = tf.keras.models.load_model(path)
    else:
        model.save_weights(path, save_format=save_format)
        twin = Ranker.from_config(json.loads(json.dumps(model.get_config())))
        twin.build()
        twin.load_weights(path)
    assert twin.features == model.features
    assert twin.features.age == AGE
    np.testing.assert_array_equal(twin(batch), model(batch))


def test_model_with_ages_takes_the_regularizer_too(aged_features: Features) -> None:
    model = _ranker(aged_features, embeddings_regularizer=tf.keras.regularizers.L2(0.5))
    table = model.embeddings["history_age"].embeddings.numpy()
    (loss,) = model.embeddings["history_age"].losses
    assert float(loss) == pytest.approx(0.5 * np.sum(table**2), rel=1e-5)


def test_model_with_ages_refuses_timestamps(aged_models: dict[str, Ranker], make_batch: MakeBatch) -> None:
    model = aged_models["hamming"]
    batch = make_batch(model.features)
    batch |= {"timestamp": np.zeros(8, np.int64), "history_timestamp": np.zeros([8, 12], np.int64)}
    message = f"Columns are missing: ['history_age']. Received: {sorted(batch)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        model(batch)


# Raw ids


@pytest.fixture(scope="module")
def lookup() -> FeatureLookup:
    features = Features(
        item_id=Feature("item_id", "string", embedding_dim=4),
        item_attributes=(Feature("category_id", embedding_dim=2),),
        user=(Feature("user_id", embedding_dim=2),),
        hashed=("item_id", "category_id"),
    )
    layer = FeatureLookup(features)
    layer.adapt(
        {
            "item_id": np.array(["milk", "milk", "bread", "wine"]),
            "category_id": np.array([10, 10, 10, 20]),
            "user_id": np.array([1, 2, 2, 3]),
        }
    )
    return layer


def _raw() -> dict[str, np.ndarray]:
    return {
        "user_id": np.array([2, 99]),
        "item_id": np.array(["wine", "caviar"]),
        "category_id": np.array([20, 30]),
        "history_item_id": np.array([["milk", "caviar", "bread"], ["truffle", "oyster", ""]]),
        "history_category_id": np.array([[10, 30, 10], [30, 30, 0]]),
        "history_length": np.array([3, 2]),
    }


def test_unseen_ids_get_a_finite_score_of_their_own(lookup: FeatureLookup) -> None:
    model = paper_eta(lookup=lookup, top_k=2, hidden_units=(4,))
    assert model.features == lookup.features
    logits = model(lookup(_raw()))
    assert np.isfinite(logits).all()
    # All unknown items of a bucket are one.
    raw = _raw()
    raw["item_id"] = np.array(["wine", "saffron"])
    np.testing.assert_array_equal(model(lookup(raw)), logits)
    raw["item_id"] = np.array(["wine", "milk"])
    assert model(lookup(raw))[1] != logits[1]


# Training


@pytest.fixture(scope="module")
def trained(features: Features, make_batch: MakeBatch) -> tuple[Ranker, dict[str, list[float]], Batch, np.ndarray]:
    """ETA fitted by the default optimiser to a label that the candidate's price tells, with most of it noise."""
    tf.keras.utils.set_random_seed(0)
    batch = make_batch(features, 600)
    rng = np.random.default_rng(0)
    labels = (batch["price"] + rng.normal(size=600) > 0).astype(np.float32)
    model = paper_eta(features, top_k=TOP_K, num_bits=16, short_history_length=4, hidden_units=(8,), cross_layers=1)
    model.compile()
    history = model.fit(batch, labels, batch_size=50, epochs=4, verbose=0).history
    return model, history, batch, labels


def test_fit_lowers_the_loss(trained: tuple[Ranker, dict[str, list[float]], Batch, np.ndarray]) -> None:
    _, history, _, _ = trained
    assert history["total_loss"][-1] < history["total_loss"][0] - 0.02
    assert history["auc"][-1] > 0.75 > history["auc"][0]
    assert set(history) == {"auc", "log_loss", "loss", "regularization_loss", "total_loss"}


def test_evaluate_agrees_with_exact_metrics(
    trained: tuple[Ranker, dict[str, list[float]], Batch, np.ndarray],
) -> None:
    model, _, batch, labels = trained
    logits = model.predict(batch, batch_size=64, verbose=0)
    assert logits.shape == (600,)
    np.testing.assert_allclose(logits, model(batch), rtol=1e-4, atol=1e-5)
    results = model.evaluate(batch, labels, batch_size=64, return_dict=True, verbose=0)
    assert results["auc"] == pytest.approx(metrics.auc(labels, logits), abs=1e-2)
    assert results["auc"] == pytest.approx(reference.auc(labels.tolist(), logits.tolist()), abs=1e-2)
    assert results["log_loss"] == pytest.approx(metrics.log_loss(labels, logits), abs=1e-5)
    assert metrics.log_loss(labels, logits) == pytest.approx(
        reference.log_loss(labels.tolist(), logits.tolist()), abs=1e-9
    )


def test_sample_weights_weigh_the_metrics_and_the_loss(
    trained: tuple[Ranker, dict[str, list[float]], Batch, np.ndarray],
) -> None:
    model, _, batch, labels = trained
    weights = np.random.default_rng(1).uniform(0.0, 2.0, 600).astype(np.float32)
    weights[:300] = 0.0
    results = model.evaluate(batch, labels, sample_weight=weights, batch_size=600, return_dict=True, verbose=0)
    logits = model.predict(batch, batch_size=600, verbose=0).tolist()
    exact = (labels.tolist(), logits, weights.tolist())
    assert results["auc"] == pytest.approx(reference.auc(*exact), abs=1e-2)
    assert results["log_loss"] == pytest.approx(reference.log_loss(*exact), abs=1e-5)
    # Keras's loss divides by the rows, not by their weights.
    expected = reference.log_loss(*exact) * weights.sum() / 600
    assert results["loss"] == pytest.approx(expected, abs=1e-5)


def test_rows_of_weight_zero_do_not_train(features: Features, make_batch: MakeBatch) -> None:
    model = _ranker(features, "hamming")
    model.compile(tf.keras.optimizers.SGD(1.0), run_eagerly=True)
    batch = make_batch(features, 4)
    # Row 3 alone holds item 41, and weighs nothing.
    for name in ("item_id", "history_item_id"):
        batch[name][:] = np.minimum(batch[name], 30)
    batch["item_id"][3] = 41
    table = model.embeddings["item_id"].embeddings
    before = table.numpy()
    labels = np.array([0.0, 1.0, 0.0, 1.0], np.float32)
    model.train_on_batch(batch, labels, sample_weight=np.array([1.0, 1.0, 1.0, 0.0], np.float32))
    np.testing.assert_array_equal(table[41], before[41])
    assert (table[batch["item_id"][0]].numpy() != before[batch["item_id"][0]]).any()
    model.train_on_batch(batch, labels)
    assert (table[41].numpy() != before[41]).any()


def test_embeddings_regularizer_reaches_every_table(features: Features, make_batch: MakeBatch) -> None:
    model = _ranker(features, "hamming", embeddings_regularizer=tf.keras.regularizers.L2(0.5))
    assert set(model.embeddings) == {"item_id", "category_id", "action", "user_id", "page"}
    expected = sum(0.5 * np.sum(layer.embeddings.numpy() ** 2) for layer in model.embeddings.values())
    model(make_batch(features))
    assert float(tf.add_n(model.losses)) == pytest.approx(expected, rel=1e-5)


def test_default_optimiser_gives_adagrad_to_embeddings_and_adam_to_the_rest(
    trained: tuple[Ranker, dict[str, list[float]], Batch, np.ndarray],
) -> None:
    model, _, _, _ = trained
    adagrad, adam = model.optimizer.optimizers
    assert isinstance(adagrad, tf.keras.optimizers.Adagrad)
    assert isinstance(adam, tf.keras.optimizers.Adam)
    # An accumulator for each table; two moments for each other weight; iterations and learning rate.
    tables = [layer.embeddings for layer in model.embeddings.values()]
    shapes = sorted(tuple(table.shape) for table in tables)
    assert sorted(tuple(v.shape) for v in adagrad.variables() if v.shape.rank) == shapes
    others = [tuple(v.shape) for v in model.trainable_variables if all(v is not table for table in tables)]
    assert sorted(tuple(v.shape) for v in adam.variables() if v.shape.rank) == sorted(2 * others)


# Configuration and saving

ARGUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "defaults": lambda: {"interests": [RecentInterest()]},
    "everything": lambda: {
        "interests": [
            RecentInterest(3, attention=ActivationUnit((3,)), name="short"),
            ETAInterest(
                3, num_bits=5, seed=2, similarity_bias=True, trainable_planes=True, num_heads=3, key_dim=5, name="long"
            ),
            FullInterest(own_embeddings=True),
        ],
        "hidden_units": [7, 6],
        "activation": Dice,
        "cross_layers": 2,
        "embeddings_regularizer": tf.keras.regularizers.L2(0.25),
        "retrieval_task": RetrievalTask(0.5),
        "name": "everything",
    },
    "activation units": lambda: {
        "interests": [FullInterest(attention=ActivationUnit((3, 2)))],
        "activation": "tanh",
        "embeddings_regularizer": "l1",
    },
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_config_makes_the_same_model(features: Features, make_batch: MakeBatch, name: str) -> None:
    model = Ranker(features, **ARGUMENTS[name]())
    config = json.loads(json.dumps(tf.keras.utils.serialize_keras_object(model)))
    assert config["registered_name"] == "keras_eta>Ranker"
    twin = tf.keras.utils.deserialize_keras_object(config)
    assert type(twin) is Ranker
    assert json.dumps(twin.get_config()) == json.dumps(model.get_config())
    assert twin.features == features
    batch = make_batch(features)
    model(batch)
    twin(batch)
    assert [weight.shape for weight in twin.weights] == [weight.shape for weight in model.weights]
    twin.set_weights(model.get_weights())
    np.testing.assert_array_equal(twin(batch), model(batch))
    assert [float(loss) for loss in twin.losses] == [float(loss) for loss in model.losses]


def test_config_of_eta_makes_the_same_model(features: Features) -> None:
    arguments: dict[str, Any] = {
        "top_k": 3,
        "num_bits": 5,
        "seed": 2,
        "similarity_bias": True,
        "trainable_planes": True,
        "planes_period": 5,
        "cosine": True,
        "distance_edges": (0, 3),
    }
    model = paper_eta(features, **arguments, short_history_length=2)
    assert model.interests[0].cosine
    twin = tf.keras.utils.deserialize_keras_object(tf.keras.utils.serialize_keras_object(model))
    assert type(twin) is ETA
    assert twin.get_config() == model.get_config()
    assert {name: getattr(twin.eta, name) for name in arguments} == arguments


def test_defaults_are_those_of_the_design(features: Features) -> None:
    model = paper_eta(features)
    assert (model.eta.top_k, model.eta.num_bits, model.short_history_length) == (48, 64, 16)
    assert Features(item_id=Feature("item_id")).max_history_length == 512
    assert Feature("item_id").embedding_dim == 32


@pytest.mark.parametrize("save_format", ["h5", "tf"])
def test_weights_travel_by_file(
    models: dict[str, Ranker], features: Features, make_batch: MakeBatch, save_format: str, tmp_path: Path
) -> None:
    model, batch = models["hamming with bias"], make_batch(features)
    path = str(tmp_path / ("weights.h5" if save_format == "h5" else "weights"))
    model.save_weights(path, save_format=save_format)
    twin = Ranker.from_config(model.get_config())
    twin.build()
    assert (twin(batch).numpy() != model(batch).numpy()).all()
    twin.load_weights(path)
    np.testing.assert_array_equal(twin(batch), model(batch))


@pytest.mark.slow
def test_saved_model_reloads_with_its_vocabularies_and_trains_on(lookup: FeatureLookup, tmp_path: Path) -> None:
    model = paper_eta(lookup=lookup, top_k=2, num_bits=16, hidden_units=(4,), activation=Dice)
    model.compile("adam", run_eagerly=True)
    labels = np.array([0.0, 1.0], np.float32)
    model.fit(lookup(_raw()), labels, verbose=0)
    model.save(str(tmp_path / "model"))
    reloaded = tf.keras.models.load_model(str(tmp_path / "model"))
    assert isinstance(reloaded, ETA)
    assert isinstance(reloaded.lookup, FeatureLookup)
    assert reloaded.features == lookup.features
    np.testing.assert_allclose(reloaded(reloaded.lookup(_raw())), model(lookup(_raw())), rtol=1e-6)
    assert isinstance(reloaded.optimizer, tf.keras.optimizers.Adam)
    before = reloaded(lookup(_raw())).numpy()
    reloaded.fit(lookup(_raw()), labels, verbose=0)
    assert (reloaded(lookup(_raw())).numpy() != before).all()


@pytest.mark.parametrize("built_by", ["hand", "call"])
def test_native_keras_format_reloads(features: Features, make_batch: MakeBatch, built_by: str, tmp_path: Path) -> None:
    model = Ranker(features, interests=[RecentInterest(), ETAInterest(TOP_K, num_bits=16)], hidden_units=(6,))
    batch, path = make_batch(features), str(tmp_path / "model.keras")
    if built_by == "hand":
        model.build()
    model(batch)
    model.save(path)
    np.testing.assert_array_equal(tf.keras.models.load_model(path)(batch), model(batch))


COMPILED: dict[str, Callable[[], Any]] = {
    "name": lambda: "adagrad",
    "adam": lambda: tf.keras.optimizers.Adam(0.01),
    "loss scaling": lambda: tf.keras.mixed_precision.LossScaleOptimizer(tf.keras.optimizers.Adam(0.01)),
}


@pytest.mark.parametrize("travel", ["file", "pickle"])
@pytest.mark.parametrize("name", COMPILED)
def test_native_keras_format_reloads_compiled(
    features: Features, make_batch: MakeBatch, name: str, travel: str, tmp_path: Path
) -> None:
    model = _ranker(features, "hamming")
    model.compile(COMPILED[name](), run_eagerly=True)
    batch, labels = make_batch(features), np.array([0, 1] * 4, np.float32)
    model.train_on_batch(batch, labels)
    if travel == "file":
        model.save(str(tmp_path / "model.keras"))
        twin = tf.keras.models.load_model(str(tmp_path / "model.keras"))
    else:
        twin = pickle.loads(pickle.dumps(model))
    assert type(twin.optimizer) is type(model.optimizer)
    assert twin.run_eagerly
    assert twin.optimizer.get_config() == model.optimizer.get_config()
    # It trains on as the original does, which takes the optimiser's state.
    assert int(twin.optimizer.iterations) == 1
    for one in (model, twin):
        one.train_on_batch(batch, labels)
    for ours, theirs in zip(twin.trainable_variables, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", COMPILED)
def test_native_keras_format_of_an_untrained_model_reloads_compiled(
    features: Features, name: str, tmp_path: Path
) -> None:
    model = _ranker(features, "hamming")
    model.compile(COMPILED[name](), steps_per_execution=3)
    model.save(str(tmp_path / "model.keras"))
    twin = tf.keras.models.load_model(str(tmp_path / "model.keras"))
    assert twin.optimizer.get_config() == model.optimizer.get_config()
    assert int(twin.optimizer.iterations) == 0
    assert twin.get_compile_config()["steps_per_execution"] == 3


COMPOSITES: dict[str, Callable[[Ranker], Any]] = {
    "default": lambda model: model.default_optimizer(),
    "loss scaling": lambda model: tf.keras.mixed_precision.LossScaleOptimizer(model.default_optimizer()),
}


@pytest.mark.parametrize("save_format", ["keras", pytest.param("tf", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", COMPOSITES)
def test_optimiser_without_a_configuration_is_left_out_of_a_file(
    features: Features, make_batch: MakeBatch, name: str, save_format: str, tmp_path: Path
) -> None:
    model = _ranker(features, "hamming")
    model.compile(COMPOSITES[name](model))
    path = str(tmp_path / ("model.keras" if save_format == "keras" else "model"))
    model.save(path)
    twin = tf.keras.models.load_model(path)
    assert twin.optimizer is None
    batch = make_batch(features)
    np.testing.assert_allclose(twin(batch), model(batch), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_model_that_was_only_built_is_saved(aged_features: Features, make_batch: MakeBatch, tmp_path: Path) -> None:
    model = _ranker(aged_features, "hamming with bias")
    model.save(str(tmp_path / "model"))
    reloaded, plain = (load(str(tmp_path / "model")) for load in (tf.keras.models.load_model, tf.saved_model.load))
    # Of any number of rows and length.
    for rows, length in ((4, 12), (2, 3)):
        batch = _aged(make_batch(aged_features, rows, length))
        np.testing.assert_allclose(reloaded(batch), model(batch), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(plain(batch), model(batch), rtol=1e-5, atol=1e-6)


# Refusals


def _refused(features: Features) -> list[tuple[dict[str, Any], type[Exception], str]]:
    return [
        (
            {"features": None},
            ValueError,
            "Give `features` with vocabulary sizes, or an adapted `lookup`. Received neither.",
        ),
        ({"features": "item_id"}, TypeError, "`features` must be a keras_eta.Features. Received: features='item_id'"),
        (
            {"cross_layers": True},
            ValueError,
            "`cross_layers` must be an integer of at least 0. Received: cross_layers=True",
        ),
        ({"hidden_units": ()}, ValueError, "`hidden_units` must be positive integers. Received: hidden_units=()"),
        (
            {"hidden_units": (8, 0)},
            ValueError,
            "`hidden_units` must be positive integers. Received: hidden_units=(8, 0)",
        ),
        (
            {"hidden_units": (8, True)},
            ValueError,
            "`hidden_units` must be positive integers. Received: hidden_units=(8, True)",
        ),
        (
            {"features": dataclasses.replace(features, item_id=Feature("item_id"))},
            ValueError,
            "The vocabulary size of feature 'item_id' is not known. Set `vocabulary_size`, or adapt a `FeatureLookup` "
            "and use its `features`.",
        ),
    ]


@pytest.mark.parametrize("case", range(7))
def test_ranker_refuses_a_bad_argument(features: Features, case: int) -> None:
    arguments, error, message = _refused(features)[case]
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        Ranker(**{"features": features, "interests": [RecentInterest()], **arguments})


def test_ranker_refuses_an_unadapted_lookup(features: Features) -> None:
    with pytest.raises(ValueError, match=r"^The vocabulary of feature 'user_id' is empty\. Call `adapt` first\.$"):
        Ranker(lookup=FeatureLookup(features), interests=[RecentInterest()])


def test_ranker_refuses_a_lookup_that_is_none() -> None:
    with pytest.raises(TypeError, match="`lookup` must be"):
        Ranker(lookup="item_id", interests=[RecentInterest()])  # type: ignore[arg-type]


def test_ranker_refuses_an_activation_that_is_none(features: Features) -> None:
    with pytest.raises((TypeError, ValueError), match="activation"):
        Ranker(features, interests=[RecentInterest()], activation="no such activation")
    with pytest.raises((TypeError, ValueError), match="activation"):
        Ranker(features, interests=[RecentInterest()], activation=3)  # type: ignore[arg-type]


class _Unregistered(tf.keras.layers.Layer):
    pass


@tf.keras.utils.register_keras_serializable(package="tests")
class _Doubled(tf.keras.layers.Layer):
    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return 2.0 * inputs


@pytest.mark.parametrize("activation", [_Doubled, tf.keras.layers.LeakyReLU, tf.keras.layers.ReLU, "leaky_relu"])
def test_activation_is_restored(features: Features, activation: Any) -> None:
    model = _ranker(features, activation=activation)
    twin = Ranker.from_config(json.loads(json.dumps(model.get_config())))
    assert twin.activation == activation
    assert [type(layer) for layer in twin.mlp.layers] == [type(layer) for layer in model.mlp.layers]


def test_ranker_refuses_an_activation_that_a_file_could_not_restore(features: Features) -> None:
    message = (
        "`activation` must be a layer of Keras or registered by `tf.keras.utils.register_keras_serializable`, to be "
        f"restored with a saved model. Received: activation={_Unregistered!r}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Ranker(features, interests=[RecentInterest()], activation=_Unregistered)
    message = f"`activation` must be a name or a class of layers. Received: activation={int!r}"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        Ranker(features, interests=[RecentInterest()], activation=int)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "`top_k` must be a positive integer. Received: top_k=0"),
        ({"num_bits": 0}, "`num_bits` must be a positive integer. Received: num_bits=0"),
        (
            {"trainable_planes": True},
            "`trainable_planes` needs `similarity_bias=True`: no gradient reaches the planes otherwise. "
            "Received: trainable_planes=True, similarity_bias=False",
        ),
    ],
)
def test_eta_refuses_a_bad_argument(features: Features, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        paper_eta(features, **arguments)


def test_missing_column_is_named(models: dict[str, Ranker], make_batch: MakeBatch) -> None:
    batch = make_batch(models["none"].features)
    del batch["history_action"]
    with pytest.raises((KeyError, ValueError), match="history_action"):
        models["none"](batch)
