"""Every interest unit from a raw log to an answer over gRPC: trained, exported, served, and asked by the client.

The log is a slice of MovieLens-1M, from the wheel that `movielens.load` fetches.
The units are those of `tests.interest.test_units.UNITS`, one row per class: a class that has a row there is tried here.
Those whose states are of one kind share a ranker, since most of the time goes into training and loading rankers.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from keras_eta import Age, Feature, FeatureLookup, Features, Ranker, Sequence, interest
from keras_eta.columns import HISTORY_LENGTH
from keras_eta.datasets import Interactions, cluster_log, movielens, regular_snapshots
from keras_eta.datasets.impressions import Impressions
from keras_eta.export import export_model
from keras_eta.export.examples import make_example
from keras_eta.interest import AttentionUnit, InterestUnit, TopKUnit
from keras_eta.models.ranker import Scores
from serving.client import Attention, Explanation, RankingClient, UserState
from serving.process import ServerProcess
from tests.interest.test_units import UNITS

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

# A film's first genre and the stars it got, named as `UNITS` has them.
FEATURES = Features(
    item_id=Feature("item_id", "string", embedding_dim=8),
    item_attributes=(Feature("category_id", "string", embedding_dim=4),),
    behaviour_attributes=(Feature("action", embedding_dim=3),),
    user=(Feature("occupation", embedding_dim=4),),
    age=Age((60, 3_600, 86_400), embedding_dim=3),
    max_history_length=12,
    sequences=(Sequence("clusters", (Feature("size", "float32", mean=0.0, std=1.0),), max_length=4),),
)
COLUMNS = {sequence.name: FEATURES.sequence_names(sequence) for sequence in FEATURES.all_sequences}
NUM_USERS, MAX_RATINGS, NUM_FILMS = 80, 24, 250
CANDIDATES = 5
TOLERANCE = 1e-5
# All candidates of all users in one call, and in parts.
LIMITS: tuple[dict[str, Any], ...] = ({}, {"max_candidates": 3, "max_rows": 2})


def _kind(unit: InterestUnit) -> str:
    """What a ranker's units must have in common."""
    if not unit.state_names:
        return "no_state"
    return "updated_state" if unit.updates_state else "state"


# The last row of each class, whose unit has the most to export: snapshots, tables of its own.
ROWS = {type(make()): name for name, (make, _) in UNITS.items()}.values()
KINDS = {name: _kind(UNITS[name][0]()) for name in ROWS}


Arrays = dict[str, np.ndarray]


class Served(NamedTuple):
    """A ranker of all units of one kind.

    Attributes:
        model: as it was exported.
        units: those in it, by their rows of `UNITS`.
        address: of the server.
        model_name: of the ranker on the server.
    """

    model: Ranker
    units: dict[str, InterestUnit]
    address: str
    model_name: str


class Asked(NamedTuple):
    """A request, what the model makes of it, and what the client got.

    Attributes:
        request: arguments of the client's methods.
        scores: by the model, in this process.
        expected: the probabilities [R, C] of these.
        explanations: of all candidates of all users in one call, and in parts; none where no unit explains.
    """

    request: dict[str, Any]
    scores: Scores
    expected: np.ndarray
    explanations: list[Explanation]


@pytest.fixture(scope="module")
def log() -> Interactions:
    """The first ratings of some users, of the films rated most."""
    ratings = movielens.load().interactions
    frame = pd.DataFrame({name: ratings[name] for name in ("user_id", "item_id", "timestamp", "occupation")})
    frame["category_id"], frame["action"] = ratings["genre"], ratings["rating"]
    frame["liked"] = ratings["liked"]
    frame = frame[frame["item_id"].isin(frame["item_id"].value_counts().index[:NUM_FILMS])]
    frame = frame[frame["user_id"] <= NUM_USERS]
    return Interactions.from_frame(frame[frame.groupby("user_id").cumcount() < MAX_RATINGS])


