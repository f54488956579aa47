"""Trains a retriever on positive impressions and exports it: what the component RetrieverTrainer runs."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_eta import TIGER, SemanticIds
from keras_eta.columns import HISTORY_LENGTH, ITEM_ID, history_name
from keras_eta.datasets.batches import batches_of_rows, made_ahead
from keras_eta.export import export_retriever
from tfx_pipeline.config import PipelineConfig, Training
from tfx_pipeline.retrieval.items import Items, read_items
from tfx_pipeline.retrieval.positives import FIRST_ROW, Positives, read_positives
from tfx_pipeline.retrieval.warm_start import Start, cold_start, warm_start
from tfx_pipeline.training.publishing import model_name, publish
from tfx_pipeline.training.trainer import TRAINING_REPORT

# Most recent behaviours that the retriever reads, as in the paper.
MAX_HISTORY_LENGTH = 20

_logger = logging.getLogger(__name__)


def run_fn(fn_args: Any) -> None:
    """Makes semantic ids of all items, trains TIGER with early stopping, and exports it, as TFX's Trainer asks for.

    Training goes on from the latest served version, its semantic ids included, if the configuration says so.
    `model_run_dir` receives TensorBoard logs and `training.json`, `serving_model_dir` the SavedModel, whole or not at
    all. The validation part has a say in nothing but when to stop.

    Args:
        fn_args: TFX's `FnArgs`, whose files are impressions as ingestion writes them; `custom_config["config"]` is a
            `PipelineConfig` as JSON.

    Raises:
        ValueError: if items can't be read or told apart, or a part has no positives of items that are known.
        FloatingPointError: if a loss is not finite.
    """
    config = PipelineConfig.from_json(fn_args.custom_config["config"])
    began = time.monotonic()
    tf.keras.utils.set_random_seed(config.training.seed)
    items = read_items(config, [*fn_args.train_files, *fn_args.eval_files])
    start = _start(items, config)
    model = start.model
    # The report compares all pairs where it gets vectors.
    quality = start.tokenizer.ids_of(items.ids).report()
    _logger.info("Semantic ids: %s", quality)
    parts: dict[str, Positives] = {}
    unknown: dict[str, int] = {}
    for name, patterns in (("training", fn_args.train_files), ("validation", fn_args.eval_files)):
        found = read_positives(
            patterns,
            config.layout.features.item_id,
            model.max_history_length,
            lambda raw: model.lookup.encode(ITEM_ID, raw),
        )
        known = found.items >= FIRST_ROW
        if not known.any():
            raise ValueError(
                f"The {name} part has {found.total:,} positives, none of an item that is known. There are "
                f"{len(items.ids):,} items, e.g. {items.ids[0]!r}."
            )
        parts[name] = found.where(known)
        unknown[name] = int(np.count_nonzero(~known))
    history = _fit(model, parts["training"], parts["validation"], config, fn_args.model_run_dir)

    rows = start.tokenizer.rows_of(items.ids)
    learned = np.isin(np.arange(len(rows)) + FIRST_ROW, parts["training"].items)
    start.seen[rows[learned]] = True
    unseen = start.tokenizer.issued.item_ids[rows[~start.seen[rows]]]

    def export(base_path: Path) -> Path:
        exported = export_retriever(
            model,
            base_path,
            version=1,
            num_results=config.retriever.retriever_results,
            unseen=unseen,
            unseen_share=config.retriever.unseen_share,
        )
        start.save(exported)
        return exported

    publish(export, fn_args.serving_model_dir, model_name(config.retriever.retriever_dir or "", "tiger"))
    report = {
        "history": history,
        "base_version": start.base_version,
        "best_epoch": int(np.argmin(history["val_loss"])),
        "seconds": round(time.monotonic() - began, 1),
        "positives": {name: part.total for name, part in parts.items()},
        "positives_of_unknown_items": unknown,
        "parameters": model.count_params(),
        "semantic_ids": dataclasses.asdict(quality),
    }
    with tf.io.gfile.GFile(os.path.join(fn_args.model_run_dir, TRAINING_REPORT), "w") as file:
        json.dump(report, file, indent=2)


def _start(items: Items, config: PipelineConfig) -> Start:
    """Where the training starts: from the served version, if the configuration says so and it can be, else afresh."""
    retriever, length = config.retriever, config.layout.features.max_history_length

    def make_model(ids: SemanticIds) -> TIGER:
        return TIGER(ids, max_history_length=min(MAX_HISTORY_LENGTH, length))

    start = None
    if config.training.warm_start:
        start = warm_start(items, retriever.codebook_size, retriever.retriever_dir or "", make_model)
    return start or cold_start(items, retriever.codebook_size, config.training.seed, make_model)


def _fit(
    model: TIGER, train: Positives, validation: Positives, config: PipelineConfig, log_dir: str
) -> dict[str, list[float]]:
    """Trains until the validation loss no longer falls, and gives the model its best weights."""
    training = config.training
    model.compile()
    best = tf.keras.callbacks.EarlyStopping("val_loss", patience=training.patience, restore_best_weights=True)
    history: dict[str, list[float]] = model.fit(
        _dataset(train, training, shuffle=True),
        validation_data=_dataset(validation, training, shuffle=False),
        epochs=config.retriever.retriever_epochs,
        callbacks=[
            best,
            tf.keras.callbacks.TerminateOnNaN(),
            tf.keras.callbacks.TensorBoard(log_dir, write_graph=False),
        ],
        verbose=2,
    ).history
    losses = {name: [float(value) for value in values] for name, values in history.items()}
    if not np.isfinite([*losses["loss"], *losses["val_loss"]]).all():
        raise FloatingPointError(f"The loss is not finite in epoch {len(losses['loss'])}: {losses}")
    # Keras itself does so only where training stopped early.
    model.set_weights(best.best_weights)
    return losses


def _dataset(part: Positives, training: Training, shuffle: bool) -> tf.data.Dataset:
    """Batches of positives as the model reads them."""
    items, histories, lengths = map(tf.constant, part[:3])

    def gather(rows: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        inputs = {
            ITEM_ID: tf.gather(items, rows),
            history_name(ITEM_ID): tf.gather(histories, rows),
            HISTORY_LENGTH: tf.gather(lengths, rows),
        }
        return inputs, tf.ones_like(rows)

    batches = batches_of_rows(len(part.items), training.batch_size, shuffle, training.seed, drop_remainder=False)
    return made_ahead(batches, gather)
