"""Warm starts of the retriever: ids and weights of the served version, and why there is none."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from keras_eta import TIGER
from tests.tfx_pipeline.retrieval.impressions import write_impressions
from tfx_pipeline.config import PipelineConfig, Training
from tfx_pipeline.custom_layout import custom
from tfx_pipeline.layouts import Label
from tfx_pipeline.retrieval import item_tokenizer, trainer
from tfx_pipeline.retrieval.items import Items
from tfx_pipeline.retrieval.trainer import run_fn
from tfx_pipeline.retrieval.warm_start import warm_start
from tfx_pipeline.retriever_config import Retriever
from tfx_pipeline.training.trainer import TRAINING_REPORT

pytestmark = pytest.mark.filterwarnings("ignore:ResidualKMeans has fewer clusters:UserWarning")

LAYOUT = custom("log.csv", Label("clicked"), item_attributes=("brand:string",), max_history_length=4)
SMALL = {"dim": 8, "num_heads": 2, "num_layers": 1, "feed_forward_units": 8}
BRANDS = {10: "a", 11: "b", 12: "a", 13: "c", 14: "b"}
# 12 and 13 have left, 20 to 22 are new, and 14's brand is another.
LATER = {20: "a", 14: "c", 10: "a", 21: "a", 11: "b", 22: "b"}


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """A TIGER whose export takes little time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TIGER.__init__, "__kwdefaults__", {**(TIGER.__init__.__kwdefaults__ or {}), **SMALL})
        yield


class Trained:
    """What a training saw and did: its model, as it was before the first step, and the artifacts."""

    def __init__(self, folder: Path, serving_dir: Path, brands: dict[int, str], positives: list[int]) -> None:
        rows: list[tuple[Any, list[Any], int]] = [(item, [], int(item in positives)) for item in brands]
        columns = {"brand": [brand.encode() for brand in brands.values()]}
        files = [write_impressions(folder / f"{name}.gz", LAYOUT, rows, **columns) for name in ("train", "validation")]
        config = PipelineConfig(LAYOUT, "", "", retriever=Retriever(str(serving_dir), codebook_size=4))
        (folder / "run").mkdir()
        self.served = folder / "model" / "Format-Serving"
        self.weights: list[tuple[str, np.ndarray]] = []
        self.unseen: list[int] = []
        real_export = trainer.export_retriever

        def fit(model: TIGER, batches: tf.data.Dataset, callbacks: list[Any], **_: Any) -> Any:
            model.build()
            self.weights = [(variable.name, variable.numpy()) for variable in model.trainable_variables]
            rng = np.random.default_rng(len(brands))
            for variable in model.trainable_variables:
                variable.assign(rng.uniform(-1, 1, variable.shape))
            callbacks[0].best_weights = model.get_weights()
            return SimpleNamespace(history={"loss": [1.0], "val_loss": [1.0]})

        def export(model: TIGER, *arguments: Any, unseen: Any, **options: Any) -> Path:
            self.model, self.unseen = model, unseen.tolist()
            return real_export(model, *arguments, **{**options, "num_results": 2}, warmup=False, num_beams=4)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TIGER, "fit", fit)
            patch.setattr(trainer, "export_retriever", export)
            run_fn(
                SimpleNamespace(
                    train_files=files[:1],
                    eval_files=files[1:],
                    custom_config={"config": config.to_json()},
                    model_run_dir=str(folder / "run"),
                    serving_model_dir=str(self.served),
                )
            )
        self.base_version = json.loads((folder / "run" / TRAINING_REPORT).read_text())["base_version"]

    def codes(self) -> dict[int, list[int]]:
        """The semantic id of each item, as the model has them."""
        table = self.model.table
        return dict(zip(table.raw_ids_by_row()[2:].tolist(), table.codes.numpy().tolist(), strict=True))


