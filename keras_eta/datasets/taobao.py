"""Taobao's UserBehavior.csv: 100 million behaviours of a million users in nine days (Zhu et al., KDD 2018).

The file is published at https://tianchi.aliyun.com/dataset/649, behind a sign-in, so it must be given.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from keras_eta.columns import ITEM_ID, TIMESTAMP, Feature
from keras_eta.datasets.columns import USER_ID, Column, id_numbers, parse_column
from keras_eta.datasets.delimited import WRONG_COLUMNS, parse_lines
from keras_eta.datasets.impressions import Impressions
from keras_eta.datasets.interactions import Interactions, Rejection
from keras_eta.datasets.negative_draws import draw_negatives
from keras_eta.features import Features

CATEGORY_ID = "category_id"
ACTION = "action"
ACTIONS = ("pv", "buy", "cart", "fav")

# 2017-11-25 00:00:00 to 2017-12-04 00:00:00 in UTC+8: the days that the data set covers.
FIRST_TIMESTAMP = 1_511_539_200
END_TIMESTAMP = 1_512_316_800

_COLUMNS = (USER_ID, ITEM_ID, CATEGORY_ID, ACTION, TIMESTAMP)
_LINES = "line"
_BLOCK_BYTES = 64 * 2**20


def load(path: str | os.PathLike[str]) -> Interactions:
    """Read UserBehavior.csv: `user_id,item_id,category_id,behavior_type,timestamp`, no header.

    The published file has noise. Lines with a wrong number of columns, an unknown action or a time outside 2017-11-25
    to 2017-12-03 (UTC+8) are left out, as are the rows that `Interactions.from_columns` leaves out; a printed report
    counts them by reason.

    Args:
        path: the CSV file.

    Returns:
        Columns `user_id`, `item_id`, `category_id` (int64), `action` ("pv", "buy", "cart" or "fav") and `timestamp`
        (seconds since 1970).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty or has no usable line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}. UserBehavior.csv is published at https://tianchi.aliyun.com/dataset/649."
        )
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty.")
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    dropped: dict[str, list[np.ndarray]] = defaultdict(list)
    first_line = 1
    for content in _blocks(path):
        frame, lines, malformed = parse_lines(
            content, _COLUMNS, b",", first_line=first_line, dtype={ACTION: "category"}, path=path
        )
        first_line += len(lines) + len(malformed)
        dropped[WRONG_COLUMNS].append(malformed)
        columns: dict[str, Column] = {}
        faults: dict[str, np.ndarray] = {}
        for name in _COLUMNS:
            columns[name], found = parse_column(name, frame[name], integer=name != ACTION)
            faults |= found
        actions = pd.Categorical(frame[ACTION], categories=ACTIONS).codes
        times = np.asarray(columns[TIMESTAMP])
        faults["with an unknown action"] = actions < 0
        faults["with a timestamp outside 2017-11-25..2017-12-03 (UTC+8)"] = (times < FIRST_TIMESTAMP) | (
            times >= END_TIMESTAMP
        )
        bad = np.zeros(len(frame), bool)
        for reason, mask in faults.items():
            dropped[reason].append(lines[mask & ~bad])
            bad |= mask
        for name, column in {**columns, ACTION: actions, _LINES: lines}.items():
            parts[name].append(column[~bad])

    joined = {name: np.concatenate(parts.pop(name)) for name in (*_COLUMNS, _LINES)}
    lines = joined.pop(_LINES)
    joined[ACTION] = pd.Categorical.from_codes(joined[ACTION], categories=ACTIONS)
    rejected = [Rejection.at_lines(reason, np.concatenate(places)) for reason, places in dropped.items()]
    log = Interactions.from_columns(
        joined, lines=lines, rejected=[rejection for rejection in rejected if rejection.count]
    )
    print(f"Taobao: {len(log):,} behaviours, {log.num_users:,} users, {log.num_items:,} items.")
    return log


def features(embedding_dim: int = 32, max_history_length: int = 512) -> Features:
    """What the models read by default: the item and its category, and what was done to each item before.

    There is no id of the user, which would tell nothing of users who come later.

    Args:
        embedding_dim: width of every embedding.
        max_history_length: number of most recent behaviours.
    """
    return Features(
        item_id=Feature(ITEM_ID, "int64", embedding_dim),
        item_attributes=(Feature(CATEGORY_ID, "int64", embedding_dim),),
        behaviour_attributes=(Feature(ACTION, "string", embedding_dim),),
        max_history_length=max_history_length,
    )


def paper_impressions(log: Interactions, num_positives: int = 1, seed: int = 0) -> Impressions:
    """The protocol of the ETA paper (arXiv 2108.04468, section 4): last behaviours against items of the same category.

    The last `num_positives` behaviours of each user are positives. Each is followed by one negative: an item of the
    same category at the same moment, drawn uniformly from those that the user never touched, before or after. Where a
    category has no such item, the negative is drawn from all items that the user never touched, and counted in a
    printed line. The history of both is what the user did strictly before, other positives included.

    Nearly all of these impressions lie in the last days of the log, so split them by their own times:
    `temporal_split(impressions, timestamps=impressions.columns["timestamp"])`.

    Args:
        log: interactions with a column `category_id`. An item's category is that of its earliest row.
        num_positives: positives a user; all behaviours of a user who has fewer.
        seed: of the draw.

    Returns:
        Impressions with the columns `user_id`, `item_id`, `category_id` and `timestamp`: positive, its negative, the
        next positive, its negative, ...

    Raises:
        ValueError: if `num_positives` is not positive, the log has no `category_id`, or every user touched every item.
    """
    if not isinstance(num_positives, int) or num_positives < 1:
        raise ValueError(f"`num_positives` must be a positive integer. Received: num_positives={num_positives!r}")
    if CATEGORY_ID not in log.columns:
        raise ValueError(f"The log lacks the column {CATEGORY_ID!r}. Present: {list(log.columns)}")
    users = id_numbers(log.columns[USER_ID])
    user_end = np.searchsorted(users, users, side="right")
    positive = np.flatnonzero(user_end - np.arange(len(log)) <= num_positives)
    generator = np.random.default_rng(seed)

    def draw(rows: np.ndarray, *same: str) -> np.ndarray:
        return draw_negatives(
            log, rows, 1, same_attributes=same, candidates="all", exclude="user", generator=generator
        ).rows[:, 0]

    negative = draw(positive, CATEGORY_ID)
    elsewhere = negative < 0
    if elsewhere.any():
        negative[elsewhere] = draw(positive[elsewhere])
    found = negative >= 0
    if not found.any():
        raise ValueError("Every user has touched every item of the log, so there are no negatives to draw.")

    positive, negative = positive[found], negative[found]
    candidate = np.stack([positive, negative], axis=1).ravel()
    moment = np.repeat(positive, 2)
    columns = {name: log.columns[name][candidate] for name in (ITEM_ID, CATEGORY_ID)}
    columns |= {name: log.columns[name][moment] for name in (USER_ID, TIMESTAMP)}
    print(
        f"Impressions: {len(positive):,} positives, each with a negative. Negatives of another category, because the "
        f"user touched all items of the positive's: {(elsewhere & found).sum():,}. Positives dropped, because the user "
        f"touched all items: {(~found).sum():,}."
    )
    return Impressions.from_columns(log, columns, np.tile([1, 0], len(positive)))


def _blocks(path: Path) -> Iterator[bytes]:
    """The file in blocks of whole lines."""
    with path.open("rb") as file, tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True) as bar:
        while content := file.read(_BLOCK_BYTES):
            content += file.readline()
            bar.update(len(content))
            yield content
