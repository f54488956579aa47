"""Load on a model server, and what the embedded server costs over a call in process.

    python -m benchmarks.serving load --target 127.0.0.1:8500 --concurrency 1 8 32
    python -m benchmarks.serving load --target 127.0.0.1:8500 --rate 50 100 --json load.json --plot load.png
    python -m benchmarks.serving plot before.json after.json both.png
    python -m benchmarks.serving overhead

`load` drives any server that speaks TensorFlow Serving's gRPC API, with random requests that fit what the model's
metadata say. In a closed loop (`--concurrency`) each caller waits for its answer before it asks again: it finds out how
much the server can do, but slows down with the server. In an open loop (`--rate`) requests come when they come, and
latency counts from the moment a request was due: when the server stalls, those that queue up behind count in full.
"""

from __future__ import annotations

import os
import warnings

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", category=FutureWarning, module="google.api_core")

import argparse
import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tensorflow_serving.apis import predict_pb2
from tqdm import tqdm

from benchmarks import training
from keras_eta.export import PROBABILITY, export_model
from keras_eta.features import HISTORY_LENGTH, HISTORY_TIMESTAMP, TIMESTAMP
from serving.answers import ServingError, Signature
from serving.client import RankingClient
from serving.servables import Servable
from serving.server_process import ServerProcess
from serving.targets import proxy_option

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_OK = grpc.StatusCode.OK
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A connection for each channel, as callers on machines of their own would have.
    ("grpc.use_local_subchannel_pool", 1),
]
_NOW = 1_700_000_000
# The model of `overhead`: the defaults of benchmarks.training.
_SIZES = {"dim": 64, "bits": 64, "top_k": 48, "items": 200_000}
_REQUESTS = 16
_THREAD_SETTINGS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")


class Call(NamedTuple):
    """One request: when it was due, sent and answered, in seconds since the start, and its status code."""

    due: float
    sent: float
    answered: float
    code: grpc.StatusCode


@dataclasses.dataclass(frozen=True)
class Run:
    """What came of one run.

    Args:
        name: what to call it.
        calls: the calls that count, those of the warm-up left out.
        seconds: from the end of the warm-up to the last answer.
        client_cpu: CPU seconds that this process spent, over the run's seconds; near 1 the client is the bottleneck.
    """

    name: str
    calls: Sequence[Call]
    seconds: float
    client_cpu: float

    @classmethod
    def of(cls, name: str, calls: Sequence[Call], warmup: float = 0.0, client_cpu: float = 0.0) -> Run:
        """Keeps the calls that were due after the warm-up."""
        counted = [call for call in calls if call.due >= warmup]
        end = max((call.answered for call in counted), default=warmup)
        return cls(name, counted, end - warmup, client_cpu)

    @property
    def latencies(self) -> np.ndarray:
        """Milliseconds from due to answered, sorted, of the calls answered OK."""
        return np.sort([1e3 * (call.answered - call.due) for call in self.calls if call.code is _OK])

    def report(self) -> dict[str, Any]:
        """Everything as JSON takes it; `curve` has points (percentile, ms) for a plot."""
        latencies = self.latencies
        codes = collections.Counter(call.code.name for call in self.calls if call.code is not _OK)
        late = [1e3 * (call.sent - call.due) for call in self.calls]
        return {
            "name": self.name,
            "requests": len(self.calls),
            "ok": len(latencies),
            "errors": dict(sorted(codes.items())),
            "seconds": self.seconds,
            "ok_per_second": len(latencies) / self.seconds if self.seconds else 0.0,
            "latency_ms": {
                **{f"p{q:g}": percentile(latencies, q) for q in PERCENTILES},
                "max": percentile(latencies, 100),
            },
            "sent_late_p99_ms": percentile(np.sort(late), 99),
            "client_cpu": self.client_cpu,
            "curve": curve(latencies),
        }


def percentile(values: np.ndarray, q: float) -> float | None:
    """The least of the sorted values that at least `q` % of them do not exceed; None if there are none."""
    if not len(values):
        return None
    # Rounded, as 99.9 % of 1,000 is a little over 999 in floating point.
    return float(values[max(math.ceil(round(q / 100 * len(values), 6)), 1) - 1])


