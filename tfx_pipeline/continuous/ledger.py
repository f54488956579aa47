"""What the loop has done: files, and rounds. A round is done when the ledger says so, and not before."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
from collections.abc import Mapping
from typing import Any

# Of rounds. An open one is gone on with; a quiet one had no impressions, and one of history was to have none.
OPEN, PUSHED, REFUSED, QUIET, HISTORY = "open", "pushed", "refused", "quiet", "history"
# Of files: its events are in the store; it holds what another file held; too much of it can't be read.
TAKEN, REPEATED, UNREADABLE = "taken", "repeated", "unreadable"


@dataclasses.dataclass(frozen=True)
class KnownFile:
    """A file that the loop has looked at.

    Args:
        name: path within the data directory.
        stamp: `size_and_time` when it was read.
        sha256: of its content.
        span: of its name.
        round: that took it; `None` if none did.
        status: `TAKEN`, `REPEATED` or `UNREADABLE`.
        reason: why it was not taken.
        rows: that it held.
        events: rows that were taken.
        known: rows that were in the store already.
        late: whether a later span had been taken before.
        malformed: malformed rows by reason.
    """

    name: str
    stamp: str
    sha256: str
    span: int
    round: int | None
    status: str
    reason: str = ""
    rows: int = 0
    events: int = 0
    known: int = 0
    late: bool = False
    malformed: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Round:
    """A round.

    Args:
        number: from 1.
        status: `OPEN`, `PUSHED`, `REFUSED`, `QUIET` or `HISTORY`.
        base: path of the served version that was judged and trained on; empty if there was none.
        opened: seconds since 1970, by the machine's clock.
        facts: what became of it; see `Ledger.close`.
    """

    number: int
    status: str
    base: str
    opened: float
    facts: Mapping[str, Any]


class Ledger:
    """Files and rounds in the database. Its methods write within the caller's transaction.

    Args:
        connection: to the database.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def file(self, name: str) -> KnownFile | None:
        """A file by its name."""
        return self._file("name = ?", name)

    def file_with(self, sha256: str) -> KnownFile | None:
        """A file that was taken, by its content."""
        return self._file("status = 'taken' AND sha256 = ?", sha256)

    def files(self, round_number: int) -> list[KnownFile]:
        """The files that a round took, by name."""
        query = "SELECT * FROM file WHERE round = ? ORDER BY name"
        return [_known(row) for row in self._connection.execute(query, [round_number])]

    def refused_files(self, most: int) -> list[KnownFile]:
        """Files of which not all was taken, the latest spans first."""
        query = "SELECT * FROM file WHERE reason <> '' ORDER BY span DESC, name LIMIT ?"
        return [_known(row) for row in self._connection.execute(query, [most])]

    def write_file(self, file: KnownFile) -> None:
        """Adds a file, or replaces what is known of it."""
        values = dataclasses.asdict(file) | {"malformed": json.dumps(file.malformed)}
        marks = ", ".join("?" * len(values))
        self._connection.execute(
            f"INSERT OR REPLACE INTO file ({', '.join(values)}) VALUES ({marks})", [*values.values()]
        )

    def latest_span(self) -> int | None:
        """The latest span of the files that were taken."""
        (span,) = self._connection.execute("SELECT max(span) FROM file WHERE status = 'taken'").fetchone()
        return span

    def rounds(self, most: int) -> list[Round]:
        """The latest rounds, the oldest of them first."""
        query = "SELECT number, status, base, opened, facts FROM round ORDER BY number DESC LIMIT ?"
        return [_round(row) for row in self._connection.execute(query, [most])][::-1]

    def open_round(self) -> Round | None:
        """The round that is not done, if there is one."""
        query = "SELECT number, status, base, opened, facts FROM round WHERE status = 'open'"
        row = self._connection.execute(query).fetchone()
        return None if row is None else _round(row)

    def next_number(self) -> int:
        """The number of a round to come."""
        (number,) = self._connection.execute("SELECT coalesce(max(number), 0) + 1 FROM round").fetchone()
        return number

    def open(self, number: int, base: str, facts: Mapping[str, Any]) -> None:
        """Begins a round."""
        row = [number, OPEN, base, time.time(), json.dumps(facts)]
        self._connection.execute("INSERT INTO round VALUES (?, ?, ?, ?, ?)", row)

    def close(self, number: int, status: str, facts: Mapping[str, Any]) -> None:
        """Ends a round; `facts` are added to what is known of it."""
        (known,) = self._connection.execute("SELECT facts FROM round WHERE number = ?", [number]).fetchone()
        row = [status, json.dumps(json.loads(known) | facts), number]
        self._connection.execute("UPDATE round SET status = ?, facts = ? WHERE number = ?", row)

    def fact(self, name: str, default: Any = None) -> Any:
        """A value that `write_fact` wrote."""
        found = self._connection.execute("SELECT value FROM fact WHERE name = ?", [name]).fetchone()
        return default if found is None else json.loads(found[0])

    def write_fact(self, name: str, value: Any) -> None:
        """Keeps a value that JSON holds."""
        self._connection.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", [name, json.dumps(value)])

    def _file(self, condition: str, value: str) -> KnownFile | None:
        row = self._connection.execute(f"SELECT * FROM file WHERE {condition} LIMIT 1", [value]).fetchone()
        return None if row is None else _known(row)


def _known(row: tuple[Any, ...]) -> KnownFile:
    name, stamp, sha256, span, of_round, status, reason, rows, events, known, late, malformed = row
    return KnownFile(
        name, stamp, sha256, span, of_round, status, reason, rows, events, known, bool(late), json.loads(malformed)
    )


def _round(row: tuple[Any, ...]) -> Round:
    number, status, base, opened, facts = row
    return Round(number, status, base, opened, json.loads(facts))
