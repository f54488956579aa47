"""Long histories as clusters of behaviours, by snapshots in time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from keras_eta.columns import ITEM_ID, TIMESTAMP
from keras_eta.datasets.clustering import SIZE, SNAPSHOT, Clustering
from keras_eta.datasets.columns import (
    USER_ID,
    Column,
    ValueLists,
    count_rows,
    id_numbers,
    parse_column,
    user_positions,
)
from keras_eta.datasets.interactions import Interactions, Report, check_ranges
from keras_eta.datasets.item_vectors import item_index, item_rows
from keras_eta.validation import check_positive_integers, check_vectors


def regular_snapshots(log: Interactions, period: int) -> np.ndarray:
    """Moments at a regular period over a log, for `cluster_log`. In the paper it is about two weeks.

    Args:
        log: the behaviours.
        period: time between two moments, in the unit of the log's timestamps.

    Returns:
        int64, ascending: `period` after the first behaviour, and so on up to the last.

    Raises:
        ValueError: if `period` is not positive or longer than the log.
    """
    check_positive_integers(period=period)
    first, last = int(log.timestamps.min()), int(log.timestamps.max())
    if first + period > last:
        raise ValueError(f"`period` must be at most {last - first}, the log's span. Received: period={period}")
    return np.arange(first + period, last + 1, period, dtype="int64")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Clusters:
    """Clusters of behaviours, one row each, sorted by user, then snapshot, then time. `cluster_log` makes them.

    They are a sequence of impressions: `impressions.with_sequence("clusters", clusters)`.

    Args:
        columns: name -> column [n], in the forms that `Interactions.from_columns` takes. `user_id`, `item_id`,
            `timestamp`, `snapshot` (int64: the moment before which all behaviours of the cluster lie) and `size`
            (float32: how many these are) are required.

    Raises:
        ValueError: if a column is missing or has bad values, there are no rows, they are not sorted, a size is below 1,
            or a cluster's timestamp is not before its snapshot.
    """

    columns: Mapping[str, Column]

    def __post_init__(self) -> None:
        missing = [name for name in (SNAPSHOT, SIZE) if name not in self.columns]
        if missing:
            raise ValueError(f"Missing columns in the clusters: {missing}. Present: {list(self.columns)}")
        if not count_rows("clusters", self.columns):
            raise ValueError("There are no clusters.")
        checked = {}
        for name, values in self.columns.items():
            checked[name], faults = parse_column(name, values, integer=name == SNAPSHOT)
            for reason, mask in faults.items():
                if mask.any():
                    raise ValueError(f"The clusters hold {mask.sum():,} {reason}, the first at row {mask.argmax()}.")
        for name in (TIMESTAMP, SNAPSHOT, SIZE):
            if not isinstance(checked[name], np.ndarray):
                raise ValueError(f"Column {name!r} of the clusters must hold numbers, one per row.")
        checked[SIZE] = checked[SIZE].astype("float32")
        object.__setattr__(self, "columns", checked)
        if (checked[SIZE] < 1).any():
            row = (checked[SIZE] < 1).argmax()
            raise ValueError(f"`size` of a cluster must be at least 1. Received at row {row}: {checked[SIZE][row]:g}")
        users, moments, times = id_numbers(checked[USER_ID]), checked[SNAPSHOT], checked[TIMESTAMP]
        if (times >= moments).any():
            row = (times >= moments).argmax()
            raise ValueError(
                "A cluster's timestamp must be before its snapshot. "
                f"Received at row {row}: timestamp={times[row]}, snapshot={moments[row]}"
            )
        order = np.lexsort((times, moments, users))
        if not (order == np.arange(len(order))).all():
            raise ValueError("Clusters must be sorted by user, then snapshot, then time.")

    def __len__(self) -> int:
        return len(self.columns[USER_ID])

    def __getitem__(self, name: str) -> np.ndarray:
        """The values of a column, [n]: int64, float32, or str objects.

        Raises:
            KeyError: if there is no such column.
        """
        if name not in self.columns:
            raise KeyError(f"The clusters have no column {name!r}. Present: {list(self.columns)}")
        return np.asarray(self.columns[name])

    def __repr__(self) -> str:
        return f"Clusters({len(self):,} rows; columns: {', '.join(self.columns)})"

    def bounds(self, user_id: Column, timestamp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the clusters of users lie that are known at a moment: those of the latest snapshot up to it.

        Args:
            user_id: users, [n].
            timestamp: int64 [n].

        Returns:
            int64 [n] twice: the clusters of row i are rows `start[i]:end[i]`. Both are equal where there are none.
        """
        firsts = self._blocks
        ends = np.append(firsts[1:], len(self))
        blocks = {name: self.columns[name][firsts] for name in (USER_ID, ITEM_ID)}
        blocks[TIMESTAMP] = self.columns[SNAPSHOT][firsts]
        # A snapshot at the very moment is known: its behaviours lie strictly before it.
        moments = np.minimum(timestamp, np.iinfo("int64").max - 1) + 1
        first, end = Interactions(blocks, Report(len(firsts), len(firsts))).bounds(user_id, moments)
        last = np.maximum(end - 1, 0)
        found = end > first
        return np.where(found, firsts[last], 0), np.where(found, ends[last], 0)

    def check_bounds(self, start: np.ndarray, end: np.ndarray, user_id: Column, timestamp: np.ndarray) -> None:
        """Checks that impressions have only the user's own clusters, of a snapshot that is not later than they are.

        Args:
            start: int64 [n], first row of each impression's clusters.
            end: int64 [n], the row after the last.
            user_id: users, [n].
            timestamp: int64 [n].

        Raises:
            ValueError: if one does not, or if it has those of several snapshots.
        """
        check_ranges(start, end, len(self), len(timestamp))
        full = np.flatnonzero(end > start)
        first, last = start[full], end[full] - 1
        blocks = [np.searchsorted(self._blocks, rows, side="right") for rows in (first, last)]
        users = user_positions(self.columns[USER_ID], user_id)[full]
        numbers = id_numbers(self.columns[USER_ID])
        wrong = (users < 0) | (numbers[first] != numbers[users]) | (blocks[0] != blocks[1])
        if wrong.any():
            row = full[wrong.argmax()]
            raise ValueError(
                "An impression must have only clusters of its user, of one snapshot. "
                f"Received at row {row}: start={start[row]}, end={end[row]}"
            )
        moments = self.columns[SNAPSHOT][first]
        later = moments > timestamp[full]
        if later.any():
            row = full[later.argmax()]
            raise ValueError(
                "Clusters must not look into the future: their snapshot must not be later than the impression. "
                f"Received at row {row}: snapshot={moments[later.argmax()]}, timestamp={timestamp[row]}"
            )

    @functools.cached_property
    def _blocks(self) -> np.ndarray:
        """int64, the first row of each user's each snapshot."""
        users, moments = id_numbers(self.columns[USER_ID]), self.columns[SNAPSHOT]
        return np.flatnonzero(np.append(True, (users[1:] != users[:-1]) | (moments[1:] != moments[:-1])))