def curve(values: np.ndarray) -> list[tuple[float, float]]:
    """Points (percentile, value) of the sorted values, ten for each further nine, up to the last that has samples."""
    points: list[tuple[float, float]] = []
    for tenths in range(int(10 * np.log10(max(len(values), 1))) + 1 if len(values) else 0):
        q = 100 * (1 - 10 ** (-tenths / 10))
        value = percentile(values, q)
        if value is not None:
            points.append((q, value))
    return points


def random_inputs(
    signature: Signature, *, candidates: int, history: int, ids: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Inputs of one user for `rank` or `explain`, by the names, dtypes and ranks that the server gives.

    Args:
        signature: from the model's metadata.
        candidates: C, the length of tables that are no history.
        history: L, the length of tables named `history...`, and the value of `history_length`.
        ids: integers, and the texts of strings, are drawn from 1 to this.
        rng: where from.

    Raises:
        ValueError: if an input is neither one value nor a list for each user, or of a dtype other than these.
    """
    inputs: dict[str, np.ndarray] = {}
    for name, spec in signature.inputs.items():
        if spec.shape is None or len(spec.shape) not in (1, 2):
            raise ValueError(f"Input `{name}` has shape {spec.shape}: no column of a ranking request.")
        shape = (1,) if len(spec.shape) == 1 else (1, history if name.startswith("history") else candidates)
        dtype = tf.as_dtype(spec.dtype)
        drawn = rng.integers(1, ids, shape, endpoint=True)
        if name == HISTORY_LENGTH:
            drawn = np.full(shape, history)
        elif name == TIMESTAMP:
            drawn = np.full(shape, _NOW)
        elif name == HISTORY_TIMESTAMP:
            drawn = _NOW - np.cumsum(drawn, axis=1)
        if dtype.is_floating:
            inputs[name] = rng.random(shape).astype(dtype.as_numpy_dtype)
        elif dtype.is_integer:
            inputs[name] = drawn.astype(dtype.as_numpy_dtype)
        elif dtype == tf.string:
            inputs[name] = np.array([str(value).encode() for value in drawn.flat], object).reshape(shape)
        else:
            raise ValueError(f"Input `{name}` has dtype {spec.dtype}, which this tool can't make up.")
    return inputs


def serialize(model_name: str, signature_name: str, inputs: Mapping[str, np.ndarray]) -> bytes:
    """A PredictRequest as bytes, made once so that the client costs little while it measures."""
    request = predict_pb2.PredictRequest(model_spec={"name": model_name, "signature_name": signature_name})
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    data: bytes = request.SerializeToString()
    return data


def make_requests(flags: argparse.Namespace) -> list[bytes]:
    """One request for each of `--users`, tried once.

    Raises:
        ServingError: if the server can't be reached, does not know the model or refuses the first request.
        ValueError: if the model has no such signature.
    """
    with RankingClient(flags.target, flags.model_name, timeout=flags.timeout) as client:
        signatures = client.metadata().signatures
    if flags.signature not in signatures:
        raise ValueError(f"Model {flags.model_name!r} has no signature {flags.signature!r}: {', '.join(signatures)}")
    rng = np.random.default_rng(flags.seed)
    sizes = {"candidates": flags.candidates, "history": flags.history, "ids": flags.ids}
    requests = [
        serialize(flags.model_name, flags.signature, random_inputs(signatures[flags.signature], **sizes, rng=rng))
        for _ in range(flags.users)
    ]
    with connect(flags.target) as channel:
        try:
            channel.unary_unary(_PREDICT)(requests[0], timeout=flags.timeout)
        except grpc.RpcError as error:
            raise ServingError(flags.target, flags.model_name, error.code(), error.details()) from error
    return requests


def connect(target: str) -> grpc.Channel:
    """A channel that shares its connection with no other. Without serialisers it takes and gives bytes."""
    return grpc.insecure_channel(target, options=[*_CHANNEL_OPTIONS, proxy_option(target)])


def closed_loop(callers: Sequence[Callable[[], object]], seconds: float, name: str = "") -> list[Call]:
    """Each caller in a thread of its own, again and again, until the time is over.

    Args:
        callers: functions that make one call and wait for its answer; they may raise grpc.RpcError.
        seconds: for how long calls begin.
        name: shown beside the progress.
    """
    calls: list[Call] = []
    stop = threading.Event()
    start = time.perf_counter()

    def work(caller: Callable[[], object]) -> None:
        while not stop.is_set() and (sent := time.perf_counter() - start) < seconds:
            code = _OK
            try:
                caller()
            except grpc.RpcError as error:
                code = error.code()
            calls.append(Call(sent, sent, time.perf_counter() - start, code))

    with futures.ThreadPoolExecutor(len(callers)) as pool:
        _watch([pool.submit(work, caller) for caller in callers], stop, calls, seconds, name)
    return calls


def open_loop(
    channel: grpc.Channel, requests: Sequence[bytes], due: np.ndarray, timeout: float, name: str = ""
) -> list[Call]:
    """Requests at their times, whatever became of those before.

    Args:
        channel: where to.
        requests: sent in turn.
        due: seconds after the start at which to send, ascending.
        timeout: deadline of a call, in seconds from when it is sent.
        name: shown beside the progress.
    """
    calls: list[Call] = []
    stop = threading.Event()
    ended = threading.Semaphore(0)
    predict = channel.unary_unary(_PREDICT)
    start = time.perf_counter()

    def record(moment: float, sent: float, call: grpc.Future) -> None:
        calls.append(Call(moment, sent, time.perf_counter() - start, call.code()))
        ended.release()

    def work() -> None:
        count = 0
        for moment, request in zip(due.tolist(), itertools.cycle(requests)):
            while (wait := start + moment - time.perf_counter()) > 0 and not stop.wait(wait):
                pass
            if stop.is_set():
                break
            sent = time.perf_counter() - start
            predict.future(request, timeout=timeout).add_done_callback(functools.partial(record, moment, sent))
            count += 1
        for _ in range(count):
            ended.acquire()

    with futures.ThreadPoolExecutor(1) as pool:
        _watch([pool.submit(work)], stop, calls, float(due[-1]) if len(due) else 0.0, name)
    return calls


def _watch(
    workers: Sequence[futures.Future], stop: threading.Event, calls: Sequence[Call], seconds: float, name: str
) -> None:
    """Shows progress until all workers are done, and raises what they raised; Ctrl-C tells them to stop."""
    start = time.perf_counter()
    layout = "{desc} {bar} {n:.0f} of {total:.0f} s{postfix}"
    try:
        with tqdm(total=seconds, desc=name, bar_format=layout, leave=False, disable=None) as bar:
            while futures.wait(workers, timeout=0.2).not_done:
                bar.n = min(time.perf_counter() - start, seconds)
                bar.set_postfix(answered=len(calls))
    finally:
        stop.set()
    for worker in workers:
        worker.result()


def arrivals(rate: float, seconds: float, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Times at which requests come, ascending: `fixed` gaps, or those of a `poisson` process."""
    if kind == "fixed":
        return np.arange(round(rate * seconds)) / rate
    # The number of arrivals is Poisson, and they lie uniformly.
    return np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds)))


