"""What the embedded server answers: the table of serving.tools.conformance, and cases beyond it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from serving.server.__main__ import server_from_flags
from serving.server.config import BatchingParameters, read_config
from serving.server.embedded import EmbeddedServer
from serving.server.servables import Input
from serving.server.status import StatusError
from serving.tools.conformance import check as conformance
from serving.tools.conformance.__main__ import main
from serving.tools.reference_model import HISTORY, HITS, rank_request, raw_tensor, tensor
from serving.tools.retriever_cases import retriever_cases

Code = grpc.StatusCode
CASES = conformance.cases()


@contextlib.contextmanager
def served(folder: Path, saved_models: dict[str, Path], batching_parameters: Any = None) -> Iterator[EmbeddedServer]:
    for version in ("1", "2"):
        shutil.copytree(saved_models[version], folder / version)
    config = model_server_config_pb2.ModelConfig(
        name="eta",
        base_path=str(folder),
        model_version_policy={"specific": {"versions": [1, 2]}},
        version_labels={"stable": 1, "canary": 2, "gone": 9},
    )
    with EmbeddedServer(
        [config],
        port=0,
        file_system_poll_wait_seconds=0,
        allow_version_labels_for_unavailable_models=True,
        batching_parameters=batching_parameters,
    ) as server:
        yield server


OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@pytest.fixture(scope="module")
def server(saved_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with served(tmp_path_factory.mktemp("eta"), saved_models) as server:
        yield server


@pytest.fixture(scope="module")
def channel(server: EmbeddedServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address, options=OPTIONS) as channel:
        yield channel


@pytest.fixture(scope="module")
def batching_channel(saved_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    """Of a server that joins requests as deploy/batching.config says."""
    parameters = read_config(conformance.BATCHING, BatchingParameters)
    with (
        served(tmp_path_factory.mktemp("eta"), saved_models, parameters) as server,
        grpc.insecure_channel(server.address, options=OPTIONS) as channel,
    ):
        yield channel


def predict(channel: grpc.Channel, request: predict_pb2.PredictRequest, timeout: float = 20) -> Any:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=timeout)


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_conformance(channel: grpc.Channel, case: conformance.Case) -> None:
    outcome = conformance.run(case, channel)
    assert outcome.fault == ""
    assert outcome.code is case.code


@pytest.mark.parametrize("case", conformance.cases(batching=True), ids=lambda case: case.name)
def test_conformance_with_batching(batching_channel: grpc.Channel, case: conformance.Case) -> None:
    assert conformance.run(case, batching_channel).fault == ""


@pytest.mark.parametrize("batching", [False, True])
def test_printed_command_starts_a_server_that_conforms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], batching: bool
) -> None:
    assert main(["--make_model", str(tmp_path)]) == 0
    command, batching_flags = (line.partition(": ")[2].split() for line in capsys.readouterr().out.splitlines())
    assert command[:2] == ["tensorflow_model_server", "--port=8500"]
    with server_from_flags(["--port=0", *command[2:], *(batching_flags if batching else [])]) as server:
        assert main(["--target", server.address, *(["--batching"] if batching else [])]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    how = "with" if batching else "without"
    number = len(CASES) + len(retriever_cases())
    assert last == f"{number} of {number} cases as expected at {server.address}, {how} batching"


def test_conformance_without_a_server(
    free_target: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conformance, "_CONNECT_SECONDS", 0.1)
    assert main(["--target", free_target]) == 1
    assert capsys.readouterr().err == f"error: nothing answers at {free_target}\n"


def test_docs_count_the_cases() -> None:
    docs = Path(__file__).parents[3] / "docs" / "serving.md"
    asked, derived = len(CASES), len(retriever_cases())
    assert f"a table of {asked} cases" in docs.read_text()
    assert f"{derived} cases of a retriever" in docs.read_text()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"code": Code.NOT_FOUND}, "expected NOT_FOUND"),
        ({"text": "version=1"}, "expected the text 'version=1'"),
        ({"outputs": {"probability": HITS}}, "expected probability [[2.0,"),
        ({"outputs": {"probability": HITS[:1] + 2}}, "expected probability [[4.0,"),
    ],
)
def test_conformance_notices(channel: grpc.Channel, change: dict[str, Any], fault: str) -> None:
    outcome = conformance.run(dataclasses.replace(CASES[0], **change), channel)
    assert outcome.fault.startswith(fault)


def test_predict_empty_signature_name_has_its_values_in_the_typed_field(channel: grpc.Channel) -> None:
    request = rank_request("candidates", {"signature_name": ""}, candidate=tensor([39, 40]))
    response = predict(channel, request)
    # Where clients of TensorFlow Serving look for an output's values.
    assert list(response.outputs["probability"].float_val) == [2 + 2, 0 + 2]


@pytest.mark.parametrize("values", [[5], [5, 6]], ids=["one for all", "the last for the rest"])
def test_predict_fewer_values_than_elements(channel: grpc.Channel, values: list[int]) -> None:
    """A TensorProto with too few values means the last one, repeated."""
    request = rank_request(candidates=raw_tensor([2, 2], int64_val=values))
    same = rank_request(candidates=tensor([[5, values[-1]], [values[-1], values[-1]]]))
    assert predict(channel, request).outputs == predict(channel, same).outputs


PREDICT_REFUSALS = {
    "label of a version that is not there": (
        rank_request(spec={"version_label": "gone"}),
        Code.NOT_FOUND,
        "Servable not found for request: Specific(eta, 9)",
    ),
    "unknown model and version": (
        rank_request(spec={"name": "nope", "version": {"value": 3}}),
        Code.NOT_FOUND,
        "Servable not found for request: Specific(nope, 3)",
    ),
    "unknown model and label": (
        rank_request(spec={"name": "nope", "version_label": "stable"}),
        Code.INVALID_ARGUMENT,
        "Unrecognized servable version label: stable",
    ),
    "other input": (
        rank_request("candidates", extra=tensor([1])),
        Code.INVALID_ARGUMENT,
        "Sent extra: {extra}. Missing but required: {candidates}.",
    ),
    "string": (
        rank_request(history_length=tensor([b"1", b"2"], tf.string)),
        Code.INVALID_ARGUMENT,
        "Expects arg[2] to be int64 but string is provided: input `history_length`",
    ),
    "wrong rank": (
        rank_request(history=tensor(HISTORY[0])),
        Code.INVALID_ARGUMENT,
        "input `history` must have shape (None, None). Received: (100,)",
    ),
    "giant shape, one value": (
        rank_request(candidates=raw_tensor([1 << 15, 1 << 15], int64_val=[1])),
        Code.INVALID_ARGUMENT,
        "tensor parsing error: candidates",
    ),
    "giant shape beside a zero": (
        rank_request(candidates=raw_tensor([0, 1 << 40])),
        Code.INVALID_ARGUMENT,
        "tensor parsing error: candidates",
    ),
    "shape over 64 bits": (
        rank_request(candidates=raw_tensor([1 << 62, 1 << 62, 1 << 62])),
        Code.INVALID_ARGUMENT,
        "tensor parsing error: candidates",
    ),
    "40 dimensions": (
        rank_request(candidates=raw_tensor([1] * 40, tensor_content=bytes(8))),
        Code.INVALID_ARGUMENT,
        "tensor parsing error: candidates",
    ),
    "too many values": (
        rank_request(candidates=raw_tensor([2], tensor_content=bytes(24))),
        Code.INVALID_ARGUMENT,
        "tensor parsing error: candidates",
    ),
    "300 dimensions": (
        rank_request(candidates=raw_tensor([1] * 300, int64_val=[1])),
        Code.INVALID_ARGUMENT,
        "tensor parsing error: candidates",
    ),
    "unknown rank": (
        rank_request(candidates=tensor_pb2.TensorProto(dtype=types_pb2.DT_INT64, tensor_shape={"unknown_rank": True})),
        Code.INVALID_ARGUMENT,
        "tensor parsing error: candidates",
    ),
    "no dtype": (
        rank_request(candidates=raw_tensor([2, 7], dtype=types_pb2.DT_INVALID)),
        Code.INVALID_ARGUMENT,
        "tensor parsing error: candidates",
    ),
    "resource handle": (
        rank_request(candidates=raw_tensor([], dtype=types_pb2.DT_RESOURCE)),
        Code.INVALID_ARGUMENT,
        "Expects arg[0] to be int64 but resource is provided",
    ),
    "no inputs": (
        predict_pb2.PredictRequest(model_spec={"name": "eta", "signature_name": "rank"}),
        Code.INVALID_ARGUMENT,
        "input size does not match signature: 0!=3",
    ),
}


@pytest.mark.parametrize(("request_", "code", "text"), PREDICT_REFUSALS.values(), ids=PREDICT_REFUSALS)
def test_predict_refusal(
    channel: grpc.Channel, request_: predict_pb2.PredictRequest, code: grpc.StatusCode, text: str
) -> None:
    answered, details = refusal(lambda: predict(channel, request_))
    assert answered is code
    assert text in details
    assert "{{" not in details
    assert "[Op:" not in details
    assert "\n" not in details


@pytest.mark.parametrize(
    ("sizes", "fits", "refused", "text"),
    [
        ([None, 3], (2, 3), (2, 4), r"`x` must have shape \(None, 3\). Received: \(2, 4\)"),
        ([None, 3], (0, 3), (3,), r"`x` must have shape \(None, 3\). Received: \(3,\)"),
        ([], (), (1,), r"`x` must have shape \(\). Received: \(1,\)"),
    ],
)
def test_input_shape(sizes: list[int | None], fits: tuple[int, ...], refused: tuple[int, ...], text: str) -> None:
    Input("x", types_pb2.DT_INT64, sizes).check_shape(fits)
    Input("x", types_pb2.DT_INT64, None).check_shape(refused)
    with pytest.raises(StatusError, match=text):
        Input("x", types_pb2.DT_INT64, sizes).check_shape(refused)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (
            ["nope"],
            "output tensor alias not found in signature: nope Outputs expected to be in the set {probability}.",
        ),
        (["probability", "probability"], "duplicate output tensor alias: probability"),
    ],
)
def test_predict_output_filter_refusal(channel: grpc.Channel, names: list[str], text: str) -> None:
    request = rank_request()
    request.output_filter.extend(names)
    assert refusal(lambda: predict(channel, request)) == (Code.INVALID_ARGUMENT, text)


def test_predict_long_message_arrives(channel: grpc.Channel) -> None:
    """An error text is metadata, of which gRPC takes 8 KiB only."""
    code, details = refusal(lambda: predict(channel, rank_request(**{"x" * 50_000: tensor([1])})))
    assert code is Code.INVALID_ARGUMENT
    assert details.startswith("input size does not match signature: 4!=3")


def test_predict_bytes_that_are_no_request(channel: grpc.Channel) -> None:
    """Refused, and forgotten: grpcio by itself would keep the state of each such call for ever."""
    garbage = channel.unary_unary("/tensorflow.serving.PredictionService/Predict", request_serializer=bytes)
    for _ in range(100):
        code, details = refusal(lambda: garbage(b"\xff" * 20, timeout=20))
        assert code is Code.INTERNAL
        assert details.startswith("The request can't be parsed: ")
    gc.collect()
    assert sum(isinstance(each, grpc._server._RPCState) for each in gc.get_objects()) < 10


def test_predict_after_refusals(channel: grpc.Channel) -> None:
    for request, _, _ in PREDICT_REFUSALS.values():
        refusal(functools.partial(predict, channel, request))
    answer = tf.make_ndarray(predict(channel, rank_request()).outputs["probability"])
    np.testing.assert_array_equal(answer, HITS + 2)


def metadata(channel: grpc.Channel, *fields: str, spec: dict[str, Any] | None = None) -> Any:
    request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec or {"name": "eta"}, metadata_field=fields)
    return prediction_service_pb2_grpc.PredictionServiceStub(channel).GetModelMetadata(request, timeout=20)


def test_metadata_signature_def(channel: grpc.Channel) -> None:
    response = metadata(channel, "signature_def")
    assert (response.model_spec.name, response.model_spec.version.value) == ("eta", 2)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    rank = signatures.signature_def["rank"]
    assert sorted(rank.inputs) == ["candidates", "history", "history_length"]
    assert rank.inputs["candidates"].dtype == types_pb2.DT_INT64
    assert [dim.size for dim in rank.inputs["candidates"].tensor_shape.dim] == [-1, -1]
    assert rank.method_name == "tensorflow/serving/predict"


def test_metadata_of_a_version(channel: grpc.Channel) -> None:
    response = metadata(channel, "signature_def", spec={"name": "eta", "version": {"value": 1}})
    assert response.model_spec.version.value == 1


@pytest.mark.parametrize(
    ("fields", "spec", "code", "text"),
    [
        (
            [],
            None,
            Code.INVALID_ARGUMENT,
            "GetModelMetadataRequest must specify at least one metadata_field",
        ),
        (["nope"], None, Code.INVALID_ARGUMENT, "Metadata field nope is not supported"),
        (
            ["signature_def"],
            {"name": "nope"},
            Code.NOT_FOUND,
            "Servable not found for request: Latest(nope)",
        ),
    ],
)
def test_metadata_refusal(channel: grpc.Channel, fields: list[str], spec: Any, code: Any, text: str) -> None:
    assert refusal(lambda: metadata(channel, *fields, spec=spec)) == (code, text)


def status(channel: grpc.Channel, **spec: Any) -> Any:
    request = get_model_status_pb2.GetModelStatusRequest(model_spec=spec) if spec else None
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    return stub.GetModelStatus(request or get_model_status_pb2.GetModelStatusRequest(), timeout=20)


def test_status_all_versions(channel: grpc.Channel) -> None:
    available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
    statuses = status(channel, name="eta").model_version_status
    found = [(each.version, each.state, each.status.error_code, each.status.error_message) for each in statuses]
    assert found == [(1, available, 0, ""), (2, available, 0, "")]


def test_status_one_version(channel: grpc.Channel) -> None:
    assert [each.version for each in status(channel, name="eta", version={"value": 1}).model_version_status] == [1]


@pytest.mark.parametrize(
    ("spec", "code", "text"),
    [
        ({"name": "eta", "version": {"value": 99}}, Code.NOT_FOUND, "Could not find version 99 of model eta"),
        ({"name": "nope"}, Code.NOT_FOUND, "Could not find any versions of model nope"),
        ({}, Code.INVALID_ARGUMENT, "Missing ModelSpec"),
    ],
)
def test_status_refusal(channel: grpc.Channel, spec: dict[str, Any], code: grpc.StatusCode, text: str) -> None:
    assert refusal(lambda: status(channel, **spec)) == (code, text)


SPEC = {"name": "eta"}
EXAMPLES = {"example_list": {"examples": [tf.train.Example()]}}


@pytest.mark.parametrize(
    ("method", "request_", "code", "text"),
    [
        (
            "Classify",
            classification_pb2.ClassificationRequest(model_spec=SPEC),
            Code.INVALID_ARGUMENT,
            "Expected one input Tensor.",
        ),
        (
            "Classify",
            classification_pb2.ClassificationRequest(model_spec=SPEC, input=EXAMPLES),
            Code.INVALID_ARGUMENT,
            "Expected one input Tensor.",
        ),
        (
            "Regress",
            regression_pb2.RegressionRequest(model_spec=SPEC, input=EXAMPLES),
            Code.INVALID_ARGUMENT,
            "Expected one input Tensor.",
        ),
        (
            "Regress",
            regression_pb2.RegressionRequest(model_spec={**SPEC, "signature_name": "nope"}),
            Code.INVALID_ARGUMENT,
            "No signature was found with the name: nope",
        ),
        (
            "MultiInference",
            inference_pb2.MultiInferenceRequest(
                tasks=[{"model_spec": SPEC, "method_name": "tensorflow/serving/classify"}], input=EXAMPLES
            ),
            Code.INVALID_ARGUMENT,
            "Expected one input Tensor.",
        ),
        (
            "MultiInference",
            inference_pb2.MultiInferenceRequest(),
            Code.INVALID_ARGUMENT,
            "ModelSpec has no name specified.",
        ),
    ],
)
def test_examples_api_refusal(channel: grpc.Channel, method: str, request_: Any, code: Any, text: str) -> None:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    assert refusal(lambda: getattr(stub, method)(request_, timeout=20)) == (code, text)


def test_classify_on_a_signature_with_one_input(contract_servers: dict[str, str]) -> None:
    request = classification_pb2.ClassificationRequest(
        model_spec={**SPEC, "signature_name": "examples"}, input=EXAMPLES
    )
    with grpc.insecure_channel(contract_servers["int64"]) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        code, details = refusal(lambda: stub.Classify(request, timeout=20))
    assert code is Code.FAILED_PRECONDITION
    assert "inputs found in SignatureDef: examples. Call it by Predict." in details


def test_graph_error_is_the_graphs_message(contract_servers: dict[str, str]) -> None:
    request = predict_pb2.PredictRequest(model_spec={**SPEC, "signature_name": "rank"})
    integers = {"user_id": [1], "hour": [1], "item_id": [[1]], "category_id": [[1]], "history_length": [3]}
    integers |= {"history_item_id": [[1, 2]], "history_category_id": [[1, 2]]}
    for name, values in integers.items():
        request.inputs[name].CopyFrom(tensor(values))
    request.inputs["history_rating"].CopyFrom(tensor([[1, 2]], tf.float32))
    with grpc.insecure_channel(contract_servers["int64"]) as channel:
        code, details = refusal(lambda: predict(channel, request))
    assert code is Code.INVALID_ARGUMENT
    assert details == "assertion failed: [`history_length` must be between 0 and] [2] [Received:] [3]"


@pytest.mark.parametrize("service", ["", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"])
def test_health_serving(channel: grpc.Channel, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    response = health_pb2_grpc.HealthStub(channel).Check(request, timeout=20)
    assert response.status == health_pb2.HealthCheckResponse.SERVING
