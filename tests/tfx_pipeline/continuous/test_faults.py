"""Faults: rounds that are killed or fail anywhere, files that arrive twice, clocks that jump, and what is pruned."""

from __future__ import annotations

import contextlib
import errno
import json
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.fresh_process import run_python
from tests.tfx_pipeline.continuous.events import LAYOUT, make_loop, rows_of, run, write_span
from tests.tfx_pipeline.continuous.kill_rounds import KILLS
from tests.tfx_pipeline.continuous.quick import make_rounds_quick, newest, trained_on
from tfx_pipeline.components import pusher
from tfx_pipeline.continuous import components, rounds
from tfx_pipeline.continuous.database import opened
from tfx_pipeline.continuous.judging import Judged
from tfx_pipeline.continuous.ledger import HISTORY, OPEN, PUSHED, QUIET, REFUSED, Ledger
from tfx_pipeline.continuous.settings import Gates, Loop


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    """A loop whose rounds are quick, and whose models say what they were trained on."""
    make_rounds_quick(monkeypatch.setattr)
    return make_loop(tmp_path)


def trained(loop: Loop) -> Counter[tuple[int, ...]]:
    """How often the newest version was trained on each impression."""
    return Counter(map(tuple, trained_on(newest(loop.config.serving_dir))))


def statuses(loop: Loop) -> list[str]:
    with opened(loop.database, loop.config.layout, loop.config.min_history) as connection:
        return [one.status for one in Ledger(connection).rounds(100)]


