"""Exports that look attributes up: ids alone get the scores of the same ids with their attributes, to the bit."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_eta import Age, Feature, FeatureLookup, Features, Ranker, Sequence
from keras_eta.contract import Contract
from keras_eta.export import AttributeTable, export_model
from keras_eta.export.examples import make_example
from keras_eta.export.joins import Joins
from keras_eta.interest import MIMN, ETAInterest, RecentInterest

# The function of the same name hides the module.
_counting_pays = importlib.import_module("keras_eta.ops.hamming_top_k")._counting_pays

Columns = dict[str, np.ndarray]

MEAN, STD = 3.7, 1.3
# Of items by number: a shelf, topics and a price. The last ones are cold: training saw none of them, but their shelves.
SHELVES: list[bytes | None] = [b"dairy", b"bread\0", b"\xff", b"", None, b"dairy", b"unseen shelf", b"bread\0", b"\xff"]
TOPICS: list[list[int] | None] = [[4, 5, 6, 4], [], [5], None, [6, -7], [99], [4], [6, 5], [5, 5, 5]]
PRICES = [1.5, 3.25, None, -2.0, 1e6, 0.1, 3.7, 2.0, 8.0]
NUM_TRAINED = 6
CITIES, SPENT = [b"Oslo", None, b"Rome"], [10.0, 20.5, None]
# Numbers of items and users that no table has.
UNKNOWN_ITEM, UNKNOWN_USER = 50, 7
LENGTHS = np.array([0, 2, 5])


class Case(NamedTuple):
    """A model, and ids as it spells them.

    Attributes:
        features: of the model.
        model: not trained.
        lookup: the model's.
        key: the column of the user's id.
        item_ids: of the items by number.
        user_ids: of the users by number.
        unknown_shelf: one that falls into the first of the buckets of unknown shelves.
    """

    features: Features
    model: Ranker
    lookup: FeatureLookup
    key: str
    item_ids: np.ndarray
    user_ids: np.ndarray
    unknown_shelf: bytes


def features_of(dtype: str) -> Features:
    """The string one reads no user id."""
    user_id = (Feature("user_id", embedding_dim=2),) if dtype == "int64" else ()
    return Features(
        item_id=Feature("item_id", dtype, embedding_dim=8),
        item_attributes=(
            Feature("shelf/1", "string", embedding_dim=4, num_oov_indices=3),
            Feature("topics", embedding_dim=4, max_values=3),
            Feature("price", "float32", mean=MEAN, std=STD),
        ),
        behaviour_attributes=(Feature("action", embedding_dim=2),),
        user=(*user_id, Feature("city", "string", embedding_dim=2), Feature("spent", "float32", mean=15.0, std=5.0)),
        context=(Feature("hour", "float32", mean=0.0, std=1.0),),
        hashed=("item_id", "shelf/1"),
        age=Age((10, 100), embedding_dim=2),
        max_history_length=6,
        sequences=(Sequence("carts", max_length=4),),
    )


@pytest.fixture(scope="module", params=["string", "int64"])
def case(request: pytest.FixtureRequest) -> Case:
    dtype = request.param
    tf.keras.utils.set_random_seed(7)
    features = features_of(dtype)
    numbers = np.arange(60)
    ids = numbers * 10**15 - 3 if dtype == "int64" else np.array([b"\0%d\xff\0" % n for n in numbers], object)
    lookup = FeatureLookup(features)
    shelves = np.array([b"dairy", b"bread\0", b"\xff", b"", b"other"], object)
    lookup.adapt(
        {"item_id": ids[:NUM_TRAINED], "shelf/1": shelves, "topics": [[4, 5], [6, -7]], "action": np.arange(3)}
        | {"user_id": numbers[:2], "city": np.array([b"Oslo", b"Rome"], object)}
    )
    # States of users take signatures of their own, and time to trace.
    interests = [ETAInterest(3)] if dtype == "int64" else [RecentInterest(2, sequence="carts"), ETAInterest(3), MIMN()]
    model = Ranker(lookup=lookup, interests=interests, hidden_units=(6,))
    model.build()
    for variable in model.trainable_variables:
        variable.assign(tf.random.normal(variable.shape, stddev=0.5))
    model.refresh()
    users = np.arange(10) if dtype == "int64" else np.array([b"user %d\0" % n for n in range(10)], object)
    spellings = (b"unknown %d" % n for n in range(100))
    unknown_shelf = next(text for text in spellings if lookup.encode("shelf/1", [text])[0] == 1)
    return Case(features, model, lookup, "user_id" if dtype == "int64" else "account", ids, users, unknown_shelf)


def tables_of(case: Case) -> list[AttributeTable]:
    items = pd.DataFrame(
        {"item_id": case.item_ids[: len(SHELVES)], "shelf/1": SHELVES, "topics": TOPICS, "price": PRICES}
    )
    users = pd.DataFrame({case.key: case.user_ids[:3], "city": CITIES, "spent": SPENT})
    return [AttributeTable.from_frame(items, case.features), AttributeTable.from_frame(users, case.features, case.key)]


def known(values: list[Any], number: int, unknown: Any) -> Any:
    value = values[number] if number < len(values) else None
    return unknown if value is None else value


def attributes(case: Case, prefix: str, numbers: np.ndarray) -> Columns:
    """What a request sends of items beside their ids."""
    topics = np.zeros((*numbers.shape, 3), np.int64)
    lengths, shelves = np.zeros(numbers.shape, np.int64), np.empty(numbers.shape, object)
    prices = np.zeros(numbers.shape, np.float32)
    for place in np.ndindex(numbers.shape):
        found = known(TOPICS, numbers[place], [12_345])[:3]
        topics[place][: len(found)], lengths[place] = found, len(found)
        shelves[place] = known(SHELVES, numbers[place], case.unknown_shelf)
        prices[place] = known(PRICES, numbers[place], MEAN)
    return {
        f"{prefix}shelf/1": shelves,
        f"{prefix}topics": topics,
        f"{prefix}topics_length": lengths,
        f"{prefix}price": prices,
    }


def requests(case: Case) -> tuple[Columns, Columns]:
    """Raw columns of `rank`: what requests with ids alone have, and what the tables give."""
    rng = np.random.default_rng(3)
    candidates = rng.permuted(np.tile([*range(len(SHELVES)), UNKNOWN_ITEM], (3, 1)), axis=1)
    behaviours = rng.integers(0, len(SHELVES) + 1, (3, 5))
    behaviours[behaviours == len(SHELVES)] = UNKNOWN_ITEM
    carts = rng.integers(0, len(SHELVES), (3, 3))
    users = np.array([0, 1, UNKNOWN_USER])
    ids = {
        "item_id": case.item_ids[candidates],
        "history_item_id": case.item_ids[behaviours],
        "history_action": rng.integers(0, 3, (3, 5)),
        "history_timestamp": 1_000 - np.cumsum(rng.integers(1, 60, (3, 5)), axis=1),
        "history_length": LENGTHS,
        "carts_item_id": case.item_ids[carts],
        "carts_timestamp": np.full((3, 3), 900),
        "carts_length": np.array([3, 0, 1]),
        "hour": rng.random(3, np.float32),
        "timestamp": np.full(3, 1_000),
        case.key: case.user_ids[users],
    }
    given = {
        **attributes(case, "", candidates),
        **attributes(case, "history_", behaviours),
        **attributes(case, "carts_", carts),
        "city": np.array([known(CITIES, number, b"nowhere") for number in users], object),
        "spent": np.array([known(SPENT, number, 15.0) for number in users], np.float32),
    }
    return ids, given


class Exported(NamedTuple):
    """A version, loaded.

    Attributes:
        path: of the version.
        loaded: the SavedModel, without which its signatures lose their variables.
    """

    path: Path
    loaded: Any

    @classmethod
    def of(cls, model: Ranker, path: Path, **arguments: Any) -> Exported:
        version = export_model(model, path, warmup=False, **arguments)
        return cls(version, tf.saved_model.load(str(version)))

    @property
    def inputs(self) -> dict[str, set[str]]:
        """The inputs of each signature."""
        saved_model = saved_model_pb2.SavedModel.FromString((self.path / "saved_model.pb").read_bytes())
        signatures = saved_model.meta_graphs[0].signature_def
        return {name: set(signature.inputs) for name, signature in signatures.items() if signature.inputs}

    def call(self, name: str, columns: Columns) -> Columns:
        """What a signature answers, given those of the columns that it takes."""
        asked = {column.replace("/", "_"): columns[column] for column in self.inputs[name]}
        outputs = self.loaded.signatures[name](**{column: tf.constant(values) for column, values in asked.items()})
        return {output: values.numpy() for output, values in outputs.items()}


@pytest.fixture(scope="module")
def plain(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported.of(case.model, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def joined(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported.of(case.model, tmp_path_factory.mktemp("joined"), tables=tables_of(case))


ITEM_COLUMNS = ("shelf/1", "topics", "topics_length", "price")
GIVEN = {f"{prefix}{name}" for prefix in ("", "history_", "carts_") for name in ITEM_COLUMNS} | {"city", "spent"}


def assert_equal(found: Columns, expected: Columns) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_ids_are_encoded_as_their_attributes_are(case: Case) -> None:
    ids, given = requests(case)
    tables = tables_of(case)
    found = Joins(case.model, tables).encode(constants(ids))
    expected = case.lookup(constants(ids | given))
    assert {name: x.dtype for name, x in found.items()} == {name: x.dtype for name, x in expected.items()}
    assert_equal({name: x.numpy() for name, x in found.items()}, {name: x.numpy() for name, x in expected.items()})
    # What stands for the price that is missing is the model's: the table stays as it is.
    assert tables[0].attributes[2].values[2] == 0.0
    # By hand, of the item that the table lacks and of padding.
    place = (0, ids["item_id"][0].tolist().index(case.item_ids[UNKNOWN_ITEM]))
    assert [found[name].numpy()[place].tolist() for name in ("shelf/1", "topics")] == [1, [1, 0, 0]]
    assert found["price"].numpy()[place] == np.float32(MEAN)
    assert [found[f"history_{name}"].numpy()[1, 2:].any() for name in ("shelf/1", "topics", "price")] == [False] * 3


def constants(columns: Columns) -> dict[str, tf.Tensor]:
    return {name: tf.constant(values) for name, values in columns.items()}


def test_signatures_lack_what_tables_give_and_have_the_keys(case: Case, plain: Exported, joined: Exported) -> None:
    ids, _ = requests(case)
    wanted = {name: columns - GIVEN for name, columns in plain.inputs.items()}
    for name in {"rank", "explain", "serving_default", "rank_from_state"} & wanted.keys():
        wanted[name] |= {case.key}
    assert joined.inputs == wanted
    assert joined.inputs["rank"] == {*ids}
    assert joined.inputs["examples"] == {"examples"}


@pytest.mark.parametrize("name", ["rank", "explain"])
def test_ids_get_the_answers_of_their_attributes(case: Case, plain: Exported, joined: Exported, name: str) -> None:
    ids, given = requests(case)
    expected = plain.call(name, ids | given)
    assert_equal(joined.call(name, ids), expected)
    # Without an attribute of influence the same would prove nothing.
    for column in ("shelf/1", "history_price", "topics", "city", "spent"):
        other = ids | given | {column: np.roll(given[column], 1, axis=-1 if column != "topics" else 1)}
        assert (plain.call(name, other)["probability"] != expected["probability"]).any(), column


def test_pointwise_rows_and_examples_get_the_answers_of_their_attributes(
    case: Case, plain: Exported, joined: Exported
) -> None:
    ids, given = requests(case)
    item = {"item_id", *ITEM_COLUMNS}
    for number in (0, 4):
        rows = {name: x[:, number] if name in item else x for name, x in (ids | given).items()}
        expected = plain.call("serving_default", rows)
        assert_equal(joined.call("serving_default", rows), expected)
        examples = [example_of(joined.inputs["serving_default"], rows, row) for row in range(3)]
        assert_equal(joined.call("examples", {"examples": np.array(examples, object)}), expected)


def example_of(names: set[str], rows: Columns, row: int) -> bytes:
    """A serialized tf.Example of a row."""
    columns = {}
    for name in names - {"history_length", "carts_length"}:
        length = rows.get(f"{name.split('_')[0]}_length")
        columns[name] = np.ravel(rows[name][row : row + 1])[: None if length is None else length[row]]
    return make_example(columns).SerializeToString()


# The model of int64 ids has none.
@pytest.mark.parametrize("case", ["string"], indirect=True, scope="module")
def test_user_states_of_ids_are_those_of_their_attributes(case: Case, plain: Exported, joined: Exported) -> None:
    ids, given = requests(case)
    state = plain.call("user_state", ids | given)
    assert_equal(joined.call("user_state", ids), state)
    assert_equal(joined.call("update_state", ids | state), plain.call("update_state", ids | given | state))
    assert_equal(joined.call("rank_from_state", ids | state), plain.call("rank_from_state", ids | given | state))


def test_no_candidates_and_no_behaviours(case: Case, plain: Exported, joined: Exported) -> None:
    ids, given = requests(case)
    none = {
        name: x[:, :0] if name.startswith(("history_", "carts_")) and x.ndim > 1 else x
        for name, x in (ids | given).items()
    }
    none |= {"history_length": np.zeros(3, int), "carts_length": np.zeros(3, int)}
    assert_equal(joined.call("rank", none), plain.call("rank", none))
    empty = {name: x[:, :0] if name in ("item_id", *ITEM_COLUMNS) else x for name, x in none.items()}
    assert joined.call("rank", empty)["probability"].shape == (3, 0)


def test_a_reloaded_model_compiled_by_xla_gives_the_same_bits(tmp_path: Path) -> None:
    tf.keras.utils.set_random_seed(1)
    features = Features(
        item_id=Feature("item_id", "string", embedding_dim=8),
        item_attributes=(Feature("shelf", "string", embedding_dim=4), Feature("price", "float32")),
        hashed=("item_id", "shelf"),
        max_history_length=1_200,
    )
    # The last ten are cold.
    ids = np.array([b"\0%d" % number for number in range(300)], object)
    shelves = np.array([b"shelf %d" % (number % 7) for number in range(300)], object)
    prices = np.random.default_rng(0).random(300, np.float32)
    lookup = FeatureLookup(features)
    lookup.adapt({"item_id": ids[:290], "shelf": shelves, "price": prices[:290]})
    model = Ranker(lookup=lookup, interests=[ETAInterest(8)], hidden_units=(4,))
    model.build()
    model.save(tmp_path / "model.keras")
    reloaded = tf.keras.models.load_model(tmp_path / "model.keras")
    table = AttributeTable.from_frame(pd.DataFrame({"item_id": ids, "shelf": shelves, "price": prices}), features)
    plain = Exported.of(model, tmp_path / "plain", jit_compile=True)
    joined = Exported.of(reloaded, tmp_path / "joined", jit_compile=True, tables=[table])
    candidates, behaviours = np.arange(220, 300)[np.newaxis], np.random.default_rng(1).integers(0, 300, (1, 1_100))
    assert _counting_pays(tf.constant(80), tf.constant(1_100))
    sent = {"item_id": ids[candidates], "history_item_id": ids[behaviours], "history_length": np.array([1_090])}
    given = {"shelf": shelves[candidates], "price": prices[candidates]}
    given |= {"history_shelf": shelves[behaviours], "history_price": prices[behaviours]}
    assert_equal(joined.call("explain", sent), plain.call("explain", sent | given))


def test_a_session_restores_the_tables(case: Case, plain: Exported, joined: Exported) -> None:
    """By a restore op and an init op, as TensorFlow Serving loads versions."""
    ids, given = requests(case)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(joined.path))
        signature = meta_graph.signature_def["rank"]
        feeds = {info.name: ids[name] for name, info in signature.inputs.items()}
        found = session.run(signature.outputs["probability"].name, feeds)
    np.testing.assert_array_equal(found, plain.call("rank", ids | given)["probability"])


def test_the_contract_says_what_is_joined(case: Case, plain: Exported, joined: Exported) -> None:
    contract = Contract.read(joined.path)
    names = {key.name: names for key, names in contract.tables}
    assert names == {"item_id": ("shelf/1", "topics", "price"), case.key: ("city", "spent")}
    assert [key.dtype for key, _ in contract.tables] == [table.key.dtype for table in tables_of(case)]
    assert contract.joined_columns == GIVEN
    assert contract.features == case.model.features
    assert (Contract.read(plain.path).tables, Contract.read(plain.path).joined_columns) == ((), frozenset())
