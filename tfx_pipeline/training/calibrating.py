"""Calibrates a trained ranker on the validation part."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import tensorflow as tf
from sklearn.metrics import log_loss

from keras_eta import Ranker, calibration

_logger = logging.getLogger(__name__)


def calibrate(model: Ranker, kind: str, validation_batches: tf.data.Dataset) -> dict[str, Any]:
    """Gives a model the calibrator that fits the validation part best.

    Args:
        model: trained, without a calibrator.
        kind: of `keras_eta.calibration.fit`.
        validation_batches: of (columns, label), in the same order whenever they are read.

    Returns:
        What was fitted, as JSON holds it: `kind`, `rows` and `mean_label` of the validation part; there, `log_loss` and
        `mean_probability` before and after; and the `calibrator`, serialised.

    Raises:
        ValueError: if the validation part is too small, or the model orders it no better than chance.
    """
    logits = model.predict(validation_batches, verbose=0)
    labels = np.concatenate(list(validation_batches.map(lambda _, label: label).as_numpy_iterator()))
    before = model.probabilities(logits).numpy()
    try:
        model.calibrator = calibration.fit(labels, logits, kind)
    except ValueError as error:
        raise ValueError(f"--calibrate {kind}: the validation part does not suffice. {error}") from error
    after = model.probabilities(logits).numpy()
    report = {
        "kind": kind,
        "rows": len(labels),
        "mean_label": float(np.mean(labels)),
        "log_loss": [float(log_loss(labels, np.float64(p))) for p in (before, after)],
        "mean_probability": [float(np.mean(p, dtype=np.float64)) for p in (before, after)],
        "calibrator": tf.keras.utils.serialize_keras_object(model.calibrator),
    }
    _logger.info("Calibrated: %s", report)
    return report
