"""User states: computed, kept, updated and ranked from by both clients."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.config import model_server_config_pb2

from serving.client import RankingClient, StateVersionError, UserState
from serving.client.__main__ import main
from serving.client.request_files import read_state, write_state
from serving.server.embedded import EmbeddedServer

Ask = Callable[..., Any]

CANDIDATES: dict[str, Any] = {"item_id": [[7, 3, 12, 99, 5], [1, 2, 3, 4, 5], [8, 8, 9, 0, 1]]}
HISTORY: dict[str, Any] = {"item_id": [[3, 7, 7, 1], [], [12]], "action": [[1, 0, 2, 1], [], [2]]}
FIRST = {name: values[0] for name, values in HISTORY.items()}
USER: dict[str, Any] = {"user_id": [1, 2, 9]}
ONE: dict[str, Any] = {"candidates": {"item_id": [7, 3]}, "user": {"user_id": 1}}


class StateModel(tf.Module):
    """The signatures of a model whose unit has a state: sums of item ids and actions, and the number of behaviours.

    Version v multiplies the state by v. A candidate's score is v times its item id / 100, plus user_id / 10, plus the
    sum of the state / 1,000. With `mixed`, it has the length of the history / 7 besides, which is no part of the state,
    and the state can't be updated.
    """

    def __init__(self, version: int, mixed: bool) -> None:
        super().__init__()
        self.version, self.mixed = version, mixed
        # The state of a unit named `history` is no history, whatever its name and size.
        self.sums, self.count = ("history_sums", "history_count") if mixed else ("memory_sums", "memory_count")
        self.scale = tf.Variable(float(version))
        history = {name: tf.TensorSpec([None, None], tf.int64) for name in ("history_item_id", "history_action")}
        history["history_length"] = tf.TensorSpec([None], tf.int64)
        row = {"user_id": tf.TensorSpec([None], tf.int64), "item_id": tf.TensorSpec([None, None], tf.int64)}
        state = {self.sums: tf.TensorSpec([None, 2], tf.float32), self.count: tf.TensorSpec([None], tf.float32)}
        specs = {
            "user_state": history,
            "rank": row | history,
            "rank_from_state": row | state | (history if mixed else {}),
            **({} if mixed else {"update_state": state | history}),
        }
        self.concrete = {
            name: tf.function(getattr(self, name)).get_concrete_function(
                **{column: tf.TensorSpec(spec.shape, spec.dtype, column) for column, spec in columns.items()}
            )
            for name, columns in specs.items()
        }

    def user_state(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        length = inputs["history_length"]
        real = tf.sequence_mask(length, tf.shape(inputs["history_item_id"])[1], tf.int64)
        sums = [tf.reduce_sum(real * inputs[name], axis=1) for name in ("history_item_id", "history_action")]
        return {
            self.sums: self.scale * tf.cast(tf.stack(sums, axis=1), tf.float32),
            self.count: self.scale * tf.cast(length, tf.float32),
        }

    def update_state(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {name: inputs[name] + more for name, more in self.user_state(**inputs).items()}

    def rank_from_state(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = tf.cast(inputs["user_id"], tf.float32) / 10
        rows += (tf.reduce_sum(inputs[self.sums], axis=1) + inputs[self.count]) / 1_000
        if self.mixed:
            rows += tf.cast(inputs["history_length"], tf.float32) / 7
        return {"probability": self.scale * tf.cast(inputs["item_id"], tf.float32) / 100 + rows[:, None]}

    def rank(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return self.rank_from_state(**inputs, **self.user_state(**inputs))


# Of version 1: the sums of item ids and actions and the number of behaviours of each user.
SUMS = np.array([[18, 4], [0, 0], [12, 2]])
COUNTS = np.array([4, 0, 1])


def scores(version: int, state_version: int | None = None) -> np.ndarray:
    """What ranking `CANDIDATES` gives."""
    rows = np.array(USER["user_id"]) / 10 + (state_version or version) * (SUMS.sum(1) + COUNTS) / 1_000
    return version * np.array(CANDIDATES["item_id"]) / 100 + rows[:, np.newaxis]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 and 2 of the model `memory`, and version 1 of `mixed`."""
    folder = tmp_path_factory.mktemp("exports")
    for name, version in (("memory", 1), ("memory", 2), ("mixed", 1)):
        model = StateModel(version, mixed=name == "mixed")
        tf.saved_model.save(model, str(folder / name / str(version)), signatures=model.concrete)
    return folder


