"""The benchmark of quality: its command, its results and that it goes on where it stopped."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.quality import __main__ as command
from benchmarks.quality import ablation, needle, own_logs, recall, staleness
from benchmarks.quality.ablation import Variant, variants
from benchmarks.quality.clustered import with_clusters
from benchmarks.quality.further_query import RecentQueryInterest
from benchmarks.quality.protocols import LOADERS, Protocol, load_taobao
from benchmarks.quality.results import Result, print_table, read_results, write_results
from benchmarks.quality.training import ranking_scores
from benchmarks.quality.units import CLUSTERED, LEARNED, UNITS, USER_ID_DROPOUT, make_ranker, ranker_of
from keras_eta import Feature, FeatureLookup, Features
from keras_eta.datasets import Impressions, Interactions
from keras_eta.datasets.impressions import temporal_split
from keras_eta.interest.top_k import largest_k


def _protocol(path: str | None, max_history_length: int, max_rows: int | None) -> Protocol:
    """Users who choose items of one category, early and late."""
    rng = np.random.default_rng(0)
    rows = 400
    user = rng.integers(0, 12, rows)
    item = (user % 4) * 5 + rng.integers(0, 5, rows)
    log = Interactions.from_columns(
        {
            "user_id": user,
            "item_id": item,
            "category": [f"c{number // 5}" for number in item],
            "timestamp": np.sort(rng.integers(0, 10_000, rows)),
        }
    )
    impressions = Impressions.from_interactions(log, lambda log: log["item_id"] % 2, min_history=1)
    features = Features(
        Feature("item_id"), item_attributes=(Feature("category", "string"),), max_history_length=max_history_length
    )
    lookup = FeatureLookup(features)
    lookup.adapt({"item_id": log["item_id"], "category": log["category"]})
    train, validation, test = temporal_split(impressions)
    return Protocol("tiny", train, validation, test, lookup, category="category", long_history=20)


def _result(**changes: object) -> Result:
    values: dict[str, object] = dict.fromkeys((field for field in Result.__dataclass_fields__), 0.5)
    values |= {"data": "tiny", "unit": "eta", "seed": 0, "task": True, "cosine": True, "epochs": 2}
    return Result(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.slow
def test_command_trains_judges_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(LOADERS, "movielens", (_protocol, 24))
    file = tmp_path / "results.json"
    arguments = ["quality", "movielens", "--units", "recent", "eta", "--seeds", "0", "--epochs", "2"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--json", str(file)])
    command.main()
    rows = json.loads(file.read_text())
    assert [(row["unit"], row["seed"], row["max_history_length"]) for row in rows] == [
        ("recent", 0, 24),
        ("eta", 0, 24),
    ]
    for row in rows:
        assert row["rows"] > 300
        assert row["epochs"] in (1, 2)
        assert 0.3 < row["auc"] <= 1
        assert row["log_loss"] > 0
        assert row["training_seconds"] > 0
        assert row["request_ms"] > 0
    # Both are known: nothing is trained again.
    monkeypatch.setattr(command, "run", None)
    command.main()
    assert json.loads(file.read_text()) == rows
    assert "eta (cosine)" in capsys.readouterr().out


def test_every_contestant_can_be_made() -> None:
    plain = _protocol(None, 24, None)
    table = np.random.default_rng(0).normal(size=[plain.features.item_id.num_indices, 4])
    clustered = with_clusters(plain, table, seed=0)
    for name in UNITS:
        data = plain.with_user_id() if name in USER_ID_DROPOUT else clustered if name in CLUSTERED else plain
        ranker = make_ranker(name, data, task=True, cosine=False)
        assert ranker.interests[0].name == "recent_interest"
        assert ranker.retrieval_task is not None
        dropped = {"item_id": 0.01, "category": 0.01, "user_id": USER_ID_DROPOUT.get(name)}
        assert ranker.id_dropout.rate == (dropped if name in USER_ID_DROPOUT else 0.01)
    clusters, log = clustered.test.histories["clusters"].log, plain.test.log
    assert np.asarray(clusters.columns["size"]).max() <= 20
    assert len(clusters) < len(log) * 24
    assert [feature.name for feature in clustered.features.user] == []
    assert [feature.name for feature in plain.with_user_id().features.user] == ["user_id"]


def test_further_query_finds_what_is_nearest_to_the_mean_of_the_last() -> None:
    data = _protocol(None, 24, None)
    unit: Any = RecentQueryInterest(16, 5, 64, name="recent_query", **LEARNED)
    model = ranker_of([unit], "query", data, task=False, cosine=True)
    model.build()
    columns, _ = next(iter(data.test.to_dataset(data.features, 8, lookup=data.lookup)))
    retrieved = model(columns, return_scores=True).interests["recent_query"].retrieved
    table = unit.tables["item_id"]
    rows, planes = table.embeddings.numpy(), table.hash.planes.numpy()
    for number, length in enumerate(columns["history_length"].numpy()):
        items = columns["history_item_id"].numpy()[number, :length]
        query = rows[items[:16]].mean(axis=0) @ planes > 0
        distances = [int((query != (rows[item] @ planes > 0)).sum()) for item in items]
        nearest = sorted(range(length), key=lambda place: (distances[place], place))[:5]
        found, scores, real = (x.numpy()[number, 0] for x in (retrieved.positions, retrieved.scores, retrieved.mask))
        assert dict(zip(found[real], scores[real], strict=True)) == {place: distances[place] for place in nearest}


def test_users_whom_training_lacks_are_judged_apart() -> None:
    data = _protocol(None, 24, None)
    users = np.asarray(data.test.columns["user_id"])
    gone = users[0]
    train = data.train[np.flatnonzero(np.asarray(data.train.columns["user_id"]) != gone)]
    data = dataclasses.replace(data, train=train)
    np.testing.assert_array_equal(data.new_users, users == gone)
    scores = np.where(users == gone, data.test.label, 0.5)
    found = ranking_scores(scores, data)
    assert found["auc_new_users"] == found["grouped_auc_new_users"] == 1
    assert 0.5 <= found["grouped_auc"] < 1
    assert "auc_new_users" not in ranking_scores(scores, _protocol(None, 24, None))


def test_variants_with_nothing_changed_are_one() -> None:
    names = [variant.name for variant in variants(["M", "K", "counts"])]
    assert names == [
        *("eta M=8", "eta M=16", "eta M=32", "eta", "eta M=128", "eta M=256"),
        *("eta K=8", "eta K=16", "eta K=128", "eta K=256", "eta counts=off"),
    ]
    assert Variant("M", 128).unit().distance_edges == (0, 2, 6, 12, 18, 24, 32, 40, 52)
    assert Variant("counts", "off").unit().distance_edges == ()
    assert Variant("planes", "fixed").unit().trainable_planes is False


def test_results_survive_a_file(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "results.json"
    assert read_results(file, Result) == []
    results = [_result(), _result(seed=1)]
    write_results(file, results)
    assert read_results(file, Result) == results
    assert [path.name for path in file.parent.iterdir()] == ["results.json"]
    file.write_text("[{}]")
    with pytest.raises(ValueError, match="holds no results of this benchmark"):
        read_results(file, Result)


def test_table_has_mean_and_spread(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([_result(auc=0.7), _result(seed=1, auc=0.8), _result(unit="full", auc=0.6)])
    out = capsys.readouterr().out
    # The standard deviation of .7 and .8, of one degree of freedom.
    assert "0.7500 ± 0.0707" in out
    assert "0.6000" in out


def test_taobao_needs_a_path() -> None:
    with pytest.raises(ValueError, match="taobao needs --data"):
        load_taobao(None, 10, None)


def test_log_of_repeats_has_taobaos_columns_and_users_who_come_back() -> None:
    log = own_logs.repeats(num_users=20, num_items=500)
    assert list(log.columns) == ["user_id", "item_id", "category_id", "action", "timestamp"]
    assert log.groupby("item_id")["category_id"].nunique().max() == 1
    assert log.groupby("user_id")["timestamp"].is_monotonic_increasing.all()
    again = log.groupby("user_id")["item_id"].apply(lambda items: items.duplicated().mean())
    # 35 % by intention, and what popularity repeats by itself.
    assert 0.3 < again.mean() < 0.6


def test_users_of_a_log_with_tastes_have_categories_that_they_like() -> None:
    def share_of_three(tastes: int) -> float:
        log = own_logs.repeats(num_users=40, num_items=2_000, tastes=tastes)
        counts = log.groupby("user_id")["category_id"].value_counts(normalize=True)
        return counts.groupby("user_id").nlargest(3).groupby(level=0).sum().mean()

    assert share_of_three(0) < 0.35 < 0.5 < share_of_three(3)


def test_own_logs_are_read_by_the_librarys_defaults() -> None:
    data = LOADERS["repeats"][0](None, 24, 300)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [300, 300, 300]
    assert data.features.max_history_length == 24
    with pytest.raises(ValueError, match="repeats makes its own log and reads none"):
        LOADERS["repeats"][0]("here", 24, None)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny data set in place of MovieLens, and experiments cut to its size."""
    monkeypatch.setitem(LOADERS, "movielens", (_protocol, 24))
    monkeypatch.setattr(recall, "BITS", (8,))
    monkeypatch.setattr(recall, "TOP_K", 3)
    monkeypatch.setattr(staleness, "measure", functools.partial(staleness.measure, periods=5, lags=(0, 2)))
    for name, small in (("USERS", 12), ("GROUPS", 4), ("IMPRESSIONS_PER_USER", 10), ("DEPTHS", (20,))):
        monkeypatch.setattr(needle, name, small)


