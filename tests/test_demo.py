"""`make demo` on a small part of the data, from the logs to the ranked answer over gRPC."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from matplotlib.figure import Figure

import demo
from benchmarks.quality.results import Result
from keras_eta import Feature, FeatureLookup, Features
from keras_eta.datasets import Impressions, Interactions

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.e2e
def test_demo_trains_exports_serves_and_ranks(tmp_path):
    finished = subprocess.run(
        [sys.executable, "demo.py", "--max_rows", "4000", "--epochs", "1", "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    printed = finished.stdout
    # On so few rows, either model may come out ahead; the demo must say which, and everything before must have worked.
    rows = re.findall(r"│ (?:recent|eta) \(cosine\) +│ yes +│ +1 │ +1 │ +(0\.\d{4}) │ +(0\.\d{4}) │", printed)
    assert len(rows) == 2, printed + finished.stderr
    better = all(eta > recent for recent, eta in zip(*rows, strict=True))
    assert finished.returncode == (0 if better else 1)
    assert ("did not beat the short history" in printed) == (not better)
    request = json.loads((tmp_path / "demo" / "request.json").read_text())
    best = re.findall(r"^│ +(\d+) │ (.+?) +│ +(0\.\d{3}) │$", printed, re.MULTILINE)
    assert [int(place) for place, _, _ in best] == list(range(1, 11))
    probabilities = [float(probability) for _, _, probability in best]
    assert probabilities == sorted(probabilities, reverse=True)
    assert {film for _, film, _ in best} <= set(request["candidates"]["item_id"])
    assert not set(request["candidates"]["item_id"]) & set(request["history"]["item_id"])
    assert printed.count("rests on") == 3
    assert (tmp_path / "demo" / "long_history.png").read_bytes().startswith(b"\x89PNG")
    for name in ("eta", "tiger"):
        assert (tmp_path / "serving" / name / "1" / "saved_model.pb").exists()
    # Of the films retrieved, each at the place that it has among all films.
    retrieved = re.findall(r"^│ +(\d+) │ (.+?) +│ +(0\.\d{3}) │ +(\d+) │ +(\d+) │$", printed, re.MULTILINE)
    assert [int(rank) for rank, *_ in retrieved] == list(range(1, 11))
    among_all = [int(place) for *_, place, _ in retrieved]
    assert among_all == sorted(among_all)
    kept = {film for _, film, *_ in retrieved} & {film for _, film, _ in best}
    assert f"Of the 10 best of all films, these are {len(kept)}." in printed
    assert "recommend: 200 films retrieved and ranked in" in printed


@pytest.mark.parametrize(
    ("auc", "grouped_auc", "code"), [(0.79, 0.74, 0), (0.78, 0.74, 1), (0.79, 0.73, 1), (0.77, 0.72, 1)]
)
def test_demo_fails_unless_eta_beats_the_short_history_in_both_measures(auc, grouped_auc, code, capsys):
    recent = Result("movielens", "recent", 0, True, True, 512, 100, 0.78, 0.73, 0.78, 0.73, 1.0)
    eta = dataclasses.replace(recent, unit="eta", auc=auc, grouped_auc=grouped_auc)
    assert demo.exit_code(recent, eta) == code
    expected = (
        f"ETA (AUC {auc:.4f}, grouped {grouped_auc:.4f}) did not beat the short history (0.7800, 0.7300).\n"
        if code
        else ""
    )
    assert capsys.readouterr().out == expected


def test_uniform_attention_spreads_over_each_history_alike():
    # One behaviour has all of its history's attention, and a quarter each of four.
    shares = demo.uniform_shares(np.array([1, 4]), 5)
    np.testing.assert_allclose(shares, [(1 + 0.25) / 2, (1 + 0.5) / 2, (1 + 0.75) / 2, 1, 1])


def test_figure_shows_both_measures_and_attention_beside_uniform_attention(tmp_path, monkeypatch):
    """Of two users with eight ratings each, by a model that attends to the third behaviour alone."""
    log = {"user_id": [1] * 8 + [2] * 8, "item_id": [5, 6] * 8, "timestamp": [*range(8)] * 2}
    liked = np.tile([0, 1], 8)
    features = Features(Feature("item_id", embedding_dim=2), max_history_length=6)
    test = Impressions.from_interactions(Interactions.from_columns(log), lambda _: liked, min_history=0)
    lookup = FeatureLookup(features)
    lookup.adapt({"item_id": np.array([5, 6])})
    data: Any = SimpleNamespace(test=test, long_history=4, lookup=lookup)

    def score(columns):
        rows = len(columns["history_length"])
        retrieved = SimpleNamespace(positions=tf.constant([[[2, 0]]] * rows))
        interest = SimpleNamespace(weights=tf.constant([[[[1.0, 0.0]]]] * rows), retrieved=retrieved)
        return SimpleNamespace(interests={"unit": interest})

    eta: Any = SimpleNamespace(
        features=lookup.features, interests=[SimpleNamespace(name="unit")], batch_columns=dict, score=score
    )
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, dpi: figures.append(figure))
    monkeypatch.setattr(demo, "HISTORY_BUCKETS", ((2, 4), (4, 10_000)))
    # Right within each user, but all of one user's ratings above the other's.
    logits = np.asarray(test.label) + 10.0 * (test.columns["user_id"] == 1)
    demo.plot(tmp_path / "figure.png", data, {"recent": logits, "eta": -logits}, eta)
    auc, grouped, attention = figures[0].axes
    assert [panel.get_title() for panel in figures[0].axes] == [
        "AUC",
        "grouped AUC: within a user",
        "attention by ratings back (4+ earlier ratings)",
    ]
    np.testing.assert_allclose([line.get_ydata() for line in auc.lines], [[0.75, 0.75], [0.25, 0.25]])
    np.testing.assert_allclose([line.get_ydata() for line in grouped.lines], [[1, 1], [0, 0]])
    of_eta, uniform, _ = attention.lines
    assert of_eta.get_ydata().tolist() == [0, 0, 1, 1, 1, 1]
    # Of the last four ratings of each user, which have 4, 5, 6 and 7 before them, of which 6 are read.
    at = [np.mean([min(d, length) / length for length in (4, 5, 6, 6)]) for d in range(1, 7)]
    np.testing.assert_allclose(uniform.get_ydata(), at)
    labels = [text.get_text() for text in attention.get_legend().get_texts()]
    assert labels == ["attention to what ETA retrieves", "uniform attention to all", "the short history ends"]


def test_demo_help_names_its_flags():
    finished = subprocess.run(
        [sys.executable, "demo.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert all(flag in finished.stdout for flag in ("--data", "--epochs", "--seed", "--max_rows", "--output"))
