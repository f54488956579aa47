"""The benchmarks run, on tiny sizes, and report every contestant; `tests/serving/test_load.py` has the load tool."""

from __future__ import annotations

import argparse
import functools
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import memory, pipeline, retrieval, scale, timing, training
from keras_eta import Feature, Features

SIZES = ["--dim", "8", "--top_k", "3", "--items", "50", "--rounds", "2"]


def _run(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark", *SIZES, *flags])
    main()


def test_every_contestant_can_be_made() -> None:
    flags = argparse.Namespace(dim=8, bits=64, top_k=3, items=50)
    for kind in training.KINDS:
        model = training.make_model(kind, 20, flags, category=True)
        assert len(model.interests) == (1 if kind == "recent-only" else 1 + (kind != "no-long-history"))
    assert {*retrieval.UNITS} <= {*training.KINDS}


def test_training_reports_contestants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kinds = ("eta", "eta-learned", training.BFLOAT16, training.XLA, "twin-v2", "full", "no-long-history")
    monkeypatch.setattr(training, "KINDS", kinds)
    report, image = tmp_path / "report.json", tmp_path / "times.png"
    files = ("--json", str(report), "--plot", str(image))
    _run(training.main, monkeypatch, "--rows", "4", "--lengths", "20", *files)
    steps = json.loads(report.read_text())["steps"]
    assert list(steps) == ["20"]
    for rows in steps.values():
        assert list(rows) == [*kinds]
        assert rows["eta"]["over_base"] == 1.0
        assert all(0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"] for row in rows.values())
    assert image.read_bytes().startswith(b"\x89PNG")
    assert tf.keras.mixed_precision.global_policy().name == "float32"


def test_retrieval_reports_requests_traffic_and_searches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    units = {"full": "full attention", "twin-v2": "TWIN-V2", "no-long-history": "no long history"}
    monkeypatch.setattr(retrieval, "UNITS", units)
    report, *images = (tmp_path / name for name in ("report.json", "times.png", "map.png"))
    files = ("--json", str(report), "--plot", str(images[0]), "--map", str(images[1]))
    _run(retrieval.main, monkeypatch, "--lengths", "20", "40", "--candidates", "5", "--callers", "2", *files)
    found = json.loads(report.read_text())
    for length in ("20", "40"):
        alone = ["ETA, XLA", "ETA", *units.values(), "ETA, C rows"]
        assert list(found["request"]["5"][length]) == alone
        assert list(found["traffic"]["5"][length]) == alone[:-1]
        assert list(found["search"]["5"][length]) == ["counting, XLA", "sorting", "matmul + top_k"]
    assert found["settings"]["candidates"] == [5]
    assert all(image.read_bytes().startswith(b"\x89PNG") for image in images)


def test_traffic_is_calls_of_all_callers_at_once() -> None:
    both = threading.Barrier(2, timeout=5)
    with ThreadPoolExecutor(2) as pool:
        calls = retrieval.traffic({"a": both.wait, retrieval.POINTWISE: both.wait}, pool, callers=2)
        assert list(calls) == ["a"]
        calls["a"]()


def test_pipeline_reports_steps_with_and_without_each_pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report, image = tmp_path / "report.json", tmp_path / "times.png"
    sizes = ("--rows", "4", "--file_rows", "8", "--steps", "2", "--lengths", "20")
    _run(pipeline.main, monkeypatch, *sizes, "--json", str(report), "--plot", str(image))
    found = json.loads(report.read_text())["steps"]
    assert list(found["20"]) == [
        *("step", "step, log in memory", "step, files held in memory", "step, files"),
        *("no step, log in memory", "no step, files held in memory", "no step, files"),
    ]
    assert found["20"]["step"]["over_base"] == 1.0
    assert image.read_bytes().startswith(b"\x89PNG")


def test_all_pipelines_yield_full_histories_of_known_ids(tmp_path: Path) -> None:
    features = Features(
        item_id=Feature("item_id", vocabulary_size=50),
        user=(Feature("user_id", vocabulary_size=6_040),),
        max_history_length=20,
    )
    record_bytes = pipeline.write_files(tmp_path, rows=8, length=20, items=50)
    # Five names and lists; 20 ids of a byte each.
    assert 80 < record_bytes < 200
    for batches in (
        pipeline.from_files(tmp_path, features, 4, record_bytes),
        pipeline.from_packed(tmp_path, features, 4),
        pipeline.from_log(features, 4, length=20, items=50),
    ):
        inputs, label = next(iter(batches))
        history = inputs["history_item_id"].numpy()
        assert history.shape == (4, 20)
        assert history.dtype == np.int32
        assert history.min() >= 1
        assert history.max() <= 51
        assert inputs["history_length"].numpy().tolist() == [20] * 4
        assert set(label.numpy()) <= {0, 1}


def test_memory_reports_peaks_and_what_does_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report, image = tmp_path / "report.json", tmp_path / "peaks.png"
    # Full attention seems to need far more than any machine has.
    monkeypatch.setattr(memory, "_FULL_COPIES", 10**12)
    sizes = ("--dim", "8", "--top_k", "3", "--items", "50", "--rows", "4", "--lengths", "20", "40", "--steps", "1")
    monkeypatch.setattr("sys.argv", ["benchmark", *sizes, "--json", str(report), "--plot", str(image)])
    memory.main()
    found = json.loads(report.read_text())["memory"]
    assert found["20"]["eta"]["growth_mb"] == 0.0
    # More than an interpreter alone, in megabytes and not in kilobytes; and not that of this process, whose tests may
    # have taken much more.
    assert 100 < found["40"]["eta"]["peak_mb"] < 2_000
    assert found["40"]["full"]["error"].startswith("left out: needs about ")
    # 4 rows x 20 more behaviours x 23 bytes.
    assert found["40"]["ids, fingerprints and distances"]["growth_mb"] == pytest.approx(0.00184)
    assert image.read_bytes().startswith(b"\x89PNG")


def test_memory_of_a_contestant_that_dies_is_told() -> None:
    flags = argparse.Namespace(rows=4, dim=8, bits=64, top_k=3, items=50, steps=1)
    assert memory.peak("full", 20, flags, available=2**20) in ("out of memory", "killed")


def test_bytes_of_a_history_worked_by_hand() -> None:
    # Id 4, two words 16, XOR 8, mask 1, distance and score 1 each.
    assert memory.eta_bytes(rows=2, length=10, bits=65) == 20 * 31
    # Four words: 257 distances need 4 bytes each.
    assert memory.eta_bytes(rows=1, length=1, bits=256) == 4 + 32 + 8 + 1 + 8


@pytest.mark.slow
def test_scale_builds_trains_exports_and_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(scale, "PERIODS", (2,))
    sizes = ("--rows", "4", "--length", "40", "--candidates", "5", "--calls", "2")
    monkeypatch.setattr("sys.argv", ["benchmark", *SIZES, *sizes, "--json", str(report)])
    scale.main()
    found = json.loads(report.read_text())
    # 50 ids, padding and out-of-vocabulary: 52 rows of 8 floats, and of one word.
    assert found["model"]["table of embeddings, MB"] == 52 * 8 * 4 / 1e6
    assert found["model"]["table of Adagrad's accumulator, MB"] == 52 * 8 * 4 / 1e6
    assert found["model"]["table of fingerprints, MB"] == 52 * 8 / 1e6
    assert found["model"]["version on disk, MB"] > 0
    changed = "exporting after 51 rows have changed"
    assert found["model"][f"{changed}: values of these rows, MB"] == 51 * 8 * 4 / 1e6
    assert found["model"][f"{changed}: written, MB"] == pytest.approx(found["model"]["version on disk, MB"], rel=0.1)
    assert found["model"][f"{changed}: pages of 4 KiB that differ, MB"] >= 4_096 / 1e6
    assert list(found["steps"]) == ["fixed planes", "learned planes, moved every 2"]
    assert found["server"]["median rank, ms"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_scale_refuses_a_disk_that_is_too_small(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark", "--items", str(10**12)])
    with pytest.raises(SystemExit):
        scale.main()
    assert "700000.0 GB of disk are needed and " in capsys.readouterr().err


def test_pages_that_differ_are_counted(tmp_path: Path) -> None:
    old, new = bytearray(3 * 4_096 + 5), bytearray(3 * 4_096 + 5)
    new[0] = new[4_095] = new[-1] = 1
    for name, content in (("old", old), ("new", new)):
        (tmp_path / name).write_bytes(content)
    assert scale.changed_pages(tmp_path / "old", tmp_path / "new") == 2
    assert scale.changed_pages(tmp_path / "old", tmp_path / "old") == 0


def test_peak_memory_is_of_the_process_alone() -> None:
    large = np.ones(2**29, np.uint8)
    assert timing.peak_memory() > large.nbytes
    assert 2**20 < timing.apart(timing.peak_memory) < large.nbytes


def test_contestants_are_measured_in_turn_after_a_warm_up() -> None:
    calls: list[str] = []
    times = timing.measure({name: functools.partial(calls.append, name) for name in "ab"}, rounds=3, warm_up=2)
    assert "".join(calls) == "aabb" + "ab" * 3
    assert [len(values) for values in times.values()] == [3, 3]


def test_what_comes_before_a_contestant_is_not_timed() -> None:
    calls: list[str] = []
    contestants = {name: functools.partial(calls.append, name) for name in "ab"}
    times = timing.measure(contestants, rounds=2, warm_up=2, before=lambda name: calls.append(name.upper()))
    assert "".join(calls) == "AaaBbb" + "AaBb" * 2
    assert [len(values) for values in times.values()] == [2, 2]


def test_summary_worked_by_hand() -> None:
    report = timing.summary({"a": [2.0, 4.0, 6.0], "b": [1.0, 1.0, 10.0]}, base="a")
    assert report["b"] == {"median_ms": 1.0, "p10_ms": 1.0, "p90_ms": pytest.approx(8.2), "over_base": 0.25}
    assert report["a"]["median_ms"] == np.median([2, 4, 6])
