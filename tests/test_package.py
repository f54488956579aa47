"""What `import keras_eta` does to a process. Every test imports it in a fresh one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fresh_process import run_python

_ROOT = Path(__file__).parents[1]


def _run(code: str, legacy_keras: str | None = None) -> subprocess.CompletedProcess[str]:
    return run_python("-c", code, TF_USE_LEGACY_KERAS=legacy_keras, TF_CPP_MIN_LOG_LEVEL="3")


def _run_json(code: str, legacy_keras: str | None = None) -> Any:
    process = _run(code, legacy_keras)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_import_loads_no_tensorflow_before_a_name_needs_it() -> None:
    code = (
        "import json, sys, keras_eta, keras_eta.columns; before = sorted(sys.modules); keras_eta.Feature('x'); "
        "same = 'tensorflow' in sys.modules; keras_eta.ops.simhash; "
        "print(json.dumps([before, same, 'tensorflow' in sys.modules]))"
    )
    before, with_feature, with_ops = _run_json(code)
    assert "keras_eta.columns" in before
    assert {"tensorflow", "tf_keras", "pandas"} & set(before) == set()
    assert (with_feature, with_ops) == (False, True)


def test_logs_are_read_without_tensorflow() -> None:
    code = (
        "import json, sys; from keras_eta.datasets import Impressions, cluster_log, movielens; "
        "print(json.dumps(sorted(sys.modules)))"
    )
    roots = {name.partition(".")[0] for name in _run_json(code)}
    assert "pandas" in roots
    assert {"tensorflow", "sklearn"} & roots == set()


def test_every_public_name_is_there_and_no_other() -> None:
    code = (
        "import json, keras_eta; "
        "print(json.dumps([[getattr(keras_eta, name).__name__ for name in keras_eta.__all__], "
        "sorted(set(keras_eta.__all__) - set(dir(keras_eta))), hasattr(keras_eta, 'datasets_'), keras_eta.__all__]))"
    )
    names, hidden, other, public = _run_json(code)
    assert [name.removeprefix("keras_eta.") for name in names] == public
    assert (hidden, other) == ([], False)


@pytest.fixture(scope="module")
def imported() -> Any:
    """After the package and TensorFlow: which Keras is asked for, and which tf.keras is; then what a model loads."""
    code = (
        "import json, os, sys, keras_eta, tensorflow as tf; "
        "keras = [os.environ['TF_USE_LEGACY_KERAS'], tf.keras.Model.__module__.partition('.')[0]]; "
        "from keras_eta import ETA; print(json.dumps([keras, sorted(sys.modules)]))"
    )
    return _run_json(code)


def test_import_loads_neither_tfx_nor_serving_nor_plotting(imported: Any) -> None:
    roots = {name.partition(".")[0] for name in imported[1]}
    assert {"keras_eta", "tensorflow", "tf_keras"} <= roots
    assert {"apache_beam", "grpc", "matplotlib", "serving", "tensorflow_serving", "tfx", "tfx_bsl"} & roots == set()


def test_import_works_without_pandas() -> None:
    # tf_keras loads pandas where it can, so whether keras_eta asks for it shows only where it is missing.
    code = "import sys; sys.modules['pandas'] = None; from keras_eta import ETA; print('\"imported\"')"
    assert _run_json(code) == "imported"


def test_import_takes_under_a_second_beyond_tensorflow() -> None:
    code = (
        "import time, tensorflow; start = time.process_time(); from keras_eta import ETA; "
        "print(time.process_time() - start)"
    )
    seconds: list[float] = []
    # Again, as a busy machine takes more of its processors' time too.
    while len(seconds) < 3 and min(seconds, default=1.0) >= 1.0:
        seconds.append(_run_json(code, legacy_keras="1"))
    assert min(seconds) < 1.0, f"Seconds of {len(seconds)} imports: {seconds}"


def test_import_makes_tf_keras_legacy_keras(imported: Any) -> None:
    assert imported[0] == ["1", "tf_keras"]


def test_import_after_tensorflow_whose_keras_is_untouched_works() -> None:
    code = (
        "import json, tensorflow as tf, keras_eta; "
        "print(json.dumps([tf.keras.Model.__module__.partition('.')[0], issubclass(keras_eta.ETA, tf.keras.Model)]))"
    )
    assert _run_json(code) == ["tf_keras", True]


@pytest.mark.parametrize(
    ("code", "legacy_keras", "reason"),
    [
        ("import tensorflow as tf; tf.keras.Model; from keras_eta import ETA", None, "is already loaded as tf.keras"),
        ("from keras_eta import ETA", "0", "TF_USE_LEGACY_KERAS=0 asks for Keras 3"),
        ("import keras_eta.metrics", "0", "TF_USE_LEGACY_KERAS=0 asks for Keras 3"),
    ],
    ids=["keras_3_loaded", "keras_3_requested", "keras_3_requested_for_metrics"],
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
