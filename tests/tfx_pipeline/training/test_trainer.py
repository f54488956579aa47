from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from tfx import v1 as tfx

from keras_eta import Age, Feature, Features, Positives, Ranker, ops
from keras_eta.contract import Contract
from keras_eta.export import AttributeTable, export_model
from keras_eta.interest import MIMN, SDIM, TWIN, InterestUnit, RecentInterest, SIMSoft
from tests.tfx_pipeline.training.bare_export import export_bare
from tests.tfx_pipeline.transformed import Impression, raw_columns, run_transform, serialized
from tfx_pipeline.components.infra_validator import check_signatures
from tfx_pipeline.components.model_server import ModelServer
from tfx_pipeline.components.serving_requests import serving_requests
from tfx_pipeline.config import PipelineConfig, Training
from tfx_pipeline.layouts import Label, Layout
from tfx_pipeline.model_config import ETAUnits, Model
from tfx_pipeline.ranker import make_ranker
from tfx_pipeline.schema import make_schema
from tfx_pipeline.training import fitting, publishing, trainer
from tfx_pipeline.training.accumulators import accumulators
from tfx_pipeline.training.batches import measure, transformed_batches
from tfx_pipeline.training.trainer import TRAINING_REPORT, load_trained_model, run_fn
from tfx_pipeline.training.warm_start import warm_start

FEATURES = Features(
    item_id=Feature("item_id", embedding_dim=8, vocabulary_size=25, num_oov_indices=2),
    behaviour_attributes=(Feature("liked", embedding_dim=2),),
    user=(Feature("user_id", "string", embedding_dim=4),),
    context=(Feature("row", "float32"),),
    age=Age((60, 3600), embedding_dim=2),
    max_history_length=6,
    positives=Positives("liked", (1,)),
)
UNITS = ETAUnits(top_k=2, num_bits=16, short_history_length=2, num_heads=1)
MODEL = Model(UNITS.make(), hidden_units=(8,))


def make_impressions(count: int, first: int, seed: int) -> list[Impression]:
    """Even items are liked, but for one in ten. `row` numbers the impressions, in 1/1000."""
    rng = np.random.default_rng(seed)
    impressions = []
    for row in range(first, first + count):
        item = int(rng.integers(30))
        history = [int(item) for item in rng.integers(0, 30, rng.integers(0, 7))]
        impressions.append(
            {
                "user_id": b"%d" % rng.integers(5),
                "item_id": item,
                "row": float(np.float32(row / 1000)),
                "timestamp": 1_600_000_000,
                "label": int(item % 2 == (rng.random() < 0.1)),
                "history_bucket": b"0-9",
                "history_item_id": history,
                "history_liked": [int(item % 2 == 0) for item in history],
                "history_timestamp": [1_600_000_000 - int(age) for age in rng.integers(1, 9999, len(history))],
            }
        )
    return impressions


class Data(NamedTuple):
    directory: Path
    validation: list[Impression]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    directory = tmp_path_factory.mktemp("data")
    config = make_config(directory)
    validation = make_impressions(50, 300, seed=1)
    splits = {"train": make_impressions(300, 0, seed=0), "validation": validation}
    run_transform(config, make_schema(config.layout), splits, directory, batch_size=150)
    return Data(directory, validation)


def write_records(path: Path, rows: list[tuple[int, int, int]], timestamped: bool = True) -> None:
    with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
        for row in rows:
            example = tf.train.Example()
            for name, value in zip(("timestamp", "film", "label"), row, strict=True):
                if timestamped or name != "timestamp":
                    example.features.feature[name].int64_list.value.append(value)
            writer.write(example.SerializeToString())


