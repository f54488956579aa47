"""Which interactions are behaviours of which sequence."""

from __future__ import annotations

import dataclasses

from keras_eta.datasets.clustering import Clustering
from keras_eta.validation import check_positive_integers


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which interactions are behaviours of a sequence; without one, all are.

    Every interaction is an impression, whatever sequences it belongs to.

    Args:
        sequence: name of the sequence, `"history"` for the history.
        column: the file's column that tells.
        values: of the interactions that belong to it, e.g. actions.

    Raises:
        ValueError: if there is no column or no value.
    """

    sequence: str
    column: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if not self.column or not self.values:
            raise ValueError(
                f"A selection must have a `column` and `values`. Received: column={self.column!r}, values={self.values}"
            )


@dataclasses.dataclass(frozen=True)
class ClusterSequence:
    """A sequence of clusters of the history's behaviours, for `keras_eta.interest.TWINV2`.

    An impression has the clusters of the latest snapshot that is not later than it, as
    `keras_eta.datasets.cluster_log` makes them.

    Args:
        item_vectors: path of a file of `keras_eta.datasets.save_item_vectors`, local or remote.
        snapshot_period: time between two snapshots, in the unit of the log's timestamps. The first is that long after
            the first behaviour, as in `keras_eta.datasets.regular_snapshots`.
        sequence: name of the sequence. Its attributes are `size`, float32, and columns of the history's behaviours.
        group_by: as in `cluster_log`; a feature of numbers.
        num_groups: as in `cluster_log`.
        max_size: as in `cluster_log`.
        means: as in `cluster_log`; float32 features.

    Raises:
        ValueError: if an argument is out of its range.
    """

    item_vectors: str
    snapshot_period: int
    sequence: str = "clusters"
    group_by: str | None = None
    num_groups: int = 5
    max_size: int = 20
    means: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "means", tuple(self.means))
        if not self.item_vectors:
            raise ValueError(f"`item_vectors` must name a file. Received: item_vectors={self.item_vectors!r}")
        check_positive_integers(snapshot_period=self.snapshot_period)
        self.clustering((0,))

    def clustering(self, snapshots: tuple[int, ...]) -> Clustering:
        """How behaviours become the clusters of some snapshots."""
        return Clustering(snapshots, self.group_by, self.num_groups, self.max_size, means=self.means)
