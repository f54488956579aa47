"""TFX's Evaluator, which blesses no model that loses to counting."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow_model_analysis as tfma
from tfx import v1 as tfx
from tfx.components.evaluator import executor as tfx_evaluator
from tfx.dsl.components.base import executor_spec
from tfx.types import artifact_utils, standard_component_specs
from tfx.types.component_spec import ChannelParameter, ExecutionParameter
from tfx.utils import json_utils, proto_utils

from tfx_pipeline.components.baselines import BaselineMetrics, read_baselines
from tfx_pipeline.config import EVAL, PipelineConfig
from tfx_pipeline.evaluation import eval_config, hold_against_baselines

BASELINES = "baselines"
MIN_AUC_LEAD = "min_auc_lead"


class GatedEvaluatorExecutor(tfx_evaluator.Executor):
    """Evaluates with the best baseline's AUC within users as one more floor."""

    def Do(  # noqa: N802
        self, input_dict: dict[str, list[Any]], output_dict: dict[str, list[Any]], exec_properties: dict[str, Any]
    ) -> None:
        """Writes metrics and the blessing, as TFX's Evaluator does."""
        gates = tfma.EvalConfig()
        proto_utils.json_to_proto(exec_properties[standard_component_specs.EVAL_CONFIG_KEY], gates)
        baselines = read_baselines(artifact_utils.get_single_uri(input_dict[BASELINES]))
        hold_against_baselines(gates, baselines, exec_properties[MIN_AUC_LEAD])
        changed = {standard_component_specs.EVAL_CONFIG_KEY: proto_utils.proto_to_json(gates)}
        # For each batch TensorFlow writes all of its impressions into the text of an error, which it drops.
        with np.printoptions(threshold=0):
            super().Do(input_dict, output_dict, {**exec_properties, **changed})


class GatedEvaluatorSpec(standard_component_specs.EvaluatorSpec):
    """That of TFX's Evaluator, and the baselines."""

    PARAMETERS = {  # noqa: RUF012
        **standard_component_specs.EvaluatorSpec.PARAMETERS,
        MIN_AUC_LEAD: ExecutionParameter(type=float),
    }
    INPUTS = {  # noqa: RUF012
        **standard_component_specs.EvaluatorSpec.INPUTS,
        BASELINES: ChannelParameter(type=BaselineMetrics),
    }


class GatedEvaluator(tfx.types.BaseBeamComponent):
    """Measures a model on the eval split beside the last blessed one, and blesses it if it passes all gates.

    Args:
        config: `evaluation` and the columns to slice by are read.
        examples: channel of Examples with impressions.
        model: channel of the Model.
        baseline_model: channel of the last blessed Model; may be empty, as in a first run.
        baselines: channel of `BaselineMetrics` of the same examples.
    """

    SPEC_CLASS = GatedEvaluatorSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(GatedEvaluatorExecutor)

    def __init__(
        self,
        config: PipelineConfig,
        examples: tfx.types.BaseChannel,
        model: tfx.types.BaseChannel,
        baseline_model: tfx.types.BaseChannel,
        baselines: tfx.types.BaseChannel,
    ) -> None:
        super().__init__(
            GatedEvaluatorSpec(
                examples=examples,
                model=model,
                baseline_model=baseline_model,
                baselines=baselines,
                eval_config=eval_config(config),
                example_splits=json_utils.dumps([EVAL]),
                min_auc_lead=config.evaluation.min_auc_lead,
                evaluation=tfx.dsl.Channel(type=tfx.types.standard_artifacts.ModelEvaluation),
                blessing=tfx.dsl.Channel(type=tfx.types.standard_artifacts.ModelBlessing),
            )
        )
