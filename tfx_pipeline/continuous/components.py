"""The TFX components of a round."""

from __future__ import annotations

import json
import os
from typing import Any

import tensorflow_data_validation as tfdv
from absl import logging
from tensorflow_data_validation.statistics import stats_impl
from tfx import v1 as tfx
from tfx.components.util import examples_utils
from tfx.dsl.components.base import base_executor, executor_spec
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.utils import path_utils
from tfx_bsl.coders import example_coder

from tfx_pipeline.components.validator import STATISTICS_FILE, describe, find_anomalies
from tfx_pipeline.config import EVAL
from tfx_pipeline.continuous.database import opened
from tfx_pipeline.continuous.gates import Window, refusals
from tfx_pipeline.continuous.impressions import file_of, read_impressions, split_uri, write_impressions
from tfx_pipeline.continuous.judging import Judged, judge
from tfx_pipeline.continuous.ledger import Ledger
from tfx_pipeline.continuous.loaded import loaded
from tfx_pipeline.continuous.settings import Loop
from tfx_pipeline.continuous.store import EventStore
from tfx_pipeline.continuous.training import train_on, write_model
from tfx_pipeline.schema import read_schema
from tfx_pipeline.training.warm_start import Base

IMPRESSIONS_FILE, JUDGED_FILE, TRAINED_FILE, GATES_FILE = (
    "impressions.json",
    "judged.json",
    "trained.json",
    "gates.json",
)

_LOOP, _ROUND = "loop", "round"
_BLESSED_FILE, _NOT_BLESSED_FILE = "BLESSED", "NOT_BLESSED"
_PARAMETERS = {_LOOP: ExecutionParameter(type=str), _ROUND: ExecutionParameter(type=int)}


class RoundImpressionsSpec(ComponentSpec):
    """What `RoundImpressions` takes and gives."""

    PARAMETERS = _PARAMETERS
    INPUTS: dict[str, Any] = {}  # noqa: RUF012
    OUTPUTS = {"examples": ChannelParameter(type=tfx.types.standard_artifacts.Examples)}  # noqa: RUF012


class RoundStatisticsSpec(ComponentSpec):
    """What `RoundStatistics` takes and gives."""

    PARAMETERS = _PARAMETERS
    INPUTS = {"examples": ChannelParameter(type=tfx.types.standard_artifacts.Examples)}  # noqa: RUF012
    OUTPUTS = {"statistics": ChannelParameter(type=tfx.types.standard_artifacts.ExampleStatistics)}  # noqa: RUF012


class ProgressiveEvaluatorSpec(ComponentSpec):
    """What `ProgressiveEvaluator` takes and gives."""

    PARAMETERS = _PARAMETERS
    INPUTS = {"examples": ChannelParameter(type=tfx.types.standard_artifacts.Examples)}  # noqa: RUF012
    OUTPUTS = {"evaluation": ChannelParameter(type=tfx.types.standard_artifacts.ModelEvaluation)}  # noqa: RUF012


class IncrementalTrainerSpec(ComponentSpec):
    """What `IncrementalTrainer` takes and gives."""

    PARAMETERS = _PARAMETERS
    INPUTS = {  # noqa: RUF012
        "examples": ChannelParameter(type=tfx.types.standard_artifacts.Examples),
        "evaluation": ChannelParameter(type=tfx.types.standard_artifacts.ModelEvaluation),
    }
    OUTPUTS = {"model": ChannelParameter(type=tfx.types.standard_artifacts.Model)}  # noqa: RUF012


class RoundGatesSpec(ComponentSpec):
    """What `RoundGates` takes and gives."""

    PARAMETERS = _PARAMETERS
    INPUTS = {  # noqa: RUF012
        "statistics": ChannelParameter(type=tfx.types.standard_artifacts.ExampleStatistics),
        "evaluation": ChannelParameter(type=tfx.types.standard_artifacts.ModelEvaluation),
        "model": ChannelParameter(type=tfx.types.standard_artifacts.Model),
    }
    OUTPUTS = {"blessing": ChannelParameter(type=tfx.types.standard_artifacts.ModelBlessing)}  # noqa: RUF012


class RoundImpressionsExecutor(base_executor.BaseExecutor):
    """Makes impressions of the events of a round."""

    def Do(  # noqa: N802
        self, input_dict: dict[str, list[Any]], output_dict: dict[str, list[Any]], exec_properties: dict[str, Any]
    ) -> None:
        """Writes the impressions as the split eval, and how many there are."""
        loop, number = _asked(exec_properties)
        config = loop.config
        artifact = artifact_utils.get_single_instance(output_dict["examples"])
        artifact.split_names = artifact_utils.encode_split_names([EVAL])
        fileio.makedirs(split_uri(artifact.uri))
        with opened(loop.database, config.layout, config.min_history) as connection:
            store = EventStore(connection, config.layout, config.min_history)
            counts = write_impressions(store, number, config, file_of(split_uri(artifact.uri)))
        _write(artifact.uri, IMPRESSIONS_FILE, counts)
        examples_utils.set_payload_format(artifact, tfx.proto.PayloadFormat.FORMAT_TF_EXAMPLE)
        examples_utils.set_file_format(artifact, "tfrecords_gzip")


