"""The configuration of a ranker, from which Keras makes it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from keras_eta.features import Features
from keras_eta.models.mlp import activation_class

# Arguments that are Keras objects or `None`.
_OBJECTS = ("lookup", "retrieval_task", "calibrator")


def serialized(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments as values that JSON can hold."""
    serialize = tf.keras.utils.serialize_keras_object
    config = dict(arguments)
    config["features"] = config["features"].to_dict()
    for name in _OBJECTS:
        config[name] = None if config[name] is None else serialize(config[name])
    config["interests"] = [serialize(unit) for unit in config["interests"]]
    if not isinstance(config["activation"], str):
        config["activation"] = tf.keras.utils.get_registered_name(config["activation"])
    config["embeddings_regularizer"] = tf.keras.regularizers.serialize(config["embeddings_regularizer"])
    return config


def deserialized(config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments that `serialized` or a subclass of the ranker wrote."""
    deserialize = tf.keras.utils.deserialize_keras_object
    arguments = dict(config)
    arguments["features"] = Features.from_dict(arguments["features"])
    for name in _OBJECTS:
        if arguments.get(name) is not None:
            arguments[name] = deserialize(arguments[name])
    if "interests" in arguments:
        arguments["interests"] = [deserialize(unit) for unit in arguments["interests"]]
    arguments["activation"] = activation_class(arguments["activation"]) or arguments["activation"]
    return arguments