@pytest.fixture(scope="module")
def impressions(log: Interactions) -> Impressions:
    films = np.unique(log["item_id"])
    vectors = np.random.default_rng(3).normal(size=[len(films), 4])
    clusters = cluster_log(log, films, vectors, snapshots=regular_snapshots(log, 7 * 86_400), max_size=3)
    ratings = Impressions.from_interactions(log, lambda log: log["liked"], min_history=0, outcomes=("action", "liked"))
    return ratings.with_sequence("clusters", clusters)


@pytest.fixture(scope="module")
def served(
    log: Interactions, impressions: Impressions, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Served]]:
    """By their kind; one server process of all rankers."""
    folder = tmp_path_factory.mktemp("units")
    lookup = FeatureLookup(FEATURES)
    lookup.adapt({name: log[name] for name in ("item_id", "category_id", "action", "occupation")})
    dataset = impressions.to_dataset(FEATURES, 128, lookup=lookup).cache()
    kinds: dict[str, dict[str, InterestUnit]] = defaultdict(dict)
    for name, kind in KINDS.items():
        kinds[kind][name] = UNITS[name][0]()
    rankers: dict[str, Ranker] = {}
    config = model_server_config_pb2.ModelServerConfig()
    for number, (kind, units) in enumerate(kinds.items()):
        tf.keras.utils.set_random_seed(number)
        model = Ranker(lookup=lookup, interests=list(units.values()), hidden_units=(6,))
        # Built before, a model's training step is traced once.
        model.build()
        model.compile()
        model.fit(dataset, verbose=0)
        # Warm-up is asked of one: it takes longest where most units are.
        base_path = export_model(model, folder / kind, warmup=number > 0).parent
        config.model_config_list.config.add(name=kind, base_path=str(base_path), model_platform="tensorflow")
        rankers[kind] = model
    (folder / "models.config").write_text(text_format.MessageToString(config))
    with ServerProcess("--model_config_file", str(folder / "models.config"), log=folder / "server.log") as server:
        yield {kind: Served(model, kinds[kind], server.address, kind) for kind, model in rankers.items()}


@pytest.fixture(scope="module")
def rows(impressions: Impressions) -> Arrays:
    """Raw columns of users with as many behaviours as a model reads, none, one and five, and candidates [R, C]."""
    inputs, _ = next(iter(impressions.to_dataset(FEATURES, len(impressions))))
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    lengths = arrays[HISTORY_LENGTH]
    chosen = [np.flatnonzero(lengths == length)[0] for length in (FEATURES.max_history_length, 0, 1, 5)]
    arrays = {name: array[chosen] for name, array in arrays.items()}
    # Neighbours in the order of titles, each with its own genre.
    films, first = np.unique(np.asarray(impressions.columns["item_id"]), return_index=True)
    places = (
        np.searchsorted(films, np.char.decode(arrays["item_id"].astype(bytes), "utf-8"))[:, np.newaxis]
        + np.arange(CANDIDATES)
    ) % len(films)
    genres = np.asarray(impressions.columns["category_id"])[first]
    columns = {"item_id": films, "category_id": genres}
    return arrays | {name: np.char.encode(x.astype(str), "utf-8")[places] for name, x in columns.items()}


def behaviours(rows: Arrays, start: int, end: int | None = None) -> Arrays:
    """The columns of the history alone, of the behaviours from `start`, the most recent being 0, to `end`."""
    columns = {name: x[:, start:end] for name, x in rows.items() if name in COLUMNS["history"]}
    lengths = np.clip(rows[HISTORY_LENGTH] - start, 0, next(iter(columns.values())).shape[1])
    return {**columns, HISTORY_LENGTH: lengths, "timestamp": rows["timestamp"]}


def sequence_of(columns: Arrays, sequence: str = "history") -> dict[str, Any]:
    """A sequence as a caller of the client has it."""
    lengths = columns[f"{sequence}_length"]
    return {
        name.removeprefix(f"{sequence}_"): [row[:length].tolist() for row, length in zip(x, lengths, strict=True)]
        for name, x in columns.items()
        if name in COLUMNS[sequence]
    }


