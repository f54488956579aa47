"""Synthetic logs with planted long-term interests, and the AUC that each kind of model can reach on them."""

from __future__ import annotations

import dataclasses

import numpy as np

from keras_eta.columns import ITEM_ID, TIMESTAMP, Feature
from keras_eta.datasets.columns import USER_ID
from keras_eta.datasets.impressions import Impressions
from keras_eta.datasets.interactions import Interactions
from keras_eta.features import Features

CLUSTER = "cluster"


@dataclasses.dataclass(frozen=True, eq=False)
class Synthetic:
    """Impressions whose labels depend on behaviours beyond the short history only.

    Args:
        train: impressions of the training users.
        test: impressions of other users, all later than every impression of `train`.
        train_probability: float64 [n], P(label = 1) of each training impression given the planted interests.
        test_probability: the same for `test`.
        item_cluster: int64 [items], cluster of item `i + 1`.
        oracle_auc: the AUC of `test_probability`, the best that any model can expect.
        short_auc: the best that a model can expect without the long history, however well it knows the items.
    """

    train: Impressions
    test: Impressions
    train_probability: np.ndarray
    test_probability: np.ndarray
    item_cluster: np.ndarray
    oracle_auc: float
    short_auc: float

    def features(self, embedding_dim: int = 32) -> Features:
        """Item ids alone, over the whole history: clusters must be learned, users can't be memorised.

        Args:
            embedding_dim: width of the item embedding.
        """
        return Features(
            item_id=Feature(ITEM_ID, "int64", embedding_dim),
            max_history_length=int(self.train.history_counts.max()),
        )


