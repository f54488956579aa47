"""Asks while versions are pushed, broken, rolled back and removed, and checks every answer."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from tqdm import tqdm

from serving.process import ServerProcess
from serving.server.servables import WARMUP_REQUESTS
from serving.targets import proxy_option
from serving.tools.reference_model import HITS, IDS, MODEL, ReferenceModel, rank_request, tensor

_DEADLINE_SECONDS = 30.0
# How long a version may take until it is served or given up.
_PATIENCE_SECONDS = 60.0
_PAUSE_SECONDS = 0.5
POLL_SECONDS = 0.2
_MEMORY_FACTOR = 1.10
_MAX_FAULTS_SHOWN = 20
_Status = get_model_status_pb2.ModelVersionStatus


@dataclasses.dataclass
class Tally:
    """What the clients and the pusher observed. Threads share it.

    Args:
        versions: answers by the version that they name.
        swaps: changes made, by kind.
        faults: what went wrong.
        memory: the server's resident set in bytes, after each change.
        seconds: how long it took.
    """

    versions: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    swaps: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    faults: list[str] = dataclasses.field(default_factory=list)
    memory: list[int] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.lock = threading.Lock()


def fault_of(response: predict_pb2.PredictResponse, hits: np.ndarray, good: frozenset[int]) -> str:
    """What is wrong with an answer; empty if nothing is.

    Args:
        response: the answer.
        hits: how often each candidate is in its history; the version's number is added to it in a right answer.
        good: the versions that may answer.
    """
    version = response.model_spec.version.value
    if version not in good:
        return f"version {version} answered, which was never whole"
    scores = tf.make_ndarray(response.outputs["probability"])
    if not np.array_equal(scores, hits + version):
        return f"version {version} answered {scores.tolist()}, not {(hits + version).tolist()}"
    return ""


class Pusher:
    """Changes the versions, and checks after each change that the expected one answers.

    Args:
        folder: whose subdirectory `eta` is the base path.
    """

    def __init__(self, folder: Path) -> None:
        self.base_path = folder / MODEL
        self.base_path.mkdir()
        self._aside = folder / "aside"
        self._numbers = itertools.count(1)
        self._versions: list[int] = []
        # Every version that was ever whole. Replaced, never changed: clients read it without a lock.
        self.good: frozenset[int] = frozenset()

    def connect(self, channel: grpc.Channel) -> None:
        """Connects to the server."""
        self._models = model_service_pb2_grpc.ModelServiceStub(channel)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def place(self) -> int:
        """Puts a new whole version in place, without waiting for it."""
        version, path = self._new()
        self._versions.append(version)
        self.good |= {version}
        path.rename(self.base_path / str(version))
        return version

    def push(self) -> None:
        """Pushes a new version."""
        self._wait(self.place(), _Status.AVAILABLE)
        for old in self._versions[:-3]:
            shutil.rmtree(self.base_path / str(old))
        del self._versions[:-3]

    def push_broken(self, spoil: Callable[[Path], object]) -> None:
        """Pushes a version that can't be loaded, and removes it again. Its number is not reused."""
        version, path = self._new()
        spoil(path)
        placed = path.rename(self.base_path / str(version))
        self._wait(version, _Status.END)
        shutil.rmtree(placed)

    def roll_back(self) -> None:
        """Rolls back to the version before, by a reload of the configuration."""
        self._reload({"specific": {"versions": self._versions[-2:-1]}})
        self._check(self._versions[-2])

    def promote(self) -> None:
        """Returns to the newest version, by a reload of the configuration."""
        self._reload({"latest": {"num_versions": 1}})
        self._check(self._versions[-1])

    def remove(self) -> None:
        """Removes the newest version; the one before it is loaded again."""
        version = self._versions.pop()
        gone = (self.base_path / str(version)).rename(self._aside / "gone")
        self._wait(version, _Status.END)
        shutil.rmtree(gone)

    def _new(self) -> tuple[int, Path]:
        """Writes a version, not yet in place."""
        version = next(self._numbers)
        ReferenceModel(version).save(self._aside)
        path = self._aside / str(version)
        (path / WARMUP_REQUESTS).parent.mkdir()
        log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=rank_request()))
        with tf.io.TFRecordWriter(str(path / WARMUP_REQUESTS)) as writer:
            writer.write(log.SerializeToString())
        return version, path

    def _reload(self, policy: dict[str, Any]) -> None:
        request = model_management_pb2.ReloadConfigRequest()
        request.config.model_config_list.config.add(
            name=MODEL, base_path=str(self.base_path), model_platform="tensorflow", model_version_policy=policy
        )
        self._models.HandleReloadConfigRequest(request, timeout=_DEADLINE_SECONDS)

    def _wait(self, version: int, state: int) -> None:
        request = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": MODEL})
        end = time.monotonic() + _PATIENCE_SECONDS
        states: dict[int, int] = {}
        while states.get(version) != state:
            if time.monotonic() > end:
                raise TimeoutError(f"version {version} has state {states.get(version)}, not {state}")
            time.sleep(POLL_SECONDS / 2)
            response = self._models.GetModelStatus(request, timeout=_DEADLINE_SECONDS)
            states = {status.version: status.state for status in response.model_version_status}
        self._check(self._versions[-1])

    def _check(self, version: int) -> None:
        """Checks that calls get this version from now on."""
        answered = self._predictions.Predict(rank_request(), timeout=_DEADLINE_SECONDS).model_spec.version.value
        if answered != version:
            raise ValueError(f"version {answered} answers, not {version}")


