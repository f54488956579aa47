"""The benchmark of freshness: what it writes, which version answers for which file, its statistics and its commands."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf

from benchmarks.freshness import cost, logs, replay, worth
from benchmarks.freshness.__main__ import main
from benchmarks.freshness.delays import Delay, delays, summary
from benchmarks.freshness.loops import LoopProcess, version_of
from benchmarks.quality import training, units
from keras_eta import Feature, Features
from serving.client.protocol import PredictRequest, PredictResponse
from tfx_pipeline.continuous.database import opened, transaction
from tfx_pipeline.continuous.ledger import OPEN, PUSHED, REFUSED, TAKEN, KnownFile, Ledger, Round
from tfx_pipeline.layouts import Label, Layout, movielens

LAYOUT = Layout(
    Features(Feature("item_id"), max_history_length=8),
    pattern="day-{SPAN}.csv",
    label=Label("clicked"),
    user_dtype="int64",
)
CUSTOM = ["--layout", "custom", "--pattern", "day-{SPAN}.csv", "--label_column", "clicked", "--schema", "schema.pbtxt"]
HEADER = "user_id,item_id,timestamp,clicked\n"


def write_days(folder: Path, **days: list[int]) -> Path:
    """Files whose rows have these timestamps; the item is the number of the row."""
    folder.mkdir()
    for day, times in days.items():
        rows = [f"1,{number},{moment},1\n" for number, moment in enumerate(times)]
        (folder / f"day-{day.removeprefix('d')}.csv").write_text(HEADER + "".join(rows))
    return folder


def test_log_is_read_by_time_and_written_as_spans(tmp_path: Path) -> None:
    # Day 10 after day 9; the rows of time 30 in the order of their files.
    log = logs.read_log(str(write_days(tmp_path / "days", d10=[30, 40], d9=[30, 10])), LAYOUT)
    assert log.header == HEADER.strip().encode()
    assert list(log.rows) == [b"1,1,10,1", b"1,0,30,1", b"1,0,30,1", b"1,1,40,1"]
    log.begin(tmp_path / "out")
    assert log.write(tmp_path / "out", 7, log.part(1, 2)) == "replayed-000007.csv"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["replayed-000007.csv"]
    assert (tmp_path / "out" / "replayed-000007.csv").read_text() == f"{HEADER}1,0,30,1\n1,0,30,1\n"
    with pytest.raises(ValueError, match="The log has 4 events, and 5 are asked for"):
        log.part(2, 3)


def test_log_of_movielens_has_no_header_and_takes_its_table_along(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_bytes(b"1::7::5::200\n2::8::3::100\n")
    (tmp_path / "movies.dat").write_bytes("7::L\xe9on (1994)::Drama\n".encode("latin-1"))
    log = logs.read_log(str(tmp_path), movielens())
    assert (list(log.rows), log.header) == ([b"2::8::3::100", b"1::7::5::200"], b"")
    log.begin(tmp_path / "out")
    log.write(tmp_path / "out", 1, log.rows)
    assert (tmp_path / "out" / "movies.dat").read_bytes() == (tmp_path / "movies.dat").read_bytes()
    assert (tmp_path / "out" / "replayed-000001.csv").read_bytes() == b"2::8::3::100\n1::7::5::200\n"


def test_log_that_can_not_be_replayed_is_refused(tmp_path: Path) -> None:
    folder = write_days(tmp_path / "days", d1=[1])
    with pytest.raises(ValueError, match=r"has no files 'day-\{SPAN\}.csv'"):
        logs.read_log(str(tmp_path), LAYOUT)
    (folder / "day-2.csv").write_text(HEADER + "1,2,soon,1\n")
    with pytest.raises(ValueError, match=r"day-2.csv, line 2, has no timestamp: b'1,2,soon,1'"):
        logs.read_log(str(folder), LAYOUT)
    (folder / "day-2.csv").write_text("item_id,user_id,timestamp,clicked\n1,2,3,1\n")
    with pytest.raises(ValueError, match="begin with 2 different headers"):
        logs.read_log(str(folder), LAYOUT)
    with pytest.raises(ValueError, match=r"--data is missing: the directory of the log\. Received: --layout custom"):
        logs.load_log(None, CUSTOM)
    with pytest.raises(ValueError, match=r"Only a log of CSV files can be replayed\. Received: --file_format parquet"):
        logs.load_log(str(folder), [*CUSTOM, "--file_format", "parquet"])


def known(name: str, number: int | None, events: int = 10) -> KnownFile:
    return KnownFile(name, "", "", 1, number, TAKEN, events=events)


def done(number: int, opened_at: float, version: int | None, **steps: float) -> Round:
    facts = {"seconds": steps, **({} if version is None else {"version": f"/served/eta/{version}"})}
    return Round(number, REFUSED if version is None else PUSHED, "", opened_at, facts)


def test_file_is_answered_by_the_version_of_its_round_or_a_later_one() -> None:
    arrivals = {"a": 100.0, "b": 160.0, "c": 165.0, "refused": 220.0, "on its way": 280.0, "waiting": 290.0}
    files = {name: known(name, number) for name, number in (("a", 2), ("b", 3), ("c", 3), ("refused", 4))}
    files["on its way"] = known("on its way", 5)
    rounds = {
        2: done(2, 104.0, 7, take=1.0, Trainer=8.0, all=10.0),
        3: done(3, 164.0, 9, take=2.0, Trainer=9.0, all=12.0),
        4: done(4, 222.0, None, take=1.0, Trainer=1.0, all=3.0),
        5: Round(5, OPEN, "", 282.0, {"events": 10}),
    }
    # The server has passed over version 7: 8, which goes on from it, is the first to know of file a.
    answers = {6: 90.0, 8: 118.0, 9: 180.0}
    found = {one.file: one for one in delays(arrivals, files, rounds, answers)}
    assert list(found) == list(arrivals)
    # The round began at 103 and ended at 113.
    assert found["a"] == Delay(
        "a", 10, 100.0, PUSHED, 2, 7, 118.0, {"take": 1.0, "Trainer": 8.0, "all": 10.0}, wait=3.0, load=5.0
    )
    assert found["a"].total == 18.0
    # From 162 to 174; file c came after it had begun.
    assert [found[name].wait for name in "bc"] == [2.0, 0.0]
    assert [found[name].total for name in "bc"] == [20.0, 15.0]
    assert [found[name].load for name in "bc"] == [6.0, 6.0]
    states = {name: (one.status, one.version, one.total, one.settled) for name, one in found.items()}
    assert states["refused"] == (REFUSED, None, None, True)
    assert states["on its way"] == states["waiting"] == (OPEN, None, None, False)
    (unanswered,) = delays({"a": 100.0}, files, rounds, {6: 90.0})
    assert (unanswered.version, unanswered.total, unanswered.settled) == (7, None, False)


def test_statistics_are_over_the_files_that_were_answered() -> None:
    found = [
        Delay(str(number), 10, 0.0, PUSHED, number, number, total, {"take": 1.0, "all": 5.0}, wait=2.0, load=total - 7)
        for number, total in enumerate([10.0, 20.0, 30.0, 40.0, 60.0])
    ]
    found.append(Delay("refused", 10, 0.0, REFUSED, 9))
    seconds = summary(found)
    assert list(seconds) == [
        "arrival to first answer", "wait for the loop", "round", "  take", "load by the server",
    ]  # fmt: skip
    # The 95th percentile lies 0.8 of the way from the fourth to the fifth of five.
    assert seconds["arrival to first answer"] == pytest.approx({"median": 30, "p95": 56, "max": 60})
    assert seconds["load by the server"] == pytest.approx({"median": 23, "p95": 49, "max": 53})
    assert seconds["  take"] == {"median": 1, "p95": 1, "max": 1}
    assert summary(found[-1:]) == {}


@pytest.fixture
def loop(tmp_path: Path) -> LoopProcess:
    return LoopProcess(tmp_path / "loop", 5.0, ["--keep", "3"])


def test_loop_gets_the_flags_and_its_directories(loop: LoopProcess, tmp_path: Path) -> None:
    folder = tmp_path / "loop"
    assert loop._command == [
        *(sys.executable, "-m", "tfx_pipeline.continuous", "--keep", "3"),
        *("--pattern", "replayed-{SPAN}.csv", "--data", f"{folder}/events", "--state", f"{folder}/state"),
        *("--serving_dir", f"{folder}/serving/eta", "--every", "5.0"),
    ]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("print('no such flag')", "The loop fails:\nno such flag"),
        ("import time; print('error: no disk', flush=True); time.sleep(60)", "The loop fails:\nerror: no disk"),
    ],
)
def test_loop_that_fails_is_not_waited_for(loop: LoopProcess, program: str, message: str) -> None:
    loop._command = [sys.executable, "-c", program]
    start = time.monotonic()
    with loop, pytest.raises(RuntimeError, match=message):
        loop.await_round("a")
    assert time.monotonic() - start < 30


def test_rounds_are_those_of_the_ledger(loop: LoopProcess, tmp_path: Path) -> None:
    assert loop.ledger() == ({}, {})
    with opened(tmp_path / "loop" / "state" / "events.sqlite", LAYOUT, 1) as connection:
        ledger = Ledger(connection)
        with transaction(connection):
            for number in (1, 2, 3):
                ledger.open(number, "", {})
                if number < 3:
                    ledger.close(number, PUSHED, {"version": f"/served/eta/{10 * number}"})
            ledger.write_file(known("a", 1))
            ledger.write_file(known("b", 2))
            ledger.close(2, REFUSED, {"reasons": ["Labels are flipped."]})
        files, rounds = loop.ledger()
        assert {name: file.round for name, file in files.items()} == {"a": 1, "b": 2}
        assert {number: version_of(one) for number, one in rounds.items()} == {1: 10, 2: None, 3: None}
        assert loop.await_first_version("a").number == 1
        with pytest.raises(RuntimeError, match=r"makes no first version of its events: Labels are flipped\."):
            loop.await_first_version("b")


class InstantLoop(LoopProcess):
    """A loop that pushes version n + 10 of its nth file and refuses the fourth; rounds take 3 s and 5 ms an event."""

    def __init__(self, folder: Path, every: float, flags: list[str]) -> None:
        super().__init__(folder, every, flags)
        self.flags = flags
        made.append(self)

    def __enter__(self) -> InstantLoop:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def check(self) -> None:
        pass

    def ledger(self) -> tuple[dict[str, KnownFile], dict[int, Round]]:
        files, rounds = {}, {}
        for number, path in enumerate(sorted(self.events.glob("replayed-*")), 1):
            events = len(path.read_text().splitlines()) - 1
            files[path.name] = known(path.name, number, events)
            one = done(
                number, path.stat().st_mtime, None if number == 4 else number + 10, take=0.0, all=3 + events / 200
            )
            rounds[number] = dataclasses.replace(
                one, facts={**one.facts, "impressions": events - 1, "reasons": ["Worse."]}
            )
        return files, rounds


made: list[InstantLoop] = []


@pytest.fixture
def days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made.clear()
    for module in (replay, cost):
        monkeypatch.setattr(module, "LoopProcess", InstantLoop)
    return write_days(tmp_path / "days", d1=list(range(1_000)))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that serves the newest version of the loop at once."""

    def answer(request: bytes, context: object) -> bytes:
        assert PredictRequest.FromString(request).model_spec.name == "eta"
        pushed = [version_of(one) or 0 for one in made[0].ledger()[1].values()]
        return PredictResponse(model_spec={"version": {"value": max(pushed)}}).SerializeToString()

    handler = grpc.unary_unary_rpc_method_handler(answer)
    generic = grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", {"Predict": handler})
    running = grpc.server(futures.ThreadPoolExecutor(1))
    running.add_generic_rpc_handlers((generic,))
    address = f"127.0.0.1:{running.add_insecure_port('127.0.0.1:0')}"
    running.start()

    class Served:
        def __init__(self, *flags: str, log: Path) -> None:
            assert flags[:2] == ("--model_base_path", str(made[0].serving_dir))
            self.address = address

        def __enter__(self) -> Served:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(replay, "ServerProcess", Served)
    request = PredictRequest(model_spec={"name": "eta"}).SerializeToString()
    monkeypatch.setattr(replay, "make_requests", lambda flags: [request])
    yield
    running.stop(0)


