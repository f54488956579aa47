"""The branch of the retriever: from a small log to a version that was judged, tried and pushed."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tfx import v1 as tfx
from tfx.types import standard_artifacts
from tfx.utils import io_utils

from keras_eta import TIGER, SemanticIds
from keras_eta.contract import Contract
from tests.tfx_pipeline import servable
from tfx_pipeline.components import retriever_evaluator
from tfx_pipeline.components.model_server import local_model
from tfx_pipeline.components.pusher import AtomicPusherExecutor
from tfx_pipeline.components.retriever_evaluator import (
    RetrieverBlessing,
    RetrieverEvaluation,
    RetrieverEvaluator,
    RetrieverEvaluatorExecutor,
    read_verdict,
)
from tfx_pipeline.components.retriever_pusher import RetrieverPusher
from tfx_pipeline.config import Evaluation, PipelineConfig, Training
from tfx_pipeline.custom_layout import custom
from tfx_pipeline.evaluation import Gate
from tfx_pipeline.ingestion.impression_gen import impression_gen
from tfx_pipeline.layouts import Label
from tfx_pipeline.results import artifacts_of_latest_run
from tfx_pipeline.retrieval.branch import retriever_components
from tfx_pipeline.retrieval.judging import Measures, Verdict
from tfx_pipeline.retrieval.results import read_retriever_results
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
            retriever_epochs=6,
            retriever_results=12,
        ),
    )


def run(config: PipelineConfig, components: int | None = None) -> dict[str, Any]:
    """Runs ingestion and the branch, or its first components, and returns the artifacts."""
    gen = impression_gen(config)
    pipeline = tfx.dsl.Pipeline(
        pipeline_name="branch",
        pipeline_root=config.pipeline_root,
        components=[gen, *retriever_components(config, gen.outputs["examples"])[:components]],
        enable_cache=True,
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(config.metadata_path),
    )
    tfx.orchestration.LocalDagRunner().run(pipeline)
    return artifacts_of_latest_run(config.metadata_path)


@pytest.mark.slow
def test_retriever_is_trained_judged_tried_and_pushed(config: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tracing takes most of the time. (TFX reloads the trainer's module.)
    small = {**(TIGER.__init__.__kwdefaults__ or {}), "num_layers": 1, "dropout": 0.0}
    monkeypatch.setattr(TIGER.__init__, "__kwdefaults__", small)
    artifacts = run(config)
    training = json.loads(Path(artifacts["RetrieverTrainer"]["model_run"][0].uri, TRAINING_REPORT).read_text())
    assert training["best_epoch"] == np.argmin(training["history"]["val_loss"])
    assert training["positives_of_unknown_items"] == {"training": 0, "validation": 0}
    assert training["semantic_ids"]["items"] == ITEMS + 2

    retriever_dir = Path(config.retriever.retriever_dir or "")
    (version,) = retriever_dir.glob("[0-9]*")
    assert len(Contract.read(version).vocabularies["item_id"]) == ITEMS + 2
    verdict = read_verdict(artifacts["RetrieverEvaluator"]["evaluation"][0].uri)
    assert (verdict.items, verdict.cold_items, verdict.cold, verdict.unknown, verdict.repeats) == (62, 2, 1, 0, 0)
    assert verdict.judged == verdict.positives == _positives(Path(artifacts["ImpressionGen"]["examples"][0].uri))
    # Whoever counts what came after the last item has it nearly always.
    popularity, counting = verdict.measures["popularity"], verdict.measures["co-occurrence"]
    assert popularity.recall_10 < 0.4 < 0.9 < counting.recall_10
    assert verdict.measures["this retriever"].recall_10 > 0.6
    assert verdict.measures["this retriever"].cold_share > 0 == popularity.cold_share
    assert all(gate.passed for gate in verdict.gates)
    results = read_retriever_results(artifacts)
    assert results is not None
    assert results.outcome == f"Pushed: {version}"

    # Another margin: what is pushed is judged beside itself, is no new version, and nothing is trained.
    stricter = dataclasses.replace(config, retriever=dataclasses.replace(config.retriever, max_recall_drop=0.0))
    again = run(stricter)
    assert again["RetrieverTrainer"]["model"][0].uri == artifacts["RetrieverTrainer"]["model"][0].uri
    second = read_verdict(again["RetrieverEvaluator"]["evaluation"][0].uri)
    assert second.measures["pushed last"] == second.measures["this retriever"] == verdict.measures["this retriever"]
    assert [path.name for path in retriever_dir.glob("[0-9]*")] == [version.name]

    # One more item: the ids of all others stay, and training goes on from the version that was pushed.
    with open(config.retriever.item_table or "", "a") as table:
        table.write("added,part 13 of tale 4,4\n")
    short = dataclasses.replace(config, retriever=dataclasses.replace(config.retriever, retriever_epochs=1))
    model = run(short, components=1)["RetrieverTrainer"]
    report = json.loads(Path(model["model_run"][0].uri, TRAINING_REPORT).read_text())
    assert report["base_version"] == int(version.name)
    pushed, trained = (
        SemanticIds.load(path / "assets.extra" / "retriever" / "semantic_ids.npz")
        for path in (version, Path(model["model"][0].uri, "Format-Serving"))
    )
    np.testing.assert_array_equal(trained.codes[:-1], pushed.codes)
    assert trained.item_ids.tolist() == [*pushed.item_ids.tolist(), b"added"]
    # Like the one that has the same content, but for the last token.
    never = pushed.item_ids.tolist().index(NEVER.encode())
    np.testing.assert_array_equal(trained.codes[-1, :-1], pushed.codes[never, :-1])
    # What was learned is not learned anew.
    assert report["history"]["loss"][0] < training["history"]["loss"][0] / 2


def _positives(examples: Path) -> int:
    files = [str(path) for path in examples.glob("Split-eval/*")]
    records = tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator()
    return sum(tf.train.Example.FromString(record).features.feature["label"].int64_list.value[0] for record in records)


@pytest.mark.parametrize("passed", [True, False])
def test_a_retriever_is_pushed_if_it_passes_all_gates(
    config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passed: bool
) -> None:
    measures = {"this retriever": Measures(0.2, 0.1, 0.5, 0.0, math.nan)}
    gates = [Gate("judged", 1_234, "at least 1", True), Gate("recall_10", math.nan if not passed else 0.2, "0", passed)]
    verdict = Verdict(2_000, 1_234, 5, 6, 7, 62, 2, measures, gates)
    monkeypatch.setattr(retriever_evaluator, "ServedRetriever", lambda path: path)
    monkeypatch.setattr(retriever_evaluator, "judge", lambda *_, **__: verdict)
    model = servable.model_artifact(tmp_path / "model")
    servable.saved_model_path(model).mkdir(parents=True)
    (servable.saved_model_path(model) / "saved_model.pb").write_bytes(b"graph")
    examples = servable.examples_artifact(tmp_path / "examples", [])
    outputs: dict[str, Any] = {"evaluation": RetrieverEvaluation(), "blessing": RetrieverBlessing()}
    for name, artifact in outputs.items():
        artifact.uri = str(tmp_path / name)
    of_model = tfx.dsl.Channel(type=standard_artifacts.Model)
    evaluator = RetrieverEvaluator(of_model, tfx.dsl.Channel(type=standard_artifacts.Examples), config)
    properties = {**evaluator.exec_properties, "retriever_dir": str(tmp_path / "served")}
    RetrieverEvaluatorExecutor().Do(
        {"model": [model], "examples": [examples]}, {name: [artifact] for name, artifact in outputs.items()}, properties
    )
    # As text, as NaN equals nothing.
    assert str(read_verdict(outputs["evaluation"].uri)) == str(verdict)
    infra = standard_artifacts.InfraBlessing()
    infra.set_int_custom_property("blessed", 1)
    pushed = standard_artifacts.PushedModel()
    pushed.uri = str(tmp_path / "pushed")
    pusher = RetrieverPusher(
        of_model,
        tfx.dsl.Channel(type=RetrieverBlessing),
        tfx.dsl.Channel(type=standard_artifacts.InfraBlessing),
        str(tmp_path / "served"),
    )
    AtomicPusherExecutor().Do(
        {"model": [model], "model_blessing": [outputs["blessing"]], "infra_blessing": [infra]},
        {"pushed_model": [pushed]},
        pusher.exec_properties,
    )
    assert len(list((tmp_path / "served").glob("[0-9]*"))) == int(passed)


def test_what_a_component_does_not_read_does_not_run_it_again(config: PipelineConfig) -> None:
    def properties(changed: PipelineConfig) -> list[dict[str, Any]]:
        components = retriever_components(changed, tfx.dsl.Channel(type=standard_artifacts.Examples))
        return [dict(component.exec_properties) for component in components]

    before = properties(config)
    stricter = dataclasses.replace(config.retriever, max_recall_drop=0.01)
    other = properties(dataclasses.replace(config, evaluation=Evaluation(min_auc=0.9), retriever=stricter))
    assert [one == two for one, two in zip(before, other, strict=True)] == [True, False, True, True]
    other = properties(dataclasses.replace(config, training=dataclasses.replace(config.training, batch_size=8)))
    assert [one == two for one, two in zip(before, other, strict=True)] == [False, True, True, True]
    cold = properties(dataclasses.replace(config, training=dataclasses.replace(config.training, warm_start=False)))
    assert [one == two for one, two in zip(before, cold, strict=True)] == [False, True, True, True]
    table = Path(config.retriever.item_table or "")
    os.utime(table, (0, table.stat().st_mtime + 2))
    assert [one == two for one, two in zip(before, properties(config), strict=True)] == [False, True, True, True]


def test_only_a_retriever_of_the_same_ids_is_compared_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with retriever_evaluator._pushed_last(str(tmp_path / "none"), "string") as last:
        assert last is None
    for version in ("7", "12"):
        tf.saved_model.save(tf.Module(), str(tmp_path / version))
    with pytest.raises(ValueError, match=r"/12 is no version of a retriever: it has no signature 'retrieve', but \["):
        retriever_evaluator._pushed_last(str(tmp_path), "string").__enter__()
    monkeypatch.setattr(retriever_evaluator, "ServedRetriever", lambda path: SimpleNamespace(items=np.array([1])))
    for dtype, compared in (("string", False), ("int64", True)):
        with retriever_evaluator._pushed_last(str(tmp_path), dtype) as last:
            assert (last is not None) == compared


def test_a_remote_model_is_copied_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[tuple[str, str]] = []
    monkeypatch.setattr(io_utils, "copy_dir", lambda source, target: copied.append((source, target)))
    with local_model("gs://bucket/model") as folder:
        assert copied == [("gs://bucket/model", folder)]
        assert Path(folder).is_dir()
    assert not Path(folder).exists()
    with local_model("/here") as folder:
        assert folder == "/here"
    assert len(copied) == 1
