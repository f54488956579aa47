"""Tries a trained model on a real model server before it may be pushed: TFX's InfraValidator without containers."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from tfx import v1 as tfx
from tfx.dsl.components.base import base_executor, executor_spec
from tfx.types import artifact_utils
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.utils import io_utils, path_utils

from keras_eta.columns import HISTORY_LENGTH, Feature
from keras_eta.contract import Contract, LookedUp
from keras_eta.export import COUNT, EXAMPLES, POSITIONS, PROBABILITY, WEIGHTS
from keras_eta.export.columns import RANK_FROM_STATE, UPDATE_STATE, USER_STATE
from keras_eta.features import Features
from keras_eta.tf_data import without_autotuning
from tfx_pipeline.components.model_server import Answering, ModelServer, Signature, UnservableModelError, local_model
from tfx_pipeline.components.serving_requests import EXPLAIN, POINTWISE, RANK, Inputs, requests_to
from tfx_pipeline.config import EVAL, PipelineConfig
from tfx_pipeline.layouts import USER_ID, Layout

# What TFX's own InfraValidator leaves behind.
BLESSED_FILE, NOT_BLESSED_FILE = "INFRA_BLESSED", "INFRA_NOT_BLESSED"
BLESSED_PROPERTY = "blessed"
# Beside those: why a model is not blessed.
REASON_PROPERTY = "reason"

_SERVED_BY_ALL = (POINTWISE, RANK, EXAMPLES)

_NUM_EXAMPLES = 16
# Largest difference between the probabilities that two signatures give the same impression.
_TOLERANCE = 1e-5


def check_signatures(server: Answering, requests: Mapping[str, Inputs]) -> None:
    """Sends a request to every signature and checks the answers.

    What `explain` gives depends on the interest units, as do the signatures about user states, and whether these exist:
    the signatures themselves say it.

    Args:
        server: has the model loaded.
        requests: as `requests_to` makes them.

    Raises:
        UnservableModelError: if a signature is missing, does not answer, answers with something that is no probability
            for each impression, or if two signatures contradict each other.
    """
    present = server.signatures()
    missing = [name for name in _SERVED_BY_ALL if name not in present]
    if missing:
        raise UnservableModelError(f"The model lacks the signatures {missing}. It has {list(present)}.")
    answers = {name: server.predict(name, inputs) for name, inputs in requests.items() if name in present}
    lengths = requests[POINTWISE][HISTORY_LENGTH]
    N = len(lengths)
    if USER_STATE in present:
        answers |= _state_answers(server, present, requests[RANK], N)
    for name, outputs in answers.items():
        if name not in (USER_STATE, UPDATE_STATE):
            shape = (N,) if name in (POINTWISE, EXAMPLES) else (N, N)
            _check_probability(name, outputs, shape)
        lacking = [output for output in present[name].outputs if output not in outputs]
        if lacking:
            raise UnservableModelError(f"`{name}` gives no `{lacking[0]}`, but {sorted(outputs)}.")
    if EXPLAIN in answers:
        _check_explanation(answers[EXPLAIN], lengths)

    reference = answers[POINTWISE][PROBABILITY]
    own = {name: outputs[PROBABILITY] for name, outputs in answers.items() if PROBABILITY in outputs}
    for name, probability in own.items():
        difference = np.abs((probability[:, 0] if probability.ndim == 2 else probability) - reference)
        _check_agreement(name, POINTWISE, difference)
    for name in (EXPLAIN, RANK_FROM_STATE):
        if name in own:
            _check_agreement(name, RANK, np.abs(own[name] - own[RANK]))


class InfraValidatorExecutor(base_executor.BaseExecutor):
    """Starts a model server on the model and sends it real requests.

    Attributes:
        make_requests: makes requests to a version with a contract, of records.
        check: sends them to a server; raises UnservableModelError where an answer is wrong.
        make_server: of a model's directory, with `loading_seconds` and `request_seconds`.
    """

    make_requests = staticmethod(requests_to)
    check = staticmethod(check_signatures)
    make_server: Callable[..., Answering] = ModelServer

    def Do(  # noqa: N802
        self, input_dict: dict[str, list[Any]], output_dict: dict[str, list[Any]], exec_properties: dict[str, Any]
    ) -> None:
        """Blesses the model, or says in the log and in the blessing's file why not.

        Raises:
            ValueError: if the examples can't be requests: none in the eval split, or not after the features.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        model = artifact_utils.get_single_instance(input_dict["model"])
        examples = artifact_utils.get_single_instance(input_dict["examples"])
        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        features = Features.from_dict(json.loads(exec_properties["features"]))
        records = list(_eval_records(examples))
        if not records:
            raise ValueError(f"The {EVAL} split of {examples.uri} is empty: there is nothing to ask the model.")
        contract = Contract(features, {}, tables=self.tables_of(exec_properties))
        requests = self.make_requests(contract, records)
        with local_model(path_utils.serving_model_path(model.uri)) as model_path:
            server = self.make_server(
                model_path,
                loading_seconds=exec_properties["loading_seconds"],
                request_seconds=exec_properties["request_seconds"],
            )
            reason = ""
            try:
                with server:
                    self.check(server, requests)
            except UnservableModelError as error:
                reason = str(error)
        if reason:
            logging.error(
                "The model in %s is not blessed. %s\nEnd of the server's log:\n%s", model.uri, reason, server.log
            )
        else:
            logging.info("The model in %s answers as it should.", model.uri)
        blessing.set_int_custom_property(BLESSED_PROPERTY, int(not reason))
        blessing.set_string_custom_property(REASON_PROPERTY, reason)
        io_utils.write_string_file(os.path.join(blessing.uri, NOT_BLESSED_FILE if reason else BLESSED_FILE), reason)

    @staticmethod
    def tables_of(exec_properties: dict[str, Any]) -> tuple[LookedUp, ...]:
        """What the version looks up, by the parameters of the component."""
        return tuple(LookedUp(Feature(**key), tuple(names)) for key, names in json.loads(exec_properties["tables"]))


