"""The losses of a ranker: the click's, its units' own, and that of its retrieval task."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_eta.columns import HISTORY
from keras_eta.distribution import sum_over_replicas

RETRIEVAL_LOSS = "retrieval_loss"


def ranking_losses(model: Any, inputs: tuple[Any, ...], training: bool) -> dict[str, tf.Tensor]:
    """The loss of a batch and its parts.

    Args:
        model: a `Ranker`.
        inputs: features, labels [n] and, optionally, sample weights [n].
        training: whether the model is being trained.

    Returns:
        Scalars by name: `loss`, the click loss and, in training, those of units as `<unit>_loss` and of the retrieval
        task, all in `loss` too. This replica's parts of the global batch's means.
    """
    features, labels, *weights = inputs
    # Keras averages over the last axis first, so rows need one of their own to be weighted one by one.
    labels = tf.reshape(labels, [-1, 1])
    weight = tf.reshape(weights[0], [-1, 1]) if weights else None
    scores = model(features, training=training, return_scores=True)
    total = model.task(labels=labels, predictions=scores.logits, sample_weight=weight)
    parts = {}
    for unit in model.interests:
        interest = scores.interests[unit.name]
        if interest.auxiliary_logits is not None:
            own = model._click_loss(labels, interest.auxiliary_logits, sample_weight=weight)
            parts[f"{unit.name}_loss"] = unit.auxiliary_weight * own
        elif interest.row_loss is not None:
            row_loss = interest.row_loss[:, tf.newaxis]
            parts[f"{unit.name}_loss"] = tf.reduce_sum(row_loss if weight is None else row_loss * weight)
    rows = sum_over_replicas(tf.cast(tf.size(labels), total.dtype))
    losses = {name: tf.math.divide_no_nan(loss, rows) for name, loss in {"loss": total, **parts}.items()}
    if model.retrieval_task is not None and training:
        columns = model.batch_columns(features)
        candidate = model.feature_embedding.candidates(columns)
        history = model.feature_embedding.sequence(columns, HISTORY)
        losses[RETRIEVAL_LOSS] = model.retrieval_task(candidate, history, labels, weight)
    return {**losses, "loss": tf.add_n([*losses.values()])}
