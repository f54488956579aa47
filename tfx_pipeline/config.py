"""The configuration of a pipeline run: one frozen dataclass, handed to every component as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

from keras_eta.validation import (
    check_hidden_units,
    check_integers_from_zero,
    check_positive_integers,
    is_integer,
    is_number,
)
from tfx_pipeline.layouts import Layout

TRAIN, VALIDATION, EVAL = "train", "validation", "eval"
SPLITS = (TRAIN, VALIDATION, EVAL)

# A column of every impression: how many behaviours lie before it, in words, to slice metrics by.
HISTORY_BUCKET = "history_bucket"
HISTORY_BUCKETS = ("0-9", "10-49", "50-199", "200+")
HISTORY_BUCKET_STARTS = (0, 10, 50, 200)


@dataclasses.dataclass(frozen=True)
class Split:
    """A split by time: train, then validation, then eval.

    Args:
        fractions: shares of the impressions, by time, in train, validation and eval. Not read where dates are given.
        validation_from: timestamp of the first validation impression, in the log's units.
        eval_from: timestamp of the first eval impression.

    Raises:
        ValueError: if the fractions are not three positive numbers that add up to 1, or one date is no integer, missing
            or late.
    """

    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    validation_from: int | None = None
    eval_from: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "fractions", tuple(self.fractions))
        positive = all(is_number(fraction) and fraction > 0 for fraction in self.fractions)
        if len(self.fractions) != 3 or not positive or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(
                f"`fractions` must be three positive numbers that add up to 1. Received: fractions={self.fractions}"
            )
        dates = self.validation_from, self.eval_from
        if not all(date is None or is_integer(date) for date in dates):
            raise ValueError(
                "`validation_from` and `eval_from` must be integers or None. "
                f"Received: validation_from={self.validation_from}, eval_from={self.eval_from}"
            )
        if (None in dates) != (dates == (None, None)) or (None not in dates and not dates[0] < dates[1]):  # type: ignore[operator]
            raise ValueError(
                "`validation_from` and `eval_from` must be given together, the first before the second. "
                f"Received: validation_from={self.validation_from}, eval_from={self.eval_from}"
            )


@dataclasses.dataclass(frozen=True)
class Model:
    """Arguments of `keras_eta.ETA`.

    Raises:
        ValueError: if a number is out of its range.
    """

    top_k: int = 48
    num_bits: int = 64
    similarity_bias: bool = True
    trainable_planes: bool = True
    short_history_length: int = 16
    num_heads: int = 2
    hidden_units: tuple[int, ...] = (128, 64)
    cross_layers: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden_units", tuple(self.hidden_units))
        check_positive_integers(top_k=self.top_k, num_bits=self.num_bits, num_heads=self.num_heads)
        check_integers_from_zero(short_history_length=self.short_history_length, cross_layers=self.cross_layers)
        check_hidden_units(self.hidden_units)


@dataclasses.dataclass(frozen=True)
class Training:
    """How the model is trained.

    Args:
        batch_size: impressions a step.
        epochs: passes over the training part, at most.
        max_steps: steps after which training stops before that. `None`: no such bound.
        patience: epochs without a better validation AUC after which training stops; the best epoch's weights are kept.
        embedding_learning_rate: Adagrad's, for embeddings.
        dense_learning_rate: Adam's, for the rest.
        warm_start: whether to start from the latest pushed model, where there is one with the same features.
        seed: of initial weights and of the order of batches.
    """

    batch_size: int = 512
    epochs: int = 2
    max_steps: int | None = None
    patience: int = 1
    embedding_learning_rate: float = 0.1
    dense_learning_rate: float = 1e-3
    warm_start: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = {} if self.max_steps is None else {"max_steps": self.max_steps}
        check_positive_integers(batch_size=self.batch_size, epochs=self.epochs, patience=self.patience, **bounds)
        check_integers_from_zero(seed=self.seed)
        for name in ("embedding_learning_rate", "dense_learning_rate"):
            value = getattr(self, name)
            if not (is_number(value) and value > 0):
                raise ValueError(f"`{name}` must be a positive number. Received: {name}={value}")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """When a model is blessed.

    Args:
        min_auc: floor of the overall AUC on the eval part.
        max_auc_drop: how far the AUC may lie below the last blessed model's, overall and on `longest_bucket`.
        longest_bucket: the bucket of history lengths that must not get worse.
    """

    min_auc: float = 0.6
    max_auc_drop: float = 0.002
    longest_bucket: str = HISTORY_BUCKETS[-1]

    def __post_init__(self) -> None:
        if not (is_number(self.min_auc) and 0 <= self.min_auc <= 1):
            raise ValueError(f"`min_auc` must lie between 0 and 1. Received: min_auc={self.min_auc}")
        if not (is_number(self.max_auc_drop) and self.max_auc_drop >= 0):
            raise ValueError(
                f"`max_auc_drop` must be a number of at least 0. Received: max_auc_drop={self.max_auc_drop}"
            )
        if self.longest_bucket not in HISTORY_BUCKETS:
            raise ValueError(
                f"`longest_bucket` must be one of {HISTORY_BUCKETS}. Received: longest_bucket={self.longest_bucket!r}"
            )


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """Everything that a pipeline needs to know. Nothing is read from the environment.

    Args:
        data: directory of the raw log.
        layout: how its files hold interactions.
        schema: file of the curated schema (text proto of TensorFlow Metadata) that impressions must fit.
        output: directory of artifacts, metadata, checkpoints and reports.
        serving_dir: directory of the pushed versions, as TF Serving's `--model_base_path`.
        split: the temporal split.
        min_history: interactions with fewer earlier ones of the same user are behaviours, but no impressions.
        max_bad_share: share of malformed rows above which a run stops.
        statistics_sample_rate: share of the impressions that statistics are computed of.
        model: arguments of the ranker.
        training: how it is trained.
        evaluation: when it is blessed.
        bulk_inference: whether to score the eval part with the blessed model and write the scores as Parquet.
        beam_args: flags of the Beam runner, e.g. `("--runner=FlinkRunner", "--flink_master=...")`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    data: str
    layout: Layout
    schema: str
    output: str
    serving_dir: str
    split: Split = Split()
    min_history: int = 5
    max_bad_share: float = 0.01
    statistics_sample_rate: float = 1.0
    model: Model = Model()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    bulk_inference: bool = False
    beam_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "beam_args", tuple(self.beam_args))
        check_integers_from_zero(min_history=self.min_history)
        if not (is_number(self.max_bad_share) and 0 <= self.max_bad_share <= 1):
            raise ValueError(f"`max_bad_share` must lie between 0 and 1. Received: max_bad_share={self.max_bad_share}")
        if not (is_number(self.statistics_sample_rate) and 0 < self.statistics_sample_rate <= 1):
            raise ValueError(
                "`statistics_sample_rate` must lie between 0 and 1, 0 excluded. "
                f"Received: statistics_sample_rate={self.statistics_sample_rate}"
            )

    @property
    def pipeline_root(self) -> str:
        """Directory of the artifacts."""
        return os.path.join(self.output, "artifacts")

    @property
    def metadata_path(self) -> str:
        """The SQLite file of ML Metadata."""
        return os.path.join(self.output, "metadata.sqlite")

    @property
    def dead_letter_dir(self) -> str:
        """Directory of the malformed rows, by run."""
        return os.path.join(self.output, "dead_letter")

    @property
    def checkpoint_dir(self) -> str:
        """Directory from which an interrupted training goes on."""
        return os.path.join(self.output, "checkpoints")

    @property
    def slice_columns(self) -> tuple[str, ...]:
        """Columns by which evaluation slices, besides `HISTORY_BUCKET`."""
        categories = [feature.name for feature in self.layout.features.item_attributes if feature.is_id]
        return tuple(dict.fromkeys([*self.layout.slice_columns, *categories]))

    def only(self, *names: str) -> PipelineConfig:
        """A copy with the layout, these fields, and defaults for all others.

        TFX runs a component again when its parameters change: it gets only what concerns it.
        """
        required = {"data": "", "schema": "", "output": "", "serving_dir": ""}
        return PipelineConfig(layout=self.layout, **{**required, **{name: getattr(self, name) for name in names}})

    def to_json(self) -> str:
        """The configuration as JSON; `PipelineConfig.from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> PipelineConfig:
        """The configuration that `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        return cls(
            layout=Layout.from_dict(values.pop("layout")),
            split=Split(**values.pop("split")),
            model=Model(**values.pop("model")),
            training=Training(**values.pop("training")),
            evaluation=Evaluation(**values.pop("evaluation")),
            **values,
        )


def history_bucket(count: int) -> str:
    """The entry of `HISTORY_BUCKETS` in which a number of earlier behaviours falls."""
    bucket = sum(count >= start for start in HISTORY_BUCKET_STARTS)
    return HISTORY_BUCKETS[bucket - 1]