class LocalInfraValidatorSpec(ComponentSpec):
    """What `LocalInfraValidator` takes and gives; the channels are those of TFX's InfraValidator."""

    PARAMETERS = {  # noqa: RUF012
        "features": ExecutionParameter(type=str),
        "tables": ExecutionParameter(type=str),
        "loading_seconds": ExecutionParameter(type=float),
        "request_seconds": ExecutionParameter(type=float),
    }
    INPUTS = {  # noqa: RUF012
        "model": ChannelParameter(type=tfx.types.standard_artifacts.Model),
        "examples": ChannelParameter(type=tfx.types.standard_artifacts.Examples),
    }
    OUTPUTS = {"blessing": ChannelParameter(type=tfx.types.standard_artifacts.InfraBlessing)}  # noqa: RUF012


class LocalInfraValidator(tfx.types.BaseComponent):
    """TFX's InfraValidator for a machine without containers: a model server in a process on this machine.

    It sends real impressions of the eval split to every signature. The model is blessed if all of them answer, with
    probabilities that agree to 1e-5, whatever its interest units explain and whether they have user states.

    Args:
        model: channel of the Model to try.
        examples: channel of Examples with impressions.
        config: says which columns they have.
        loading_seconds: how long the server may take to load the model.
        request_seconds: how long it may take to answer a request.
    """

    SPEC_CLASS = LocalInfraValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(InfraValidatorExecutor)

    def __init__(
        self,
        model: tfx.types.BaseChannel,
        examples: tfx.types.BaseChannel,
        config: PipelineConfig,
        loading_seconds: float = 300.0,
        request_seconds: float = 60.0,
    ) -> None:
        spec = LocalInfraValidatorSpec(
            model=model,
            examples=examples,
            features=json.dumps(config.layout.features.to_dict(), sort_keys=True),
            tables=json.dumps(_tables(config.layout)),
            loading_seconds=float(loading_seconds),
            request_seconds=float(request_seconds),
            blessing=tfx.dsl.Channel(type=tfx.types.standard_artifacts.InfraBlessing),
        )
        super().__init__(spec=spec)


def _tables(layout: Layout) -> list[tuple[dict[str, Any], list[str]]]:
    """The key and the names of each table that the export has."""
    item_id = layout.features.item_id
    users = [feature for feature in layout.features.user if feature.name == USER_ID]
    user_id = users[0] if users else Feature(USER_ID, layout.user_dtype)
    return [
        (dataclasses.asdict(Feature(key.name, key.dtype)), [feature.name for feature in layout.joined_features(table)])
        for key, table in ((item_id, layout.items), (user_id, layout.users))
        if layout.joined_features(table)
    ]


