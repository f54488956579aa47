"""The embedded server against calls in process."""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks import training
from benchmarks.serving.load import caller, closed_loop, connect
from benchmarks.serving.requests import random_inputs, serialize
from benchmarks.serving.runs import Run
from keras_eta.export import PROBABILITY, export_model
from serving.client import RankingClient
from serving.process import ServerProcess
from serving.server.servables import Servable

# The defaults of benchmarks.training.
_SIZES = {"dim": 64, "bits": 64, "top_k": 48, "items": 200_000}
_REQUESTS = 16
_THREAD_SETTINGS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")

SIGNATURE, SESSION, GRPC, CLIENT = "signature in process", "session in process", "gRPC", "gRPC, RankingClient"


def in_process(path: Path, inputs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Callable[[], object]]:
    """The `rank` signature as Python calls it, and the session that the server runs; both take the next inputs."""
    signature = tf.saved_model.load(str(path)).signatures["rank"]
    session = Servable.load(path, 1).calls["rank"]
    named = itertools.cycle(inputs)
    columns = itertools.cycle([[values for _, values in sorted(one.items())] for one in inputs])

    def call_signature() -> object:
        answer = signature(**{name: tf.constant(values) for name, values in next(named).items()})
        return answer[PROBABILITY].numpy()

    return {SIGNATURE: call_signature, SESSION: lambda: session(*next(columns))}


def compare(
    path: Path, sizes: Mapping[str, int], *, rounds: int, calls: int, threads: int, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """Measures one version of a model in this process and behind a server, in turn.

    Args:
        path: the version, in a base path that holds no other.
        sizes: `candidates`, `history` and `ids` of the inputs, as `random_inputs` takes them.
        rounds: how often everything is measured.
        calls: made one after the other in a round, for latency.
        threads: that call at once in a round, for throughput.
        seconds: for how long a round measures throughput.

    Returns:
        `p50_ms` and `calls_per_second`, each by contestant with one value per round.
    """
    p50s: dict[str, list[float]] = collections.defaultdict(list)
    rates: dict[str, list[float]] = collections.defaultdict(list)
    with contextlib.ExitStack() as stack:
        flags = ("--model_base_path", str(path.parent))
        address = stack.enter_context(ServerProcess(*flags, log=path.parent / "server.log")).address
        client = stack.enter_context(RankingClient(address))
        signature = client.metadata().signatures["rank"]
        rng = np.random.default_rng(0)
        inputs = [random_inputs(signature, **sizes, rng=rng) for _ in range(_REQUESTS)]
        requests = [serialize("eta", "rank", one) for one in inputs]
        local = in_process(path, inputs)
        remote = [caller(stack.enter_context(connect(address)), requests, i, 60.0) for i in range(threads)]
        turns = itertools.cycle(inputs)
        alone = {**local, GRPC: remote[0], CLIENT: lambda: client.predict(next(turns), "rank")}
        together = {**{name: [call] * threads for name, call in local.items()}, GRPC: remote}
        for call in (*alone.values(), *remote):
            for _ in range(3):
                call()
        for _ in tqdm(range(rounds), "latency", disable=None):
            for name, call in alone.items():
                times = []
                for _ in range(calls):
                    start = time.perf_counter()
                    call()
                    times.append(1e3 * (time.perf_counter() - start))
                p50s[name].append(float(np.median(times)))
        for _ in tqdm(range(rounds), "throughput", disable=None):
            for name, callers in together.items():
                run = Run.of(name, closed_loop(callers, seconds, name)).report()
                if run["errors"]:
                    raise RuntimeError(f"The server refused calls: {run['errors']}")
                rates[name].append(run["ok_per_second"])
    return {"p50_ms": dict(p50s), "calls_per_second": dict(rates)}


def ratios(values: Mapping[str, Sequence[float]], base: str = SIGNATURE) -> dict[str, dict[str, float]]:
    """For each contestant the median of its values, and of its ratio to `base` round by round, with 10 % to 90 %."""
    table = {}
    for name, measured in values.items():
        low, middle, high = np.percentile(np.divide(measured, values[base]), [10, 50, 90])
        table[name] = {"median": float(np.median(measured)), "ratio": middle, "ratio_p10": low, "ratio_p90": high}
    return table


def overhead(flags: argparse.Namespace) -> int:
    """Measures ETA with the sizes of benchmarks.training, prints tables and JSON."""
    sizes = {"candidates": flags.candidates, "history": flags.history, "ids": _SIZES["items"]}
    rounds = {name: getattr(flags, name) for name in ("rounds", "calls", "threads", "seconds")}
    with tempfile.TemporaryDirectory() as folder:
        model = training.make_model("eta", flags.history, argparse.Namespace(**_SIZES))
        path = export_model(model, Path(folder, "eta"), version=1)
        measured = compare(path, sizes, **rounds)
    threads = {name: os.environ.get(name, "TensorFlow's own") for name in _THREAD_SETTINGS}
    report: dict[str, Any] = {"settings": {**_SIZES, **sizes, **rounds, "cpus": os.cpu_count(), **threads}}
    for key, unit, (sign, bar) in (("p50_ms", "ms", ("<=", 1.15)), ("calls_per_second", "1/s", (">=", 0.9))):
        report[key] = ratios(measured[key])
        title = f"rank, C={flags.candidates} L={flags.history}: " + (
            "p50 of one call at a time" if key == "p50_ms" else f"throughput of {flags.threads} threads"
        )
        table = Table(title=title, caption=f"asked of gRPC: {sign} {bar}", caption_justify="left")
        for column in ("call", f"median, {unit}", f"over {SIGNATURE}", "10 % to 90 %"):
            table.add_column(column, justify="left" if column == "call" else "right")
        for name, row in report[key].items():
            spread = f"{row['ratio_p10']:.2f} to {row['ratio_p90']:.2f}"
            table.add_row(name, f"{row['median']:.1f}", f"{row['ratio']:.2f}", spread)
        Console().print(table)
    text = json.dumps(report, indent=2)
    if flags.json:
        flags.json.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0