def caller(channel: grpc.Channel, requests: Sequence[bytes], offset: int, timeout: float) -> Callable[[], object]:
    """A function that sends the next of the requests, from the one at `offset` on, and waits."""
    predict = channel.unary_unary(_PREDICT)
    following = itertools.islice(itertools.cycle(requests), offset % len(requests), None)
    return lambda: predict(next(following), timeout=timeout)


def load(flags: argparse.Namespace) -> int:
    """Runs one load after the other, prints a table, writes JSON and a plot."""
    requests = make_requests(flags)
    seconds = flags.warmup + flags.duration
    runs = []
    for number in flags.concurrency or flags.rate:
        with contextlib.ExitStack() as stack:
            cpu = time.process_time()
            began = time.perf_counter()
            if flags.rate:
                name = f"{number:g}/s {flags.arrivals}"
                due = arrivals(number, seconds, flags.arrivals, np.random.default_rng(flags.seed))
                calls = open_loop(stack.enter_context(connect(flags.target)), requests, due, flags.timeout, name)
            else:
                name = f"{number} callers"
                channels = [stack.enter_context(connect(flags.target)) for _ in range(number)]
                callers = [caller(channel, requests, i, flags.timeout) for i, channel in enumerate(channels)]
                calls = closed_loop(callers, seconds, name)
            cpu = (time.process_time() - cpu) / (time.perf_counter() - began)
        runs.append(Run.of(name, calls, flags.warmup, cpu).report())
    title = f"{flags.signature} of {flags.model_name} at {flags.target}, C={flags.candidates} L={flags.history}"
    Console().print(load_table(title, runs))
    for run in runs:
        late = run["sent_late_p99_ms"] or 0
        if late > 1 or run["client_cpu"] > 0.9:
            print(
                f"{run['name']}: this client may be the bottleneck. It used {run['client_cpu']:.0%} of a core, and 1 % "
                f"of the requests were sent {late:.1f} ms late or later, which counts in the latencies."
            )
    if flags.json:
        settings = {name: value for name, value in vars(flags).items() if name not in ("json", "plot", "run")}
        flags.json.write_text(json.dumps({"settings": settings, "runs": runs}, indent=2), encoding="utf-8")
    if flags.plot:
        draw(runs, flags.plot, title)
    return 0 if all(run["ok"] for run in runs) else 1


