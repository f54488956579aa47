"""Trains a ranker on transformed impressions and exports it: what the Trainer component runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

import keras_eta
from keras_eta import Ranker
from keras_eta.export import export_model
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.training.accumulators import save_accumulators
from tfx_pipeline.training.attribute_tables import attribute_tables
from tfx_pipeline.training.backups import Backups, State
from tfx_pipeline.training.calibrating import calibrate
from tfx_pipeline.training.fitting import fit, make_model, set_popularity
from tfx_pipeline.training.moments import save_moments
from tfx_pipeline.training.packing import pack, part_batches
from tfx_pipeline.training.publishing import model_name, publish
from tfx_pipeline.training.warm_start import warm_start

TRAINING_REPORT = "training.json"

_WEIGHTS = "weights"

_logger = logging.getLogger(__name__)


def run_fn(fn_args: Any) -> None:
    """Trains, keeps the best epoch's weights, calibrates, and exports, as TFX's Trainer component asks for.

    Training goes on where an earlier execution with the same inputs and the same configuration was interrupted. Else it
    starts from the latest served version, if the configuration says so. `model_run_dir` receives TensorBoard logs, the
    trained weights (see `load_trained_model`) and `training.json`; `serving_model_dir` the SavedModel, whole or not at
    all.

    Args:
        fn_args: TFX's `FnArgs`; `custom_config["config"]` is a `PipelineConfig` as JSON.

    Raises:
        ValueError: if there are no impressions to train or to validate with, or too few, or a model no better than
            chance, to calibrate.
        FloatingPointError: if the loss is not finite.
    """
    config = PipelineConfig.from_json(fn_args.custom_config["config"])
    tf.keras.utils.set_random_seed(config.training.seed)
    features = config.layout.features
    train, validation = (pack(files, features) for files in (fn_args.train_files, fn_args.eval_files))
    for name, part, patterns in (
        ("training", train, fn_args.train_files),
        ("validation", validation, fn_args.eval_files),
    ):
        if not part.num_examples:
            raise ValueError(f"The {name} part holds no impressions: {', '.join(patterns)}")
        _logger.info("%s part: %d impressions, %d bytes in files.", name, part.num_examples, part.file_bytes)

    model, state = make_model(config, tft.TFTransformOutput(fn_args.transform_graph_path)), State()
    backups = Backups(model, state, os.path.join(config.checkpoint_dir, _fingerprint(fn_args, config)))
    if backups.restore_last():
        state.resumed_at_step = state.steps
        _logger.info("Training goes on at epoch %d, after step %d.", state.epoch + 1, state.step)
    elif config.training.warm_start:
        state.base_version = warm_start(model, config.serving_dir)
    # That of this training part, also where a version was one of another.
    set_popularity(model, train)
    start = time.monotonic()
    validation_batches = part_batches(validation, features, config.training.batch_size)
    if fn_args.eval_steps:
        validation_batches = validation_batches.take(fn_args.eval_steps)
    fit(
        model,
        state,
        backups,
        train,
        validation_batches,
        config,
        log_dir=fn_args.model_run_dir,
        max_steps=fn_args.train_steps,
    )
    calibration = None
    if config.training.calibrate is not None:
        calibration = calibrate(model, config.training.calibrate, validation_batches)

    tf.train.Checkpoint(model=model).write(os.path.join(fn_args.model_run_dir, _WEIGHTS))

    def export(base_path: Path) -> Path:
        tables = attribute_tables(config.layout, config.data)
        exported = export_model(model, base_path, version=1, timestamps=train.timestamps, tables=tables)
        save_accumulators(model, exported)
        save_moments(model, exported)
        return exported

    publish(export, fn_args.serving_model_dir, model_name(config.serving_dir, "eta"))
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
        "held_in_memory": train.packed is not None,
        "parameters": model.count_params(),
        "calibration": calibration,
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
        The compiled model, optimiser state and calibrator included. It reads what `transformed_batches` yields; its
        call gives logits, of which `model.probabilities` makes what the exported version answers.
    """
    if isinstance(transform_output, str):
        transform_output = tft.TFTransformOutput(transform_output)
    model = make_model(config, transform_output)
    tf.train.Checkpoint(model=model).read(os.path.join(model_run_dir, _WEIGHTS)).assert_existing_objects_matched()
    with tf.io.gfile.GFile(os.path.join(model_run_dir, TRAINING_REPORT)) as file:
        calibration = json.load(file)["calibration"]
    if calibration is not None:
        model.calibrator = tf.keras.utils.deserialize_keras_object(calibration["calibrator"])
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
        # What comes after the training leaves it as it is.
        "training": dataclasses.asdict(dataclasses.replace(config.training, calibrate=None)),
        "versions": [keras_eta.__version__, tf.__version__],
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
