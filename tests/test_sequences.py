"""Several sequences, features of several values and floats of behaviours: from a log to an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import Age, Feature, FeatureLookup, Features, Ranker, Sequence
from keras_eta.datasets import Impressions, Interactions
from keras_eta.export import export_model
from keras_eta.export.examples import make_example
from keras_eta.interest import FullInterest, PoolingInterest, RecentInterest, SIMHard

GENRES = Feature("genres", "string", 4, max_values=2)
FEATURES = Features(
    item_id=Feature("item_id", embedding_dim=8),
    item_attributes=(Feature("kind", "string", 3), GENRES),
    behaviour_attributes=(Feature("dwell", "float32", mean=0.0, std=1.0),),
    user=(Feature("user_id", embedding_dim=2), Feature("tags", embedding_dim=3, max_values=3)),
    max_history_length=4,
    age=Age((10, 100)),
    sequences=(
        Sequence(
            "purchases",
            (Feature("price", "float32", mean=0.0, std=1.0), Feature("store", embedding_dim=2)),
            max_length=3,
        ),
    ),
)
ITEM_GENRES = {1: ["a", "b", "c"], 2: [], 3: ["b"], 4: ["c", "a"]}
ITEM_KIND = {1: "x", 2: "y", 3: "x", 4: "z"}
TAGS = {7: [1], 8: [2, 1, 3, 2]}


def _items(ids: list[int]) -> dict[str, Any]:
    return {"item_id": ids, "kind": [ITEM_KIND[i] for i in ids], "genres": [ITEM_GENRES[i] for i in ids]}


CLICKS = {
    "user_id": [7, 7, 7, 7, 7, 7, 8, 8],
    "timestamp": [1, 2, 3, 4, 5, 60, 3, 9],
    "dwell": [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5],
    "tags": [TAGS[user] for user in [7] * 6 + [8] * 2],
    **_items([1, 2, 3, 4, 1, 2, 3, 4]),
}
PURCHASES = {
    "user_id": [7, 7, 8, 8],
    "timestamp": [2, 4, 3, 5],
    "price": [9.5, 8.5, 7.5, 6.5],
    "store": [5, 6, 5, 6],
    **_items([4, 2, 1, 3]),
}


def _impressions() -> Impressions:
    clicks, purchases = Interactions.from_columns(CLICKS), Interactions.from_columns(PURCHASES)
    label = np.array([0, 1, 0, 1, 0, 1, 1, 0])
    impressions = Impressions.from_interactions(clicks, lambda log: label, min_history=0, outcomes=("dwell",))
    return impressions.with_sequence("purchases", purchases)


def _lookup(features: Features = FEATURES) -> FeatureLookup:
    lookup = FeatureLookup(features)
    lookup.adapt(_impressions().to_dataset(features, 3))
    return lookup


def make_model(*units: Any, features: Features = FEATURES) -> Ranker:
    tf.keras.utils.set_random_seed(1)
    model = Ranker(lookup=_lookup(features), interests=list(units), hidden_units=(5,))
    model.build()
    for variable in model.trainable_variables:
        variable.assign(tf.random.normal(variable.shape))
    return model


def expected_columns(row: int) -> dict[str, Any]:
    """The raw columns of an impression, by a loop over both logs."""
    user, now = CLICKS["user_id"][row], CLICKS["timestamp"][row]
    columns: dict[str, Any] = {
        "user_id": user,
        "timestamp": now,
        "item_id": CLICKS["item_id"][row],
        "kind": CLICKS["kind"][row],
        "genres": CLICKS["genres"][row][:2],
        "tags": TAGS[user][:3],
    }
    for name, log, longest, own in (("history", CLICKS, 4, ["dwell"]), ("purchases", PURCHASES, 3, ["price", "store"])):
        before = [i for i in range(len(log["user_id"])) if log["user_id"][i] == user and log["timestamp"][i] < now]
        before = before[::-1][:longest]
        columns[f"{name}_length"] = len(before)
        for column in ["item_id", "kind", "timestamp", *own]:
            columns[f"{name}_{column}"] = [log[column][i] for i in before]
        columns[f"{name}_genres"] = [log["genres"][i][:2] for i in before]
    return columns


def _unpadded(batch: dict[str, np.ndarray], row: int) -> dict[str, Any]:
    """A row of a raw batch, cut to its lengths."""
    columns: dict[str, Any] = {}
    for name, column in batch.items():
        value = np.asarray(column[row]).tolist()
        sequence = next((s for s in ("history", "purchases") if name.startswith(f"{s}_")), None)
        if name.endswith("genres_length") or name == "tags_length":
            continue
        if sequence and name != f"{sequence}_length":
            value = value[: batch[f"{sequence}_length"][row]]
        if f"{name}_length" in batch:
            lengths = batch[f"{name}_length"][row].tolist()
            value = [v[:n] for v, n in zip(value, lengths[: len(value)], strict=True)] if sequence else value[:lengths]
        columns[name] = value
    return json.loads(json.dumps(columns, default=bytes.decode))


def test_raw_batches_equal_a_loop_over_the_logs() -> None:
    (batch, _), *rest = _impressions().to_dataset(FEATURES, 8).as_numpy_iterator()
    assert not rest
    for row in range(8):
        assert _unpadded(batch, row) == expected_columns(row)
    assert batch["genres"].shape == (8, 2)
    assert batch["purchases_genres"].shape == (8, 3, 2)


def test_batches_of_indices_are_the_lookup_of_raw_batches() -> None:
    lookup = _lookup()
    raw = _impressions().to_dataset(FEATURES, 8)
    indexed = _impressions().to_dataset(FEATURES, 8, lookup=lookup)
    (raw_columns, _), (columns, _) = next(iter(raw)), next(iter(indexed))
    expected = lookup(raw_columns)
    assert set(columns) == set(expected)
    for name, column in expected.items():
        np.testing.assert_array_equal(columns[name], column, name)
    # Genres by frequency in the raw batches: padding is 0, one out-of-vocabulary bucket, then the vocabulary.
    assert columns["genres"].numpy()[0].tolist() == lookup.encode("genres", ["a", "b"]).tolist()
    assert columns["genres"].numpy()[1].tolist() == [0, 0]


def test_interest_is_read_from_its_own_sequence_with_means_of_values() -> None:
    model = make_model(PoolingInterest(sequence="purchases"), RecentInterest(3))
    (columns, _) = next(iter(_impressions().to_dataset(model.features, 8, lookup=model.lookup)))
    columns = {name: column.numpy() for name, column in columns.items()}
    tables = {name: table.embeddings.numpy() for name, table in model.embeddings.items()}
    vectors = model(columns, return_scores=True).interests["pooling_interest"].vector.numpy()[:, 0]
    for row in range(8):
        found = []
        for i in range(columns["purchases_length"][row]):
            genres = [g for g in columns["purchases_genres"][row, i] if g]
            found.append(
                np.concatenate(
                    [
                        tables["item_id"][columns["purchases_item_id"][row, i]],
                        tables["kind"][columns["purchases_kind"][row, i]],
                        np.mean([tables["genres"][g] for g in genres], axis=0) if genres else np.zeros(4),
                        [columns["purchases_price"][row, i]],
                        tables["store"][columns["purchases_store"][row, i]],
                        tables["history_age"][columns["purchases_age"][row, i]],
                    ]
                )
            )
        expected = np.mean(found, axis=0) if found else np.zeros(vectors.shape[1])
        np.testing.assert_allclose(vectors[row], expected, atol=1e-6)


def _served(path: Path, model: Ranker) -> Any:
    return tf.saved_model.load(str(export_model(model, path))).signatures


def raw_batch() -> dict[str, np.ndarray]:
    (batch, _) = next(_impressions().to_dataset(FEATURES, 8).as_numpy_iterator())
    return dict(batch)


def test_export_answers_as_the_model(tmp_path: Path) -> None:
    model = make_model(FullInterest(), SIMHard(2, "kind", sequence="purchases"))
    signatures, batch = _served(tmp_path, model), raw_batch()
    lookup = model.lookup
    assert lookup is not None
    expected = tf.sigmoid(model(lookup(batch))).numpy()

    pointwise = signatures["serving_default"](**{name: tf.constant(x) for name, x in batch.items()})["probability"]
    np.testing.assert_allclose(pointwise, expected, atol=1e-6)

    items = ("item_id", "kind", "genres", "genres_length")
    rank = {name: x[:, None] if name in items else x for name, x in batch.items()}
    assert signatures["rank"].structured_input_signature[1]["genres"].shape.as_list() == [None, None, 2]
    explained = signatures["explain"](**{name: tf.constant(x) for name, x in rank.items()})
    np.testing.assert_allclose(explained["probability"][:, 0], expected, atol=1e-6)
    # The last unit's behaviours are purchases: of user 7 at time 60 items 2 and 4; its candidate, item 2, has kind y.
    assert explained["positions"].numpy()[5, 0].tolist() == [0, -1]
    assert explained["full_interest_positions"].shape == (8, 1, 4)

    records = []
    for row in range(8):
        columns = expected_columns(row)
        lengths = {f"{s}_genres_length": [len(g) for g in columns[f"{s}_genres"]] for s in ("history", "purchases")}
        flat = {f"{s}_genres": [g for some in columns[f"{s}_genres"] for g in some] for s in ("history", "purchases")}
        columns = {
            k: v for k, v in {**columns, **flat, **lengths}.items() if k not in ("history_length", "purchases_length")
        }
        arrays = {}
        for name, value in columns.items():
            values = np.atleast_1d(
                np.array([v.encode() for v in np.ravel(value)], object)
                if "kind" in name or name.endswith("genres")
                else np.asarray(value)
            )
            arrays[name] = values if values.size or values.dtype == object else values.astype(batch[name].dtype)
        records.append(make_example(arrays).SerializeToString())
    np.testing.assert_allclose(
        signatures["examples"](examples=tf.constant(records))["probability"], expected, atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"purchases_price": np.zeros((8, 2), np.float32)},
            "`purchases_.*` must have as many behaviours as `purchases_",
        ),
        (
            {"purchases_length": np.full(8, 4)},
            "`purchases_length` must lie between 0 and the number of purchases columns",
        ),
        ({"genres_length": np.full(8, 3)}, "`genres_length` must lie between 0 and the number of values, 2"),
        ({"tags": np.zeros((8, 4), np.int64)}, r"`tags` must have shape \[N, 3\]"),
        ({"purchases_price": np.full((8, 3), np.nan, np.float32)}, "`purchases_price` must be finite"),
    ],
)
def test_export_refuses_what_does_not_fit(tmp_path_factory: Any, change: dict[str, Any], text: str) -> None:
    signatures = _shared_export(tmp_path_factory)
    inputs = {**raw_batch(), **change}
    with pytest.raises(tf.errors.InvalidArgumentError, match=text):
        signatures["serving_default"](**{name: tf.constant(x) for name, x in inputs.items()})


_EXPORTS: list[Any] = []


def _shared_export(tmp_path_factory: Any) -> Any:
    if not _EXPORTS:
        _EXPORTS.append(_served(tmp_path_factory.mktemp("export"), make_model(PoolingInterest(sequence="purchases"))))
    return _EXPORTS[0]


def test_states_need_only_the_sequence_of_their_unit(tmp_path: Path) -> None:
    model = make_model(PoolingInterest(sequence="purchases"), FullInterest())
    signatures, batch = _served(tmp_path, model), raw_batch()
    inputs = {name: tf.constant(x) for name, x in batch.items()}
    wanted = signatures["user_state"].structured_input_signature[1]
    assert "purchases_price" in wanted
    assert "history_item_id" not in wanted
    assert "tags" not in wanted
    state = signatures["user_state"](**{name: inputs[name] for name in wanted})
    ranked = {
        name: x[:, None] if name in ("item_id", "kind", "genres", "genres_length") else x for name, x in inputs.items()
    }
    wanted = signatures["rank_from_state"].structured_input_signature[1]
    assert "purchases_item_id" not in wanted
    assert "history_dwell" in wanted
    answer = signatures["rank_from_state"](**{name: {**ranked, **state}[name] for name in wanted})
    np.testing.assert_allclose(answer["probability"], signatures["rank"](**ranked)["probability"], atol=1e-6)


def test_training_learns_every_table() -> None:
    model = make_model(PoolingInterest(sequence="purchases", own_embeddings=True), FullInterest())
    assert "store" in model.own_embeddings["pooling_interest"].tables
    assert "store" in model.embeddings
    assert "tags" not in model.own_embeddings["pooling_interest"].tables
    before = {variable.name: variable.numpy() for variable in model.trainable_variables}
    model.compile(tf.keras.optimizers.SGD(0.1))
    model.fit(_impressions().to_dataset(model.features, 8, lookup=model.lookup), verbose=0)
    moved = {v.name for v in model.trainable_variables if not np.array_equal(before[v.name], v.numpy())}
    assert {"embeddings/genres/embeddings:0", "embeddings/tags/embeddings:0"} <= moved
    assert "pooling_interest_embeddings/store/embeddings:0" in moved
    # No unit reads purchases by the shared tables.
    assert "embeddings/store/embeddings:0" not in moved


def test_description_round_trip_and_old_files() -> None:
    assert Features.from_dict(json.loads(json.dumps(FEATURES.to_dict()))) == FEATURES
    old = Features(Feature("item_id", vocabulary_size=3)).to_dict()
    del old["sequences"], old["age"]
    del old["item_id"]["max_values"]
    assert Features.from_dict(old) == Features(Feature("item_id", vocabulary_size=3))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"sequences": [Sequence("a"), Sequence("a")]}, "Used twice: \\['a_item_id', 'a_length'\\]"),
        ({"sequences": [Sequence("history")]}, "Used twice: \\['history_item_id'"),
        (
            {"sequences": [Sequence("a", (Feature("x"),))], "behaviour_attributes": [Feature("x", "string")]},
            "A name must stand for one feature",
        ),
        (
            {"sequences": [Sequence("a", (Feature("x"),))], "user": [Feature("x", "string")]},
            "must stand for one feature",
        ),
        ({"sequences": [Sequence("a", (Feature("item_id"),))]}, "Used twice: \\['a_item_id'\\]"),
        ({"item_attributes": [GENRES], "hashed": ["genres"]}, "with one value, among \\['item_id'\\]"),
        ({"item_id": Feature("item_id", max_values=2)}, "with one value"),
        ({"user": [GENRES, Feature("genres_length")]}, "Used twice: \\['genres_length'\\]"),
    ],
)
def test_refused_features(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Features(**{"item_id": Feature("item_id"), **arguments})


def test_other_refusals() -> None:
    with pytest.raises(TypeError, match="`sequences` must hold Sequence objects"):
        Features(Feature("item_id"), sequences=("clusters",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`max_values` of feature 'x' must be a positive integer"):
        Feature("x", max_values=0)
    with pytest.raises(ValueError, match="and the feature an id"):
        Feature("x", "float32", max_values=2)
    with pytest.raises(ValueError, match="`max_length` must be a positive integer"):
        Sequence("a", max_length=0)
    with pytest.raises(
        ValueError, match=r"Interest unit 'full_interest' needs one of the sequences.*\['history', 'purch"
    ):
        make_model(FullInterest(sequence="clusters"))
    with pytest.raises(ValueError, match="`category` among the item attributes that are ids with one value"):
        make_model(SIMHard(2, "genres"))
    clicks = Interactions.from_columns(CLICKS)
    impressions = Impressions.from_interactions(clicks, lambda log: np.zeros(len(log), int), min_history=0)
    with pytest.raises(ValueError, match="no sequence 'purchases', which `features` has"):
        impressions.to_dataset(FEATURES, 2)
    with pytest.raises(ValueError, match="There is a sequence 'history' already"):
        impressions.with_sequence("history", clicks)
    single = Features(Feature("item_id"), user=(Feature("tags"),))
    with pytest.raises(
        ValueError, match="has `max_values`=None, but the column of the impressions holds several values"
    ):
        impressions.to_dataset(single, 2)
    model = make_model(PoolingInterest(sequence="purchases"))
    columns = next(iter(_impressions().to_dataset(model.features, 8, lookup=model.lookup)))[0]
    with pytest.raises(ValueError, match="purchases_item_id and purchases_price must hold as many behaviours"):
        model({**columns, "purchases_price": columns["purchases_price"][:, :2]})


def test_lists_of_a_log_are_checked_and_counted(capsys: Any) -> None:
    columns = {
        "user_id": [1, 1, 1, 1],
        "item_id": [4, 3, 2, 2],
        "timestamp": [4, 3, 2, 2],
        "genres": [["a"], ["b", None], ["c", "a"], ["c", "a"]],
        "codes": [[1], [2], [3, 4], [3, 4]],
    }
    log = Interactions.from_columns(columns)
    assert log["timestamp"].tolist() == [2, 4]
    assert [values.tolist() for values in log["genres"]] == [["c", "a"], ["a"]]
    assert [values.tolist() for values in log["codes"]] == [[3, 4], [1]]
    lookup = FeatureLookup(Features(Feature("item_id"), item_attributes=(Feature("codes", max_values=1),)))
    lookup.adapt(log.columns)
    assert lookup.encode("codes", [1, 3, 4]).tolist() == [2, 3, 1]
    assert log.columns["genres"].values.categories.tolist() == ["a", "c"]
    assert "1 missing genres (line 2), 1 duplicate row (line 4)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'codes' must hold lists of integers or strings"):
        Interactions.from_columns({**columns, "codes": [[1.5], [2.5], [3.5], [4.5]]})
    with pytest.raises(ValueError, match="Column 'item_id' must have one dimension"):
        Interactions.from_columns({**columns, "item_id": np.ones((4, 2), int)})
