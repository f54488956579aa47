"""TWIN-V2's hierarchical clustering of the behaviours of one user."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController

from keras_eta.columns import ITEM_ID, TIMESTAMP
from keras_eta.datasets.columns import USER_ID
from keras_eta.validation import check_integers_from_zero, check_positive_integers, check_vectors, exact_integers

SNAPSHOT = "snapshot"
SIZE = "size"

# TWIN-V2's exponent: |V| behaviours are split into |V| ** 0.3 clusters a step.
_EXPONENT = 0.3
_ITERATIONS = 20


def cluster_behaviours(vectors: Any, groups: Any = None, *, max_size: int = 20, seed: int = 0) -> np.ndarray:
    """Clusters the behaviours of one user: within each group k-means, again and again, until no cluster is too large.

    A set of n behaviours is split into floor(n ** 0.3) clusters, at least two. Behaviours of the same vector that are
    too many for a cluster are split by their order. The order has no other influence.

    Args:
        vectors: floats [n, D], the item's embedding of each behaviour, in ascending order of time.
        groups: integers [n]; a cluster lies within a group. `None`: one group.
        max_size: most behaviours in a cluster, gamma in the paper.
        seed: of k-means.

    Returns:
        int64 [n], the number of each behaviour's cluster: 0, 1, ... in the order of their first behaviours.

    Raises:
        ValueError: if a shape is wrong, a vector is not finite in float32, a group is no integer or an argument is out
            of its range.

    Reference:
        TWIN-V2, arXiv 2407.16357, whose recursion this is.
    """
    vectors = check_vectors("vectors", vectors)
    check_positive_integers(max_size=max_size)
    check_integers_from_zero(seed=seed)
    size = len(vectors)
    groups = np.zeros(size, "int64") if groups is None else np.asarray(groups)
    if groups.shape != (size,) or not exact_integers(groups).all():
        raise ValueError(f"`groups` must hold {size} integers. Received: shape {list(groups.shape)}, {groups.dtype}")
    distinct, point = np.unique(vectors, axis=0, return_inverse=True)
    distinct, point = distinct.astype("float64"), point.reshape(-1)
    waiting = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    clusters = []
    # Takes a second, which whoever only describes clusters need not wait for.
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    kmeans = functools.partial(KMeans, n_init=1, max_iter=_ITERATIONS, random_state=seed)
    # With one thread sums have one order, so that results do not depend on the machine's cores.
    with _threads().limit(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        while waiting:
            members = waiting.pop()
            if len(members) <= max_size:
                clusters.append(members)
            else:
                waiting.extend(_split(members, distinct, point, max_size, kmeans))
    numbers = np.empty(size, "int64")
    for number, members in enumerate(sorted(clusters, key=lambda members: members[0])):
        numbers[members] = number
    return numbers


def quantile_groups(values: Any, num_groups: int) -> np.ndarray:
    """Groups of about equal sizes by quantiles; equal values are in one group.

    Args:
        values: finite numbers [n].
        num_groups: how many groups at most.

    Returns:
        int64 [n], from 0 for the smallest.

    Raises:
        ValueError: if a value is not finite or `num_groups` is not positive.
    """
    values = np.asarray(values)
    check_positive_integers(num_groups=num_groups)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"`values` must be finite numbers in one dimension. Received: values={values!r}")
    if not len(values):
        return np.zeros(0, "int64")
    last = -(-np.arange(1, num_groups) * len(values) // num_groups) - 1
    return np.searchsorted(np.sort(values)[last], values)


class UserClusters(NamedTuple):
    """The clusters of one user, c of them, by snapshot, then time.

    Args:
        representatives: int64 [c], positions of the behaviours nearest the centroids.
        snapshots: int64 [c].
        timestamps: int64 [c], means, rounded down.
        sizes: float32 [c], behaviours in each.
        means: float32 [c] by column name.
    """

    representatives: np.ndarray
    snapshots: np.ndarray
    timestamps: np.ndarray
    sizes: np.ndarray
    means: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Clustering:
    """How the behaviours of users become clusters: the arguments of `cluster_log`, which documents them.

    Raises:
        ValueError: if an argument is out of its range.
    """

    snapshots: Sequence[int] | np.ndarray
    group_by: str | None = None
    num_groups: int = 5
    max_size: int = 20
    seed: int = 0
    means: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        moments = np.asarray(self.snapshots)
        if moments.ndim != 1 or not len(moments) or not exact_integers(moments).all() or (np.diff(moments) <= 0).any():
            raise ValueError(
                "`snapshots` must be integers, at least one, strictly ascending. "
                f"Received: snapshots={self.snapshots!r}"
            )
        object.__setattr__(self, "snapshots", tuple(moments.astype("int64").tolist()))
        object.__setattr__(self, "means", tuple(self.means))
        check_positive_integers(num_groups=self.num_groups, max_size=self.max_size)
        check_integers_from_zero(seed=self.seed)
        reserved = {USER_ID, ITEM_ID, TIMESTAMP, SIZE, SNAPSHOT} & set(self.means)
        if reserved:
            raise ValueError(f"`means` must not name {sorted(reserved)}. Received: means={self.means}")

    @property
    def numeric(self) -> tuple[str, ...]:
        """The columns that must hold numbers."""
        return tuple(dict.fromkeys([*self.means, *([] if self.group_by is None else [self.group_by])]))

    def of_user(
        self, timestamps: np.ndarray, items: np.ndarray, vectors: np.ndarray, columns: Mapping[str, np.ndarray]
    ) -> UserClusters:
        """Clusters the behaviours of one user.

        Args:
            timestamps: int64 [n], ascending.
            items: integers [n], the row of each behaviour's item in `vectors`; -1 for an unknown one.
            vectors: float32 [items, D].
            columns: the `numeric` ones, [n] by name.
        """
        parts = []
        earlier = 0
        for snapshot, end in zip(self.snapshots, np.searchsorted(timestamps, self.snapshots).tolist(), strict=True):
            if end > earlier:
                past = {name: columns[name][:end] for name in self.numeric}
                parts.append(self._at(snapshot, timestamps[:end], items[:end], vectors, past))
            earlier = end
        if not parts:
            none = np.zeros(0, "int64")
            return UserClusters(none, none, none, np.zeros(0, "float32"), dict.fromkeys(self.means, none))
        representatives, snapshots, moments, sizes, means = zip(*parts, strict=True)
        return UserClusters(
            np.concatenate(representatives),
            np.concatenate(snapshots),
            np.concatenate(moments),
            np.concatenate(sizes),
            {name: np.concatenate([part[name] for part in means]) for name in self.means},
        )

    def _at(
        self,
        snapshot: int,
        timestamps: np.ndarray,
        items: np.ndarray,
        vectors: np.ndarray,
        columns: Mapping[str, np.ndarray],
    ) -> UserClusters:
        """The clusters of all the behaviours that are given."""
        unknown = items < 0
        vectors = np.where(unknown[:, np.newaxis], np.float32(0), vectors[items])
        groups = np.zeros(len(items), "int64")
        if self.group_by is not None:
            groups = quantile_groups(columns[self.group_by], self.num_groups)
        numbers = cluster_behaviours(vectors, 2 * groups + unknown, max_size=self.max_size, seed=self.seed)

        order = np.argsort(numbers, kind="stable")
        sizes = np.bincount(numbers)
        starts = np.cumsum(sizes) - sizes
        each = sizes.repeat(sizes)
        members = vectors[order].astype("float64")
        # n times the vector from the centroid, which needs no division: equal distances stay equal.
        offsets = each[:, np.newaxis] * members - np.add.reduceat(members, starts).repeat(sizes, axis=0)
        nearest = np.lexsort((-order, (offsets**2).sum(axis=1), numbers[order]))[starts]
        since = timestamps[order] - timestamps[0]
        # The quotients and the remainders are added apart, as the sum may be beyond int64.
        moments = np.add.reduceat(since // each, starts) + np.add.reduceat(since % each, starts) // sizes
        moments += timestamps[0]
        means = {
            name: (np.add.reduceat(columns[name][order].astype("float64"), starts) / sizes).astype("float32")
            for name in self.means
        }
        in_time = np.lexsort((order[starts + sizes - 1], moments))
        return UserClusters(
            order[nearest][in_time],
            np.full(len(sizes), snapshot),
            moments[in_time],
            sizes.astype("float32")[in_time],
            {name: values[in_time] for name, values in means.items()},
        )


def _split(
    members: np.ndarray, distinct: np.ndarray, point: np.ndarray, max_size: int, kmeans: Callable[[int], Any]
) -> list[np.ndarray]:
    """Parts a set of behaviours; each of the parts is smaller."""
    points, which, counts = np.unique(point[members], return_inverse=True, return_counts=True)
    if len(points) > 1:
        # The margin is for rounding: 1024 ** 0.3 is 8.
        num_clusters = min(max(math.floor(len(members) ** _EXPONENT + 1e-9), 2), len(points))
        fitted = kmeans(num_clusters).fit(distinct[points], sample_weight=counts.astype("float64"))
        labels = fitted.labels_[which]
        parts = [members[labels == label] for label in np.unique(labels)]
        if len(parts) > 1:
            return parts
    return np.array_split(members, -(-len(members) // max_size))


@functools.cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()
