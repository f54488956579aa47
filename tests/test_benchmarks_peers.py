"""What drives and judges the peers of `make bench-peers`, without their environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers, peers_worker

# Counts the lines `step`; dies at the third.
WORKER = """
import json, sys

print(json.dumps({"ready": {"torch": "9.9"}}), flush=True)
for number in range(1, 3):
    line = sys.stdin.readline()
    if line != "step\\n":
        open(sys.argv[1], "w").write(line)
        sys.exit()
    print(json.dumps({"done": number}), flush=True)
sys.stdin.readline()
sys.exit("out of memory, say")
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return [sys.executable, str(script), str(tmp_path / "ended")]


def test_peer_trains_a_step_when_told_and_quits(command: list[str], tmp_path: Path) -> None:
    with peers.Peer("Other ETA", command) as peer:
        assert peer.versions() == {"torch": "9.9"}
        peer.step()
    assert (tmp_path / "ended").read_text() == "quit\n"


def test_peer_that_dies_is_an_error_with_its_own_message(command: list[str]) -> None:
    with peers.Peer("Other ETA", command) as peer:
        peer.versions()
        peer.step()
        peer.step()
        for _ in range(2):
            with pytest.raises(peers.PeerError, match=r"Other ETA ended with exit code 1\.[^$]*\nout of memory, say"):
                peer.step()


def test_peer_that_never_gets_ready_is_an_error(tmp_path: Path) -> None:
    with (
        peers.Peer("Other ETA", [sys.executable, "-c", "import no_such_library"]) as peer,
        pytest.raises(peers.PeerError, match="No module named 'no_such_library'"),
    ):
        peer.versions()


def test_missing_environment_names_the_command_that_makes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peers, "ENVIRONMENT", tmp_path)
    monkeypatch.setattr("sys.argv", ["benchmark", "--items", "50", "--dim", "8", "--rows", "2", "--lengths", "60"])
    with pytest.raises(SystemExit, match="missing or half made: `make bench-peers` makes it"):
        peers.main()


def test_worker_answers_each_step_when_the_trainer_asks_for_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    requests, log = tmp_path / "requests", tmp_path / "answers"
    requests.write_text("step\nstep\nstep\nquit\n")
    trained = []

    def fit(batches: peers_worker.Batches) -> None:
        for batch in batches:
            trained.append(batch)
            assert len(log.read_text().splitlines()) == len(trained)  # `ready`, and the steps before

    with requests.open() as stdin, log.open("w") as answers:
        monkeypatch.setattr("sys.stdin", stdin)
        with pytest.raises(SystemExit):
            fit(peers_worker.Batches(["a", "b"], answers, {"torch": "9.9"}))
    assert trained == ["a", "b", "a"]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines == [{"ready": {"torch": "9.9"}}, {"done": 1}, {"done": 2}, {"done": 3}]


# One history: distances 3 1 2 2 2, the last is padding.
@pytest.mark.parametrize(
    ("a", "b", "different_rows", "other_ties"),
    [
        ([1, 2], [2, 1], 0, 0),
        ([1, 2], [1, 3], 0, 1),  # another tie at the second distance
        ([1, 2], [1, 0], 1, 0),  # a farther one
        ([1, 2], [2, 3], 1, 0),  # lacks the nearest
        ([2, 3], [3, 2], 1, 0),  # both lack it
        ([1, 2], [1, 4], 1, 0),  # padding, though as near
        ([1], [1], 1, 0),  # too few
        ([1, 1], [1, 1], 1, 0),  # twice
    ],
)
def test_retrieval_is_the_same_up_to_ties_at_the_farthest_distance(
    a: list[int], b: list[int], different_rows: int, other_ties: int
) -> None:
    distances, mask = np.array([[3, 1, 2, 2, 2]]), np.array([[True, True, True, True, False]])
    expected = {"rows": 1, "different_rows": different_rows, "other_ties": other_ties}
    assert peers.compare_retrieved(distances, mask, 2, [a], [b]) == expected
    assert peers.compare_retrieved(distances, mask, 2, [b], [a]) == expected


def test_retrieval_of_a_history_shorter_than_k_is_all_of_it() -> None:
    distances, mask = np.array([[1, 1, 0], [1, 1, 0]]), np.array([[True, True, False]] * 2)
    found = peers.compare_retrieved(distances, mask, 3, [[0, 1], [0, 1]], [[1, 0], [1]])
    assert found == {"rows": 2, "different_rows": 1, "other_ties": 0}


def test_retrieval_that_differs_fails_after_the_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    different = {"rows": 2, "different_rows": 1, "other_ties": 0}
    row = {"median_ms": 1.0, "p10_ms": 1.0, "p90_ms": 1.0, "over_base": 1.0}
    monkeypatch.setattr(peers, "check_retrieval", lambda length, sizes: different)
    monkeypatch.setattr(
        peers, "measure_steps", lambda *_: ({"ETA": row, "FuxiCTR ETA": row}, {"FuxiCTR": {"torch": "9"}})
    )
    report = tmp_path / "report.json"
    monkeypatch.setattr("sys.argv", ["benchmark", "--lengths", "60", "70", "--json", str(report)])
    with pytest.raises(SystemExit, match="FuxiCTR's ETA and ours do not retrieve the same"):
        peers.main()
    found = json.loads(report.read_text())
    assert found["retrieval"] == {"60": different, "70": different}
    assert found["versions"]["FuxiCTR"] == {"torch": "9"}
    assert found["steps"]["70"]["FuxiCTR ETA"] == row
    assert set(found["contestants"]) == {"ETA", "full attention", *peers.PEERS}


def test_history_no_longer_than_the_short_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "report", None)  # refused before anything is measured
    monkeypatch.setattr("sys.argv", ["benchmark", "--lengths", "60", "50"])
    with pytest.raises(SystemExit):
        peers.main()
    assert "`--lengths` must be above 50, the short history. Received: [60, 50]" in capsys.readouterr().err
