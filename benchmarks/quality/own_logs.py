"""Logs as a newcomer has them, small and full of repeats, for the library and as CSV for the pipeline.

    python -m benchmarks.quality.own_logs build/own_logs

`purchases/log.csv`: all purchases of 300 households of Complete Journey. `tastes/log.csv`: a synthetic log in Taobao's
layout, whose users like a few categories and come back to what they saw. `repeats/log.csv`: one of users who like
nothing in particular.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from keras_eta.datasets import complete_journey

HOUSEHOLDS = 300
# Categories of 100 that a user likes.
TASTES = 3


def purchases(path: str | None = None) -> pd.DataFrame:
    """`user_id`, `item_id`, `category`, `timestamp` (seconds) of all purchases of 300 households drawn at random.

    Args:
        path: as `complete_journey.load`.
    """
    frame = complete_journey.load(path).interactions.to_frame()
    chosen = np.random.default_rng(0).choice(frame["user_id"].unique(), HOUSEHOLDS, replace=False)
    return frame.loc[frame["user_id"].isin(chosen), ["user_id", "item_id", "category", "timestamp"]]


def repeats(num_users: int = 1_000, num_items: int = 4_000, seed: int = 0, tastes: int = 0) -> pd.DataFrame:
    """A log in Taobao's layout: `user_id`, `item_id`, `category_id`, `action`, `timestamp` (seconds, of nine days).

    Each of a user's 30 to 150 behaviours is of one of the last items with probability .35, else of an item drawn by
    popularity: with tastes, half of the time from the user's categories.

    Args:
        num_users: users.
        num_items: items, in 100 categories.
        seed: of the draws.
        tastes: categories that a user likes.
    """
    rng = np.random.default_rng(seed)
    category = rng.integers(1, 101, num_items)
    weights = rng.permutation(1 / np.arange(1, num_items + 1) ** 0.8)
    popularity = np.cumsum(weights) / weights.sum()
    users = []
    for user in range(num_users):
        size = int(rng.integers(30, 150))
        items = np.minimum(np.searchsorted(popularity, rng.random(size)), num_items - 1)
        if tastes:
            liked = np.flatnonzero(np.isin(category, rng.choice(100, tastes, replace=False) + 1))
            own = rng.random(size) < 0.5
            items[own] = rng.choice(liked, own.sum(), p=weights[liked] / weights[liked].sum())
        back = np.minimum(rng.exponential(10, size).astype(int) + 1, np.arange(size))
        for place in np.flatnonzero((rng.random(size) < 0.35) & (back > 0)):
            items[place] = items[place - back[place]]
        users.append(
            pd.DataFrame(
                {
                    "user_id": user + 1,
                    "item_id": items + 1,
                    "category_id": category[items],
                    "action": rng.choice(["pv", "cart", "fav", "buy"], size, p=[0.88, 0.06, 0.03, 0.03]),
                    "timestamp": np.sort(rng.integers(1_511_500_000, 1_512_300_000, size)),
                }
            )
        )
    return pd.concat(users, ignore_index=True)


def main() -> None:
    """Writes all logs."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python -m benchmarks.quality.own_logs",
    )
    parser.add_argument("directory", type=Path, help="where their folders are made")
    directory = parser.parse_args().directory
    for name, log in (("purchases", purchases()), ("tastes", repeats(tastes=TASTES)), ("repeats", repeats())):
        (directory / name).mkdir(parents=True, exist_ok=True)
        log.to_csv(directory / name / "log.csv", index=False)
        print(f"{directory / name / 'log.csv'}: {len(log):,} rows")


if __name__ == "__main__":
    main()
