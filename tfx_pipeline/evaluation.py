"""What Evaluator measures, on which slices, and when it blesses a model."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf import wrappers_pb2
from tensorflow_model_analysis.proto import config_pb2

from keras_eta.columns import LABEL
from keras_eta.export import EXAMPLES, PROBABILITY
from tfx_pipeline.config import HISTORY_BUCKET, PipelineConfig
from tfx_pipeline.layouts import USER_ID

# Names of the metrics in Evaluator's results.
AUC = "auc"
LOG_LOSS = "log_loss"
CALIBRATION = "calibration"
GROUPED_AUC = "grouped_auc"
LONGEST_BUCKET_AUC = "auc_longest_bucket"
EXAMPLE_COUNT = "example_count"


def eval_config(config: PipelineConfig) -> config_pb2.EvalConfig:
    """The configuration of Evaluator.

    Measured overall, by `HISTORY_BUCKET` and by each of `config.slice_columns`: AUC; AUC within users; log loss;
    calibration, the mean probability over the mean label; and the number of impressions.

    A model is blessed where, on all impressions together,

    - its AUC is at least `min_auc`, and that within users at least `min_grouped_auc`;
    - its log loss is at most `max_log_loss`, and its mean probability within a factor of `max_miscalibration` of the
      mean label;
    - neither AUC is more than `max_auc_drop` below the last blessed model's on the same impressions;
    - nor is its AUC on the impressions of `longest_bucket`. Where these lack a class, or are none, they have no say.

    What is not a number is refused. Without a blessed model only the first two hold. No other slice has a threshold.

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
    module = "tfx_pipeline.grouped_auc"
    metrics = [
        _metric(
            "LogOddsAUC",
            AUC,
            _overall(value_threshold=_between(evaluation.min_auc), change_threshold=not_worse),
            module=module,
        ),
        _metric("GroupedAUC", GROUPED_AUC, _overall(**within_users), module=module, group_key=USER_ID),
        _metric("BinaryCrossEntropy", LOG_LOSS, _overall(value_threshold=_between(0.0, evaluation.max_log_loss))),
        _metric("Calibration", CALIBRATION, _overall(value_threshold=_between(1 / ratio, ratio))),
        _metric("ExampleCount", EXAMPLE_COUNT),
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
    columns = dict.fromkeys([HISTORY_BUCKET, *config.slice_columns])
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


def refusals(validation: Any) -> list[str]:
    """Why a model was not blessed: one line per gate, with the metric, its value, and what was asked of it.

    Args:
        validation: a `ValidationResult` of TensorFlow Model Analysis.
    """
    lines = []
    for part in validation.metric_validations_per_slice:
        for failure in part.failures:
            name, value = failure.metric_key.name, failure.metric_value.double_value.value
            if failure.metric_threshold.HasField("change_threshold"):
                allowed = -failure.metric_threshold.change_threshold.absolute.value
                lines.append(
                    f"{name} is {-value:.4f} below the last blessed model's, more than `max_auc_drop`={allowed:g}"
                )
                continue
            bounds = failure.metric_threshold.value_threshold
            asked = f"at least {bounds.lower_bound.value:.4f}"
            if bounds.HasField("upper_bound"):
                asked = f"from {bounds.lower_bound.value:.4f} to {bounds.upper_bound.value:.4f}"
            lines.append(f"{name} is {value:.4f} and must be {asked}")
    if validation.missing_slices or validation.missing_cross_slices:
        lines.append("there were no impressions")
    return lines


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
