"""Requests with several sequences and features of several values, over gRPC."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from keras_eta.export import export_model
from keras_eta.interest import FullInterest, PoolingInterest
from serving.client import RankingClient
from serving.client.answers import Signature, TensorSpec
from serving.client.requests import signature_arrays
from serving.client.values import with_value_lengths
from serving.process import ServerProcess
from tests.test_sequences import expected_columns, make_model, raw_batch

# Users 7 and 8 at their last impressions.
ROWS = (5, 7)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("export")
    export_model(make_model(PoolingInterest(sequence="purchases"), FullInterest()), folder / "eta", warmup=False)
    arguments = ("--model_base_path", str(folder / "eta"), "--model_name", "eta")
    with ServerProcess(*arguments, log=folder / "server.log") as server:
        yield server.address


def _request(row: int) -> dict[str, Any]:
    columns = expected_columns(row)
    sequences: dict[str, dict[str, Any]] = {"history": {}, "purchases": {}}
    for name, behaviours in sequences.items():
        for column in [column for column in columns if column.startswith(f"{name}_")]:
            if column != f"{name}_length":
                behaviours[column.removeprefix(f"{name}_")] = columns[column]
    return {
        "candidates": {"item_id": [1, 2, 3], "kind": ["x", "y", "x"], "genres": [["a", "b"], [], ["b"]]},
        "history": sequences["history"],
        "user": {"user_id": columns["user_id"], "tags": columns["tags"]},
        "context": {"timestamp": columns["timestamp"]},
        "sequences": {"purchases": sequences["purchases"]},
    }


def _joined(requests: list[dict[str, Any]]) -> dict[str, Any]:
    """Several requests as one of R rows."""
    first = requests[0]
    joined: dict[str, Any] = {
        role: {name: [request[role][name] for request in requests] for name in first[role]}
        for role in ("candidates", "history", "user", "context")
    }
    purchases = [request["sequences"]["purchases"] for request in requests]
    joined["sequences"] = {"purchases": {name: [x[name] for x in purchases] for name in purchases[0]}}
    return joined


def test_one_request_several_and_states_agree_with_the_model(address: str) -> None:
    model = make_model(PoolingInterest(sequence="purchases"), FullInterest())
    requests = [_request(row) for row in ROWS]
    with RankingClient(address, max_candidates=2, timeout=60) as client:
        alone = [client.rank(**request).probability for request in requests]
        joined = _joined(requests)
        np.testing.assert_allclose(client.rank(**joined).probability, alone, atol=1e-6)
        assert client.explain(**joined).positions.shape == (2, 3, 4)

        state = client.user_state(None, joined["context"], sequences=joined["sequences"])
        ranked = client.rank_from_state(
            joined["candidates"], state, joined["user"], joined["context"], joined["history"]
        )
        np.testing.assert_allclose(ranked.probability, alone, atol=1e-6)
    # The first row's own candidate, item 2, by the model itself.
    assert expected_columns(5)["item_id"] == 2
    np.testing.assert_allclose(alone[0][1], _by_the_model(model, 5), atol=1e-6)


def _by_the_model(model: Any, row: int) -> float:
    batch = {name: column[row : row + 1] for name, column in raw_batch().items()}
    return float(1 / (1 + np.exp(-model(model.lookup(batch)).numpy()[0])))


def test_what_does_not_fit_is_refused_before_it_is_sent(address: str) -> None:
    request = _request(5)
    with RankingClient(address) as client:
        for change, text in (
            ({"sequences": None}, "Missing: purchases_genres, purchases_genres_length, purchases_item_id"),
            (
                {"candidates": {**request["candidates"], "genres": [["a", "b", "c"], [], []]}},
                "`candidates['genres']` must have at most 2 values each. Received: ['a', 'b', 'c']",
            ),
            (
                {"candidates": {**request["candidates"], "genres": ["a", "b", "c"]}},
                "`candidates['genres']` must hold a list of values each. Received: 'a'",
            ),
            (
                {"sequences": {"purchases": {**request["sequences"]["purchases"], "price": [1.0]}}},
                "`sequences['purchases']` must have one value per behaviour in every column.",
            ),
        ):
            with pytest.raises(ValueError, match=re.escape(text)):
                client.rank(**{**request, **change})


SIGNATURE = Signature(
    {
        "genres": TensorSpec("string", (None, None, 2)),
        "genres_length": TensorSpec("int64", (None, None)),
        "tags": TensorSpec("int64", (None, 3)),
        "tags_length": TensorSpec("int64", (None,)),
        "buys_genres": TensorSpec("string", (None, None, 2)),
        "buys_genres_length": TensorSpec("int64", (None, None)),
        "buys_price": TensorSpec("float32", (None, None)),
        "buys_length": TensorSpec("int64", (None,)),
    },
    {},
)


def _arrays(**changes: Any) -> dict[str, np.ndarray]:
    inputs = {
        "genres": [[["a"], []]],
        "tags": [[5]],
        "buys_genres": [[["b", "c"]]],
        "buys_price": [[1.5]],
        "buys_length": [1],
        **changes,
    }
    named = {name: (name, values) for name, values in inputs.items()}
    return signature_arrays(with_value_lengths(named, SIGNATURE), SIGNATURE)


def test_lists_of_values_are_padded_and_counted() -> None:
    arrays = _arrays()
    assert arrays["genres"].tolist() == [[[b"a", b""], [b"", b""]]]
    assert arrays["genres_length"].tolist() == [[1, 0]]
    assert arrays["tags"].tolist() == [[5, 0, 0]]
    assert arrays["tags_length"].tolist() == [1]
    assert arrays["buys_genres_length"].tolist() == [[2]]


def test_empty_sequences_get_one_behaviour_that_does_not_count() -> None:
    arrays = _arrays(buys_genres=[[]], buys_price=[[]], buys_length=[0])
    assert arrays["buys_genres"].tolist() == [[[b"", b""]]]
    assert arrays["buys_genres_length"].tolist() == [[0]]
    assert arrays["buys_price"].tolist() == [[0.0]]


def test_lengths_and_floats_of_every_sequence_are_checked() -> None:
    with pytest.raises(ValueError, match=re.escape("`buys_length` must be between 0 and the number of behaviours, 1.")):
        _arrays(buys_length=[2])
    with pytest.raises(ValueError, match=re.escape("`buys_price` must have as many behaviours as `buys_genres`, 1.")):
        _arrays(buys_price=[[1.0, 2.0]])
    with pytest.raises(ValueError, match=re.escape("`buys_price` must be finite")):
        _arrays(buys_price=[[np.nan]])
    assert np.isnan(_arrays(buys_price=[[np.nan]], buys_length=[0])["buys_price"]).all()
