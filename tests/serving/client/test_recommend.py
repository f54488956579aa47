"""Two stages behind one server: a retriever finds, a ranker orders and explains."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.config import model_server_config_pb2

from keras_eta import TIGER, Feature, Features, SemanticIds
from keras_eta.export import export_model, export_retriever
from serving.client import AsyncRankingClient, Explanation, RankingClient, Recommendation, ServingError
from serving.client.__main__ import main
from serving.server.embedded import EmbeddedServer
from tests.paper import paper_eta

NUM_ITEMS, C = 12, 5
# Indices are ids: the ranker has no lookup.
ITEMS = np.arange(2, NUM_ITEMS + 2)
HISTORY = {"item_id": [4, 9, 4], "shelf": [2, 3, 2]}


MODELS = ("tiger", "personal", "eta")


def _shelves(item_ids: np.ndarray) -> dict[str, Any]:
    return {"shelf": item_ids % 3 + 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    folder = tmp_path_factory.mktemp("models")
    codes = np.random.default_rng(0).integers(0, 4, (NUM_ITEMS, 1))
    ids = SemanticIds.from_codes(ITEMS, codes, (4,), max_collisions=6)
    tf.keras.utils.set_random_seed(0)
    tiger = TIGER(ids, max_history_length=4, dim=8, num_heads=2, num_layers=1, feed_forward_units=8)
    export_retriever(tiger, folder / "tiger", num_results=C, num_beams=NUM_ITEMS, warmup=False)
    user = Feature("user_id", num_oov_indices=10)
    personal = TIGER(ids, max_history_length=4, dim=8, num_heads=2, num_layers=1, feed_forward_units=8, user=user)
    personal.build()
    # Larger than the initial ones, so that users differ.
    personal.users.embeddings.assign(np.random.default_rng(1).normal(size=(11, 8)))
    export_retriever(personal, folder / "personal", num_results=C, num_beams=NUM_ITEMS, warmup=False)
    features = Features(
        item_id=Feature("item_id", vocabulary_size=NUM_ITEMS, embedding_dim=4),
        item_attributes=(Feature("shelf", vocabulary_size=3, embedding_dim=2),),
        max_history_length=4,
    )
    export_model(paper_eta(features, top_k=2), folder / "eta", warmup=False)
    models = [model_server_config_pb2.ModelConfig(name=name, base_path=str(folder / name)) for name in MODELS]
    with EmbeddedServer(models, port=0) as running:
        with RankingClient(running.address, timeout=120) as client:
            client.wait_until_ready()
        for name in ("tiger", "personal"):
            with RankingClient(running.address, name, timeout=120) as client:
                client.wait_until_ready()
        yield running


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[RankingClient]:
    with RankingClient(server.address, retriever="tiger", timeout=60) as open_client:
        yield open_client


def _retrieved(server: EmbeddedServer, excluded: list[int]) -> np.ndarray:
    with RankingClient(server.address, "tiger", timeout=60) as client:
        inputs = {"history_item_id": [HISTORY["item_id"]], "history_length": [3]}
        inputs |= {"excluded_item_id": [excluded or [0]], "excluded_length": [len(excluded)]}
        return client.predict(inputs, "retrieve")["item_id"][0]


def test_what_was_retrieved_is_ranked(server: EmbeddedServer, client: RankingClient) -> None:
    found = client.recommend(HISTORY, attributes=_shelves)
    assert isinstance(found, Recommendation)
    assert found.retriever_version == found.ranking.model_version == 1
    assert not np.isin(found.item_ids, HISTORY["item_id"]).any()
    np.testing.assert_array_equal(found.item_ids, _retrieved(server, [4, 9]))
    assert (np.diff(found.log_probability) <= 0).all()
    expected = client.rank({"item_id": found.item_ids, **_shelves(found.item_ids)}, HISTORY)
    np.testing.assert_array_equal(found.ranking.probability, expected.probability)
    np.testing.assert_array_equal(found.best_first, found.item_ids[np.argsort(-expected.probability, kind="stable")])


def test_chosen_items_are_left_out_and_the_ranking_is_explained(server: EmbeddedServer, client: RankingClient) -> None:
    everything = client.recommend(HISTORY, attributes=_shelves, excluded=(), explain=True)
    np.testing.assert_array_equal(everything.item_ids, _retrieved(server, []))
    assert isinstance(everything.ranking, Explanation)
    assert everything.ranking.positions.shape == (C, 2)
    first = everything.item_ids[0]
    without = client.recommend(HISTORY, attributes=_shelves, excluded=[first])
    assert first not in without.item_ids
    assert without.item_ids[0] == everything.item_ids[1]


def test_fewer_items_than_asked_for_and_none_at_all(client: RankingClient) -> None:
    left = client.recommend(HISTORY, attributes=_shelves, excluded=ITEMS[:-2])
    assert sorted(left.item_ids) == ITEMS[-2:].tolist()
    assert left.ranking.probability.shape == (2,)
    none = client.recommend({"item_id": [], "shelf": []}, attributes=_shelves, excluded=ITEMS)
    assert none.item_ids.shape == none.best_first.shape == (0,)


def test_a_retriever_that_reads_the_user_is_given_the_user(server: EmbeddedServer) -> None:
    with RankingClient(server.address, retriever="personal", timeout=60) as personal:
        found = {
            user: personal._run(
                personal._retrieved(HISTORY, {"user_id": user, "country": "x"}, (), personal._deadline())
            )
            for user in (3, 13, 4)
        }
        with pytest.raises(ValueError, match=r"of model 'personal' does not fit\. Missing: user_id"):
            personal.recommend(HISTORY, attributes=_shelves)
    np.testing.assert_array_equal(found[3][1], found[13][1])  # the same remainder by ten
    assert not np.allclose(found[3][1], found[4][1])


def test_asyncio(server: EmbeddedServer, client: RankingClient) -> None:
    async def ask() -> Recommendation:
        async with AsyncRankingClient(server.address, retriever="tiger", timeout=60) as both:
            return await both.recommend(HISTORY, attributes=_shelves)

    expected = client.recommend(HISTORY, attributes=_shelves)
    found = asyncio.run(ask())
    np.testing.assert_array_equal(found.item_ids, expected.item_ids)
    np.testing.assert_array_equal(found.ranking.probability, expected.ranking.probability)


def test_refusals_name_the_model(server: EmbeddedServer) -> None:
    needed = "`recommend` needs a client with a `retriever`, the name of a model. Received: None"
    with RankingClient(server.address, timeout=60) as client, pytest.raises(ValueError, match=needed):
        client.recommend(HISTORY)
    with RankingClient(server.address, retriever="lion", timeout=60) as client:
        with pytest.raises(ServingError, match="Model 'lion'") as caught:
            client.recommend(HISTORY)
        assert caught.value.code is grpc.StatusCode.NOT_FOUND
    with RankingClient(server.address, retriever="tiger", timeout=60) as client:
        with pytest.raises(ValueError, match=r"`history` must have the column 'item_id'\. Received: "):
            client.recommend({"shelf": [1]})
        with pytest.raises(ValueError, match="`recommend` takes one user at a time"):
            client.recommend({"item_id": [[4], [5]]}, excluded=[[1], [2]])
        with pytest.raises(ValueError, match="Missing: shelf"):
            client.recommend(HISTORY)


@pytest.fixture
def shelves(tmp_path: Path) -> Path:
    path = tmp_path / "shelves.csv"
    path.write_text("item_id,shelf\n" + "".join(f"{item},{item % 3 + 1}\n" for item in ITEMS))
    return path


def test_command_line(
    server: EmbeddedServer, client: RankingClient, shelves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"history": HISTORY, "excluded": [4, 9, 2]}))
    command = ["recommend", "--target", server.address, "--request", str(request), "--attributes", str(shelves)]
    assert main([*command, "--json", "--top", "3"]) == 0
    found = client.recommend(HISTORY, attributes=_shelves, excluded=[4, 9, 2])
    (ranking,) = json.loads(capsys.readouterr().out)["rankings"]
    assert [entry["item_id"] for entry in ranking] == [str(item) for item in found.best_first[:3]]
    assert [entry["shelf"] for entry in ranking] == (found.best_first[:3] % 3 + 1).tolist()
    assert "retrieved" not in ranking[0]
    assert main([*command, "--explain", "--top", "1"]) == 0
    assert "1. rests on" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main([*command, "--html", str(page)]) == 0
    assert "history" in page.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shelf\n1\n", "must have the column 'item_id'. Received: ['shelf']"),
        ("item_id,shelf\n4,1\n4,2\n", "must have one line per item. Received: 1 twice"),
        ("item_id,shelf\n4,1\n", "which was retrieved."),
    ],
)
def test_command_line_refuses_attributes_that_do_not_fit(
    server: EmbeddedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "shelves.csv").write_text(text)
    (tmp_path / "request.json").write_text(json.dumps({"history": HISTORY}))
    files = ["--request", str(tmp_path / "request.json"), "--attributes", str(tmp_path / "shelves.csv")]
    assert main(["recommend", "--target", server.address, *files]) == 1
    assert message in capsys.readouterr().err
