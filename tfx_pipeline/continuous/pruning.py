"""Removes what old rounds have left, so that the disk and the time per round stay flat."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import uuid
from pathlib import Path

from tfx_pipeline.continuous.ledger import PUSHED, Ledger
from tfx_pipeline.continuous.settings import Loop

# Of the database of ML Metadata, which has no call that deletes.
_KEPT_ARTIFACTS = "SELECT uri FROM Artifact WHERE id IN (SELECT artifact_id FROM Event WHERE execution_id > ?)"
_PRUNE_METADATA = """
DELETE FROM Execution WHERE id <= :last;
DELETE FROM ExecutionProperty WHERE execution_id NOT IN (SELECT id FROM Execution);
DELETE FROM EventPath WHERE event_id IN (SELECT id FROM Event WHERE execution_id NOT IN (SELECT id FROM Execution));
DELETE FROM Event WHERE execution_id NOT IN (SELECT id FROM Execution);
DELETE FROM Artifact WHERE id NOT IN (SELECT artifact_id FROM Event);
DELETE FROM ArtifactProperty WHERE artifact_id NOT IN (SELECT id FROM Artifact);
DELETE FROM Association WHERE execution_id NOT IN (SELECT id FROM Execution);
DELETE FROM Context WHERE id NOT IN (SELECT context_id FROM Association)
    AND type_id IN (SELECT id FROM Type WHERE name IN ('pipeline_run', 'execution_cache'));
DELETE FROM Attribution WHERE artifact_id NOT IN (SELECT id FROM Artifact)
    OR context_id NOT IN (SELECT id FROM Context);
DELETE FROM ContextProperty WHERE context_id NOT IN (SELECT id FROM Context);
DELETE FROM ParentContext WHERE context_id NOT IN (SELECT id FROM Context)
    OR parent_context_id NOT IN (SELECT id FROM Context);
"""


def prune(loop: Loop, ledger: Ledger) -> None:
    """Removes artifacts, metadata and logs of all but the latest rounds, and all but their latest pushed versions.

    The impressions that new models are judged on stay, and versions that no round has pushed.

    Args:
        loop: `keep` says how many rounds and versions stay.
        ledger: says which rounds there are.
    """
    rounds = [one for one in ledger.rounds(2 * loop.keep + 2) if one.number <= ledger.next_number() - 1 - loop.keep]
    lasts = [one.facts["last_execution"] for one in rounds if one.facts.get("last_execution")]
    if lasts:
        window = ledger.fact("window", {"uri": ""})["uri"]
        _prune_artifacts(loop, max(lasts), window)
    for logs in (loop.logs, loop.dead_letters):
        _keep_latest(logs, loop.keep)
    _prune_versions(loop, ledger)


def last_execution(metadata: Path) -> int:
    """The number of the latest execution in a database of ML Metadata."""
    with contextlib.closing(sqlite3.connect(metadata)) as connection:
        (number,) = connection.execute("SELECT coalesce(max(id), 0) FROM Execution").fetchone()
    return number


def _prune_artifacts(loop: Loop, last: int, window: str) -> None:
    """Removes what executions up to the number `last` have made, unless later ones read it."""
    with contextlib.closing(sqlite3.connect(loop.metadata, isolation_level=None)) as connection:
        kept = {uri for (uri,) in connection.execute(_KEPT_ARTIFACTS, [last])} | {window}
        # Of an execution: <component>/<output>/<number>, and <component>/.system/<kind>/<number>.
        for directory in (*loop.artifacts.glob("*/*/*"), *loop.artifacts.glob("*/.system/*/*")):
            if directory.name.isdecimal() and int(directory.name) <= last and str(directory) not in kept:
                shutil.rmtree(directory, ignore_errors=True)
        connection.execute("BEGIN IMMEDIATE")
        for statement in filter(str.strip, _PRUNE_METADATA.split(";")):
            connection.execute(statement, {"last": last} if ":last" in statement else {})
        connection.execute("COMMIT")


def _prune_versions(loop: Loop, ledger: Ledger) -> None:
    pushed = [one.facts["version"] for one in ledger.rounds(10 * loop.keep + 10) if one.status == PUSHED]
    for version in pushed[: -loop.keep]:
        if os.path.isdir(version):
            # Servers look at names that are numbers: a version vanishes at once.
            hidden = os.path.join(os.path.dirname(version), f".{os.path.basename(version)}.{uuid.uuid4().hex}.pushing")
            os.rename(version, hidden)
            shutil.rmtree(hidden, ignore_errors=True)


def _keep_latest(directory: Path, keep: int) -> None:
    files = sorted(directory.glob("*"), key=lambda path: (path.stat().st_mtime, path.name))
    for path in files[:-keep]:
        path.unlink()
