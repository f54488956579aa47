"""Training on: rows keep their place, new ids follow them, both optimisers go on, fingerprints are exact."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import ops
from keras_eta.interest import ETAInterest
from tests.tfx_pipeline.continuous.events import LAYOUT, make_loop
from tests.tfx_pipeline.transformed import serialized
from tfx_pipeline.continuous.impressions import Impressions
from tfx_pipeline.continuous.training import UntrainableError, train_on, write_model
from tfx_pipeline.model_config import Model
from tfx_pipeline.training.accumulators import accumulators
from tfx_pipeline.training.warm_start import load_base

NUM_BITS = 8


def impressions(items: range, rows: int = 64, label: int | None = None) -> Impressions:
    """Impressions of some items, each with a history of two behaviours."""
    rng = np.random.default_rng(items.start)
    made = []
    for row in range(rows):
        candidate, *history = rng.choice(items, 3).tolist()
        made.append(
            {
                "user_id": row % 8,
                "item_id": candidate,
                "timestamp": 1_000 + row,
                "label": candidate % 2 if label is None else label,
                "history_item_id": history,
                "history_clicked": [1, 0],
                "history_timestamp": [900, 800],
            }
        )
    labels = np.array([row["label"] for row in made])
    records = [serialized(row, LAYOUT.features) for row in made]
    return Impressions(records, labels, np.array([row["user_id"] for row in made]), (1_000, 1_063))


def positives_of(of: Impressions) -> Counter[int]:
    examples = [tf.train.Example.FromString(record).features.feature for record in of.records]
    return Counter(x["item_id"].int64_list.value[0] for x in examples if x["label"].int64_list.value[0])


def none_counted(name: str, id_: object) -> int:
    raise AssertionError


def test_training_goes_on_where_the_last_version_stopped(tmp_path: Path) -> None:
    units = (ETAInterest(top_k=2, num_bits=NUM_BITS, num_heads=1, key_dim=2, distance_edges=()),)
    config = dataclasses.replace(
        make_loop(tmp_path).config,
        model=Model(interests=units, hidden_units=(4,), retrieval_weight=0.0, id_dropout=0.0),
    )
    first, added = train_on(config, None, impressions(range(10, 20)), 1, none_counted)
    assert added == {"item_id": 10, "clicked": 2}
    path = tmp_path / "model"
    write_model(first, config, None, (1_000, 1_063), str(path))
    base = load_base(str(path))
    old = base.vocabularies["item_id"].tolist()
    assert sorted(old) == list(range(10, 20))

    # A step of no size shows what was carried over.
    still = dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, embedding_learning_rate=1e-30, dense_learning_rate=1e-30),
    )
    second: Any
    second, added = train_on(still, base, impressions(range(15, 25)), 2, none_counted)
    assert added == {"item_id": 5, "clicked": 0}
    ids, places = second.lookup.tables["item_id"].lookup_table.export()
    order = ids.numpy()[np.argsort(places.numpy())].tolist()
    assert order[:10] == old
    assert sorted(order[10:]) == list(range(20, 25))

    tables = [model.feature_embedding.tables["item_id"].embeddings.numpy() for model in (first, second)]
    assert [len(table) for table in tables] == [12, 17]
    np.testing.assert_array_equal(tables[1][:12], tables[0])
    unit = second.interests[0]
    (fingerprints,) = [x for x in second.variables if getattr(x, "name", "").endswith("/fingerprints:0")]
    (planes,) = [x for x in second.variables if getattr(x, "name", "").endswith("/planes:0")]
    np.testing.assert_array_equal(fingerprints, ops.simhash(tables[1], planes))
    assert unit is not None

    # How often each item was a positive so far.
    positives = positives_of(impressions(range(10, 20)))
    assert first.popularity is not None
    assert dict(zip(old, first.popularity.counts.numpy()[2:].tolist(), strict=True)) == {
        item: positives[item] for item in old
    }
    positives += positives_of(impressions(range(15, 25)))
    assert second.popularity.counts.numpy()[2:].tolist() == [positives[item] for item in order]
    assert max(positives.values()) > 2

    # Adagrad's accumulators and Adam's steps: two batches of 32 before, two after.
    was, now = ({name: x.numpy() for name, x in accumulators(model).items()} for model in (first, second))
    (name,) = [name for name in was if "item_id" in name]
    assert (now[name][:12] >= was[name]).all()
    assert now[name][1:12].sum() > was[name][1:12].sum()
    assert [int(model.optimizer.optimizers[1].iterations) for model in (first, second)] == [2, 4]


def test_losses_that_are_no_numbers_make_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_loop(tmp_path).config
    history = tf.keras.callbacks.History()
    history.history = {"loss": [float("nan")]}
    monkeypatch.setattr("keras_eta.Ranker.fit", lambda *arguments, **options: history)
    with pytest.raises(UntrainableError, match="The loss is not finite"):
        train_on(config, None, impressions(range(4)), 1, none_counted)


def test_first_impressions_must_have_a_value_of_each_feature(tmp_path: Path) -> None:
    config = make_loop(tmp_path).config
    row: dict[str, Any] = {"user_id": 1, "item_id": 2, "timestamp": 3, "label": 1}
    row |= {"history_item_id": [], "history_clicked": [], "history_timestamp": []}
    alone = Impressions([serialized(row, LAYOUT.features)], np.array([1]), np.array([1]), (3, 3))
    with pytest.raises(
        UntrainableError, match="a first one can't be trained: `data` holds no value of feature 'clicked'"
    ):
        train_on(config, None, alone, 1, none_counted)


def test_rare_ids_get_no_rows(tmp_path: Path) -> None:
    features = dataclasses.replace(LAYOUT.features, item_id=dataclasses.replace(LAYOUT.features.item_id, min_count=2))
    config = make_loop(tmp_path, dataclasses.replace(LAYOUT, features=features)).config
    model: Any
    model, added = train_on(config, None, impressions(range(4)), 1, lambda name, id_: 2 if id_ in (1, 3) else 1)
    assert added == {"item_id": 2, "clicked": 2}
    assert sorted(model.lookup.tables["item_id"].lookup_table.export()[0].numpy()) == [1, 3]


def test_other_features_and_other_architectures_are_refused(tmp_path: Path) -> None:
    config = make_loop(tmp_path).config
    model, _ = train_on(config, None, impressions(range(4)), 1, none_counted)
    write_model(model, config, None, (1_000, 1_063), str(tmp_path / "model"))
    base = load_base(str(tmp_path / "model"))
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, hidden_units=(9,)))
    with pytest.raises(ValueError, match=r"has another architecture than the ranker of this loop\."):
        train_on(wider, base, impressions(range(4)), 2, none_counted)
    features = dataclasses.replace(LAYOUT.features, max_history_length=9)
    other = dataclasses.replace(config, layout=dataclasses.replace(LAYOUT, features=features))
    with pytest.raises(ValueError, match=r"reads other features than the layout of this loop\."):
        train_on(other, base, impressions(range(4)), 2, none_counted)
