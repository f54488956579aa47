"""Judges a retriever on the eval split by the signature that is served, and blesses it if it passes its gates."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from absl import logging
from tfx import v1 as tfx
from tfx.components.evaluator import constants
from tfx.dsl.components.base import base_executor, executor_spec
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.utils import io_utils, path_utils

from keras_eta.features import Features
from tfx_pipeline.components.model_server import local_model
from tfx_pipeline.config import EVAL, TRAIN, PipelineConfig
from tfx_pipeline.evaluation import Gate
from tfx_pipeline.ingestion.item_counts import ITEM, ITEM_COUNTS, PARQUET_SUFFIX
from tfx_pipeline.retrieval.judging import Measures, Verdict, judge
from tfx_pipeline.retrieval.served import ServedRetriever
from tfx_pipeline.training.publishing import served_versions

VERDICT_FILE = "retrieval.json"


class RetrieverEvaluation(tfx.dsl.Artifact):
    """`retrieval.json`: a `Verdict`."""

    TYPE_NAME = "keras_eta.RetrieverEvaluation"


class RetrieverBlessing(tfx.dsl.Artifact):
    """Whether a retriever may be pushed. A `ModelBlessing` would be taken for one of a ranker."""

    TYPE_NAME = "keras_eta.RetrieverBlessing"


def read_verdict(uri: str) -> Verdict:
    """The verdict of a `RetrieverEvaluation` artifact's directory."""
    with fileio.open(os.path.join(uri, VERDICT_FILE)) as file:
        found = json.loads(file.read())
    measures = {name: Measures(**_numbers(values)) for name, values in found.pop("measures").items()}
    gates = [Gate(**_numbers(gate)) for gate in found.pop("gates")]
    return Verdict(measures=measures, gates=gates, **found)


class RetrieverEvaluatorExecutor(base_executor.BaseExecutor):
    """Asks the exported model for the histories of the eval split's positives."""

    def Do(  # noqa: N802
        self, input_dict: dict[str, list[Any]], output_dict: dict[str, list[Any]], exec_properties: dict[str, Any]
    ) -> None:
        """Writes `retrieval.json` and the blessing.

        Raises:
            ValueError: if the directory of the versions holds other models.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        features = Features.from_dict(json.loads(exec_properties["features"]))
        model = artifact_utils.get_single_instance(input_dict["model"])
        examples = artifact_utils.get_single_instance(input_dict["examples"])
        files = {
            split: [io_utils.all_files_pattern(artifact_utils.get_split_uri([examples], split))]
            for split in (TRAIN, EVAL)
        }
        with contextlib.ExitStack() as stack:
            path = stack.enter_context(local_model(path_utils.serving_model_path(model.uri)))
            verdict = judge(
                ServedRetriever(path),
                stack.enter_context(_pushed_last(exec_properties["retriever_dir"], features.item_id.dtype)),
                files[TRAIN],
                files[EVAL],
                features.item_id,
                _trained_ids(examples.uri, features.item_id.dtype),
                max_history_length=features.max_history_length,
                max_recall_drop=exec_properties["max_recall_drop"],
                seed=exec_properties["seed"],
            )
        content = verdict._asdict()
        content["measures"] = {name: _nullable(values._asdict()) for name, values in verdict.measures.items()}
        content["gates"] = [_nullable(gate._asdict()) for gate in verdict.gates]
        evaluation = artifact_utils.get_single_uri(output_dict["evaluation"])
        io_utils.write_string_file(os.path.join(evaluation, VERDICT_FILE), json.dumps(content, indent=2))

        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        blessed = all(gate.passed for gate in verdict.gates)
        name = constants.BLESSED_FILE_NAME if blessed else constants.NOT_BLESSED_FILE_NAME
        io_utils.write_string_file(os.path.join(blessing.uri, name), "")
        blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY, int(blessed))
        logging.info("The retriever in %s is %sblessed: %s", model.uri, "" if blessed else "not ", verdict)


class RetrieverEvaluatorSpec(ComponentSpec):
    """What `RetrieverEvaluator` takes and gives."""

    PARAMETERS = {  # noqa: RUF012
        "features": ExecutionParameter(type=str),
        "retriever_dir": ExecutionParameter(type=str),
        "max_recall_drop": ExecutionParameter(type=float),
        "seed": ExecutionParameter(type=int),
    }
    INPUTS = {  # noqa: RUF012
        "model": ChannelParameter(type=tfx.types.standard_artifacts.Model),
        "examples": ChannelParameter(type=tfx.types.standard_artifacts.Examples),
    }
    OUTPUTS = {  # noqa: RUF012
        "evaluation": ChannelParameter(type=RetrieverEvaluation),
        "blessing": ChannelParameter(type=RetrieverBlessing),
    }


class RetrieverEvaluator(tfx.types.BaseComponent):
    """Judges a retriever beside counting and the version that was pushed last.

    Args:
        model: channel of the Model.
        examples: channel of `ImpressionGen`'s Examples.
        config: says which columns the examples have, where versions are pushed, and what is asked of them.
    """

    SPEC_CLASS = RetrieverEvaluatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(RetrieverEvaluatorExecutor)

    def __init__(self, model: tfx.types.BaseChannel, examples: tfx.types.BaseChannel, config: PipelineConfig) -> None:
        super().__init__(
            RetrieverEvaluatorSpec(
                model=model,
                examples=examples,
                features=json.dumps(config.layout.features.to_dict(), sort_keys=True),
                retriever_dir=config.retriever.retriever_dir or "",
                max_recall_drop=float(config.retriever.max_recall_drop),
                seed=config.training.seed,
                evaluation=tfx.dsl.Channel(type=RetrieverEvaluation),
                blessing=tfx.dsl.Channel(type=RetrieverBlessing),
            )
        )


@contextlib.contextmanager
def _pushed_last(base: str, dtype: str) -> Iterator[ServedRetriever | None]:
    """The newest version of the retriever, if there is one whose items have ids of the log's type."""
    present = served_versions(base)
    if not present:
        yield None
        return
    path = os.path.join(base, present[max(present)])
    with local_model(path) as local:
        last = ServedRetriever(local)
        if (dtype == "string") == (last.items.dtype == object):
            yield last
        else:
            logging.warning("%s is not compared with: its items have ids of another type.", path)
            yield None


def _trained_ids(uri: str, dtype: str) -> np.ndarray:
    """The ids of all items of training impressions."""
    ids: list[Any] = []
    for path in sorted(map(str, fileio.glob(os.path.join(uri, f"{ITEM_COUNTS}*{PARQUET_SUFFIX}")))):
        with fileio.open(path, "rb") as file:
            ids += pa.parquet.read_table(pa.BufferReader(file.read()), columns=[ITEM]).column(ITEM).to_pylist()
    # As objects: NumPy's own strings of bytes lose zero bytes at the end.
    return np.array(ids, object if dtype == "string" else np.int64)


def _nullable(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in values.items()}
