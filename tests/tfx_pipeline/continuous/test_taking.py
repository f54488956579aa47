"""New files: taken once, whole or not at all, late ones too; what is left out, and when it is tried again."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.tfx_pipeline.continuous.events import LAYOUT, START, make_loop, rows_of, write_span
from tfx_pipeline.continuous.database import opened
from tfx_pipeline.continuous.ledger import REPEATED, TAKEN, UNREADABLE, KnownFile, Ledger
from tfx_pipeline.continuous.settings import Loop
from tfx_pipeline.continuous.taking import Taking, new_files


class Books:
    """The ledger of a loop, and rounds that are over as soon as their files are taken."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def take(self) -> int | None:
        """Takes what is new; the number of the round."""
        config = self.loop.config
        with opened(self.loop.database, config.layout, config.min_history) as connection:
            files = new_files(config, Ledger(connection))
            number = Taking(config, connection, self.loop.dead_letters).take(files, "") if files else None
            connection.execute("UPDATE round SET status = 'pushed'")
            connection.execute("DELETE FROM newcomer")
        return number

    def pending(self) -> list[str]:
        """The names of the files that would be read now."""
        with opened(self.loop.database, self.loop.config.layout, self.loop.config.min_history) as connection:
            return [Path(path).name for path in new_files(self.loop.config, Ledger(connection))]

    def file(self, name: str) -> KnownFile:
        """What is known of a file."""
        with opened(self.loop.database, self.loop.config.layout, self.loop.config.min_history) as connection:
            found = Ledger(connection).file(name)
        assert found is not None
        return found

    def events(self) -> int:
        """How many events there are."""
        with opened(self.loop.database, self.loop.config.layout, self.loop.config.min_history) as connection:
            return connection.execute("SELECT count(*) FROM event").fetchone()[0]

    def facts(self) -> dict:
        """Those of the last round."""
        with opened(self.loop.database, self.loop.config.layout, self.loop.config.min_history) as connection:
            return dict(Ledger(connection).rounds(1)[0].facts)


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(make_loop(tmp_path))


def test_files_are_taken_once_and_late_ones_are_counted(books: Books) -> None:
    for span in (1, 3):
        write_span(books.loop, span, rows_of(span, 20))
    write_span(books.loop, 9, rows_of(9, 20), name="_events-0009.csv")
    assert books.take() == 1
    facts = books.facts()
    assert (facts["files"], facts["events"], facts["late_files"], facts["left_out_files"]) == (2, 40, 0, [])
    assert books.take() is None
    write_span(books.loop, 2, rows_of(2, 10))
    assert books.take() == 2
    assert (books.facts()["late_files"], books.file("events-0002.csv").late, books.events()) == (1, True, 50)
    assert not books.file("events-0003.csv").late


def test_content_under_another_name_is_left_out(books: Books) -> None:
    write_span(books.loop, 1, rows_of(1, 20))
    books.take()
    write_span(books.loop, 2, rows_of(1, 20))
    assert books.take() is None
    known = books.file("events-0002.csv")
    assert (known.status, known.reason, known.round) == (REPEATED, "holds what events-0001.csv held", None)
    assert (books.pending(), books.events()) == ([], 20)


def test_rows_that_are_known_are_no_new_events(books: Books) -> None:
    rows = rows_of(1, 20)
    write_span(books.loop, 1, rows)
    books.take()
    write_span(books.loop, 2, [*rows, "99,1,1600000099,1"])
    assert books.take() == 2
    facts = books.facts()
    assert (facts["events"], facts["known_rows"], facts["rows"], facts["malformed"]) == (1, 20, 21, 0)
    assert books.events() == 21


def test_file_that_grew_brings_its_new_rows(books: Books) -> None:
    path = write_span(books.loop, 1, rows_of(1, 20))
    books.take()
    with path.open("a") as file:
        file.write("99,1,1600000099,1\n")
    assert books.pending() == ["events-0001.csv"]
    assert books.take() == 2
    assert (books.facts()["events"], books.events()) == (1, 21)


def test_malformed_rows_are_counted_and_kept(books: Books) -> None:
    rows = rows_of(1, 200)
    write_span(books.loop, 1, [*rows, "1,x,1600000000,1", rows[0]][:202])
    assert books.take() == 1
    known = books.file("events-0001.csv")
    assert known.malformed == {"non-numeric item_id": 1, "duplicate rows": 1}
    assert (known.rows, known.events, books.facts()["malformed"]) == (202, 200, 2)
    (letters,) = books.loop.dead_letters.iterdir()
    reasons = [json.loads(line)["reason"] for line in letters.read_text().splitlines()]
    assert reasons == ["non-numeric item_id", "duplicate rows"]


def test_file_with_too_many_malformed_rows_is_left_in_place_until_it_changes(books: Books) -> None:
    rows = rows_of(1, 50)
    path = write_span(books.loop, 1, rows)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"\n1\n")
    write_span(books.loop, 2, rows_of(2, 20))
    assert books.take() == 1
    known = books.file("events-0001.csv")
    assert (known.status, known.round) == (UNREADABLE, None)
    assert "Too many rows are malformed; `max_bad_share` allows 1.00%." in known.reason
    assert "2 with a wrong number of columns, e.g. events-0001.csv:" in known.reason
    assert books.facts()["left_out_files"][0].startswith("events-0001.csv: Too many rows")
    assert (books.events(), books.pending(), path.exists()) == (20, [], True)
    path.write_bytes(whole)
    assert books.take() == 2
    assert (books.file("events-0001.csv").status, books.events()) == (TAKEN, 70)


def test_change_for_the_worse_leaves_the_events_that_were_taken(books: Books) -> None:
    path = write_span(books.loop, 1, rows_of(1, 20))
    books.take()
    path.write_text("no header of ours\n")
    assert books.take() is None
    known = books.file("events-0001.csv")
    assert (known.status, books.events(), books.pending()) == (TAKEN, 20, [])
    assert known.reason.startswith("changed, and is left out: ")


def test_truncated_parquet_file_is_left_out(tmp_path: Path) -> None:
    layout = dataclasses.replace(LAYOUT, pattern="events-{SPAN}.parquet", file_format="parquet")
    books = Books(make_loop(tmp_path, layout))
    table = pa.table({"user_id": [1, 2], "item_id": [3, 4], "timestamp": [START, START], "clicked": [0, 1]})
    path = tmp_path / "events" / "events-1.parquet"
    pa.parquet.write_table(table, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert books.take() is None
    assert "is not a Parquet file" in books.file("events-1.parquet").reason
    path.write_bytes(whole)
    assert (books.take(), books.events()) == (1, 2)


def test_times_in_another_unit_are_left_out(books: Books) -> None:
    write_span(books.loop, 1, rows_of(1, 20))
    books.take()
    write_span(books.loop, 2, ["1,2,1600000000000,1"])
    assert books.take() is None
    assert (
        "holds moments since 1970 in seconds, but for some rows: 1 in milliseconds"
        in books.file("events-0002.csv").reason
    )


def test_clock_that_jumps_back_delays_events_and_loses_none(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: float(START - 10 * 86_400))
        write_span(books.loop, 1, rows_of(1, 20))
        assert books.take() is None
        assert "with a timestamp after the run" in books.file("events-0001.csv").reason
    assert books.pending() == ["events-0001.csv"]
    assert (books.take(), books.events()) == (1, 20)


def test_missing_directory_is_named(books: Books, tmp_path: Path) -> None:
    (tmp_path / "events").rmdir()
    with pytest.raises(FileNotFoundError, match=r"There is no directory '.*/events'"):
        books.take()
