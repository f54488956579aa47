"""Does the long history pay? Every system of the field on one data set, under one protocol.

    python -m benchmarks.quality movielens --units recent eta full --seeds 0 1 2 --json build/quality/movielens.json

All contestants share the features, the last 16 behaviours, the MLP, the optimisers and the tasks; they differ in what
they read of the long history. Each trains until its validation AUC no longer rises and is judged by its best weights.
Nothing is tuned on the test part. A run that was interrupted goes on where it stopped: results are in the JSON file.

    python -m benchmarks.quality movielens --experiment ablation --axes M K --json ablation.json --plot ablation.png

Experiments: `ablation`, ETA with one part changed at a time; `recall`, how much of the exact scorer's choice each first
stage finds; `staleness`, what it costs to search by tables of some periods ago; `needle`, on data of its own, which
units find the one stretch of a long history that tells.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from benchmarks.quality import ablation
from benchmarks.quality.experiments import EXPERIMENTS
from benchmarks.quality.protocols import LOADERS
from benchmarks.quality.results import Result, print_table, read_results, write_results
from benchmarks.quality.training import count, run
from benchmarks.quality.units import UNITS
from keras_eta.datasets.counting import BASELINES
from keras_eta.quiet import quiet_imports


def main() -> None:
    """Trains each contestant with each seed and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m benchmarks.quality"
    )
    parser.add_argument("data_set", choices=LOADERS)
    parser.add_argument("--experiment", choices=EXPERIMENTS, help="in place of the comparison of units")
    names = [*BASELINES, *UNITS]
    parser.add_argument("--units", nargs="+", choices=names, default=["recent", "eta"], help="default: recent eta")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--epochs", type=int, default=12, help="at most (default: 12)")
    parser.add_argument("--no-task", dest="task", action="store_false", help="train without the retrieval task")
    parser.add_argument("--no-cosine", dest="cosine", action="store_false", help="attend by inner products")
    parser.add_argument("--max_history_length", type=int, metavar="L", help="default: 512; complete_journey 2,048")
    parser.add_argument("--max_rows", type=int, metavar="N", help="rows of each part, for a quick look; default: all")
    parser.add_argument("--data", metavar="PATH", help="of the data set; default: fetched")
    axes = [*ablation.AXES]
    parser.add_argument("--axes", nargs="+", choices=axes, default=axes, help="of the ablation (default: all)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the experiment")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results, read first and written after each run")
    flags = parser.parse_args()

    load, longest = LOADERS[flags.data_set]
    if flags.experiment:
        EXPERIMENTS[flags.experiment](
            flags, lambda length: load(flags.data, length or flags.max_history_length or longest, flags.max_rows)
        )
        return
    data = load(flags.data, flags.max_history_length or longest, flags.max_rows)
    results = read_results(flags.json, Result) if flags.json else []
    known = {result.setting for result in results}
    console, shown = Console(), list[Result]()
    shown += count(data, [unit for unit in flags.units if unit in BASELINES])
    runs = [(seed, unit) for seed in flags.seeds for unit in flags.units if unit in UNITS]
    for number, (seed, unit) in enumerate(runs, 1):
        setting = data.name, unit, seed, flags.task, flags.cosine, data.features.max_history_length, len(data.train)
        if setting in known:
            shown += [result for result in results if result.setting == setting]
            continue
        console.print(f"{number} of {len(runs)}: {unit}, seed {seed}")
        result = run(data, unit, seed, flags.task, flags.cosine, flags.epochs)
        results.append(result)
        shown.append(result)
        console.print(f"test AUC {result.auc:.4f}, grouped {result.grouped_auc:.4f}, best epoch {result.epochs}")
        if flags.json:
            write_results(flags.json, results)
    print_table(shown)


if __name__ == "__main__":
    quiet_imports()
    main()