class RoundStatisticsExecutor(base_executor.BaseExecutor):
    """Computes statistics of impressions as StatisticsGen does, in memory: Beam alone would take seconds."""

    def Do(  # noqa: N802
        self, input_dict: dict[str, list[Any]], output_dict: dict[str, list[Any]], exec_properties: dict[str, Any]
    ) -> None:
        """Writes the statistics of the split eval."""
        loop, _ = _asked(exec_properties)
        schema = read_schema(loop.config.schema)
        decoder = example_coder.ExamplesToRecordBatchDecoder(schema.SerializeToString())
        options = tfdv.StatsOptions(schema=schema, use_sketch_based_topk_uniques=True)
        batch = decoder.DecodeBatch(_impressions(input_dict).records)
        found = stats_impl.generate_statistics_in_memory(batch, options)
        artifact = artifact_utils.get_single_instance(output_dict["statistics"])
        artifact.split_names = artifact_utils.encode_split_names([EVAL])
        fileio.makedirs(split_uri(artifact.uri))
        with fileio.open(os.path.join(split_uri(artifact.uri), STATISTICS_FILE), "wb") as file:
            file.write(found.SerializeToString())


class ProgressiveEvaluatorExecutor(base_executor.BaseExecutor):
    """Judges the served version, and the challenger, on impressions that neither was trained on."""

    def Do(  # noqa: N802
        self, input_dict: dict[str, list[Any]], output_dict: dict[str, list[Any]], exec_properties: dict[str, Any]
    ) -> None:
        """Writes the metrics, and the path of the version to train on from: the better one."""
        loop, number = _asked(exec_properties)
        impressions = _impressions(input_dict)
        with opened(loop.database, loop.config.layout, loop.config.min_history) as connection:
            current = Ledger(connection).open_round()
        if current is None or current.number != number:
            raise RuntimeError(f"Round {number} is not open.")
        paths = {"base": current.base, "challenger": current.facts["challenger_path"]}
        paths = {name: path for name, path in paths.items() if path}
        judged = {name: judge(loaded(path).module, impressions) for name, path in paths.items()}
        best = min(judged, key=lambda name: judged[name].log_loss, default="")
        if best == "challenger" and "base" in judged and judged[best].auc <= judged["base"].auc:
            best = "base"
        found = {name: metrics.to_json() for name, metrics in judged.items()}
        uri = artifact_utils.get_single_uri(output_dict["evaluation"])
        _write(uri, JUDGED_FILE, {"judged": found, "best": best, "path": paths.get(best, "")})


class IncrementalTrainerExecutor(base_executor.BaseExecutor):
    """Trains on from the version that was judged the better one."""

    def Do(  # noqa: N802
        self, input_dict: dict[str, list[Any]], output_dict: dict[str, list[Any]], exec_properties: dict[str, Any]
    ) -> None:
        """Writes the model whole or not at all, and what is new in it."""
        loop, number = _asked(exec_properties)
        base, impressions = _base(input_dict), _impressions(input_dict)
        artifact = artifact_utils.get_single_instance(output_dict["model"])
        with opened(loop.database, loop.config.layout, loop.config.min_history) as connection:
            store = EventStore(connection, loop.config.layout, loop.config.min_history)
            model, added = train_on(loop.config, base, impressions, number, store.count_of)
        write_model(model, loop.config, base, impressions.times, path_utils.serving_model_dir(artifact.uri))
        _write(artifact.uri, TRAINED_FILE, {"new_ids": added, "parameters": model.count_params()})


