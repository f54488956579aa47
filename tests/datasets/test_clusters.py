"""Clusters of behaviours: what is in one, what it stands for, and that none looks into the future."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from keras_eta import Feature, FeatureLookup, Features, Sequence
from keras_eta.datasets import (
    Clusters,
    Impressions,
    Interactions,
    cluster_behaviours,
    cluster_log,
    load_item_vectors,
    quantile_groups,
    regular_snapshots,
    save_item_vectors,
)
from keras_eta.datasets.histories import Histories
from tests.paper import paper_eta

from . import reference

# Two far groups of items, and z, which no vector is known of.
VECTORS = {"a": [0.0, 0.0], "b": [1.0, 0.0], "c": [0.0, 2.0], "p": [90.0, 90.0], "q": [91.0, 90.0]}


def test_two_obvious_clusters() -> None:
    vectors = [[0, 0], [10, 10], [0, 1], [10, 11], [1, 0], [11, 10]]
    assert cluster_behaviours(vectors, max_size=3).tolist() == [0, 1, 0, 1, 0, 1]
    assert cluster_behaviours(vectors, max_size=6).tolist() == [0] * 6
    # A group is never mixed with another, however near.
    assert cluster_behaviours(vectors, [7, 7, 7, 7, -1, -1], max_size=3).tolist() == [0, 1, 0, 1, 2, 2]
    assert cluster_behaviours(vectors, [7, 7, 7, 7, -1, -1], max_size=4).tolist() == [0, 0, 0, 0, 1, 1]


def test_few_behaviours() -> None:
    assert cluster_behaviours(np.zeros([0, 3])).tolist() == []
    assert cluster_behaviours([[1.0]]).tolist() == [0]
    assert cluster_behaviours(np.random.default_rng(0).normal(size=[20, 3])).tolist() == [0] * 20
    assert cluster_behaviours([[1.0], [2.0], [1.0]], max_size=1).tolist() == [0, 1, 2]


def test_equal_vectors_are_split_by_order() -> None:
    assert cluster_behaviours(np.ones([7, 2]), max_size=3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    # 0 and -0 are equal; the other vector is a cluster of its own.
    vectors = np.array([[0.0], [9.0], [-0.0], [0.0], [-0.0]])
    assert cluster_behaviours(vectors, max_size=2).tolist() == [0, 1, 0, 2, 2]


@pytest.mark.parametrize("scale", [1e-45, 1e-20, 1e38])
def test_vectors_of_any_scale(scale: float) -> None:
    vectors = np.random.default_rng(0).integers(-3, 4, [90, 2]) * np.float32(scale)
    assert np.bincount(cluster_behaviours(vectors, max_size=4)).max() <= 4


def test_a_few_scales_in_one_history() -> None:
    # k-means can't tell the small ones apart beside the large ones.
    vectors = np.concatenate([np.full([3, 1], 1e30), np.arange(1, 40)[:, np.newaxis] * 1e-30]).astype("float32")
    assert np.bincount(cluster_behaviours(vectors, max_size=4)).max() <= 4


def test_the_seed_decides() -> None:
    vectors = np.random.default_rng(1).normal(size=[300, 4])
    first, again, other = (cluster_behaviours(vectors, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vectors": [[1.0], [np.nan]]}, "`vectors` must be finite as float32. Received at row 1: [nan]"),
        ({"vectors": [[1e39]]}, "`vectors` must be finite as float32. Received at row 0: [inf]"),
        ({"vectors": [1.0, 2.0]}, "`vectors` must be floats of shape [n, D]. Received: shape [2], float64"),
        ({"vectors": [["x"]]}, "`vectors` must be floats of shape [n, D]. Received: shape [1, 1], <U1"),
        ({"groups": [1]}, "`groups` must hold 2 integers. Received: shape [1], int64"),
        ({"groups": [0.5, 1.0]}, "`groups` must hold 2 integers. Received: shape [2], float64"),
        ({"max_size": 0}, "`max_size` must be a positive integer. Received: max_size=0"),
        ({"seed": -1}, "`seed` must be an integer of at least 0. Received: seed=-1"),
    ],
)
def test_cluster_behaviours_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        cluster_behaviours(**{"vectors": [[1.0], [2.0]], **arguments})


def test_quantile_groups_by_hand() -> None:
    assert quantile_groups([9, 1, 2, 3, 4, 5, 6, 7, 8, 10], 5).tolist() == [4, 0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert quantile_groups([1, 1, 1, 1, 5], 5).tolist() == [0, 0, 0, 0, 4]
    assert quantile_groups([0.5, 0.25], 5).tolist() == [2, 0]
    assert quantile_groups([], 5).tolist() == []
    with pytest.raises(ValueError, match="`values` must be finite numbers in one dimension"):
        quantile_groups([np.nan], 2)
    with pytest.raises(ValueError, match=re.escape("`num_groups` must be a positive integer. Received: num_groups=0")):
        quantile_groups([1.0], 0)


@settings(max_examples=40, deadline=None)
@given(
    points=st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 1)), max_size=60),
    max_size=st.integers(1, 9),
    data=st.data(),
)
def test_every_behaviour_is_in_one_cluster_of_its_group(points: Any, max_size: int, data: Any) -> None:
    vectors = np.array(points, float).reshape(-1, 2)
    groups = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(points), max_size=len(points))), int)
    numbers = cluster_behaviours(vectors, groups, max_size=max_size)
    assert numbers.shape == (len(points),)
    sizes = np.bincount(numbers)
    assert sizes.sum() == len(points)
    assert not len(points) or 1 <= sizes.min() <= sizes.max() <= max_size
    assert all(len(set(groups[numbers == number])) == 1 for number in range(len(sizes)))
    expected = [
        cluster
        for group in set(groups.tolist())
        for cluster in reference.hierarchical_clusters(
            vectors.tolist(), np.flatnonzero(groups == group).tolist(), max_size, 0
        )
    ]
    assert sorted(np.flatnonzero(numbers == number).tolist() for number in range(len(sizes))) == sorted(expected)


def small_log(**columns: Any) -> Interactions:
    """User 1 acts at 10 to 60, user 2 at 20; z is an item without a vector."""
    values = {
        "user_id": [1, 1, 1, 1, 1, 1, 1, 2],
        "item_id": ["a", "p", "b", "q", "c", "z", "a", "b"],
        "timestamp": [10, 20, 30, 41, 50, 55, 60, 20],
        "category_id": [1, 2, 3, 4, 5, 6, 7, 8],
        "dwell": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    }
    return Interactions.from_columns({**values, **columns})


def small_clusters(log: Interactions | None = None, **arguments: Any) -> Clusters:
    arguments = {"snapshots": [50, 56, 58, 100], "max_size": 3, "means": ("dwell",), **arguments}
    return cluster_log(log or small_log(), list(VECTORS), list(VECTORS.values()), **arguments)


def rows_of(clusters: Clusters) -> list[Mapping[str, Any]]:
    return reference.rows_of({name: clusters[name].tolist() for name in clusters.columns})


def test_clusters_by_hand() -> None:
    clusters = small_clusters()
    # Of user 1 at 50: a, b and p, q; both of a pair are as near its centroid, the later one stands for it. At 56: a, b,
    # c with a in the middle, p, q, and z, unknown and alone. At 58 nothing is new. At 100 four are near: c parts.
    names = ("user_id", "snapshot", "item_id", "category_id", "timestamp", "size", "dwell")
    expected = [
        (1, 50, "b", 3, 20, 2.0, 2.0),
        (1, 50, "q", 4, 30, 2.0, 3.0),
        (1, 56, "q", 4, 30, 2.0, 3.0),
        (1, 56, "a", 1, 30, 3.0, 3.0),
        (1, 56, "z", 6, 55, 1.0, 6.0),
        (1, 100, "q", 4, 30, 2.0, 3.0),
        (1, 100, "a", 7, 33, 3.0, float(np.float32(11 / 3))),
        (1, 100, "c", 5, 50, 1.0, 5.0),
        (1, 100, "z", 6, 55, 1.0, 6.0),
        (2, 50, "b", 8, 20, 1.0, 8.0),
    ]
    assert [tuple(row[name] for name in names) for row in rows_of(clusters)] == expected
    assert clusters["size"].dtype == clusters["dwell"].dtype == np.float32
    assert clusters["snapshot"].dtype == clusters["timestamp"].dtype == np.int64
    assert len(clusters) == 10
    assert repr(clusters) == (
        "Clusters(10 rows; columns: user_id, item_id, timestamp, category_id, dwell, snapshot, size)"
    )
    with pytest.raises(KeyError, match=re.escape("The clusters have no column 'rating'. Present: ")):
        clusters["rating"]


def test_bounds_are_those_of_the_latest_snapshot() -> None:
    clusters = small_clusters()
    users = [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 0]
    times = [49, 50, 55, 56, 57, 58, 99, 100, 49, 50, 2**63 - 1, 90, 90]
    start, end = clusters.bounds(np.array(users), np.array(times))
    assert start.tolist() == [0, 0, 0, 2, 2, 2, 2, 5, 0, 9, 9, 0, 0]
    assert end.tolist() == [0, 2, 2, 5, 5, 5, 5, 9, 0, 10, 10, 0, 0]
    assert start.dtype == end.dtype == np.int64
    clusters.check_bounds(start, end, np.array(users), np.array(times))


def test_bounds_of_users_that_are_strings() -> None:
    clusters = small_clusters(small_log(user_id=["u", *["v"] * 7]))
    start, end = clusters.bounds(pd.Categorical(["w", "u", "v"]), np.array([100, 100, 55]))
    assert (start.tolist(), end.tolist()) == ([0, 0, 1], [0, 1, 3])
    with pytest.raises(ValueError, match=re.escape("'user_id' must hold strings in both")):
        clusters.bounds(np.array([1]), np.array([100]))


@pytest.mark.parametrize(
    ("start", "end", "users", "message"),
    [
        (
            [0, 2],
            [0, 5],
            [1, 1],
            "Clusters must not look into the future: their snapshot must not be later than the impression. "
            "Received at row 1: snapshot=56, timestamp=55",
        ),
        ([0, 1], [2, 3], [1, 1], "its user, of one snapshot. Received at row 1: start=1, end=3"),
        ([5, 0], [10, 2], [1, 1], "its user, of one snapshot. Received at row 0: start=5, end=10"),
        ([2, 0], [5, 2], [1, 2], "its user, of one snapshot. Received at row 1: start=0, end=2"),
        ([0, 0], [2, 2], [3, 1], "its user, of one snapshot. Received at row 0: start=0, end=2"),
        ([0, 9], [0, 11], [1, 1], "Histories must be ranges of the log's 10 rows, `start` <= `end`."),
        ([0], [2], [1, 1], "`start` must have shape [2]. Received: shape [1]"),
    ],
)
def test_check_bounds_refuses(start: list[int], end: list[int], users: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        small_clusters().check_bounds(*map(np.array, (start, end, users, [70, 55])))


def test_impressions_with_clusters() -> None:
    log, clusters = small_log(), small_clusters()
    features = Features(
        item_id=Feature("item_id", "string"),
        sequences=(Sequence("clusters", (Feature("size", "float32"), Feature("dwell", "float32")), max_length=2),),
        max_history_length=1,
    )
    label = [0, 1] * 4
    impressions = Impressions.from_interactions(log, label, min_history=0, outcomes=("dwell",))
    ((batch, _),) = impressions.with_sequence("clusters", clusters).to_dataset(features, 8).as_numpy_iterator()
    # Of user 1 at 10 to 41 none, at 50 and 55 those of 50, at 60 the last two of 56, the most recent first;
    # of user 2 at 20 none.
    assert batch["clusters_length"].tolist() == [0, 0, 0, 0, 2, 2, 2, 0]
    assert batch["clusters_item_id"].tolist() == [[b"", b""]] * 4 + [[b"q", b"b"]] * 2 + [[b"z", b"a"], [b"", b""]]
    assert batch["clusters_size"].tolist() == [[0, 0]] * 4 + [[2, 2]] * 2 + [[1, 3], [0, 0]]
    assert batch["clusters_dwell"].tolist() == [[0, 0]] * 4 + [[3, 2]] * 2 + [[6, 3], [0, 0]]
    end = np.full(8, 2)
    with pytest.raises(ValueError, match="Received at row 0: snapshot=50, timestamp=10"):
        dataclasses.replace(impressions[:4], sequences={"clusters": Histories(clusters, 0 * end[:4], end[:4])})


def test_columns_of_several_values_are_those_of_the_nearest() -> None:
    genres = [["x"], ["y"], [], ["x", "y"], ["z"], ["x"], ["y"], []]
    clusters = small_clusters(small_log(genres=genres), snapshots=[50])
    assert [values.tolist() for values in clusters["genres"]] == [[], ["x", "y"], []]


TABLE = {"user_id": [1, 1], "item_id": [5, 6], "timestamp": [10, 20], "snapshot": [30, 30], "size": [2, 1]}


def test_a_table_of_ones_own() -> None:
    clusters = Clusters(TABLE)
    assert clusters["size"].dtype == np.float32
    assert [x.tolist() for x in clusters.bounds(np.array([1]), np.array([30]))] == [[0], [2]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"timestamp": [10, 30]},
            "A cluster's timestamp must be before its snapshot. Received at row 1: timestamp=30, snapshot=30",
        ),
        ({"timestamp": [20, 10]}, "Clusters must be sorted by user, then snapshot, then time."),
        ({"snapshot": [31, 30]}, "Clusters must be sorted by user, then snapshot, then time."),
        ({"user_id": [2, 1]}, "Clusters must be sorted by user, then snapshot, then time."),
        ({"size": [2, 0]}, "`size` of a cluster must be at least 1. Received at row 1: 0"),
        ({"size": ["x", "y"]}, "Column 'size' of the clusters must hold numbers, one per row."),
        ({"size": [1.0, np.nan]}, "The clusters hold 1 missing size, the first at row 1."),
        ({"snapshot": [30.5, 40]}, "The clusters hold 1 non-integer snapshot, the first at row 0."),
        ({"size": None}, "Missing columns in the clusters: ['size']. Present: ['user_id', 'item_id', "),
        ({"item_id": None}, "Missing columns in the clusters: ['item_id']"),
        ({"item_id": [1]}, "All columns of the clusters must be equally long."),
        ({name: [] for name in TABLE}, "There are no clusters."),
    ],
)
def test_clusters_refuse(columns: dict[str, Any], message: str) -> None:
    table = {name: values for name, values in {**TABLE, **columns}.items() if values is not None}
    with pytest.raises(ValueError, match=re.escape(message)):
        Clusters(table)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"snapshots": []}, "`snapshots` must be integers, at least one, strictly ascending. Received: snapshots=[]"),
        ({"snapshots": [5, 5]}, "`snapshots` must be integers, at least one, strictly ascending."),
        ({"snapshots": [0.5]}, "`snapshots` must be integers, at least one, strictly ascending."),
        ({"snapshots": 5}, "`snapshots` must be integers, at least one, strictly ascending. Received: snapshots=5"),
        ({"snapshots": [10]}, "No behaviour lies before the last of `snapshots`, 10."),
        ({"num_groups": 0}, "`num_groups` must be a positive integer. Received: num_groups=0"),
        ({"max_size": 0}, "`max_size` must be a positive integer. Received: max_size=0"),
        ({"seed": 0.5}, "`seed` must be an integer of at least 0. Received: seed=0.5"),
        ({"means": ("timestamp",)}, "`means` must not name ['timestamp']. Received: means=('timestamp',)"),
        (
            {"group_by": "played"},
            "`group_by` and `means` must name columns of numbers, among ['user_id', 'timestamp', 'category_id', "
            "'dwell']. Received: ['played']",
        ),
        ({"means": ("item_id",)}, "`means` must not name ['item_id']."),
        ({"log": small_log(size=[1] * 8)}, "The log must not have columns that clusters add. Received: ['size']"),
        (
            {"log": small_log(item_id=list(range(8)))},
            "`item_ids` must be of the type of the log's 'item_id', integers. Received: strings",
        ),
    ],
)
def test_cluster_log_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        small_clusters(**arguments)


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (["a", "b"], [[1.0]], "`item_vectors` must have a row for each of `item_ids`. Received: 1 rows, 2 ids"),
        (["a", "a"], [[1.0], [2.0]], "`item_ids` must be different. Received twice: 'a'"),
        (
            [0.5],
            [[1.0]],
            "`item_ids` must hold integers of 64 bits, strings or bytes, at least one, in one dimension.",
        ),
        ([], np.zeros([0, 2]), "`item_ids` must hold integers of 64 bits, strings or bytes, at least one"),
        (["a"], [[np.inf]], "`item_vectors` must be finite as float32. Received at row 0: [inf]"),
    ],
)
def test_items_are_checked(ids: Any, vectors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        cluster_log(small_log(), ids, vectors, snapshots=[100])


def test_groups_are_quantiles_of_the_past() -> None:
    # All are near each other, but half were played to the end.
    log = Interactions.from_columns(
        {
            "user_id": [1] * 6,
            "item_id": [0] * 6,
            "timestamp": [1, 2, 3, 4, 8, 9],
            "played": [0.1, 1.0, 0.2, 0.9, 0.0, 0.0],
        }
    )
    clusters = cluster_log(log, [0], [[1.0]], snapshots=[5, 10], group_by="played", num_groups=2, means=("played",))
    # At 5 the median is 0.2. At 10 it is 0.1: 0.1, 0, 0 and 1, 0.2, 0.9.
    assert clusters["timestamp"].tolist() == [2, 3, 3, 6]
    np.testing.assert_allclose(clusters["played"], [0.15, 0.95, 0.7, 0.1 / 3], rtol=1e-6)


def test_means_of_timestamps_beyond_the_sum_of_int64() -> None:
    times = [2**62 + 1, 2**62 + 2, 2**62 + 4, 2**62 + 6]
    log = Interactions.from_columns({"user_id": [1] * 4, "item_id": [0] * 4, "timestamp": times})
    assert cluster_log(log, [0], [[1.0]], snapshots=[2**62 + 9])["timestamp"].tolist() == [2**62 + 3]
    negative = Interactions.from_columns({"user_id": [1] * 2, "item_id": [0] * 2, "timestamp": [-4, -1]})
    assert cluster_log(negative, [0], [[1.0]], snapshots=[0])["timestamp"].tolist() == [-3]


def test_regular_snapshots() -> None:
    log = small_log()
    assert regular_snapshots(log, 20).tolist() == [30, 50]
    assert regular_snapshots(log, 25).tolist() == [35, 60]
    assert regular_snapshots(log, 50).tolist() == [60]
    with pytest.raises(ValueError, match=re.escape("`period` must be at most 50, the log's span. Received: period=51")):
        regular_snapshots(log, 51)
    with pytest.raises(ValueError, match=re.escape("`period` must be a positive integer. Received: period=0")):
        regular_snapshots(log, 0)


@st.composite
def logs(draw: Any) -> dict[str, list[Any]]:
    row = st.tuples(
        st.integers(1, 3),
        st.sampled_from([*VECTORS, "z", "y"]),
        st.integers(0, 12),
        st.integers(0, 2),
        st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    )
    rows = draw(st.lists(row, min_size=1, max_size=40, unique=True))
    names = ("user_id", "item_id", "timestamp", "category_id", "dwell")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


@settings(max_examples=25, deadline=None)
@given(columns=logs(), max_size=st.integers(1, 5), data=st.data())
def test_cluster_log_as_in_loops(columns: dict[str, list[Any]], max_size: int, data: Any) -> None:
    options: dict[str, Any] = {"group_by": "dwell", "num_groups": 2, "max_size": max_size, "means": ("dwell",)}
    rows = reference.rows_of(columns)
    assume(min(columns["timestamp"]) < 9)
    clusters = small_clusters(Interactions.from_columns(columns), snapshots=[4, 5, 9], **options)
    found, expected = rows_of(clusters), []
    for user in sorted(set(columns["user_id"])):
        own = [row for row in rows if row["user_id"] == user]
        for moment, earlier in ((4, -1), (5, 4), (9, 5)):
            if any(earlier <= row["timestamp"] < moment for row in own):
                expected += reference.clusters(own, VECTORS, moment, **options)
    assert found == expected

    # Nothing at or after a snapshot is in its clusters, and everything before is, once.
    for row in found:
        assert row["timestamp"] < row["snapshot"]
    users, times = np.repeat([1, 2, 3], 14), np.tile(np.arange(14), 3)
    start, end = clusters.bounds(users, times)
    clusters.check_bounds(start, end, users, times)
    for user, now, first, last in zip(users, times, start, end, strict=True):
        snapshot = max((moment for moment in (4, 5, 9) if moment <= now), default=-1)
        before = [row for row in rows if row["user_id"] == user and row["timestamp"] < snapshot]
        assert clusters["size"][first:last].sum() == len(before)

    # The order in which the rows came makes no difference, nor does what comes after the last snapshot.
    order = data.draw(st.permutations(range(len(rows))))
    shuffled = {name: [values[i] for i in order if rows[i]["timestamp"] < 9] for name, values in columns.items()}
    again = small_clusters(Interactions.from_columns(shuffled), snapshots=[4, 5, 9], **options)
    assert rows_of(again) == found


@pytest.mark.parametrize(
    "ids", [[7, 3], ["x", "long id"], [b"x", "long \u00e9".encode()]], ids=["integers", "strings", "bytes"]
)
def test_item_vectors_travel_by_file(ids: Any, tmp_path: Any) -> None:
    save_item_vectors(tmp_path / "items", ids, [[1, 2], [3, 4]])
    loaded, vectors = load_item_vectors(tmp_path / "items")
    assert loaded.tolist() == [id_.decode() if isinstance(id_, bytes) else id_ for id_ in ids]
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[1, 2], [3, 4]]
    with (tmp_path / "items").open("rb") as file:
        assert load_item_vectors(file)[0].equals(loaded)


def test_save_item_vectors_refuses(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=re.escape("`item_ids` must not end with a NUL. Received: 'x\\x00'")):
        save_item_vectors(tmp_path / "items", ["x\0"], [[1.0]])
    with pytest.raises(ValueError, match="`vectors` must have a row for each of `item_ids`"):
        save_item_vectors(tmp_path / "items", ["x", "y"], [[1.0]])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["int64", "string"])
def test_item_vectors_of_a_ranker(dtype: str, tmp_path: Any) -> None:
    items = np.array([5, 9, 9, 2]) if dtype == "int64" else np.array(["milk", "br\u00f6t", "br\u00f6t", "x"])
    lookup = FeatureLookup(Features(item_id=Feature("item_id", dtype, embedding_dim=3, num_oov_indices=2)))
    lookup.adapt({"item_id": items})
    model = paper_eta(lookup=lookup, top_k=2, num_bits=8, hidden_units=(1,))
    model.build()
    # As `save_item_vectors` documents.
    ids = lookup.tables["item_id"].get_vocabulary(include_special_tokens=False)
    rows = lookup.encode("item_id", ids)
    save_item_vectors(tmp_path / "items", ids, model.embeddings["item_id"].embeddings.numpy()[rows])
    loaded, vectors = load_item_vectors(tmp_path / "items")
    assert sorted(loaded.tolist()) == sorted(set(items.tolist()))
    table = model.embeddings["item_id"].embeddings.numpy()
    for item, vector in zip(loaded, vectors, strict=True):
        assert vector.tolist() == table[lookup.encode("item_id", [item])[0]].tolist()