def test_measure_counts_impressions_and_positives_and_finds_when_they_were(tmp_path: Path) -> None:
    write_records(tmp_path / "a-0.gz", [(7, 2, 1), (5, 4, 1), (6, 5, 0)])
    write_records(tmp_path / "a-1.gz", [(-3, 4, 1), (6, 2, 0)])
    write_records(tmp_path / "b-0.gz", [(0, 2, 0), (0, 3, 0)], timestamped=False)
    with_timestamps, without, empty = (measure([str(tmp_path / f"{name}-*")], "film") for name in "abc")
    assert (with_timestamps.num_examples, with_timestamps.timestamps) == (5, (-3, 7))
    assert with_timestamps.positives.tolist() == [0, 0, 1, 0, 2]
    assert (without.num_examples, without.timestamps, without.positives.tolist()) == (2, None, [])
    assert (empty.num_examples, empty.timestamps, empty.positives.tolist()) == (0, None, [])


def make_config(output: Path, model: Model = MODEL, **training: Any) -> PipelineConfig:
    training = {
        "batch_size": 32,
        "epochs": 3,
        "patience": 3,
        "embedding_learning_rate": 0.3,
        "dense_learning_rate": 0.02,
        "decay": True,
        **training,
    }
    return PipelineConfig(
        data="",
        layout=Layout(FEATURES, pattern="*.csv", label=Label("label")),
        schema="",
        output=str(output),
        serving_dir=str(output / "served"),
        model=model,
        training=Training(**training),
    )


def make_fn_args(data: Path, output: Path, config: PipelineConfig, **changes: Any) -> tfx.components.FnArgs:
    """What TFX's executor hands over: directories of the execution's own for its outputs."""
    return tfx.components.FnArgs(
        train_files=[str(data / "train" / "*")],
        eval_files=[str(data / "validation" / "*")],
        transform_graph_path=str(data / "graph"),
        serving_model_dir=str(output / "model" / "Format-Serving"),
        model_run_dir=str(output / "model_run"),
        custom_config={"config": config.to_json()},
        **changes,
    )


class Trained(NamedTuple):
    config: PipelineConfig
    output: Path
    model: Ranker
    report: dict[str, Any]

    @property
    def served(self) -> Path:
        return self.output / "model" / "Format-Serving"


def train(data: Data, output: Path, fn_args: Any = None, **training: Any) -> Trained:
    config = make_config(output, **training)
    run_fn(make_fn_args(data.directory, output, config) if fn_args is None else fn_args)
    model = load_trained_model(str(output / "model_run"), str(data.directory / "graph"), config)
    return Trained(config, output, model, json.loads((output / "model_run" / TRAINING_REPORT).read_text()))