def encoded(model: Ranker, columns: Arrays) -> dict[str, tf.Tensor]:
    """Raw columns as the methods of a ranker take them; where there are no users and candidates, of id 0 and none."""
    assert model.lookup is not None
    size = len(columns[HISTORY_LENGTH])
    of_items = [feature.name for feature in FEATURES.item_features]
    absent: dict[str, Any] = {name: tf.zeros([size, 0], tf.string) for name in of_items}
    for name in COLUMNS["clusters"]:
        dtype = tf.float32 if name.endswith("size") else tf.string if name.endswith(tuple(of_items)) else tf.int64
        absent[name] = tf.zeros([size, 0], dtype)
    absent |= {"occupation": np.zeros(size, int), "clusters_length": np.zeros(size, int)}
    return model.lookup({name: tf.constant(x) for name, x in {**absent, **columns}.items()})


def test_every_unit_has_a_row() -> None:
    """Each class in a file of `keras_eta.interest` that a ranker can use."""
    for module in pkgutil.iter_modules(interest.__path__, f"{interest.__name__}."):
        importlib.import_module(module.name)
    classes, known = [InterestUnit], set()
    for unit in classes:
        classes += unit.__subclasses__()
        known |= {unit} if unit.__module__.startswith(interest.__name__) else set()
    assert known - {InterestUnit, AttentionUnit, TopKUnit} <= {type(make()) for make, _ in UNITS.values()}


@pytest.fixture(scope="module")
def ask(served: dict[str, Served], rows: Arrays) -> Callable[[str], Asked]:
    """Asks a kind's ranker, once."""
    candidates = {column: rows[column] for column in ("item_id", "category_id")}
    users = {"user": {"occupation": rows["occupation"]}, "context": {"timestamp": rows["timestamp"]}}
    request = {"candidates": candidates, "history": sequence_of(rows), **users}
    request["sequences"] = {"clusters": sequence_of(rows, "clusters")}

    @functools.cache
    def asked(kind: str) -> Asked:
        model, units, address, model_name = served[kind]
        scores = model.score(encoded(model, rows))
        explanations = []
        for limits in LIMITS if any(unit.explains for unit in units.values()) else ():
            with RankingClient(address, model_name, timeout=60, **limits) as client:
                explanations.append(client.explain(**request))
        return Asked(request, scores, tf.sigmoid(scores.logits).numpy(), explanations)

    return asked


@pytest.mark.parametrize("kind", sorted(set(KINDS.values())))
def test_ranker_over_grpc(served: dict[str, Served], ask: Callable[[str], Asked], rows: Arrays, kind: str) -> None:
    model, _, address, model_name = served[kind]
    request, _, expected, explanations = ask(kind)
    assert expected.std() > 1e-3
    explaining = [unit.name for unit in model.interests if unit.explains]
    assert len(explanations) == (len(LIMITS) if explaining else 0)
    for explanation in explanations:
        np.testing.assert_allclose(explanation.probability, expected, atol=TOLERANCE)
        assert {*explanation.others} == {*explaining[:-1]}
    for limits in LIMITS:
        with RankingClient(address, model_name, timeout=60, **limits) as client:
            np.testing.assert_allclose(client.rank(**request).probability, expected, atol=TOLERANCE)
            check_states(client, request, model, rows, expected)
            if not explaining:
                with pytest.raises(ValueError, match="has no signature 'explain'"):
                    client.explain(**request)
    with RankingClient(address, model_name, timeout=60) as client:
        check_examples(client, rows, expected)


@pytest.mark.parametrize("name", ROWS)
def test_unit_over_grpc(served: dict[str, Served], ask: Callable[[str], Asked], name: str) -> None:
    model, units, _, _ = served[KINDS[name]]
    _, scores, _, explanations = ask(KINDS[name])
    assert explanations or not units[name].explains
    for explanation in explanations:
        check_explanation(explanation, model, units[name], scores)


