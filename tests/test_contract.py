"""What an export carries for those who watch its requests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_eta import Age, Feature, Features, Sequence
from keras_eta.contract import Contract, LookedUp

_FEATURES = Features(
    item_id=Feature("item id/1", "string"),
    item_attributes=(Feature("price", "float32"), Feature("category_id")),
    user=(Feature("user_id"),),
    age=Age((60,)),
)
_TITLES = [b"", b"Heat\0", b"Heat\0\0", "Amélie".encode()]


def _objects(ids: list[bytes]) -> np.ndarray:
    array = np.empty(len(ids), object)
    array[:] = ids
    return array


@pytest.fixture
def contract() -> Contract:
    vocabularies = {"item id/1": _objects(_TITLES), "user_id": np.array([-(2**63), 0, 7, 2**63 - 1])}
    return Contract(_FEATURES, vocabularies, (1_000, 1_400))


def test_a_contract_is_read_as_it_was_written(contract: Contract, tmp_path: Path) -> None:
    contract.write(tmp_path)
    found = Contract.read(tmp_path)
    assert (found.features, found.timestamps) == (_FEATURES, (1_000, 1_400))
    assert {name: ids.tolist() for name, ids in found.vocabularies.items()} == {
        "item id/1": _TITLES,
        "user_id": [-(2**63), 0, 7, 2**63 - 1],
    }
    assert Contract.read(tmp_path, vocabularies=False).vocabularies == {}


def test_what_a_version_looks_up_is_read_as_it_was_written(tmp_path: Path) -> None:
    genres, city = Feature("genres", max_values=2), Feature("city")
    features = Features(
        item_id=Feature("item_id"),
        item_attributes=(Feature("price", "float32"), genres),
        user=(city,),
        sequences=(Sequence("trips", attributes=(city,)),),
    )
    account = Feature("account", "string")
    tables = (LookedUp(Feature("item_id"), ("genres",)), LookedUp(account, ("city",)))
    Contract(features, {}, tables=tables).write(tmp_path)
    found = Contract.read(tmp_path)
    assert found.tables == tables
    assert found.unread_keys == (account,)
    # The city of a trip is no user's.
    assert found.joined_columns == {
        *("genres", "genres_length", "history_genres", "history_genres_length"),
        *("trips_genres", "trips_genres_length", "city"),
    }
    (tmp_path / "assets.extra" / "tables.json").unlink()
    old = Contract.read(tmp_path)
    assert (old.tables, old.joined_columns) == ((), frozenset())


def test_unknown_ids_are_counted(contract: Contract) -> None:
    assert contract.count_unknown("item id/1", _objects([b"Heat\0", b"Heat", b"", b"heat\0", b"Heat"])) == 3
    assert contract.count_unknown("user_id", np.array([0, 1, 7, 2**63 - 1, -(2**63), 8, -1])) == 3
    empty = Contract(_FEATURES, {"user_id": np.array([], np.int64)})
    assert empty.count_unknown("user_id", np.array([0, 0])) == 2


@pytest.mark.parametrize(
    ("timestamps", "margin"),
    [((1_000, 1_400), 400), ((1_390, 1_400), 140), ((1_600_000_000, 1_700_000_000), 170_000_000), (None, 0)],
)
def test_margin_is_the_length_of_the_training_data_and_a_tenth_of_its_end_at_least(
    timestamps: tuple[int, int] | None, margin: int
) -> None:
    assert Contract(_FEATURES, {}, timestamps).timestamp_margin == margin


@pytest.mark.parametrize("timestamps", [(2, 1), (1,), (1, 2, 3), (1.0, 2), (True, 2), ("1", "2")])
def test_timestamps_that_are_no_range_are_refused(timestamps: Any) -> None:
    text = (
        "`timestamps` must be None, or the first and the last of the training data, as integers. "
        f"Received: timestamps={timestamps!r}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        Contract(_FEATURES, {}, timestamps)


def test_broken_contracts_are_refused(contract: Contract, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Contract.read(tmp_path)
    contract.write(tmp_path)
    folder = tmp_path / "assets.extra"
    for name, content in (
        ("vocabularies.npz", b"PK"),
        ("vocabularies.npz", b""),
        ("training.json", b"{}"),
        ("training.json", json.dumps({"timestamps": 5}).encode()),
        ("features.json", b"{}"),
        ("tables.json", b'{"item_id": ["price"]}'),
    ):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"assets\.extra holds no contract of a version: "):
            Contract.read(tmp_path)
        (folder / name).write_bytes(whole)
    assert Contract.read(tmp_path).timestamps == (1_000, 1_400)