def generate(
    num_users: int = 4_000,
    num_items: int = 1_000,
    *,
    num_clusters: int = 20,
    num_interests: int = 4,
    history_length: int = 128,
    short_history_length: int = 16,
    impressions_per_user: int = 16,
    test_fraction: float = 0.2,
    high_probability: float = 0.9,
    low_probability: float = 0.1,
    seed: int = 0,
) -> Synthetic:
    r"""Plant long-term interests in a log.

    Every item belongs to one of C clusters, of equal size to within one. Each user's interests are I of the clusters,
    drawn uniformly. The user's last S = `short_history_length` behaviours are items of clusters drawn uniformly from
    all C, independently of the interests; all earlier behaviours are items of the I clusters, each at least once. So
    the interests can be read off the behaviours beyond the last S, exactly, and the last S say nothing about them.

    An impression's candidate is, with probability 1/2, an item of one of the user's interests, else of another cluster,
    and its label is 1 with probability h (`high_probability`) or l (`low_probability`) accordingly.

    What can be reached on the test users, whom no model has seen:

    - The oracle knows which of the two cases holds, and nothing else bears on the label. With a = P(interest | label 1)
      = h / (h + l) and b = P(interest | label 0) = (1 - h) / (2 - h - l), its AUC is a (1 - b) + (a b + (1 - a)(1 - b))
      / 2 = (1 + a - b) / 2. By the Neyman-Pearson lemma no score does better.
    - Without the long history a model sees the candidate and the last S behaviours. Each case gives the candidate the
      same distribution over items, and the interests are independent of the last S, so the case is independent of all
      that the model sees: its AUC is 1/2. That holds for models without a user id, as `Synthetic.features` has it, and,
      the test users being new, for models with one too.

    Both are expectations; a finite test set scatters around them.

    Args:
        num_users: users, of training and test together.
        num_items: items, with ids from 1.
        num_clusters: C.
        num_interests: I, below C.
        history_length: behaviours a user, all of them before the user's impressions.
        short_history_length: S; at least I behaviours must lie beyond it.
        impressions_per_user: impressions a user, all at one moment.
        test_fraction: share of the users who are in the test set.
        high_probability: h.
        low_probability: l, below h.
        seed: of everything random.

    Raises:
        ValueError: if an argument is out of its range.
    """
    for name, value, least in (
        ("num_users", num_users, 2),
        ("num_clusters", num_clusters, 2),
        ("num_items", num_items, num_clusters),
        ("num_interests", num_interests, 1),
        ("short_history_length", short_history_length, 0),
        ("history_length", history_length, short_history_length + num_interests),
        ("impressions_per_user", impressions_per_user, 1),
    ):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}")
    if num_interests >= num_clusters:
        raise ValueError(
            f"`num_interests` must be below `num_clusters`={num_clusters}. Received: num_interests={num_interests}"
        )
    if not 0 <= low_probability < high_probability <= 1:
        raise ValueError(
            "`low_probability` and `high_probability` must satisfy 0 <= low < high <= 1. "
            f"Received: low_probability={low_probability}, high_probability={high_probability}"
        )
    num_test = round(num_users * test_fraction)
    if not 0 < num_test < num_users:
        raise ValueError(
            f"`test_fraction` must leave at least one of {num_users} users in each part. "
            f"Received: test_fraction={test_fraction}"
        )
    generator = np.random.default_rng(seed)
    item_cluster = generator.permutation(num_items) % num_clusters
    # The first I columns of a row are the user's interests, the others the rest.
    clusters = generator.permuted(np.tile(np.arange(num_clusters), (num_users, 1)), axis=1)

    num_old = history_length - short_history_length
    interest = generator.integers(num_interests, size=(num_users, num_old))
    interest[:, :num_interests] = np.arange(num_interests)
    old = np.take_along_axis(clusters, generator.permuted(interest, axis=1), axis=1)
    recent = generator.integers(num_clusters, size=(num_users, short_history_length))
    behaviour = _draw_items(item_cluster, np.concatenate([old, recent], axis=1), generator)

    shape = (num_users, impressions_per_user)
    planted = generator.random(shape) < 0.5
    column = np.where(
        planted,
        generator.integers(num_interests, size=shape),
        generator.integers(num_interests, num_clusters, size=shape),
    )
    candidate = _draw_items(item_cluster, np.take_along_axis(clusters, column, axis=1), generator)
    probability = np.where(planted, high_probability, low_probability)
    label = generator.random(shape) < probability

    user = np.arange(1, num_users + 1)
    is_test = user > num_users - num_test
    # Test users come after the training users: the split is one of time, too.
    first_moment = np.where(is_test, history_length + 1, 0)
    log = Interactions.from_columns(
        {
            USER_ID: np.repeat(user, history_length),
            ITEM_ID: behaviour.ravel(),
            TIMESTAMP: (first_moment[:, None] + np.arange(history_length)).ravel(),
            CLUSTER: item_cluster[behaviour.ravel() - 1],
        }
    )
    impressions = Impressions.from_columns(
        log,
        {
            USER_ID: np.repeat(user, impressions_per_user),
            ITEM_ID: candidate.ravel(),
            TIMESTAMP: np.repeat(first_moment + history_length, impressions_per_user),
            CLUSTER: item_cluster[candidate.ravel() - 1],
        },
        label.ravel(),
    )
    in_test = np.repeat(is_test, impressions_per_user)
    a = high_probability / (high_probability + low_probability)
    b = (1 - high_probability) / (2 - high_probability - low_probability)
    return Synthetic(
        train=impressions[~in_test],
        test=impressions[in_test],
        train_probability=probability.ravel()[~in_test],
        test_probability=probability.ravel()[in_test],
        item_cluster=item_cluster,
        oracle_auc=(1 + a - b) / 2,
        short_auc=0.5,
    )


def _draw_items(item_cluster: np.ndarray, cluster: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """An item of each cluster, uniformly: ids int64 of the shape of `cluster`."""
    by_cluster = np.argsort(item_cluster, kind="stable")
    sizes = np.bincount(item_cluster)
    offset = np.cumsum(sizes) - sizes
    return by_cluster[offset[cluster] + generator.integers(sizes[cluster])] + 1