def _eval_records(examples: Any) -> Iterator[bytes]:
    files = io_utils.all_files_pattern(artifact_utils.get_split_uri([examples], EVAL))
    dataset = tf.data.TFRecordDataset(sorted(tf.io.gfile.glob(files)), compression_type="GZIP")
    yield from without_autotuning(dataset.take(_NUM_EXAMPLES)).as_numpy_iterator()


def _check_probability(signature: str, outputs: Inputs, shape: tuple[int, ...]) -> None:
    if PROBABILITY not in outputs:
        raise UnservableModelError(f"`{signature}` gives no `{PROBABILITY}`, but {sorted(outputs)}.")
    probability = outputs[PROBABILITY]
    if probability.shape != shape:
        raise UnservableModelError(
            f"`{signature}` gives `{PROBABILITY}` of shape {list(probability.shape)} for a request that asks for "
            f"{list(shape)}."
        )
    wrong = probability[~((probability >= 0) & (probability <= 1))]
    if wrong.size:
        raise UnservableModelError(
            f"`{signature}` gives {wrong.size} of {probability.size} probabilities that do not lie between 0 and 1, "
            f"e.g. {wrong[0]}."
        )


def _state_answers(
    server: Answering, present: Mapping[str, Signature], ranking: Inputs, rows: int
) -> dict[str, dict[str, np.ndarray]]:
    """What the signatures about user states answer: the states, ranking from them, and states that go on from them."""
    answers: dict[str, dict[str, np.ndarray]] = {}
    known = dict(ranking)
    for name in (USER_STATE, RANK_FROM_STATE, UPDATE_STATE):
        if name in present:
            unknown = [column for column in present[name].inputs if column not in known]
            if unknown:
                raise UnservableModelError(f"`{name}` asks for {unknown}, which neither impressions nor states have.")
            answers[name] = server.predict(name, {column: known[column] for column in present[name].inputs})
        if name == USER_STATE:
            known |= answers[name]
    states = {column: x.shape for column, x in answers[USER_STATE].items()}
    for name in (USER_STATE, UPDATE_STATE):
        for column, x in answers.get(name, {}).items():
            if x.shape != states.get(column) or x.shape[0] != rows:
                raise UnservableModelError(f"`{name}` gives `{column}` of shape {list(x.shape)} for {rows} users.")
            if not np.isfinite(x).all():
                raise UnservableModelError(f"`{name}` gives `{column}` with values that are not finite.")
    return answers


def _check_explanation(outputs: Inputs, lengths: np.ndarray) -> None:
    """Checks the positions of each unit, and what goes with them: weights, and the unit's scores if it has any."""
    prefixes = [name.removesuffix(POSITIONS) for name in outputs if name.endswith(POSITIONS)]
    if not prefixes:
        raise UnservableModelError(f"`{EXPLAIN}` gives no `{POSITIONS}`, but {sorted(outputs)}.")
    for prefix in prefixes:
        if prefix + WEIGHTS not in outputs:
            raise UnservableModelError(f"`{EXPLAIN}` gives no `{prefix}{WEIGHTS}`, but {sorted(outputs)}.")
    expected = outputs[PROBABILITY].shape
    for name, x in outputs.items():
        if name == PROBABILITY:
            continue
        if name.endswith(COUNT):
            if x.shape != expected:
                raise UnservableModelError(f"`{EXPLAIN}` gives `{name}` of shape {list(x.shape)} for {list(expected)}.")
            if ((x < 0) | (x > lengths[:, None])).any():
                raise UnservableModelError(f"`{EXPLAIN}` gives `{name}` beyond the behaviours of the histories.")
            continue
        # Units of which one's name begins with another's: the longer one is meant.
        unit = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default="")
        positions = outputs.get(unit + POSITIONS)
        if positions is None or x.shape != positions.shape or x.shape[:-1] != expected:
            raise UnservableModelError(f"`{EXPLAIN}` gives `{name}` of shape {list(x.shape)} for {list(expected)}.")
        if not np.isfinite(x).all():
            raise UnservableModelError(f"`{EXPLAIN}` gives `{name}` with values that are not finite.")
        if name == unit + POSITIONS and ((x < -1) | (x >= lengths[:, None, None])).any():
            raise UnservableModelError(f"`{EXPLAIN}` gives `{name}` outside of the histories.")


def _check_agreement(signature: str, other: str, difference: np.ndarray) -> None:
    if difference.max() > _TOLERANCE:
        raise UnservableModelError(
            f"`{signature}` and `{other}` differ by {difference.max():.3g} in the probability of the same impression; "
            f"rounding explains {_TOLERANCE:g} at most."
        )
