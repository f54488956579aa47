"""Trains a ranker for a trial, on what Transform made in an earlier run of the pipeline."""

from __future__ import annotations

import dataclasses
import gc
import os
from pathlib import Path

import tensorflow as tf
import tensorflow_transform as tft

from keras_eta.columns import LABEL
from keras_eta.features import Features
from tfx_pipeline.config import TRAIN, VALIDATION, PipelineConfig
from tfx_pipeline.training.backups import MONITORED, Backups, State
from tfx_pipeline.training.batches import Part
from tfx_pipeline.training.fitting import fit, make_model, set_popularity
from tfx_pipeline.training.packing import pack, part_batches
from tfx_pipeline.tuning.search import Outcome


@dataclasses.dataclass(frozen=True)
class Data:
    """The train and validation parts; the eval part is for the pipeline's own judgement.

    Args:
        transform_graph: path of the artifact.
        train: its encoded impressions.
        validation: likewise.
    """

    transform_graph: str
    train: Part
    validation: Part

    @classmethod
    def read(cls, transform_graph: str, transformed_examples: str, features: Features) -> Data:
        """What Transform made.

        Args:
            transform_graph: path of the artifact.
            transformed_examples: likewise.
            features: the columns that rankers will read.

        Raises:
            ValueError: if a part is empty, or the impressions lack a column.
        """
        sequences = [name for x in features.all_sequences for name in (*features.encoded_sequence_names(x), x.length)]
        columns = {*features.encoded_row_names, *sequences, LABEL}
        missing = sorted(columns - tft.TFTransformOutput(transform_graph).transformed_feature_spec().keys())
        if missing:
            raise ValueError(
                f"The impressions of {transformed_examples} have no {', '.join(missing)}: the run that made them had "
                "another layout. Give the layout's flags as in that run."
            )
        parts = {
            name: pack([os.path.join(transformed_examples, f"Split-{name}", "*")], features)
            for name in (TRAIN, VALIDATION)
        }
        for name, part in parts.items():
            if not part.num_examples:
                raise ValueError(f"The {name} part of {transformed_examples} holds no impressions.")
        return cls(transform_graph, parts[TRAIN], parts[VALIDATION])


def run_trial(config: PipelineConfig, data: Data, directory: str) -> Outcome:
    """Trains a ranker as the pipeline's Trainer does, but for a warm start.

    Args:
        config: of the trial.
        data: what it is trained and judged on.
        directory: of its checkpoints, from which an interrupted trial goes on, and TensorBoard logs.

    Raises:
        FloatingPointError: if the loss is not finite.
    """
    tf.keras.backend.clear_session()
    gc.collect()
    tf.keras.utils.set_random_seed(config.training.seed)
    model, state = make_model(config, tft.TFTransformOutput(data.transform_graph)), State()
    backups = Backups(model, state, str(Path(directory) / "checkpoints"))
    backups.restore_last()
    set_popularity(model, data.train)
    validation = part_batches(data.validation, config.layout.features, config.training.batch_size)
    fit(
        model,
        state,
        backups,
        data.train,
        validation,
        config,
        log_dir=directory,
        max_steps=config.training.max_steps,
    )
    backups.delete()
    return Outcome(max(state.history[MONITORED]), state.epoch, model.count_params())
