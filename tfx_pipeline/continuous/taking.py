"""Takes new files of events: into the store and the ledger, all of a round or nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfx.dsl.io import fileio

from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.continuous.database import transaction
from tfx_pipeline.continuous.ledger import OPEN, REPEATED, TAKEN, UNREADABLE, KnownFile, Ledger
from tfx_pipeline.continuous.reading import FileRows, read_joined, read_rows
from tfx_pipeline.continuous.store import Event, EventStore
from tfx_pipeline.ingestion.counting import MALFORMED, Malformed
from tfx_pipeline.ingestion.files import log_spans, size_and_time
from tfx_pipeline.ingestion.impressions import DUPLICATE
from tfx_pipeline.ingestion.log_checks import check_file
from tfx_pipeline.ingestion.malformed import NUM_EXAMPLES, check_malformed, log_parts, shortened
from tfx_pipeline.ingestion.report import check_spellings, check_time_units
from tfx_pipeline.ingestion.rows import AFTER_THE_RUN, SPELLING, TIME_UNIT, Joined

_CHUNK_BYTES = 1 << 20
# Of the ledger: sums of all files that say in which unit times are and how ids are spelt.
_SPELT = "units and spellings"

_logger = logging.getLogger(__name__)


def new_files(config: PipelineConfig, ledger: Ledger) -> dict[str, int]:
    """The files that are to be read, with their spans, by span and name.

    They are unknown, or have changed since they were read, or had rows from the future, which the clock may explain.

    Raises:
        FileNotFoundError: if there is no data directory.
    """
    if not fileio.isdir(config.data):
        raise FileNotFoundError(f"`data` must be the directory of the events. There is no directory {config.data!r}")
    found = {}
    for path, span in log_spans(config.data, config.layout).items():
        known = ledger.file(os.path.relpath(path, config.data))
        early = known is not None and known.status == UNREADABLE and AFTER_THE_RUN in known.reason
        if known is None or early or known.stamp != size_and_time(path):
            found[path] = span
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


class Taking:
    """Takes files of events, one round at a time.

    Args:
        config: layout, data and what share of rows may be malformed.
        connection: to the database.
        dead_letters: directory for malformed rows.
    """

    def __init__(self, config: PipelineConfig, connection: sqlite3.Connection, dead_letters: Path) -> None:
        self._config, self._connection, self._dead_letters = config, connection, dead_letters
        self._ledger = Ledger(connection)
        self._store = EventStore(connection, config.layout, config.min_history)

    def take(self, files: Mapping[str, int], base: str, challenger: str = "", *, status: str = OPEN) -> int | None:
        """Begins a round with the events of some files.

        Args:
            files: their spans by path, in order.
            base: path of the version that is served, or empty.
            challenger: path of a version that may take over, or empty.
            status: `OPEN`, or `HISTORY` for a round that is over at once, as its events are behaviours only.

        Returns:
            The number of the round; `None` if the files hold no new event. They are in the ledger in any case.

        Raises:
            ValueError: if a joined table can't be read.
        """
        number, latest = self._ledger.next_number(), self._ledger.latest_span()
        joined = read_joined(self._config.layout, self._config.data)
        with transaction(self._connection):
            taken = []
            for path, span in files.items():
                known = self._take_file(path, span, number, latest, joined)
                self._ledger.write_file(known)
                if known.status == TAKEN:
                    latest = span if latest is None else max(span, latest)
                taken.append(known)
            facts = _summary(taken, number)
            events = facts["events"]
            if events:
                self._ledger.open(number, base, {**facts, "challenger_path": challenger})
            if events and status != OPEN:
                self._ledger.close(number, status, {})
                self._store.round_over()
        return number if events else None

    def _take_file(self, path: str, span: int, number: int, latest: int | None, joined: Joined) -> KnownFile:
        config, name = self._config, os.path.relpath(path, self._config.data)
        # Before the content: what is written meanwhile is another change.
        stamp, digest = size_and_time(path), _sha256(path)
        late = latest is not None and span < latest
        twin = self._ledger.file_with(digest)
        before = self._ledger.file(name)
        if twin is not None and twin.name != name:
            _logger.warning("%s holds what %s held: it is left out.", name, twin.name)
            return KnownFile(name, stamp, digest, span, None, REPEATED, f"holds what {twin.name} held")
        try:
            check_file(path, config.layout)
            rows = read_rows(path, config.layout, joined)
            events = self._without_duplicates(path, rows)
            self._check(path, rows)
        except (ValueError, RuntimeError, OSError) as error:
            _logger.warning("%s is left out: %s", name, error)
            if before is not None and before.status == TAKEN:
                # Its events stay in the store.
                return dataclasses.replace(before, stamp=stamp, reason=f"changed, and is left out: {error}")
            return KnownFile(name, stamp, digest, span, None, UNREADABLE, str(error), late=late)
        known = self._store.add(events, number)
        self._write_dead_letters(digest, rows.malformed)
        self._remember(rows.counts)
        (part,) = log_parts(rows.counts, config.data, {path: ""}).files
        taken = len(events) - len(known)
        return KnownFile(
            name, stamp, digest, span, number, TAKEN, "", part.rows_read, taken, len(known), late, dict(part.reasons)
        )

    def _without_duplicates(self, path: str, rows: FileRows) -> list[Event]:
        """The events of a file, each once; the others are malformed rows, as in a full run."""
        seen, events = set(), []
        for user, event in rows.events:
            key = (user, event[:-1])
            if key in seen:
                count = "\t".join((MALFORMED, DUPLICATE, path))
                rows.counts[count] = rows.counts.get(count, 0) + 1
                rows.malformed.append(Malformed(DUPLICATE, path, json.dumps([user, *event[:-1]], default=_text)))
            else:
                seen.add(key)
                events.append((user, event))
        return events

    def _check(self, path: str, rows: FileRows) -> None:
        """Refuses a file with too many malformed rows, or whose times or ids are spelt unlike those of earlier ones."""
        config = self._config
        examples: dict[str, list[str]] = {}
        for row in rows.malformed:
            some = examples.setdefault(row.reason, [])
            if len(some) < NUM_EXAMPLES:
                some.append(shortened(row.row))
        name = os.path.relpath(path, config.data)
        parts = log_parts(rows.counts, config.data, {path: ""}, name)
        check_malformed(parts, {name: examples}, "the file itself", config.max_bad_share)
        spelt = self._ledger.fact(_SPELT, {})
        counts = {**spelt, **{key: count for key, count in rows.counts.items() if _is_spelling(key)}}
        check_spellings(counts)
        check_time_units(counts, config.layout)

    def _remember(self, counts: Mapping[str, int]) -> None:
        """Adds to the sums of units and spellings, under the first file of each."""
        spelt = self._ledger.fact(_SPELT, {})
        by_kind = {key.rpartition("\t")[0]: key for key in spelt}
        for key, count in counts.items():
            if _is_spelling(key):
                first = by_kind.setdefault(key.rpartition("\t")[0], key)
                spelt[first] = spelt.get(first, 0) + count
        self._ledger.write_fact(_SPELT, spelt)

    def _write_dead_letters(self, digest: str, malformed: list[Malformed]) -> None:
        if malformed:
            self._dead_letters.mkdir(parents=True, exist_ok=True)
            lines = "".join(f"{json.dumps(row._asdict(), ensure_ascii=False)}\n" for row in malformed)
            (self._dead_letters / f"{digest[:16]}.jsonl").write_text(lines, encoding="utf-8")


def _summary(files: list[KnownFile], number: int) -> dict[str, Any]:
    taken = [file for file in files if file.round == number]
    return {
        "files": len(taken),
        "late_files": sum(file.late for file in taken),
        "left_out_files": [f"{file.name}: {file.reason}" for file in files if file.round != number],
        "rows": sum(file.rows for file in taken),
        "events": sum(file.events for file in taken),
        "known_rows": sum(file.known for file in taken),
        "malformed": sum(sum(file.malformed.values()) for file in taken),
    }


def _is_spelling(key: str) -> bool:
    return key.partition("\t")[0] in (SPELLING, TIME_UNIT)


def _sha256(path: str) -> str:
    content = hashlib.sha256()
    with fileio.open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            content.update(chunk)
    return content.hexdigest()


def _text(value: Any) -> str:
    return value.decode()