def check_explanation(explanation: Explanation, model: Ranker, unit: InterestUnit, scores: Scores) -> None:
    for name, count in (scores.interests[unit.name].matches or {}).items():
        np.testing.assert_array_equal(explanation.counts[f"{unit.name}_{name}"], count)
        # Nobody rates a film twice, but many of a genre.
        assert count.numpy().any() == (name == "category_id")
    if not unit.explains:
        return
    last = [other for other in model.interests if other.explains][-1]
    attention: Attention = explanation if unit is last else explanation.others[unit.name]
    assert attention.score_name == unit.score_name
    retrieved: Any = scores.interests[unit.name].retrieved
    weights = tf.reduce_mean(scores.interests[unit.name].weights, axis=2).numpy()
    mask, positions = retrieved.mask.numpy(), retrieved.positions.numpy()
    assert attention.positions.shape == mask.shape
    for place in np.ndindex(*mask.shape[:2]):
        real = mask[place]
        found = dict(zip(attention.positions[place].tolist(), range(len(real)), strict=True))
        assert found.keys() - {-1} == {*positions[place][real].tolist()}
        order = [found[position] for position in positions[place][real].tolist()]
        np.testing.assert_allclose(attention.weights[place][order], weights[place][real], atol=TOLERANCE)
        assert not np.delete(attention.weights[place], order).any()
        if attention.scores is not None:
            own = retrieved.scores.numpy()[place][real]
            np.testing.assert_allclose(attention.scores[place][order], own, atol=TOLERANCE, rtol=TOLERANCE)


def check_states(
    client: RankingClient, request: dict[str, Any], model: Ranker, rows: Arrays, expected: np.ndarray
) -> None:
    context = request["context"]
    if not model.interests[0].state_names:
        with pytest.raises(ValueError, match="has no signature 'user_state'"):
            client.user_state(request["history"], context)
        return
    state = client.user_state(request["history"], context)
    check_arrays(state, model.user_state(encoded(model, behaviours(rows, 0))))
    ranking = client.rank_from_state(request["candidates"], state, request["user"])
    np.testing.assert_allclose(ranking.probability, expected, atol=TOLERANCE)
    older, newer = behaviours(rows, 2), behaviours(rows, 0, 2)
    before = client.user_state(sequence_of(older), context)
    if not all(unit.updates_state for unit in model.interests):
        with pytest.raises(ValueError, match="has no signature 'update_state'"):
            client.update_state(before, sequence_of(newer), context)
        return
    tensors = {name: tf.constant(array) for name, array in before.arrays.items()}
    after = client.update_state(before, sequence_of(newer), context)
    check_arrays(after, model.update_state(tensors, encoded(model, newer)))


def check_arrays(state: UserState, expected: dict[str, tf.Tensor]) -> None:
    assert {*state.arrays} == {*expected}
    for name, array in state.arrays.items():
        np.testing.assert_allclose(array, expected[name], atol=TOLERANCE, err_msg=name)


def check_examples(client: RankingClient, rows: Arrays, expected: np.ndarray) -> None:
    """The first candidate of each user as a tf.Example."""
    sequences = {sequence: sequence_of(rows, sequence) for sequence in COLUMNS}
    examples = []
    for row in range(len(expected)):
        columns = {name: rows[name][row] for name in ("occupation", "timestamp")}
        columns |= {name: rows[name][row, 0] for name in ("item_id", "category_id")}
        for sequence, values in sequences.items():
            columns |= {f"{sequence}_{name}": column[row] for name, column in values.items()}
        of_strings = {name: object for name in columns if name.endswith(("item_id", "category_id"))}
        dtypes = {**dict.fromkeys(columns, np.int64), **of_strings, "clusters_size": np.float32}
        example = make_example({name: np.atleast_1d(np.array(x, dtypes[name])) for name, x in columns.items()})
        examples.append(example.SerializeToString())
    outputs = client.predict({"examples": examples}, "examples")
    np.testing.assert_allclose(outputs["probability"], expected[:, 0], atol=TOLERANCE)
