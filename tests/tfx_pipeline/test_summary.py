"""What a run prints of the metrics."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib import image
from rich.console import Console

from tfx_pipeline.summary import METRICS, Slice, metrics_table, plot_slices

SLICES = [
    Slice("overall", 1_234_567, dict.fromkeys(METRICS, 0.7531)),
    Slice("category=a very long name of a category that nobody would read to its end", 9, dict.fromkeys(METRICS, 0.5)),
    Slice("genre=Noir", 3, dict(zip(METRICS, (math.nan, math.nan, 0.61, 1.02), strict=True))),
]


def test_table_fits_80_columns_with_whole_numbers() -> None:
    console = Console(width=80, record=True)
    console.print(metrics_table(SLICES))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    (overall,) = [line for line in lines if "overall" in line]
    assert overall.count("0.7531") == 4
    assert "1,234,567" in overall
    (noir,) = [line for line in lines if "Noir" in line]
    assert [cell.strip() for cell in noir.split("│")[2:-1]] == ["3", "-", "-", "0.6100", "1.0200"]
    assert "…" not in "".join(lines)


def test_plot_is_drawn(tmp_path: Path) -> None:
    plot_slices(SLICES, tmp_path / "plot.png")
    pixels = image.imread(tmp_path / "plot.png")
    assert pixels.shape[1] == 12 * 120
    assert pixels.std() > 0
