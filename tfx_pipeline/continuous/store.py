"""The users' logs: events in an index by user and time, which grows by appending and is never read as a whole."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tfx_pipeline.config import HISTORY_BUCKET_STARTS
from tfx_pipeline.continuous.database import in_sequence
from tfx_pipeline.ingestion.impressions import SortUserLog, UserLog
from tfx_pipeline.ingestion.rows import Interaction, UserId, value_dtype, value_names
from tfx_pipeline.layouts import USER_ID, Layout

# `Interaction.file` of what a round brought, and of what was there before.
_NEW, _OLD = 1, 0

Event = tuple[UserId, Interaction]


class EventStore:
    """Events by user and time, each once.

    Args:
        connection: to the database.
        layout: of the events.
        min_history: behaviours that an impression has before it.
    """

    def __init__(self, connection: sqlite3.Connection, layout: Layout, min_history: int) -> None:
        self._connection, self._min_history = connection, min_history
        dtypes = [value_dtype(layout, name) for name in value_names(layout)]
        self._texts = [number for number, dtype in enumerate(dtypes) if dtype is bytes]
        several = {feature.name for feature in layout.features.all_features if feature.max_values}
        self._lists = [number for number, name in enumerate(value_names(layout)) if name in several]
        self._text_user = value_dtype(layout, USER_ID) is bytes
        self._text_outcome = bool(layout.label.positives)
        self._sorter = SortUserLog(layout, ())
        self._sorter.start_bundle()
        self._counted = [
            (feature.name, value_names(layout).index(feature.name) if feature.name != USER_ID else None)
            for feature in layout.features.all_features
            if feature.is_id and feature.min_count > 1
        ]
        # Beyond these no impression differs: neither its history, nor its bucket, nor whether it is one.
        least = max(HISTORY_BUCKET_STARTS[-1], min_history)
        self._reach = [max(sequence.max_length, least) for sequence in layout.log_sequences]

    def add(self, events: Iterable[Event], round_number: int) -> list[Event]:
        """Adds the events that are not there, within the caller's transaction.

        Returns:
            Those that were there: equal to one in every column that is read.
        """
        known = []
        counts: Counter[tuple[str, Any]] = Counter()
        for user, event in events:
            key, sequences = self._user(user), sum(1 << n for n, chosen in enumerate(event.sequences) if chosen)
            row = [key, event.timestamp, self._row(event), sequences, round_number]
            added = self._connection.execute("INSERT OR IGNORE INTO event VALUES (?, ?, ?, ?, ?)", row)
            if not added.rowcount:
                known.append((user, event))
                continue
            self._connection.execute(
                "INSERT INTO newcomer VALUES (?1, ?2, ?2) ON CONFLICT DO UPDATE SET "
                "first = min(first, ?2), last = max(last, ?2)",
                [key, event.timestamp],
            )
            for name, position in self._counted:
                values = user if position is None else event.values[position]
                counts.update((name, _plain(value)) for value in (values if isinstance(values, tuple) else (values,)))
        self._connection.executemany(
            "INSERT INTO id_count VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET count = count + ?3",
            [(*key, count) for key, count in counts.items()],
        )
        return known

    def round_over(self) -> None:
        """Forgets whose events are new, within the caller's transaction."""
        self._connection.execute("DELETE FROM newcomer")

    def new_logs(self, round_number: int) -> Iterator[UserLog]:
        """The log of each user with events of the open round, as far back as their impressions reach.

        Only the events of the round are impressions: `ends` is -1 for the others.
        """
        for user, first, last in self._connection.execute("SELECT user, first, last FROM newcomer ORDER BY user"):
            rows = self._rows(user, first, last, round_number)
            outputs = self._sorter.process((user.encode() if self._text_user else user, rows))
            (log,) = (output for output in outputs if isinstance(output, UserLog))
            fresh = np.array([row.file == _NEW for row in rows])
            yield log._replace(ends=np.where(fresh, log.ends, -1))

    def has_impressions(self, round_number: int) -> bool:
        """Whether an event of the open round has enough behaviours before it to be an impression."""
        return any(len(log.impressions(self._min_history)) for log in self.new_logs(round_number))

    def count_of(self, feature: str, id_: Any) -> int:
        """How many events have an id of a feature with a `min_count`."""
        query = "SELECT count FROM id_count WHERE feature = ? AND id = ?"
        found = self._connection.execute(query, [feature, _plain(id_)]).fetchone()
        return found[0] if found else 0

    def _rows(self, user: Any, first: int, last: int, round_number: int) -> list[Interaction]:
        """Everything from `first` to `last`, and of each sequence the latest behaviours before, in ascending order."""
        columns = "SELECT time, row, round FROM event WHERE user = ?"
        found = set(self._connection.execute(f"{columns} AND time BETWEEN ? AND ?", [user, first, last]))
        for number, reach in enumerate(self._reach):
            chosen = f"user = ? AND time < ? AND {in_sequence(number)}"
            # To the end of a tie: which of its behaviours are the latest, their values decide.
            earliest = self._connection.execute(
                f"SELECT time FROM event WHERE {chosen} ORDER BY time DESC LIMIT 1 OFFSET ?", [user, first, reach - 1]
            ).fetchone()
            found.update(
                self._connection.execute(
                    f"{columns} AND time >= ? AND time < ? AND {in_sequence(number)}",
                    [user, -(2**63) if earliest is None else earliest[0], first],
                )
            )
        texts = json.loads(f"[{','.join(row for _, row, _ in found)}]")
        fresh = [_NEW if of_round == round_number else _OLD for _, _, of_round in found]
        times = [time for time, _, _ in found]
        return sorted(map(self._interaction, times, texts, fresh))

    def _row(self, event: Interaction) -> str:
        values: list[Any] = list(event.values)
        for number in self._texts:
            value = values[number]
            values[number] = [part.decode() for part in value] if isinstance(value, tuple) else value.decode()
        outcome = event.outcome.decode() if isinstance(event.outcome, bytes) else event.outcome
        return json.dumps([values, event.label, outcome, event.sequences], ensure_ascii=False, separators=(",", ":"))

    def _interaction(self, time: int, row: Sequence[Any], file: int) -> Interaction:
        values, label, outcome, sequences = row
        for number in self._texts:
            value = values[number]
            values[number] = [part.encode() for part in value] if isinstance(value, list) else value.encode()
        for number in self._lists:
            values[number] = tuple(values[number])
        outcome = outcome.encode() if self._text_outcome else outcome
        return Interaction(time, tuple(values), label, outcome, tuple(sequences), file)

    def _user(self, user: UserId) -> int | str:
        return user.decode() if isinstance(user, bytes) else user


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
