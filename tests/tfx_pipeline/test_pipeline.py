"""The whole pipeline on a slice of MovieLens-1M, faults included.

The tests share one output directory and run in their order: each goes on from what the ones before it left. The first
run and those that are killed are commands in processes of their own; the others need not import everything again.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_metadata as mlmd
import numpy as np
import pyarrow.parquet
import pytest
import tensorflow as tf
from tensorflow_serving.config import model_server_config_pb2
from tfx import v1 as tfx

from keras_eta import Features
from keras_eta.datasets import movielens
from keras_eta.datasets.counting import BASELINES
from serving.client import RankingClient
from serving.server.embedded import EmbeddedServer
from tfx_pipeline import run, tune
from tfx_pipeline.components.serving_requests import serving_requests
from tfx_pipeline.config import EVAL, VALIDATION
from tfx_pipeline.exclusive import exclusive
from tfx_pipeline.flags import config_from_flags
from tfx_pipeline.results import artifacts_of_latest_run
from tfx_pipeline.training.batches import transformed_batches
from tfx_pipeline.training.trainer import TRAINING_REPORT, load_trained_model

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

ROOT = Path(__file__).parents[2]
NUM_USERS = 110
FLAGS = ["--max_history_length", "64", "--batch_size", "128", "--min_auc", "0.55", "--max_auc_drop", "0.03"]
# So few users and epochs lose to the popularity of films.
FLAGS += ["--epochs", "2", "--min_auc_lead", "-1", "--no-short_history_baseline"]
CALIBRATED = ["--calibrate", "platt"]
FIRST_RUN = ["--bulk_inference", "--short_history_baseline", *CALIBRATED]
NUM_COMPARED = 500


class Workspace:
    """The slice of the data and the directories of the runs."""

    def __init__(self, path: Path) -> None:
        self.data, self.output, self.serving_dir = path / "data", path / "output", path / "serving" / "eta"
        movielens.write_folder(self.data)
        ratings = (self.data / "ratings.dat").read_bytes().splitlines(keepends=True)
        ratings = [line for line in ratings if int(line.split(b"::")[0]) <= NUM_USERS]
        times = [int(line.split(b"::")[3]) for line in ratings]
        self.ratings, self.last_old_time = ratings, sorted(times)[int(0.8 * len(times))]
        self.write([line for line, time in zip(ratings, times, strict=True) if time <= self.last_old_time])

    def write(self, ratings: list[bytes]) -> None:
        """Makes these lines the log."""
        (self.data / "ratings.dat").write_bytes(b"".join(ratings))

    def command(self, *flags: str) -> list[str]:
        """The command of a run."""
        where = ["--data", str(self.data), "--output", str(self.output), "--serving_dir", str(self.serving_dir)]
        return [sys.executable, "-m", "tfx_pipeline.run", "--layout", "movielens", *where, *FLAGS, *flags]

    def run_command(self, *flags: str) -> subprocess.CompletedProcess[str]:
        """Runs the pipeline to its end, in a process of its own."""
        return subprocess.run(self.command(*flags), cwd=ROOT, capture_output=True, text=True, timeout=1_800)

    def run(self, *flags: str, main: Callable[[list[str]], int] = run.main) -> subprocess.CompletedProcess[str]:
        """Runs the pipeline, or the `main` of another command, to its end in this process."""
        command = self.command(*flags)
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
            code = main(command[3:])
        return subprocess.CompletedProcess(command, code, out.getvalue(), errors.getvalue())

    def run_until(self, text: str, *flags: str) -> str:
        """Runs the pipeline until it prints `text`, kills it with all its children, and returns what it printed."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        printed = ""
        with subprocess.Popen(
            self.command(*flags),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                printed += line
                if text in line:
                    os.killpg(process.pid, signal.SIGKILL)
                    break
        assert process.returncode == -signal.SIGKILL, printed
        return printed

    @property
    def versions(self) -> list[int]:
        """The versions in the serving directory; nothing but versions and hidden files may be there."""
        names = [path.name for path in self.serving_dir.iterdir() if path.name != ".push.lock"]
        assert all(name.isdecimal() for name in names), names
        return sorted(map(int, names))

    @property
    def summary(self) -> dict[str, Any]:
        """The report of the last run."""
        return json.loads((self.output / "report" / "summary.json").read_text())

    @property
    def cached(self) -> set[str]:
        """The components of the last run that took the outputs of an earlier one."""
        return {timing["component"] for timing in self.summary["components"] if timing["cached"]}

    def artifact(self, component: str, key: str) -> str:
        """The path of an output of the last run."""
        return artifacts_of_latest_run(str(self.output / "metadata.sqlite"))[component][key][0].uri

    def training(self) -> dict[str, Any]:
        """Trainer's report of the last run."""
        return json.loads(Path(self.artifact("Trainer", "model_run"), TRAINING_REPORT).read_text())

    def num_executions(self, component: str) -> int:
        """How often the executor of a component ran to its end."""
        connection = tfx.orchestration.metadata.sqlite_metadata_connection_config(str(self.output / "metadata.sqlite"))
        executions = mlmd.MetadataStore(connection).get_executions_by_type(component)
        return sum(execution.last_known_state == execution.COMPLETE for execution in executions)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("pipeline"))


