"""TensorFlow Serving's gRPC services over loaded models."""

# The methods have the names that the services' protos give them.
# ruff: noqa: N802

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.servables import Model, Servable
from serving.status import StatusError, invalid_argument, status_of

_log = logging.getLogger(__name__)


class StatusInterceptor(grpc.ServerInterceptor):
    """Makes a status of whatever a call raises."""

    def intercept_service(self, continuation: Callable[..., Any], handler_call_details: Any) -> Any:
        """Wraps one method; those that stream stay as they are."""
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler

        def parse(message: bytes) -> Any:
            # grpcio never forgets a call whose request it could not parse itself, and slows down with each.
            try:
                return handler.request_deserializer(message)
            except DecodeError as error:
                return error

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                if isinstance(request, DecodeError):
                    raise StatusError(grpc.StatusCode.INTERNAL, f"The request can't be parsed: {request}")
                return handler.unary_unary(request, context)
            except Exception as error:  # one request, whatever is wrong with it, must not cost the others their server
                if not isinstance(error, (StatusError, tf.errors.OpError)):
                    _log.exception("%s failed", handler_call_details.method)
                context.abort(*status_of(error))

        return grpc.unary_unary_rpc_method_handler(answer, parse, handler.response_serializer)


def _find(models: Mapping[str, Model], request: Any) -> Servable:
    """The model version that a request with a `model_spec` asks for."""
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    spec: model_pb2.ModelSpec = request.model_spec
    if not spec.name:
        raise invalid_argument("ModelSpec has no name specified.")
    if spec.name in models:
        return models[spec.name].servable(spec)
    if spec.HasField("version_label"):
        raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
    choice = f"Specific({spec.name}, {spec.version.value})" if spec.HasField("version") else f"Latest({spec.name})"
    raise StatusError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {choice}")


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; Classify, Regress and MultiInference say why they do not apply."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = models

    def Predict(
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        return _find(self._models, request).predict(request)

    def GetModelMetadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: grpc.ServicerContext
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid_argument(f"Metadata field {field} is not supported")
        servable = _find(self._models, request)
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signature_defs)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = servable.version
        response.metadata["signature_def"].Pack(signatures)
        return response

    def Classify(self, request: Any, context: grpc.ServicerContext) -> Any:
        _refuse_examples_api(_find(self._models, request), request.model_spec)

    def Regress(self, request: Any, context: grpc.ServicerContext) -> Any:
        _refuse_examples_api(_find(self._models, request), request.model_spec)

    def MultiInference(self, request: Any, context: grpc.ServicerContext) -> Any:
        if not request.tasks:
            raise invalid_argument("ModelSpec has no name specified.")
        for task in request.tasks:
            _refuse_examples_api(_find(self._models, task), task.model_spec)


def _refuse_examples_api(servable: Servable, spec: model_pb2.ModelSpec) -> NoReturn:
    """Says why Classify and Regress can't call a signature: they are for the methods of TensorFlow 1's estimators."""
    name = spec.signature_name or tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
    if name not in servable.signature_defs:
        raise invalid_argument(f"No signature was found with the name: {name}")
    if len(servable.signature_defs[name].inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    raise StatusError(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"No classification or regression inputs found in SignatureDef: {name}. Call it by Predict.",
    )


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = models

    def GetModelStatus(
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        spec = request.model_spec
        model = self._models.get(spec.name)
        statuses = model.statuses() if model else []
        if spec.HasField("version"):
            statuses = [status for status in statuses if status.version == spec.version.value]
            missing = f"Could not find version {spec.version.value} of model {spec.name}"
        else:
            missing = f"Could not find any versions of model {spec.name}"
        if not statuses:
            raise StatusError(grpc.StatusCode.NOT_FOUND, missing)
        return get_model_status_pb2.GetModelStatusResponse(model_version_status=statuses)

    def HandleReloadConfigRequest(self, request: Any, context: grpc.ServicerContext) -> Any:
        raise StatusError(grpc.StatusCode.UNIMPLEMENTED, "The embedded server's configuration is fixed at its start.")
