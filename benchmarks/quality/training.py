"""Training until validation stops, and judging on the test part."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import keras_eta
from benchmarks.quality.clustered import with_clusters
from benchmarks.quality.protocols import Protocol
from benchmarks.quality.results import Result
from benchmarks.quality.units import CLUSTERED, USER_ID_DROPOUT, make_ranker, request_milliseconds
from keras_eta.columns import ITEM_ID
from keras_eta.datasets.baselines import baseline_scores
from keras_eta.datasets.impressions import Impressions

if TYPE_CHECKING:
    from keras_eta import Ranker

BATCH_SIZE = 512
PATIENCE = 1


def run(data: Protocol, unit: str, seed: int, task: bool, cosine: bool, max_epochs: int) -> Result:
    """Trains a contestant until its validation AUC no longer rises, and judges its best weights.

    The clusters that TWIN-V2 reads are by the item embeddings of `recent`, whose training counts among its seconds.

    Args:
        data: the data set.
        unit: name of the contestant.
        seed: of initial weights and of the order of batches.
        task: whether it has a retrieval task.
        cosine: whether its attention goes by cosines.
        max_epochs: passes over the training part at most.
    """
    if unit in USER_ID_DROPOUT:
        data = data.with_user_id()
    first = 0.0
    if unit in CLUSTERED:
        model, trained = _trained("recent", data, seed, task, cosine, max_epochs)
        data, first = with_clusters(data, model.embeddings[ITEM_ID].embeddings.numpy(), seed), trained.seconds
    model, trained = _trained(unit, data, seed, task, cosine, max_epochs)
    trained = trained._replace(seconds=trained.seconds + first)
    return judged(model, data, trained, unit=unit, seed=seed, task=task, cosine=cosine)


def _trained(unit: str, data: Protocol, seed: int, task: bool, cosine: bool, max_epochs: int) -> tuple[Ranker, Trained]:
    import tensorflow as tf

    tf.keras.utils.set_random_seed(seed)
    model = make_ranker(unit, data, task, cosine)
    return model, train(model, data, seed, max_epochs)


class Trained(NamedTuple):
    """How a training went.

    Attributes:
        epochs: passes over the training part up to the best.
        validation_auc: of the best.
        seconds: of all epochs, tracing and validation included.
    """

    epochs: int
    validation_auc: float
    seconds: float


def train(model: Ranker, data: Protocol, seed: int, max_epochs: int) -> Trained:
    """Trains a ranker until its validation AUC no longer rises, and gives it its best weights.

    Args:
        model: the ranker.
        data: the data set.
        seed: of the order of batches.
        max_epochs: passes over the training part at most.
    """
    import tensorflow as tf

    model.compile()
    batches = data.train.to_dataset(data.features, BATCH_SIZE, lookup=data.lookup, shuffle=True, seed=seed)
    validation = data.validation.to_dataset(data.features, 8 * BATCH_SIZE, lookup=data.lookup)
    best = tf.keras.callbacks.EarlyStopping("val_auc", mode="max", patience=PATIENCE, restore_best_weights=True)
    start = time.perf_counter()
    history = model.fit(
        batches,
        validation_data=validation,
        epochs=max_epochs,
        callbacks=[best],
        verbose=1 if sys.stdout.isatty() else 2,
    ).history
    seconds = time.perf_counter() - start
    # Keras puts the best weights back only where it stops early.
    if best.best_weights is not None:
        model.set_weights(best.best_weights)
    aucs = history["val_auc"]
    return Trained(int(np.argmax(aucs)) + 1, float(max(aucs)), seconds)


def judged(
    model: Ranker, data: Protocol, trained: Trained, *, unit: str, seed: int, task: bool, cosine: bool
) -> Result:
    """The result of a trained ranker on the test part.

    Args:
        model: the ranker.
        data: the data set.
        trained: how it was trained.
        unit: name of the contestant.
        seed: as in `run`, as are `task` and `cosine`.
        task: whether it had a retrieval task.
        cosine: whether its attention goes by cosines.
    """
    return Result(
        data=data.name,
        unit=unit,
        seed=seed,
        task=task,
        cosine=cosine,
        max_history_length=data.features.max_history_length,
        rows=len(data.train),
        epochs=trained.epochs,
        validation_auc=trained.validation_auc,
        **_scores(model, data),
        training_seconds=trained.seconds,
        request_ms=request_milliseconds(model, data),
    )


def count(data: Protocol, names: Sequence[str]) -> list[Result]:
    """Judges rivals that learn nothing, which are counted together.

    Args:
        data: the data set.
        names: of `keras_eta.datasets.counting.BASELINES`.
    """
    if not names:
        return []
    start = time.perf_counter()
    scores = baseline_scores(data.train, data.test, data.features)
    seconds = time.perf_counter() - start
    return [
        Result(
            data=data.name,
            unit=name,
            seed=0,
            task=False,
            cosine=False,
            max_history_length=data.features.max_history_length,
            rows=len(data.train),
            epochs=0,
            **ranking_scores(scores[name], data),
            training_seconds=seconds,
        )
        for name in names
    ]


def _scores(model: Ranker, data: Protocol) -> dict[str, float]:
    test, logits = data.test, predict(model, data, data.test)
    probability = 1 / (1 + np.exp(-logits))
    return {
        "log_loss": keras_eta.metrics.log_loss(test.label, logits),
        "calibration": float(probability.mean() / test.label.mean()),
        **ranking_scores(logits, data),
    }


def ranking_scores(logits: np.ndarray, data: Protocol) -> dict[str, float]:
    """What depends on the order of the test part's scores alone.

    Args:
        logits: float [test], or whatever else orders the impressions.
        data: the data set.
    """
    test = data.test
    users = test.columns["user_id"]
    scores = {
        "auc": keras_eta.metrics.auc(test.label, logits),
        "grouped_auc": keras_eta.metrics.grouped_auc(test.label, logits, users),
    }
    parts = {"long": test.history_counts >= data.long_history, "new_users": data.new_users}
    for name, mask in parts.items():
        rows = np.flatnonzero(mask)
        if len(rows) or name == "long":
            scores[f"auc_{name}"] = keras_eta.metrics.auc(test.label[rows], logits[rows])
            scores[f"grouped_auc_{name}"] = keras_eta.metrics.grouped_auc(test.label[rows], logits[rows], users[rows])
    return scores


def predict(model: Ranker, data: Protocol, impressions: Impressions) -> np.ndarray:
    """Logits [n] of impressions."""
    batches = impressions.to_dataset(data.features, 8 * BATCH_SIZE, lookup=data.lookup)
    return np.ravel(model.predict(batches, verbose=0))
