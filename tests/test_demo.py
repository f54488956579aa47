"""`make demo` on a small part of the data, from the logs to the ranked answer over gRPC."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import demo
from benchmarks.quality.results import Result

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.e2e
def test_demo_trains_exports_serves_and_ranks(tmp_path):
    finished = subprocess.run(
        [sys.executable, "demo.py", "--max_rows", "15000", "--epochs", "1", "--output", str(tmp_path)],
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
    assert (tmp_path / "serving" / "eta" / "1" / "saved_model.pb").exists()


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


def test_demo_help_names_its_flags():
    finished = subprocess.run(
        [sys.executable, "demo.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert all(flag in finished.stdout for flag in ("--data", "--epochs", "--seed", "--max_rows", "--output"))
