"""Tells when a training has learned nothing."""

from __future__ import annotations

import logging
import math

import tensorflow as tf

from keras_eta.metrics import LogOddsAUC

# Nats by which the log loss must be below that of the mean label.
_LEAST_GAIN = 1e-3

_logger = logging.getLogger(__name__)


def warn_if_nothing_was_learned(history: tf.keras.callbacks.History, counts: LogOddsAUC) -> None:
    """Logs a warning where the best log loss is no better than what saying the mean label every time gives.

    Args:
        history: of `fit`; its validation part is looked at where there is one.
        counts: the metric of the same impressions, as it stands after `fit`.
    """
    name = "val_log_loss" if "val_log_loss" in history.history else "log_loss"
    losses = history.history.get(name, [])
    positives, negatives = (float(tf.reduce_sum(x)) for x in (counts.positives, counts.negatives))
    if not losses or not positives or not negatives:
        return
    share = positives / (positives + negatives)
    prior = -share * math.log(share) - (1 - share) * math.log1p(-share)
    # What is not finite is not better either.
    if not min(losses) < prior - _LEAST_GAIN:
        _logger.warning(
            "The model has learned nothing so far: its best %s is %.4f, and saying the mean label, %.4f, for every "
            "impression gives %.4f. Train for more steps, with higher learning rates, or on more impressions.",
            name,
            min(losses),
            share,
            prior,
        )
