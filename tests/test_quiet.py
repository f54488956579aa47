"""What commands hear of TensorFlow while it is imported. A package of its name stands for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
