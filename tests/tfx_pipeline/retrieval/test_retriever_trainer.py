"""The retriever's trainer: semantic ids, whose weights are kept, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import TIGER
from tests.tfx_pipeline.retrieval.impressions import write_impressions
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.custom_layout import custom
from tfx_pipeline.layouts import Label
from tfx_pipeline.retrieval import trainer
from tfx_pipeline.retrieval.trainer import run_fn
from tfx_pipeline.retriever_config import Retriever

LAYOUT = custom("log.csv", Label("clicked"), item_attributes=("brand:string",), max_history_length=4)


@pytest.fixture
def fn_args(tmp_path: Path) -> Any:
    """Arguments of `run_fn`: two positives to train with and one to validate with."""
    rows: list[tuple[Any, list[Any], int]] = [(1, [2], 1), (2, [], 1), (3, [1], 0), (1, [], 1)]
    files = []
    for name, part in (("train", rows[:3]), ("validation", rows[3:])):
        columns = {"brand": [b"a", b"b", b"c"][: len(part)]}
        files.append([write_impressions(tmp_path / f"{name}.gz", LAYOUT, part, **columns)])
    config = PipelineConfig(LAYOUT, "", "", retriever=Retriever("served/tiger", codebook_size=4))
    return SimpleNamespace(
        train_files=files[0],
        eval_files=files[1],
        custom_config={"config": config.to_json()},
        model_run_dir=str(tmp_path / "run"),
        serving_model_dir=str(tmp_path / "model" / "Format-Serving"),
    )


def stub_fit(monkeypatch: pytest.MonkeyPatch, *val_losses: float) -> list[Any]:
    """Has `fit` find the best weights to be ones and leave zeros behind; returns what it is called with."""
    calls: list[Any] = []

    def fit(model: TIGER, batches: tf.data.Dataset, callbacks: list[Any], **arguments: Any) -> Any:
        calls.append((model, batches, arguments))
        model.build()
        callbacks[0].best_weights = [np.ones_like(x) for x in model.get_weights()]
        model.set_weights([np.zeros_like(x) for x in model.get_weights()])
        return SimpleNamespace(history={"loss": [1.0] * len(val_losses), "val_loss": val_losses})

    monkeypatch.setattr(TIGER, "fit", fit)
    return calls


@pytest.mark.filterwarnings("ignore:ResidualKMeans has fewer clusters:UserWarning")
def test_the_best_weights_of_a_training_on_positives_are_exported(
    fn_args: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = []

    def export(model: TIGER, base_path: Path, version: int, num_results: int, **unseen: Any) -> Path:
        exported.append((model, base_path.name, num_results, unseen, [x.numpy() for x in model.trainable_variables]))
        (base_path / str(version)).mkdir(parents=True)
        return base_path / str(version)

    calls = stub_fit(monkeypatch, 3.0, 2.0, 4.0)
    monkeypatch.setattr(trainer, "export_retriever", export)
    monkeypatch.setattr(TIGER, "count_params", lambda model: 1)
    Path(fn_args.model_run_dir).mkdir()
    run_fn(fn_args)
    ((model, name, num_results, unseen, weights),) = exported
    assert (name, num_results, model.max_history_length) == ("tiger", 200, 4)
    # Only items 1 and 2 are those of positives.
    assert unseen["unseen"].tolist() == [3]
    assert unseen["unseen_share"] == 0.1
    assert weights
    assert all((x == 1).all() for x in weights)
    assert Path(fn_args.serving_model_dir).is_dir()
    ((_, batches, arguments),) = calls
    assert arguments["epochs"] == 5
    ((inputs, labels),) = batches.as_numpy_iterator()
    order = np.argsort(inputs["item_id"])
    read = {name: values[order].tolist() for name, values in inputs.items()}
    # Items 1, 2 and 3 are rows 2, 3 and 4.
    assert read == {"item_id": [2, 3], "history_item_id": [[3, 0, 0, 0], [0] * 4], "history_length": [1, 0]}
    assert labels.tolist() == [1, 1]


@pytest.mark.filterwarnings("ignore:ResidualKMeans has fewer clusters:UserWarning")
def test_a_loss_that_is_not_finite_is_refused(fn_args: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_fit(monkeypatch, 3.0, np.nan)
    with pytest.raises(FloatingPointError, match=r"^The loss is not finite in epoch 2: "):
        run_fn(fn_args)
    assert not Path(fn_args.serving_model_dir).exists()


@pytest.mark.filterwarnings("ignore:ResidualKMeans has fewer clusters:UserWarning")
@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_part_without_known_items_is_refused(fn_args: Any, tmp_path: Path, part: str) -> None:
    table = tmp_path / "items.csv"
    table.write_text("item_id,name\n" + {"training": "7,x\n8,y\n", "validation": "2,x\n8,y\n"}[part])
    retriever = Retriever("served/tiger", str(table), ("name",), codebook_size=2)
    fn_args.custom_config = {"config": PipelineConfig(LAYOUT, "", "", retriever=retriever).to_json()}
    count, first = {"training": (2, 7), "validation": (1, 2)}[part]
    message = f"The {part} part has {count} positives, none of an item that is known. There are 2 items, e.g. {first}."
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        run_fn(fn_args)