@pytest.fixture
def unexported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `run_fn` publish an empty version, where a test is of the training alone."""

    def make_version(
        model: Ranker, base_path: Path, version: int, timestamps: tuple[int, int] | None, tables: list[AttributeTable]
    ) -> Path:
        assert tables == []
        path = base_path / str(version)
        (path / "assets.extra").mkdir(parents=True)
        return path

    monkeypatch.setattr(trainer, "export_model", make_version)


@pytest.fixture(scope="module")
def trained(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(data, tmp_path_factory.mktemp("trained"), calibrate="platt")


def weights(model: Ranker) -> list[np.ndarray]:
    return [variable.numpy() for variable in (*model.embedding_variables(), *model.dense_variables())]


def assert_exact_fingerprints(model: Ranker) -> None:
    layer = model.embeddings["item_id"]
    np.testing.assert_array_equal(layer.fingerprints_table, ops.simhash(layer.embeddings, layer.hash.planes))


@pytest.mark.parametrize("max_steps", [None, 7])
@pytest.mark.usefixtures("unexported")
def test_learning_rates_fall_to_zero_over_all_steps(
    data: Data, tmp_path: Path, max_steps: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, falls = [], fitting.Decay.on_train_batch_begin

    def recorded(decay: fitting.Decay, *args: Any) -> None:
        falls(decay, *args)
        rates.append([float(part.learning_rate) for part in decay.model.optimizer.optimizers])

    monkeypatch.setattr(fitting.Decay, "on_train_batch_begin", recorded)
    config = make_config(tmp_path, max_steps=max_steps)
    changes = {"train_steps": max_steps} if max_steps else {}
    result = train(data, tmp_path, make_fn_args(data.directory, tmp_path, config, **changes), max_steps=max_steps)
    steps = max_steps or result.report["steps"]
    np.testing.assert_allclose(
        rates, [[0.3 * (1 - n / steps), 0.02 * (1 - n / steps)] for n in range(steps)], rtol=1e-5
    )
    # Whoever trains on begins at the rates that were given.
    assert float(result.model.optimizer.learning_rate) == pytest.approx(0.02)


@pytest.mark.usefixtures("unexported")
def test_learning_rates_stay_without_decay(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(fitting, "Decay")
    assert train(data, tmp_path, decay=False, epochs=1).report["steps"] > 0


def test_served_scores_equal_the_trained_model_on_transformed_impressions(data: Data, trained: Trained) -> None:
    ((columns, _),) = transformed_batches([str(data.directory / "validation" / "*")], FEATURES, 1000)
    logits = trained.model(columns)
    offline = trained.model.probabilities(logits).numpy()
    assert np.abs(offline - tf.sigmoid(logits)).max() > 1e-3
    order = np.rint(columns["row"].numpy() * 1000).astype(int) - 300
    records = [serialized(data.validation[row], FEATURES) for row in order]
    online = tf.saved_model.load(str(trained.served)).signatures["examples"](examples=tf.constant(records))
    np.testing.assert_allclose(online["probability"], offline, atol=1e-5)
    assert np.std(offline) > 0.05
    (row,) = Features.from_dict(json.loads((trained.served / "assets.extra" / "features.json").read_text())).context
    assert row.mean == pytest.approx(np.mean(np.arange(300) / 1000))
    assert_exact_fingerprints(trained.model)


def test_popularity_is_how_often_the_training_part_has_items_as_positives(data: Data, trained: Trained) -> None:
    ((columns, labels),) = transformed_batches([str(data.directory / "train" / "*")], FEATURES, 1000)
    expected = np.zeros(trained.model.features.item_id.num_indices, int)
    for item, label in zip(columns["item_id"].numpy(), labels.numpy(), strict=True):
        expected[item] += label > 0
    expected[: 1 + FEATURES.item_id.num_oov_indices] = 0
    assert trained.model.popularity is not None
    np.testing.assert_array_equal(trained.model.popularity.counts, expected)
    assert len(set(expected)) > 2


def test_outputs_are_whole_and_nothing_is_left_behind(trained: Trained) -> None:
    assert (trained.served / "saved_model.pb").is_file()
    assert Contract.read(trained.served).timestamps == (1_600_000_000, 1_600_000_000)
    assert (trained.served / "assets.extra" / "adagrad.index").is_file()
    assert (trained.served / "assets.extra" / "tf_serving_warmup_requests").is_file()
    assert [path.name for path in trained.served.parent.iterdir()] == ["Format-Serving"]
    assert list((trained.output / "checkpoints").iterdir()) == []
    model_run = trained.output / "model_run"
    assert list(model_run.glob("train/events.*"))
    assert list(model_run.glob("validation/events.*"))


def test_report_tells_of_the_training(data: Data, trained: Trained) -> None:
    report = trained.report
    assert report["steps"] == 3 * 10
    assert (report["train_examples"], report["validation_examples"]) == (300, 50)
    files = [path for split in ("train", "validation") for path in (data.directory / split).iterdir()]
    assert report["file_bytes"] == sum(path.stat().st_size for path in files)
    # The history is of random ages.
    assert report["held_in_memory"] is False
    assert (report["base_version"], report["resumed_at_step"]) == (None, None)
    assert set(report["history"]) >= {"loss", "auc", "val_auc", "val_log_loss"}
    assert [len(values) for values in report["history"].values()] == [3] * len(report["history"])
    assert report["history"]["auc"][-1] > 0.7
    assert report["examples_per_second"] > 0


def test_report_tells_what_was_fitted_to_the_validation_part(data: Data, trained: Trained) -> None:
    fitted = trained.report["calibration"]
    labels = np.array([row["label"] for row in data.validation])
    assert (fitted["kind"], fitted["rows"], fitted["mean_label"]) == ("platt", 50, pytest.approx(labels.mean()))
    assert fitted["calibrator"]["class_name"] == "PlattCalibrator"
    slope, intercept = fitted["calibrator"]["config"].values()
    ((columns, labels),) = transformed_batches([str(data.directory / "validation" / "*")], FEATURES, 1000)
    logits, labels = trained.model(columns).numpy(), labels.numpy()
    for place, log_odds in enumerate((logits, slope * logits + intercept)):
        probabilities = 1 / (1 + np.exp(-np.float64(log_odds)))
        assert fitted["mean_probability"][place] == pytest.approx(probabilities.mean(), abs=1e-5)
        losses = -np.log(np.where(labels == 1, probabilities, 1 - probabilities))
        assert fitted["log_loss"][place] == pytest.approx(losses.mean(), abs=1e-5)
    assert fitted["log_loss"][1] < fitted["log_loss"][0]


@pytest.mark.usefixtures("unexported")
def test_a_part_too_small_to_calibrate_with_ends_the_execution_and_the_next_does_not_train_again(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, epochs=1, calibrate="isotonic")
    message = "--calibrate isotonic: the validation part does not suffice. `labels` must hold at least 100 rows of 0"
    with pytest.raises(ValueError, match=message):
        run_fn(make_fn_args(data.directory, tmp_path, config, train_steps=3))
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr(Ranker, "fit", lambda *_, **__: pytest.fail("trained again"))
    config = make_config(tmp_path, epochs=1)
    again = train(data, tmp_path, make_fn_args(data.directory, tmp_path, config, train_steps=3), epochs=1)
    assert (again.report["resumed_at_step"], again.report["calibration"]) == (3, None)
    assert again.model.calibrator is None


@pytest.mark.usefixtures("unexported")
def test_training_stops_early_and_keeps_the_best_epoch(data: Data, tmp_path: Path) -> None:
    overfit = train(data, tmp_path, epochs=30, patience=2)
    aucs = overfit.report["history"]["val_auc"]
    best = overfit.report["best_epoch"]
    assert best == int(np.argmax(aucs))
    assert len(aucs) == best + 1 + 2 < 30
    validation = transformed_batches([str(data.directory / "validation" / "*")], FEATURES, 32)
    assert overfit.model.evaluate(validation, return_dict=True, verbose=0)["auc"] == pytest.approx(aucs[best], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("interests", "explained", "states"),
    [
        (
            [RecentInterest(2), SDIM(), SIMSoft(2, index_period=2)],
            {"positions", "weights", "inner_products", "recent_interest_positions", "recent_interest_weights"},
            ["rank_from_state", "user_state"],
        ),
        (
            [MIMN(max_length=6, own_embeddings=True), TWIN(2, projected_table=True)],
            {"positions", "weights", "relevances"},
            ["rank_from_state", "update_state", "user_state"],
        ),
    ],
)
def test_any_units_are_trained_exported_and_pass_the_infra_validator(
    data: Data, tmp_path: Path, interests: list[Any], explained: set[str], states: list[str]
) -> None:
    units = [json.dumps(tf.keras.utils.serialize_keras_object(unit)) for unit in interests]
    config = make_config(tmp_path, Model(units, hidden_units=(8,), retrieval_weight=0.5), epochs=1)  # type: ignore[arg-type]
    run_fn(make_fn_args(data.directory, tmp_path, config, train_steps=3))
    model = load_trained_model(str(tmp_path / "model_run"), str(data.directory / "graph"), config)
    assert [type(unit) for unit in model.interests] == [type(unit) for unit in interests]
    assert model.optimizer.optimizers[0].iterations.numpy() == 3
    # Only what is liked is drawn: even items, a row or none for each of 3 * 32 impressions.
    assert model.retrieval_task is not None
    assert model.lookup is not None
    drawn = model.retrieval_task.drawn.numpy()
    assert 10 < drawn.sum() <= 96
    odd = model.lookup.encode("item_id", np.arange(1, 30, 2))
    assert not drawn[odd[odd > FEATURES.item_id.num_oov_indices]].any()
    requests = serving_requests([serialized(row, FEATURES) for row in data.validation[:4]], FEATURES)
    with ModelServer(tmp_path / "model" / "Format-Serving", loading_seconds=200, request_seconds=60) as server:
        signatures = server.signatures()
        assert list(signatures) == sorted(["examples", "explain", "rank", "serving_default", *states])
        assert set(signatures["explain"].outputs) == {"probability", *explained}
        check_signatures(server, requests)
        served = server.predict("serving_default", requests["serving_default"])["probability"]
    columns = raw_columns(data.validation[:4], FEATURES)
    encoded = model.lookup({name: tf.constant(x) for name, x in columns.items()})
    np.testing.assert_allclose(served, tf.sigmoid(model(encoded)), atol=1e-5)


KILLED = """
import os, signal, sys
import keras_eta
from pathlib import Path
from tests.tfx_pipeline.training import test_trainer
from tfx_pipeline.training import backups, trainer