@pytest.fixture(scope="module")
def address(exports: Path) -> Iterator[str]:
    """A server of both models, with all versions."""
    configs = [
        model_server_config_pb2.ModelConfig(name=name, base_path=str(exports / name), model_version_policy={"all": {}})
        for name in ("memory", "mixed")
    ]
    with EmbeddedServer(configs, port=0, file_system_poll_wait_seconds=0) as server:
        yield server.address


@pytest.fixture(scope="module")
def states(address: str) -> UserState:
    with RankingClient(address, "memory") as client:
        return client.user_state(HISTORY)


def test_user_state(address: str, ask: Ask) -> None:
    for limits in ({}, {"max_rows": 1}, {"max_rows": 2}):
        states = ask(address, "user_state", {"history": HISTORY}, model_name="memory", **limits)
        assert (states.model_name, states.model_version, len(states)) == ("memory", 2, 3)
        assert {*states.arrays} == {"memory_sums", "memory_count"}
        assert states.arrays["memory_sums"].tolist() == (2 * SUMS).tolist()
        assert states.arrays["memory_count"].tolist() == (2 * COUNTS).tolist()
    alone = ask(address, "user_state", {"history": FIRST}, model_name="memory")
    assert alone.arrays["memory_sums"].tolist() == [[36, 8]]
    shorter = ask(address, "user_state", {"history": FIRST, "history_length": 2}, model_name="memory")
    assert shorter.arrays["memory_sums"].tolist() == [[20, 2]]


@pytest.mark.parametrize("limits", [{}, {"max_candidates": 2}, {"max_rows": 2}, {"max_candidates": 3, "max_rows": 1}])
def test_ranking_from_states_is_ranking(address: str, ask: Ask, states: UserState, limits: dict[str, int]) -> None:
    request = {"candidates": CANDIDATES, "user": USER, "state": states}
    ranking = ask(address, "rank_from_state", request, model_name="memory", **limits)
    np.testing.assert_allclose(ranking.probability, scores(2), atol=1e-6)
    assert ranking.model_version == 2
    # One user, with the state as a row of its own.
    one = {"candidates": {"item_id": CANDIDATES["item_id"][2]}, "user": {"user_id": 9}, "state": states.split()[2]}
    ranking = ask(address, "rank_from_state", one, model_name="memory", **limits)
    np.testing.assert_allclose(ranking.probability, scores(2)[2], atol=1e-6)


def test_ranking_without_candidates(address: str, ask: Ask, states: UserState) -> None:
    request = {"candidates": {"item_id": [[], [], []]}, "user": USER, "state": states}
    assert ask(address, "rank_from_state", request, model_name="memory").probability.shape == (3, 0)
    older = dataclasses.replace(states, model_version=1)
    ranking = ask(address, "rank_from_state", request | {"state": older}, model_name="memory")
    assert (ranking.probability.shape, ranking.model_version) == ((3, 0), 1)


def test_updated_states_are_those_of_the_whole_history(address: str, ask: Ask, states: UserState) -> None:
    older = {name: [row[1:] for row in values] for name, values in HISTORY.items()}
    newer = {name: [row[:1] for row in values] for name, values in HISTORY.items()}
    state = ask(address, "user_state", {"history": older}, model_name="memory")
    updated = ask(address, "update_state", {"state": state, "history": newer}, model_name="memory", max_rows=2)
    assert (updated.model_name, updated.model_version) == ("memory", 2)
    for name, array in states.arrays.items():
        assert updated.arrays[name].tolist() == array.tolist()
        assert updated.arrays[name].tolist() != state.arrays[name].tolist()


def test_history_where_a_unit_reads_it_too(address: str, ask: Ask) -> None:
    request = {"candidates": CANDIDATES, "user": USER, "history": HISTORY}
    states = ask(address, "user_state", {"history": HISTORY}, model_name="mixed")
    ranking = ask(address, "rank_from_state", request | {"state": states}, model_name="mixed")
    np.testing.assert_allclose(ranking.probability, scores(1) + COUNTS[:, np.newaxis] / 7, atol=1e-6)
    with pytest.raises(ValueError, match=r"Missing: history_action, history_item_id, history_length\."):
        ask(address, "rank_from_state", {"candidates": CANDIDATES, "user": USER, "state": states}, model_name="mixed")
    with pytest.raises(ValueError, match=r"has no signature 'update_state'\. It has: .*user_state"):
        ask(address, "update_state", {"history": HISTORY, "state": states}, model_name="mixed")


def test_model_without_states(contract_servers: dict[str, str], ask: Ask) -> None:
    with pytest.raises(ValueError, match=re.escape("Model 'eta' has no signature 'user_state'. It has: examples, ")):
        ask(contract_servers["int64"], "user_state", {"history": HISTORY})


