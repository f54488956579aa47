"""Compares a server's answers with those of TensorFlow Serving 2.16.1, case by case.

    python -m serving.tools.conformance                    # the embedded server, without and with batching
    python -m serving.tools.conformance --make_model DIR   # models for another server, and the command to start it
    python -m serving.tools.conformance --target 127.0.0.1:8500

The expected status codes, texts and values were read off a real tensorflow_model_server, those of the retriever derived
from them: it has not been asked for one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from keras_eta.quiet import quiet_imports


def main(argv: Sequence[str] | None = None) -> int:
    """Puts every case to a server and prints what came back.

    Returns:
        The exit code: 1 if anything is not as expected.
    """
    parser = argparse.ArgumentParser(
        prog="python -m serving.tools.conformance",
        description="Compare a server's answers with those of TensorFlow Serving 2.16.1, case by case.",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--target",
        metavar="HOST:PORT",
        help="a server of the models that --make_model writes (default: embedded servers, started for it)",
    )
    where.add_argument(
        "--make_model", type=Path, metavar="DIR", help="write the models and their models.config, and do nothing else"
    )
    parser.add_argument("--batching", action="store_true", help="the server of --target runs with --enable_batching")
    flags = parser.parse_args(argv)
    if flags.batching and not flags.target:
        parser.error("--batching is about the server of --target")
    # TensorFlow, which takes seconds: not before the flags are known to be good.
    from serving.tools.conformance import check
    from serving.tools.reference_model import server_command
    from serving.tools.reference_retriever import make_models

    if flags.make_model:
        make_models(flags.make_model)
        print(f"Serve it with: {server_command(flags.make_model / 'models.config')}")
        more = f"--enable_batching --batching_parameters_file={check.BATCHING}"
        print(f"or, to check it with --batching, the same and: {more}")
        return 0
    if flags.target:
        try:
            return min(1, check.run_all(flags.target, batching=flags.batching))
        except ConnectionError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    failed = 0
    for batching in (False, True):
        with check.embedded_server(batching=batching) as target:
            failed += check.run_all(target, batching=batching)
    return min(1, failed)


if __name__ == "__main__":
    quiet_imports()
    sys.exit(main())
