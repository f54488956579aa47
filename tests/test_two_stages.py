"""The benchmark of retrieval and ranking: what it compares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from benchmarks.two_stages import kept
from benchmarks.two_stages.latency import SIZES
from benchmarks.two_stages.uncached import UncachedTIGER
from keras_eta.datasets import Interactions
from keras_eta.datasets.movielens import MovieLens
from keras_eta.models import TIGER
from keras_eta.quantization import random_codes
from keras_eta.semantic_ids import SemanticIds
from serving.models_config import models_config


def test_decoder_without_a_cache_finds_the_same():
    sizes = (4, 4)
    ids = SemanticIds.from_codes(np.arange(40), random_codes(40, sizes, seed=0), sizes, max_collisions=8)
    cached, uncached = (kind(ids, max_history_length=3, dim=8, num_heads=2) for kind in (TIGER, UncachedTIGER))
    for model in (cached, uncached):
        model.build()
    uncached.set_weights(cached.get_weights())
    inputs = {"history_item_id": tf.constant([[5, 9, 3], [7, 0, 0]]), "history_length": tf.constant([3, 1])}
    expected, found = (model.retrieve(inputs, 6, 6) for model in (cached, uncached))
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_allclose(found.log_probability, expected.log_probability, rtol=1e-5)


def test_the_size_of_the_paper_is_that_of_the_paper():
    ids = SemanticIds.from_codes(np.arange(4), np.eye(4, 3, dtype=int), (2, 2, 2), max_collisions=1)
    model = TIGER(ids, **SIZES["paper"])
    model.build()
    assert (len(model.encoder), len(model.decoder), model.tokens.output_dim, model.spelt_history) == (4, 4, 128, True)
    kernels = [variable for variable in model.encoder[0].trainable_variables if "kernel" in variable.name]
    shapes = {tuple(kernel.shape) for kernel in kernels}
    assert shapes == {(128, 6, 64), (6, 64, 128), (128, 1024), (1024, 128)}


def test_histories_are_of_users_with_enough_ratings_most_recent_first(monkeypatch):
    monkeypatch.setattr(kept, "MIN_HISTORY", 2)
    user, item, time = [1, 2, 2, 3, 3, 3], ["a", "b", "c", "a", "b", "c"], [0, 2, 1, 3, 1, 2]
    columns = {"user_id": user, "item_id": item, "timestamp": time, "genre": item, "rating": [1, 2, 3, 4, 5, 1]}
    films = MovieLens(Interactions.from_columns(columns), items=None, users=None)
    found = kept.histories(films, users=5)
    assert sorted(history["item_id"] for history in found) == [["a", "c", "b"], ["b", "c"]]
    assert sorted(history["rating"] for history in found) == [[2, 3], [4, 1, 5]]
    assert len(kept.histories(films, users=1)) == 1


def test_models_config_serves_the_newest_version_of_each_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = models_config({"eta": Path("models/eta"), "tiger": tmp_path / "tiger"})
    config = text_format.Parse(text, ModelServerConfig())
    assert [(model.name, model.base_path, model.model_platform) for model in config.model_config_list.config] == [
        ("eta", str(tmp_path / "models/eta"), "tensorflow"),
        ("tiger", str(tmp_path / "tiger"), "tensorflow"),
    ]
