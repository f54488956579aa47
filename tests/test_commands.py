"""The help of every command: it comes at once, without TensorFlow, and nothing else is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fresh_process import run_python

_ROOT = Path(__file__).parents[1]
_MODULES = [
    "serving.client",
    "serving.client rank",
    "serving.client explain",
    "serving.client recommend",
    "serving.client user-state",
    "serving.server",
    "serving.promote",
    "serving.tools.conformance",
    "serving.tools.fuzz",
    "serving.tools.soak",
    "tfx_pipeline.run",
    "tfx_pipeline.compile",
    "tfx_pipeline.continuous",
    "tfx_pipeline.propose_schema",
    "tfx_pipeline.item_vectors",
    "tfx_pipeline.tune",
    "tfx_pipeline.score",
    "benchmarks.freshness",
    "benchmarks.freshness replay",
    "benchmarks.freshness cost",
    "benchmarks.freshness worth",
    "benchmarks.memory",
    "benchmarks.next_item",
    "benchmarks.two_stages",
    "benchmarks.peers",
    "benchmarks.pipeline",
    "benchmarks.quality",
    "benchmarks.quality.own_logs",
    "benchmarks.retrieval",
    "benchmarks.scale",
    "benchmarks.serving",
    "benchmarks.serving load",
    "benchmarks.training",
]
_SLOW = {"tensorflow", "tf_keras", "apache_beam", "tfx", "sklearn", "keras_tuner", "tensorflow_data_validation"}


@pytest.mark.parametrize("command", [*(f"-m {module}" for module in _MODULES), "demo.py"])
def test_help_needs_no_tensorflow_and_warns_of_nothing(command: str) -> None:
    done = run_python("-X", "importtime", *command.split(), "--help", TF_CPP_MIN_LOG_LEVEL=None)
    lines = done.stderr.splitlines()
    written = [line for line in lines if not line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert (done.returncode, written) == (0, [])
    assert done.stdout.startswith(f"usage: python {command}")
    assert "argparse" in imported
    assert imported & _SLOW == set()


def test_every_command_is_among_them() -> None:
    """`peers_worker` has no flags: it is started by `peers`, in another environment."""
    files = [
        path
        for folder in ("benchmarks", "serving", "tfx_pipeline", "keras_eta")
        for path in (_ROOT / folder).rglob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    ]
    modules = {".".join(path.relative_to(_ROOT).with_suffix("").parts).removesuffix(".__main__") for path in files}
    assert modules - {"benchmarks.peers_worker"} == {module.partition(" ")[0] for module in _MODULES}
