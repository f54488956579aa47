"""What travels between the clients and a server: the part of TensorFlow Serving's protocol that the clients use.

The generated messages (tensorflow-serving-api) import all of TensorFlow, for the sake of one message, TensorProto.
Names, numbers and types are those of tensorflow_serving/apis and tensorflow/core, with enums as the int32 that they
travel as.
"""

from __future__ import annotations

from typing import Any

import grpc

from serving.messages import message_classes

_CLASSES = message_classes(
    "serving.client",
    {
        "Any": {"type_url": (1, "string"), "value": (2, "bytes")},
        "Int64Value": {"value": (1, "int64")},
        "Dim": {"size": (1, "int64")},
        "TensorShapeProto": {"dim": (2, "repeated Dim"), "unknown_rank": (3, "bool")},
        "TensorProto": {
            "dtype": (1, "int32"),
            "tensor_shape": (2, "TensorShapeProto"),
            "tensor_content": (4, "bytes"),
            "float_val": (5, "repeated float"),
            "double_val": (6, "repeated double"),
            "int_val": (7, "repeated int32"),
            "string_val": (8, "repeated bytes"),
            "scomplex_val": (9, "repeated float"),
            "int64_val": (10, "repeated int64"),
            "bool_val": (11, "repeated bool"),
            "dcomplex_val": (12, "repeated double"),
            "half_val": (13, "repeated int32"),
            "uint32_val": (16, "repeated uint32"),
            "uint64_val": (17, "repeated uint64"),
        },
        "TensorInfo": {"dtype": (2, "int32"), "tensor_shape": (3, "TensorShapeProto")},
        "SignatureDef": {"inputs": (1, "map<string, TensorInfo>"), "outputs": (2, "map<string, TensorInfo>")},
        "SignatureDefMap": {"signature_def": (1, "map<string, SignatureDef>")},
        "ModelSpec": {
            "name": (1, "string"),
            "version": (2, "Int64Value"),
            "signature_name": (3, "string"),
            "version_label": (4, "string"),
        },
        "PredictRequest": {
            "model_spec": (1, "ModelSpec"),
            "inputs": (2, "map<string, TensorProto>"),
            "output_filter": (3, "repeated string"),
        },
        "PredictResponse": {"outputs": (1, "map<string, TensorProto>"), "model_spec": (2, "ModelSpec")},
        "GetModelMetadataRequest": {"model_spec": (1, "ModelSpec"), "metadata_field": (2, "repeated string")},
        "GetModelMetadataResponse": {"model_spec": (1, "ModelSpec"), "metadata": (2, "map<string, Any>")},
        "GetModelStatusRequest": {"model_spec": (1, "ModelSpec")},
        "StatusProto": {"error_code": (1, "int32"), "error_message": (2, "string")},
        "ModelVersionStatus": {"version": (1, "int64"), "state": (2, "int32"), "status": (3, "StatusProto")},
        "GetModelStatusResponse": {"model_version_status": (1, "repeated ModelVersionStatus")},
    },
)

TensorProto: Any = _CLASSES["TensorProto"]
SignatureDefMap: Any = _CLASSES["SignatureDefMap"]
ModelSpec: Any = _CLASSES["ModelSpec"]
PredictRequest: Any = _CLASSES["PredictRequest"]
PredictResponse: Any = _CLASSES["PredictResponse"]
GetModelMetadataRequest: Any = _CLASSES["GetModelMetadataRequest"]
GetModelMetadataResponse: Any = _CLASSES["GetModelMetadataResponse"]
GetModelStatusRequest: Any = _CLASSES["GetModelStatusRequest"]
GetModelStatusResponse: Any = _CLASSES["GetModelStatusResponse"]

# ModelVersionStatus.State.
_STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}

# The service of each method, its request and its response.
_METHODS = {
    "Predict": ("PredictionService", PredictRequest, PredictResponse),
    "GetModelMetadata": ("PredictionService", GetModelMetadataRequest, GetModelMetadataResponse),
    "GetModelStatus": ("ModelService", GetModelStatusRequest, GetModelStatusResponse),
}


def state_name(number: int) -> str:
    """The name of a ModelVersionStatus.State."""
    return _STATES.get(number, f"STATE_{number}")


def methods(channel: Any) -> dict[str, grpc.UnaryUnaryMultiCallable]:
    """The methods of a server by name, over a channel of `grpc` or `grpc.aio`."""
    return {
        name: channel.unary_unary(
            f"/tensorflow.serving.{service}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        for name, (service, request, response) in _METHODS.items()
    }
