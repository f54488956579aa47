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

    - its AUC is at least `min_auc`;
    - its AUC is not more than `max_auc_drop` below the last blessed model's on the same impressions;
    - so is its AUC on the impressions of `longest_bucket`. Where these lack a class, or are none, they have no say.

    Without a blessed model only the first holds. No other slice has a threshold.

    Args:
        config: `evaluation` and the columns to slice by are read.
    """
    evaluation = config.evaluation
    not_worse = config_pb2.GenericChangeThreshold(
        direction=config_pb2.MetricDirection.HIGHER_IS_BETTER,
        absolute=wrappers_pb2.DoubleValue(value=-evaluation.max_auc_drop),
    )
    above_floor = config_pb2.GenericValueThreshold(lower_bound=wrappers_pb2.DoubleValue(value=evaluation.min_auc))
    module = "tfx_pipeline.grouped_auc"
    metrics = [
        _metric("LogOddsAUC", AUC, _overall(value_threshold=above_floor, change_threshold=not_worse), module=module),
        _metric("GroupedAUC", GROUPED_AUC, module=module, group_key=USER_ID),
        _metric("BinaryCrossEntropy", LOG_LOSS),
        _metric("Calibration", CALIBRATION),
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
