"""TensorFlow Serving's configuration files, which are text protos, and the checks on them."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.messages import message_classes
from serving.server import memory
from serving.server.status import invalid_argument

Configs = Sequence[model_server_config_pb2.ModelConfig]

# What the numbers of BatchingParameters must at least be.
_LEAST = {"max_batch_size": 1, "num_batch_threads": 1, "max_enqueued_batches": 1, "batch_timeout_micros": 0}

# tensorflow-serving-api leaves these messages out. Names and types as in TensorFlow Serving's session_bundle_config,
# ssl_config and monitoring_config; numbers do not show in text.
_CLASSES = message_classes(
    "serving.server",
    {
        "Int64Value": {"value": (1, "int64")},
        "StringValue": {"value": (1, "string")},
        "BatchingParameters": {
            "max_batch_size": (1, "Int64Value"),
            "batch_timeout_micros": (2, "Int64Value"),
            "max_enqueued_batches": (3, "Int64Value"),
            "num_batch_threads": (4, "Int64Value"),
            "thread_pool_name": (5, "StringValue"),
            "allowed_batch_sizes": (6, "repeated int64"),
            "pad_variable_length_inputs": (7, "bool"),
        },
        "SSLConfig": {
            "server_key": (1, "string"),
            "server_cert": (2, "string"),
            "custom_ca": (3, "string"),
            "client_verify": (4, "bool"),
        },
        "PrometheusConfig": {"enable": (1, "bool"), "path": (2, "string")},
        "MonitoringConfig": {"prometheus_config": (1, "PrometheusConfig")},
    },
)
BatchingParameters: Any = _CLASSES["BatchingParameters"]
SSLConfig: Any = _CLASSES["SSLConfig"]
MonitoringConfig: Any = _CLASSES["MonitoringConfig"]


def boolean(value: str) -> bool:
    """`--flag=true` and `--flag=false`, as tensorflow_model_server takes them."""
    return bool(("false", "true").index(value.lower()))


# What argparse is told of such a flag; `--flag` alone is true.
BOOLEAN: dict[str, Any] = {"type": boolean, "nargs": "?", "const": True}
_MAX_PORT = 65_535
# What ETA retrieves for a candidate, the largest part of what it takes: 64 behaviours of 128 float32 each.
_CANDIDATE_BYTES = 32 << 10


def _flag(default: Any, meaning: str, least: float | None = None, most: float = math.inf, **argument: Any) -> Any:
    if default:
        meaning += " (default: %(default)s)"
    argument = {"type": type(default), "default": default, "help": meaning, **argument}
    return dataclasses.field(default=default, metadata={"argument": argument, "range": (least, most)})


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of an EmbeddedServer: defaults, meanings and ranges, from which its flags are made.

    The names are tensorflow_model_server's, but for `host`, for which it takes 0.0.0.0, `max_queued_calls`,
    `max_candidates` and `reload_base_path`.

    Args:
        ssl_config: an SSLConfig; without one, plaintext. Its flag names a file, `--ssl_config_file`.
        batching_parameters: BatchingParameters; without them requests are not joined. Its flags are
            `--enable_batching` and `--batching_parameters_file`.

    Raises:
        ValueError: if one is out of its range.
    """

    host: str = _flag("127.0.0.1", "address to listen on")
    port: int = _flag(8500, "port to listen on; 0: a free one", 0, _MAX_PORT)
    rest_api_port: int | None = _flag(None, "loopback port of the metrics; 0: a free one", 0, _MAX_PORT, type=int)
    model_config_file: str | None = _flag(None, "several models, policies, labels: a ModelServerConfig", type=str)
    model_config_file_poll_wait_seconds: float = _flag(0.0, "seconds between two looks at it; 0: look once", 0)
    file_system_poll_wait_seconds: float = _flag(1.0, "seconds between two looks for new versions; 0: look once", 0)
    allow_version_labels_for_unavailable_models: bool = _flag(
        False, "new labels may stand for unloaded versions, as at the start", **BOOLEAN
    )
    reload_base_path: str | None = _flag(None, "where HandleReloadConfigRequest may choose base paths", type=str)
    grpc_max_threads: int = _flag(4 * (os.cpu_count() or 1), "Predict calls worked on at once", 1)
    max_queued_calls: int = _flag(64, "Predict calls that wait for that; more get RESOURCE_EXHAUSTED", 0)
    max_candidates: int | None = _flag(
        None, "candidates of one call, over all its rows (default: what memory is for)", 1, type=int
    )
    grpc_channel_arguments: str = _flag("", "gRPC's own: key=value,... Without, a message may have 64 MiB")
    ssl_config: Any = None
    batching_parameters: Any = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            least, most = field.metadata.get("range", (None, None))
            value = getattr(self, field.name)
            if least is not None and value is not None and not least <= value <= most:
                allowed = f"at least {least}" if most == math.inf else f"between {least} and {most}"
                raise ValueError(f"`{field.name}` must be {allowed}. Received: {field.name}={value}")

    @property
    def candidates_allowed(self) -> int:
        """`max_candidates`, or those that fit in memory with as many in every other call that is worked on."""
        return self.max_candidates or max(1, memory.total() // (self.grpc_max_threads * _CANDIDATE_BYTES))


def read_config(path: str | Path, message_class: Any) -> Any:
    """Reads a text proto.

    Raises:
        ValueError: if the file can't be read or is not such a message.
    """
    try:
        return text_format.Parse(Path(path).read_text(encoding="utf-8"), message_class())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ValueError(f"{path} is no {message_class.DESCRIPTOR.name} in text format: {error}") from error


def model_configs(config: model_server_config_pb2.ModelServerConfig) -> Configs:
    """The models of a configuration file or of a request to reload it.

    Raises:
        StatusError: if it lists none, or one of a platform that is not TensorFlow.
    """
    configs = list(config.model_config_list.config)
    if not configs:
        raise invalid_argument("There is no model: only a model_config_list is supported, and not an empty one.")
    for model in configs:
        if (platform := model.model_platform) != "tensorflow":
            raise invalid_argument(f"`model_platform` of {model.name!r} must be 'tensorflow'. Received: {platform!r}")
    return configs


def check_models(configs: Configs) -> None:
    """Checks that every model has a name of its own and a base path.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    names = [config.name for config in configs]
    for config in configs:
        if not config.name or not config.base_path:
            raise invalid_argument(f"Each model needs a `name` and a `base_path`. Received: {config!s}")
        if "\0" in config.base_path:
            raise invalid_argument(f"`base_path` must not hold a NUL. Received: base_path={config.base_path!r}")
        if names.count(config.name) > 1:
            raise invalid_argument(f"Illegal to list model {config.name} multiple times in config list")


def check_batching(parameters: Any) -> None:
    """Checks that batching parameters are in range and do not contradict each other.

    Raises:
        ValueError: naming the parameter.
    """
    for name, least in _LEAST.items():
        value = getattr(parameters, name).value
        if parameters.HasField(name) and value < least:
            raise ValueError(f"`{name}` must be at least {least}. Received: {name}={value}")
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
    pair = config.server_key.encode(), config.server_cert.encode()
    return grpc.ssl_server_credentials([pair], config.custom_ca.encode() or None, config.client_verify)


def channel_arguments(text: str) -> dict[str, int | str]:
    """Options of gRPC from `key=value,key=value`, as TensorFlow Serving reads them.

    Raises:
        ValueError: if a part is not of that form.
    """
    options: dict[str, int | str] = {}
    for part in filter(None, text.split(",")):
        key, separator, value = part.partition("=")
        if not key or not separator:
            raise ValueError(f"`grpc_channel_arguments` must be key=value,... Received: {part!r}")
        options[key] = int(value) if value.lstrip("-").isdecimal() else value
    return options
