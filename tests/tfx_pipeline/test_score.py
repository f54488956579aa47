"""The command that scores files of requests: against the signature `rank` asked for one request at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow as tf

from keras_eta import FeatureLookup, Ranker
from keras_eta.export import export_model
from keras_eta.interest import ETAInterest, PoolingInterest
from tests.tfx_pipeline.scoring.requests import FEATURES, ITEMS, SCHEMA, make_requests, signature_inputs, write
from tfx_pipeline.score import main

CARRIED = ["user_id", "device type", "price", "timestamp", "request", "shown_at"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tf.keras.utils.set_random_seed(0)
    lookup = FeatureLookup(FEATURES)
    lookup.adapt(
        {
            "film": np.array(ITEMS[:5], object),
            "tags": np.arange(4).reshape(4, 1),
            "user_id": np.arange(4),
            "langs": np.array([[b"de"], [b"en"]], object),
            "device type": np.array([b"tv"], object),
            "store": np.arange(3),
        }
    )
    ranker = Ranker(
        lookup=lookup,
        interests=[ETAInterest(2, num_bits=16), PoolingInterest(sequence="bought")],
        hidden_units=(8,),
    )
    ranker.build()
    for layer in ranker.embeddings.values():
        layer.embeddings.assign(tf.random.normal(layer.embeddings.shape))
    base = tmp_path_factory.mktemp("models")
    export_model(ranker, base, 3, warmup=False, timestamps=(900_000, 1_000_000))
    return base


@pytest.fixture(scope="module")
def signature(model: Path) -> Any:
    return tf.saved_model.load(str(model / "3")).signatures["rank"]


def asked_alone(signature: Any, request: dict[str, Any]) -> list[float]:
    """The probabilities of one request's candidates, by a call of its own."""
    specs = signature.structured_input_signature[1]
    # The arguments of a column of another name than a word.
    inputs = {name.replace(" ", "_"): value for name, value in signature_inputs(request).items()}
    assert set(inputs) == set(specs)
    tensors = {}
    for name, value in inputs.items():
        shape = [1, *np.shape(value)] if len(np.shape(value)) == specs[name].shape.rank - 1 else [1, 0, 2]
        tensors[name] = tf.reshape(tf.constant(value, specs[name].dtype), shape)
    return signature(**tensors)["probability"].numpy()[0].tolist()


def run(model: Path, inputs: Path | str, output: Path, *flags: str) -> int:
    return main(["--model", str(model), "--input", str(inputs), "--output", str(output), *flags])


def rows_of(output: Path) -> list[dict[str, Any]]:
    return pa.parquet.read_table(output).to_pylist()


def carried(request: dict[str, Any]) -> dict[str, Any]:
    found = {name: request[name] for name in CARRIED}
    return {**found, "shown_at": pa.scalar(request["shown_at"], pa.timestamp("ms")).as_py()}