backups._BACKUP_SECONDS = 0.0
count = backups.Progress.on_train_batch_end

def on_train_batch_end(self, batch, logs=None):
    count(self, batch, logs)
    if self._state.steps == 14:
        os.kill(os.getpid(), signal.SIGKILL)

backups.Progress.on_train_batch_end = on_train_batch_end
data, output = map(Path, sys.argv[1:])
trainer.run_fn(test_trainer.make_fn_args(data, output / "killed", test_trainer.make_config(output)))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("unexported")
def test_training_goes_on_after_a_kill_as_if_nothing_had_happened(
    data: Data, trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = [sys.executable, "-c", KILLED, str(data.directory), str(tmp_path)]
    killed = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "killed" / "model" / "Format-Serving").exists()
    with caplog.at_level(logging.INFO):
        resumed = train(data, tmp_path)
    assert "Training goes on at epoch 2, after step 4." in caplog.text
    assert resumed.report["resumed_at_step"] == 14
    assert resumed.report["steps"] == 30
    assert len(resumed.report["history"]["loss"]) == 3
    for ours, theirs in zip(weights(resumed.model), weights(trained.model), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert resumed.report["history"]["val_auc"] == pytest.approx(trained.report["history"]["val_auc"], abs=1e-6)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_failed_export_leaves_nothing_and_the_next_execution_does_not_train_again(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(model: Ranker, base: Path, version: int, **options: Any) -> None:
        (base / "1").mkdir(parents=True)
        raise OSError(28, "No space left on device")

    fn_args = make_fn_args(data.directory, tmp_path, make_config(tmp_path), train_steps=3)
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "export_model", full_disk)
        with pytest.raises(OSError, match="No space left on device"):
            run_fn(fn_args)
    assert list((tmp_path / "model").iterdir()) == []
    monkeypatch.setattr(Ranker, "fit", lambda *_, **__: pytest.fail("trained again"))
    again = train(data, tmp_path, fn_args)
    assert (again.served / "saved_model.pb").is_file()
    assert again.report["steps"] == again.report["resumed_at_step"] == 3


def test_another_configuration_does_not_take_up_an_interrupted_training(data: Data, tmp_path: Path) -> None:
    fn_args = make_fn_args(data.directory, tmp_path, make_config(tmp_path))
    other = make_fn_args(data.directory, tmp_path, make_config(tmp_path, seed=1))
    moved = make_fn_args(tmp_path, tmp_path, make_config(tmp_path))
    elsewhere = make_fn_args(data.directory, tmp_path / "next execution", make_config(tmp_path))

    def fingerprint(fn_args: Any) -> str:
        return trainer._fingerprint(fn_args, PipelineConfig.from_json(fn_args.custom_config["config"]))

    assert fingerprint(elsewhere) == fingerprint(fn_args)
    assert len({fingerprint(x) for x in (fn_args, other, moved)}) == 3


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_part_without_impressions_is_refused(data: Data, tmp_path: Path, part: str) -> None:
    fn_args = make_fn_args(data.directory, tmp_path, make_config(tmp_path))
    setattr(fn_args, "train_files" if part == "train" else "eval_files", [str(tmp_path / "none" / "*")])
    with pytest.raises(ValueError, match=rf"The {part}(ing)? part holds no impressions: .*none/\*"):
        run_fn(fn_args)


def test_a_loss_that_is_not_finite_is_refused(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranker, "fit", lambda *_, **__: types.SimpleNamespace(history={"loss": [np.nan]}))
    with pytest.raises(FloatingPointError, match=r"The loss is not finite in epoch 1\. Lower the learning rates"):
        run_fn(make_fn_args(data.directory, tmp_path, make_config(tmp_path)))
    assert not (tmp_path / "model").exists()


def test_a_model_reaches_remote_file_systems_whole(trained: Trained) -> None:
    target = "ram://test_trainer/model/Format-Serving"
    publishing.copy_saved_model(trained.served, target)
    loaded = tf.saved_model.load(target)
    assert set(loaded.signatures) == {"serving_default", "rank", "explain", "examples"}
    assert tf.io.gfile.exists(target + "/assets.extra/features.json")


def make_model(
    ids: list[int],
    users: list[bytes],
    features: Features = FEATURES,
    hidden_units: tuple[int, ...] = (8,),
    interests: Sequence[InterestUnit] = (),
    **changes: Any,
) -> Any:
    units = interests or dataclasses.replace(UNITS, **changes).make()
    vocabularies = {"item_id": ids, "user_id": np.array(users, object), "liked": [0, 1]}
    return make_ranker(Model(units, hidden_units), features, vocabularies)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """A model and the directory in which it is version 7, after an older one."""
    directory = tmp_path_factory.mktemp("served")
    tf.keras.utils.set_random_seed(5)
    base = make_model([10, 11, 12, 13, 0, -4], [b"a", b"b", b"\xff"])
    for variable in (*base.embedding_variables(), *base.dense_variables()):
        variable.assign(tf.random.normal(variable.shape, stddev=0.5))
    (directory / "3").mkdir()
    export_model(base, directory, 7, warmup=False)
    return base, str(directory)


NEW_IDS, NEW_USERS = [0, 99, 13, 12, 10], [b"new", b"\xff", b"b"]


def test_warm_start_carries_embeddings_over_by_id(served: tuple[Any, str]) -> None:
    base, directory = served
    model = make_model(NEW_IDS, NEW_USERS)
    fresh = {name: layer.embeddings.numpy() for name, layer in model.embeddings.items()}
    assert warm_start(model, directory) == 7
    for name, ids, dtype in (("item_id", NEW_IDS, np.int64), ("user_id", NEW_USERS, object)):
        table, base_table = model.embeddings[name].embeddings.numpy(), base.embeddings[name].embeddings.numpy()
        reserved = 1 + (FEATURES.item_id if name == "item_id" else FEATURES.user[0]).num_oov_indices
        np.testing.assert_array_equal(table[:reserved], base_table[:reserved])
        for row, id_ in enumerate(ids, reserved):
            base_row = base.lookup.encode(name, np.array([id_], dtype))[0]
            if base_row < reserved:
                np.testing.assert_array_equal(table[row], fresh[name][row])
            else:
                np.testing.assert_array_equal(table[row], base_table[base_row])
    for name in ("liked", "history_age"):
        np.testing.assert_array_equal(model.embeddings[name].embeddings, base.embeddings[name].embeddings)
    for ours, theirs in zip(model.dense_variables(), base.dense_variables(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert_exact_fingerprints(model)


def test_a_warm_started_model_scores_known_ids_as_its_base_does(served: tuple[Any, str]) -> None:
    _, directory = served
    model = make_model(NEW_IDS, NEW_USERS)
    warm_start(model, directory)
    rng = np.random.default_rng(0)
    impressions = [
        {
            "user_id": [b"b", b"\xff"][rng.integers(2)],
            "item_id": int(rng.choice([0, 10, 12, 13])),
            "row": 0.5,
            "timestamp": 10_000,
            "history_item_id": [int(item) for item in rng.choice([0, 10, 12, 13], length)],
            "history_liked": [int(liked) for liked in rng.integers(0, 2, length)],
            "history_timestamp": [int(moment) for moment in rng.integers(0, 10_000, length)],
        }
        for length in range(7)
    ]
    columns = raw_columns(impressions, FEATURES)
    ours = tf.sigmoid(model(model.lookup({name: tf.constant(x) for name, x in columns.items()})))
    signature = tf.saved_model.load(os.path.join(directory, "7")).signatures["serving_default"]
    theirs = signature(**{name: tf.constant(x) for name, x in columns.items()})["probability"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert np.std(theirs) > 1e-3


def test_warm_start_of_another_architecture_takes_embeddings_only(
    served: tuple[Any, str], caplog: pytest.LogCaptureFixture
) -> None:
    base, directory = served
    model = make_model([10], [b"a"], hidden_units=(5,), num_bits=8)
    dense = [variable.numpy() for variable in model.dense_variables()]
    assert warm_start(model, directory) == 7
    assert "Warm start from version 7" in caplog.text
    assert "of the embeddings only: its architecture is another." in caplog.text
    np.testing.assert_array_equal(model.embeddings["item_id"].embeddings[3], base.embeddings["item_id"].embeddings[3])
    for variable, before in zip(model.dense_variables(), dense, strict=True):
        np.testing.assert_array_equal(variable, before)
    assert_exact_fingerprints(model)


@pytest.mark.slow
@pytest.mark.parametrize(("base_period", "period"), [(1, 3), (3, 1), (3, 2)])
def test_warm_start_carries_planes_over_between_periods(tmp_path: Path, base_period: int, period: int) -> None:
    base = make_model([10], [b"a"], planes_period=base_period)
    base_hash = base.embeddings["item_id"].hash
    for variable in (*base.trainable_variables, base_hash.planes):
        variable.assign(tf.random.normal(variable.shape))
    export_bare(base, tmp_path, 1)
    model = make_model([10], [b"a"], planes_period=period)
    hash = model.embeddings["item_id"].hash
    assert warm_start(model, str(tmp_path)) == 1
    np.testing.assert_array_equal(hash.planes, base_hash.planes)
    assert_exact_fingerprints(model)
    if period > 1:
        learned = base_hash.planes if base_period == 1 else base_hash.learned_planes
        np.testing.assert_array_equal(hash.learned_planes, learned)
        # The next move keeps what was carried over.
        model.after_step(tf.constant(period))
        np.testing.assert_array_equal(hash.planes, learned)
        assert_exact_fingerprints(model)
    for ours, theirs in zip(model.mlp.trainable_variables, base.mlp.trainable_variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_other_features_start_cold(served: tuple[Any, str], caplog: pytest.LogCaptureFixture) -> None:
    _, directory = served
    other = dataclasses.replace(FEATURES, item_id=dataclasses.replace(FEATURES.item_id, num_oov_indices=1))
    model = make_model([10], [b"a"], other)
    before = weights(model)
    assert warm_start(model, directory) is None
    assert f"Cold start: version 7 in {directory} reads other features than this model." in caplog.text
    for ours, theirs in zip(weights(model), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["", "missing", "empty"])
def test_without_a_version_training_starts_cold(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".8.half-written").mkdir()
    with caplog.at_level(logging.INFO):
        assert warm_start(make_model([10], [b"a"]), name and str(tmp_path / name)) is None
    assert "Cold start: there is no version in" in caplog.text


@pytest.mark.usefixtures("unexported")
def test_training_starts_from_the_latest_served_version(data: Data, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    trained.served.rename(tmp_path / "served" / "4")
    try:
        warm = train(data, tmp_path, epochs=1)
    finally:
        (tmp_path / "served" / "4").rename(trained.served)
    assert warm.report["base_version"] == 4
    # Users' vocabularies are the same, and accumulators only grow.
    ours, theirs = (accumulators(x.model)["embeddings/user_id/embeddings:0"].numpy() for x in (warm, trained))
    assert (ours >= theirs).all()
    assert theirs.max() > 0.102
    assert warm.report["history"]["log_loss"][0] < trained.report["history"]["log_loss"][0] - 0.03
