"""The infrastructure validator: real servers, real requests, and models that must not pass."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tensorflow as tf
from absl import logging as absl_logging
from tfx import v1 as tfx
from tfx.components.util import model_utils
from tfx.types import standard_artifacts

from keras_eta.features import Features
from tests.tfx_pipeline import servable
from tests.tfx_pipeline.servable import LAYOUT, MAX_HISTORY
from tfx_pipeline.components import model_server
from tfx_pipeline.components.infra_validator import (
    InfraValidatorExecutor,
    LocalInfraValidator,
    check_signatures,
)
from tfx_pipeline.components.model_server import ModelServer, Signature, UnservableModelError
from tfx_pipeline.components.serving_requests import serving_requests

ROWS = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> standard_artifacts.Model:
    return servable.export_eta(tmp_path_factory.mktemp("eta"))


@pytest.fixture(scope="module")
def records() -> list[bytes]:
    return [servable.serialized(impression) for impression in servable.impressions(ROWS)]


@pytest.fixture(scope="module")
def server(model: standard_artifacts.Model) -> Iterator[ModelServer]:
    with ModelServer(servable.saved_model_path(model), loading_seconds=100, request_seconds=30) as running:
        yield running


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Errors that were logged."""
    errors: list[str] = []
    monkeypatch.setattr(absl_logging, "error", lambda message, *args: errors.append(message % args))
    return errors


def validate(
    model: standard_artifacts.Model, folder: Path, records: list[bytes], **seconds: float
) -> standard_artifacts.InfraBlessing:
    """The blessing that the component's executor gives."""
    examples = servable.examples_artifact(folder / "examples", records)
    component = LocalInfraValidator(
        model=tfx.dsl.Channel(type=standard_artifacts.Model),
        examples=tfx.dsl.Channel(type=standard_artifacts.Examples),
        config=servable.CONFIG,
        **seconds,
    )
    blessing = standard_artifacts.InfraBlessing()
    blessing.uri = str(folder / "blessing")
    InfraValidatorExecutor().Do(
        {"model": [model], "examples": [examples]}, {"blessing": [blessing]}, component.exec_properties
    )
    return blessing


def broken_copy(model: standard_artifacts.Model, folder: Path) -> tuple[standard_artifacts.Model, Path]:
    artifact = servable.model_artifact(folder / "broken")
    path = servable.saved_model_path(artifact)
    shutil.copytree(servable.saved_model_path(model), path)
    return artifact, path


def assert_ends(process_id: int, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(process_id) and psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"process {process_id} lives on"
        time.sleep(0.1)


def server_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "serving.server" in child.cmdline()]


@pytest.mark.slow
def test_good_model_is_blessed(model, records, tmp_path, log):
    before = server_processes()
    blessing = validate(model, tmp_path, records)
    assert log == []
    assert model_utils.is_infra_validated(blessing)
    assert [path.name for path in Path(blessing.uri).iterdir()] == ["INFRA_BLESSED"]
    assert server_processes() == before


