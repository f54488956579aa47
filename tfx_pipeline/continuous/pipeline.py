"""The TFX pipeline of a round."""

from __future__ import annotations

from typing import Any

from tfx import v1 as tfx

from tfx_pipeline.components.pusher import AtomicPusher
from tfx_pipeline.continuous.components import (
    IncrementalTrainer,
    ProgressiveEvaluator,
    RoundGates,
    RoundImpressions,
    RoundStatistics,
)
from tfx_pipeline.continuous.infra_validator import LoadedInfraValidator
from tfx_pipeline.continuous.settings import Loop

PIPELINE_NAME = "eta-continuous"


def round_pipeline(loop: Loop, number: int) -> Any:
    """The pipeline of a round; run again, it takes what finished components of it have made.

    Args:
        loop: what to run.
        number: of the round, which is open.

    Returns:
        A `tfx.dsl.Pipeline`.
    """
    config = loop.config
    impressions = RoundImpressions(loop, number)
    examples = impressions.outputs["examples"]
    statistics = RoundStatistics(loop, number, examples=examples)
    evaluator = ProgressiveEvaluator(loop, number, examples=examples)
    evaluation = evaluator.outputs["evaluation"]
    trainer = IncrementalTrainer(loop, number, examples=examples, evaluation=evaluation)
    model = trainer.outputs["model"]
    gates = RoundGates(loop, number, statistics=statistics.outputs["statistics"], evaluation=evaluation, model=model)
    infra_validator = LoadedInfraValidator(model=model, examples=examples, config=config)
    pusher = AtomicPusher(
        model=model,
        model_blessing=gates.outputs["blessing"],
        infra_blessing=infra_validator.outputs["blessing"],
        push_destination=tfx.proto.PushDestination(
            filesystem=tfx.proto.PushDestination.Filesystem(base_directory=config.serving_dir)
        ),
    )
    return tfx.dsl.Pipeline(
        pipeline_name=PIPELINE_NAME,
        pipeline_root=str(loop.artifacts),
        components=[impressions, statistics, evaluator, trainer, gates, infra_validator, pusher],
        enable_cache=True,
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(str(loop.metadata)),
    )