def load_table(title: str, runs: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each run."""
    table = Table(title=title, caption="ms; latencies are those of the calls answered OK", caption_justify="left")
    table.add_column("load", overflow="fold")
    for column in ("OK", "OK/s", *(f"p{q:g}" for q in PERCENTILES), "max"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("errors", overflow="fold")
    for run in runs:
        latencies = ["-" if value is None else f"{value:.1f}" for value in run["latency_ms"].values()]
        errors = "\n".join(f"{count:,} {code}" for code, count in run["errors"].items()) or "none"
        table.add_row(run["name"], f"{run['ok']:,}", f"{run['ok_per_second']:.1f}", *latencies, errors)
    return table


def draw(runs: Sequence[Mapping[str, Any]], path: Path, title: str = "") -> None:
    """Latency against percentile, on an axis on which each further nine takes as much room, a line for each run."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="percentile", ylabel="latency, ms")
    longest = 1
    for run in runs:
        if run["curve"]:
            q, values = np.transpose(run["curve"])
            axes.plot(1 / (1 - q / 100), values, label=run["name"])
            longest = max(longest, run["ok"])
    nines = range(1, int(np.ceil(np.log10(longest))) + 1)
    axes.set_xscale("log")
    labels = {1: "0", 2: "50"} | {10**n: f"{100 - 100 / 10**n:.{max(n - 2, 0)}f}" for n in nines}
    axes.set_xticks(list(labels), list(labels.values()))
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.4)
    if axes.lines:
        axes.legend()
    figure.savefig(path)