@pytest.mark.usefixtures("server")
def test_replay_reports_files_versions_and_the_client(
    days: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, image = tmp_path / "replay.json", tmp_path / "replay.png"
    flags = ["--first_events", "100", "--events", "20", "--every", "1", "--rounds", "4", "--rate", "25"]
    files = ["--data", str(days), "--json", str(report), "--plot", str(image)]
    assert main(["replay", *flags, *files, "--", *CUSTOM]) == 0
    found = json.loads(report.read_text())
    assert [(one["file"], one["events"], one["status"], one["version"]) for one in found["files"]] == [
        ("replayed-000002.csv", 20, PUSHED, 12),
        ("replayed-000003.csv", 20, PUSHED, 13),
        ("replayed-000004.csv", 20, REFUSED, None),
        ("replayed-000005.csv", 20, PUSHED, 15),
    ]
    came = [one["arrived"] for one in found["files"]]
    assert np.diff(came) == pytest.approx([1.0] * 3, abs=0.3)
    # The first file comes before the first request, and no round has pushed 14.
    assert list(found["versions"]) == ["12", "13", "15"]
    totals = [one["total"] for one in found["files"] if one["total"] is not None]
    assert len(totals) == 3
    # Versions answer for a second.
    assert all(0 <= total < 0.8 for total in totals)
    assert found["seconds"]["round"]["median"] == pytest.approx(3.1)
    assert found["first_version_seconds"] == pytest.approx(3.5)
    assert found["client"]["errors"] == {}
    assert found["client"]["requests"] == pytest.approx(100, abs=50)
    assert found["settings"]["loop_flags"] == CUSTOM
    assert made[0].flags == CUSTOM
    assert image.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "Versions that answered: 3 (12 to 15)" in printed
    assert "Files whose round is refused: 1: replayed-000004.csv" in printed


def test_cost_is_a_line_per_length_of_the_log(days: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, image = tmp_path / "cost.json", tmp_path / "cost.png"
    flags = ["--log", "50", "500", "--first_events", "10", "--events", "20", "40", "--repeats", "2"]
    files = ["--data", str(days), "--json", str(report), "--plot", str(image)]
    assert main(["cost", *flags, *files, "--", *CUSTOM]) == 0
    found = json.loads(report.read_text())
    rounds = [(one["log"], one["events"], one["impressions"], one["status"]) for one in found["rounds"]]
    # The fourth file is the second round after the first version.
    statuses = [PUSHED if number != 1 else REFUSED for number in range(4)]
    assert rounds == [
        (length, size, size - 1, status)
        for length in (50, 500)
        for size, status in zip([20, 40, 20, 40], statuses, strict=True)
    ]
    for length in ("50", "500"):
        assert found["fits"][length] == pytest.approx({"intercept": 3.0, "slope": 1 / 200})
    assert made[0].flags == [*CUSTOM, "--history_until", "1"]
    printed = capsys.readouterr().out
    assert "after 500: 3.00 s + 5.00 s per 1,000 events" in printed
    assert "Rounds that pushed nothing, which count as well: 2 of 8\n  Worse.\n" in printed
    assert found["rounds"][1]["reasons"] == ["Worse."]
    assert image.read_bytes().startswith(b"\x89PNG")


def test_new_events_are_the_same_after_every_log(days: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = logs.read_log(str(days), LAYOUT)
    written: list[list[int]] = []
    real = logs.Log.write

    def write(self: logs.Log, directory: Path, span: int, rows: Any) -> str:
        written.append([int(row.split(b",")[2]) for row in rows])
        return real(self, directory, span, rows)

    monkeypatch.setattr(logs.Log, "write", write)
    for length in (3, 6):
        cost.rounds_after(log, 6, length, 2, [2, 1], [])
    assert written == [[3, 4, 5], [6, 7], [8, 9], [10], [0, 1, 2, 3, 4, 5], [6, 7], [8, 9], [10]]


def test_line_of_known_points() -> None:
    found = [cost.Cost(5, events, events, PUSHED, seconds, {}) for events, seconds in ((0, 1.0), (10, 2.0), (20, 6.0))]
    # Slope 25 / 100 of the means' differences; through the mean (10, 3).
    assert cost.fit([*found, cost.Cost(9, 0, 0, PUSHED, 99.0, {})], 5) == pytest.approx((0.5, 0.25))


@pytest.mark.parametrize("command", ["replay", "cost"])
def test_too_short_log_is_an_error_before_anything_runs(
    command: str, days: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"replay": ["--first_events", "990", "--events", "20"], "cost": ["--log", "990", "--events", "1", "2"]}
    assert main([command, *sizes[command], "--data", str(days), "--", *CUSTOM]) == 1
    assert "error: The log has 1,000 events, and " in capsys.readouterr().err
    assert made == []


def test_one_number_of_events_makes_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "--events", "20", "20"]) == 1
    assert (
        "`--events` must name two different numbers at least, for a line. Received: [20, 20]" in capsys.readouterr().err
    )


def test_flags_out_of_range_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        (["replay", "--rounds", "0"], "argument --rounds: must be an integer above 0. Received: 0"),
        (["replay", "--start_share", "1"], "argument --start_share: must be below 1. Received: 1"),
        (["cost", "--events", "five"], "argument --events: must be an integer above 0. Received: five"),
    ):
        with pytest.raises(SystemExit):
            main(flags)
        assert message in capsys.readouterr().err


