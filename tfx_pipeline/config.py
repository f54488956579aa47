"""The configuration of a pipeline run: one frozen dataclass, handed to every component as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from typing import Any

from keras_eta.validation import check_integers_from_zero, check_positive_integers, is_integer, is_number
from tfx_pipeline.layouts import Layout
from tfx_pipeline.model_config import Model
from tfx_pipeline.options import option
from tfx_pipeline.retriever_config import Retriever

TRAIN, VALIDATION, EVAL = "train", "validation", "eval"
SPLITS = (TRAIN, VALIDATION, EVAL)

# The kinds of `keras_eta.calibration`, which imports TensorFlow.
CALIBRATIONS = ("platt", "isotonic")

# A column of every impression: how many behaviours lie before it, in words, to slice metrics by.
HISTORY_BUCKET = "history_bucket"
HISTORY_BUCKETS = ("0-9", "10-49", "50-199", "200+")
HISTORY_BUCKET_STARTS = (0, 10, 50, 200)


@dataclasses.dataclass(frozen=True)
class Split:
    """A split by time: train, then validation, then eval. Dates, where given, take the place of fractions.

    Raises:
        ValueError: if the fractions are not three positive numbers that add up to 1, or one date is no integer, missing
            or late.
    """

    fractions: tuple[float, float, float] = option(
        (0.8, 0.1, 0.1),
        "shares of the impressions, by time",
        nargs=3,
        metavar=("TRAIN", "VALIDATION", "EVAL"),
    )
    validation_from: int | None = option(
        None, "split by dates instead: timestamp of the first validation impression", type=int, metavar="TIME"
    )
    eval_from: int | None = option(None, "timestamp of the first eval impression", type=int, metavar="TIME")

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
class Training:
    """How the model is trained.

    Raises:
        ValueError: if an argument is out of its range.
    """

    batch_size: int = option(512, "impressions per step", metavar="N")
    epochs: int = option(8, "passes over the training part, at most", metavar="N")
    max_steps: int | None = option(None, "stop training after so many steps", type=int, metavar="N")
    patience: int = option(
        1,
        "epochs without a better validation AUC after which training stops; the best epoch's weights are kept",
        metavar="N",
    )
    embedding_learning_rate: float = option(0.1, "Adagrad's, for embeddings", metavar="RATE")
    dense_learning_rate: float = option(1e-3, "Adam's, for the rest", metavar="RATE")
    decay: bool = option(False, "whether both learning rates fall to zero, linearly, over all epochs")
    warm_start: bool = option(
        True,
        "whether ranker and retriever start from the version pushed last, where there is one with the same features",
    )
    calibrate: str | None = option(
        None,
        "make probabilities click rates by a function of the logits, fitted to the validation part (default: not)",
        choices=CALIBRATIONS,
    )
    seed: int = option(0, "of initial weights, of ETA's planes and of the order of batches", metavar="N")

    def __post_init__(self) -> None:
        bounds = {} if self.max_steps is None else {"max_steps": self.max_steps}
        check_positive_integers(batch_size=self.batch_size, epochs=self.epochs, patience=self.patience, **bounds)
        check_integers_from_zero(seed=self.seed)
        for name in ("embedding_learning_rate", "dense_learning_rate"):
            value = getattr(self, name)
            if not (is_number(value) and value > 0):
                raise ValueError(f"`{name}` must be a positive number. Received: {name}={value}")
        if self.calibrate is not None and self.calibrate not in CALIBRATIONS:
            raise ValueError(
                f"`calibrate` must be one of {CALIBRATIONS} or None. Received: calibrate={self.calibrate!r}"
            )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """When a model is blessed.

    Raises:
        ValueError: if an argument is out of its range.
    """

    min_auc: float = option(0.6, "floor of the AUC on the eval part, below which no model is blessed", metavar="AUC")
    min_grouped_auc: float = option(
        0.5, "floor of the AUC within users; 0: none, for a log in which no user has both labels", metavar="AUC"
    )
    min_auc_lead: float = option(
        0.0,
        "how far the AUC within users must lie above that of the best baseline: counts, and the short history; "
        "-1: it may lie anywhere",
        metavar="AUC",
    )
    short_history_baseline: bool = option(
        True, "also train the ranker on the short history alone, each time afresh, and hold the model against it"
    )
    max_log_loss: float = option(
        0.6931, "ceiling of the log loss (default: what a probability of one half has always)", metavar="LOSS"
    )
    max_miscalibration: float = option(
        1.25,
        "ceiling of the mean probability by the mean label, and of the reverse",
        metavar="RATIO",
    )
    max_saturated_share: float = option(
        0.01, "ceiling of the share of probabilities that are exactly 0 or 1", metavar="SHARE"
    )
    max_auc_drop: float = option(
        0.002,
        "how far the AUC may lie below the last blessed model's, overall, within users and on --longest_bucket",
        metavar="AUC",
    )
    longest_bucket: str = option(
        HISTORY_BUCKETS[-1], "bucket of history lengths that must not get worse", choices=HISTORY_BUCKETS
    )

    def __post_init__(self) -> None:
        for name in ("min_auc", "min_grouped_auc", "max_saturated_share"):
            value = getattr(self, name)
            if not (is_number(value) and 0 <= value <= 1):
                raise ValueError(f"`{name}` must lie between 0 and 1. Received: {name}={value}")
        if not (is_number(self.min_auc_lead) and -1 <= self.min_auc_lead <= 1):
            raise ValueError(f"`min_auc_lead` must lie between -1 and 1. Received: min_auc_lead={self.min_auc_lead}")
        for name, least in (("max_log_loss", 0), ("max_miscalibration", 1)):
            value = getattr(self, name)
            if not (is_number(value) and value >= least):
                raise ValueError(f"`{name}` must be a number of at least {least}. Received: {name}={value}")
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
        layout: how the files of `data` hold interactions.
        split: the temporal split.
        model: the ranker.
        training: how it is trained.
        evaluation: when it is blessed.
        retriever: the retriever beside it, where there is one.

    Raises:
        ValueError: if an argument is out of its range, or nothing is known of the items that a retriever is to find.
    """

    layout: Layout
    data: str = option(dataclasses.MISSING, "directory of the raw log; movielens: fetched if not given", metavar="DIR")
    schema: str = option(
        dataclasses.MISSING,
        "curated schema, text proto; python -m tfx_pipeline.propose_schema makes a draft for a custom layout",
        metavar="FILE",
    )
    output: str = option("build/pipeline", "artifacts, metadata, checkpoints and reports", metavar="DIR")
    serving_dir: str = option(
        "build/serving/eta", "where versions are pushed, as TF Serving's --model_base_path", metavar="DIR"
    )
    split: Split = Split()
    min_history: int = option(
        5, "interactions with fewer earlier ones of the same user are behaviours, but no impressions", metavar="N"
    )
    max_bad_share: float = option(
        0.01,
        "share of malformed rows above which the run stops, in all and in each span and file with at least 10",
        metavar="SHARE",
    )
    statistics_sample_rate: float = option(
        1.0, "share of the impressions that statistics are computed of", metavar="SHARE"
    )
    model: Model = dataclasses.field(default_factory=Model)
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    retriever: Retriever = dataclasses.field(default_factory=Retriever)
    bulk_inference: bool = option(False, "also score the eval part with the blessed model, as Parquet")
    beam_args: tuple[str, ...] = option(
        (),
        "flags of the Beam runner in one string after '=', e.g. "
        "--beam_args='--direct_running_mode=multi_processing --direct_num_workers=2' (default: one local process)",
        type=shlex.split,
        metavar="ARGS",
    )

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
        if self.retriever.retriever_dir is not None:
            self._check_retriever(self.retriever.retriever_dir)

    def _check_retriever(self, retriever_dir: str) -> None:
        # Components that push nothing get no directory.
        if self.serving_dir and os.path.normpath(retriever_dir) == os.path.normpath(self.serving_dir):
            raise ValueError(
                "`retriever_dir` must not be the `serving_dir` of the ranker, whose versions are other models. "
                f"Received: retriever_dir={retriever_dir!r}, serving_dir={self.serving_dir!r}"
            )
        items = self.layout.items
        described = items is not None and bool(items.text or items.categories)
        if self.retriever.item_table is None and not described and not self.layout.item_categories:
            raise ValueError(
                "A retriever finds items by what they are, and nothing is known of them: give an `item_table`, or a "
                "layout whose items have attributes that are ids. "
                f"Received: retriever_dir={retriever_dir!r}, item_table=None"
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
            retriever=Retriever(**values.pop("retriever")),
            **values,
        )


def history_bucket(count: int) -> str:
    """The entry of `HISTORY_BUCKETS` in which a number of earlier behaviours falls."""
    bucket = sum(count >= start for start in HISTORY_BUCKET_STARTS)
    return HISTORY_BUCKETS[bucket - 1]
