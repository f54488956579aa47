"""Load on a server: a closed loop of callers that wait for their answers, or an open loop of requests at set times."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures

import grpc
import numpy as np
from rich.console import Console
from tqdm import tqdm

from benchmarks.serving.requests import random_inputs, serialize
from benchmarks.serving.runs import Call, Run, draw, load_table
from serving.client import RankingClient, ServingError
from serving.targets import proxy_option

_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_OK = grpc.StatusCode.OK
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A connection for each channel, as callers on machines of their own would have.
    ("grpc.use_local_subchannel_pool", 1),
]


def make_requests(flags: argparse.Namespace) -> list[bytes]:
    """Makes one request per user of `--users`, and tries the first.

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
    """A channel with a connection of its own. Without serialisers it takes and gives bytes."""
    return grpc.insecure_channel(target, options=[*_CHANNEL_OPTIONS, proxy_option(target)])


def closed_loop(callers: Sequence[Callable[[], object]], seconds: float, name: str = "") -> list[Call]:
    """Runs each caller in a thread of its own, over and over, until the time is up.

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
    channel: grpc.Channel,
    requests: Sequence[bytes],
    due: np.ndarray,
    timeout: float,
    name: str = "",
    answered: Callable[[bytes], object] = lambda answer: None,
) -> list[Call]:
    """Sends requests at their times, whatever became of those before.

    Args:
        channel: where to.
        requests: sent in turn.
        due: seconds after the start at which to send, ascending.
        timeout: deadline of a call, in seconds from when it is sent.
        name: shown beside the progress.
        answered: gets each answer that is OK, in a thread of gRPC's.
    """
    calls: list[Call] = []
    stop = threading.Event()
    ended = threading.Semaphore(0)
    predict = channel.unary_unary(_PREDICT)
    start = time.perf_counter()

    def record(moment: float, sent: float, call: grpc.Future) -> None:
        calls.append(Call(moment, sent, time.perf_counter() - start, call.code()))
        try:
            if call.code() is _OK:
                answered(call.result())
        finally:
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


def run_load(flags: argparse.Namespace, number: float, requests: Sequence[bytes], name: str) -> Run:
    """One load: an open loop where there is a `--rate`, else a closed one.

    Args:
        flags: of the command.
        number: requests a second, or callers at once.
        requests: sent in turn.
        name: of the run.
    """
    seconds = flags.warmup + flags.duration
    with contextlib.ExitStack() as stack:
        cpu = time.process_time()
        began = time.perf_counter()
        if flags.rate:
            due = arrivals(number, seconds, flags.arrivals, np.random.default_rng(flags.seed))
            calls = open_loop(stack.enter_context(connect(flags.target)), requests, due, flags.timeout, name)
        else:
            channels = [stack.enter_context(connect(flags.target)) for _ in range(int(number))]
            callers = [caller(channel, requests, i, flags.timeout) for i, channel in enumerate(channels)]
            calls = closed_loop(callers, seconds, name)
        cpu = (time.process_time() - cpu) / (time.perf_counter() - began)
    return Run.of(name, calls, flags.warmup, cpu)


def load(flags: argparse.Namespace) -> int:
    """Runs one load after the other, prints a table, writes JSON and a plot."""
    requests = make_requests(flags)
    runs = []
    for number in flags.concurrency or flags.rate:
        name = f"{number:g}/s {flags.arrivals}" if flags.rate else f"{number} callers"
        runs.append(run_load(flags, number, requests, name).report())
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
