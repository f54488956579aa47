"""What `import keras_eta` does to a process. Every test imports it in a fresh one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).parents[1]


def _run(code: str, legacy_keras: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if legacy_keras is not None:
        environment["TF_USE_LEGACY_KERAS"] = legacy_keras
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=_ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _run_json(code: str, legacy_keras: str | None = None) -> Any:
    process = _run(code, legacy_keras)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_import_loads_neither_tfx_nor_serving_nor_plotting() -> None:
    loaded = _run_json("import json, sys, keras_eta; print(json.dumps(sorted(sys.modules)))")
    roots = {name.partition(".")[0] for name in loaded}
    assert {"keras_eta", "tensorflow", "tf_keras"} <= roots
    assert {"apache_beam", "grpc", "matplotlib", "serving", "tensorflow_serving", "tfx", "tfx_bsl"} & roots == set()


def test_import_works_without_pandas() -> None:
    # tf_keras loads pandas where it can, so whether keras_eta asks for it shows only where it is missing.
    code = "import sys; sys.modules['pandas'] = None; import keras_eta; print('\"imported\"')"
    assert _run_json(code) == "imported"


def test_import_takes_under_a_second_beyond_tensorflow() -> None:
    code = "import time, tensorflow; start = time.perf_counter(); import keras_eta; print(time.perf_counter() - start)"
    seconds = [_run_json(code, legacy_keras="1") for _ in range(3)]
    assert min(seconds) < 1.0, f"Seconds of three imports: {seconds}"


def test_import_makes_tf_keras_legacy_keras() -> None:
    code = (
        "import json, os, keras_eta, tensorflow as tf; "
        "print(json.dumps([os.environ['TF_USE_LEGACY_KERAS'], tf.keras.Model.__module__.partition('.')[0]]))"
    )
    assert _run_json(code) == ["1", "tf_keras"]


def test_import_after_tensorflow_whose_keras_is_untouched_works() -> None:
    code = (
        "import json, tensorflow as tf, keras_eta; "
        "print(json.dumps([tf.keras.Model.__module__.partition('.')[0], issubclass(keras_eta.ETA, tf.keras.Model)]))"
    )
    assert _run_json(code) == ["tf_keras", True]


@pytest.mark.parametrize(
    ("code", "legacy_keras", "reason"),
    [
        ("import tensorflow as tf; tf.keras.Model; import keras_eta", None, "is already loaded as tf.keras"),
        ("import keras_eta", "0", "TF_USE_LEGACY_KERAS=0 asks for Keras 3"),
    ],
    ids=["keras_3_loaded", "keras_3_requested"],
)
def test_import_with_keras_3_says_what_to_do(code: str, legacy_keras: str | None, reason: str) -> None:
    process = _run(code, legacy_keras)
    assert process.returncode == 1
    error = process.stderr.splitlines()[-1]
    assert error.startswith("ImportError: ")
    assert reason in error
    assert "TF_USE_LEGACY_KERAS=1 before TensorFlow is imported" in error


def test_installed_packages_agree_with_each_other() -> None:
    # requirements.txt is installed without resolving, so only this tells when a package is missing from it.
    process = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert process.stdout == "No broken requirements found.\n"