def test_the_version_of_the_state_answers(address: str, ask: Ask) -> None:
    """Version 2 is the newest, and states of version 1 are ranked by version 1, whose answers differ."""
    states = UserState({"memory_sums": SUMS, "memory_count": COUNTS.astype(np.float16)}, "memory", 1)
    request = {"candidates": CANDIDATES, "user": USER, "state": states}
    for limits in ({}, {"max_candidates": 1}):
        ranking = ask(address, "rank_from_state", request, model_name="memory", **limits)
        np.testing.assert_allclose(ranking.probability, scores(1), atol=1e-6)
        assert ranking.model_version == 1
    newest = ask(address, "rank_from_state", request | {"any_version": True}, model_name="memory")
    np.testing.assert_allclose(newest.probability, scores(2, state_version=1), atol=1e-6)
    assert newest.model_version == 2
    request = {"state": states.split()[0], "history": FIRST}
    updated = ask(address, "update_state", request, model_name="memory")
    assert (updated.model_version, updated.arrays["memory_sums"].tolist()) == (1, [[36, 8]])
    mixed = ask(address, "update_state", request | {"any_version": True}, model_name="memory")
    # What version 2 added to it is no state of version 2.
    assert (mixed.model_version, mixed.arrays["memory_sums"].tolist()) == (1, [[54, 12]])


def test_state_of_a_version_that_is_gone(
    exports: Path, serve: Callable[..., EmbeddedServer], ask: Ask, tmp_path: Path
) -> None:
    shutil.copytree(exports / "memory" / "1", tmp_path / "1")
    server = serve(tmp_path)
    with RankingClient(server.address) as client:
        state = client.user_state(FIRST)
        shutil.copytree(exports / "memory" / "2", tmp_path / "2.tmp")
        (tmp_path / "2.tmp").rename(tmp_path / "2")
        end = time.monotonic() + 20
        while [status.version for status in client.status() if status.state == "AVAILABLE"] != [2]:
            assert time.monotonic() < end
            time.sleep(0.02)
        message = (
            "answered NOT_FOUND: `state` is of version 1, and version 2 is served. Compute it again by `user_state`, "
            "or accept states of other versions by `any_version=True`."
        )
        # The client that knew version 1, and one that never saw it; with candidates or without.
        with pytest.raises(StateVersionError, match=re.escape(message)):
            client.rank_from_state(**ONE, state=state)
    for method, arguments in (
        ("rank_from_state", ONE),
        ("rank_from_state", ONE | {"candidates": {"item_id": []}}),
        ("update_state", {"history": FIRST}),
    ):
        with pytest.raises(StateVersionError, match=re.escape(message)) as refused:
            ask(server.address, method, arguments | {"state": state})
        assert (refused.value.state_version, refused.value.served_version) == (1, 2)
    ranking = ask(server.address, "rank_from_state", ONE | {"state": state, "any_version": True})
    assert (ranking.probability.shape, ranking.model_version) == ((2,), 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name": "other"}, "`state` must be of model 'memory'. Received: a state of model 'other'"),
        ({"memory_sums": None}, "Missing: memory_sums."),
        ({"sdim_buckets": np.zeros((3, 1))}, "Unknown: sdim_buckets."),
        (
            {"memory_sums": np.zeros((3, 4), np.float32)},
            "`state.arrays['memory_sums']` must have shape (?, 2). Received shape: (3, 4)",
        ),
        (
            {"memory_sums": np.full((3, 2), np.nan)},
            "`state.arrays['memory_sums']` must be finite and fit into float32. Received: nan at [0, 0]",
        ),
    ],
)
def test_wrong_states(address: str, ask: Ask, states: UserState, changes: dict[str, Any], message: str) -> None:
    arrays = {name: array for name, array in {**states.arrays, **changes}.items() if array is not None}
    state = UserState(arrays, arrays.pop("model_name", "memory"), 2)
    request = {"candidates": CANDIDATES, "user": USER, "state": state}
    with pytest.raises(ValueError, match=re.escape(message)):
        ask(address, "rank_from_state", request, model_name="memory")


def test_what_is_no_state_or_of_other_users(address: str, ask: Ask, states: UserState) -> None:
    with pytest.raises(TypeError, match=r"`state` must be a UserState\. Received: dict"):
        ask(address, "rank_from_state", ONE | {"state": dict(states.arrays)}, model_name="memory")
    with pytest.raises(
        ValueError, match=r"`state.arrays\['memory_\w+'\]` must have as many rows as .*, 1. Received: 3"
    ):
        ask(address, "rank_from_state", ONE | {"state": states}, model_name="memory")
    with pytest.raises(ValueError, match=re.escape("`history` must have at least one column. Received: history={}")):
        ask(address, "user_state", {"history": {}}, model_name="memory")
    request = {"candidates": CANDIDATES, "user": USER, "state": states, "history": HISTORY}
    with pytest.raises(ValueError, match=r"Unknown: history_action, history_item_id, history_length\."):
        ask(address, "rank_from_state", request, model_name="memory")


