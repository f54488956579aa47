"""Which item does a user take next? Retrieval from all items, nothing sampled.

    python -m benchmarks.next_item movielens --methods popularity sasrec tiger-rq-vae --seeds 0 --json next_item.json

leave-one-out: the last interaction of each user is the test, the last but one the validation. temporal: training is the
first 80 % of the log in time, without 5 % of the items, and the test 10,000 interactions of the last 10 %; how many of
the items that training never saw are found is judged apart; tiger-k-means-unseen is the model of tiger-k-means, with a
tenth of the results kept for them. Every method ranks, or finds among, all items; those of the
user's history are left out. Models train until the validation loss no longer falls, which is looked at after every
100,000 rows. Results are in the JSON file, and a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.quality.results import read_results, write_results
from keras_eta.quiet import quiet_imports

DATA_SETS = ("movielens", "sequences")
METHODS = (
    "popularity",
    "co-occurrence",
    "sasrec",
    "tiger-rq-vae",
    "tiger-k-means",
    "tiger-k-means-unseen",
    "tiger-fingerprints",
    "tiger-random",
)
PROTOCOLS = ("leave-one-out", "temporal")
MEASURES = ("recall_5", "ndcg_5", "recall_10", "ndcg_10", "recall_50")
COLD_MEASURES = ("cold_recall_10", "cold_recall_50")
RESULTS = 50


@dataclasses.dataclass(frozen=True)
class Result:
    """A method judged on the test part.

    Args:
        data: name of the data set.
        protocol: of `PROTOCOLS`.
        method: of `METHODS`.
        seed: of initial weights, ids and the order of batches.
        rows: test impressions.
        cold_rows: those of them whose item training never had to find.
        train_rows: training impressions.
        recall_5: share of rows whose item is among the first 5.
        ndcg_5: mean of 1 / log2(1 + rank) over rows, 0 beyond rank 5.
        recall_10: as `recall_5`.
        ndcg_10: as `ndcg_5`.
        recall_50: as `recall_5`.
        cold_recall_10: `recall_10` of the cold rows; `None` if there are none.
        cold_recall_50: likewise.
        seconds: of training, ids included; 0 where the model is that of the method before.
    """

    data: str
    protocol: str
    method: str
    seed: int
    rows: int
    cold_rows: int
    train_rows: int
    recall_5: float
    ndcg_5: float
    recall_10: float
    ndcg_10: float
    recall_50: float
    cold_recall_10: float | None
    cold_recall_50: float | None
    seconds: float


def measures(found: np.ndarray, wanted: np.ndarray, cold: np.ndarray) -> dict[str, Any]:
    """Recall, and NDCG, at 5, 10 and 50.

    Args:
        found: integers [n, 50], the best first.
        wanted: integers [n].
        cold: bool [n], whether training never had to find the item.
    """
    # TensorFlow, which takes seconds: not for --help.
    from keras_eta.metrics import recall_and_ndcg

    values: dict[str, Any] = {}
    for k in (5, 10):
        values[f"recall_{k}"], values[f"ndcg_{k}"] = recall_and_ndcg(found, wanted, k)
    values["recall_50"], _ = recall_and_ndcg(found, wanted, 50)
    for k in (10, 50):
        values[f"cold_recall_{k}"] = recall_and_ndcg(found[cold], wanted[cold], k)[0] if cold.any() else None
    return values


def main() -> None:
    """Trains each method with each seed, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m benchmarks.next_item"
    )
    parser.add_argument("data_set", choices=DATA_SETS)
    parser.add_argument("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0], help=f"default: {PROTOCOLS[0]}")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--rounds", type=int, default=50, help="of 100,000 rows, at most (default: 50)")
    parser.add_argument(
        "--max_rows", type=int, metavar="N", help="training impressions, for a quick look; default: all"
    )
    parser.add_argument("--data", metavar="PATH", help="of the data set; movielens is fetched by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results, read first and written after each run")
    flags = parser.parse_args()

    # These take seconds: not for --help.
    from benchmarks.next_item.contestants import CONTESTANTS
    from benchmarks.next_item.protocols import LOADERS

    data = LOADERS[flags.data_set](flags.data, flags.protocol)
    parts = data.parts
    if flags.max_rows is not None:
        train = parts.train.sample(min(flags.max_rows, len(parts.train)))
        data = dataclasses.replace(data, parts=parts._replace(train=train))
    results = read_results(flags.json, Result) if flags.json else []
    console, shown = Console(), list[Result]()
    test = parts.test
    wanted, cold = data.places(test.columns["item_id"]), data.cold
    for seed in flags.seeds:
        for method in flags.methods:
            setting = data.name, flags.protocol, method, seed, len(data.parts.train)
            known = [x for x in results if (x.data, x.protocol, x.method, x.seed, x.train_rows) == setting]
            if not known:
                console.print(f"{method}, seed {seed}")
                start = time.perf_counter()
                find = CONTESTANTS[method](data, seed, flags.rounds)
                seconds = time.perf_counter() - start
                found = measures(find(test, RESULTS), wanted, cold)
                known = [Result(*setting[:4], len(wanted), int(cold.sum()), setting[4], **found, seconds=seconds)]
                results += known
                if flags.json:
                    write_results(flags.json, results)
            shown += known
    print_table(shown)


def print_table(results: list[Result]) -> None:
    """A row per method: the mean over seeds and their spread."""
    table = Table(title="the next item, of all", caption="mean ± standard deviation over seeds")
    shown = [name for name in (*MEASURES, *COLD_MEASURES) if getattr(results[0], name) is not None]
    for name in ("method", "seeds", *shown, "training"):
        table.add_column(
            "@".join(name.rsplit("_", 1)).replace("_", " "), justify="left" if name == "method" else "right"
        )
    for method in dict.fromkeys(result.method for result in results):
        own = [result for result in results if result.method == method]
        cells = []
        for name in shown:
            values = [getattr(result, name) for result in own]
            spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.4f}{spread}")
        seconds = np.mean([result.seconds for result in own])
        table.add_row(method, str(len(own)), *cells, f"{seconds:,.0f} s")
    Console(width=160).print(table)


if __name__ == "__main__":
    quiet_imports()
    main()
