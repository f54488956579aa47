"""The branch of the retriever: from a small log to a version that was judged, tried and pushed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tfx import v1 as tfx

from keras_eta.contract import Contract
from tfx_pipeline.components.retriever_evaluator import read_verdict
from tfx_pipeline.config import PipelineConfig, Training
from tfx_pipeline.custom_layout import custom
from tfx_pipeline.ingestion.impression_gen import impression_gen
from tfx_pipeline.layouts import Label
from tfx_pipeline.results import artifacts_of_latest_run
from tfx_pipeline.retrieval.branch import retriever_components
from tfx_pipeline.retriever_config import Retriever
from tfx_pipeline.training.trainer import TRAINING_REPORT

ITEMS, USERS, STEPS = 60, 64, 12
NEW, NEVER = "new", "never"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    """A log in which every user goes from an item to the next one, and a table with two more items."""
    folder = tmp_path_factory.mktemp("branch")
    starts = np.random.default_rng(0).integers(0, ITEMS, USERS)
    rows = ["user_id,item_id,clicked,timestamp"]
    for step in range(STEPS):
        for user, start in enumerate(starts):
            new = (step, user) == (STEPS - 1, 7)
            item = NEW if new else f"item {(start + step) % ITEMS}"
            rows.append(f"u{user},{item},{int(new or (user + step) % 6 > 0)},{1_000 * step + user}")
    (folder / "data").mkdir()
    (folder / "data" / "log.csv").write_text("\n".join(rows) + "\n")
    table = ["item_id,name,group"]
    table += [f"item {item},part {item // 4} of tale {item // 12},{item // 12}|{item // 4}" for item in range(ITEMS)]
    table += [f"{NEW},part 14 of tale 4,4", f"{NEVER},part 13 of tale 4,4"]
    (folder / "items.csv").write_text("\n".join(table) + "\n")
    return PipelineConfig(
        layout=custom("log.csv", Label("clicked"), item_id="item_id:string", max_history_length=16),
        data=str(folder / "data"),
        schema="",
        output=str(folder / "output"),
        serving_dir=str(folder / "serving" / "eta"),
        min_history=2,
        training=Training(batch_size=32, patience=2),
        retriever=Retriever(
            retriever_dir=str(folder / "serving" / "tiger"),
            item_table=str(folder / "items.csv"),
            item_text=("name",),
            item_category=("group",),
            codebook_size=16,
            retriever_epochs=8,
            retriever_results=12,
        ),
    )


def run(config: PipelineConfig) -> dict[str, Any]:
    """Runs ingestion and the branch, and returns the artifacts."""
    gen = impression_gen(config)
    pipeline = tfx.dsl.Pipeline(
        pipeline_name="branch",
        pipeline_root=config.pipeline_root,
        components=[gen, *retriever_components(config, gen.outputs["examples"])],
        enable_cache=True,
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(config.metadata_path),
    )
    tfx.orchestration.LocalDagRunner().run(pipeline)
    return artifacts_of_latest_run(config.metadata_path)


@pytest.mark.slow
def test_retriever_is_trained_judged_tried_and_pushed(config: PipelineConfig) -> None:
    import time; t=time.time()
    artifacts = run(config)
    print("SECONDS", time.time()-t)
    training = json.loads(Path(artifacts["RetrieverTrainer"]["model_run"][0].uri, TRAINING_REPORT).read_text())
    print(json.dumps(training, indent=1))
    verdict = read_verdict(artifacts["RetrieverEvaluator"]["evaluation"][0].uri)
    print(verdict)
    pushed = list(Path(config.retriever.retriever_dir).glob("[0-9]*"))
    print(pushed, Contract.read(pushed[0]).vocabularies)
