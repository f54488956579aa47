"""Training on several replicas: the losses of one process on the same global batches, and exact tables on all.

Every replica runs `tests.models.distributed`, in processes of its own.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.models import distributed

ROOT = Path(__file__).parents[2]
TIMEOUT = 300.0

# Replicas add up their own rows before they add up each other's, so float32 sums differ in their last bits, and steps
# carry the difference on. Nothing else may differ: at eight steps that is far below this.
RELATIVE = 1e-5

Results = dict[str, Any]
OneReplica = dict[str, tuple[Any, Results]]


def _run(directory: Path, command: list[str], configurations: list[dict[str, Any]]) -> None:
    """Runs a process for each TF_CONFIG until all have ended; the first to fail, or the timeout, ends all of them."""
    logs = [directory / f"log-{worker}.txt" for worker in range(len(configurations))]
    processes = []
    try:
        for configuration, log in zip(configurations, logs, strict=True):
            environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
            if configuration:
                environment["TF_CONFIG"] = json.dumps(configuration)
            with log.open("w") as output:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, *command], cwd=ROOT, env=environment, stdout=output, stderr=output
                    )
                )
        deadline = time.monotonic() + TIMEOUT
        while any(process.poll() is None for process in processes):
            failed = any(process.poll() for process in processes)
            if failed or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    ends = "\n".join(f"--- {log.name}\n{log.read_text()[-5000:]}" for log in logs)
    assert not any(code is None or code for code in codes), f"exit codes {codes} (None: did not end)\n{ends}"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def one_replica() -> OneReplica:
    """Each scenario without a strategy: the model and its result."""
    block_rows = distributed.fingerprinted_embedding._REFRESH_BLOCK_ROWS
    results = {name: distributed.train(name, tf.distribute.get_strategy()) for name in distributed.SCENARIOS}
    distributed.fingerprinted_embedding._REFRESH_BLOCK_ROWS = block_rows
    return results


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Each scenario on two replicas in one process."""
    directory = tmp_path_factory.mktemp("mirrored")
    _run(directory, ["-m", "tests.models.distributed", str(directory), *distributed.SCENARIOS], [{}])
    return pickle.loads((directory / "0.pickle").read_bytes())


def _check(result: Results, expected: Results) -> None:
    """Exact tables after every change, and the logs of one process."""
    assert result["stale when built"] == result["stale when assigned"] == 0
    assert result["stale"] == [0] * distributed.STEPS
    for before, after in zip(result["before"], result["after"], strict=True):
        np.testing.assert_array_equal(
            after["fingerprints"], reference.simhash(after["embeddings"], after["planes"]), strict=True
        )
        # Without changes there would be nothing to keep exact.
        assert (after["fingerprints"] != before["fingerprints"]).any()
    assert len(result["logs"]) == distributed.STEPS
    for step, (logs, expected_logs) in enumerate(zip(result["logs"], expected["logs"], strict=True)):
        assert logs == pytest.approx(expected_logs, rel=RELATIVE), step


def _check_equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        # Keras skips statistics of a batch on a replica that has no row of it, and averages over replicas later.
        if "moving" not in name:
            np.testing.assert_array_equal(value, second[name], err_msg=name)


