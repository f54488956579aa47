"""Calibrators against plain loops and values worked by hand, and in rankers."""

from __future__ import annotations

import itertools
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import Feature, FeatureLookup, Features, Ranker, calibration
from keras_eta.calibration import Calibrator, IsotonicCalibrator, PlattCalibrator
from keras_eta.export import export_model
from keras_eta.interest import SDIM, RecentInterest
from keras_eta.metrics import auc

# 0.25 at -1, 0.75 at 1; with the targets 21/22 and 1/22: 3/11 and 8/11, log-odds of ln(8/3) at 1.
SYMMETRIC = np.repeat([-1.0, -1.0, 1.0, 1.0], [15, 5, 5, 15]), np.repeat([0, 1, 0, 1], [15, 5, 5, 15])
POINTS = IsotonicCalibrator([-2.0, -1.0, 0.0, 1.0], [0.1, 0.25, 0.25, 0.8])


def blocks(*positives: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits of 100 rows each at -2, -1, ..., with so many positive ones."""
    labels = np.concatenate([np.arange(100) < count for count in positives]).astype(int)
    return labels, np.repeat(np.arange(len(positives)) - 2.0, 100)


def noisy(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, float32, some of them equal, whose true log-odds are twice theirs less one."""
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(size=rows), 2).astype(np.float32)
    return logits, (rng.random(rows) < 1 / (1 + np.exp(1 - 2 * logits))).astype(int)


def platt_loop(labels: np.ndarray, logits: np.ndarray) -> tuple[float, float]:
    """Newton's method on Platt's cross-entropy, a row at a time."""
    positives = sum(labels)
    negatives = len(labels) - positives
    a, b = 0.0, 0.0
    for _ in range(50):
        gradient, hessian = np.zeros(2), np.zeros((2, 2))
        for label, logit in zip(labels, logits.tolist(), strict=True):
            target = (positives + 1) / (positives + 2) if label else 1 / (negatives + 2)
            p = 1 / (1 + math.exp(-a * logit - b))
            row = np.array([logit, 1.0])
            gradient += (p - target) * row
            hessian += p * (1 - p) * np.outer(row, row)
        a, b = np.array([a, b]) - np.linalg.solve(hessian, gradient)
    return a, b


def isotonic_loop(labels: np.ndarray, logits: np.ndarray, at: float) -> float:
    """Pools neighbours that fall, then interpolates between the ends of the blocks."""
    pools: list[list[Any]] = []
    for value in sorted(set(logits.tolist())):
        rows = [label for label, logit in zip(labels, logits.tolist(), strict=True) if logit == value]
        pools.append([value, value, sum(rows), len(rows)])
        while len(pools) > 1 and pools[-2][2] / pools[-2][3] >= pools[-1][2] / pools[-1][3]:
            _, last, positives, number = pools.pop()
            pools[-1][1:] = [last, pools[-1][2] + positives, pools[-1][3] + number]
    closest = 1 / (len(labels) + 2)
    points = [(x, min(max(p / n, closest), 1 - closest)) for first, last, p, n in pools for x in (first, last)]
    if at <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 < x1 and at <= x1:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return points[-1][1]


def test_platt_by_hand() -> None:
    logits, labels = SYMMETRIC
    fitted = calibration.fit(labels, logits)
    assert isinstance(fitted, PlattCalibrator)
    assert fitted.slope == pytest.approx(math.log(8 / 3), rel=1e-7)
    assert fitted.intercept == pytest.approx(0.0, abs=1e-7)
    # The same rows at 10 and 14: slope / 2 around 12.
    moved = calibration.fit(labels, 12 + 2 * logits)
    assert moved.get_config() == pytest.approx({"slope": math.log(8 / 3) / 2, "intercept": -6 * math.log(8 / 3)})
    np.testing.assert_allclose(fitted([-1.0, 0.0, 1.0]), [3 / 11, 0.5, 8 / 11], rtol=1e-6)
    np.testing.assert_allclose(PlattCalibrator(2.0, -1.0)([[0.5]]), [[0.5]])


