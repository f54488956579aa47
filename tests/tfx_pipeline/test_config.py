"""The pipeline's configuration: round trip, refusals, what components get of it."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from keras_eta import ETA, Feature, Features, calibration
from keras_eta.interest import SDIM, RecentInterest
from tests.paper import paper_eta
from tfx_pipeline.config import CALIBRATIONS, Evaluation, PipelineConfig, Split, Training, history_bucket
from tfx_pipeline.layouts import Layout, movielens, taobao
from tfx_pipeline.model_config import ETAUnits, Model
from tfx_pipeline.ranker import check_ranker, make_ranker
from tfx_pipeline.retriever_config import Retriever

NAN: Any = float("nan")
INF: Any = float("inf")
REQUIRED = {"data": "logs", "schema": "s.pbtxt", "output": "out", "serving_dir": "served/eta"}


def test_configuration_survives_json() -> None:
    config = PipelineConfig(
        layout=movielens(64),
        split=Split((0.7, 0.2, 0.1), 100, 200),
        min_history=3,
        max_bad_share=0.5,
        statistics_sample_rate=0.25,
        model=Model((SDIM(seed=3), RecentInterest(4)), [16, 8], "keras_eta>Dice", 2, 0.05, 0.5, 0.2, 7),  # type: ignore[arg-type]
        training=Training(batch_size=32, max_steps=7, warm_start=False),
        evaluation=Evaluation(0.7, 0.55, 0.02, False, 0.6, 1.5, 0.05, 0.01, "50-199"),
        retriever=Retriever("served/tiger", "items.csv", ["name"], ["brand"], 16, 3, 12, 0.2, 0.01),  # type: ignore[arg-type]
        bulk_inference=True,
        beam_args=["--runner=FlinkRunner"],  # type: ignore[arg-type]
        **REQUIRED,
    )
    again = PipelineConfig.from_json(config.to_json())
    assert again == config
    assert again.model.hidden_units == (16, 8)
    first, second = (json.loads(text) for text in again.model.interests)
    assert (first["registered_name"], first["config"]["seed"]) == ("keras_eta>SDIM", 3)
    assert (second["registered_name"], second["config"]["length"]) == ("keras_eta>RecentInterest", 4)
    assert again.layout.features.max_history_length == 64


def test_longest_recent_is_what_short_history_and_retrieval_task_read() -> None:
    assert Model((RecentInterest(4), SDIM()), retrieval_recent=7).longest_recent == 7
    assert Model((RecentInterest(4), RecentInterest(9, name="longer")), retrieval_recent=7).longest_recent == 9
    assert Model((RecentInterest(4),), retrieval_weight=0.0).longest_recent == 4


def test_components_get_only_what_they_ask_for() -> None:
    config = PipelineConfig(layout=movielens(), min_history=3, training=Training(epochs=9), **REQUIRED)  # type: ignore[arg-type]
    part = config.only("output", "min_history")
    assert (part.output, part.min_history, part.layout) == ("out", 3, config.layout)
    assert (part.data, part.schema, part.serving_dir, part.training) == ("", "", "", Training())
    other = dataclasses.replace(config, data="elsewhere", training=Training(epochs=1))
    assert other.only("output", "min_history").to_json() == part.to_json()


def test_paths_lie_under_the_output_directory_even_if_it_is_remote() -> None:
    config = PipelineConfig(layout=taobao(), **{**REQUIRED, "output": "gs://bucket/eta"})  # type: ignore[arg-type]
    assert config.pipeline_root == "gs://bucket/eta/artifacts"
    assert config.metadata_path == "gs://bucket/eta/metadata.sqlite"
    assert config.dead_letter_dir == "gs://bucket/eta/dead_letter"
    assert config.checkpoint_dir == "gs://bucket/eta/checkpoints"


def test_default_ranker_has_the_units_of_eta() -> None:
    features = Features(item_id=Feature("item_id", vocabulary_size=5))
    arguments: dict[str, Any] = {"top_k": 5, "num_bits": 32, "short_history_length": 3, "num_heads": 1, "key_dim": 6}
    arguments |= {"cosine": True, "distance_edges": (0, 4)}
    of_eta = paper_eta(
        features, similarity_bias=True, trainable_planes=True, planes_period=2, seed=4, matches=True, **arguments
    ).interests
    units = ETAUnits(planes_period=2, **arguments).make(seed=4)
    assert [unit.get_config() for unit in units] == [unit.get_config() for unit in of_eta]
    assert [unit.name for unit in ETAUnits(short_history_length=0).make()] == ["match", "eta_interest"]
    assert [unit.name for unit in ETAUnits(matches=False).make()] == ["recent_interest", "eta_interest"]
    assert Model() == Model(interests=ETAUnits().make())


def test_short_history_is_the_same_ranker_with_its_recent_units_alone() -> None:
    def model(*units: Any) -> Model:
        return Model(units, (16,), cross_layers=1)

    recent = RecentInterest(4, cosine=True)
    assert model(SDIM(), recent).short_history() == model(recent)
    assert model(recent).short_history() is None
    # As ETA has it, where the ranker has none; JSON of one's own need not have a registered name.
    for unit in (SDIM(), '{"class_name": "keras_eta>SDIM", "config": {}}'):
        assert model(unit).short_history() == model(ETAUnits().make()[0])


@pytest.mark.parametrize("num_bits", [16, 64, 256])
def test_default_counts_are_those_of_eta_whatever_the_bits(num_bits: int) -> None:
    features = Features(item_id=Feature("item_id", vocabulary_size=5))
    unit: Any = ETAUnits(num_bits=num_bits).make()[-1]
    assert unit.distance_edges == ETA(features, num_bits=num_bits).eta.distance_edges
    assert max(unit.distance_edges) == {16: 6, 64: 26, 256: 104}[num_bits]


def test_retrieval_task_is_made_at_a_weight_alone() -> None:
    task = Model(retrieval_weight=0.5, retrieval_temperature=0.2, retrieval_recent=7).retrieval_task()
    assert task is not None
    assert (task.weight, task.temperature, task.recent) == (0.5, 0.2, 7)
    assert Model(retrieval_weight=0.0).retrieval_task() is None


@pytest.mark.parametrize("layout", [movielens(), taobao()])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_ranker_of_ready_made_layouts_has_the_task_on_request(layout: Layout, weight: float) -> None:
    check_ranker(Model(retrieval_weight=weight), layout.features)
    ids = {name: ["buy"] if name == "action" else [4] for name in ("item_id", "category_id", "action", "rating")}
    known = {feature.name: ids[feature.name] for feature in layout.features.all_features}
    ranker: Any = make_ranker(Model(retrieval_weight=weight), layout.features, known)
    assert (ranker.retrieval_task is not None) == bool(weight)
    if weight:
        # Row 1 is of unknown values.
        assert ranker.retrieval_task._positive_rows(layout.features.positives) == [2]


def test_calibrations_are_those_that_can_be_fitted() -> None:
    assert tuple(calibration.KINDS) == CALIBRATIONS


@pytest.mark.parametrize(
    ("count", "bucket"),
    [
        (0, "0-9"),
        (9, "0-9"),
        (10, "10-49"),
        (49, "10-49"),
        (50, "50-199"),
        (199, "50-199"),
        (200, "200+"),
        (9999, "200+"),
    ],
)
def test_history_bucket(count: int, bucket: str) -> None:
    assert history_bucket(count) == bucket


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Split((0.5, 0.5, 0.5)), "`fractions` must be three positive numbers that add up to 1. Received"),
        (lambda: Split((1.0, 0.0, 0.0)), "`fractions` must be three positive numbers that add up to 1. Received"),
        (lambda: Split(eval_from=3), "`validation_from` and `eval_from` must be given together"),
        (lambda: Split(validation_from=3), "`validation_from` and `eval_from` must be given together"),
        (
            lambda: Split(validation_from=3, eval_from=3),
            "the first before the second. Received: validation_from=3, eval_from=3",
        ),
        (lambda: Split((NAN, 0.5, 0.5)), "`fractions` must be three positive numbers that add up to 1. Received"),
        (lambda: Split((INF, 0.5, 0.5)), "`fractions` must be three positive numbers that add up to 1. Received"),
        (lambda: Split((0.8, 0.2)), "`fractions` must be three positive numbers that add up to 1. Received"),  # type: ignore[arg-type]
        (lambda: Split(validation_from=True, eval_from=3), "`validation_from` and `eval_from` must be integers"),
        (lambda: Split(validation_from=1, eval_from=-INF), "`validation_from` and `eval_from` must be integers"),
        (lambda: Split(validation_from=1, eval_from=NAN), "`validation_from` and `eval_from` must be integers"),
        (lambda: ETAUnits(top_k=NAN), "`top_k` must be a positive integer. Received: top_k=nan"),
        (lambda: ETAUnits(num_bits=True), "`num_bits` must be a positive integer. Received: num_bits=True"),
        (lambda: ETAUnits(num_heads=0), "`num_heads` must be a positive integer. Received: num_heads=0"),
        (
            lambda: ETAUnits(distance_edges=(3, 1)),
            "`distance_edges` must be integers of at least 0, strictly ascending",
        ),
        (
            lambda: Model(retrieval_weight=-1.0),
            "`retrieval_weight` must be a number of at least 0. Received: retrieval_weight=-1.0",
        ),
        (
            lambda: Model(retrieval_temperature=0.0),
            "`retrieval_temperature` must be a positive number. Received: retrieval_temperature=0.0",
        ),
        (
            lambda: Model(retrieval_recent=0),
            "`retrieval_recent` must be a positive integer. Received: retrieval_recent=0",
        ),
        (lambda: Model(cross_layers=-1), "`cross_layers` must be an integer of at least 0. Received: cross_layers=-1"),
        (
            lambda: ETAUnits(short_history_length=True),
            "`short_history_length` must be an integer of at least 0. Received",
        ),
        (lambda: ETAUnits(similarity_bias=False), "`trainable_planes` needs `similarity_bias=True`"),
        (lambda: Model(interests=()), "`interests` must hold at least one interest unit. Received: interests=()"),
        (
            lambda: Model(interests=("sdim",)),
            "`interests` must hold JSON objects. Received: 'sdim', which is no JSON: Expecting value: line 1 column 1",
        ),
        (
            lambda: Model(interests=('["SDIM"]',)),
            "`interests` must hold JSON objects with `class_name` and `config`, as "
            "`tf.keras.utils.serialize_keras_object` gives them of a unit. Received: '[\"SDIM\"]'",
        ),
        (
            lambda: Model(interests=('{"class_name": "SDIM"}',)),
            "`interests` must hold JSON objects with `class_name` and",
        ),
        (
            lambda: Model(hidden_units=(8, True)),
            "`hidden_units` must be positive integers. Received: hidden_units=(8, True)",
        ),
        (lambda: Training(seed=NAN), "`seed` must be an integer of at least 0. Received: seed=nan"),
        (lambda: Training(seed=True), "`seed` must be an integer of at least 0. Received: seed=True"),
        (lambda: Training(epochs=0), "`epochs` must be a positive integer. Received: epochs=0"),
        (lambda: Training(max_steps=0), "`max_steps` must be a positive integer. Received: max_steps=0"),
        (lambda: Training(dense_learning_rate=0.0), "`dense_learning_rate` must be a positive number. Received"),
        (lambda: Training(dense_learning_rate=NAN), "`dense_learning_rate` must be a positive number. Received"),
        (
            lambda: Training(calibrate="beta"),
            "`calibrate` must be one of ('platt', 'isotonic') or None. Received: calibrate='beta'",
        ),
        (
            lambda: Training(embedding_learning_rate=INF),
            "`embedding_learning_rate` must be a positive number. Received",
        ),
        (
            lambda: Training(embedding_learning_rate=True),
            "`embedding_learning_rate` must be a positive number. Received",
        ),
        (lambda: Evaluation(min_auc=1.2), "`min_auc` must lie between 0 and 1"),
        (lambda: Evaluation(min_auc=NAN), "`min_auc` must lie between 0 and 1"),
        (lambda: Evaluation(min_auc=True), "`min_auc` must lie between 0 and 1"),
        (
            lambda: Evaluation(max_saturated_share=1.5),
            "`max_saturated_share` must lie between 0 and 1. Received: max_saturated_share=1.5",
        ),
        (
            lambda: Evaluation(min_auc_lead=-1.5),
            "`min_auc_lead` must lie between -1 and 1. Received: min_auc_lead=-1.5",
        ),
        (lambda: Evaluation(min_auc_lead=NAN), "`min_auc_lead` must lie between -1 and 1. Received: min_auc_lead=nan"),
        (
            lambda: Evaluation(max_auc_drop=NAN),
            "`max_auc_drop` must be a number of at least 0. Received: max_auc_drop=nan",
        ),
        (
            lambda: Evaluation(max_auc_drop=INF),
            "`max_auc_drop` must be a number of at least 0. Received: max_auc_drop=inf",
        ),
        (
            lambda: Evaluation(max_auc_drop=-0.1),
            "`max_auc_drop` must be a number of at least 0. Received: max_auc_drop=-0.1",
        ),
        (lambda: Evaluation(longest_bucket="1000+"), "`longest_bucket` must be one of"),
        (lambda: _config(min_history=-1), "`min_history` must be an integer of at least 0. Received: min_history=-1"),
        (lambda: _config(min_history=NAN), "`min_history` must be an integer of at least 0. Received: min_history=nan"),
        (
            lambda: _config(min_history=True),
            "`min_history` must be an integer of at least 0. Received: min_history=True",
        ),
        (lambda: _config(max_bad_share=True), "`max_bad_share` must lie between 0 and 1. Received: max_bad_share=True"),
        (lambda: _config(max_bad_share=NAN), "`max_bad_share` must lie between 0 and 1. Received: max_bad_share=nan"),
        (lambda: _config(statistics_sample_rate=True), "`statistics_sample_rate` must lie between 0 and 1, 0 excluded"),
        (lambda: _config(max_bad_share=2.0), "`max_bad_share` must lie between 0 and 1. Received: max_bad_share=2.0"),
        (lambda: _config(statistics_sample_rate=0.0), "`statistics_sample_rate` must lie between 0 and 1, 0 excluded"),
    ],
)
def test_configuration_refuses_bad_values(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def _config(**options: Any) -> PipelineConfig:
    return PipelineConfig(layout=movielens(), **REQUIRED, **options)  # type: ignore[arg-type]
