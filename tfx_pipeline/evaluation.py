"""What Evaluator measures, on which slices, and when it blesses a model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from google.protobuf import wrappers_pb2
from tensorflow_model_analysis.proto import config_pb2

from keras_eta.columns import LABEL
from keras_eta.export import EXAMPLES, PROBABILITY
from tfx_pipeline.components.baselines import Measured
from tfx_pipeline.config import HISTORY_BUCKET, Evaluation, PipelineConfig
from tfx_pipeline.layouts import USER_ID

# Names of the metrics in Evaluator's results.
AUC = "auc"
LOG_LOSS = "log_loss"
CALIBRATION = "calibration"
GROUPED_AUC = "grouped_auc"
LONGEST_BUCKET_AUC = "auc_longest_bucket"
SATURATED_SHARE = "saturated_share"
RELIABILITY = "reliability"
MEAN_LABEL = "mean_label"
EXAMPLE_COUNT = "example_count"

# Those that a report compares models by.
COMPARED = (AUC, GROUPED_AUC, LOG_LOSS, CALIBRATION, SATURATED_SHARE)


def eval_config(config: PipelineConfig) -> config_pb2.EvalConfig:
    """The configuration of Evaluator.

    Measured overall, by `HISTORY_BUCKET` and by each of the layout's `slice_columns`: AUC; AUC within users; log loss;
    calibration, the mean probability over the mean label; reliability, the same by tenth of the probabilities; the
    share of probabilities that are exactly 0 or 1; the mean label; and the number of impressions.

    A model is blessed where, on all impressions together,

    - its AUC is at least `min_auc`, and that within users at least `min_grouped_auc`;
    - its log loss is at most `max_log_loss`, and its mean probability within a factor of `max_miscalibration` of the
      mean label; of its probabilities at most a share of `max_saturated_share` is exactly 0 or 1;
    - neither AUC is more than `max_auc_drop` below the last blessed model's on the same impressions;
    - nor is its AUC on the impressions of `longest_bucket`. Where these lack a class, or are none, they have no say.

    What is not a number is refused. Without a blessed model only the first two hold. No other slice has a threshold.
    `hold_against_baselines` adds the gate on the AUC within users that depends on the data.

    Args:
        config: `evaluation` and the columns to slice by are read.
    """
    evaluation = config.evaluation
    not_worse = config_pb2.GenericChangeThreshold(
        direction=config_pb2.MetricDirection.HIGHER_IS_BETTER,
        absolute=wrappers_pb2.DoubleValue(value=-evaluation.max_auc_drop),
    )
    within_users: dict[str, Any] = {"change_threshold": not_worse}
    if evaluation.min_grouped_auc:
        within_users["value_threshold"] = _between(evaluation.min_grouped_auc)
    ratio = evaluation.max_miscalibration
    module, of_probabilities = "tfx_pipeline.grouped_auc", "tfx_pipeline.probabilities"
    metrics = [
        _metric(
            "LogOddsAUC",
            AUC,
            _overall(value_threshold=_between(evaluation.min_auc), change_threshold=not_worse),
            module=of_probabilities,
        ),
        _metric("GroupedAUC", GROUPED_AUC, _overall(**within_users), module=module, group_key=USER_ID),
        _metric(
            "LogLoss",
            LOG_LOSS,
            _overall(value_threshold=_between(0.0, evaluation.max_log_loss)),
            module=of_probabilities,
        ),
        _metric(
            "CalibrationRatio",
            CALIBRATION,
            _overall(value_threshold=_between(1 / ratio, ratio)),
            module=of_probabilities,
        ),
        _metric(
            "SaturatedShare",
            SATURATED_SHARE,
            _overall(value_threshold=_between(0.0, evaluation.max_saturated_share)),
            module=of_probabilities,
        ),
        _metric("Reliability", RELIABILITY, module=of_probabilities),
        _metric("LabelRate", MEAN_LABEL, module=of_probabilities),
        _metric("ImpressionCount", EXAMPLE_COUNT, module=of_probabilities),
        _metric(
            "SubsetAUC",
            LONGEST_BUCKET_AUC,
            _overall(change_threshold=not_worse),
            module=module,
            column=HISTORY_BUCKET,
            value=evaluation.longest_bucket,
            group_key=USER_ID,
        ),
    ]
    columns = dict.fromkeys([HISTORY_BUCKET, *config.layout.slice_columns])
    return config_pb2.EvalConfig(
        model_specs=[
            config_pb2.ModelSpec(
                signature_name=EXAMPLES, prediction_key=PROBABILITY, label_key=LABEL, model_type="tf_generic"
            )
        ],
        slicing_specs=[config_pb2.SlicingSpec(), *(config_pb2.SlicingSpec(feature_keys=[name]) for name in columns)],
        metrics_specs=[config_pb2.MetricsSpec(metrics=metrics)],
        options=config_pb2.Options(include_default_metrics=wrappers_pb2.BoolValue(value=False)),
    )


def hold_against_baselines(
    gates: config_pb2.EvalConfig, baselines: Mapping[str, Measured], min_auc_lead: float
) -> None:
    """Raises the floor of the AUC within users to the best baseline's and `min_auc_lead`, unless it is higher already.

    Where no user has both labels the baselines have no such AUC, and nothing changes.

    Args:
        gates: as `eval_config` makes it; changed in place.
        baselines: each baseline's metrics on the same impressions.
        min_auc_lead: how far above the best baseline the model must lie.
    """
    best = best_baseline(baselines)
    if best is None:
        return
    (metric,) = (one for spec in gates.metrics_specs for one in spec.metrics if _name(one) == GROUPED_AUC)
    (overall,) = metric.per_slice_thresholds
    floor = overall.threshold.value_threshold.lower_bound
    floor.value = max(floor.value, baselines[best].grouped_auc + min_auc_lead)


def best_baseline(baselines: Mapping[str, Measured]) -> str | None:
    """The baseline with the highest AUC within users; `None` where none has one."""
    known = {name: found.grouped_auc for name, found in baselines.items() if not math.isnan(found.grouped_auc)}
    return max(known, key=known.__getitem__, default=None)


class Gate(NamedTuple):
    """What was asked of a model on all impressions together.

    Args:
        metric: its name.
        value: that of the model.
        asked: what it must be, worded to follow "must be".
        passed: whether it is.
    """

    metric: str
    value: float
    asked: str
    passed: bool

    @property
    def shown(self) -> str:
        """The value as it is printed: numbers of things are whole."""
        return f"{self.value:,}" if isinstance(self.value, int) else f"{self.value:.4f}"


def gates(
    config: config_pb2.EvalConfig,
    validation: Any,
    values: Mapping[str, float],
    last: Mapping[str, float] | None,
    baselines: Mapping[str, Measured],
    evaluation: Evaluation,
) -> list[Gate]:
    """Every gate of an evaluation, in the order of the metrics.

    Args:
        config: of the evaluation, with the floor that `hold_against_baselines` set.
        validation: its `ValidationResult`.
        values: the model's metrics on all impressions.
        last: the last blessed model's on the same ones; `None` where there is none.
        baselines: those that the model was held against.
        evaluation: the gates as they were configured.
    """
    # Metric, and whether it is the fall that was too large.
    failed = {
        (failure.metric_key.name, failure.metric_threshold.HasField("change_threshold"))
        for part in validation.metric_validations_per_slice
        for failure in part.failures
    }
    found = []
    for metric in (one for spec in config.metrics_specs for one in spec.metrics):
        name = _name(metric)
        for threshold in (one.threshold for one in metric.per_slice_thresholds):
            if threshold.HasField("value_threshold"):
                asked = _asked(name, threshold.value_threshold, baselines, evaluation)
                found.append(Gate(name, values[name], asked, (name, False) not in failed))
            if threshold.HasField("change_threshold") and last is not None:
                drop = f"at most `max_auc_drop`={evaluation.max_auc_drop:g}"
                asked = f"{drop} below the last blessed model's {last[name]:.4f}"
                found.append(Gate(name, values[name], asked, (name, True) not in failed))
    return found


def refusals(validation: Any, baselines: Mapping[str, Measured], evaluation: Evaluation) -> list[str]:
    """Why a model was not blessed: one line per gate, with the metric, its value, and what was asked of it.

    Args:
        validation: a `ValidationResult` of TensorFlow Model Analysis.
        baselines: those that the model was held against.
        evaluation: the gates as they were configured.
    """
    lines = []
    for part in validation.metric_validations_per_slice:
        for failure in part.failures:
            name, value = failure.metric_key.name, failure.metric_value.double_value.value
            threshold = failure.metric_threshold
            if threshold.HasField("change_threshold"):
                allowed = -threshold.change_threshold.absolute.value
                lines.append(
                    f"{name} is {-value:.4f} below the last blessed model's, more than `max_auc_drop`={allowed:g}"
                )
            else:
                asked = _asked(name, threshold.value_threshold, baselines, evaluation)
                lines.append(f"{name} is {value:.4f} and must be {asked}")
    if validation.missing_slices or validation.missing_cross_slices:
        lines.append("there were no impressions")
    return lines


def _asked(
    name: str, bounds: config_pb2.GenericValueThreshold, baselines: Mapping[str, Measured], evaluation: Evaluation
) -> str:
    """What a metric must be, worded to follow "must be"."""
    asked = f"at least {bounds.lower_bound.value:.4f}"
    if bounds.HasField("upper_bound"):
        asked = f"from {bounds.lower_bound.value:.4f} to {bounds.upper_bound.value:.4f}"
    best = best_baseline(baselines) if name == GROUPED_AUC else None
    if best is not None and bounds.lower_bound.value > evaluation.min_grouped_auc:
        level, lead = baselines[best].grouped_auc, evaluation.min_auc_lead
        asked += f": the baseline {best} has {level:.4f}, and `min_auc_lead`={lead:g}"
    return asked


def _name(metric: config_pb2.MetricConfig) -> str:
    return json.loads(metric.config)["name"]


def _between(lower: float, upper: float | None = None) -> config_pb2.GenericValueThreshold:
    threshold = config_pb2.GenericValueThreshold(lower_bound=wrappers_pb2.DoubleValue(value=lower))
    if upper is not None:
        threshold.upper_bound.value = upper
    return threshold


def _overall(**thresholds: Any) -> config_pb2.PerSliceMetricThreshold:
    """A threshold for all impressions together; `MetricConfig.threshold` would hold on every slice."""
    return config_pb2.PerSliceMetricThreshold(
        slicing_specs=[config_pb2.SlicingSpec()], threshold=config_pb2.MetricThreshold(**thresholds)
    )


def _metric(
    class_name: str,
    name: str,
    *thresholds: config_pb2.PerSliceMetricThreshold,
    module: str = "",
    **arguments: str,
) -> config_pb2.MetricConfig:
    return config_pb2.MetricConfig(
        class_name=class_name,
        module=module,
        config=json.dumps({"name": name, **arguments}),
        per_slice_thresholds=thresholds,
    )
