"""The notebooks run from start to end."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def _executed(name: str) -> nbformat.NotebookNode:
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": ROOT / "notebooks"}}).execute()
    return notebook


def _outputs(notebook: nbformat.NotebookNode) -> tuple[int, str]:
    """How many pictures there are, and what was printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    return pictures, "".join(output.get("text", "") for output in outputs)


@pytest.mark.slow
@pytest.mark.e2e
def test_quickstart_runs_from_start_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_ETA_ROWS", "5000")
    monkeypatch.setenv("KERAS_ETA_BUILD", str(tmp_path))
    notebook = _executed("quickstart")
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    results = {
        cell.source: "".join(
            output.get("text", "") or output.get("data", {}).get("text/plain", "")
            for output in cell.outputs
            # Warnings depend on the machine.
            if output.get("name") != "stderr"
        )
        for cell in cells
    }
    exact = next(text for source, text in results.items() if "fingerprints_table))" in source)
    assert exact.strip() == "True"
    compared = next(text for source, text in results.items() if "agreement_at_k" in source)
    agreement = dict(line.split(": ") for line in compared.splitlines()[:3])
    chance = float(agreement.pop("chance"))
    assert set(agreement) == {"cosine of the embeddings", "attention to all behaviours"}
    for name, text in agreement.items():
        by_bits = [float(share) for share in text.split(", ")]
        assert len(by_bits) == 6
        assert chance < by_bits[-1] <= 1, name
    # Few bits tell little of an angle, many nearly all.
    cosine = [float(share) for share in agreement["cosine of the embeddings"].split(", ")]
    assert cosine == sorted(cosine)
    assert cosine[-1] > cosine[0] + 0.2
    ranked = next(text for source, text in results.items() if "np.argsort(-probability)" in source)
    probabilities = [float(line.split()[0]) for line in ranked.splitlines() if line[:2] == "0."]
    assert len(probabilities) == 10
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) == 3
    assert list((tmp_path / "tensorboard").rglob("events.out.tfevents.*"))
    assert (tmp_path / "quickstart" / "eta" / "1" / "saved_model.pb").exists()


@pytest.mark.slow
@pytest.mark.e2e
def test_long_histories_runs_from_start_to_end(monkeypatch):
    monkeypatch.setenv("KERAS_ETA_USERS", "150")
    pictures, printed = _outputs(_executed("long_histories"))
    # Neighbours, bits, staleness and length.
    assert pictures == 4
    assert "at best 0.50, of whoever knows all 0.90" in printed
    assert "{16: " in printed


@pytest.mark.slow
@pytest.mark.e2e
def test_two_stages_runs_from_start_to_end(monkeypatch):
    monkeypatch.setenv("KERAS_ETA_USERS", "150")
    pictures, printed = _outputs(_executed("two_stages"))
    # Ids, what is found, beams and two stages.
    assert pictures == 4
    shares, agreement, kept = map(ast.literal_eval, re.findall(r"^\{.*\}$", printed, re.MULTILINE))
    assert list(shares) == ["popularity", "TIGER, residual k-means ids", "TIGER, random ids"]
    # Ids that like items share serve users whom no model has seen, after 200 steps.
    assert shares["TIGER, residual k-means ids"] > max(shares["popularity"], shares["TIGER, random ids"]) + 0.1
    assert agreement[10] <= agreement[300] == 1
    assert agreement[100] > 0.95
    # Far more than chance would.
    assert all(kept[count] > count / 300 + 0.1 for count in (50, 100, 200))
