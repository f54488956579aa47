"""Runs the components of a pipeline on this machine, those that do not wait for each other side by side."""

from __future__ import annotations

import contextlib
import datetime
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from tfx_pipeline.logs import logged_to
from tfx_pipeline.progress import Progress

# What TFX logs where a component's outputs are those of an earlier run.
_CACHED = "A cached execution %d is used."
# What all components import, before their processes are forked.
_PRELOADED = ["keras_eta", "tfx.v1", "tfx_pipeline.pipeline"]
# Of TensorFlow: threads that one operation is spread over. Several operations run at once nevertheless.
_THREADS = "TF_NUM_INTRAOP_THREADS"

_logger = logging.getLogger(__name__)


def preload() -> None:
    """Begins to import what all components import, in the process that those of `Processes` are forked from."""
    multiprocessing.set_forkserver_preload(_PRELOADED)
    sys.stderr.flush()
    shown = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        # What imports warn of; components log to a file.
        os.dup2(nowhere.fileno(), 2)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.dup2(shown, 2)
        os.close(shown)


class Ended(NamedTuple):
    """How a component ended.

    Attributes:
        cached: whether an earlier run's outputs were taken.
        error: what went wrong; `None` if nothing did.
    """

    cached: bool
    error: Exception | None


class Here:
    """Runs one component at a time, in this process.

    Args:
        progress: follows the components.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._ended: dict[str, Ended] = {}

    def __len__(self) -> int:
        return len(self._ended)

    def start(self, graph: Any, name: str) -> None:
        """Runs a component of a compiled pipeline to its end."""
        self._progress.started(name)
        self._ended[name] = _run_component(graph, name)

    def wait(self) -> dict[str, Ended]:
        """The components that have ended since the last call."""
        ended, self._ended = self._ended, {}
        return ended

    def close(self) -> None:
        """Nothing is left running."""


class Processes:
    """Runs each component in a process of its own, which ends when this one does.

    They share the cores: unless the
    environment sets `TF_NUM_INTRAOP_THREADS`, an operation of TensorFlow is spread over the cores divided by `jobs`. On
    two cores, whose threads would wait for each other, that also makes training alone faster.

    Args:
        progress: follows the components.
        log_file: of what they log.
        jobs: components at a time.
    """

    def __init__(self, progress: Progress, log_file: Path, jobs: int) -> None:
        self._progress, self._log_file = progress, log_file
        self._threads = max(1, len(os.sched_getaffinity(0)) // jobs)
        self._context = multiprocessing.get_context("forkserver")
        preload()
        self._running: dict[str, _Component] = {}

    def __len__(self) -> int:
        return len(self._running)

    def start(self, graph: Any, name: str) -> None:
        """Starts a component of a compiled pipeline."""
        result, send_result = self._context.Pipe(duplex=False)
        output, send_output = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_run_in_child,
            args=(graph.SerializeToString(), name, self._log_file, self._threads, send_result, send_output),
            name=name,
        )
        process.start()
        send_result.close()
        send_output.close()
        self._progress.started(name, process.pid)
        shower = threading.Thread(target=self._show, args=(name, output), daemon=True)
        shower.start()
        self._running[name] = _Component(process, result, shower)

    def wait(self) -> dict[str, Ended]:
        """Waits until some components end."""
        exited = wait([component.process.sentinel for component in self._running.values()])
        ended = {}
        for name, component in [*self._running.items()]:
            if component.process.sentinel in exited:
                component.process.join()
                component.shower.join()
                ended[name] = _result(component)
                del self._running[name]
        return ended

    def close(self) -> None:
        """Kills what still runs: as after any kill, the next run goes on from there."""
        for component in self._running.values():
            component.process.kill()
            component.process.join()

    def _show(self, name: str, output: Connection) -> None:
        with output, os.fdopen(os.dup(output.fileno()), errors="replace") as lines:
            for line in lines:
                self._progress.says(name, line.rstrip())


class _Component(NamedTuple):
    process: Any
    result: Connection
    shower: threading.Thread


def run_pipeline(pipeline: Any, workers: Here | Processes, jobs: int, progress: Progress) -> None:
    """Runs all components of a pipeline, each when those before it have ended.

    Where one fails, those that do not wait for it run nevertheless: the next run takes their outputs.

    Args:
        pipeline: a `tfx.dsl.Pipeline` with its metadata on this machine.
        workers: run them.
        jobs: components at a time, at least 1; in this process, 1.
        progress: follows them.

    Raises:
        RuntimeError: if a component fails; the message names all that do, and its cause is what ended the first.
    """
    graph = _compiled(pipeline)
    waiting = {node.pipeline_node.node_info.id: {*node.pipeline_node.upstream_nodes} for node in graph.nodes}
    progress.num_components = len(waiting)
    errors: dict[str, Exception] = {}
    with contextlib.closing(workers):
        while True:
            ready = [name for name, before in waiting.items() if not before]
            for name in ready[: jobs - len(workers)]:
                del waiting[name]
                workers.start(graph, name)
            if not workers:
                break
            for name, ended in workers.wait().items():
                progress.ended(name, cached=ended.cached, failed=ended.error is not None)
                if ended.error is not None:
                    errors[name] = ended.error
                    continue
                for before in waiting.values():
                    before.discard(name)
    if errors:
        message = "\n".join(f"{name} failed: {error}" for name, error in errors.items())
        raise RuntimeError(message) from next(iter(errors.values()))


def _compiled(pipeline: Any) -> Any:
    """The pipeline as TFX's runners read it, with one id of the run for all components."""
    from tfx.dsl.compiler import compiler, constants
    from tfx.orchestration.portable import runtime_parameter_utils

    graph = compiler.Compiler().compile(pipeline)
    run_id = {constants.PIPELINE_RUN_ID_PARAMETER_NAME: datetime.datetime.now().isoformat()}
    runtime_parameter_utils.substitute_runtime_parameter(graph, run_id)
    return graph


