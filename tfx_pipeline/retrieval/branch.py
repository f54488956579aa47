"""The components of the retriever, which stand beside the ranker's."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf
from tfx import v1 as tfx

from tfx_pipeline.components.retriever_evaluator import RetrieverEvaluator
from tfx_pipeline.components.retriever_infra_validator import RetrieverInfraValidator
from tfx_pipeline.components.retriever_pusher import RetrieverPusher
from tfx_pipeline.config import TRAIN, VALIDATION, PipelineConfig, Training
from tfx_pipeline.ingestion.files import size_and_time
from tfx_pipeline.retriever_config import Retriever


def retriever_components(
    config: PipelineConfig, examples: tfx.types.BaseChannel, validator: tfx.types.BaseComponent | None = None
) -> list[tfx.types.BaseComponent]:
    """The components that train, judge, try and push a retriever.

    Args:
        config: with a `retriever_dir`.
        examples: channel of `ImpressionGen`'s Examples.
        validator: the component that must pass before anything is trained. `None`: there is none.
    """
    # What a component does not read must not make it run again.
    read = dataclasses.replace(
        config.only("data"),
        retriever=dataclasses.replace(config.retriever, max_recall_drop=Retriever.max_recall_drop),
        training=Training(
            batch_size=config.training.batch_size,
            patience=config.training.patience,
            warm_start=config.training.warm_start,
            seed=config.training.seed,
        ),
    )
    custom_config: dict[str, Any] = {"config": read.to_json()}
    table = config.retriever.item_table
    if table is not None and tf.io.gfile.exists(table):
        custom_config["item_table"] = size_and_time(table)
    trainer = tfx.components.Trainer(
        run_fn="tfx_pipeline.retrieval.trainer.run_fn",
        examples=examples,
        train_args=tfx.proto.TrainArgs(splits=[TRAIN]),
        eval_args=tfx.proto.EvalArgs(splits=[VALIDATION]),
        custom_config=custom_config,
    ).with_id("RetrieverTrainer")
    if validator is not None:
        trainer.add_upstream_node(validator)
    model = trainer.outputs["model"]
    evaluator = RetrieverEvaluator(model, examples, config)
    infra_validator = RetrieverInfraValidator(model=model, examples=examples, config=config)
    pusher = RetrieverPusher(
        model,
        evaluator.outputs["blessing"],
        infra_validator.outputs["blessing"],
        config.retriever.retriever_dir or "",
    )
    return [trainer, evaluator, infra_validator, pusher]
