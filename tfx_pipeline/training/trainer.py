"""Trains a ranker on transformed impressions and exports it: what the Trainer component runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

import keras_eta
from keras_eta import Ranker
from keras_eta.datasets.batches import batch_bounds
from keras_eta.export import export_model
from keras_eta.names import scope_name
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.ranker import make_ranker
from tfx_pipeline.training.accumulators import save_accumulators
from tfx_pipeline.training.backups import MONITORED, Backups, Progress, State
from tfx_pipeline.training.batches import Part, measure, transformed_batches
from tfx_pipeline.training.warm_start import warm_start
from tfx_pipeline.transform import read_scales

TRAINING_REPORT = "training.json"

_WEIGHTS = "weights"

_logger = logging.getLogger(__name__)


def run_fn(fn_args: Any) -> None:
    """Trains, keeps the best epoch's weights, and exports, as TFX's Trainer component asks for.

    Training goes on where an earlier execution with the same inputs and the same configuration was interrupted. Else it
    starts from the latest served version, if the configuration says so. `model_run_dir` receives TensorBoard logs, the
    trained weights (see `load_trained_model`) and `training.json`; `serving_model_dir` the SavedModel, whole or not at
    all.

    Args:
        fn_args: TFX's `FnArgs`; `custom_config["config"]` is a `PipelineConfig` as JSON.

    Raises:
        ValueError: if there are no impressions to train or to validate with.
        FloatingPointError: if the loss is not finite.
    """
    config = PipelineConfig.from_json(fn_args.custom_config["config"])
    tf.keras.utils.set_random_seed(config.training.seed)
    train, validation = measure(fn_args.train_files), measure(fn_args.eval_files)
    for name, part, patterns in (
        ("training", train, fn_args.train_files),
        ("validation", validation, fn_args.eval_files),
    ):
        if not part.num_examples:
            raise ValueError(f"The {name} part holds no impressions: {', '.join(patterns)}")
        _logger.info("%s part: %d impressions, %d bytes in files.", name, part.num_examples, part.file_bytes)

    model, state = _make_model(config, tft.TFTransformOutput(fn_args.transform_graph_path)), State()
    backups = Backups(model, state, os.path.join(config.checkpoint_dir, _fingerprint(fn_args, config)))
    if backups.restore_last():
        state.resumed_at_step = state.steps
        _logger.info("Training goes on at epoch %d, after step %d.", state.epoch + 1, state.step)
    elif config.training.warm_start:
        state.base_version = warm_start(model, config.serving_dir)
    start = time.monotonic()
    _fit(model, state, backups, train, validation, config, fn_args)

    tf.train.Checkpoint(model=model).write(os.path.join(fn_args.model_run_dir, _WEIGHTS))
    model_name = os.path.basename(config.serving_dir.rstrip("/")) or "eta"
    _publish(model, fn_args.serving_model_dir, model_name, train.timestamps)
    report = {
        "history": state.history,
        "best_epoch": state.best_epoch,
        "steps": state.steps,
        "resumed_at_step": state.resumed_at_step,
        "base_version": state.base_version,
        "seconds": round(time.monotonic() - start, 1),
        "examples_per_second": round(state.examples / state.seconds, 1),
        "train_examples": train.num_examples,
        "validation_examples": validation.num_examples,
        "file_bytes": train.file_bytes + validation.file_bytes,
        "parameters": model.count_params(),
    }
    with tf.io.gfile.GFile(os.path.join(fn_args.model_run_dir, TRAINING_REPORT), "w") as file:
        json.dump(report, file, indent=2)
    backups.delete()


def load_trained_model(
    model_run_dir: str, transform_output: str | tft.TFTransformOutput, config: PipelineConfig
) -> Ranker:
    """The Keras model that a Trainer execution trained.

    Args:
        model_run_dir: the execution's `model_run` artifact.
        transform_output: the `transform_graph` artifact that it was trained with.
        config: its configuration.

    Returns:
        The compiled model, optimiser state included. It reads what `transformed_batches` yields.
    """
    if isinstance(transform_output, str):
        transform_output = tft.TFTransformOutput(transform_output)
    model = _make_model(config, transform_output)
    tf.train.Checkpoint(model=model).read(os.path.join(model_run_dir, _WEIGHTS)).assert_existing_objects_matched()
    return model


def _fit(
    model: Ranker, state: State, backups: Backups, train: Part, validation: Part, config: PipelineConfig, fn_args: Any
) -> None:
    """Trains from `state` until the epochs or steps are over or the validation AUC gets worse; keeps the best epoch."""
    training, features = config.training, config.layout.features
    validation_batches = transformed_batches(validation.files, features, training.batch_size)
    if fn_args.eval_steps:
        validation_batches = validation_batches.take(fn_args.eval_steps)
    tensorboard = tf.keras.callbacks.TensorBoard(fn_args.model_run_dir, write_graph=False)
    # One call of `fit` an epoch: each has an order of its own, which a resumed training takes up where it stopped.
    while not state.finished:
        bounds = batch_bounds(train.num_examples, training.batch_size)
        num_steps = len(bounds) - 1
        if fn_args.train_steps:
            num_steps = min(num_steps, fn_args.train_steps - state.steps + state.step)
        batches = transformed_batches(
            train.files,
            features,
            training.batch_size,
            shuffle_buffer=train.shuffle_buffer,
            seed=training.seed + state.epoch,
            bounds=bounds[state.step :],
        )
        remaining = num_steps - state.step
        logs = model.fit(
            # Where the end comes unexpected, Keras counts one more step, of no batch, which Adam's corrections read.
            batches.take(remaining).apply(tf.data.experimental.assert_cardinality(remaining)),
            validation_data=validation_batches,
            initial_epoch=state.epoch,
            epochs=state.epoch + 1,
            callbacks=[
                Progress(state, backups, num_steps, np.diff(bounds)),
                tf.keras.callbacks.TerminateOnNaN(),
                tensorboard,
            ],
            verbose=2,
        ).history
        if not np.isfinite(logs["loss"][-1]):
            backups.delete()
            raise FloatingPointError(
                f"The loss is not finite in epoch {state.epoch + 1}. Lower the learning rates: "
                f"embedding_learning_rate={training.embedding_learning_rate}, "
                f"dense_learning_rate={training.dense_learning_rate}"
            )
        state.history = {name: [*state.history.get(name, []), *map(float, values)] for name, values in logs.items()}
        state.step = 0
        if state.best_epoch == state.epoch - 1:
            backups.save_best()
        state.finished = (
            state.epoch >= training.epochs
            or state.epoch - 1 - state.best_epoch >= training.patience
            or state.steps == fn_args.train_steps
        )
        backups.save_last()
    if state.best_epoch < state.epoch - 1:
        backups.restore_best()
    _logger.info(
        "Trained %d epochs; the best is epoch %d with %s=%.4f.",
        state.epoch,
        state.best_epoch + 1,
        MONITORED,
        state.history[MONITORED][state.best_epoch],
    )


def _make_model(config: PipelineConfig, transform_output: tft.TFTransformOutput) -> Ranker:
    """The model, built and compiled, with a lookup that holds the vocabularies of Transform."""
    training = config.training
    features = config.layout.features.with_scales(read_scales(transform_output, config.layout.features))
    vocabularies = {
        # As objects: NumPy's own strings of bytes lose zero bytes at the end.
        feature.name: np.array(transform_output.vocabulary_by_name(scope_name(feature.name)), object)
        for feature in features.all_features
        if feature.is_id
    }
    model = make_ranker(config.model, features, vocabularies)
    optimizer = model.default_optimizer(training.embedding_learning_rate, training.dense_learning_rate)
    # Before the first step, so that every restored checkpoint is checked against the optimisers' variables too.
    optimizer.build(model.trainable_variables)
    model.compile(optimizer)
    return model


def _fingerprint(fn_args: Any, config: PipelineConfig) -> str:
    """The same for two executions if the second can go on where the first was interrupted."""
    decisive = {
        "train_files": fn_args.train_files,
        "eval_files": fn_args.eval_files,
        "transform_graph": fn_args.transform_graph_path,
        "steps": [fn_args.train_steps, fn_args.eval_steps],
        "features": config.layout.features.to_dict(),
        "model": dataclasses.asdict(config.model),
        "training": dataclasses.asdict(config.training),
        "versions": [keras_eta.__version__, tf.__version__],
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def _publish(model: Ranker, serving_model_dir: str, model_name: str, timestamps: tuple[int, int] | None) -> None:
    """Exports the model, with its accumulators, to a directory, which appears when it is whole."""
    remote = "://" in serving_model_dir
    if remote:
        workspace = Path(tempfile.mkdtemp())
    else:
        target = Path(serving_model_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        workspace = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    try:
        # The name goes into the warm-up requests.
        exported = export_model(model, workspace / model_name, version=1, timestamps=timestamps)
        save_accumulators(model, exported)
        if remote:
            _copy(exported, serving_model_dir)
        else:
            exported.rename(serving_model_dir)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _copy(source: Path, target: str) -> None:
    """Copies a SavedModel to a file system without renames; the file that makes it one comes last."""
    files = [path for path in source.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == "saved_model.pb"):
        copy = "/".join([target, *path.relative_to(source).parts])
        tf.io.gfile.makedirs(os.path.dirname(copy))
        tf.io.gfile.copy(str(path), copy)
