"""Files of events with a taste that is learned in one pass, and the loop that follows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from keras_eta import Feature, Features
from keras_eta.interest import PoolingInterest
from tfx_pipeline.config import PipelineConfig, Training
from tfx_pipeline.continuous.rounds import run_round
from tfx_pipeline.continuous.settings import Gates, Loop
from tfx_pipeline.layouts import Label, Layout
from tfx_pipeline.model_config import Model

LAYOUT = Layout(
    Features(
        item_id=Feature("item_id", embedding_dim=4),
        behaviour_attributes=(Feature("clicked", embedding_dim=2),),
        max_history_length=8,
    ),
    pattern="events-{SPAN}.csv",
    label=Label("clicked"),
    user_dtype="int64",
)
HEADER = "user_id,item_id,timestamp,clicked"
START = 1_600_000_000
SCHEMA = """
represent_variable_length_as_ragged: true
feature {
  name: "label" type: INT int_domain { min: 0 max: 1 } presence { min_fraction: 1.0 } shape { dim { size: 1 } }
}
feature { name: "item_id" type: INT presence { min_fraction: 1.0 } shape { dim { size: 1 } } }
feature { name: "user_id" type: INT presence { min_fraction: 1.0 } shape { dim { size: 1 } } }
feature { name: "timestamp" type: INT presence { min_fraction: 1.0 } shape { dim { size: 1 } } }
feature { name: "history_bucket" type: BYTES presence { min_fraction: 1.0 } shape { dim { size: 1 } } }
feature { name: "history_item_id" type: INT }
feature { name: "history_clicked" type: INT }
feature { name: "history_timestamp" type: INT }
"""


def make_loop(folder: Path, layout: Layout = LAYOUT, **arguments: Any) -> Loop:
    """A loop whose events lie in `folder`/events, with a ranker that is quick to trace."""
    (folder / "events").mkdir(exist_ok=True)
    (folder / "schema.pbtxt").write_text(SCHEMA)
    config = PipelineConfig(
        data=str(folder / "events"),
        layout=layout,
        schema=str(folder / "schema.pbtxt"),
        output="",
        serving_dir=str(folder / "served" / "eta"),
        min_history=1,
        model=Model(interests=(PoolingInterest(),), hidden_units=(8,), retrieval_weight=0.0, id_dropout=0.0),
        training=Training(batch_size=32, embedding_learning_rate=0.3, dense_learning_rate=0.01),
    )
    return Loop(**{"config": config, "state": str(folder / "state"), "gates": Gates(), **arguments})


def rows_of(span: int, count: int = 400, users: int = 40, items: int = 20, flipped: bool = False) -> list[str]:
    """Lines of a span of a minute: even items are clicked in 9 of 10 cases, odd ones in 1."""
    rng = np.random.default_rng(span)
    user, item = rng.integers(0, users, count), rng.integers(0, items, count)
    clicked = (rng.random(count) < np.where(item % 2 == 0, 0.9, 0.1)) != flipped
    moment = START + 60 * span + np.arange(count) * 60 // count
    return [f"{u},{i},{t},{int(c)}" for u, i, t, c in zip(user, item, moment, clicked, strict=True)]


def write_span(loop: Loop, span: int, rows: Sequence[str] | None = None, name: str | None = None) -> Path:
    """Writes the file of a span."""
    path = Path(loop.config.data, name or f"events-{span:04d}.csv")
    path.write_text("\n".join([HEADER, *(rows_of(span) if rows is None else rows), ""]))
    return path


def run(loop: Loop) -> Any:
    """Runs a round without printing; the round, or `None`."""
    return run_round(loop, Console(quiet=True))
