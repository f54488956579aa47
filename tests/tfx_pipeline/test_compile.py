"""The specification for Kubeflow Pipelines and Vertex AI, by TFX's own runner."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tfx_pipeline.compile import main
from tfx_pipeline.config import PipelineConfig

REMOTE = [
    "--data",
    "gs://b/ml-1m",
    "--output",
    "gs://b/eta",
    "--serving_dir",
    "gs://b/serving/eta",
    "--image",
    "image:1",
]
RETRIEVER = ["--retriever_dir", "gs://b/serving/tiger"]


def test_compiled_pipeline_holds_every_component_in_order(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "new" / "eta.json"
    assert (
        main([*REMOTE, "--file", str(file), "--bulk_inference", "--beam_args=--runner=DataflowRunner", *RETRIEVER]) == 0
    )
    assert capsys.readouterr().out.strip().endswith(f"Wrote {file}.")
    job = json.loads(file.read_text())
    assert job["runtimeConfig"]["gcsOutputDirectory"] == "gs://b/eta/artifacts"
    tasks = job["pipelineSpec"]["root"]["dag"]["tasks"]
    assert set(tasks) == {
        "ImpressionGen",
        "ImportSchemaGen",
        "StatisticsGen",
        "latest_validated_statistics",
        "ImpressionValidator",
        "Transform",
        "Trainer",
        "ShortHistoryTrainer",
        "Baselines",
        "Evaluator",
        "LocalInfraValidator",
        "AtomicPusher",
        "BulkInferrer",
        "ScoresWriter",
        "RetrieverTrainer",
        "RetrieverEvaluator",
        "RetrieverInfraValidator",
        "RetrieverPusher",
    } | {name for name in tasks if name.startswith("latest_blessed_model")}
    for trainer, longest in (("Trainer", 512), ("ShortHistoryTrainer", 20)):
        assert {"ImpressionValidator", "Transform"} <= set(tasks[trainer]["dependentTasks"])
        custom = tasks[trainer]["inputs"]["parameters"]["custom_config"]["runtimeValue"]["constantValue"]["stringValue"]
        config = PipelineConfig.from_json(json.loads(custom)["config"])
        # Of the history, the trainer of the short one gets what it reads.
        assert config.layout.features.max_history_length == longest
    assert {"ImpressionGen", "Trainer", "Baselines"} <= set(tasks["Evaluator"]["dependentTasks"])
    assert "ShortHistoryTrainer" in tasks["Baselines"]["dependentTasks"]
    assert {"Trainer", "Evaluator", "LocalInfraValidator"} <= set(tasks["AtomicPusher"]["dependentTasks"])
    assert "ImpressionValidator" in tasks["RetrieverTrainer"]["dependentTasks"]
    assert {"RetrieverEvaluator", "RetrieverInfraValidator"} <= set(tasks["RetrieverPusher"]["dependentTasks"])
    executors = job["pipelineSpec"]["deploymentSpec"]["executors"]
    images = {e["container"]["image"] for e in executors.values() if "container" in e}
    assert images == {"image:1"}
    parameters = tasks["Trainer"]["inputs"]["parameters"]
    assert parameters["run_fn"]["runtimeValue"] == {
        "constantValue": {"stringValue": "tfx_pipeline.training.trainer.run_fn"}
    }
    assert "--runner=DataflowRunner" in executors["Transform_executor"]["container"]["args"]


def test_bad_flags_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "eta.json"
    assert main([*REMOTE, "--file", str(file), "--layout", "custom"]) == 1
    assert "error: --layout custom needs a --schema." in capsys.readouterr().err
    assert not file.exists()