def test_first_run_pushes_a_version_and_reports(workspace: Workspace) -> None:
    finished = workspace.run_command(*FIRST_RUN)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    [version] = workspace.versions
    assert f"Pushed: {workspace.serving_dir / str(version)}" in finished.stdout
    assert not workspace.cached
    for component in ("ImpressionGen", "Transform", "Trainer", "ShortHistoryTrainer", "Baselines", "AtomicPusher"):
        assert re.search(rf"^\[\d+/15\] {component}$", finished.stdout, re.MULTILINE)
    ingestion = workspace.summary["ingestion"]
    assert ingestion["rows_read"] == len((workspace.data / "ratings.dat").read_bytes().splitlines())
    assert ingestion["rows_kept"] == ingestion["rows_read"]
    assert ingestion["bytes_per_impression"] > 0
    slices = {part["name"]: part for part in workspace.summary["slices"]}
    assert slices["overall"]["count"] == ingestion["impressions"]["eval"]
    buckets = [part["count"] for name, part in slices.items() if name.startswith("history_bucket=")]
    assert sum(buckets) == slices["overall"]["count"]
    assert any(name.startswith("genre=") for name in slices)
    assert 0.55 < slices["overall"]["values"]["auc"] < 0.9
    baselines = workspace.summary["baselines"]
    assert list(baselines) == [*BASELINES, "short-history"]
    assert 0.5 < baselines["short-history"]["auc"] < slices["overall"]["values"]["auc"] + 0.1
    # Nobody rates a film twice.
    assert baselines["repeat-count"] == {"auc": 0.5, "grouped_auc": 0.5}
    assert 0.55 < baselines["click-rate"]["grouped_auc"] < 0.8
    assert all(gate["passed"] for gate in workspace.summary["gates"])
    assert {"saturated_share", "grouped_auc"} < {gate["metric"] for gate in workspace.summary["gates"]}
    assert workspace.summary["last_blessed"] is None
    page = workspace.output / "report" / "index.html"
    assert finished.stdout.splitlines()[-1] == f"Report: {page.as_uri()}"
    assert f"{baselines['click-rate']['grouped_auc']:.4f}" in page.read_text()
    assert workspace.training()["base_version"] is None
    assert workspace.training()["held_in_memory"] is True
    fitted = workspace.training()["calibration"]
    assert workspace.summary["calibration"] == fitted
    assert fitted["rows"] == ingestion["impressions"]["validation"]
    assert f"Fitted to the {fitted['rows']:,} impressions of the validation part" in page.read_text()