def _check_rest(results: Results, model: Any) -> None:
    """What the program does with the default model, `model` in one process, besides training it."""
    assert results["evaluation"] == pytest.approx(distributed.evaluate(model), rel=RELATIVE)
    assert results["evaluation"]["loss"] == pytest.approx(results["evaluation"]["log_loss"], rel=RELATIVE)
    ways = ("checkpoint", "h5", "set_weights", "checkpoint before build")
    assert results["loaded"] == {way: (0, True) for way in ways}
    assert results["resumed"]["epochs"] == [distributed.EPOCHS]
    assert results["resumed"]["stale"] == [0] * (distributed.STEPS // distributed.EPOCHS)


@pytest.mark.parametrize("scenario", distributed.SCENARIOS)
def test_two_replicas_in_one_process_equal_one(scenario: str, mirrored: Results, one_replica: OneReplica) -> None:
    _check(mirrored[scenario], one_replica[scenario][1])
    _check_equal(*mirrored[scenario]["after"])


def test_evaluation_files_and_resumed_fits_of_two_replicas(mirrored: Results, one_replica: OneReplica) -> None:
    _check_rest(mirrored, one_replica["default"][0])
    _check_equal(*mirrored["resumed"]["after"])


def test_weights_and_counts_with_a_retrieval_task_are_those_of_one_worker(
    mirrored: Results, one_replica: OneReplica
) -> None:
    scenario = "learned planes with a period, retrieval task, weighted rows"
    result, expected = mirrored[scenario]["after"][0], one_replica[scenario][1]["after"][0]
    (drawn,) = (values for name, values in expected.items() if name.endswith("retrieval_task/drawn:0"))
    # Each of two epochs draws alike, and items more than once.
    assert (drawn % 2 == 0).all()
    assert drawn.max() > 2
    # Keras numbers layers on, so that names differ between models; the order does not.
    for name, values, found in zip(expected, expected.values(), result.values(), strict=True):
        np.testing.assert_allclose(found, values, rtol=RELATIVE, atol=1e-6, err_msg=name)


def test_building_in_a_replica_is_refused(mirrored: Results) -> None:
    assert mirrored["build in a replica"].endswith(
        "Build the model in `strategy.scope()` before its replicas run: call its `build`, or the `compile` of a "
        "keras_eta model. FingerprintedEmbedding was about to be built in one of 2 replicas."
    )


@pytest.mark.slow
@pytest.mark.e2e
def test_two_workers_equal_one(tmp_path: Path, one_replica: OneReplica) -> None:
    scenarios = ["default", "learned planes with a period, retrieval task, weighted rows"]
    addresses = [f"localhost:{port}" for port in _free_ports(2)]
    _run(
        tmp_path,
        ["-m", "tests.models.distributed", str(tmp_path), *scenarios],
        [{"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}} for index in range(2)],
    )
    first, second = (pickle.loads((tmp_path / f"{index}.pickle").read_bytes()) for index in range(2))
    for scenario in scenarios:
        for results in (first, second):
            _check(results[scenario], one_replica[scenario][1])
        for state in ("before", "after"):
            _check_equal(*first[scenario][state], *second[scenario][state])
    model, _ = one_replica["default"]
    for results in (first, second):
        _check_rest(results, model)
    _check_equal(*first["resumed"]["after"], *second["resumed"]["after"])
    _check_export(tmp_path / "export" / "1", first["default"]["after"][0], model)


def _check_export(path: Path, replica: dict[str, np.ndarray], model: Any) -> None:
    """The chief's export has the table of its replica, and gives the probabilities of a model of one process."""
    exported = tf.saved_model.load(str(path))
    (table,) = (variable for variable in exported.model_variables if variable.dtype == tf.int64)
    np.testing.assert_array_equal(table, replica["fingerprints"])
    columns, _ = next(iter(distributed.dataset("default")))
    inputs = {name: tf.cast(column, tf.int64) for name, column in columns.items()}
    probabilities = exported.signatures["serving_default"](**inputs)["probability"]
    np.testing.assert_allclose(probabilities, tf.sigmoid(model(columns)), rtol=RELATIVE)


PARAMETER_SERVER = """
from tests.models.distributed import FEATURES
from keras_eta import ETA
import sys
import tensorflow as tf

cluster = tf.train.ClusterSpec({"worker": [f"localhost:{sys.argv[1]}"], "ps": [f"localhost:{sys.argv[2]}"]})
servers = [tf.distribute.Server(cluster, job_name=job) for job in ("worker", "ps")]
resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(cluster, rpc_layer="grpc")
with tf.distribute.ParameterServerStrategy(resolver).scope():
    model = ETA(FEATURES, top_k=3)
    try:
        model.compile()
    except NotImplementedError as error:
        sys.exit(str(error))
"""


@pytest.mark.slow
def test_parameter_server_strategy_is_refused() -> None:
    ports = map(str, _free_ports(2))
    process = subprocess.run(
        [sys.executable, "-c", PARAMETER_SERVER, *ports], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == (
        "FingerprintedEmbedding does not support ParameterServerStrategyV2: its embeddings would change on servers or "
        "devices that do not hash them again, and retrieval would go by old fingerprints. Use "
        "tf.distribute.MultiWorkerMirroredStrategy (several machines) or tf.distribute.MirroredStrategy (several "
        "devices of one machine), where every replica holds the whole model."
    ), process.stderr[-5000:]