def test_platt_equals_a_plain_loop() -> None:
    logits, labels = noisy(2_000, seed=1)
    fitted = calibration.fit(labels, logits)
    a, b = platt_loop(labels, logits)
    assert fitted.get_config() == pytest.approx({"slope": a, "intercept": b}, rel=1e-6)
    assert (a, b) == pytest.approx((2.0, -1.0), abs=0.2)
    # A constant is among the parameters: probabilities add up to the targets', which nearly are the positives.
    assert np.mean(fitted(logits)) == pytest.approx(labels.mean(), abs=1e-3)


def test_platt_of_separable_labels_is_finite() -> None:
    logits, labels = np.repeat([-1.0, 1.0], 20), np.repeat([0, 1], 20)
    np.testing.assert_allclose(calibration.fit(labels, logits)([-1.0, 1.0]), [1 / 22, 21 / 22], rtol=1e-5)


def test_isotonic_by_hand() -> None:
    fitted = calibration.fit(*blocks(10, 30, 20, 80), "isotonic")
    assert isinstance(fitted, IsotonicCalibrator)
    assert fitted.logits == (-2.0, -1.0, 0.0, 1.0)
    assert fitted.probabilities == pytest.approx((0.1, 0.25, 0.25, 0.8))
    at = [-9.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 9.0]
    np.testing.assert_allclose(fitted(at), [0.1, 0.1, 0.175, 0.25, 0.25, 0.25, 0.525, 0.8, 0.8], rtol=1e-6)


def test_isotonic_stays_off_zero_and_one() -> None:
    fitted = calibration.fit(*blocks(0, 50, 100), "isotonic")
    np.testing.assert_allclose(fitted([-3.0, -1.0, 3.0]), [1 / 302, 0.5, 301 / 302], rtol=1e-6)


def test_isotonic_equals_a_plain_loop() -> None:
    logits, labels = noisy(600, seed=2)
    fitted = calibration.fit(labels, logits, "isotonic")
    at = np.random.default_rng(0).normal(scale=2.0, size=200).astype(np.float32)
    at = np.concatenate([at, logits[:50]])
    np.testing.assert_allclose(fitted(at), [isotonic_loop(labels, logits, x) for x in at.tolist()], rtol=1e-5)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_order_never_changes(kind: str) -> None:
    logits, labels = noisy(3_000, seed=3)
    fitted = calibration.fit(labels, logits, kind)
    points = np.float32(fitted.get_config().get("logits", []))
    near = np.concatenate([points, np.nextafter(points, np.float32(9)), np.nextafter(points, np.float32(-9))])
    at = np.sort(np.concatenate([np.linspace(-6, 6, 10_001, dtype=np.float32), near]))
    for function in (fitted, tf.function(fitted, jit_compile=True)):
        steps = np.diff(function(tf.constant(at)))
        assert (steps >= 0).all()
        if kind == "platt":
            assert (np.diff(function(tf.linspace(-4.0, 4.0, 1_000))) > 0).all()
            assert auc(labels, function(logits)) == auc(labels, logits)
        else:
            # Blocks tie what was ordered.
            assert (steps == 0).any()


def test_rounding_at_the_end_of_a_segment_reverses_nothing() -> None:
    # In float32, 0.22 + (0.8 - 0.22) is above 0.8.
    calibrator = IsotonicCalibrator([-100.0, 1.0, 2.0], [0.22, 0.8, 0.8])
    below = np.nextafter(np.float32(1), np.float32(0))
    np.testing.assert_array_equal(calibrator([below, 1.0, 2.0]), np.full(3, 0.8, np.float32))


@pytest.mark.parametrize("calibrator", [PlattCalibrator(1.5, -0.3), POINTS], ids=["platt", "isotonic"])
def test_eager_graph_xla_and_reloaded_are_one(calibrator: Calibrator) -> None:
    logits = tf.random.stateless_normal([5, 7], [1, 2], stddev=3.0)
    expected = calibrator(logits).numpy()
    assert expected.dtype == np.float32
    again = tf.keras.utils.deserialize_keras_object(
        json.loads(json.dumps(tf.keras.utils.serialize_keras_object(calibrator)))
    )
    assert type(again) is type(calibrator)
    np.testing.assert_array_equal(tf.function(calibrator)(logits), expected)
    np.testing.assert_array_equal(again(logits), expected)
    np.testing.assert_allclose(tf.function(calibrator, jit_compile=True)(logits), expected, rtol=1e-6)
    assert calibrator(tf.zeros([3, 0])).shape == (3, 0)


