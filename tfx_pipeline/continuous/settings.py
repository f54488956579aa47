"""What the loop is told besides the pipeline's configuration."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from keras_eta.validation import check_integers_from_zero, check_positive_integers, is_number
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.options import option


@dataclasses.dataclass(frozen=True)
class Gates:
    """When a round pushes nothing.

    Differences count where they are larger than the margin and than three standard errors of the round, so that small
    rounds are not refused for their noise.

    Raises:
        ValueError: if an argument is out of its range.
    """

    compared_rounds: int = option(
        10, "a round is held against the median of so many rounds before it, refused ones too", metavar="N"
    )
    max_auc_fall: float = option(
        0.05, "how far the served version's AUC on the new events may lie below that median", metavar="AUC"
    )
    max_loss_rise: float = option(
        0.1, "how far its log loss on the new events may lie above that median, as a share of it", metavar="SHARE"
    )
    max_label_drift: float = option(
        1.5, "ceiling of the label rate by the median of label rates, and of the reverse", metavar="RATIO"
    )
    max_window_loss: float = option(
        0.02,
        "how far the new model's log loss on the impressions of the last pushed round may lie above that of a version "
        "that had not seen them, as a share",
        metavar="SHARE",
    )
    max_miscalibration: float = option(
        1.25,
        "ceiling of the new model's mean probability by the mean label there, and of the reverse, unless the served "
        "version's is higher",
        metavar="RATIO",
    )

    def __post_init__(self) -> None:
        check_positive_integers(compared_rounds=self.compared_rounds)
        for name, least in (
            ("max_auc_fall", 0),
            ("max_loss_rise", 0),
            ("max_label_drift", 1),
            ("max_window_loss", 0),
            ("max_miscalibration", 1),
        ):
            value = getattr(self, name)
            if not (is_number(value) and value >= least):
                raise ValueError(f"`{name}` must be a number of at least {least}. Received: {name}={value!r}")


@dataclasses.dataclass(frozen=True)
class Loop:
    """The loop: its pipeline, its gates, its state.

    Args:
        config: layout, data, schema, ranker, training and the serving directory.
        state: directory of everything that the loop keeps.
        gates: when a round pushes nothing.
        keep: rounds whose artifacts, metadata and log are kept, and pushed versions in the serving directory.
        history_until: the last span whose events are behaviours only, and are neither judged nor trained on; days since
            1970 where the pattern has dates. `None`: there is none.
        challenger: serving directory of a full run, whose versions take over if they win; empty: there is none.

    Raises:
        ValueError: if an argument is out of its range, or the layout is one that a loop can't follow.
    """

    config: PipelineConfig
    state: str = option(dataclasses.MISSING, "everything that the loop keeps: events, ledger, artifacts", metavar="DIR")
    gates: Gates = Gates()
    keep: int = option(
        5, "rounds whose artifacts, metadata and logs are kept, and pushed versions to serve", metavar="N"
    )
    history_until: int | None = option(
        None,
        "files up to this span are history alone: what the served version was trained on by a full run",
        type=int,
        metavar="SPAN",
    )
    challenger: str = option(
        "",
        "serving directory of full runs of tfx_pipeline.run; a new version there takes over if it is the better one on "
        "the newest events",
        metavar="DIR",
    )

    def __post_init__(self) -> None:
        check_positive_integers(keep=self.keep)
        if self.history_until is not None:
            check_integers_from_zero(history_until=self.history_until)
        layout = self.config.layout
        if not any(spec in layout.pattern for spec in ("{SPAN", "{YYYY}")):
            raise ValueError(
                "`pattern` must name the span of a file, as in 'events-{SPAN}.csv', so that late files are known. "
                f"Received: pattern={layout.pattern!r}"
            )
        for name in ("negatives", "clusters"):
            if getattr(layout, name) is not None:
                raise ValueError(f"`{name}` need the whole log: only a full run of tfx_pipeline.run makes them.")
        directories = {"serving_dir": self.config.serving_dir, "challenger": self.challenger}
        if os.path.normpath(self.challenger or ".") == os.path.normpath(self.config.serving_dir):
            raise ValueError(f"`challenger` must not be the `serving_dir`. Received: {directories}")

    @property
    def artifacts(self) -> Path:
        """Directory of TFX's artifacts."""
        return Path(self.state) / "artifacts"

    @property
    def metadata(self) -> Path:
        """The SQLite file of ML Metadata."""
        return Path(self.state) / "metadata.sqlite"

    @property
    def database(self) -> Path:
        """The SQLite file of the events and the ledger."""
        return Path(self.state) / "events.sqlite"

    @property
    def logs(self) -> Path:
        """Directory of TFX's logs, a file per round."""
        return Path(self.state) / "logs"

    @property
    def dead_letters(self) -> Path:
        """Directory of malformed rows, a file per file of events."""
        return Path(self.state) / "dead_letter"

    @property
    def report(self) -> Path:
        """The page about the rounds."""
        return Path(self.state) / "report" / "index.html"

    def to_json(self) -> str:
        """The settings as JSON; `Loop.from_json` reads them back."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values |= {"config": self.config.to_json(), "gates": dataclasses.asdict(self.gates)}
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Loop:
        """The settings that `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        return cls(config=PipelineConfig.from_json(values.pop("config")), gates=Gates(**values.pop("gates")), **values)
