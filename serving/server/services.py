"""TensorFlow Serving's gRPC services over loaded models."""

# The methods have the names that the services' protos give them.
# ruff: noqa: N802

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import tensorflow as tf
from google.protobuf.message import DecodeError
from grpc import ServerInterceptor, ServicerContext, StatusCode, unary_unary_rpc_method_handler
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataResponse, SignatureDefMap
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusResponse
from tensorflow_serving.apis.model_management_pb2 import ReloadConfigResponse
from tensorflow_serving.apis.model_service_pb2_grpc import ModelServiceServicer
from tensorflow_serving.apis.predict_pb2 import PredictResponse
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceServicer

from serving.monitor import Monitor
from serving.server import memory
from serving.server.config import model_configs
from serving.server.errors import status_of
from serving.server.models import Models
from serving.server.monitoring import Metrics
from serving.server.status import StatusError, invalid_argument

_log = logging.getLogger(__name__)
# A request of this size leaves the process with free memory that is worth returning.
_LARGE_BYTES = 4 << 20


class Admission:
    """Lets a limited number of calls run at once and a limited number wait; refuses the rest.

    Args:
        working: calls that work at once.
        waiting: calls that wait.
        metrics: where both are counted.
    """

    # How long a call whose caller has gone may go on waiting.
    _LOOK_SECONDS = 0.1

    def __init__(self, working: int, waiting: int, metrics: Metrics) -> None:
        self._refusal = f"{working} calls are being worked on and {waiting} are waiting. Try again later."
        self._places = threading.Semaphore(working + waiting)
        self._work = threading.Semaphore(working)
        self._metrics = metrics

    @contextlib.contextmanager
    def admit(self, context: ServicerContext) -> Iterator[None]:
        """Holds a place among the running calls.

        Raises:
            StatusError: RESOURCE_EXHAUSTED if too many wait; DEADLINE_EXCEEDED or CANCELLED if the caller has gone.
        """
        if not self._places.acquire(blocking=False):
            raise StatusError(StatusCode.RESOURCE_EXHAUSTED, self._refusal)
        with contextlib.ExitStack() as held:
            held.callback(self._places.release)
            with self._metrics.queued.track_inprogress():
                while not self._work.acquire(timeout=self._LOOK_SECONDS):
                    _check_caller(context)
            held.callback(self._work.release)
            _check_caller(context)
            held.enter_context(self._metrics.running.track_inprogress())
            yield


def _check_caller(context: ServicerContext) -> None:
    """Ends a call whose caller has gone."""
    if context.time_remaining() == 0:
        raise StatusError(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
    if not context.is_active():
        raise StatusError(StatusCode.CANCELLED, "The caller has gone.")


class Interceptor(ServerInterceptor):
    """Turns whatever a call raises into a status, and counts calls.

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
            if len(message) > _LARGE_BYTES:
                memory.give_back_later()
            # grpcio never forgets a call whose request it could not parse itself, and slows down with each.
            try:
                return handler.request_deserializer(message)
            except DecodeError as error:
                return error

        def answer(request: Any, context: ServicerContext) -> Any:
            began = time.perf_counter()
            code = StatusCode.OK
            with self._changed:
                self._under_way += 1
            try:
                if isinstance(request, DecodeError):
                    raise StatusError(StatusCode.INTERNAL, f"The request can't be parsed: {request}")
                response = handler.unary_unary(request, context)
                if isinstance(response, PredictResponse):
                    spec = response.model_spec
                    histogram = self._metrics.latency.labels(spec.name, spec.version.value, spec.signature_name)
                    histogram.observe(time.perf_counter() - began)
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

        return unary_unary_rpc_method_handler(answer, parse, handler.response_serializer)


def _spec(request: Any) -> Any:
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    return request.model_spec


class Service(PredictionServiceServicer, ModelServiceServicer):
    """TensorFlow Serving's PredictionService and ModelService.

    Classify, Regress and MultiInference say why they do not apply.

    Args:
        models: what there is to call.
        admission: lets Predict calls work.
        max_candidates: of one of them.
        monitor: counts what they send and get.
    """

    def __init__(self, models: Models, admission: Admission, max_candidates: int, monitor: Monitor) -> None:
        self._models = models
        self._monitor = monitor
        self._admission = admission
        self._max_candidates = max_candidates

    def Predict(self, request: Any, context: ServicerContext) -> PredictResponse:
        with self._admission.admit(context):
            spec = _spec(request)
            servable = self._models.servable(spec)
            observe = functools.partial(self._monitor.observe, spec.name, servable.version, servable.contract)
            return servable.predict(request, self._max_candidates, observe)

    def GetModelMetadata(self, request: Any, context: ServicerContext) -> GetModelMetadataResponse:
        spec = _spec(request)
        if not request.metadata_field:
            raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid_argument(f"Metadata field {field} is not supported")
        servable = self._models.servable(spec)
        response = GetModelMetadataResponse(model_spec={"name": spec.name, "version": {"value": servable.version}})
        response.metadata["signature_def"].Pack(SignatureDefMap(signature_def=servable.signature_defs))
        return response

    def Classify(self, request: Any, context: ServicerContext) -> Any:
        self._refuse(request)

    def Regress(self, request: Any, context: ServicerContext) -> Any:
        self._refuse(request)

    def MultiInference(self, request: Any, context: ServicerContext) -> Any:
        if not request.tasks:
            raise invalid_argument("ModelSpec has no name specified.")
        self._refuse(request.tasks[0])

    def _refuse(self, request: Any) -> NoReturn:
        """Says why Classify and Regress can't call a signature: they are for TensorFlow 1's estimators."""
        spec = _spec(request)
        signatures = self._models.servable(spec).signature_defs
        name = spec.signature_name or tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
        if name not in signatures:
            raise invalid_argument(f"No signature was found with the name: {name}")
        if len(signatures[name].inputs) != 1:
            raise invalid_argument("Expected one input Tensor.")
        message = f"No classification or regression inputs found in SignatureDef: {name}. Call it by Predict."
        raise StatusError(StatusCode.FAILED_PRECONDITION, message)

    def GetModelStatus(self, request: Any, context: ServicerContext) -> GetModelStatusResponse:
        spec = _spec(request)
        version = spec.version.value if spec.HasField("version") else None
        statuses = [status for status in self._models.statuses(spec.name) if version in (None, status.version)]
        if not statuses:
            wanted = "any versions" if version is None else f"version {version}"
            raise StatusError(StatusCode.NOT_FOUND, f"Could not find {wanted} of model {spec.name}")
        return GetModelStatusResponse(model_version_status=statuses)

    def HandleReloadConfigRequest(self, request: Any, context: ServicerContext) -> ReloadConfigResponse:
        self._models.reload(model_configs(request.config), by_request=True)
        return ReloadConfigResponse()