@pytest.mark.parametrize("calibrator", [PlattCalibrator(1.5, -0.3), POINTS], ids=["platt", "isotonic"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_logit_that_is_no_number_has_no_probability(calibrator: Calibrator, jit_compile: bool) -> None:
    function = tf.function(calibrator, jit_compile=jit_compile)
    np.testing.assert_array_equal(np.isnan(function(tf.constant([math.nan, 0.0]))), [True, False])
    assert np.isfinite(function(tf.constant([-math.inf, math.inf]))).all()


def test_half_precision_logits_give_float32() -> None:
    for calibrator in (PlattCalibrator(1.0, 0.0), POINTS):
        assert calibrator(tf.constant([0.5], tf.float16)).dtype == tf.float32


ROWS = [0] * 20 + [1] * 20


@pytest.mark.parametrize(
    ("labels", "logits", "kind", "message"),
    [
        (ROWS, ROWS, "beta", r"`kind` must be one of \('platt', 'isotonic'\)\. Received: kind='beta'"),
        ([0, 1, 2], [0, 1, 2], "platt", r"`labels` must be 0 or 1\. Received: \[2\.0\]"),
        (ROWS, [0.0] * 39, "platt", "`labels` and scores must be equally long. Received: 40 and 39"),
        (ROWS, [math.inf, *ROWS[1:]], "platt", r"`logits` must be finite\. Received: \[inf\] in 1 of 40 rows"),
        (ROWS, [math.nan, *ROWS[1:]], "platt", r"`logits` must be finite\. Received: \[nan\] in 1 of 40 rows"),
        (
            [1] * 40,
            ROWS,
            "platt",
            "at least 10 rows of 0 and as many of 1 for kind='platt'. Received: 0 rows of 0 and 40",
        ),
        (ROWS[:29], ROWS[:29], "platt", "Received: 20 rows of 0 and 9 of 1"),
        (ROWS, ROWS, "isotonic", "at least 100 rows of 0 and as many of 1 for kind='isotonic'"),
        (ROWS, [3.0] * 40, "platt", r"higher for label 1 .* Received: 40 logits that are all 3\.0"),
        (ROWS, ROWS[::-1], "platt", r"higher for label 1 .* Received: logits that fit best with a slope of -"),
        (ROWS * 5, ROWS[::-1] * 5, "isotonic", r"higher for label 1 .* Received: logits for which a constant 0\.5"),
    ],
)
def test_fit_refuses(labels: Any, logits: Any, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibration.fit(labels, logits, kind)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PlattCalibrator(0.0, 1.0), r"`slope` must be a positive number\. Received: slope=0\.0"),
        (lambda: PlattCalibrator(1.0, math.nan), r"`intercept` must be a finite number\. Received: intercept=nan"),
        (lambda: IsotonicCalibrator([1.0], [0.5]), r"two points or more, as many of each\. Received: 1 and 1"),
        (lambda: IsotonicCalibrator([1.0, 2.0], [0.5]), r"as many of each\. Received: 2 and 1"),
        (lambda: IsotonicCalibrator([1.0, math.inf], [0.1, 0.5]), r"`logits` must hold finite numbers"),
        (lambda: IsotonicCalibrator([1.0, 1.0 + 1e-12], [0.1, 0.5]), r"`logits` must ascend, as float32 too"),
        (lambda: IsotonicCalibrator([1.0, 2.0, 3.0], [0.1, 0.5, 0.4]), r"never fall, and rise somewhere"),
        (lambda: IsotonicCalibrator([1.0, 2.0], [0.5, 0.5]), r"never fall, and rise somewhere"),
        (lambda: IsotonicCalibrator([1.0, 2.0], [0.5, 1.5]), r"must lie between 0 and 1"),
    ],
)
def test_constructors_refuse(make: Callable[[], Calibrator], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


FEATURES = Features(
    item_id=Feature("item_id", embedding_dim=4), user=(Feature("user_id", embedding_dim=2),), max_history_length=4
)
COLUMNS = {
    "user_id": np.array([0, 1, 2]),
    "item_id": np.array([4, 5, 6]),
    "history_item_id": np.array([[4, 5, 6, 7]] * 3),
    "history_length": np.array([0, 2, 4]),
}


def make_ranker(**changes: Any) -> Ranker:
    tf.keras.utils.set_random_seed(1)
    lookup = FeatureLookup(FEATURES)
    lookup.adapt({"item_id": np.arange(10), "user_id": np.arange(3)})
    model = Ranker(lookup=lookup, interests=[RecentInterest(2), SDIM()], hidden_units=(4,), **changes)
    model.build()
    for variable in model.trainable_variables:
        variable.assign(tf.random.normal(variable.shape))
    return model


def encoded(model: Ranker) -> Any:
    assert model.lookup is not None
    return model.lookup({name: tf.constant(x) for name, x in COLUMNS.items()})


def as_example(row: int) -> bytes:
    example = tf.train.Example()
    for name, values in COLUMNS.items():
        value = values[row][: COLUMNS["history_length"][row]] if name == "history_item_id" else [values[row]]
        example.features.feature[name].int64_list.value.extend(value)
    return example.SerializeToString()


@pytest.mark.parametrize("calibrator", [PlattCalibrator(0.5, -2.0), POINTS], ids=["platt", "isotonic"])
def test_every_probability_of_an_export_is_calibrated(tmp_path: Path, calibrator: Calibrator) -> None:
    model = make_ranker()
    logits = model(encoded(model)).numpy()
    plain = tf.sigmoid(logits).numpy()
    np.testing.assert_array_equal(model.probabilities(logits), plain)
    model.calibrator = calibrator
    np.testing.assert_array_equal(model(encoded(model)), logits)
    expected = calibrator(logits).numpy()
    assert np.abs(expected - plain).min() > 1e-3
    np.testing.assert_array_equal(model.probabilities(logits), expected)

    export = tf.saved_model.load(str(export_model(model, tmp_path)))
    signatures = export.signatures
    rows = {name: tf.constant(x) for name, x in COLUMNS.items()}
    of_one_candidate = {**rows, "item_id": rows["item_id"][:, tf.newaxis]}
    history = {name: rows[name] for name in ("history_item_id", "history_length")}
    states = signatures["user_state"](**history)
    answers = {
        "serving_default": signatures["serving_default"](**rows),
        "rank": signatures["rank"](**of_one_candidate),
        "explain": signatures["explain"](**of_one_candidate),
        "examples": signatures["examples"](examples=tf.constant([as_example(row) for row in range(3)])),
        "rank_from_state": signatures["rank_from_state"](**of_one_candidate, **states),
    }
    assert answers.keys() | {"user_state"} == set(signatures)
    for name, answer in answers.items():
        np.testing.assert_allclose(np.ravel(answer["probability"]), expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("way", ["keras", "saved_model", "pickle", "config"])
def test_a_calibrator_travels_with_its_model(tmp_path: Path, way: str) -> None:
    model = make_ranker(calibrator=POINTS)
    if way == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    elif way == "config":
        twin = Ranker.from_config(json.loads(json.dumps(model.get_config())))
    else:
        path = str(tmp_path / ("model.keras" if way == "keras" else "model"))
        model.save(path)
        twin = tf.keras.models.load_model(path)
    assert isinstance(twin.calibrator, IsotonicCalibrator)
    assert twin.calibrator.get_config() == POINTS.get_config()
    if way != "config":
        logits = model(encoded(model))
        np.testing.assert_array_equal(twin.probabilities(twin(encoded(model))), POINTS(logits))


def test_a_calibrated_model_is_not_trained_and_checkpoints_do_not_know_the_calibrator(tmp_path: Path) -> None:
    model = make_ranker(calibrator=POINTS)
    model.compile()
    data = tf.data.Dataset.from_tensors((encoded(model), tf.constant([0, 1, 0])))
    with pytest.raises(ValueError, match=r"Set `model\.calibrator = None` before.*Received: .* of class Isotonic"):
        model.fit(data)
    model.save_weights(str(tmp_path / "weights"))
    plain = make_ranker()
    plain.load_weights(str(tmp_path / "weights")).assert_existing_objects_matched()
    assert plain.calibrator is None
    with pytest.raises(TypeError, match=r"`calibrator` must be a Calibrator or None\. Received: calibrator='platt'"):
        model.calibrator = "platt"  # type: ignore[assignment]
    assert model.calibrator is POINTS
