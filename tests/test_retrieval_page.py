"""docs/retrieval.md, run as it is printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "retrieval.md"


@pytest.mark.slow
def test_films_get_semantic_ids_and_are_retrieved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for number, code in enumerate(blocks):
        exec(compile(code, f"docs/retrieval.md, block {number}", "exec"), names)
    reports = {name: ids.report(names["vectors"]) for name, ids in names["ids"].items()}
    assert list(reports) == ["k-means", "fingerprints", "random", "RQ-VAE"]
    printed = capsys.readouterr().out
    for name, report in reports.items():
        assert f"{name}: {report}\n" in printed
        if name == "random":
            assert report.near_sharing == pytest.approx(report.chance_sharing, abs=0.005)
        else:
            assert report.near_sharing > 10 * report.chance_sharing
    # Three of three levels, at least 80 % of each in use.
    for name in ("k-means", "RQ-VAE"):
        assert min(reports[name].usage) >= 0.8, reports[name]
    assert len(np.unique(names["more"].codes, axis=0)) == len(names["films"]) + 1

    found = names["model"].table.raw_ids_by_row()[names["found"].rows].ravel().tolist()
    assert len(set(found)) == 5
    assert set(found) <= {title.encode() for title in names["films"]["item_id"]}
    assert not {b"Toy Story (1995)", b"Aladdin (1992)"} & set(found)
    assert (tmp_path / "models" / "tiger" / "1" / "saved_model.pb").exists()
