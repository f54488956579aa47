"""What the input pipeline adds to a training step of ETA, by length.

    python -m benchmarks.pipeline
    python -m benchmarks.pipeline --lengths 1024 4096 --plot pipeline.png --json pipeline.json

The same step on batches in memory, and fed by three pipelines: `Impressions.to_dataset`, which gathers histories from a
log in memory; the TFX trainer's, which gathers them from what it has read of its files before; and the one that it has
for what memory does not hold, which reads, shuffles, parses and pads compressed files. And all three without a step.
All histories are full, all ids equally likely, and successive impressions of a user lie side by side in the files.

All contestants of a length are measured in one run, in turn. A turn is a number of steps. Before it, its own pipeline
is opened, all others are closed, and as many steps are run that are not timed: none works ahead in others' turns.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import track

import keras_eta
from benchmarks.flags import make_parser, write_json
from benchmarks.timing import draw, measure, repeated, summary, table
from benchmarks.training import NUM_USERS, Batch, make_model, make_step, random_batches
from keras_eta import Features
from keras_eta.datasets.impressions import Impressions
from keras_eta.datasets.interactions import Interactions
from keras_eta.quiet import quiet_imports

if TYPE_CHECKING:
    import tensorflow as tf

STEP, LOG, PACKED, FILES = "step", "log in memory", "files held in memory", "files"
_SHARDS = 4
# Behaviours of the log that `to_dataset` reads.
_LOG_ROWS = 2_000_000
# More epochs than any run takes.
_EPOCHS = 1_000


def write_files(folder: Path, rows: int, length: int, items: int) -> float:
    """Writes `rows` random transformed impressions as TFX's Transform does and returns the mean bytes of one."""
    import tensorflow as tf

    from tfx_pipeline.ingestion.blocks import BLOCK_SIZE

    generator = np.random.default_rng(0)
    size = 0
    log = np.zeros(0, "int64")
    for shard in range(_SHARDS):
        with tf.io.TFRecordWriter(str(folder / f"transformed_examples-{shard:05}.gz"), "GZIP") as writer:
            numbers = range(rows * shard // _SHARDS, rows * (shard + 1) // _SHARDS)
            for number in track(numbers, description=f"writing file {shard + 1}", transient=True):
                seen = number % BLOCK_SIZE
                if not seen or number == numbers[0]:
                    # Of the next user, the most recent first.
                    log = generator.integers(1, items, length + BLOCK_SIZE)
                example = tf.train.Example()
                for name, values in (
                    ("user_id", generator.integers(1, NUM_USERS, 1)),
                    ("item_id", generator.integers(1, items, 1)),
                    ("history_item_id", log[BLOCK_SIZE - seen :][:length]),
                    ("history_length", [length]),
                    ("label", generator.integers(0, 2, 1)),
                ):
                    example.features.feature[name].int64_list.value.extend(values)
                record = example.SerializeToString()
                size += len(record)
                writer.write(record)
    return size / rows


def from_files(folder: Path, features: Features, rows: int, record_bytes: float) -> tf.data.Dataset:
    """The TFX trainer's pipeline of files, as in the middle of a long epoch: they come again and again."""
    from tfx_pipeline.training.batches import SHUFFLE_BYTES, transformed_batches

    patterns = [str(folder / "*")] * _EPOCHS
    shuffle_buffer = int(SHUFFLE_BYTES / record_bytes)
    return transformed_batches(patterns, features, rows, shuffle_buffer=shuffle_buffer)


def from_packed(folder: Path, features: Features, rows: int) -> tf.data.Dataset:
    """The TFX trainer's pipeline of files that are held in memory, epoch after epoch."""
    from tfx_pipeline.training.packing import pack, part_batches

    return part_batches(pack([str(folder / "*")], features), features, rows, seed=0).repeat()


def from_log(features: Features, rows: int, length: int, items: int) -> tf.data.Dataset:
    """`Impressions.to_dataset` of random users who all have full histories."""
    generator = np.random.default_rng(0)
    # Every user has L behaviours before the first impression, and one impression in each second after that.
    users = max(1, min(NUM_USERS, _LOG_ROWS // (2 * length)))
    moments = np.tile(np.arange(2 * length), users)
    user_id = np.repeat(np.arange(1, users + 1), 2 * length)
    item_id = generator.integers(1, items, len(user_id))
    log = Interactions.from_columns({"user_id": user_id, "item_id": item_id, "timestamp": moments})
    impressions = Impressions.from_interactions(log, lambda log: generator.integers(0, 2, len(log)), min_history=0)
    full = impressions[impressions.history_counts >= length]
    lookup = keras_eta.FeatureLookup(features)
    lookup.set_vocabulary("item_id", np.arange(1, items + 1))
    lookup.set_vocabulary("user_id", np.arange(1, NUM_USERS + 1))
    return full.to_dataset(features, rows, lookup=lookup, shuffle=True, seed=0).repeat()


def turns(folder: Path, length: int, flags: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of each contestant's turns."""
    model = make_model("eta", length, flags)
    record_bytes = write_files(folder, flags.file_rows, length, flags.items)
    memory = random_batches(model, flags.rows, length)
    pipelines = {
        LOG: from_log(model.features, flags.rows, length, flags.items),
        PACKED: from_packed(folder, model.features, flags.rows),
        FILES: from_files(folder, model.features, flags.rows, record_bytes),
    }
    opened: list[Iterator[Batch]] = []

    def batches() -> Iterator[Batch]:
        while True:
            yield next(opened[0])

    step = repeated(make_step(model, batches()), flags.steps)
    no_step = repeated(lambda: next(opened[0]), flags.steps)
    contestants = {STEP: step, **{f"step, {name}": step for name in pipelines}}
    contestants |= {f"no step, {name}": no_step for name in pipelines}

    def before(contestant: str) -> None:
        opened.clear()
        name = contestant.partition(", ")[2]
        opened.append(iter(pipelines[name]) if name else itertools.cycle(memory))
        contestants[contestant]()

    return measure(contestants, flags.rounds, warm_up=1, before=before)


def main() -> None:
    """Measures, prints tables and JSON."""
    parser = make_parser("pipeline", __doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096], metavar="L", help="default: 1024 4096")
    parser.add_argument("--rows", type=int, default=256, help="N, rows a batch (default: 256)")
    parser.add_argument("--file_rows", type=int, default=8_192, help="rows in the files (default: 8,192)")
    parser.add_argument("--steps", type=int, default=20, help="steps of a turn (default: 20)")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contestant (default: 15)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw times against L")
    flags = parser.parse_args()
    # Takes seconds: not for --help.
    import tensorflow as tf

    report = {}
    for length in flags.lengths:
        with tempfile.TemporaryDirectory() as folder:
            times = turns(Path(folder), length, flags)
        rows = summary({name: [ms / flags.steps for ms in values] for name, values in times.items()}, STEP)
        report[str(length)] = rows
        Console().print(table(f"training step of ETA, N={flags.rows} L={length:,}", rows, STEP))
        tf.keras.backend.clear_session()
    if flags.plot:
        draw({f"training step of ETA, N = {flags.rows}": report}, flags.plot)
    write_json({"steps": report}, flags)


if __name__ == "__main__":
    quiet_imports()
    main()