def _run(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    files = ["--json", str(folder / "rows.json"), "--plot", str(folder / "plot.png")]
    monkeypatch.setattr(sys, "argv", ["quality", "movielens", "--seeds", "0", "--epochs", "1", *arguments, *files])
    command.main()
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    rows: list[dict[str, Any]] = json.loads((folder / "rows.json").read_text())
    return rows


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_recall_is_by_stage_and_bits_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _run(monkeypatch, tmp_path, "--experiment", "recall")
    assert [(row["stage"], row["bits"]) for row in rows] == [
        ("learned planes", 8),
        ("fixed planes", 8),
        ("inner product", 0),
        ("cosine", 0),
        ("category", 0),
        ("most recent", 0),
    ]
    assert all(0 < row["recall"] <= 1 for row in rows)
    # One line a stage, and nothing is trained again.
    monkeypatch.setattr(recall, "train", None)
    assert _run(monkeypatch, tmp_path, "--experiment", "recall") == rows
    assert "first stage" in capsys.readouterr().out


def test_recall_is_the_share_of_the_exact_choice() -> None:
    # Of five behaviours the scorer chooses 0, 1, 2; the stage finds 0, 2, 4; the last behaviour is padding.
    mask = tf.constant([[[True, True, True, True, True, False]]])
    exact, stage = (
        recall.chosen(largest_k(tf.constant([[scores]]), mask, 3), mask)
        for scores in ([5.0, 4.0, 3.0, 2.0, 1.0, 9.0], [5.0, 0.0, 4.0, 1.0, 3.0, 9.0])
    )
    assert exact.numpy().tolist() == [[[True, True, True, False, False, False]]]
    assert stage.numpy().tolist() == [[[True, False, True, False, True, False]]]
    np.testing.assert_allclose(recall.share(exact, stage), [2 / 3])


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_staleness_judges_fresh_and_old_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _run(monkeypatch, tmp_path, "--experiment", "staleness")
    # Of five periods the third and the fourth follow the longest lag and have one to be judged on.
    units = ("eta", "inner-product")
    expected = [(unit, period, lag) for unit in units for period in (3, 4) for lag in (0, 2)]
    expected += [("sim-hard", period, 0) for period in (3, 4)]
    assert sorted((row["unit"], row["period"], row["lag"]) for row in rows) == sorted(expected)


def test_a_lag_costs_what_the_fresh_search_has_more() -> None:
    points = [
        staleness.Point("eta", seed, period, lag, grouped, 0.5)
        for seed, period, lag, grouped in (
            (0, 1, 0, 0.7), (0, 1, 5, 0.6), (0, 2, 0, 0.8), (0, 2, 5, 0.5), (1, 1, 0, 0.9), (1, 1, 5, 0.9)
        )
    ]  # fmt: skip
    lost = staleness.losses(points)
    np.testing.assert_allclose(lost["eta", 5], [0.2, 0.0], atol=1e-12)
    np.testing.assert_allclose(lost["eta", 0], [0.0, 0.0])


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_needle_reports_units_by_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _run(monkeypatch, tmp_path, "--experiment", "needle", "--units", "recent")
    assert [(row["unit"], row["depth"]) for row in rows] == [("recent", 20)]
    assert 0 <= rows[0]["auc"] <= 1


def test_a_needle_lies_where_it_is_said_to_lie() -> None:
    data = needle.make_data(30, seed=3)
    users = [set(part.columns["user_id"]) for part in (data.train, data.validation, data.test)]
    assert [len(of_part) for of_part in users] == [800, 100, 100]
    assert len(set.union(*users)) == 1_000
    for part in (data.train, data.test):
        columns, label = next(iter(part.to_dataset(data.features, len(part))))
        history, candidate, label = columns["history_category"].numpy(), columns["category"].numpy(), label.numpy()
        assert history.shape[1] == 40
        sessions = history[:, ::10]
        # A session is of one group; the oldest is of the taste, which no other has.
        np.testing.assert_array_equal(history, np.repeat(sessions, 10, axis=1))
        taste, current = sessions[:, -1], sessions[:, 0]
        assert not (sessions[:, :-1] == taste[:, np.newaxis]).any()
        # A candidate is of the taste or of the last session if and only if it is liked; of the latter none is judged.
        np.testing.assert_array_equal((candidate == taste) | (candidate == current), label == 1)
        assert (candidate == taste).any()
        assert (candidate == current).any() == (part is data.train)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_ablation_changes_one_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ablation.AXES, "L", (8,))
    rows = _run(monkeypatch, tmp_path, "--experiment", "ablation", "--axes", "L")
    assert [(row["unit"], row["max_history_length"]) for row in rows] == [("eta L=8", 8)]


def test_variants_differ_in_one_part() -> None:
    usual = ablation.Variant("K", 48)
    config = usual.unit().get_config()
    assert (usual.task, usual.cosine, config["num_bits"], config["top_k"]) == (True, True, 64, 48)
    changed: dict[tuple[str, Any], dict[str, Any]] = {
        ("M", 8): {"num_bits": 8, "distance_edges": (0, 1, 2, 3)},
        ("counts", "off"): {"distance_edges": ()},
        ("K", 16): {"top_k": 16},
        ("planes", "fixed"): {"trainable_planes": False, "similarity_bias": False, "planes_period": 1},
        ("attention", "plain"): {"cosine": False},
        ("task", "no"): {},
        ("L", 64): {},
    }
    for (axis, value), part in changed.items():
        variant = ablation.Variant(axis, value)
        assert {**variant.unit().get_config(), "name": None} == {**config, **part, "name": None}
        assert variant.task is ((axis, value) != ("task", "no"))
