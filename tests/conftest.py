"""What the tests of keras_eta share: features that play every role, and random impressions of them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import settings

from keras_eta import Feature, Features
from keras_eta.columns import HISTORY_LENGTH, history_name

# The first example traces and compiles, which no deadline can foresee.
settings.register_profile("keras_eta", deadline=None)
settings.load_profile("keras_eta")

Batch = dict[str, np.ndarray]
MakeBatch = Callable[..., Batch]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Takes what is imported, more than a million objects, out of the garbage collector's every round."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with end-to-end tests come first, those with slow ones next, so that no worker ends with one alone."""
    longest = [{item.path for item in items if item.get_closest_marker(marker)} for marker in ("e2e", "slow")]
    items.sort(key=lambda item: [item.path not in paths for paths in longest])


@pytest.fixture(scope="session")
def features() -> Features:
    """One feature of each role and kind, with small vocabularies."""
    return Features(
        item_id=Feature("item_id", vocabulary_size=40, embedding_dim=8),
        item_attributes=(Feature("category_id", vocabulary_size=6, embedding_dim=4), Feature("price", "float32")),
        behaviour_attributes=(Feature("action", vocabulary_size=3, embedding_dim=2), Feature("dwell", "float32")),
        user=(Feature("user_id", vocabulary_size=5, embedding_dim=3),),
        context=(Feature("hour", "float32"), Feature("page", vocabulary_size=4, embedding_dim=2)),
        max_history_length=20,
    )


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    """`make_batch(features, rows, length, seed, candidates)`: indices and floats as a ranker reads them.

    Without `candidates` a batch of the call, else one of `score`. Rows 0, 1 and 2 have an empty history, one behaviour
    and a full history; the length of the others is random. Padding holds random indices and floats.
    """

    def make(
        features: Features, rows: int = 8, length: int = 12, seed: int = 0, candidates: int | None = None
    ) -> Batch:
        rng = np.random.default_rng(seed)

        def column(feature: Feature, shape: tuple[int, ...]) -> np.ndarray:
            if feature.is_id:
                return rng.integers(1, feature.num_indices, shape).astype(np.int32)
            return rng.normal(size=shape).astype(np.float32)

        per_candidate = (rows,) if candidates is None else (rows, candidates)
        batch = {feature.name: column(feature, (rows,)) for feature in (*features.user, *features.context)}
        batch |= {feature.name: column(feature, per_candidate) for feature in features.item_features}
        batch |= {history_name(feature.name): column(feature, (rows, length)) for feature in features.history_features}
        lengths = rng.integers(0, length + 1, rows).astype(np.int32)
        lengths[:3] = [0, min(1, length), length][:rows]
        return batch | {HISTORY_LENGTH: lengths}

    return make


@pytest.fixture
def seeded() -> None:
    """Seeds Python, NumPy and TensorFlow."""
    tf.keras.utils.set_random_seed(0)