class RoundGatesExecutor(base_executor.BaseExecutor):
    """Judges the new model beside the served one on the last pushed round, and blesses it if it passes all gates."""

    def Do(  # noqa: N802
        self, input_dict: dict[str, list[Any]], output_dict: dict[str, list[Any]], exec_properties: dict[str, Any]
    ) -> None:
        """Writes the blessing, and in `gates.json` why not."""
        loop, number = _asked(exec_properties)
        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        model = artifact_utils.get_single_instance(input_dict["model"])
        judged = _read(input_dict["evaluation"][0].uri, JUDGED_FILE)["judged"].get("base")
        with opened(loop.database, loop.config.layout, loop.config.min_history) as connection:
            ledger = Ledger(connection)
            rounds = ledger.rounds(loop.gates.compared_rounds + 1)
            pushed = ledger.fact("window", {"uri": ""})
        earlier = [one.facts["judged"] for one in rounds if one.number < number and one.facts.get("judged")]
        window = None
        base = _base(input_dict)
        file = file_of(split_uri(pushed["uri"]))
        if base is not None and fileio.exists(file):
            held = read_impressions(file)
            candidate = loaded(path_utils.serving_model_path(model.uri)).module
            window = Window(Judged.from_json(pushed["judged"]), judge(base.module, held), judge(candidate, held))
        reasons = self._anomalies(loop, input_dict["statistics"][0])
        reasons += refusals(
            loop.gates,
            None if judged is None else Judged.from_json(judged),
            [Judged.from_json(one) for one in earlier],
            window,
        )
        found = {} if window is None else {name: one.to_json() for name, one in window._asdict().items()}
        _write(blessing.uri, GATES_FILE, {"reasons": reasons, "window": found})
        for reason in reasons:
            logging.warning("Not blessed: %s", reason)
        blessing.set_int_custom_property("blessed", int(not reasons))
        with fileio.open(os.path.join(blessing.uri, _NOT_BLESSED_FILE if reasons else _BLESSED_FILE), "w") as file:
            file.write("")

    def _anomalies(self, loop: Loop, statistics: Any) -> list[str]:
        """What of the impressions does not fit the schema."""
        found = {EVAL: tfdv.load_stats_binary(os.path.join(split_uri(statistics.uri), STATISTICS_FILE))}
        schema = read_schema(loop.config.schema)
        return describe(found, schema, find_anomalies(found, schema, {}))


class _RoundComponent(tfx.types.BaseComponent):
    """A component with the inputs of its specification and two parameters: the loop and the number of the round."""

    def __init__(self, loop: Loop, number: int, **inputs: tfx.types.BaseChannel) -> None:
        outputs = {name: tfx.dsl.Channel(type=output.type) for name, output in self.SPEC_CLASS.OUTPUTS.items()}
        super().__init__(self.SPEC_CLASS(**{_LOOP: loop.to_json(), _ROUND: number}, **inputs, **outputs))


class RoundImpressions(_RoundComponent):
    """Makes impressions of the events of a round.

    Args:
        loop: the loop.
        number: of the round.
    """

    SPEC_CLASS = RoundImpressionsSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(RoundImpressionsExecutor)


class RoundStatistics(_RoundComponent):
    """Computes statistics of impressions.

    Args:
        loop: the loop.
        number: of the round.
        examples: channel of Examples.
    """

    SPEC_CLASS = RoundStatisticsSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(RoundStatisticsExecutor)


class ProgressiveEvaluator(_RoundComponent):
    """Judges the served version, and a challenger, on impressions that neither was trained on.

    Args:
        loop: the loop.
        number: of the round.
        examples: channel of Examples.
    """

    SPEC_CLASS = ProgressiveEvaluatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(ProgressiveEvaluatorExecutor)


class IncrementalTrainer(_RoundComponent):
    """Trains on from the version that was judged the better one.

    Args:
        loop: the loop.
        number: of the round.
        examples: channel of Examples.
        evaluation: channel of `ProgressiveEvaluator`'s ModelEvaluation.
    """

    SPEC_CLASS = IncrementalTrainerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(IncrementalTrainerExecutor)


class RoundGates(_RoundComponent):
    """Blesses a model if it passes all gates.

    Args:
        loop: the loop.
        number: of the round.
        statistics: channel of ExampleStatistics.
        evaluation: channel of `ProgressiveEvaluator`'s ModelEvaluation.
        model: channel of the Model.
    """

    SPEC_CLASS = RoundGatesSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(RoundGatesExecutor)


def _asked(exec_properties: dict[str, Any]) -> tuple[Loop, int]:
    return Loop.from_json(exec_properties[_LOOP]), exec_properties[_ROUND]


def _impressions(input_dict: dict[str, list[Any]]) -> Any:
    return read_impressions(file_of(split_uri(artifact_utils.get_single_uri(input_dict["examples"]))))


def _base(input_dict: dict[str, list[Any]]) -> Base | None:
    path = _read(artifact_utils.get_single_uri(input_dict["evaluation"]), JUDGED_FILE)["path"]
    return loaded(path) if path else None


def _write(uri: str, name: str, values: Any) -> None:
    fileio.makedirs(uri)
    with fileio.open(os.path.join(uri, name), "w") as file:
        file.write(json.dumps(values))


def _read(uri: str, name: str) -> Any:
    with fileio.open(os.path.join(uri, name)) as file:
        return json.loads(file.read())