@pytest.mark.slow
@pytest.mark.e2e
def test_killed_rounds_lose_no_event_and_train_on_none_twice(tmp_path: Path) -> None:
    done = run_python("-m", "tests.tfx_pipeline.continuous.kill_rounds", str(tmp_path), TF_CPP_MIN_LOG_LEVEL="3")
    assert done.returncode == 0, done.stderr[-2_000:]
    found = json.loads(done.stdout)
    assert (found["status"], found["killed"]) == (0, KILLS)
    assert sorted(found["trained"]) == found["written"]
    assert found["events"] == len(found["written"])
    assert {status for _, status in found["rounds"]} == {PUSHED}
    assert found["versions"] == 2


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (pusher, "_copy"),
        (rounds, "_close"),
        (rounds, "prune"),
    ],
)
def test_round_that_a_full_disk_ended_is_gone_on_with(
    loop: Loop, module: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_span(loop, 1, rows_of(1, 60))
    run(loop)
    before, version = trained(loop), newest(loop.config.serving_dir)
    write_span(loop, 2, rows_of(2, 60))
    with monkeypatch.context() as patch:

        def full(*arguments: Any, **options: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(module, name, full)
        with pytest.raises(OSError, match="No space left on device"):
            run(loop)
    pushed = name in ("_close", "prune")
    assert (newest(loop.config.serving_dir) != version) == pushed
    assert statuses(loop) == [PUSHED, PUSHED if name == "prune" else OPEN]
    assert not list(Path(loop.config.serving_dir).glob(".*.pushing"))
    run(loop)
    assert statuses(loop) == [PUSHED] * 2
    found = trained(loop)
    assert set(found.values()) == {1}
    assert before < found
    events = {tuple(map(int, row.split(",")[:3])) for span in (1, 2) for row in rows_of(span, 60)}
    assert set(found) <= events
    # What is missing has no behaviour before it.
    assert len(events) - len(found) <= 40


def test_span_that_arrives_twice_is_trained_on_once(loop: Loop) -> None:
    write_span(loop, 1, rows_of(1, 60))
    run(loop)
    version, found = newest(loop.config.serving_dir), trained(loop)
    write_span(loop, 2, rows_of(1, 60))
    write_span(loop, 3, [*rows_of(1, 60)[::-1]])
    assert run(loop) is None
    assert (newest(loop.config.serving_dir), trained(loop)) == (version, found)
    assert "holds what events-0001.csv held" in loop.report.read_text()


def test_clock_that_jumps_back_leaves_the_newest_version_on_top(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    write_span(loop, 1, rows_of(1, 60))
    first = run(loop)
    jumped = time.time() - 86_400
    monkeypatch.setattr(pusher.time, "time", lambda: jumped)
    write_span(loop, 2, rows_of(2, 60))
    second = run(loop)
    assert int(Path(second.facts["version"]).name) == int(Path(first.facts["version"]).name) + 1
    assert (second.base, set(trained(loop).values())) == (first.facts["version"], {1})


def test_refused_round_leaves_version_and_state_and_its_events_stay(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_span(loop, 1, rows_of(1, 60))
    first = run(loop)
    with monkeypatch.context() as patch:
        patch.setattr(components, "refusals", lambda *arguments: ["It is a Monday."])
        write_span(loop, 2, rows_of(2, 60))
        second = run(loop)
    assert (second.status, second.facts["reasons"]) == (REFUSED, ["It is a Monday."])
    assert newest(loop.config.serving_dir) == Path(first.facts["version"])
    assert "Not pushed. It is a Monday." in loop.report.read_text()
    write_span(loop, 3, rows_of(3, 60))
    third = run(loop)
    assert (third.status, third.facts["trained_from"]) == (PUSHED, first.facts["version"])
    times = {moment for _, _, moment in trained(loop)}
    of_second = {int(row.split(",")[2]) for row in rows_of(2, 60)}
    assert not times & of_second
    # All users have a history by now, most of it of the second round.
    assert third.facts["left_out_for_short_history"] < second.facts["left_out_for_short_history"]


def test_model_that_can_not_be_served_is_not_pushed(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    from tfx_pipeline.components.model_server import UnservableModelError
    from tfx_pipeline.continuous.infra_validator import LoadedInfraValidatorExecutor

    def check(server: Any, requests: Any) -> None:
        raise UnservableModelError("`rank` gives no `probability`.")

    monkeypatch.setattr(LoadedInfraValidatorExecutor, "check", staticmethod(check))
    write_span(loop, 1, rows_of(1, 60))
    one = run(loop)
    assert (one.status, one.facts["reasons"]) == (
        REFUSED,
        ["The model can't be served. `rank` gives no `probability`."],
    )
    assert not Path(loop.config.serving_dir).exists()


def test_anomalies_are_refused(loop: Loop, tmp_path: Path) -> None:
    schema = Path(loop.config.schema)
    schema.write_text(
        schema.read_text().replace('name: "item_id" type: INT', 'name: "item_id" type: INT int_domain { max: 9 }')
    )
    write_span(loop, 1, rows_of(1, 60))
    one = run(loop)
    (reason,) = one.facts["reasons"]
    assert (one.status, reason.startswith("eval: item_id: Out-of-range values")) == (REFUSED, True)


def test_events_without_impressions_are_history(loop: Loop) -> None:
    write_span(loop, 1, ["1,2,1600000001,1", "2,2,1600000001,0"])
    assert run(loop).status == QUIET
    write_span(loop, 2, ["1,3,1600000002,1"])
    second = run(loop)
    assert (second.status, second.facts["impressions"]) == (PUSHED, 1)
    assert trained(loop) == {(1, 3, 1_600_000_002): 1}


def test_spans_of_a_full_run_are_history_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_rounds_quick(monkeypatch.setattr)
    loop = make_loop(tmp_path, history_until=2)
    for span in (1, 2, 3):
        write_span(loop, span, rows_of(span, 60))
    third = run(loop)
    assert (third.number, third.facts["files"], statuses(loop)) == (2, 1, [HISTORY, PUSHED])
    new = {int(row.split(",")[2]) for row in rows_of(3, 60)}
    assert {moment for _, _, moment in trained(loop)} <= new
    # Most users have behaviours in the first two spans.
    assert third.facts["impressions"] > 50
    write_span(loop, 4, rows_of(4, 60))
    assert run(loop).number == 3


def test_disk_and_metadata_stay_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_rounds_quick(monkeypatch.setattr)
    loop = make_loop(tmp_path, keep=2)
    sizes = []
    for span in range(1, 7):
        write_span(loop, span, rows_of(span, 20))
        assert run(loop).status == PUSHED
        with contextlib.closing(sqlite3.connect(loop.metadata)) as connection:
            tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            counts = {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}
        directories = sum(path.is_dir() for path in loop.artifacts.rglob("*"))
        sizes.append((counts, directories, len(list(loop.logs.iterdir()))))
    assert sizes[-1] == sizes[-2]
    assert sizes[-1][2] == 2
    assert len([path for path in Path(loop.config.serving_dir).iterdir() if path.name.isdecimal()]) == 2
    assert len(trained(loop)) > 60


def test_challenger_takes_over_if_it_wins_on_the_newest_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_rounds_quick(monkeypatch.setattr)
    loop = make_loop(tmp_path, challenger=str(tmp_path / "full"), gates=Gates(max_window_loss=1.0))
    write_span(loop, 1, rows_of(1, 60))
    first = run(loop)
    version = tmp_path / "full" / "7"
    (version / "assets.extra").mkdir(parents=True)
    (version / "assets.extra" / "features.json").write_text(json.dumps(LAYOUT.features.to_dict()))
    (version / "saved_model.pb").write_text("[[0, 0, 0]]")
    losses = {first.facts["version"]: 0.6, str(version): 0.7}
    monkeypatch.setattr(components, "loaded", lambda path: type("Loaded", (), {"path": path, "module": path}))

    def judge(module: str, impressions: Any) -> Judged:
        loss = losses.get(module, 0.6)
        return Judged(10, 5, 1 - loss, 0.5, loss, 0.5, 0.01)

    monkeypatch.setattr(components, "judge", judge)
    write_span(loop, 2, rows_of(2, 60))
    second = run(loop)
    assert (second.facts["trained_from"], second.facts["challenger"]["log_loss"]) == (first.facts["version"], 0.7)
    # It has lost, and is not asked again; a newer one is.
    write_span(loop, 3, rows_of(3, 60))
    assert run(loop).facts["challenger"] is None
    version.rename(version.with_name("8"))
    losses[str(version.with_name("8"))] = 0.5
    write_span(loop, 4, rows_of(4, 60))
    fourth = run(loop)
    assert (fourth.status, fourth.facts["trained_from"]) == (PUSHED, str(version.with_name("8")))
    assert (0, 0, 0) in trained(loop)
    assert ", from the challenger" in loop.report.read_text()
    write_span(loop, 5, rows_of(5, 60))
    assert run(loop).base == fourth.facts["version"]
