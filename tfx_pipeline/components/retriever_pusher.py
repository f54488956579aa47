"""Pushes blessed retrievers as `AtomicPusher` pushes rankers."""

from __future__ import annotations

from tfx import v1 as tfx
from tfx.dsl.components.base import executor_spec
from tfx.types import standard_component_specs
from tfx.types.component_spec import ChannelParameter

from tfx_pipeline.components.pusher import AtomicPusherExecutor
from tfx_pipeline.components.retriever_evaluator import RetrieverBlessing


class RetrieverPusherSpec(standard_component_specs.PusherSpec):
    """That of TFX's Pusher, with the blessing of a retriever."""

    INPUTS = {  # noqa: RUF012
        **standard_component_specs.PusherSpec.INPUTS,
        standard_component_specs.MODEL_BLESSING_KEY: ChannelParameter(type=RetrieverBlessing),
    }


class RetrieverPusher(tfx.types.BaseComponent):
    """Pushes a retriever that has both its blessings: whole, once; see `tfx_pipeline.components.pusher.push`.

    Args:
        model: channel of the Model.
        model_blessing: channel of the `RetrieverBlessing`.
        infra_blessing: channel of the InfraBlessing.
        base_directory: of the versions.
    """

    SPEC_CLASS = RetrieverPusherSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(AtomicPusherExecutor)

    def __init__(
        self,
        model: tfx.types.BaseChannel,
        model_blessing: tfx.types.BaseChannel,
        infra_blessing: tfx.types.BaseChannel,
        base_directory: str,
    ) -> None:
        destination = tfx.proto.PushDestination.Filesystem(base_directory=base_directory)
        super().__init__(
            RetrieverPusherSpec(
                model=model,
                model_blessing=model_blessing,
                infra_blessing=infra_blessing,
                push_destination=tfx.proto.PushDestination(filesystem=destination),
                pushed_model=tfx.dsl.Channel(type=tfx.types.standard_artifacts.PushedModel),
            )
        )
