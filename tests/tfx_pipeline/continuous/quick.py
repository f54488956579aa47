"""Rounds that train nothing: a model is the list of the impressions that it and its bases were trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tensorflow as tf

from tfx_pipeline.continuous import components, infra_validator
from tfx_pipeline.continuous.impressions import Impressions
from tfx_pipeline.continuous.judging import Judged
from tfx_pipeline.training.publishing import served_versions

FILE = "saved_model.pb"


def trained_on(version: str | Path) -> list[list[int]]:
    """User, item and time of each impression that a version was trained on, and its bases, in order."""
    return json.loads(Path(version, FILE).read_text())


def newest(serving_dir: str) -> Path:
    """The newest version."""
    present = served_versions(serving_dir)
    return Path(serving_dir, present[max(present)])


def make_rounds_quick(replace: Callable[[Any, str, Any], None]) -> None:
    """Replaces what takes TensorFlow seconds; `replace` is that of a `pytest.MonkeyPatch`, or `setattr`."""

    def judge(module: Any, impressions: Impressions) -> Judged:
        return Judged(len(impressions.records), len(impressions.records) // 2, 0.7, 0.7, 0.6, 0.5, 0.01)

    def train_on(config: Any, base: Any, impressions: Impressions, seed: int, count_of: Any) -> Any:
        rows = [] if base is None else trained_on(base.path)
        for record in impressions.records:
            columns = tf.train.Example.FromString(record).features.feature
            rows.append([columns[name].int64_list.value[0] for name in ("user_id", "item_id", "timestamp")])
        return SimpleNamespace(rows=rows, count_params=lambda: 0), {}

    def write_model(model: Any, config: Any, base: Any, times: Any, serving_model_dir: str) -> None:
        extra = Path(serving_model_dir, "assets.extra")
        extra.mkdir(parents=True)
        (extra / "features.json").write_text(json.dumps(config.layout.features.to_dict()))
        Path(serving_model_dir, FILE).write_text(json.dumps(model.rows))

    replace(components, "judge", judge)
    replace(components, "train_on", train_on)
    replace(components, "write_model", write_model)
    replace(components, "loaded", lambda path: SimpleNamespace(path=path, module=None))
    executor = infra_validator.LoadedInfraValidatorExecutor
    replace(executor, "make_requests", staticmethod(lambda contract, records: {}))
    replace(executor, "check", staticmethod(lambda server, requests: None))
    replace(infra_validator, "loaded", lambda path: SimpleNamespace(module=SimpleNamespace(signatures={})))