def test_ages_count_from_the_first_round_of_an_id() -> None:
    ids, rounds = np.array([5, 7, 7, 5, 9, 7, 8]), np.array([0, 0, 1, 2, 2, 4, 4])
    assert worth.ages(ids, rounds, np.array([8, 1])).tolist() == [0, 0, 1, 2, 0, 4, -1]


def judged() -> worth.Judged:
    """Two rounds of a user each: fresh weights are right in both, old ones in the first alone."""
    label, right = np.array([1, 0, 1, 0]), np.array([2.0, 1.0, 2.0, 1.0])
    late = np.array([2.0, 1.0, 1.0, 2.0])
    ages = {"users": np.array([-1, -1, 0, 1]), "items": np.array([0, 0, 4, 5])}
    logits = {"every round": right, "every 10 rounds": late, "once": late}
    return worth.Judged(np.array([0, 0, 1, 1]), label, np.array([3, 3, 4, 4]), ages, logits)


def test_worth_is_by_round_and_by_age() -> None:
    found = judged()
    assert worth.by_round(found, "every round") == {"auc": [1.0, 1.0], "grouped_auc": [1.0, 1.0]}
    assert worth.by_round(found, "once") == {"auc": [1.0, 0.0], "grouped_auc": [1.0, 0.0]}
    assert worth.by_age(found, "items") == [
        {"from": 0, "rows": 2, "fresh": 1.0, "once": 1.0},
        {"from": 3, "rows": 2, "fresh": 1.0, "once": 0.0},
    ]
    rows = worth.by_age(found, "users")
    assert [(row["from"], row["rows"]) for row in rows] == [(0, 1), (1, 1)]
    # One row has labels of one kind.
    assert np.isnan([row["fresh"] for row in rows]).all()