@pytest.mark.slow
def test_truncated_saved_model_is_not_blessed(model, records, tmp_path, log):
    broken, path = broken_copy(model, tmp_path)
    graph = (path / "saved_model.pb").read_bytes()
    (path / "saved_model.pb").write_bytes(graph[: len(graph) // 2])
    blessing = validate(broken, tmp_path, records)
    assert not model_utils.is_infra_validated(blessing)
    (marker,) = Path(blessing.uri).iterdir()
    assert marker.name == "INFRA_NOT_BLESSED"
    reason = "The model can't be loaded: the server ended with exit code 1."
    assert marker.read_text() == reason == blessing.get_string_custom_property("reason")
    # What the server says comes along.
    assert len(log) == 1
    assert f"{reason}\nEnd of the server's log:\n" in log[0]
    assert "error: No version of model candidate can be loaded" in log[0]
    assert broken.uri in log[0]


@pytest.mark.slow
def test_missing_variables_are_not_blessed(model, records, tmp_path, log):
    broken, path = broken_copy(model, tmp_path)
    shutil.rmtree(path / "variables")
    blessing = validate(broken, tmp_path, records)
    assert not model_utils.is_infra_validated(blessing)
    assert "The model can't be loaded: the server ended with exit code 1." in log[0]
    assert "variables" in log[0]


@pytest.mark.slow
def test_nan_is_not_blessed(model, records, tmp_path, log):
    broken, path = broken_copy(model, tmp_path)
    poison_variables(path)
    blessing = validate(broken, tmp_path, records)
    assert not model_utils.is_infra_validated(blessing)
    assert "probabilities that do not lie between 0 and 1, e.g. nan." in log[0]


def poison_variables(path: Path) -> None:
    """Writes NaN over every float in the checkpoint of a SavedModel."""
    prefix = str(path / "variables" / "variables")
    reader = tf.train.load_checkpoint(prefix)
    names = sorted(reader.get_variable_to_shape_map())
    values = [tf.constant(reader.get_tensor(name)) for name in names]
    values = [tf.fill(tf.shape(x), np.float32("nan")) if x.dtype == tf.float32 else x for x in values]
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=values)


@pytest.mark.slow
def test_model_that_does_not_answer_in_time_is_not_blessed(model, records, tmp_path, log):
    blessing = validate(model, tmp_path, records, loading_seconds=0.5)
    assert not model_utils.is_infra_validated(blessing)
    assert "The model was not loaded within 0.5 s." in log[0]
    assert server_processes() == []


def test_empty_eval_split_is_an_error(model, tmp_path):
    with pytest.raises(ValueError, match=r"The eval split of .*examples is empty: there is nothing to ask the model\."):
        validate(model, tmp_path, [])


@pytest.mark.slow
def test_every_signature_is_asked_and_checked(server, records):
    requests = serving_requests(records, LAYOUT.features)
    signatures = server.signatures()
    assert list(signatures) == ["examples", "explain", "rank", "serving_default"]
    assert signatures["examples"] == (("examples",), ("probability",))
    assert {"distances", "positions", "recent_interest_weights"} <= set(signatures["explain"].outputs)
    assert "user_id" in signatures["rank"].inputs
    check_signatures(server, requests)
    # The lengths count: padded with real behaviours, the histories would otherwise say something else.
    lengths = np.full_like(requests["rank"]["history_length"], MAX_HISTORY)
    longer = {**requests, "rank": {**requests["rank"], "history_length": lengths}}
    with pytest.raises(
        UnservableModelError, match=r"`rank` and `serving_default` differ by .*; rounding explains 1e-05"
    ):
        check_signatures(server, longer)


@pytest.mark.slow
def test_refused_request_says_what_the_server_says(server, records):
    inputs = dict(serving_requests(records, LAYOUT.features)["serving_default"])
    inputs["history_length"] = inputs["history_length"] + 100
    message = "The server answers INVALID_ARGUMENT to `serving_default`: .*`history_length` must lie between 0 and"
    with pytest.raises(UnservableModelError, match=message):
        server.predict("serving_default", inputs)


class HangingModel(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def hang(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probability": tf.while_loop(lambda x: tf.reduce_sum(x) < 1e30, lambda x: (tf.sin(x),), [x])[0]}


@pytest.mark.slow
def test_hanging_server_is_named_and_ended(tmp_path):
    module = HangingModel()
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.hang})
    with ModelServer(tmp_path, loading_seconds=100, request_seconds=1) as server:
        process_id = server.process_id
        with pytest.raises(UnservableModelError, match=r"The server did not answer to `serving_default` within 1 s\."):
            server.predict("serving_default", {"x": np.ones(3, np.float32)})
        start = time.monotonic()
    assert time.monotonic() - start < 5
    assert not psutil.pid_exists(process_id)
    assert "Loaded version 1 of model candidate" in server.log


@pytest.mark.slow
def test_server_ends_with_whoever_started_it(tmp_path, monkeypatch):
    process_file = tmp_path / "process"
    put_on_path(tmp_path, monkeypatch, f"#!/bin/sh\necho $$ >> {process_file}\nexec sleep 1000\n")
    code = textwrap.dedent(
        f"""
        import signal
        from tfx_pipeline.components.model_server import ModelServer
        # Ignored where the tests run in the background of a shell.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with ModelServer({str(tmp_path)!r}, loading_seconds=1000, request_seconds=1):
            pass
        """
    )
    numbers = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
    # A starter that is killed leaves its temporary files.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    starters = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) for _ in numbers]
    servers: list[int] = []
    try:
        deadline = time.monotonic() + 100
        while len(servers) < len(numbers):
            assert time.monotonic() < deadline
            time.sleep(0.1)
            servers = [int(line) for line in process_file.read_text().split()] if process_file.exists() else []
        assert all(psutil.pid_exists(process_id) for process_id in servers)
        for starter, number in zip(starters, numbers, strict=True):
            starter.send_signal(number)
            starter.wait(20)
        for process_id in servers:
            assert_ends(process_id)
    finally:
        for starter in starters:
            starter.kill()
            starter.wait()
        for process_id in servers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)


