"""Hours and weekdays made of timestamps, from batches to an exported model."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from keras_eta import Calendar, Feature, FeatureLookup, Features, Ranker
from keras_eta.datasets import Impressions, Interactions
from keras_eta.export import export_model
from keras_eta.interest import PoolingInterest, RecentInterest
from keras_eta.ops import hour_and_weekday
from keras_eta.time_units import UNIT_STARTS, per_second


@given(
    st.integers(-9 * 10**9, 9 * 10**9),
    st.sampled_from([*UNIT_STARTS]),
    st.integers(-47, 47),
    st.integers(0, 999_999_999),
)
def test_equals_datetime_in_every_unit_and_zone(second: int, unit: str, half_hours: int, fraction: int) -> None:
    zone = datetime.timezone(datetime.timedelta(minutes=30 * half_hours))
    local = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc) + datetime.timedelta(seconds=second)
    local = local.astimezone(zone)
    timestamp = second * per_second(unit) + fraction % per_second(unit)
    offset = Calendar(unit, half_hours / 2).offset_seconds
    hour, weekday = hour_and_weekday(tf.constant([timestamp]), unit, offset)
    assert (hour.numpy().tolist(), weekday.numpy().tolist()) == ([1 + local.hour], [1 + local.weekday()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"unit": "days"},
            "`unit` must be one of ['seconds', 'milliseconds', 'microseconds', 'nanoseconds']. Receiv",
        ),
        ({"utc_offset": 24}, "`utc_offset` must be a number of hours between -24 and 24. Received: utc_offset=24"),
        ({"embedding_dim": 0}, "`embedding_dim` must be a positive integer. Received: embedding_dim=0"),
    ],
)
def test_refuses_a_bad_calendar(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Calendar(**arguments)


def _features(**roles: Any) -> Features:
    return Features(item_id=Feature("item_id", embedding_dim=4), max_history_length=3, **roles)


def test_columns_of_a_calendar() -> None:
    features = _features(calendar=Calendar())
    assert features.row_names == ("item_id", "timestamp")
    assert features.encoded_row_names == ("item_id", "timestamp_hour", "timestamp_weekday")
    assert features.history_names == ("history_item_id",)
    again = Features.from_dict(json.loads(json.dumps(features.to_dict())))
    assert again == features
    old = {name: value for name, value in _features().to_dict().items() if name != "calendar"}
    assert Features.from_dict(old) == _features()
    with pytest.raises(ValueError, match=r"Used twice: \['timestamp_hour'\]"):
        _features(calendar=Calendar(), context=(Feature("timestamp_hour"),))
    with pytest.raises(TypeError, match=r"`calendar` must be a keras_eta\.Calendar or None\. Received: calend"):
        _features(calendar="seconds")


@pytest.fixture(scope="module")
def impressions() -> Impressions:
    rng = np.random.default_rng(0)
    log = Interactions.from_columns(
        {
            "user_id": np.repeat(np.arange(4), 10),
            "item_id": rng.integers(1, 6, 40),
            "timestamp": 1_700_000_000 + np.sort(rng.integers(0, 10**6, (4, 10))).ravel(),
        }
    )
    return Impressions.from_interactions(log, label=lambda log: log.timestamps // 3_600 % 2, min_history=0)


@pytest.fixture(scope="module")
def model(impressions: Impressions) -> Ranker:
    lookup = FeatureLookup(_features(calendar=Calendar(utc_offset=2)))
    lookup.adapt(impressions.past_columns())
    tf.keras.utils.set_random_seed(0)
    ranker = Ranker(lookup=lookup, interests=[RecentInterest(2)], hidden_units=(8,))
    ranker.compile()
    batches = impressions.to_dataset(lookup.features, 20, lookup=lookup)
    history = ranker.fit(batches, epochs=60, verbose=0).history
    # The label is the hour's, which nothing else tells.
    assert history["auc"][-1] > 0.99
    return ranker


def test_batches_hold_hour_and_weekday_in_place_of_the_timestamp(impressions: Impressions, model: Ranker) -> None:
    ((columns, _),) = impressions.to_dataset(model.features, 100, lookup=model.lookup)
    assert "timestamp" not in columns
    hour, weekday = hour_and_weekday(tf.constant(impressions.timestamps), "seconds", 7_200)
    np.testing.assert_array_equal(columns["timestamp_hour"], hour)
    np.testing.assert_array_equal(columns["timestamp_weekday"], weekday)
    ((raw, _),) = impressions.to_dataset(model.features, 100)
    assert model.lookup is not None
    encoded = model.lookup(raw)
    assert set(encoded) == set(columns)
    for name, column in columns.items():
        np.testing.assert_array_equal(encoded[name], column, err_msg=name)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Column timestamp_hour holds an index that its table of"):
        model({**columns, "timestamp_hour": tf.fill([len(hour)], 25)})


@pytest.mark.parametrize("raw_ids", [True, False])
def test_exports_take_timestamps(impressions: Impressions, model: Ranker, tmp_path: Path, raw_ids: bool) -> None:
    logits = model.predict(impressions.to_dataset(model.features, 100, lookup=model.lookup), verbose=0)
    ((raw, _),) = impressions.to_dataset(model.features, 100)
    exported = model
    if not raw_ids:
        exported = Ranker(model.features, interests=[RecentInterest(2)], hidden_units=(8,))
        exported.build()
        exported.set_weights(model.get_weights())
        ((columns, _),) = impressions.to_dataset(model.features, 100, lookup=model.lookup)
        raw = {name: tf.cast(columns.get(name, column), tf.int64) for name, column in raw.items()}
    signatures = tf.saved_model.load(str(export_model(exported, tmp_path))).signatures
    probability = signatures["serving_default"](**raw)["probability"]
    np.testing.assert_allclose(probability, tf.sigmoid(logits), rtol=1e-5)
    ranked = signatures["rank"](**{**raw, "item_id": raw["item_id"][:, tf.newaxis]})["probability"]
    np.testing.assert_allclose(ranked[:, 0], probability, rtol=1e-5)


def test_ranking_from_a_state_takes_the_timestamp_too(impressions: Impressions, model: Ranker, tmp_path: Path) -> None:
    tf.keras.utils.set_random_seed(0)
    pooled = Ranker(lookup=model.lookup, interests=[PoolingInterest()], hidden_units=(8,))
    signatures = tf.saved_model.load(str(export_model(pooled, tmp_path, warmup=False))).signatures
    ((raw, _),) = impressions.to_dataset(model.features, 100)
    raw["item_id"] = raw["item_id"][:, tf.newaxis]
    history = {name: raw[name] for name in ("history_item_id", "history_length")}
    state = signatures["user_state"](**history)
    found = signatures["rank_from_state"](item_id=raw["item_id"], timestamp=raw["timestamp"], **state)["probability"]
    np.testing.assert_allclose(found, signatures["rank"](**raw)["probability"], rtol=1e-5)