def plot(flags: argparse.Namespace) -> int:
    """Lays the runs of several JSON files over each other."""
    runs = []
    for path in flags.reports:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["runs"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no report of `load --json`: {error!r}") from error
        runs += [{**run, "name": f"{path.stem}: {run['name']}"} for run in found]
    draw(runs, flags.image)
    Console().print(load_table("", runs))
    return 0


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
        calls: one after the other, for a round's latency.
        threads: that call at once, for a round's throughput.
        seconds: of throughput a round.

    Returns:
        `p50_ms` and `calls_per_second`, each by contestant with a value a round.
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


def _number(kind: Callable[[str], Any], above: float = 0, or_equal: bool = False) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not (above < value < float("inf") or (or_equal and value == above)):
            kinds = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(
                f"must be {kinds} {'of at least' if or_equal else 'above'} {above}. Received: {text}"
            )
        return value

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="load|plot|overhead")

    one = commands.add_parser("load", help="drive a server")
    one.set_defaults(run=load)
    one.add_argument(
        "--target", default="127.0.0.1:8500", metavar="HOST:PORT", help="address of the server (default: %(default)s)"
    )
    one.add_argument("--model_name", default="eta", metavar="NAME", help="name of the model (default: %(default)s)")
    one.add_argument(
        "--signature", default="rank", choices=("rank", "explain"), help="signature to call (default: %(default)s)"
    )
    loop = one.add_mutually_exclusive_group()
    loop.add_argument(
        "--concurrency",
        type=_number(int),
        nargs="+",
        metavar="N",
        help="closed loop: callers at once, one run for each number (default: 8)",
    )
    loop.add_argument(
        "--rate",
        type=_number(float),
        nargs="+",
        metavar="Q",
        help="open loop: requests a second, one run for each number",
    )
    one.add_argument(
        "--arrivals",
        default="poisson",
        choices=("poisson", "fixed"),
        help="gaps of the open loop (default: %(default)s)",
    )
    one.add_argument(
        "--users",
        type=_number(int),
        default=100,
        metavar="R",
        help="distinct requests, one user each (default: %(default)s)",
    )
    one.add_argument(
        "--candidates",
        type=_number(int),
        default=500,
        metavar="C",
        help="candidates of a request (default: %(default)s)",
    )
    one.add_argument(
        "--history",
        type=_number(int, or_equal=True),
        default=1024,
        metavar="L",
        help="behaviours of a user (default: %(default)s)",
    )
    one.add_argument(
        "--ids", type=_number(int), default=3_000, metavar="V", help="ids are drawn from 1 to V (default: %(default)s)"
    )
    one.add_argument(
        "--duration",
        type=_number(float),
        default=30.0,
        metavar="SECONDS",
        help="measured, of each run (default: %(default)s)",
    )
    one.add_argument(
        "--warmup", type=_number(float, or_equal=True), default=5.0, metavar="SECONDS", help="before that, not measured"
    )
    one.add_argument(
        "--timeout",
        type=_number(float),
        default=10.0,
        metavar="SECONDS",
        help="deadline of a call (default: %(default)s)",
    )
    one.add_argument(
        "--seed",
        type=_number(int, or_equal=True),
        default=0,
        metavar="N",
        help="of inputs and arrivals (default: %(default)s)",
    )
    one.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    one.add_argument("--plot", type=Path, metavar="FILE", help="draw latency against percentile: .png, .svg, .pdf")

    one = commands.add_parser("plot", help="lay the runs of several reports over each other")
    one.set_defaults(run=plot)
    one.add_argument("reports", type=Path, nargs="+", metavar="JSON", help="what `load --json` wrote")
    one.add_argument("image", type=Path, metavar="IMAGE", help="file to draw: .png, .svg, .pdf")

    one = commands.add_parser(
        "overhead",
        help="compare the embedded server with calls in process",
    )
    one.set_defaults(run=overhead)
    one.add_argument(
        "--candidates",
        type=_number(int),
        default=500,
        metavar="C",
        help="candidates of a request (default: %(default)s)",
    )
    one.add_argument(
        "--history", type=_number(int), default=1024, metavar="L", help="behaviours of a user (default: %(default)s)"
    )
    one.add_argument(
        "--rounds",
        type=_number(int),
        default=10,
        metavar="N",
        help="how often everything is measured (default: %(default)s)",
    )
    one.add_argument(
        "--calls",
        type=_number(int),
        default=20,
        metavar="N",
        help="calls of a round, for latency (default: %(default)s)",
    )
    one.add_argument(
        "--threads",
        type=_number(int),
        default=8,
        metavar="N",
        help="callers at once, for throughput (default: %(default)s)",
    )
    one.add_argument(
        "--seconds",
        type=_number(float),
        default=3.0,
        metavar="SECONDS",
        help="of a round's throughput (default: %(default)s)",
    )
    one.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there instead of printing it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit code: 0, or 1 if something is wrong with the server or a file, or no call was answered OK.
    """
    flags = _parser().parse_args(argv)
    if flags.run is load and not flags.rate:
        flags.concurrency = flags.concurrency or [8]
    try:
        code: int = flags.run(flags)
    except (ServingError, ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
