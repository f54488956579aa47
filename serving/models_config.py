"""A `--model_config_file` for several models, as TensorFlow Serving and the embedded server read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig


def models_config(models: Mapping[str, Path]) -> str:
    """The text of a file that serves the newest version of each model.

    Args:
        models: name -> base path, which holds the versions.
    """
    config = ModelServerConfig()
    for name, path in models.items():
        config.model_config_list.config.add(name=name, base_path=str(path.resolve()), model_platform="tensorflow")
    return text_format.MessageToString(config)