def test_every_way_to_score_an_impression_agrees(workspace: Workspace) -> None:
    features = _features(workspace)
    examples = Path(workspace.artifact("ImpressionGen", "examples"))
    records, others = _records(examples, EVAL)[:NUM_COMPARED], _records(examples, VALIDATION)
    assert len(records) == NUM_COMPARED
    scores = _keras_scores(workspace)
    table = pyarrow.parquet.read_table(workspace.artifact("ScoresWriter", "scores")).to_pydict()
    names = ("user_id", "item_id", "timestamp")
    bulk = dict(zip(zip(*(table[name] for name in names), strict=True), table["probability"], strict=True))
    requests = serving_requests(records, features)
    users = [tf.train.Example.FromString(record).features.feature["user_id"].int64_list.value[0] for record in records]
    keys = list(zip(users, *(requests["serving_default"][name].tolist() for name in names[1:]), strict=True))
    with _served(workspace) as client:
        online = {name: client.predict(requests[name], name)["probability"] for name in ("serving_default", "examples")}
        validation = [
            client.predict({"examples": np.array(others[start : start + NUM_COMPARED], object)}, "examples")
            for start in range(0, len(others), NUM_COMPARED)
        ]
        # One request an impression: its own candidate, and the next impression's.
        inputs = requests["serving_default"]
        pairs = np.stack([np.arange(NUM_COMPARED), (np.arange(NUM_COMPARED) + 1) % NUM_COMPARED], axis=1)
        ranked = client.predict({**inputs, "item_id": inputs["item_id"][pairs]}, "rank")["probability"]
    np.testing.assert_allclose(online["examples"], online["serving_default"], atol=1e-5)
    np.testing.assert_allclose(ranked[:, 0], online["serving_default"], atol=1e-5)
    np.testing.assert_allclose([bulk[key] for key in keys], online["serving_default"], atol=1e-5)
    # Transform shuffles nothing, but its rows carry no raw ids: compare what is unordered.
    np.testing.assert_allclose(
        np.sort(scores), np.sort(np.concatenate([found["probability"] for found in validation])), atol=1e-5
    )
    assert np.std(scores) > 0.02


def test_unchanged_data_is_not_trained_on_again(workspace: Workspace) -> None:
    before = workspace.versions
    finished = workspace.run(*CALIBRATED)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert {"ImpressionGen", "StatisticsGen", "Transform", "Trainer", "LocalInfraValidator"} <= workspace.cached
    assert workspace.versions == before
    # Those of the first run: of the model and of its baseline.
    assert workspace.num_executions("tfx.components.trainer.component.Trainer") == 2
    assert "short-history" not in workspace.summary["baselines"]
    # The first run's model is now the last blessed one, and is judged beside itself.
    overall = workspace.summary["slices"][0]
    assert workspace.summary["last_blessed"]["auc"] == overall["values"]["auc"]
    assert "last blessed" in finished.stdout


def test_search_trains_on_what_the_run_made(workspace: Workspace) -> None:
    finished = workspace.run("--epochs", "1", "--search", "top_k=4,8", "--trials", "2", main=tune.main)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    content = json.loads((workspace.output / "tuning" / "trials.json").read_text())
    assert content["trials"][0]["values"] == {"top_k": "48"}
    assert content["trials"][1]["values"]["top_k"] in ("4", "8")
    aucs = [trial["outcome"]["auc"] for trial in content["trials"]]
    assert min(aucs) > 0.5
    best = aucs.index(max(aucs))
    assert f"Trial {best} has the highest validation AUC." in finished.stdout
    assert f"--epochs 1 --top_k {content['trials'][best]['values']['top_k']}\n" in finished.stdout


