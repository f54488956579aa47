"""What callers notice of new versions: the same load without pushes, and with one every so often."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from benchmarks.beside import beside
from benchmarks.serving.load import make_requests, run_load
from benchmarks.serving.runs import draw, load_table
from keras_eta.versions import versions
from serving.client import RankingClient
from serving.process import ServerProcess

# Items of the model that is made where no server is given; the other sizes are those of benchmarks.training.
_ITEMS = 200_000
# Own versions that stay in the base path, so that none is deleted while it loads.
_KEPT = 2
# How long the last version may take to be served after the load is over.
_PATIENCE_SECONDS = 120.0


def push(base_path: Path) -> int:
    """Adds a copy of the newest version as the next one, whole or not at all.

    Args:
        base_path: directory of the versions.

    Returns:
        The number of the new version.

    Raises:
        ValueError: if there is no version.
    """
    known = versions(path.name for path in base_path.iterdir())
    if not known:
        raise ValueError(f"{base_path} has no version to push again.")
    newest = max(known)
    hidden = base_path / f".push-{newest + 1}"
    shutil.copytree(base_path / known[newest], hidden)
    hidden.rename(base_path / str(newest + 1))
    return newest + 1


@contextlib.contextmanager
def pushes(base_path: Path, every: float) -> Iterator[list[int]]:
    """Pushes a version every so many seconds, from the first period's end on, until the context ends.

    Of its own versions it leaves the last two; others it leaves alone.

    Args:
        base_path: directory of the versions.
        every: seconds from one push to the next.

    Yields:
        The versions pushed so far.
    """
    done: list[int] = []

    def work(over: threading.Event) -> None:
        while not over.wait(every):
            done.append(push(base_path))
            for old in done[-1 - _KEPT : -_KEPT]:
                shutil.rmtree(base_path / str(old))

    with beside(work):
        yield done


def swap(flags: argparse.Namespace) -> int:
    """Runs both loads, prints a table and the ratio of the 99th percentiles, writes JSON and a plot."""
    with contextlib.ExitStack() as stack:
        if flags.target is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            flags.base_path, flags.model_name = folder / "eta", "eta"
            _export(flags.base_path, flags.history)
            server = ("--model_base_path", str(flags.base_path), "--file_system_poll_wait_seconds=1")
            flags.target = stack.enter_context(ServerProcess(*server, log=folder / "server.log")).address
        requests = make_requests(flags)
        number = (flags.rate or flags.concurrency)[0]
        quiet = run_load(flags, number, requests, "no pushes").report()
        with pushes(flags.base_path, flags.every) as pushed:
            swapped = run_load(flags, number, requests, f"a push every {flags.every:g} s").report()
        if not pushed:
            raise ValueError(f"`--every` must be below the {flags.warmup + flags.duration:g} s of a load.")
        _await_version(flags, pushed[-1])
    title = f"rank of {flags.model_name} at {flags.target}, {len(pushed)} pushes"
    Console().print(load_table(title, [quiet, swapped]))
    ratio = None
    if quiet["ok"] and swapped["ok"]:
        ratio = swapped["latency_ms"]["p99"] / quiet["latency_ms"]["p99"]
        print(f"p99 with pushes over p99 without: {ratio:.2f} (asked: at most 1.5)")
    if flags.json:
        report = {"runs": [quiet, swapped], "pushes": len(pushed), "p99_ratio": ratio}
        flags.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    if flags.plot:
        draw([quiet, swapped], flags.plot, title)
    return 0 if ratio is not None and not quiet["errors"] and not swapped["errors"] else 1


def _export(base_path: Path, history: int) -> None:
    # TensorFlow, which a load on a server does without.
    from benchmarks import training
    from keras_eta.export import export_model

    sizes = argparse.Namespace(dim=64, bits=64, top_k=48, items=_ITEMS)
    export_model(training.make_model("eta", history, sizes), base_path, version=1)


def _await_version(flags: argparse.Namespace, version: int) -> None:
    """Waits until the last version is served, without which nothing was measured."""
    end = time.monotonic() + _PATIENCE_SECONDS
    with RankingClient(flags.target, flags.model_name, timeout=flags.timeout) as client:
        while client.metadata().model_version < version:
            if time.monotonic() > end:
                raise RuntimeError(
                    f"Version {version} was pushed to {flags.base_path} and is not served after "
                    f"{_PATIENCE_SECONDS:g} s. Does {flags.target} watch that directory?"
                )
            time.sleep(0.5)
