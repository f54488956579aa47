"""Trains small models on two replicas and writes down what became of them.

A program, since devices and clusters are set up before TensorFlow starts:

    python -m tests.models.distributed DIRECTORY SCENARIO ...

With TF_CONFIG it is one worker of a cluster; without, it holds both replicas. The result is DIRECTORY/<worker>.pickle.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

from keras_eta import ETA, Feature, Features, ops
from keras_eta.export import export_model
from keras_eta.layers import Dice, FingerprintedEmbedding, fingerprinted_embedding
from keras_eta.models import RetrievalTask

# isort: split
import tensorflow as tf

from tests.paper import paper_eta

WORKER = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))["task"]["index"]

FEATURES = Features(item_id=Feature("item_id", vocabulary_size=30, embedding_dim=8), max_history_length=7)
LENGTH = 7
# Batches of 9, 9, 9 and 1 rows: 5 or 1 for one replica, 4 or none for the other.
ROWS, BATCH, EPOCHS = 28, 9, 2
STEPS = 4 * EPOCHS

optimizers = tf.keras.optimizers
LEARNED = {"similarity_bias": True, "trainable_planes": True}
SCENARIOS: dict[str, dict[str, Any]] = {
    "default": {},
    "averaged sgd, dice": {
        "optimizer": lambda: optimizers.SGD(5.0, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2),
        "model": {"activation": Dice},
    },
    "legacy sgd, weighted rows": {"optimizer": lambda: optimizers.legacy.SGD(2.0), "weighted": True},
    "adam, learned planes, regularised, table in blocks": {
        "optimizer": lambda: optimizers.Adam(0.01),
        "model": {**LEARNED, "embeddings_regularizer": tf.keras.regularizers.L2(0.05)},
        "block_rows": 5,
    },
    # The draw among one behaviour is the same everywhere.
    "learned planes with a period, retrieval task, weighted rows": {
        "model": {**LEARNED, "planes_period": 3, "retrieval_task": lambda: RetrievalTask(0.5, recent=1)},
        "weighted": True,
    },
}


def make_model(scenario: str) -> ETA:
    options = SCENARIOS[scenario]
    fingerprinted_embedding._REFRESH_BLOCK_ROWS = options.get("block_rows", 65_536)
    # Workers draw different values; all must go by those of the first.
    tf.keras.utils.set_random_seed(3 + WORKER)
    arguments = {**options.get("model", {})}
    if "retrieval_task" in arguments:
        arguments["retrieval_task"] = arguments["retrieval_task"]()
    model = paper_eta(
        FEATURES, top_k=3, num_bits=70, short_history_length=0, num_heads=1, hidden_units=(4,), **arguments
    )
    model.compile(options["optimizer"]() if "optimizer" in options else None)
    if not tf.distribute.has_strategy():
        model.build()
    return model


def dataset(scenario: str) -> tf.data.Dataset:
    """The global batches."""
    rng = np.random.default_rng(0)
    columns = {
        "item_id": rng.integers(1, 32, ROWS).astype(np.int32),
        "history_item_id": rng.integers(1, 32, (ROWS, LENGTH)).astype(np.int32),
        "history_length": rng.integers(0, LENGTH + 1, ROWS).astype(np.int32),
    }
    labels = rng.integers(0, 2, ROWS).astype(np.float32)
    weights = (rng.uniform(0.0, 2.0, ROWS).astype(np.float32),) if SCENARIOS[scenario].get("weighted") else ()
    return tf.data.Dataset.from_tensor_slices((columns, labels, *weights)).batch(BATCH)


def replicas(model: ETA) -> list[dict[str, np.ndarray]]:
    """The variables of each replica of this process, by their place in the model."""
    local = model.distribute_strategy.experimental_local_results
    parts = {f"{place} {variable.name}": local(variable) for place, variable in enumerate(model.variables)}
    layer = model.embeddings["item_id"]
    parts |= {"embeddings": local(layer.embeddings), "planes": local(layer.hash.planes)}
    parts |= {"fingerprints": local(layer.fingerprints_table)}
    count = len(parts["fingerprints"])
    return [{name: variables[index].numpy() for name, variables in parts.items()} for index in range(count)]


def stale_rows(model: ETA) -> int:
    """Rows of all tables that are not the fingerprints of their own replica's embeddings."""
    return sum(
        int((ops.simhash(copy["embeddings"], copy["planes"]).numpy() != copy["fingerprints"]).any(axis=1).sum())
        for copy in replicas(model)
    )


