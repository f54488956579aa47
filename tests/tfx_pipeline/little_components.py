# mypy: ignore-errors
# TFX reads the annotations of components in a way of its own.
"""Components that do next to nothing, and a pipeline of them. Run as a script, it runs that pipeline."""

import importlib
import io
import os
import signal
import sys
import time
from pathlib import Path

from rich.console import Console
from tfx import v1 as tfx

from tfx_pipeline.logs import logged_to
from tfx_pipeline.progress import Timing, shown
from tfx_pipeline.side_by_side import Here, Processes, run_pipeline


class Note(tfx.dsl.Artifact):
    """What a component leaves to those after it."""

    TYPE_NAME = "Note"


def _noted(folder: str, name: str, seconds: float) -> None:
    """Writes the process and the time of start and end."""
    start = time.time()
    Path(folder, f"{name}.pid").write_text(str(os.getpid()))
    print(f"{name} speaks")
    time.sleep(seconds)
    threads = os.environ.get("TF_NUM_INTRAOP_THREADS", "0")
    Path(folder, name).write_text(f"{os.getpid()} {start} {time.time()} {threads}")


@tfx.dsl.components.component
def First(  # noqa: N802
    note: tfx.dsl.components.OutputArtifact[Note],
    folder: tfx.dsl.components.Parameter[str],
    seconds: tfx.dsl.components.Parameter[float],
) -> None:
    _noted(folder, "First", seconds)


@tfx.dsl.components.component
def Second(  # noqa: N802
    note: tfx.dsl.components.OutputArtifact[Note],
    folder: tfx.dsl.components.Parameter[str],
    seconds: tfx.dsl.components.Parameter[float],
    fault: tfx.dsl.components.Parameter[str],
) -> None:
    if fault == "error":
        raise ValueError("The second has a fault.")
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    _noted(folder, "Second", seconds)


@tfx.dsl.components.component
def AfterBoth(  # noqa: N802
    first: tfx.dsl.components.InputArtifact[Note],
    second: tfx.dsl.components.InputArtifact[Note],
    folder: tfx.dsl.components.Parameter[str],
) -> None:
    _noted(folder, "AfterBoth", 0.0)


@tfx.dsl.components.component
def AfterFirst(  # noqa: N802
    first: tfx.dsl.components.InputArtifact[Note], folder: tfx.dsl.components.Parameter[str]
) -> None:
    _noted(folder, "AfterFirst", 0.0)


def run_little(folder: Path, jobs: int, seconds: float = 0.0, fault: str = "") -> tuple[list[Timing], str]:
    """Runs the pipeline: the timings of its components, and what it printed."""
    first = First(folder=str(folder), seconds=seconds)
    second = Second(folder=str(folder), seconds=seconds, fault=fault)
    notes = {"first": first.outputs["note"], "second": second.outputs["note"]}
    components = [
        first,
        second,
        AfterBoth(**notes, folder=str(folder)),
        AfterFirst(first=notes["first"], folder=str(folder)),
    ]
    pipeline = tfx.dsl.Pipeline(
        pipeline_name="little",
        pipeline_root=str(folder / "artifacts"),
        components=components,
        enable_cache=True,
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(
            str(folder / "metadata.sqlite")
        ),
    )
    printed = io.StringIO()
    log = folder / "run.log"
    with shown(Console(file=printed, width=200)) as progress, logged_to(log):
        workers = Here(progress) if jobs == 1 else Processes(progress, log, jobs)
        try:
            run_pipeline(pipeline, workers, jobs, progress)
        finally:
            (folder / "printed").write_text(printed.getvalue())
    return progress.timings, printed.getvalue()


if __name__ == "__main__":
    # By its name, under which its components' processes import it.
    importlib.import_module("little_components").run_little(Path(sys.argv[1]), jobs=2, seconds=float(sys.argv[2]))