def _run_component(graph: Any, name: str) -> Ended:
    """Runs one component of a compiled pipeline by TFX's LocalDagRunner."""
    from tfx import v1 as tfx

    from tfx_pipeline.checksums import use_google_crc32c

    use_google_crc32c()
    alone = type(graph)()
    alone.CopyFrom(graph)
    for node in alone.nodes:
        if node.pipeline_node.node_info.id != name:
            node.pipeline_node.execution_options.skip.SetInParent()
    error: Exception | None = None
    with _watched() as messages:
        try:
            tfx.orchestration.LocalDagRunner().run_with_ir(alone)
        except Exception as raised:
            _logger.error("%s failed: %s", name, traceback.format_exc())
            error = raised
    return Ended(_CACHED in messages, error)


@contextlib.contextmanager
def _watched() -> Iterator[set[str]]:
    """The messages that are logged while the context lasts, without their arguments."""
    messages = set()
    watch = logging.Handler(logging.INFO)
    watch.emit = lambda record: messages.add(record.msg)  # type: ignore[method-assign]
    logging.getLogger().addHandler(watch)
    try:
        yield messages
    finally:
        logging.getLogger().removeHandler(watch)


def _run_in_child(
    graph: bytes, name: str, log_file: Path, threads: int, result: Connection, output: Connection
) -> None:
    """Runs one component in a process of its own, and sends how it ended."""
    from tfx.proto.orchestration import pipeline_pb2

    os.environ.setdefault(_THREADS, str(threads))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(output.fileno(), sys.stdout.fileno())
    output.close()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with logged_to(log_file):
        cached, error = _run_component(pipeline_pb2.Pipeline.FromString(graph), name)  # type: ignore[attr-defined]
        # As its text: not every exception can be sent.
        result.send((cached, None if error is None else str(error)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _result(component: _Component) -> Ended:
    cached, error = False, f"Its process ended with exit code {component.process.exitcode}."
    with component.result as result, contextlib.suppress(EOFError):
        cached, error = result.recv()
    return Ended(cached, None if error is None else RuntimeError(error))
