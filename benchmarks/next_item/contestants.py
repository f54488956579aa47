"""The contestants: what each ranks all items by, or finds among them, after each history."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import keras_eta
from benchmarks.next_item.counting import co_occurrence, popularity
from benchmarks.next_item.protocols import Protocol
from keras_eta.columns import ITEM_ID
from keras_eta.datasets.impressions import Impressions
from keras_eta.models.beam_search import Reserve
from keras_eta.quantization import ResidualKMeans, fingerprint_codes, random_codes
from keras_eta.semantic_ids import SemanticIds

LEVELS, CODEBOOK_SIZE, NUM_BEAMS, BATCH_SIZE, PATIENCE = 3, 256, 50, 256, 2

# Of the results, for items that training never saw.
UNSEEN_SHARE = 0.1

# A round of training ends with a look at the validation loss; of large data it is a part of an epoch.
ROUND_ROWS = 100_000

# Finds the best `k` items, places int64 [n, k], after each history of the part; those of the history are left out.
Finder = Callable[[Impressions, int], np.ndarray]
Train = Callable[[Protocol, int, int], Finder]  # of the data, a seed and the most rounds


def by_scores(data: Protocol, scores: Callable[[Impressions], Iterable[np.ndarray]]) -> Finder:
    """A contestant that scores every item.

    Args:
        data: the data set.
        scores: gives floats [b, items] of the rows of a part, batch by batch.
    """

    def find(part: Impressions, k: int) -> np.ndarray:
        seen = iter(seen_items(data, part))
        found = []
        for batch in scores(part):
            of_rows = batch.astype(np.float64)
            for of_row in of_rows:
                of_row[next(seen)] = -np.inf
            best = np.argpartition(-of_rows, k, axis=1)[:, :k]
            order = np.argsort(-np.take_along_axis(of_rows, best, axis=1), axis=1)
            found.append(np.take_along_axis(best, order, axis=1))
        return np.concatenate(found)

    return find


def seen_items(data: Protocol, part: Impressions) -> list[np.ndarray]:
    """The places of the items of each history."""
    rows = data.places(part.log[ITEM_ID])
    return [rows[start:end] for start, end in zip(part.start, part.end, strict=True)]


def semantic_ids(item_ids: np.ndarray, content: np.ndarray, kind: str, seed: int) -> SemanticIds:
    """The ids of a kind, of three levels and a collision token.

    Args:
        item_ids: all items [items].
        content: float32 [items, dim], their content vectors.
        kind: `"rq-vae"`, `"k-means"`, `"fingerprints"` or `"random"`.
        seed: of whatever is drawn.
    """
    import tensorflow as tf

    sizes = (CODEBOOK_SIZE,) * LEVELS
    tf.keras.utils.set_random_seed(seed)
    if kind == "rq-vae":
        model = keras_eta.models.RQVAE(content.shape[1], levels=LEVELS, codebook_size=CODEBOOK_SIZE)
        model.compile()
        model.fit(content, epochs=200, batch_size=1024, verbose=0)
        codes = model.codes(content)
    elif kind == "k-means":
        codes = ResidualKMeans(LEVELS, CODEBOOK_SIZE, seed=seed).fit(content).codes(content)
    elif kind == "fingerprints":
        num_bits = LEVELS * int(np.log2(CODEBOOK_SIZE))
        hash_ = keras_eta.layers.SimHash(num_bits, seed)
        codes = fingerprint_codes(hash_(tf.constant(content)).numpy(), num_bits, LEVELS)
    else:
        codes = random_codes(len(item_ids), sizes, seed)
    most = int(np.unique(codes, axis=0, return_counts=True)[1].max())
    return SemanticIds.from_codes(item_ids, codes, sizes, max_collisions=most)


def fit_tiger(
    ids: SemanticIds, train: Impressions, validation: Impressions, seed: int, rounds: int
) -> keras_eta.models.TIGER:
    """A trained TIGER of the default sizes.

    Args:
        ids: the items.
        train: impressions with label 1.
        validation: likewise, by which training stops.
        seed: of initial weights and the order of batches.
        rounds: the most, of `ROUND_ROWS`.
    """
    import tensorflow as tf

    tf.keras.utils.set_random_seed(seed)
    model = keras_eta.models.TIGER(ids)
    _fit(model, train, validation, seed, rounds)
    return model


# Methods that differ in how they search share a model.
@functools.lru_cache(maxsize=1)
def _tiger_of(data: Protocol, kind: str, seed: int, rounds: int) -> keras_eta.models.TIGER:
    ids = semantic_ids(data.item_ids, data.content, kind, seed)
    print(ids.report(data.content))
    return fit_tiger(ids, data.parts.train, data.parts.validation, seed, rounds)


def train_tiger(kind: str, unseen_share: float = 0.0) -> Train:
    """TIGER with the ids of a kind.

    Args:
        kind: as `semantic_ids`.
        unseen_share: of the results, for items that training never had to find.
    """

    def train(data: Protocol, seed: int, rounds: int) -> Finder:
        import tensorflow as tf

        model = _tiger_of(data, kind, seed, rounds)
        nodes = model.table.nodes_above(2 + data.unseen_places) if unseen_share else ()

        def find(part: Impressions, k: int) -> np.ndarray:
            seen = seen_items(data, part)
            reserve = Reserve(nodes, math.ceil(unseen_share * k)) if unseen_share else None
            retrieve = tf.function(
                lambda inputs, excluded: model.retrieve(inputs, k, NUM_BEAMS, excluded, reserve).rows,
                autograph=False,
                reduce_retracing=True,
            )
            found = []
            row = 0
            for inputs, _ in part.to_dataset(model.features, BATCH_SIZE, lookup=model.lookup):
                number = len(inputs["history_length"])
                excluded = tf.keras.utils.pad_sequences(
                    [of_row + 2 for of_row in seen[row : row + number]], padding="post", dtype="int64"
                )
                found.append(retrieve(inputs, tf.constant(excluded)).numpy() - 2)
                row += number
            return np.concatenate(found)

        return find

    return train


def train_sasrec(data: Protocol, seed: int, rounds: int) -> Finder:
    """SASRec with the cross-entropy over all items."""
    import tensorflow as tf

    from benchmarks.next_item.sasrec import SASRec, windows

    tf.keras.utils.set_random_seed(seed)
    model = SASRec(data.item_ids)
    _fit(model, windows(data.parts.train, model.features.max_history_length), data.parts.validation, seed, rounds)

    def scores(part: Impressions) -> Iterable[np.ndarray]:
        batches = part.to_dataset(model.features, BATCH_SIZE, lookup=model.lookup)
        return (model(inputs).numpy() for inputs, _ in batches)

    return by_scores(data, scores)


def _fit(model: Any, train: Impressions, validation: Impressions, seed: int, rounds: int) -> None:
    """Trains until the validation loss no longer falls, and gives the model its best weights."""
    import tensorflow as tf

    model.compile()
    batches = train.to_dataset(model.features, BATCH_SIZE, lookup=model.lookup, shuffle=True, seed=seed)
    steps = min(len(batches), math.ceil(ROUND_ROWS / BATCH_SIZE))
    judged = validation.to_dataset(model.features, 4 * BATCH_SIZE, lookup=model.lookup)
    best = tf.keras.callbacks.EarlyStopping("val_loss", patience=PATIENCE, restore_best_weights=True)
    model.fit(
        batches.repeat(),
        steps_per_epoch=steps,
        validation_data=judged,
        epochs=rounds,
        callbacks=[best],
        verbose=1 if sys.stdout.isatty() else 2,
    )
    if best.best_weights is not None:
        model.set_weights(best.best_weights)


CONTESTANTS: dict[str, Train] = {
    "popularity": lambda data, seed, rounds: by_scores(data, lambda part: popularity(data, part)),
    "co-occurrence": lambda data, seed, rounds: by_scores(data, lambda part: co_occurrence(data, part)),
    "sasrec": train_sasrec,
    "tiger-rq-vae": train_tiger("rq-vae"),
    "tiger-k-means": train_tiger("k-means"),
    "tiger-k-means-unseen": train_tiger("k-means", UNSEEN_SHARE),
    "tiger-fingerprints": train_tiger("fingerprints"),
    "tiger-random": train_tiger("random"),
}
