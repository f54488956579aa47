"""The SQLite file of the events and of the ledger: one file, so that one transaction covers both."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from tfx_pipeline.layouts import Layout

_SCHEMA = """
CREATE TABLE IF NOT EXISTS event (
    user NOT NULL, time INTEGER NOT NULL, row TEXT NOT NULL, sequences INTEGER NOT NULL, round INTEGER NOT NULL,
    PRIMARY KEY (user, time, row)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS newcomer (
    user PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS id_count (
    feature TEXT NOT NULL, id NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (feature, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS file (
    name TEXT PRIMARY KEY, stamp TEXT NOT NULL, sha256 TEXT NOT NULL, span INTEGER NOT NULL, round INTEGER,
    status TEXT NOT NULL, reason TEXT NOT NULL, rows INTEGER NOT NULL, events INTEGER NOT NULL,
    known INTEGER NOT NULL, late INTEGER NOT NULL, malformed TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS file_content ON file (sha256);
CREATE TABLE IF NOT EXISTS round (
    number INTEGER PRIMARY KEY, status TEXT NOT NULL, base TEXT NOT NULL, opened REAL NOT NULL, facts TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_LAYOUT = "layout"


@contextlib.contextmanager
def opened(path: Path, layout: Layout, min_history: int) -> Iterator[sqlite3.Connection]:
    """A connection to the database, which is made when missing.

    Args:
        path: of the file.
        layout: of the events.
        min_history: of the impressions.

    Raises:
        ValueError: if the events in it are of another layout.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Transactions are those that `transaction` begins.
    connection = sqlite3.connect(path, isolation_level=None, timeout=60.0)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(_SCHEMA)
        selected = {selection.sequence for selection in layout.selections}
        for number, sequence in enumerate(layout.log_sequences):
            if sequence.name in selected:
                # Behaviours may be few among the events of a user.
                connection.execute(
                    f"CREATE INDEX IF NOT EXISTS behaviour_{number} ON event (user, time) WHERE {in_sequence(number)}"
                )
        described = json.dumps([layout.to_dict(), min_history], sort_keys=True)
        found = connection.execute("SELECT value FROM fact WHERE name = ?", [_LAYOUT]).fetchone()
        if found is None:
            connection.execute("INSERT INTO fact VALUES (?, ?)", [_LAYOUT, described])
        elif found[0] != described:
            raise ValueError(
                f"The events in {path} were read with another layout or `min_history`. Give the flags that they were "
                "read with, or begin with a new --state."
            )
        yield connection
    finally:
        connection.close()


def in_sequence(number: int) -> str:
    """The SQL condition that an event is a behaviour of a sequence of `Layout.log_sequences`."""
    return f"(sequences & {1 << number}) <> 0"


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Everything in the context, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