def _truncated(file: str) -> Callable[[Path], object]:
    def spoil(path: Path) -> None:
        data = (path / file).read_bytes()
        (path / file).write_bytes(data[: len(data) // 2])

    return spoil


def steps(pusher: Pusher) -> Mapping[str, Callable[[], None]]:
    """One round of changes by name, in order."""
    return {
        "pushed": pusher.push,
        "empty saved_model.pb": lambda: pusher.push_broken(lambda path: (path / "saved_model.pb").write_bytes(b"")),
        "rolled back": pusher.roll_back,
        "promoted": pusher.promote,
        "truncated saved_model.pb": lambda: pusher.push_broken(_truncated("saved_model.pb")),
        "pushed after a broken one": pusher.push,
        "truncated variables": lambda: pusher.push_broken(_truncated("variables/variables.data-00000-of-00001")),
        "corrupt warm-up file": lambda: pusher.push_broken(_truncated(str(WARMUP_REQUESTS))),
        "removed": pusher.remove,
        "no variables": lambda: pusher.push_broken(lambda path: shutil.rmtree(path / "variables")),
    }


def ask_until(stopped: threading.Event, target: str, seed: int, pusher: Pusher, tally: Tally) -> None:
    """One client: asks, checks the answer, asks again."""
    rng = np.random.default_rng(seed)
    choices = [rng.integers(0, IDS.shape[1], int(rng.integers(1, 20))) for _ in range(16)]
    asked = [(rank_request(candidates=tensor(IDS[:, chosen])), HITS[:, chosen]) for chosen in choices]
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1), proxy_option(target)]) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for request, hits in itertools.cycle(asked):
            if stopped.is_set():
                return
            try:
                response = stub.Predict(request, timeout=_DEADLINE_SECONDS)
            except grpc.RpcError as error:
                tally.faults.append(f"{error.code().name}: {error.details()}")
                stopped.wait(1)
                continue
            with tally.lock:
                tally.versions[response.model_spec.version.value] += 1
            if fault := fault_of(response, hits, pusher.good):
                tally.faults.append(fault)


def soak(server: ServerProcess, pusher: Pusher, seconds: float, clients: int) -> Tally:
    """Asks and changes versions for a while.

    Args:
        server: of the pusher's base path.
        pusher: has placed two versions.
        seconds: for how long; the round of changes under way is finished first.
        clients: how many threads ask.

    Returns:
        What was seen; up to the first change that failed.
    """
    tally, stopped = Tally(), threading.Event()
    threads = [
        threading.Thread(target=ask_until, args=(stopped, server.address, seed, pusher, tally), daemon=True)
        for seed in range(clients)
    ]
    with (
        grpc.insecure_channel(server.address, [proxy_option(server.address)]) as channel,
        tqdm(total=round(seconds), unit="s") as progress,
    ):
        pusher.connect(channel)
        for thread in threads:
            thread.start()
        began, elapsed = time.monotonic(), 0.0
        try:
            while elapsed <= seconds:
                for kind, change in steps(pusher).items():
                    tally.memory.append(server.memory)
                    change()
                    tally.swaps[kind] += 1
                    elapsed = time.monotonic() - began
                    progress.set_postfix_str(f"{len(tally.faults)} faults", refresh=False)
                    progress.update(min(round(elapsed), progress.total) - progress.n)
                    time.sleep(_PAUSE_SECONDS)
        except (grpc.RpcError, TimeoutError, ValueError) as error:
            tally.faults.append(f"{kind}: {error}")
        finally:
            stopped.set()
            for thread in threads:
                thread.join()
    tally.seconds = time.monotonic() - began
    if server.exit_code is not None:
        tally.faults.append(f"the server ended with {server.exit_code}: {server.last_words()}")
    return tally


def report(tally: Tally) -> list[str]:
    """Prints what was seen.

    Returns:
        The faults, with that of a growing memory, if so.
    """
    print(f"{'change':30} times")
    for kind, times in tally.swaps.items():
        print(f"{kind:30} {times:5}")
    answers, faults = sum(tally.versions.values()), list(tally.faults)
    rate = answers / tally.seconds
    print(f"{answers} answers in {tally.seconds:.0f} s, {rate:.0f} a second, from {len(tally.versions)} versions")
    before, after = memory_around(tally.memory)
    print(f"Resident memory of the server: {before >> 20} MiB after the warm-up, {after >> 20} MiB at the end")
    if after > _MEMORY_FACTOR * before:
        faults.append(f"memory grew by more than {_MEMORY_FACTOR - 1:.0%}")
    for fault in faults[:_MAX_FAULTS_SHOWN]:
        print(f"FAULT: {fault}")
    print(f"{len(faults)} faults")
    return faults


def memory_around(memory: Sequence[int]) -> tuple[int, int]:
    """Memory after the first quarter and at the end: medians of an eighth each, as loading a version takes some too."""
    eighth = max(1, len(memory) // 8)
    warm = len(memory) // 4
    return int(np.median(memory[warm : warm + eighth])), int(np.median(memory[-eighth:]))
