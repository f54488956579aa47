"""What commands hear of TensorFlow while it is imported. A package of its name stands for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fresh_process import run_python

_ROOT = Path(__file__).parents[1]
_SCRIPT = """
import os, sys
from keras_eta.quiet import quiet_imports
quiet_imports()
import json
import tensorflow
import tensorflow.part
assert tensorflow.level == os.environ["TF_CPP_MIN_LOG_LEVEL"]
os.write(2, b"after\\n")
print("error of mine", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("level", "end", "heard"),
    [
        (None, "", "part\nafter\nerror of mine\n"),
        ("0", "", "native\npython\npart\nafter\nerror of mine\n"),
        (None, "raise ImportError('no such library')", "native\npython\n"),
    ],
    ids=["silent", "asked for", "broken"],
)
def test_stderr_is_aside_while_tensorflow_is_imported(tmp_path: Path, level: str | None, end: str, heard: str) -> None:
    package = tmp_path / "tensorflow"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import os, sys\nlevel = os.environ['TF_CPP_MIN_LOG_LEVEL']\nos.write(2, b'native\\n')\n"
        f"print('python', file=sys.stderr, flush=True)\n{end}\n"
    )
    (package / "part.py").write_text("import os\nos.write(2, b'part\\n')\n")
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path, _ROOT)))}
    environment |= {} if level is None else {"TF_CPP_MIN_LOG_LEVEL": level}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr.startswith(heard)
    assert (done.stderr == heard, done.returncode) == ((True, 0) if not end else (False, 1))
    assert ("ImportError: no such library" in done.stderr) == bool(end)


_SOFTMAX = """
from keras_eta.quiet import QUIET_GRAPHS, quiet_imports
quiet_imports()
import tensorflow as tf
v1 = tf.compat.v1
with tf.Graph().as_default():
    session = v1.Session(config=v1.ConfigProto(graph_options=QUIET_GRAPHS))
    x = v1.placeholder(tf.float32, None)
    y = tf.reduce_sum(tf.nn.softmax(tf.nn.relu(x) * 2.0) + 1.0, axis=-1)
    print(session.run(y, {x: [1.0, 2.0]}))
"""


@pytest.mark.slow
def test_session_does_not_warn_of_a_softmax_of_unknown_shape() -> None:
    done = run_python("-c", _SOFTMAX, TF_CPP_MIN_LOG_LEVEL=None)
    assert (done.stdout, done.stderr) == ("3.0\n", "")


_CHILD = "import google.api_core; print('no warning')"


@pytest.mark.parametrize("given", [None, "ignore::UserWarning"])
def test_processes_that_a_command_starts_are_silent_too(given: str | None) -> None:
    code = "import subprocess, sys, keras_eta.quiet; keras_eta.quiet.quiet_imports(); "
    code += f"subprocess.run([sys.executable, '-c', {_CHILD!r}], check=True)"
    done = run_python("-c", code, PYTHONWARNINGS=given)
    assert (done.stdout, done.stderr) == ("no warning\n", "")