def put_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Makes a script the `tensorflow_model_server` of this machine."""
    binary = folder / "tensorflow_model_server"
    binary.write_text(script)
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


# Takes the flags that the real one takes, and only those that we may count on.
FAKE_TENSORFLOW_SERVING = """\
#!{python}
import argparse, sys, threading
sys.path.insert(0, {root!r})
parser = argparse.ArgumentParser(allow_abbrev=False)
for name in ("port", "max_num_load_retries", "file_system_poll_wait_seconds"):
    parser.add_argument("--" + name, type=int)
for name in ("grpc_socket_path", "model_name", "model_base_path"):
    parser.add_argument("--" + name, required=True)
parser.add_argument("--xla_cpu_compilation_enabled", action="store_true", required=True)
flags = parser.parse_args()
assert (flags.port, flags.max_num_load_retries) == (0, 0)
from tensorflow_serving.config import model_server_config_pb2
from serving.server.embedded import EmbeddedServer
config = model_server_config_pb2.ModelConfig(name=flags.model_name, base_path=flags.model_base_path)
server = EmbeddedServer([config], port=0, file_system_poll_wait_seconds=0)
server._server.add_insecure_port("unix:" + flags.grpc_socket_path)
server.start()
print("the fake serves", flush=True)
threading.Event().wait()
"""


@pytest.mark.slow
def test_tensorflow_serving_on_the_path_is_preferred(model, records, tmp_path, monkeypatch):
    root = str(Path(model_server.__file__).parents[2])
    put_on_path(tmp_path, monkeypatch, FAKE_TENSORFLOW_SERVING.format(python=sys.executable, root=root))
    server = ModelServer(servable.saved_model_path(model), loading_seconds=100, request_seconds=30)
    with server:
        check_signatures(server, serving_requests(records, LAYOUT.features))
        os.kill(server.process_id, signal.SIGKILL)
        with pytest.raises(UnservableModelError, match=r"The server ended at `examples`, with exit code -9\."):
            server.predict("examples", {"examples": np.array(records, object)})
    assert "the fake serves" in server.log


def test_requests_hold_the_raw_columns(records):
    features = Features(
        item_id=LAYOUT.features.item_id,
        item_attributes=LAYOUT.features.item_attributes,
        user=LAYOUT.features.user,
        age=LAYOUT.features.age,
    )
    impressions = servable.impressions(3)
    items = [impression["item_id"] for impression in impressions]
    requests = serving_requests([servable.serialized(impression) for impression in impressions], features)
    assert set(requests) == {"serving_default", "rank", "explain", "examples"}
    assert requests["examples"]["examples"].tolist() == [servable.serialized(i) for i in impressions]

    pointwise = requests["serving_default"]
    assert set(pointwise) == {
        *("user_id", "item_id", "category_id", "timestamp"),
        *("history_item_id", "history_category_id", "history_timestamp", "history_length"),
    }
    assert pointwise["user_id"].tolist() == [0, 1, 2]
    assert pointwise["timestamp"].tolist() == [1_000_000, 1_000_001, 1_000_002]
    assert pointwise["item_id"].tolist() == items
    lengths = [len(impression["history_item_id"]) for impression in impressions]
    assert pointwise["history_length"].tolist() == lengths
    # The first impression has no history: its padding is the first behaviour that there is, of the second one.
    first = impressions[1]["history_item_id"][0]
    assert pointwise["history_item_id"].tolist() == [
        impression["history_item_id"] + [first] * (MAX_HISTORY - len(impression["history_item_id"]))
        for impression in impressions
    ]
    assert pointwise["history_timestamp"][1].tolist() == impressions[1]["history_timestamp"]
    assert {name: x.dtype for name, x in pointwise.items() if x.dtype != np.int64} == {
        "item_id": np.dtype(object),
        "history_item_id": np.dtype(object),
    }

    rank = requests["rank"]
    assert rank["item_id"].tolist() == [
        [items[0], items[1], items[2]],
        [items[1], items[2], items[0]],
        [items[2], items[0], items[1]],
    ]
    assert rank["category_id"].shape == (3, 3)
    assert rank["timestamp"].tolist() == pointwise["timestamp"].tolist()


def test_requests_without_any_history():
    (impression,) = servable.impressions(1)
    requests = serving_requests([servable.serialized(impression)], LAYOUT.features)
    assert requests["rank"]["history_item_id"].shape == (1, 0)
    assert requests["rank"]["history_length"].tolist() == [0]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("price", None, r"Column `price` of the examples must be a float_list\. Received: nothing"),
        ("price", 7, r"Column `price` of the examples must be a float_list\. Received: int64_list"),
        ("user_id", [1, 2], r"Column `user_id` of the examples must hold one value each\. Received: 2"),
        ("history_dwell", None, r"Column `history_dwell` of the examples must be a float_list\. Received: nothing"),
    ],
)
def test_examples_that_do_not_fit_the_features(column, value, message):
    impression = servable.impressions(2)[1]
    impression[column] = value
    if value is None:
        del impression[column]
    with pytest.raises(ValueError, match=message):
        serving_requests([servable.serialized(impression)], LAYOUT.features)


class StubServer:
    """Gives prepared answers, and says that it gives those of good ones."""

    def __init__(self, answers: dict[str, dict[str, np.ndarray]], inputs: tuple[str, ...] = ()) -> None:
        self.answers, self.inputs = answers, inputs

    def signatures(self) -> dict[str, Signature]:
        return {name: Signature(self.inputs, tuple(sorted({**GOOD, **STATES}[name]))) for name in sorted(self.answers)}

    def predict(self, signature: str, inputs: Any) -> dict[str, np.ndarray]:
        return self.answers[signature]


PROBABILITY = np.array([[0.1, 0.2], [0.4, 0.3]], np.float32)
GOOD = {
    "serving_default": {"probability": PROBABILITY[:, 0]},
    "rank": {"probability": PROBABILITY},
    "examples": {"probability": PROBABILITY[:, 0]},
    "explain": {
        "probability": PROBABILITY,
        "positions": np.array([[[-1, -1]] * 2, [[5, 0]] * 2]),
        "distances": np.array([[[-1, -1]] * 2, [[7, 9]] * 2]),
        "weights": np.array([[[0.0, 0.0]] * 2, [[0.4, 0.6]] * 2]),
        # A unit that attends to fewer behaviours, without scores.
        "recent_interest_positions": np.array([[[-1]] * 2, [[0]] * 2]),
        "recent_interest_weights": np.array([[[0.0]] * 2, [[1.0]] * 2]),
        "match_item_id_count": np.array([[0, 0], [6, 1]]),
    },
}
STATES = {
    "user_state": {"mimn_memory": np.ones((2, 3, 4), np.float32)},
    "rank_from_state": {"probability": PROBABILITY},
    "update_state": {"mimn_memory": np.zeros((2, 3, 4), np.float32)},
}


def test_good_answers_pass(records):
    requests = serving_requests(records[:2], LAYOUT.features)
    check_signatures(StubServer(GOOD), requests)  # type: ignore[arg-type]
    without = {name: outputs for name, outputs in GOOD.items() if name != "explain"}
    check_signatures(StubServer(without), requests)  # type: ignore[arg-type]
    check_signatures(StubServer({**without, **STATES}), requests)  # type: ignore[arg-type]
    del without["rank"]
    with pytest.raises(UnservableModelError, match="The model lacks the signatures"):
        check_signatures(StubServer(without), requests)  # type: ignore[arg-type]


def test_state_signatures_get_columns_and_states(records):
    asked = []

    class Recording(StubServer):
        def predict(self, signature: str, inputs: Any) -> dict[str, np.ndarray]:
            asked.append((signature, sorted(inputs)))
            return super().predict(signature, inputs)

        def signatures(self) -> dict[str, Signature]:
            found = super().signatures()
            found["user_state"] = found["user_state"]._replace(inputs=("history_item_id", "history_length"))
            found["rank_from_state"] = found["rank_from_state"]._replace(inputs=("item_id", "mimn_memory"))
            found["update_state"] = found["update_state"]._replace(inputs=("history_length", "mimn_memory"))
            return found

    requests = serving_requests(records[:2], LAYOUT.features)
    check_signatures(Recording({**GOOD, **STATES}), requests)  # type: ignore[arg-type]
    assert asked[-3:] == [
        ("user_state", ["history_item_id", "history_length"]),
        ("rank_from_state", ["item_id", "mimn_memory"]),
        ("update_state", ["history_length", "mimn_memory"]),
    ]
    message = r"`user_state` asks for \['nothing'\], which neither impressions nor states have\."
    with pytest.raises(UnservableModelError, match=message):
        check_signatures(StubServer({**GOOD, **STATES}, inputs=("nothing",)), requests)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("signature", "output", "value", "message"),
    [
        ("rank", None, None, r"The model lacks the signatures \['rank'\]\. It has \['examples', 'explain', 'rank_from"),
        ("rank", "probability", None, r"`rank` gives no `probability`, but \[\]\."),
        (
            "rank",
            "probability",
            PROBABILITY[:, :1],
            r"`rank` gives `probability` of shape \[2, 1\] for a request that asks for \[2, 2\]\.",
        ),
        (
            "examples",
            "probability",
            np.array([0.1, np.inf]),
            r"`examples` gives 1 of 2 probabilities that do not lie between 0 and 1, e\.g\. inf\.",
        ),
        (
            "explain",
            "probability",
            np.array([[0.1, -0.2], [0.4, 0.3]]),
            r"`explain` gives 1 of 4 probabilities that do not lie between 0 and 1, e\.g\. -0\.2\.",
        ),
        (
            "serving_default",
            "probability",
            np.array([0.1, 0.40003]),
            r"`rank` and `serving_default` differ by 3e-05 in the probability of the same impression; rounding",
        ),
        ("examples", "probability", np.array([0.10002, 0.4]), r"`examples` and `serving_default` differ by 2e-05"),
        (
            "explain",
            "probability",
            np.array([[0.1, 0.2], [0.4, 0.3001]]),
            r"`explain` and `rank` differ by 0\.0001",
        ),
        ("explain", "distances", None, r"`explain` gives no `distances`, but "),
        ("explain", "weights", np.zeros((2, 2, 3)), r"`explain` gives `weights` of shape \[2, 2, 3\] for \[2, 2\]"),
        (
            "explain",
            "positions",
            np.array([[[0, -1]] * 2, [[5, 0]] * 2]),
            r"`explain` gives `positions` outside of the histories\.",
        ),
        (
            "explain",
            "weights",
            np.full((2, 2, 2), np.nan),
            r"`explain` gives `weights` with values that are not finite",
        ),
        ("explain", "recent_interest_weights", None, r"`explain` gives no `recent_interest_weights`, but "),
        (
            "explain",
            "recent_interest_weights",
            np.zeros((2, 2, 2)),
            r"`explain` gives `recent_interest_weights` of shape \[2, 2, 2\] for \[2, 2\]",
        ),
        (
            "explain",
            "recent_interest_positions",
            np.array([[[0]] * 2, [[0]] * 2]),
            r"`explain` gives `recent_interest_positions` outside of the histories\.",
        ),
        (
            "explain",
            "match_item_id_count",
            np.zeros((2, 2, 1)),
            r"`explain` gives `match_item_id_count` of shape \[2, 2, 1\] for \[2, 2\]",
        ),
        *(
            (
                "explain",
                "match_item_id_count",
                np.array(counts),
                r"`explain` gives `match_item_id_count` beyond the behaviours of the histories\.",
            )
            for counts in ([[1, 0], [6, 1]], [[0, 0], [-1, 1]])
        ),
        (
            "explain",
            "distances",
            np.full((2, 2, 2), np.inf),
            r"`explain` gives `distances` with values that are not fini",
        ),
        (
            "rank_from_state",
            "probability",
            np.array([[0.1, 0.2], [0.4, 0.3001]]),
            r"`rank_from_state` and `rank` differ by 0\.0001",
        ),
        (
            "user_state",
            "mimn_memory",
            np.full((2, 3, 4), np.nan),
            r"`user_state` gives `mimn_memory` with values that are not finite\.",
        ),
        (
            "update_state",
            "mimn_memory",
            np.zeros((2, 4, 3)),
            r"`update_state` gives `mimn_memory` of shape \[2, 4, 3\] for 2 users\.",
        ),
    ],
)
def test_bad_answers_are_named(records, signature, output, value, message):
    answers: dict[str, dict[str, Any]] = copy.deepcopy({**GOOD, **STATES})
    if output is None:
        del answers[signature]
    elif value is None:
        del answers[signature][output]
    else:
        answers[signature][output] = value
    # The first of the two has no history, the second six behaviours.
    with pytest.raises(UnservableModelError, match=message):
        check_signatures(StubServer(answers), serving_requests(records[:2], LAYOUT.features))  # type: ignore[arg-type]
