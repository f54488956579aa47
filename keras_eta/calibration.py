"""Calibration: from the log-odds of a ranker to probabilities that are click rates.

Sampled negatives, warm starts and early stopping leave a ranker whose order is right and whose probabilities are not
click rates:

    logits = model.predict(validation)
    model.calibrator = keras_eta.calibration.fit(labels, logits)
    export_model(model, "models/eta")  # every `probability` is calibrated
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_eta.metrics import checked_labels_and_scores
from keras_eta.validation import is_number

# The largest float32 below 1 is 1 - _CLOSEST.
_CLOSEST = 2.0**-24


class Calibrator(abc.ABC):
    """A function that never falls, from logits to probabilities; `fit` learns one from data.

    It holds numbers and no variables: checkpoints and warm starts do not know it, the ranker's configuration does.

    Call arguments:
        logits: float of any shape, before the sigmoid.

    Returns:
        float32 probabilities of the same shape; NaN where the logit is.
    """

    kind: ClassVar[str]
    # Rows that each label must have.
    min_rows: ClassVar[int]

    @classmethod
    @abc.abstractmethod
    def of_rows(cls, labels: np.ndarray, logits: np.ndarray) -> Calibrator:
        """The calibrator of labels and logits, float64 [n], which `fit` has checked."""

    @abc.abstractmethod
    def __call__(self, logits: Any) -> tf.Tensor:
        """Probabilities of logits."""

    @abc.abstractmethod
    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, as JSON holds them."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Calibrator:
        """The calibrator of a configuration."""
        return cls(**config)


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class PlattCalibrator(Calibrator):
    """sigmoid(slope * logit + intercept). Keeps the order of logits, but for ties where rounding makes them equal.

    `fit` finds the two numbers by maximum likelihood, with the targets (n1 + 1) / (n1 + 2) and 1 / (n0 + 2)
    in place of 1 and 0, of n1 positive and n0 negative rows, which keep the slope finite where labels are separable.

    Args:
        slope: positive.
        intercept: a number.

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        Platt, "Probabilistic Outputs for Support Vector Machines", 1999, Section 2.2.
    """

    kind = "platt"
    min_rows = 10

    def __init__(self, slope: float, intercept: float) -> None:
        if not (is_number(slope) and slope > 0):
            raise ValueError(f"`slope` must be a positive number. Received: slope={slope!r}")
        if not is_number(intercept):
            raise ValueError(f"`intercept` must be a finite number. Received: intercept={intercept!r}")
        self.slope = slope
        self.intercept = intercept

    @classmethod
    def of_rows(cls, labels: np.ndarray, logits: np.ndarray) -> PlattCalibrator:
        from sklearn.linear_model import LogisticRegression

        positives = labels.sum()
        target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))
        center, scale = logits.mean(), logits.std()
        if not scale:
            raise _no_order(f"{len(logits)} logits that are all {logits[0]}")
        columns = ((logits - center) / scale)[:, np.newaxis]
        # A row of target t is one of label 1 and weight t, and one of label 0 and weight 1 - t.
        regression = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-9)
        regression.fit(
            np.concatenate([columns, columns]),
            np.repeat([1, 0], len(logits)),
            sample_weight=np.concatenate([target, 1 - target]),
        )
        slope = float(regression.coef_[0, 0]) / scale
        if slope <= 0:
            raise _no_order(f"logits that fit best with a slope of {slope:.3g}")
        return cls(float(slope), float(regression.intercept_[0] - slope * center))

    def __call__(self, logits: Any) -> tf.Tensor:
        return tf.sigmoid(self.slope * tf.cast(logits, tf.float32) + self.intercept)

    def get_config(self) -> dict[str, Any]:
        return {"slope": self.slope, "intercept": self.intercept}


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class IsotonicCalibrator(Calibrator):
    """Linear between points (logit, probability) that never fall, and constant before the first and after the last.

    `fit` takes the points of `sklearn.isotonic.IsotonicRegression`, of all functions that never fall the one
    with the least squared error. It is flat over blocks of logits, and so ties what the ranker orders: AUC and the
    order of an answer can get worse. Probabilities stay within 1 / (n + 2) of 0 and 1, of n rows.

    Args:
        logits: of the points, ascending.
        probabilities: of the points, from 0 to 1, none below the one before, and the last above the first.

    Raises:
        ValueError: if the numbers of points differ or are below 2, or a value is out of its range or order.
    """

    kind = "isotonic"
    min_rows = 100

    def __init__(self, logits: Sequence[float], probabilities: Sequence[float]) -> None:
        if len(logits) != len(probabilities) or len(logits) < 2:
            raise ValueError(
                "`logits` and `probabilities` must hold two points or more, as many of each. "
                f"Received: {len(logits)} and {len(probabilities)}"
            )
        for name, values in (("logits", logits), ("probabilities", probabilities)):
            if not all(map(is_number, values)):
                raise ValueError(f"`{name}` must hold finite numbers. Received: {name}={list(values)}")
        steps = np.diff(np.asarray(logits, np.float32))
        if not (np.isfinite(steps) & (steps > 0)).all():
            raise ValueError(f"`logits` must ascend, as float32 too. Received: logits={list(logits)}")
        ordered = (np.diff(probabilities) >= 0).all() and probabilities[0] < probabilities[-1]
        if not (ordered and probabilities[0] >= 0 and probabilities[-1] <= 1):
            raise ValueError(
                "`probabilities` must lie between 0 and 1, never fall, and rise somewhere. "
                f"Received: probabilities={list(probabilities)}"
            )
        self.logits = tuple(logits)
        self.probabilities = tuple(probabilities)

    @classmethod
    def of_rows(cls, labels: np.ndarray, logits: np.ndarray) -> IsotonicCalibrator:
        from sklearn.isotonic import IsotonicRegression

        closest = max(1 / (len(labels) + 2), _CLOSEST)
        regression = IsotonicRegression(y_min=closest, y_max=1 - closest)
        # As float32, which it will read: points that only float64 tells apart are one.
        regression.fit(logits.astype(np.float32).astype(np.float64), labels)
        points, probabilities = regression.X_thresholds_, regression.y_thresholds_
        if len(points) < 2 or probabilities[0] == probabilities[-1]:
            raise _no_order(f"logits for which a constant {probabilities[0]:.3g} fits best")
        return cls(points.tolist(), probabilities.tolist())

    def __call__(self, logits: Any) -> tf.Tensor:
        logits = tf.cast(logits, tf.float32)
        points, probabilities = np.asarray(self.logits, np.float32), np.asarray(self.probabilities, np.float32)
        x = tf.reshape(tf.clip_by_value(logits, points[0], points[-1]), [-1])
        # Of the segment that a logit lies in; the last point belongs to the segment before it.
        # Not `tf.searchsorted`, which takes no empty tensor.
        later = tf.raw_ops.UpperBound(sorted_inputs=points[np.newaxis], values=x[tf.newaxis])[0]
        start = tf.minimum(later, len(points) - 1) - 1
        share = (x - tf.gather(points, start)) / tf.gather(np.diff(points), start)
        risen = tf.gather(probabilities, start) + share * tf.gather(np.diff(probabilities), start)
        # Rounding must not lift the end of a segment above the start of the next.
        result = tf.reshape(tf.minimum(risen, tf.gather(probabilities[1:], start)), tf.shape(logits))
        # XLA's minimum and gather take NaN for a number.
        return tf.where(tf.math.is_nan(logits), math.nan, result)

    def get_config(self) -> dict[str, Any]:
        return {"logits": list(self.logits), "probabilities": list(self.probabilities)}


KINDS: dict[str, type[Calibrator]] = {cls.kind: cls for cls in (PlattCalibrator, IsotonicCalibrator)}


def fit(labels: npt.ArrayLike, logits: npt.ArrayLike, kind: str = "platt") -> Calibrator:
    """The calibrator of a kind that fits the data best.

    Args:
        labels: [n], 0 or 1.
        logits: [n], as `model.predict` gives them, of rows that the model was not trained on.
        kind: `"platt"` (`PlattCalibrator`), two numbers, which 10 rows of each label suffice for, or `"isotonic"`
            (`IsotonicCalibrator`), any curve that never falls, for which each label needs 100 rows or more.

    Raises:
        ValueError: if `kind` is another, the lengths differ, a label is neither 0 nor 1, a logit is not finite, a label
            has too few rows, or the logits order rows no better than chance.
    """
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {tuple(KINDS)}. Received: kind={kind!r}")
    logits = np.asarray(logits, np.float64).ravel()
    wrong = logits[~np.isfinite(logits)]
    if wrong.size:
        raise ValueError(
            f"`logits` must be finite. Received: {wrong[:3].tolist()} in {wrong.size} of {logits.size} rows"
        )
    labels, logits = checked_labels_and_scores(labels, logits)
    positives, least = int(labels.sum()), KINDS[kind].min_rows
    if min(positives, len(labels) - positives) < least:
        raise ValueError(
            f"`labels` must hold at least {least} rows of 0 and as many of 1 for kind={kind!r}. "
            f"Received: {len(labels) - positives} rows of 0 and {positives} of 1"
        )
    return KINDS[kind].of_rows(labels, logits)


def _no_order(received: str) -> ValueError:
    return ValueError(f"`logits` must be higher for label 1 than for label 0, on the whole. Received: {received}")