def test_second_run_at_once_is_refused(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    with exclusive(workspace.output):
        assert run.main(workspace.command()[3:]) == 1
    assert f"Another run is using {workspace.output} (process {os.getpid()})" in capsys.readouterr().err


def test_worse_model_is_not_pushed(workspace: Workspace) -> None:
    before = workspace.versions
    finished = workspace.run("--max_steps", "1", "--no-warm_start", "--min_auc_lead", "0.5")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "The model was not pushed. Evaluator did not bless it" in finished.stdout
    best = max(baseline["grouped_auc"] for baseline in workspace.summary["baselines"].values())
    assert f"and must be at least {best + 0.5:.4f}: the baseline " in finished.stdout
    assert f" has {best:.4f}, and `min_auc_lead`=0.5" in finished.stdout
    refused = [gate["metric"] for gate in workspace.summary["gates"] if not gate["passed"]]
    assert "grouped_auc" in refused
    assert "Transform" in workspace.cached
    assert workspace.versions == before


def test_anomalous_data_stops_before_training(workspace: Workspace) -> None:
    before, trained = workspace.versions, workspace.num_executions("tfx.components.trainer.component.Trainer")
    log = (workspace.data / "ratings.dat").read_bytes().splitlines(keepends=True)
    # Of late, everybody rates one film all the time.
    row = b"%d::1::%d::%d\n"
    workspace.write([*log, *(row % (n % 50 + 1, n % 5 + 1, workspace.last_old_time + n) for n in range(2_000))])
    finished = workspace.run()
    workspace.write(log)
    assert finished.returncode == 1
    assert "ImpressionValidator failed: Data validation found anomalies" in finished.stderr
    assert "train: item_id:" in finished.stderr
    assert "between train and eval (skew)" in finished.stderr
    assert workspace.versions == before
    assert workspace.num_executions("tfx.components.trainer.component.Trainer") == trained


def test_new_data_is_trained_on_from_the_last_model_through_two_kills(workspace: Workspace) -> None:
    [base] = workspace.versions
    workspace.write(workspace.ratings)
    # Four epochs of so few users are too many: what is learned is not the point here.
    flags = ["--epochs", "4", "--patience", "4", "--max_log_loss", "1", "--max_auc_drop", "0.1"]
    workspace.run_until("] ImpressionGen", *flags)
    assert workspace.versions == [base]
    printed = workspace.run_until("Epoch 3/3", *flags)
    assert "Epoch 2/2" in printed
    assert workspace.versions == [base]
    finished = workspace.run(*flags)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "Transform" in workspace.cached
    assert "Epoch 1/" not in finished.stdout
    training = workspace.training()
    steps = -(-training["train_examples"] // 128)
    assert training["base_version"] == base
    assert training["resumed_at_step"] == 2 * steps
    assert training["steps"] == 4 * steps
    assert len(workspace.versions) == 2, finished.stdout
    assert workspace.versions[0] == base
    assert not list((workspace.output / "checkpoints").iterdir())
    with _served(workspace) as client:
        assert [(status.version, status.state) for status in client.status()] == [(workspace.versions[1], "AVAILABLE")]


def _features(workspace: Workspace) -> Features:
    path = next(workspace.serving_dir.glob("*/assets.extra/features.json"))
    return Features.from_dict(json.loads(path.read_text()))


def _records(examples: Path, split: str) -> list[bytes]:
    files = sorted(map(str, examples.glob(f"Split-{split}/*.gz")))
    return list(tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator())


@contextlib.contextmanager
def _served(workspace: Workspace) -> Iterator[RankingClient]:
    """A client of a server on the serving directory."""
    config = model_server_config_pb2.ModelConfig(name="eta", base_path=str(workspace.serving_dir))
    with EmbeddedServer([config], port=0) as server, RankingClient(server.address, timeout=120) as client:
        client.wait_until_ready()
        yield client


def _keras_scores(workspace: Workspace) -> np.ndarray:
    """Probabilities of the validation part by the Keras model that was trained, on what Transform made of it."""
    flags = run.parser().parse_args(workspace.command(*FIRST_RUN)[3:])
    model = load_trained_model(
        workspace.artifact("Trainer", "model_run"),
        workspace.artifact("Transform", "transform_graph"),
        config_from_flags(flags),
    )
    transformed = workspace.artifact("Transform", "transformed_examples")
    batches = transformed_batches([f"{transformed}/Split-{VALIDATION}/*.gz"], model.features, 256)
    return np.concatenate([model.probabilities(model(columns)) for columns, _ in batches])