class Record(tf.keras.callbacks.Callback):
    """The logs of each step, and how many rows were stale after it."""

    def __init__(self) -> None:
        super().__init__()
        self.logs: list[dict[str, float]] = []
        self.stale: list[int] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.logs.append({name: float(value) for name, value in logs.items()})
        self.stale.append(stale_rows(self.model))


def train(
    scenario: str, strategy: tf.distribute.Strategy, *callbacks: tf.keras.callbacks.Callback
) -> tuple[ETA, dict[str, Any]]:
    """Builds a model under a strategy and fits it."""
    with strategy.scope():
        model = make_model(scenario)
    result: dict[str, Any] = {"stale when built": stale_rows(model)}
    # Large enough for the fingerprints to matter.
    table = model.embeddings["item_id"].embeddings
    table.assign(10.0 * table)
    result |= {"stale when assigned": stale_rows(model), "before": replicas(model)}
    record = Record()
    model.fit(dataset(scenario), epochs=EPOCHS, callbacks=[record, *callbacks], verbose=0)
    return model, {**result, "logs": record.logs, "stale": record.stale, "after": replicas(model)}


def evaluate(model: ETA) -> dict[str, float]:
    """Logs over all rows; the last batch is one row, which only one replica has."""
    return model.evaluate(dataset("default"), return_dict=True, verbose=0)


def load(model: ETA, strategy: tf.distribute.Strategy, directory: Path) -> dict[str, tuple[int, bool]]:
    """Stale rows after each way to load the weights, and whether every variable has its value."""
    checkpoint, h5 = str(directory / f"checkpoint-{WORKER}"), str(directory / f"weights-{WORKER}.h5")
    model.save_weights(checkpoint)
    model.save_weights(h5)
    ways = {
        "checkpoint": lambda loaded: loaded.load_weights(checkpoint),
        "h5": lambda loaded: loaded.load_weights(h5),
        "set_weights": lambda loaded: loaded.set_weights(model.get_weights()),
    }
    results = {}
    for way, load_into in ways.items():
        with strategy.scope():
            loaded = make_model("default")
        load_into(loaded)
        results[way] = (stale_rows(loaded), _equal(loaded, model))
    with strategy.scope():
        unbuilt = ETA.from_config(model.get_config())
        unbuilt.load_weights(checkpoint)
        unbuilt.build()
    return {**results, "checkpoint before build": (stale_rows(unbuilt), _equal(unbuilt, model))}


def _equal(model: ETA, other: ETA) -> bool:
    pairs = zip(replicas(model), replicas(other), strict=True)
    return all(np.array_equal(x, y) for a, b in pairs for x, y in zip(a.values(), b.values(), strict=True))


def backup(directory: Path) -> tf.keras.callbacks.Callback:
    return tf.keras.callbacks.BackupAndRestore(str(directory / "backup"), delete_checkpoint=False)


def resume(strategy: tf.distribute.Strategy, directory: Path) -> dict[str, Any]:
    """One more epoch of a fit of the default that was backed up, in a new model."""
    with strategy.scope():
        model = make_model("default")
    record = Record()
    callbacks = [backup(directory), record]
    history = model.fit(dataset("default"), epochs=EPOCHS + 1, callbacks=callbacks, verbose=0)
    return {"epochs": history.epoch, "stale": record.stale, "after": replicas(model)}


def build_in_replica(strategy: tf.distribute.Strategy) -> str:
    """What a layer says that is built as the replicas run."""
    with strategy.scope():
        layer = FingerprintedEmbedding(4, 4)
    try:
        strategy.run(lambda: layer(tf.constant([1])))
    except RuntimeError as error:
        return str(error)
    return ""


def main(directory: Path, scenarios: list[str]) -> None:
    if "TF_CONFIG" in os.environ:
        strategy: tf.distribute.Strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    results: dict[str, Any] = {"build in a replica": build_in_replica(strategy)}
    for scenario in scenarios:
        callbacks = [backup(directory)] if scenario == "default" else []
        model, results[scenario] = train(scenario, strategy, *callbacks)
        if scenario == "default":
            results["loaded"] = load(model, strategy, directory)
            results["evaluation"] = evaluate(model)
            if WORKER == 0:
                export_model(model, directory / "export", warmup=False)
            results["resumed"] = resume(strategy, directory)
    (directory / f"{WORKER}.pickle").write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
