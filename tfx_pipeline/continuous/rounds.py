"""A round: takes new events, runs its pipeline, and writes into the ledger what became of it."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from tfx.dsl.io import fileio

from tfx_pipeline.components.infra_validator import BLESSED_PROPERTY, REASON_PROPERTY
from tfx_pipeline.continuous.components import GATES_FILE, IMPRESSIONS_FILE, JUDGED_FILE, TRAINED_FILE
from tfx_pipeline.continuous.database import opened, transaction
from tfx_pipeline.continuous.ledger import HISTORY, PUSHED, QUIET, REFUSED, Ledger, Round
from tfx_pipeline.continuous.pipeline import round_pipeline
from tfx_pipeline.continuous.pruning import last_execution, prune
from tfx_pipeline.continuous.report import write_report
from tfx_pipeline.continuous.settings import Loop
from tfx_pipeline.continuous.store import EventStore
from tfx_pipeline.continuous.taking import Taking, new_files
from tfx_pipeline.continuous.training import UntrainableError
from tfx_pipeline.logs import logged_to
from tfx_pipeline.progress import Progress, shown
from tfx_pipeline.results import artifacts_of_latest_run
from tfx_pipeline.side_by_side import Here, run_pipeline
from tfx_pipeline.training.publishing import served_versions
from tfx_pipeline.training.warm_start import base_features, same_features

_JUDGED_CHALLENGER = "judged challenger"

_logger = logging.getLogger(__name__)


def run_round(loop: Loop, console: Console) -> Round | None:
    """Goes on with the open round, or opens one with the new files, and closes it.

    Whatever ends it before that, the next call goes on where it stopped, from the same events and the same version.

    Args:
        loop: what to run.
        console: where to report.

    Returns:
        The round; `None` if there are no new events.

    Raises:
        FileNotFoundError: if there is no data directory or no schema.
        ValueError: if the layout is another than that of the events, or of the served version.
        OSError: if a disk is full.
        Exception: whatever ends a component.
    """
    config, start = loop.config, time.monotonic()
    if not fileio.exists(config.schema):
        raise FileNotFoundError(f"There is no schema {config.schema}.")
    with opened(loop.database, config.layout, config.min_history) as connection:
        ledger = Ledger(connection)
        current = ledger.open_round()
        if current is None:
            current = _opened(loop, connection, ledger, console)
        taking_seconds = time.monotonic() - start
        if current is None:
            return None
        number = current.number
        console.print(_opening_line(current), markup=False, highlight=False, soft_wrap=True)
        store = EventStore(connection, config.layout, config.min_history)
        if not store.has_impressions(number):
            _close(loop, connection, number, QUIET, {"impressions": 0})
            write_report(loop, ledger)
            return ledger.rounds(1)[0]
    with shown(console) as progress, logged_to(loop.logs / f"round-{number:09d}.log"):
        status, facts, window = _outcome(loop, number, progress)
    facts["seconds"] = {"take": taking_seconds, **{timing.component: timing.seconds for timing in progress.timings}}
    facts["seconds"] |= {"all": time.monotonic() - start}
    with opened(loop.database, config.layout, config.min_history) as connection:
        _close(loop, connection, number, status, facts, window)
        ledger = Ledger(connection)
        prune(loop, ledger)
        write_report(loop, ledger)
        (done,) = ledger.rounds(1)
    return done


def _opened(loop: Loop, connection: sqlite3.Connection, ledger: Ledger, console: Console) -> Round | None:
    files = new_files(loop.config, ledger)
    if not files:
        return None
    base = newest(loop.config.serving_dir)
    if base and not same_features(base_features(base), loop.config.layout.features):
        raise ValueError(
            f"The served version {base} reads other features than the layout of this loop. Give the flags that it was "
            "trained with, or another --serving_dir."
        )
    taking = Taking(loop.config, connection, loop.dead_letters)
    old = {path: span for path, span in files.items() if loop.history_until is not None and span <= loop.history_until}
    new = {path: span for path, span in files.items() if path not in old}
    if old:
        number = taking.take(old, base, status=HISTORY)
        if number is not None:
            console.print(
                f"Round {number}: {ledger.rounds(1)[0].facts['events']:,} events are history.", highlight=False
            )
    if new:
        taking.take(new, base, _challenger(loop, ledger))
    for path in files:
        file = ledger.file(os.path.relpath(path, loop.config.data))
        if file is not None and file.reason:
            line = f"{file.name} is left out: {file.reason}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    current = ledger.open_round()
    if current is None:
        write_report(loop, ledger)
    return current


def _challenger(loop: Loop, ledger: Ledger) -> str:
    """The path of a version of a full run that was not judged yet; empty if there is none."""
    challenger = newest(loop.challenger)
    if not challenger or challenger == ledger.fact(_JUDGED_CHALLENGER):
        return ""
    if not same_features(base_features(challenger), loop.config.layout.features):
        _logger.warning("%s reads other features than the layout of this loop: it is no challenger.", challenger)
        return ""
    return challenger


def newest(serving_dir: str) -> str:
    """The path of the newest version in a serving directory; empty if there is none."""
    present = served_versions(serving_dir)
    return os.path.join(serving_dir, present[max(present)]) if present else ""


def _outcome(loop: Loop, number: int, progress: Progress) -> tuple[str, dict[str, Any], str]:
    """Runs the pipeline of a round: its status, facts, and where its impressions are if it was pushed."""
    try:
        run_pipeline(round_pipeline(loop, number), Here(progress), 1, progress)
    except RuntimeError as error:
        cause = error.__cause__ or error
        if not isinstance(cause, UntrainableError):
            raise cause from None
        return REFUSED, {"reasons": [str(cause)], "last_execution": last_execution(loop.metadata)}, ""
    artifacts = artifacts_of_latest_run(str(loop.metadata))

    def uri(component: str, key: str) -> str:
        return str(artifacts[component][key][0].uri)

    evaluation = _read(uri("ProgressiveEvaluator", "evaluation"), JUDGED_FILE)
    gates = _read(uri("RoundGates", "blessing"), GATES_FILE)
    infra = artifacts["LoadedInfraValidator"]["blessing"][0].custom_properties
    pushed = artifacts["AtomicPusher"]["pushed_model"][0].custom_properties
    reasons = list(gates["reasons"])
    if not infra[BLESSED_PROPERTY].int_value:
        reasons.append(f"The model can't be served. {infra[REASON_PROPERTY].string_value}")
    facts = {
        **_read(uri("RoundImpressions", "examples"), IMPRESSIONS_FILE),
        **_read(uri("IncrementalTrainer", "model"), TRAINED_FILE),
        "judged": evaluation["judged"].get("base"),
        "challenger": evaluation["judged"].get("challenger"),
        "trained_from": evaluation["path"],
        "window": gates["window"],
        "reasons": reasons,
        "last_execution": last_execution(loop.metadata),
    }
    if not pushed["pushed"].int_value:
        return REFUSED, facts, ""
    facts["version"] = pushed["pushed_destination"].string_value
    return PUSHED, facts, uri("RoundImpressions", "examples")


def _close(
    loop: Loop, connection: sqlite3.Connection, number: int, status: str, facts: Mapping[str, Any], window: str = ""
) -> None:
    """The transaction that makes a round done."""
    ledger, store = Ledger(connection), EventStore(connection, loop.config.layout, loop.config.min_history)
    challenger = ledger.rounds(1)[0].facts["challenger_path"]
    with transaction(connection):
        ledger.close(number, status, facts)
        store.round_over()
        if facts.get("challenger") and (status == PUSHED or facts["trained_from"] != challenger):
            # One that was the better one and whose offspring was refused gets another chance.
            ledger.write_fact(_JUDGED_CHALLENGER, challenger)
        if window and facts["judged"]:
            ledger.write_fact("window", {"uri": window, "judged": facts["judged"]})


def _opening_line(current: Round) -> str:
    facts = current.facts
    late = f", {facts['late_files']} late" if facts["late_files"] else ""
    left_out = f", {len(facts['left_out_files'])} left out" if facts["left_out_files"] else ""
    return f"Round {current.number}: {facts['events']:,} new events of {facts['files']} files{late}{left_out}"


def _read(uri: str, name: str) -> Any:
    with fileio.open(os.path.join(uri, name)) as file:
        return json.loads(file.read())
