"""The checks that every interest unit must pass: one row of `test_units.UNITS` per unit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import Age, Feature, Features, Ranker, Sequence
from keras_eta.columns import HISTORY, HISTORY_AGE, HISTORY_LENGTH
from keras_eta.interest import Interest, InterestUnit

FEATURES = Features(
    item_id=Feature("item_id", vocabulary_size=30, embedding_dim=8),
    item_attributes=(Feature("category_id", vocabulary_size=3, embedding_dim=4), Feature("price", "float32")),
    behaviour_attributes=(Feature("action", vocabulary_size=3, embedding_dim=2), Feature("dwell", "float32")),
    user=(Feature("user_id", vocabulary_size=5, embedding_dim=3),),
    age=Age((10, 100), embedding_dim=3),
    max_history_length=16,
)
# The same, for units that read clusters of behaviours.
CLUSTERED = dataclasses.replace(
    FEATURES,
    sequences=(Sequence("clusters", (Feature("size", "float32"), *FEATURES.behaviour_attributes), max_length=16),),
)
CANDIDATES = 4
# What columns of behaviours begin with.
BEHAVIOURS = ("history_", "clusters_")

Batch = dict[str, tf.Tensor]


class Row(NamedTuple):
    """One candidate and the real behaviours of one user, as plain arrays.

    Attributes:
        candidate: vectors [width] by feature name.
        candidate_ids: rows of tables, or values, by feature name.
        behaviours: vectors [n, width] by feature name, most recent first.
        behaviour_ids: rows of tables, or values, [n] by feature name.
    """

    candidate: dict[str, np.ndarray]
    candidate_ids: dict[str, Any]
    behaviours: dict[str, np.ndarray]
    behaviour_ids: dict[str, np.ndarray]

    @property
    def candidate_vector(self) -> np.ndarray:
        return np.concatenate(list(self.candidate.values()))

    @property
    def behaviour_vectors(self) -> np.ndarray:
        return np.concatenate(list(self.behaviours.values()), axis=-1)


class Expected(NamedTuple):
    """What a unit must give for a `Row`: K' positions in any order, their scores, and weights [H, K']."""

    vector: np.ndarray
    positions: list[int] | None = None
    scores: list[float] | None = None
    weights: np.ndarray | None = None


Reference = Callable[[Any, Row], Expected]


def features_of(unit: InterestUnit) -> Features:
    return FEATURES if unit.sequence == HISTORY else CLUSTERED


def make_ranker(unit: InterestUnit, features: Features | None = None) -> Ranker:
    """A ranker of one unit, built, with weights large enough for every part to matter."""
    model = Ranker(features or features_of(unit), interests=[unit], hidden_units=(4,))
    model.build()
    rng = np.random.default_rng(3)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(scale=0.6, size=variable.shape))
    model.interests[0].refresh()
    return model


def make_batch(
    length: int, lengths: list[int], ties: bool = False, seed: int = 0, features: Features = FEATURES
) -> Batch:
    """Encoded columns for `Ranker.score`, random at padding too; with `ties` all behaviours are alike but for age."""
    rng, rows = np.random.default_rng(seed), len(lengths)

    def column(feature: Feature, shape: list[int]) -> np.ndarray:
        if feature.name == "size":
            return rng.integers(1, 21, shape).astype(np.float32)
        if not feature.is_id:
            return rng.normal(size=shape).astype(np.float32)
        return rng.integers(1, feature.num_indices, shape).astype(np.int32)

    batch = {feature.name: column(feature, [rows]) for feature in features.user}
    batch |= {feature.name: column(feature, [rows, CANDIDATES]) for feature in features.item_features}
    for sequence in features.all_sequences:
        for feature in features.sequence_features(sequence):
            behaviours = column(feature, [rows, length])
            batch[sequence.column(feature.name)] = (
                behaviours[:, :1].repeat(length, 1) if ties and length else behaviours
            )
        batch[sequence.age] = np.sort(rng.integers(1, 4, [rows, length]), axis=-1).astype(np.int32)
        batch[sequence.length] = np.array(lengths, np.int32)
    return {name: tf.constant(values) for name, values in batch.items()}


# Name: history columns, real behaviours of each row, whether all behaviours are alike. K is 3 in the tests.
GRID: dict[str, tuple[int, list[int], bool]] = {
    "usual": (12, [12, 5, 9], False),
    "empty and one behaviour": (12, [0, 1, 3], False),
    "fewer columns than K": (2, [2, 1, 0], False),
    "no columns": (0, [0, 0, 0], False),
    "ties": (12, [12, 7, 2], True),
    "longer than the maximum": (20, [20, 17, 3], False),
    "all padded": (12, [0, 0, 0], False),
}


def _rows(model: Ranker, unit: InterestUnit, batch: Batch) -> list[list[Row]]:
    tables = {name: table.embeddings.numpy() for name, table in model.embeddings.items()}
    tables |= {
        name: table.embeddings.numpy()
        for embedding in model.own_embeddings.values()
        for name, table in embedding.tables.items()
    }

    def vectors(name: str, values: np.ndarray) -> np.ndarray:
        return tables[name][values] if name in tables else np.asarray(values, np.float32)[..., np.newaxis]

    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    features = features_of(unit)
    sequence = features.sequence(unit.sequence)
    names = {feature.name: sequence.column(feature.name) for feature in features.sequence_features(sequence)}
    names[HISTORY_AGE] = sequence.age
    result = []
    for row, length in enumerate(arrays[sequence.length]):
        length = min(int(length), sequence.max_length)
        ids = {name: arrays[column][row, :length] for name, column in names.items()}
        candidates = [
            {feature.name: arrays[feature.name][row, c] for feature in FEATURES.item_features}
            for c in range(CANDIDATES)
        ]
        result.append(
            [
                Row(
                    {name: vectors(name, value) for name, value in candidate.items()},
                    candidate,
                    {name: vectors(name, values) for name, values in ids.items()},
                    ids,
                )
                for candidate in candidates
            ]
        )
    return result


def check_unit(make: Callable[[], InterestUnit], reference: Reference, directory: Path) -> None:
    """Runs all checks of a unit.

    Args:
        make: makes the unit.
        reference: what it must compute, in loops.
        directory: to save in.
    """
    model = make_ranker(make())
    unit = model.interests[0]
    for name, (length, lengths, ties) in GRID.items():
        batch = make_batch(length, lengths, ties, features=model.features)
        interest = _interest(model, batch)
        _check_against_reference(interest, _rows(model, unit, batch), unit, reference, name)
        _check_one_by_one(model, batch, interest, name)
        _check_state(model, batch, interest, name)
    _check_padding_is_not_read(model)
    _check_runs_alike_everywhere(model)
    _check_configuration(unit)
    _check_gradients(model, unit)
    _check_saved(model, directory)


def _interest(model: Ranker, batch: Batch, **arguments: Any) -> Interest:
    return next(iter(model.score(batch, **arguments).interests.values()))


def _close(actual: Any, expected: Any, where: str, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), tolerance, tolerance, err_msg=where)


def _check_against_reference(
    interest: Interest, rows: list[list[Row]], unit: InterestUnit, reference: Reference, where: str
) -> None:
    # Arrays, since slices of tensors take their time.
    vector, weights, retrieved = tf.nest.map_structure(
        lambda x: x.numpy() if tf.is_tensor(x) else x, (interest.vector, interest.weights, interest.retrieved)
    )
    for r, candidates in enumerate(rows):
        for c, row in enumerate(candidates):
            expected = reference(unit, row)
            place = f"{where}, row {r}, candidate {c}"
            _close(vector[r, c], expected.vector, place)
            if expected.positions is None:
                assert retrieved is None, place
                continue
            found, positions = retrieved.mask[r, c], retrieved.positions[r, c]
            assert positions[~found].tolist() == [0] * int((~found).sum()), place
            assert sorted(positions[found].tolist()) == sorted(expected.positions), place
            order = [positions[found].tolist().index(position) for position in expected.positions]
            assert (unit.score_name is None) == (expected.scores is None) == (retrieved.scores is None), place
            if expected.scores is not None:
                _close(retrieved.scores[r, c][found][order], expected.scores, place)
            assert not weights[r, c][:, ~found].any(), place
            _close(weights[r, c][:, found][:, order], expected.weights, place)


def _check_one_by_one(model: Ranker, batch: Batch, interest: Interest, where: str) -> None:
    """Each candidate in a request of its own."""
    items = [feature.name for feature in FEATURES.item_features]
    requests = {name: tf.repeat(column, CANDIDATES, axis=0) for name, column in batch.items()}
    requests |= {name: tf.reshape(batch[name], [-1, 1]) for name in items}
    vectors = tf.reshape(_interest(model, requests).vector, interest.vector.shape)
    _close(vectors, interest.vector, f"{where}, one candidate per request")


def _check_state(model: Ranker, batch: Batch, interest: Interest, where: str) -> None:
    unit = model.interests[0]
    columns = model.embedding_of(unit).candidates(batch), model.embedding_of(unit).sequence(batch, unit.sequence)
    if not unit.state_names:
        message = f"^{type(unit).__name__} has no state that depends on the user alone.$"
        with pytest.raises(NotImplementedError, match=message):
            unit.user_state(columns[1])
        with pytest.raises(NotImplementedError, match=message):
            unit.from_state(columns[0], {})
        return
    state = unit.user_state(columns[1])
    assert tuple(state) == unit.state_names
    _close(unit.from_state(columns[0], state).vector, interest.vector, f"{where}, from the user's state")


def _check_padding_is_not_read(model: Ranker) -> None:
    batch, other = (make_batch(12, [4, 0, 1], seed=seed, features=model.features) for seed in (0, 1))
    real = tf.sequence_mask(batch[HISTORY_LENGTH], 12)
    spoilt = {
        name: tf.where(real, x, other[name]) if name.startswith(BEHAVIOURS) and x.shape.rank == 2 else x
        for name, x in batch.items()
    }
    _close(_interest(model, spoilt).vector, _interest(model, batch).vector, "other padding")


def _check_runs_alike_everywhere(model: Ranker) -> None:
    batch = make_batch(12, [12, 0, 5], features=model.features)
    expected = model.score(batch).logits
    assert np.any(expected.numpy())
    # A graph as it is, without XLA, is what `_check_saved` reloads.
    xla = tf.function(lambda inputs: model.score(inputs).logits, jit_compile=True)
    _close(xla(batch), expected, "XLA")
    _close(model.score(batch, jit_compile=True).logits, expected, "compiled search")
    if not any(isinstance(part, tf.keras.layers.BatchNormalization) for part in model.interests[0].submodules):
        _close(model.score(batch, training=True).logits, expected, "training")


def _check_configuration(unit: InterestUnit) -> None:
    config = json.loads(json.dumps(tf.keras.utils.serialize_keras_object(unit)))
    assert config["registered_name"].endswith(f">{type(unit).__name__}")
    twin = tf.keras.utils.deserialize_keras_object(config)
    assert type(twin) is type(unit)
    assert json.loads(json.dumps(twin.get_config())) == json.loads(json.dumps(unit.get_config()))


def _check_gradients(model: Ranker, unit: InterestUnit) -> None:
    batch = make_batch(12, [12, 9, 5], features=model.features)
    with tf.GradientTape() as tape:
        interest = _interest(model, batch, training=True)
        rng = np.random.default_rng(9)
        loss = tf.reduce_sum(interest.vector * rng.normal(size=interest.vector.shape))
        if interest.auxiliary_logits is not None:
            loss += tf.reduce_sum(interest.auxiliary_logits)
    tables = {id(table.embeddings) for table in model.embedding_of(unit).tables.values()}
    own = [variable for variable in unit.trainable_variables if id(variable) not in tables]
    # Of behaviours that only match, the ages are all that is looked up.
    read = HISTORY_AGE if interest.matches else "item_id"
    table = model.embedding_of(unit).tables[read].embeddings
    for variable, gradient in zip([*own, table], tape.gradient(loss, [*own, table]), strict=True):
        # A bias of keys shifts all logits of a head alike, so half of that vector has no effect and no gradient.
        assert gradient is not None, variable.name
        assert np.any(tf.convert_to_tensor(gradient).numpy()), variable.name


def _check_saved(model: Ranker, directory: Path) -> None:
    batch = make_batch(12, [12, 0, 5], features=model.features)
    expected = model.score(batch).logits
    native = str(directory / "model.keras")
    model.save(native)
    _close(tf.keras.models.load_model(native).score(batch).logits, expected, native, 1e-6)
    # Without the Keras model, as an export has it: Keras would trace every layer's call again.
    module = tf.Module()
    module.kept = [variable for variable in model.variables if isinstance(variable, tf.Variable)]
    module.logits = tf.function(lambda inputs: model.score(inputs).logits)
    module.logits.get_concrete_function({name: tf.TensorSpec(x.shape, x.dtype, name) for name, x in batch.items()})
    saved = str(directory / "model")
    tf.saved_model.save(module, saved)
    # A function alone does not keep its variables.
    reloaded = tf.saved_model.load(saved)
    _close(reloaded.logits(batch), expected, saved, 1e-6)
