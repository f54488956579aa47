"""What the input pipeline adds to a training step of ETA, by length.

    python -m benchmarks.pipeline
    python -m benchmarks.pipeline --lengths 1024 4096 --plot pipeline.png --json pipeline.json

The same step on batches in memory, and fed by both pipelines: `Impressions.to_dataset`, which gathers histories from a
log in memory, and the TFX trainer's, which reads, shuffles, parses and pads compressed files. And both pipelines
without a step. All histories are full and all ids equally likely: the most to read and the least to compress.

All contestants of a length are measured in one run, in turn. A turn is a number of steps, and as many before it that
are not timed, so that batches prefetched in the turns of others don't count.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.progress import track

from benchmarks.flags import make_parser, write_json
from benchmarks.timing import draw, measure, repeated, summary, table
from benchmarks.training import NUM_USERS, Batch, make_model, make_step, random_batches
from keras_eta import FeatureLookup, Features
from keras_eta.datasets.impressions import Impressions
from keras_eta.datasets.interactions import Interactions
from tfx_pipeline.trainer import SHUFFLE_BYTES, transformed_batches

STEP, LOG, FILES = "step", "log in memory", "files"
_SHARDS = 4
# Behaviours of the log that `to_dataset` reads.
_LOG_ROWS = 2_000_000
# More epochs than any run takes.
_EPOCHS = 1_000


def write_files(folder: Path, rows: int, length: int, items: int) -> float:
    """Writes `rows` random transformed impressions as TFX's Transform does and returns the mean bytes of one."""
    generator = np.random.default_rng(0)
    size = 0
    for shard in range(_SHARDS):
        with tf.io.TFRecordWriter(str(folder / f"transformed_examples-{shard:05}.gz"), "GZIP") as writer:
            for _ in track(range(shard, rows, _SHARDS), description=f"writing file {shard + 1}", transient=True):
                example = tf.train.Example()
                for name, values in (
                    ("user_id", generator.integers(1, NUM_USERS, 1)),
                    ("item_id", generator.integers(1, items, 1)),
                    ("history_item_id", generator.integers(1, items, length)),
                    ("history_length", [length]),
                    ("label", generator.integers(0, 2, 1)),
                ):
                    example.features.feature[name].int64_list.value.extend(values)
                record = example.SerializeToString()
                size += len(record)
                writer.write(record)
    return size / rows


def from_files(folder: Path, features: Features, rows: int, record_bytes: float) -> Iterator[Batch]:
    """The TFX trainer's pipeline, as in the middle of a long epoch: the files come again and again."""
    patterns = [str(folder / "*")] * _EPOCHS
    shuffle_buffer = int(SHUFFLE_BYTES / record_bytes)
    return iter(transformed_batches(patterns, features, rows, shuffle_buffer=shuffle_buffer))


def from_log(features: Features, rows: int, length: int, items: int) -> Iterator[Batch]:
    """`Impressions.to_dataset` of random users who all have full histories."""
    generator = np.random.default_rng(0)
    # Every user has L behaviours before the first impression, and one impression in each second after that.
    users = max(1, min(NUM_USERS, _LOG_ROWS // (2 * length)))
    moments = np.tile(np.arange(2 * length), users)
    user_id = np.repeat(np.arange(1, users + 1), 2 * length)
    item_id = generator.integers(1, items, len(user_id))
    log = Interactions.from_columns({"user_id": user_id, "item_id": item_id, "timestamp": moments})
    impressions = Impressions.from_interactions(log, generator.integers(0, 2, len(log)), min_history=0)
    full = impressions[impressions.history_counts >= length]
    lookup = FeatureLookup(features)
    lookup.set_vocabulary("item_id", np.arange(1, items + 1))
    lookup.set_vocabulary("user_id", np.arange(1, NUM_USERS + 1))
    return iter(full.to_dataset(features, rows, lookup=lookup, shuffle=True, seed=0).repeat())


def contestants(folder: Path, length: int, flags: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Functions that run a turn of steps."""
    model = make_model("eta", length, flags)
    record_bytes = write_files(folder, flags.file_rows, length, flags.items)
    pipelines = {
        LOG: lambda: from_log(model.features, flags.rows, length, flags.items),
        FILES: lambda: from_files(folder, model.features, flags.rows, record_bytes),
    }

    def turn(step: Callable[[], object]) -> Callable[[], None]:
        return repeated(step, flags.steps)

    def alone(batches: Iterator[Batch]) -> Callable[[], object]:
        return lambda: next(batches)

    memory = itertools.cycle(random_batches(model, flags.rows, length))
    return {
        STEP: turn(make_step(model, memory)),
        **{f"step, {name}": turn(make_step(model, batches())) for name, batches in pipelines.items()},
        **{f"no step, {name}": turn(alone(batches())) for name, batches in pipelines.items()},
    }


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

    report = {}
    for length in flags.lengths:
        with tempfile.TemporaryDirectory() as folder:
            times = measure(contestants(Path(folder), length, flags), flags.rounds, warm_up=1, settle=1)
        rows = summary({name: [ms / flags.steps for ms in turns] for name, turns in times.items()}, STEP)
        report[str(length)] = rows
        Console().print(table(f"training step of ETA, N={flags.rows} L={length:,}", rows, STEP))
        tf.keras.backend.clear_session()
    if flags.plot:
        draw({f"training step of ETA, N = {flags.rows}": report}, flags.plot)
    write_json({"steps": report}, flags)


if __name__ == "__main__":
    main()
