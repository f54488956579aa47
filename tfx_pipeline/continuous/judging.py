"""What a served version makes of impressions, and when that is worse than it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from sklearn.metrics import log_loss

from keras_eta.export import EXAMPLES, PROBABILITY
from keras_eta.metrics import auc, grouped_auc
from tfx_pipeline.continuous.impressions import Impressions

_BATCH_SIZE = 512
# Probabilities of 0 and 1 have an infinite log loss where they are wrong.
_CLOSEST = 1e-7


class Judged(NamedTuple):
    """Metrics of a version on impressions; NaN where there is none, as the AUC of one class.

    Args:
        rows: impressions.
        positives: those with the label 1.
        auc: area under the ROC curve.
        grouped_auc: within users.
        log_loss: in nats.
        mean_probability: of the version.
        log_loss_error: standard error of the log loss.
    """

    rows: int
    positives: int
    auc: float
    grouped_auc: float
    log_loss: float
    mean_probability: float
    log_loss_error: float

    @property
    def label_rate(self) -> float:
        """Mean label."""
        return self.positives / self.rows

    @property
    def calibration(self) -> float:
        """Mean probability by mean label; infinite where no label is 1."""
        return self.mean_probability / self.label_rate if self.positives else math.inf

    @property
    def auc_error(self) -> float:
        """Standard error of the AUC, by Hanley and McNeil (1982); NaN where there is no AUC."""
        positives, negatives = self.positives, self.rows - self.positives
        if not positives or not negatives:
            return math.nan
        a = self.auc
        two_positives, two_negatives = a / (2 - a) - a**2, 2 * a**2 / (1 + a) - a**2
        variance = a * (1 - a) + (positives - 1) * two_positives + (negatives - 1) * two_negatives
        return math.sqrt(variance / (positives * negatives))

    @property
    def label_rate_error(self) -> float:
        """Standard error of the mean label."""
        rate = self.label_rate
        return math.sqrt(max(rate * (1 - rate), 1 / self.rows**2) / self.rows)

    def to_json(self) -> dict[str, Any]:
        """The numbers as JSON holds them; `Judged.from_json` reads them back."""
        return {name: None if math.isnan(value) else value for name, value in self._asdict().items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Judged:
        """The numbers that `to_json` gave."""
        numbers: dict[str, Any] = {name: math.nan if value is None else value for name, value in values.items()}
        return cls(**numbers)


def judge(module: Any, impressions: Impressions) -> Judged:
    """The metrics of a version.

    Args:
        module: the SavedModel.
        impressions: at least one.

    Raises:
        FloatingPointError: if a probability is not a number.
    """
    signature, records = module.signatures[EXAMPLES], impressions.records
    batches = [tf.constant(records[start : start + _BATCH_SIZE]) for start in range(0, len(records), _BATCH_SIZE)]
    probabilities = np.concatenate([signature(examples=batch)[PROBABILITY].numpy() for batch in batches])
    if not np.isfinite(probabilities).all():
        raise FloatingPointError(f"{np.isnan(probabilities).sum()} of {len(records)} probabilities are not numbers.")
    return measured(impressions.labels, probabilities, impressions.users)


def measured(labels: np.ndarray, probabilities: np.ndarray, users: np.ndarray) -> Judged:
    """The metrics of probabilities [N], whose labels and users are known."""
    clipped = np.clip(np.float64(probabilities), _CLOSEST, 1 - _CLOSEST)
    losses = -np.log(np.where(labels == 1, clipped, 1 - clipped))
    return Judged(
        rows=len(labels),
        positives=int(labels.sum()),
        auc=auc(labels, probabilities),
        grouped_auc=grouped_auc(labels, probabilities, users),
        log_loss=float(log_loss(labels, clipped, labels=[0, 1])),
        mean_probability=float(np.mean(probabilities, dtype=np.float64)),
        log_loss_error=float(np.std(losses) / math.sqrt(len(losses))),
    )
