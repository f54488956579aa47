"""The ranker that a configuration describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from keras_eta import FeatureLookup, Features, Ranker
from keras_eta.interest import InterestUnit
from keras_eta.models.mlp import activation_class
from tfx_pipeline.model_config import Model


def make_ranker(model: Model, features: Features, vocabularies: Mapping[str, Any]) -> Ranker:
    """The ranker, built, with a lookup of raw ids; how popular items are it has yet to be told.

    Args:
        model: its configuration.
        features: the columns.
        vocabularies: the ids of each id feature, by its name.

    Raises:
        ValueError: if an interest unit can't be made of its JSON, is none, or does not go with the features or the
            other units.
    """
    lookup = FeatureLookup(features)
    for name, ids in vocabularies.items():
        lookup.set_vocabulary(name, ids)
    ranker = Ranker(
        lookup=lookup,
        interests=[_unit(text) for text in model.interests],
        hidden_units=model.hidden_units,
        activation=activation_class(model.activation) or model.activation,
        cross_layers=model.cross_layers,
        popularity=model.popularity,
        id_dropout=model.id_dropout,
        retrieval_task=model.retrieval_task(),
    )
    ranker.build()
    return ranker


def check_ranker(model: Model, features: Features) -> None:
    """Raises ValueError, as `make_ranker` does, unless there is such a ranker; it makes one with tiny vocabularies."""
    ids = {"int64": [0], "string": ["0"]}
    vocabularies = {feature.name: ids[feature.dtype] for feature in features.all_features if feature.is_id}
    try:
        make_ranker(model, features, vocabularies)
    except ValueError:
        raise
    except Exception as error:
        # A unit of one's own may raise anything where a column is missing.
        raise ValueError(f"The ranker can't be built: {type(error).__name__}: {error}") from error


def _unit(text: str) -> InterestUnit:
    config = json.loads(text)
    try:
        unit = tf.keras.utils.deserialize_keras_object(config)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Interest unit {config['class_name']!r} can't be made of its JSON. A class of one's own must be "
            f"registered by `tf.keras.utils.register_keras_serializable` in a `module` that can be imported. {error}"
        ) from error
    if not isinstance(unit, InterestUnit):
        raise ValueError(f"`interests` must hold interest units. Received: {type(unit).__name__}, {text}")
    return unit
