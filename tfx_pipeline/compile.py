"""Compiles the pipeline for Kubeflow Pipelines or Vertex AI, by TFX's own runner.

    python -m tfx_pipeline.compile --layout movielens --data gs://bucket/ml-1m --output gs://bucket/eta \
        --serving_dir gs://bucket/serving/eta --image europe-docker.pkg.dev/project/eta:1 --file eta.json

The image holds this project and the packages of requirements.txt. Submit the file with the Vertex AI or KFP client.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from keras_eta.quiet import quiet_imports
from tfx_pipeline.flags import add_flags, config_from_flags


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tfx_pipeline.compile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--image", required=True, help="container image of the components")
    parser.add_argument(
        "--file", default="build/pipeline.json", help="the specification to write (default: build/pipeline.json)"
    )
    add_flags(parser)
    flags = parser.parse_args(argv)
    try:
        config = config_from_flags(flags)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    # TFX takes several seconds to import: not before the flags are known to be good.
    from tfx import v1 as tfx

    from tfx_pipeline.pipeline import make_pipeline

    file = Path(flags.file)
    file.parent.mkdir(parents=True, exist_ok=True)
    runner = tfx.orchestration.experimental.KubeflowV2DagRunner(
        tfx.orchestration.experimental.KubeflowV2DagRunnerConfig(default_image=flags.image),
        output_dir=str(file.parent),
        output_filename=file.name,
    )
    runner.run(make_pipeline(config), write_out=True)
    print(f"Wrote {file}.")
    return 0


if __name__ == "__main__":
    quiet_imports()
    sys.exit(main())
