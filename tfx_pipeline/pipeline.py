"""The graph of components, from raw logs to a pushed model."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfx import v1 as tfx

from tfx_pipeline.components.baselines import Baselines
from tfx_pipeline.components.evaluator import GatedEvaluator
from tfx_pipeline.components.infra_validator import LocalInfraValidator
from tfx_pipeline.components.pusher import AtomicPusher
from tfx_pipeline.components.scores import bulk_scores
from tfx_pipeline.components.validator import ImpressionValidator, ValidatedStatistics, statistics_options
from tfx_pipeline.config import TRAIN, VALIDATION, PipelineConfig
from tfx_pipeline.ingestion.impression_gen import impression_gen
from tfx_pipeline.retrieval.branch import retriever_components

PIPELINE_NAME = "eta"


def make_pipeline(config: PipelineConfig, metadata_connection: Any = None) -> Any:
    """The pipeline of a configuration, for any TFX runner.

    Args:
        config: what to run it on.
        metadata_connection: where ML Metadata is, for runners on this machine.

    Returns:
        A `tfx.dsl.Pipeline`.
    """
    example_gen = impression_gen(config.only("data", "output", "split", "min_history", "max_bad_share"))
    examples = example_gen.outputs["examples"]
    schema_gen = tfx.components.ImportSchemaGen(schema_file=config.schema)
    schema = schema_gen.outputs["schema"]
    statistics_gen = tfx.components.StatisticsGen(
        examples=examples, schema=schema, stats_options=statistics_options(config)
    )
    latest_statistics = tfx.dsl.Resolver(
        strategy_class=tfx.dsl.experimental.LatestArtifactStrategy,
        statistics=tfx.dsl.Channel(type=ValidatedStatistics),
    ).with_id("latest_validated_statistics")
    validator = ImpressionValidator(
        statistics=statistics_gen.outputs["statistics"],
        schema=schema,
        baseline_statistics=latest_statistics.outputs["statistics"],
    )

    transform = tfx.components.Transform(
        examples=examples,
        schema=schema,
        preprocessing_fn="tfx_pipeline.transform.preprocessing_fn",
        # Models are judged on raw impressions, by what will be served.
        splits_config=tfx.proto.SplitsConfig(analyze=[TRAIN], transform=[TRAIN, VALIDATION]),
        # StatisticsGen has them; Transform would compute them twice more.
        disable_statistics=True,
        custom_config={"config": config.only().to_json()},
    )
    # Where the tables are that travel in the export.
    joined = ["data"] if any(map(config.layout.joined_features, config.layout.joined_tables)) else []
    trainer = _trainer(config.only(*joined, "output", "serving_dir", "model", "training"), transform, schema)
    # Anomalous data must not reach training.
    trainer.add_upstream_node(validator)
    model = trainer.outputs["model"]

    latest_blessed = tfx.dsl.Resolver(
        strategy_class=tfx.dsl.experimental.LatestBlessedModelStrategy,
        model=tfx.dsl.Channel(type=tfx.types.standard_artifacts.Model),
        model_blessing=tfx.dsl.Channel(type=tfx.types.standard_artifacts.ModelBlessing),
    ).with_id("latest_blessed_model")
    short = _short_history_trainer(config.only(*joined, "output", "model", "training", "evaluation"), transform, schema)
    if short is not None:
        short.add_upstream_node(validator)
    baselines = Baselines(
        examples=examples,
        item_id=config.layout.features.item_id.name,
        short_history=None if short is None else short.outputs["model"],
    )
    evaluator = GatedEvaluator(
        config,
        examples=examples,
        model=model,
        baseline_model=latest_blessed.outputs["model"],
        baselines=baselines.outputs["baselines"],
    ).with_id("Evaluator")
    infra_validator = LocalInfraValidator(model=model, examples=examples, config=config)
    pusher = AtomicPusher(
        model=model,
        model_blessing=evaluator.outputs["blessing"],
        infra_blessing=infra_validator.outputs["blessing"],
        push_destination=tfx.proto.PushDestination(
            filesystem=tfx.proto.PushDestination.Filesystem(base_directory=config.serving_dir)
        ),
    )
    components = [
        example_gen,
        schema_gen,
        statistics_gen,
        latest_statistics,
        validator,
        transform,
        trainer,
        latest_blessed,
        *([] if short is None else [short]),
        baselines,
        evaluator,
        infra_validator,
        pusher,
    ]
    if config.retriever.retriever_dir is not None:
        components += retriever_components(config, examples, validator)
    if config.bulk_inference:
        components += bulk_scores(config, examples, model, evaluator.outputs["blessing"])
    return tfx.dsl.Pipeline(
        pipeline_name=PIPELINE_NAME,
        pipeline_root=config.pipeline_root,
        components=components,
        enable_cache=True,
        metadata_connection_config=metadata_connection,
        beam_pipeline_args=list(config.beam_args),
    )


def _trainer(config: PipelineConfig, transform: Any, schema: Any) -> Any:
    """A Trainer of what a configuration describes."""
    return tfx.components.Trainer(
        run_fn="tfx_pipeline.training.trainer.run_fn",
        examples=transform.outputs["transformed_examples"],
        transform_graph=transform.outputs["transform_graph"],
        schema=schema,
        train_args=tfx.proto.TrainArgs(splits=[TRAIN], num_steps=config.training.max_steps or 0),
        eval_args=tfx.proto.EvalArgs(splits=[VALIDATION]),
        custom_config={"config": config.to_json()},
    )


def _short_history_trainer(config: PipelineConfig, transform: Any, schema: Any) -> Any:
    """The Trainer of the baseline that reads the short history alone; `None` where there is to be none."""
    model = config.model.short_history() if config.evaluation.short_history_baseline else None
    if model is None:
        return None
    # No version of it is served, so there is none to start from, and an order needs no calibration.
    training = dataclasses.replace(config.training, warm_start=False, calibrate=None)
    features = config.layout.features
    # More of the history would be gathered for nothing.
    read = min(features.max_history_length, model.longest_recent)
    layout = dataclasses.replace(config.layout, features=dataclasses.replace(features, max_history_length=read))
    alone = dataclasses.replace(config.only("data", "output"), layout=layout, model=model, training=training)
    return _trainer(alone, transform, schema).with_id("ShortHistoryTrainer")