def cluster_log(
    log: Interactions,
    item_ids: Any,
    item_vectors: Any,
    *,
    snapshots: Sequence[int] | np.ndarray,
    group_by: str | None = None,
    num_groups: int = 5,
    max_size: int = 20,
    seed: int = 0,
    means: Sequence[str] = (),
) -> Clusters:
    """Clusters the behaviours of each user before some moments, by `cluster_behaviours`.

    The clusters of a snapshot T are those of all behaviours strictly before T, so nothing in them is later than T. A
    user without new behaviours since the last snapshot has none in this one: those of the last stand. A cluster is a
    behaviour:

    | column | of a cluster |
    |---|---|
    | `timestamp` | the mean, rounded down |
    | those of `means` | the mean, float32 |
    | `size`, float32 | how many behaviours are in it |
    | `snapshot` | T |
    | all others | those of the behaviour nearest the centroid, the most recent of the nearest |

    Behaviours of items that `item_ids` lacks are in clusters of their own, split by time.

    Args:
        log: the behaviours. The order of those of one moment, which a log does not tell, makes no difference.
        item_ids: different item ids [items], int64, or strings or bytes in UTF-8.
        item_vectors: floats [items, D], e.g. the embeddings of a trained ranker (`save_item_vectors`).
        snapshots: the moments, ascending integers in the unit of the log's timestamps (`regular_snapshots`).
        group_by: a column of numbers, e.g. the played proportion or the rating. Behaviours are put into groups by its
            quantiles among the user's behaviours of the snapshot, and no cluster has behaviours of two groups. `None`:
            one group.
        num_groups: how many groups, M in the paper.
        max_size: most behaviours in a cluster, gamma in the paper.
        seed: of k-means.
        means: columns of numbers of which a cluster has the mean.

    Raises:
        ValueError: if an argument is out of its range, a column is missing or holds strings, the log has a column named
            `size` or `snapshot`, or no behaviour lies before the last snapshot.

    Reference:
        TWIN-V2, arXiv 2407.16357.
    """
    clustering = Clustering(snapshots, group_by, num_groups, max_size, seed, tuple(means))
    index = item_index(item_ids)
    vectors = check_vectors("item_vectors", item_vectors)
    if len(vectors) != len(index):
        raise ValueError(
            f"`item_vectors` must have a row for each of `item_ids`. Received: {len(vectors)} rows, {len(index)} ids"
        )
    taken = [name for name in (SIZE, SNAPSHOT) if name in log.columns]
    if taken:
        raise ValueError(f"The log must not have columns that clusters add. Received: {taken}")
    numbers = [name for name, column in log.columns.items() if isinstance(column, np.ndarray)]
    wrong = [name for name in clustering.numeric if name not in numbers]
    if wrong:
        raise ValueError(f"`group_by` and `means` must name columns of numbers, among {numbers}. Received: {wrong}")

    order = np.lexsort((*tie_keys(log.columns), log.timestamps, id_numbers(log.columns[USER_ID])))
    columns = {name: column[order] for name, column in log.columns.items()}
    items = item_rows(index, columns[ITEM_ID])
    numeric = {name: columns[name] for name in clustering.numeric}
    parts, rows = [], []
    for user in tqdm(_user_slices(columns[USER_ID]), desc="clusters", unit="user"):
        of_user = {name: column[user] for name, column in numeric.items()}
        parts.append(clustering.of_user(columns[TIMESTAMP][user], items[user], vectors, of_user))
        rows.append(user.start + parts[-1].representatives)
    representatives = np.concatenate(rows)
    if not len(representatives):
        raise ValueError(f"No behaviour lies before the last of `snapshots`, {clustering.snapshots[-1]}.")
    table = {name: column[representatives] for name, column in columns.items()}
    table |= {name: np.concatenate([part.means[name] for part in parts]) for name in clustering.means}
    table[TIMESTAMP] = np.concatenate([part.timestamps for part in parts])
    table[SNAPSHOT] = np.concatenate([part.snapshots for part in parts])
    table[SIZE] = np.concatenate([part.sizes for part in parts])
    return Clusters(table)


def tie_keys(columns: Mapping[str, Column]) -> list[np.ndarray]:
    """What orders behaviours of one user and moment: all columns of one value, as `numpy.lexsort` takes them."""
    others = sorted(set(columns) - {USER_ID, ITEM_ID, TIMESTAMP}, reverse=True)
    names = [name for name in (*others, ITEM_ID) if not isinstance(columns[name], ValueLists)]
    return [id_numbers(columns[name]) for name in names]


def _user_slices(users: Column) -> list[slice]:
    numbers = id_numbers(users)
    starts = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1]))
    ends = np.append(starts[1:], len(numbers))
    return [slice(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