def test_states_on_the_command_line(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the history of three users to a file, and from that to the answer."""
    to_server = ["--target", address, "--model_name", "memory"]
    request, kept = tmp_path / "request.json", tmp_path / "states"

    def run(*arguments: str, **columns: Any) -> tuple[int, str, str]:
        request.write_text(json.dumps(columns))
        code = main([*arguments, *to_server, "--request", str(request)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    written = run("user-state", "--output", str(kept), history=HISTORY)
    assert written == (0, "", f"Wrote {kept}: 3 by version 2\n")
    code, out, _ = run("rank", "--json", "--state", str(kept), candidates=CANDIDATES, user=USER)
    assert code == 0
    answer = json.loads(out)
    assert answer["model_version"] == 2
    best = [ranking[0]["probability"] for ranking in answer["rankings"]]
    np.testing.assert_allclose(best, scores(2).max(axis=1), atol=1e-6)

    older = dataclasses.replace(read_state(str(kept)), model_version=1)
    write_state(str(kept), older)
    for flags, version in (((), 1), (("--any_version",), 2)):
        _, out, _ = run("rank", "--json", "--state", str(kept), *flags, candidates=CANDIDATES, user=USER)
        assert json.loads(out)["model_version"] == version
    _, _, err = run("rank", "--state", str(kept), candidates=CANDIDATES, users=USER)
    assert "with `candidates`, and maybe `context`, `history`, `history_length`, `sequences`, `user`. Received: " in err
    _, _, err = run("user-state", "--output", str(kept), candidates=CANDIDATES, history=HISTORY)
    assert (
        "with `history`, and maybe `context`, `history_length`, `sequences`. Received: ['candidates', 'history']" in err
    )
    for content in (b"", b"no zip", b"PK\x03\x04broken"):
        kept.write_bytes(content)
        code, _, err = run("rank", "--state", str(kept), candidates=CANDIDATES, user=USER)
        assert (code, err.count("\n")) == (1, 1)
        assert err.startswith(f"error: {kept} must be a file that `user-state` wrote: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--state", "s", "--candidates", "c", "--history", "h"], "--state goes with --request."),
        (["--any_version"], "--any_version goes with --state."),
    ],
)
def test_flags_of_states_that_do_not_fit(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["rank", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def state(*rows: int, name: str = "eta", version: int = 3) -> UserState:
    return UserState({"a": np.array(rows), "b": np.array([[row, -row] for row in rows], np.float32)}, name, version)


def test_states_are_kept_as_arrays(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    np.savez(path, **state(5, 7).to_arrays())
    with np.load(path) as arrays:  # which unpickles nothing
        kept = UserState.from_arrays(arrays)
    assert (kept.model_name, kept.model_version) == ("eta", 3)
    assert kept.arrays["a"].tolist() == [5, 7]
    assert kept.arrays["b"].tolist() == [[5, -5], [7, -7]]
    assert (kept.arrays["b"].dtype, {*kept.arrays}) == (np.float32, {"a", "b"})
    with pytest.raises(ValueError, match=r"`arrays` must have model_name and model_version\. Received: a"):
        UserState.from_arrays({"a": np.zeros(1)})


def test_states_are_split_and_joined() -> None:
    parts = state(5, 7, 9).split()
    assert [part.arrays["b"].tolist() for part in parts] == [[[5, -5]], [[7, -7]], [[9, -9]]]
    assert {(part.model_name, part.model_version, len(part)) for part in parts} == {("eta", 3, 1)}
    joined = UserState.join([parts[2], state(1, 2)])
    assert joined.arrays["a"].tolist() == [9, 1, 2]
    assert (joined.model_name, joined.model_version, len(joined)) == ("eta", 3, 3)
    for other, received in ((state(1, version=4), "eta, version 4"), (state(1, name="other"), "other, version 3")):
        message = f"`states` must be of one version of one model. Received: ['eta, version 3', '{received}']"
        with pytest.raises(ValueError, match=re.escape(message)):
            UserState.join([state(1), other])
    with pytest.raises(ValueError, match=re.escape("of one model. Received: []")):
        UserState.join([])


@pytest.mark.parametrize("arrays", [{}, {"a": np.zeros(())}, {"a": np.zeros(2), "b": np.zeros(3)}])
def test_states_have_a_row_per_user(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"`arrays` must hold arrays of one row per user each\. Received shapes: "):
        UserState(arrays, "eta", 1)
