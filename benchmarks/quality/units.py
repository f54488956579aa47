"""The contestants: one ranker each, all alike but for what they read of the long history."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras_eta
from benchmarks.quality.protocols import Protocol
from benchmarks.timing import measure
from keras_eta.datasets.columns import USER_ID

if TYPE_CHECKING:
    import tensorflow as tf

    from keras_eta import Ranker
    from keras_eta.interest import ETAInterest, InterestUnit

TOP_K, NUM_BITS, SHORT_HISTORY, ID_DROPOUT = 48, 64, 16, 0.01

LEARNED: dict[str, Any] = {"similarity_bias": True, "trainable_planes": True, "planes_period": 8}

# Of the contestants that read the user's id, the share of rows whose id training takes for an unknown one.
USER_ID_DROPOUT = {"eta-user-id": ID_DROPOUT, "eta-user-id-dropped": 0.2}


def eta_unit(**changes: Any) -> ETAInterest:
    """ETA's unit as `keras_eta.ETA` has it by default, but for its planes and attention."""
    edges = keras_eta.interest.default_distance_edges(NUM_BITS)
    return keras_eta.interest.ETAInterest(TOP_K, NUM_BITS, **{"distance_edges": edges, **changes})


def eta(data: Protocol, attention: dict[str, Any]) -> list[InterestUnit]:
    """ETA as `keras_eta.ETA` has it by default, but for the counts of matches, which any unit could stand beside."""
    return [eta_unit(**LEARNED, **attention)]


def eta_and_recent_query(data: Protocol, attention: dict[str, Any]) -> list[InterestUnit]:
    """ETA, and the same search for the most recent behaviours."""
    from benchmarks.quality.further_query import RecentQueryInterest

    further = RecentQueryInterest(SHORT_HISTORY, TOP_K, NUM_BITS, name="recent_query", **LEARNED, **attention)
    return [*eta(data, attention), further]


# The contestants that read how popular the candidate is.
POPULARITY = ("eta-default",)

# The contestants that read clusters of behaviours; `with_clusters` makes them.
CLUSTERED = ("twin-v2",)

# Beside the last 16, which every contestant attends to.
UNITS: dict[str, Callable[[Protocol, dict[str, Any]], list[InterestUnit]]] = {
    "recent": lambda data, attention: [],
    "recent-64": lambda data, attention: [
        keras_eta.interest.RecentInterest(SHORT_HISTORY + TOP_K, name="recent_64", **attention)
    ],
    "pooling": lambda data, attention: [keras_eta.interest.PoolingInterest()],
    "full": lambda data, attention: [keras_eta.interest.FullInterest(**attention)],
    "eta": eta,
    "eta-matches": lambda data, attention: [keras_eta.interest.MatchInterest(), *eta(data, attention)],
    "eta-default": lambda data, attention: [keras_eta.interest.MatchInterest(), *eta(data, attention)],
    "matches": lambda data, attention: [keras_eta.interest.MatchInterest()],
    "eta-no-counts": lambda data, attention: [eta_unit(distance_edges=(), **LEARNED, **attention)],
    "eta-fixed-planes": lambda data, attention: [eta_unit(**attention)],
    "eta-fixed-planes-similarity": lambda data, attention: [eta_unit(similarity_bias=True, **attention)],
    "eta-own-table": lambda data, attention: [eta_unit(own_embeddings=True, **LEARNED, **attention)],
    "eta-recent-query": eta_and_recent_query,
    "eta-user-id": eta,
    "eta-user-id-dropped": eta,
    "inner-product": lambda data, attention: [keras_eta.interest.InnerProductInterest(TOP_K, **attention)],
    "cosine": lambda data, attention: [keras_eta.interest.InnerProductInterest(TOP_K, normalize=True, **attention)],
    "sim-hard": lambda data, attention: [keras_eta.interest.SIMHard(TOP_K, data.category, **attention)],
    "sim-soft": lambda data, attention: [keras_eta.interest.SIMSoft(TOP_K, **attention)],
    "sdim": lambda data, attention: [keras_eta.interest.SDIM(own_embeddings=True)],
    "twin": lambda data, attention: [keras_eta.interest.TWIN(TOP_K)],
    "twin-v2": lambda data, attention: [keras_eta.interest.TWINV2(TOP_K)],
    "mimn": lambda data, attention: [keras_eta.interest.MIMN(max_length=100)],
}


def make_ranker(name: str, data: Protocol, task: bool, cosine: bool) -> Ranker:
    """The ranker of a contestant.

    Args:
        name: of `UNITS`.
        data: the data set.
        task: whether the embeddings of items learn by a retrieval task as well.
        cosine: whether attention goes by cosines.
    """
    options: dict[str, Any] = {"popularity": name in POPULARITY}
    if name in USER_ID_DROPOUT:
        names = [feature.name for feature in data.features.row_features if feature.is_id]
        options["id_dropout"] = {**dict.fromkeys(names, ID_DROPOUT), USER_ID: USER_ID_DROPOUT[name]}
    return ranker_of(UNITS[name](data, {"cosine": cosine}), name, data, task, cosine, **options)


def ranker_of(
    units: Sequence[InterestUnit], name: str, data: Protocol, task: bool, cosine: bool, **options: Any
) -> Ranker:
    """A ranker of the last 16 behaviours and further units, all else as every contestant has it.

    Args:
        units: what reads the long history.
        name: of the ranker.
        data: the data set.
        task: as in `make_ranker`.
        cosine: as in `make_ranker`.
        **options: of the `Ranker`, in place of what all share.
    """
    return keras_eta.Ranker(
        lookup=data.lookup,
        interests=[keras_eta.interest.RecentInterest(SHORT_HISTORY, cosine=cosine), *units],
        retrieval_task=keras_eta.models.RetrievalTask() if task else None,
        hidden_units=(128, 64),
        name=re.sub(r"\W", "_", name),
        **{"id_dropout": ID_DROPOUT, **options},
    )


def request_milliseconds(model: Ranker, data: Protocol, candidates: int = 500, repeats: int = 15) -> float:
    """The median time to score candidates against one history as long as the model reads."""
    import tensorflow as tf

    inputs: dict[str, tf.Tensor] = {}
    for sequence in model.features.all_sequences:
        inputs[sequence.length] = tf.constant([sequence.max_length])
    longest = data.test[[int(data.test.history_counts.argmax())]]
    (columns, _) = next(iter(longest.to_dataset(model.features, 1, lookup=data.lookup)))
    inputs |= {name: column for name, column in columns.items()}
    for feature in model.features.item_features:
        inputs[feature.name] = tf.repeat(inputs[feature.name][:, tf.newaxis], candidates, axis=1)
    score = tf.function(lambda x: model.score(x).logits, autograph=False)
    (times,) = measure({model.name: lambda: score(inputs).numpy()}, repeats).values()
    return statistics.median(times)
