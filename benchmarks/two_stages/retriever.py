"""The retriever of MovieLens-1M that stands before a ranker of likes."""

from __future__ import annotations

import numpy as np

from benchmarks.next_item.contestants import fit_tiger, semantic_ids
from benchmarks.next_item.protocols import film_content
from benchmarks.quality.protocols import Protocol
from keras_eta.datasets.movielens import MovieLens
from keras_eta.models import TIGER


def liked_films_retriever(films: MovieLens, data: Protocol, seed: int, rounds: int) -> TIGER:
    """TIGER that finds the film that a user likes next, by residual k-means of titles, decades and genres.

    Args:
        films: the data set.
        data: its parts; the retriever learns the liked films of the training part.
        seed: of the codes, the initial weights and the order of batches.
        rounds: of training, at most.
    """
    train, validation = (part[np.flatnonzero(part.label == 1)] for part in (data.train, data.validation))
    ids = semantic_ids(*film_content(films), "k-means", seed)
    return fit_tiger(ids, train, validation, seed, rounds)