@pytest.mark.slow
def test_scores_are_those_of_requests_asked_one_by_one(
    model: Path, signature: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    requests = make_requests(120)
    write(tmp_path / "in" / "a.parquet", requests[:70], row_group_size=30)
    write(tmp_path / "in" / "b.parquet", requests[70:])
    output = tmp_path / "scores"
    assert run(model, tmp_path / "in" / "*.parquet", output) == 0
    assert all(name.startswith("scores-") or name == "_summary.json" for name in os.listdir(output))
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(output):
        found.setdefault(row["request"], []).append(row)
    assert list(found) == [request["request"] for request in requests if request["film"]]
    probabilities = []
    for request in requests:
        expected = asked_alone(signature, request)
        rows = found.get(request["request"], [])
        assert [row["film"] for row in rows] == request["film"]
        for row, probability in zip(rows, expected, strict=True):
            assert row.pop("probability") == pytest.approx(probability, abs=1e-6)
            assert row.pop("film") in ITEMS
            assert row == carried(request)
        probabilities += expected
    assert np.ptp(probabilities) > 0.05

    candidates = sum(len(request["film"]) for request in requests)
    cut = {name: sum(len(request[f"{name}_film"]) > most for request in requests) for name, most in LENGTHS.items()}
    empty = {name: sum(not request[f"{name}_film"] for request in requests) for name in LENGTHS}
    assert min(cut.values()) > 10
    summary = json.loads((output / "_summary.json").read_text())
    assert summary.pop("seconds") > 0
    assert summary == {
        "requests": 120,
        "scored": 120,
        "malformed": {},
        "candidates": candidates,
        "rows_written": candidates,
        "files_written": len(os.listdir(output)) - 1,
        "without_candidates": 1,
        "without_behaviours": empty,
        "cut": cut,
        "columns_left_out": ["history_rating"],
        "version": str(model / "3"),
    }
    printed = capsys.readouterr().out
    assert f"{candidates:,} candidates of 120 requests scored" in printed
    assert f"cut to the behaviours of history that the model reads: {cut['history']} requests" in printed
    assert "not carried over, since they hold lists: history_rating" in printed


LENGTHS = {"history": 6, "bought": 3}


@pytest.mark.slow
def test_best_candidates_as_lists(model: Path, signature: Any, tmp_path: Path) -> None:
    requests = make_requests(20, seed=1)
    write(tmp_path / "a.parquet", requests)
    output = tmp_path / "scores"
    assert run(model, tmp_path / "a.parquet", output, "--top", "3", "--lists") == 0
    rows = rows_of(output)
    assert [row["request"] for row in rows] == [request["request"] for request in requests]
    for row, request in zip(rows, requests, strict=True):
        alone = np.array(asked_alone(signature, request))
        np.testing.assert_allclose(row.pop("probability"), np.sort(alone)[::-1][:3], rtol=0, atol=1e-6)
        assert row.pop("film") == [request["film"][place] for place in np.argsort(-alone, kind="stable")[:3]]
        assert row == carried(request)


@pytest.mark.slow
def test_malformed_requests_are_counted_and_kept(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    requests = make_requests(600, seed=2, most=2)
    requests[3]["history_dwell"] = [*requests[3]["history_dwell"], 1.0]
    requests[599]["user_id"] = None
    requests[515]["user_id"] = None
    file = write(tmp_path / "a.parquet", requests, row_group_size=520)
    output = tmp_path / "scores"
    assert run(model, file, output) == 0
    scored = {row["request"] for row in rows_of(output)}
    assert scored == {request["request"] for request in requests if request["film"]} - {"r3", "r515", "r599"}
    letters = pa.parquet.read_table(output / "_dead_letter").to_pylist()
    assert sorted((letter["file"], letter["row"], letter["reason"]) for letter in letters) == [
        (str(file), 3, "history_dwell of another length than history_film"),
        (str(file), 515, "null user_id"),
        (str(file), 599, "null user_id"),
    ]
    (letter,) = (letter for letter in letters if letter["row"] == 3)
    assert json.loads(letter["request"])["history_dwell"] == pytest.approx(requests[3]["history_dwell"])
    assert (
        f"malformed: 3 of 600 requests, in {output}/_dead_letter: 2 null user_id; "
        "1 history_dwell of another length than history_film"
    ) in capsys.readouterr().out
    assert json.loads((output / "_summary.json").read_text())["scored"] == 597

    assert run(model, file, tmp_path / "strict", "--max_bad_share", "0.004") == 1
    assert sorted(os.listdir(tmp_path)) == ["a.parquet", "scores", "strict.dead_letter"]
    assert len(rows_of(tmp_path / "strict.dead_letter")) == 3
    error = capsys.readouterr().err
    assert error.startswith(
        "error: Too many rows are malformed; `max_bad_share` allows 0.40%.\n  all files: 3 of 600 rows, 0.50%\n"
        'In all files:\n  2 null user_id, e.g. a.parquet: \'row 515: {"user_id": null, '
    )
    assert error.endswith(f"All of them: {tmp_path}/strict.dead_letter\n")


@pytest.mark.slow
def test_scores_are_replaced_only_if_asked(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write(tmp_path / "a.parquet", make_requests(3))
    output = tmp_path / "scores"
    output.mkdir()
    assert run(model, file, output) == 0
    before = rows_of(output)
    assert len(before) > 3
    capsys.readouterr()
    assert run(model, file, output) == 1
    message = f"error: {output} holds scores. Replace them by --overwrite, or choose another --output.\n"
    assert capsys.readouterr().err == message
    assert run(model, file, output, "--overwrite", "--top", "1") == 0
    assert len(rows_of(output)) == 2
    assert sorted(os.listdir(tmp_path)) == ["a.parquet", "scores"]
    assert run(model, file, tmp_path, "--overwrite") == 1
    message = f"error: {tmp_path} exists and does not hold scores. Choose another --output.\n"
    assert capsys.readouterr().err == message


_SLEEPING = """
import pathlib, sys, time
from tfx_pipeline.scoring import transform
def scored(*_):
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(100)
transform.probabilities = scored
from tfx_pipeline.score import main
main(sys.argv[2:])
"""


@pytest.mark.e2e
def test_killed_run_leaves_no_output(model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", make_requests(3))
    started, output = tmp_path / "started", tmp_path / "scores"
    flags = ["--model", str(model), "--input", str(file), "--output", str(output)]
    process = subprocess.Popen([sys.executable, "-c", _SLEEPING, str(started), *flags], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not started.exists() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.1)
        assert started.exists()
        assert run(model, file, output) == 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not output.exists()
    assert (tmp_path / ".scores.partial").is_dir()
    assert run(model, file, output) == 0
    assert len({row["request"] for row in rows_of(output)}) == 2
    assert sorted(os.listdir(tmp_path)) == ["a.parquet", "scores", "started"]


def refused(capsys: pytest.CaptureFixture, flags: Sequence[str]) -> str:
    assert main(flags) == 1
    error: str = capsys.readouterr().err
    assert error.startswith("error: ")
    return error.removeprefix("error: ").removesuffix("\n")


def test_wrong_flags_are_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write(tmp_path / "a.parquet", make_requests(3))
    rest = ["--input", str(file), "--output", str(tmp_path / "scores")]
    good = ["--model", str(model), *rest]
    version = f"{tmp_path} has no version: it must be a directory of versions, as TF Serving takes it."
    assert refused(capsys, ["--model", str(tmp_path), *rest]) == version
    assert refused(capsys, [*good, "--version", "2"]) == f"{model} has no version 2. It has: [3]"
    assert refused(capsys, [*good, "--top", "0"]) == "`top` must be a positive integer. Received: top=0"
    share = "`max_bad_share` must lie between 0 and 1. Received: max_bad_share=1.5"
    assert refused(capsys, [*good, "--max_bad_share", "1.5"]) == share
    assert refused(capsys, [*good, "--input", "no*"]) == "No file fits --input no*"
    assert os.listdir(tmp_path) == ["a.parquet"]


def test_files_that_do_not_fit_are_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    requests = make_requests(3)
    write(tmp_path / "a.parquet", requests)
    write(tmp_path / "b.parquet", requests, SCHEMA.set(0, pa.field("user_id", pa.float64())))
    (tmp_path / "c.parquet").write_bytes(b"PAR1 and no more")
    flags = ["--model", str(model), "--input", str(tmp_path / "?.parquet"), "--output", str(tmp_path / "scores")]
    lines = refused(capsys, flags).split("\n  ")
    assert lines[:2] == [
        "These files can't be scored:",
        f"{tmp_path}/b.parquet: column 'user_id' must hold integers, other than uint64. Received: double",
    ]
    assert lines[2].startswith(f"{tmp_path}/c.parquet is no Parquet file: ")
    assert len(lines) == 3

    (tmp_path / "c.parquet").unlink()
    write(tmp_path / "b.parquet", requests, SCHEMA.set(SCHEMA.get_field_index("request"), pa.field("id", pa.string())))
    assert refused(capsys, flags).split("\n  ")[1:] == [
        f"{tmp_path}/b.parquet lacks the column 'request' of {tmp_path}/a.parquet: scores have one set of columns"
    ]
    numbers = [{**request, "request": 5} for request in requests]
    write(
        tmp_path / "b.parquet", numbers, SCHEMA.set(SCHEMA.get_field_index("request"), pa.field("request", pa.int64()))
    )
    assert refused(capsys, flags).split("\n  ")[1:] == [
        f"{tmp_path}/b.parquet: column 'request' holds int64, and string in {tmp_path}/a.parquet"
    ]
    write(tmp_path / "b.parquet", requests, SCHEMA.append(pa.field("probability", pa.float32())))
    assert refused(capsys, [*flags, "--input", str(tmp_path / "b.parquet")]) == (
        f"{tmp_path}/b.parquet: column 'probability' has the name of the scores. Rename it."
    )
    assert sorted(os.listdir(tmp_path)) == ["a.parquet", "b.parquet"]
