"""TensorFlow Serving's configuration files, which are text protos, and what they may say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, message_factory, text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.status import StatusError, invalid_argument

Configs = Sequence[model_server_config_pb2.ModelConfig]

_PLATFORM = "tensorflow"

# tensorflow-serving-api leaves these messages out. Names and types as in TensorFlow Serving's session_bundle_config,
# ssl_config and monitoring_config; numbers do not show in text.
_MESSAGES = {
    "Int64Value": {"value": "int64"},
    "StringValue": {"value": "string"},
    "BatchingParameters": {
        "max_batch_size": "Int64Value",
        "batch_timeout_micros": "Int64Value",
        "max_enqueued_batches": "Int64Value",
        "num_batch_threads": "Int64Value",
        "thread_pool_name": "StringValue",
        "allowed_batch_sizes": "repeated int64",
        "pad_variable_length_inputs": "bool",
    },
    "SSLConfig": {"server_key": "string", "server_cert": "string", "custom_ca": "string", "client_verify": "bool"},
    "PrometheusConfig": {"enable": "bool", "path": "string"},
    "MonitoringConfig": {"prometheus_config": "PrometheusConfig"},
}


def _message_classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="serving/config.proto", package="serving", syntax="proto3")
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for number, (name, kind) in enumerate(fields.items(), 1):
            label, kind = ("REPEATED", kind[9:]) if kind.startswith("repeated ") else ("OPTIONAL", kind)
            field = message.field.add(name=name, number=number, label=f"LABEL_{label}")
            if kind in _MESSAGES:
                field.type, field.type_name = field.TYPE_MESSAGE, f".serving.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind.upper()}")
    return message_factory.GetMessages([file])


_CLASSES = _message_classes()
BatchingParameters: Any = _CLASSES["serving.BatchingParameters"]
SSLConfig: Any = _CLASSES["serving.SSLConfig"]
MonitoringConfig: Any = _CLASSES["serving.MonitoringConfig"]


def read_config(path: str | Path, message_class: Any) -> Any:
    """Reads a text proto.

    Raises:
        ValueError: if the file can't be read or is not such a message.
    """
    try:
        return text_format.Parse(Path(path).read_text(encoding="utf-8"), message_class())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Can't read {path}: {error}") from error
    except text_format.ParseError as error:
        raise ValueError(f"{path} is no {message_class.DESCRIPTOR.name} in text format: {error}") from error


def model_configs(config: model_server_config_pb2.ModelServerConfig) -> Configs:
    """The models of a configuration file or of a request to reload it.

    Raises:
        StatusError: if it lists none, or one twice, or one without a name, a base path or TensorFlow's platform.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise invalid_argument(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
            "supported"
        )
    configs = list(config.model_config_list.config)
    if not configs:
        raise invalid_argument("The model_config_list is empty.")
    for model in configs:
        if model.model_platform != _PLATFORM:
            raise invalid_argument(
                f"`model_platform` of model {model.name!r} must be {_PLATFORM!r}. Received: {model.model_platform!r}"
            )
    check_models(configs)
    return configs


def check_models(configs: Configs) -> None:
    """Refuses models without a name or base path, and two of one name.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    names = [config.name for config in configs]
    for config in configs:
        if not config.name or not config.base_path:
            raise invalid_argument(f"Each model needs a `name` and a `base_path`. Received: {config!s}")
        if names.count(config.name) > 1:
            raise invalid_argument(f"Illegal to list model {config.name} multiple times in config list")


def check_batching(parameters: Any) -> None:
    """Refuses batching parameters that contradict each other.

    Raises:
        ValueError: naming the parameter.
    """
    for name in ("max_batch_size", "num_batch_threads", "max_enqueued_batches"):
        if parameters.HasField(name) and getattr(parameters, name).value < 1:
            raise ValueError(f"`{name}` must be positive. Received: {name}={getattr(parameters, name).value}")
    if parameters.batch_timeout_micros.value < 0:
        raise ValueError(
            "`batch_timeout_micros` must not be negative. "
            f"Received: batch_timeout_micros={parameters.batch_timeout_micros.value}"
        )
    sizes = list(parameters.allowed_batch_sizes)
    if sizes and (sizes != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] != parameters.max_batch_size.value):
        raise ValueError(f"`allowed_batch_sizes` must increase and end with `max_batch_size`. Received: {sizes}")


def server_credentials(config: Any) -> grpc.ServerCredentials:
    """TLS, and mutual TLS with `client_verify`, from an SSLConfig.

    Raises:
        ValueError: if a part is missing.
    """
    if not config.server_key or not config.server_cert:
        raise ValueError("An SSLConfig must hold `server_key` and `server_cert`, as PEM texts.")
    for name in ("server_key", "server_cert", "custom_ca"):
        if getattr(config, name) and "-----BEGIN " not in getattr(config, name):
            raise ValueError(f"`{name}` of an SSLConfig must be a PEM text, not a path.")
    if config.client_verify and not config.custom_ca:
        raise ValueError("`client_verify` needs `custom_ca`: the authority that signs clients' certificates.")
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=config.custom_ca.encode() or None,
        require_client_auth=config.client_verify,
    )


def channel_arguments(text: str) -> list[tuple[str, int | str]]:
    """Options of gRPC from `key=value,key=value`, as TensorFlow Serving reads them.

    Raises:
        ValueError: if a part is not of that form.
    """
    options: list[tuple[str, int | str]] = []
    for part in filter(None, text.split(",")):
        key, separator, value = part.partition("=")
        if not key or not separator:
            raise ValueError(f"`grpc_channel_arguments` must be key=value,... Received: {part!r}")
        options.append((key, int(value) if value.lstrip("-").isdecimal() else value))
    return options


def check_inside(configs: Configs, roots: Sequence[Path]) -> None:
    """Refuses base paths outside `roots`, symbolic links followed.

    Raises:
        StatusError: PERMISSION_DENIED.
    """
    for config in configs:
        path = Path(os.path.realpath(config.base_path))
        if not any(path.is_relative_to(root) for root in roots):
            raise StatusError(
                grpc.StatusCode.PERMISSION_DENIED,
                f"base_path of model {config.name} is outside the directories that requests may name. Start the server "
                "with --reload_base_path to allow others.",
            )
