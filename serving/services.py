"""TensorFlow Serving's gRPC services over loaded models."""

# The methods have the names that the services' protos give them.
# ruff: noqa: N802

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.config import model_configs
from serving.models import Models
from serving.monitoring import Metrics
from serving.servables import Servable
from serving.status import StatusError, invalid_argument, status_of

_log = logging.getLogger(__name__)


class Admission:
    """Lets a number of calls work at once and a number wait, in order of arrival; refuses the rest.

    Args:
        running: calls that work at once.
        queued: calls that wait.
        metrics: where both are counted.
    """

    # How long a call whose caller has gone may go on waiting.
    _LOOK_SECONDS = 0.1

    def __init__(self, running: int, queued: int, metrics: Metrics) -> None:
        self._limits = running, queued
        self._running = self._queued = 0
        self._changed = threading.Condition()
        metrics.running.set_function(lambda: self._running)
        metrics.queued.set_function(lambda: self._queued)

    @contextlib.contextmanager
    def admit(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Holds a place among those that work.

        Raises:
            StatusError: RESOURCE_EXHAUSTED if too many wait; DEADLINE_EXCEEDED or CANCELLED if the caller has gone.
        """
        running, queued = self._limits
        with self._changed:
            if self._running >= running or self._queued:
                if self._queued >= queued:
                    raise StatusError(
                        grpc.StatusCode.RESOURCE_EXHAUSTED,
                        f"{self._running} calls are being worked on and {self._queued} are waiting. Try again later.",
                    )
                self._queued += 1
                try:
                    while self._running >= running and not _has_gone(context):
                        self._changed.wait(self._LOOK_SECONDS)
                finally:
                    self._queued -= 1
                    self._changed.notify()
            if gone := _has_gone(context):
                raise gone
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify()


def _has_gone(context: grpc.ServicerContext) -> StatusError | None:
    """Why nobody waits for the answer any more, if so."""
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        return StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
    if not context.is_active():
        return StatusError(grpc.StatusCode.CANCELLED, "The caller has gone.")
    return None


class Interceptor(grpc.ServerInterceptor):
    """Makes a status of whatever a call raises, and counts calls.

    Args:
        metrics: where calls are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._under_way = 0
        self._changed = threading.Condition()

    def wait_until_idle(self, timeout: float) -> None:
        """Waits until no call is under way; those that stream do not count, as a health watch never ends."""
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way, timeout)

    def intercept_service(self, continuation: Callable[..., Any], handler_call_details: Any) -> Any:
        """Wraps one method; those that stream stay as they are."""
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        method = handler_call_details.method.rpartition("/")[2]

        def parse(message: bytes) -> Any:
            # grpcio never forgets a call whose request it could not parse itself, and slows down with each.
            try:
                return handler.request_deserializer(message)
            except DecodeError as error:
                return error

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            began = time.perf_counter()
            code = grpc.StatusCode.OK
            with self._changed:
                self._under_way += 1
            try:
                if isinstance(request, DecodeError):
                    raise StatusError(grpc.StatusCode.INTERNAL, f"The request can't be parsed: {request}")
                response = handler.unary_unary(request, context)
                if isinstance(response, predict_pb2.PredictResponse):
                    spec = response.model_spec
                    labels = spec.name, str(spec.version.value), spec.signature_name
                    self._metrics.latency.labels(*labels).observe(time.perf_counter() - began)
                return response
            except Exception as error:  # one request, whatever is wrong with it, must not cost the others their server
                if not isinstance(error, (StatusError, tf.errors.OpError)):
                    _log.exception("%s failed", method)
                code, message = status_of(error)
                context.abort(code, message)
            finally:
                self._metrics.requests.labels(method, code.name).inc()
                with self._changed:
                    self._under_way -= 1
                    self._changed.notify_all()

        return grpc.unary_unary_rpc_method_handler(answer, parse, handler.response_serializer)


def _find(models: Models, request: Any) -> Servable:
    """The model version that a request with a `model_spec` asks for."""
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    return models.servable(request.model_spec)


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; Classify, Regress and MultiInference say why they do not apply."""

    def __init__(self, models: Models, admission: Admission) -> None:
        self._models = models
        self._admission = admission

    def Predict(
        self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        with self._admission.admit(context):
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
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def GetModelStatus(
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        spec = request.model_spec
        model = self._models.find(spec.name)
        statuses = model.statuses() if model else []
        if spec.HasField("version"):
            statuses = [status for status in statuses if status.version == spec.version.value]
            missing = f"Could not find version {spec.version.value} of model {spec.name}"
        else:
            missing = f"Could not find any versions of model {spec.name}"
        if not statuses:
            raise StatusError(grpc.StatusCode.NOT_FOUND, missing)
        return get_model_status_pb2.GetModelStatusResponse(model_version_status=statuses)

    def HandleReloadConfigRequest(
        self, request: model_management_pb2.ReloadConfigRequest, context: grpc.ServicerContext
    ) -> model_management_pb2.ReloadConfigResponse:
        self._models.reload(model_configs(request.config), by_request=True)
        return model_management_pb2.ReloadConfigResponse()