@pytest.fixture
def ratings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The official folder of 300 ratings of 10 users, one a second; user 10 comes after 100 of them."""
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    rng = np.random.default_rng(0)
    users = np.where(rng.random(300) < 0.3 * (np.arange(300) >= 100), 10, rng.integers(1, 10, 300))
    lines = [f"{user}::{rng.integers(1, 9)}::{rng.integers(1, 6)}::{moment}\n" for moment, user in enumerate(users)]
    (folder / "ratings.dat").write_text("".join(lines))
    (folder / "movies.dat").write_text("".join(f"{n}::Film {n} (199{n})::{'AB'[n % 2]}\n" for n in range(1, 9)))
    (folder / "users.dat").write_text("".join(f"{n}::M::25::1::12345\n" for n in range(1, 11)))
    monkeypatch.setattr(worth.movielens, "load", functools.partial(worth.movielens.load, check_counts=False))
    return folder


class Counting:
    """A ranker whose one variable counts what it was trained on: parts, and their batches."""

    def __init__(self) -> None:
        self.variables = [tf.Variable(0.0)]
        self.sizes: list[int] = []

    def compile(self) -> None:
        pass

    build = compile

    def fit(self, batches: tf.data.Dataset, verbose: int) -> None:
        self.variables[0].assign_add(1.0)
        self.sizes.append(sum(len(label) for _, label in batches))


def test_weights_are_those_of_the_last_refresh(ratings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Counting()
    monkeypatch.setattr(units, "make_ranker", lambda *arguments, **options: model)
    monkeypatch.setattr(
        training, "predict", lambda model, data, part: np.full(len(part), float(model.variables[0].numpy()))
    )
    impressions = worth.movielens.impressions(worth.movielens.load(ratings))
    found = worth.measure(worth._protocol(impressions, 100, 16), events=6, rounds=23, seed=0)
    assert model.sizes == [100] + [6] * 23
    learned = {name: values[::6].tolist() for name, values in found.logits.items()}
    assert learned == {
        "every round": [1.0 + number for number in range(23)],
        "every 10 rounds": [1.0] * 10 + [11.0] * 10 + [21.0] * 3,
        "once": [1.0] * 23,
    }
    assert found.rounds.tolist() == np.repeat(np.arange(23), 6).tolist()
    assert found.label.tolist() == impressions.label[100:238].tolist()
    newcomer = found.ages["users"][found.users == 10]
    assert newcomer[0] == 0
    assert newcomer[-1] > 3
    known = np.isin(found.users, impressions.columns["user_id"][:100])
    assert ((found.ages["users"] == -1) == known).all()


@pytest.mark.slow
def test_worth_trains_eta_and_reports(
    ratings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    report, image = tmp_path / "worth.json", tmp_path / "worth.png"
    flags = ["--start_share", "0.24", "--events", "50", "--rounds", "99", "--history", "16"]
    assert main(["worth", *flags, "--data", str(ratings), "--json", str(report), "--plot", str(image)]) == 0
    found = json.loads(report.read_text())
    # Of 300 ratings 250 are impressions, since the first five of each user make none; after 60 of them come 3 rounds.
    assert list(found["by_round"]) == ["every round", "every 10 rounds", "once"]
    by_round = {name: values["auc"] for name, values in found["by_round"].items()}
    assert {len(values) for values in by_round.values()} == {3}
    assert by_round["every round"][0] == by_round["once"][0]
    assert by_round["every round"][1] != by_round["once"][1]
    assert by_round["every 10 rounds"] == by_round["once"]
    assert all(0 <= auc <= 1 for values in by_round.values() for auc in values)
    assert [entry["from"] for entry in found["by_age"]["users"]] == [0, 1, 2]
    assert image.read_bytes().startswith(b"\x89PNG")
    assert "AUC of new users" in capsys.readouterr().out
    # The first version may have learned too little, and says so; rounds do not.
    assert sum("has learned nothing" in message for message in caplog.messages) <= 1


def test_worth_needs_impressions_for_a_round(ratings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worth", "--first_events", "240", "--events", "50", "--data", str(ratings)]) == 1
    assert "impressions: too few for 240 and a round after them." in capsys.readouterr().err