@pytest.fixture(scope="module")
def base(small: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("base")
    return Trained(folder, folder / "none", BRANDS, positives=[10, 12, 14])


@pytest.fixture
def serving_dir(base: Trained, tmp_path: Path) -> Path:
    """Version 7 is the one that `base` trained."""
    shutil.copytree(base.served, tmp_path / "tiger" / "7")
    return tmp_path / "tiger"


def test_ids_and_weights_of_the_served_version_go_on(base: Trained, serving_dir: Path, tmp_path: Path) -> None:
    assert base.base_version is None
    assert base.unseen == [11, 13]
    later = Trained(tmp_path / "later", serving_dir, LATER, positives=[11, 20])
    assert later.base_version == 7
    before, after = base.codes(), later.codes()
    assert {item: after[item] for item in (10, 11, 14)} == {item: before[item] for item in (10, 11, 14)}
    assert list(after) == sorted(LATER)
    # Codes of a are those of item 10; the token of 12, who has left, is nobody's.
    assert [after[20], after[21], after[22]] == [[*before[10][:3], 2], [*before[10][:3], 3], [*before[11][:3], 2]]
    # 10 and 14 were positives of the training before.
    assert later.unseen == [21, 22]

    # Two tokens more than before, of the last level.
    grown = {"tokens/embeddings:0": (10, 8), "head_3/kernel:0": (8, 4), "head_3/bias:0": (4,)}
    assert {name: values.shape for name, values in later.weights if name in grown} == grown
    for variable, (name, found) in zip(base.model.trainable_variables, later.weights, strict=True):
        assert (found.shape != variable.shape) == (name in grown)
        np.testing.assert_array_equal(found[tuple(map(slice, variable.shape))], variable, name)

    # A third training goes on from what the second left: who had left and comes back has the id that it had.
    shutil.copytree(later.served, serving_dir / "12")
    third = Trained(tmp_path / "third", serving_dir, {12: "c", 30: "a", 21: "a"}, positives=[30])
    assert third.base_version == 12
    assert third.codes() == {12: before[12], 30: [*before[10][:3], 4], 21: after[21]}
    assert third.unseen == [21]


def test_without_a_warm_start_everything_is_new(small: None, serving_dir: Path) -> None:
    items = _items(LATER)
    config = PipelineConfig(LAYOUT, "", "", retriever=Retriever(str(serving_dir), codebook_size=4))
    assert trainer._start(items, config).base_version == 7
    cold = trainer._start(items, dataclasses.replace(config, training=Training(warm_start=False)))
    assert cold.base_version is None
    assert not cold.seen.any()
    assert cold.tokenizer.issued.item_ids.tolist() == list(LATER)


def _items(brands: dict[Any, str], text: tuple[str, ...] = (), categories: tuple[str, ...] = ("brand",)) -> Items:
    return Items(list(brands), pd.DataFrame({"brand": brands.values(), "more": "x"}), text, categories)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"items": _items({b"10": "a"})}, "has other ids of items: integers, not strings"),
        ({"items": _items(BRANDS, ("brand",), ())}, "has other columns of texts: [], not ['brand']"),
        (
            {"items": _items(BRANDS, (), ("brand", "more"))},
            "has other columns of categories: ['brand'], not ['brand', 'more']",
        ),
        ({"codebook_size": 5}, "has other codebook_size: 4, not 5"),
        ({"levels": 2}, "has other levels: 3, not 2"),
        ({"model": {"dim": 16}}, "has other dim: 8, not 16"),
        ({"model": {"num_layers": 2}}, "has other num_layers: 1, not 2"),
        ({"model": {"spelt_history": True}}, "has other spelt_history: False, not True"),
        ({"model": {"max_history_length": 5}}, "has other max_history_length: 4, not 5"),
        (
            {"collisions": 3},
            "has no ids left for new items: 4 items have the same codes, those that have left among them, and at most "
            "3 can",
        ),
    ],
)
def test_a_cold_start_says_why(
    serving_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    reason: str,
) -> None:
    caplog.set_level(logging.INFO)
    if "collisions" in changes:
        monkeypatch.setattr(item_tokenizer, "_MAX_COLLISIONS", changes["collisions"])
    if "levels" in changes:
        monkeypatch.setattr("tfx_pipeline.retrieval.warm_start.LEVELS", changes["levels"])
    arguments = {"max_history_length": 4, **changes.get("model", {})}
    start = warm_start(
        changes.get("items", _items(LATER)),
        changes.get("codebook_size", 4),
        str(serving_dir),
        lambda ids: TIGER(ids, **arguments),
    )
    assert start is None
    expected = f"Cold start of the retriever: version 7 in {serving_dir} {reason}."
    assert [record.getMessage() for record in caplog.records if record.name.startswith("tfx_pipeline")] == [expected]


def test_a_version_that_lacks_what_is_needed_is_not_gone_on_from(
    serving_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def start() -> Any:
        return warm_start(_items(BRANDS), 4, str(serving_dir), lambda ids: TIGER(ids, max_history_length=4))

    folder = serving_dir / "7" / "assets.extra" / "retriever"
    assert start().base_version == 7
    assert "5 items keep their semantic ids, 0 are new, 0 have left." in caplog.text
    (folder / "quantizer.npz").write_bytes(b"no numbers")
    with pytest.raises(ValueError, match=re.escape(f"{folder} is broken: ") + ".*--no-warm_start does without it"):
        start()
    caplog.clear()
    shutil.rmtree(folder)
    assert start() is None
    assert caplog.messages == [
        f"Cold start of the retriever: version 7 in {serving_dir} has no semantic ids to go on with."
    ]
    caplog.clear()
    shutil.rmtree(serving_dir)
    assert start() is None
    assert caplog.messages == [f"Cold start of the retriever: there is no version in {serving_dir}."]
