"""Fuzzes a server.

    python -m serving.tools.fuzz --requests 20000 --seed 1         # the embedded server, in a process of its own
    python -m serving.tools.fuzz --seed 1 --only 4711              # one request of that run again, shown

The models are the reference model of the tools and a small ETA with all its signatures. Each request is a function of
the seed and its index alone. For another server:

    python -m serving.tools.fuzz --make_models DIR                 # and the command that starts a server of them
    python -m serving.tools.fuzz --models DIR --target 127.0.0.1:8500
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import grpc

from keras_eta.quiet import quiet_imports
from serving.process import ServerProcess
from serving.targets import proxy_option

_CONNECT_SECONDS = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzzes a server and prints what came back.

    Returns:
        The exit code: 1 if anything is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m serving.tools.fuzz",
        description="Send a server thousands of broken requests, and good ones between.",
    )
    parser.add_argument("--requests", type=int, default=20_000, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the run (default: %(default)s)")
    parser.add_argument("--only", type=int, metavar="INDEX", help="send this request of the run alone, and show it")
    parser.add_argument(
        "--target", metavar="HOST:PORT", help="a server of --models (default: the embedded server, started for it)"
    )
    parser.add_argument("--models", type=Path, metavar="DIR", help="what --make_models wrote")
    parser.add_argument("--make_models", type=Path, metavar="DIR", help="write models and a models.config, no more")
    flags = parser.parse_args(argv)
    if flags.requests < 1 or flags.seed < 0:
        parser.error("--requests must be positive and --seed not negative")
    if flags.target and not flags.models:
        parser.error("--target needs --models: answers are checked against them")
    # TensorFlow, which takes seconds: not before the flags are known to be good.
    from serving.tools.fuzz.mutations import Requests
    from serving.tools.fuzz.requests import make_models
    from serving.tools.fuzz.run import ask, run
    from serving.tools.reference_model import server_command

    if flags.make_models:
        make_models(flags.make_models)
        print(f"Serve them with: {server_command(flags.make_models / 'models.config')}")
        return 0
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models = flags.models or folder
        if not flags.models:
            make_models(models)
        server = None
        if not flags.target:
            server = ServerProcess(
                f"--model_config_file={models}/models.config",
                "--file_system_poll_wait_seconds=0",
                "--allow_version_labels_for_unavailable_models",
                log=folder / "server.log",
            )
            stack.enter_context(server)
        target = server.address if server else flags.target
        channel = stack.enter_context(grpc.insecure_channel(target, [*options, proxy_option(target)]))
        try:
            grpc.channel_ready_future(channel).result(timeout=_CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            print(f"error: nothing answers at {flags.target}", file=sys.stderr)
            return 1
        requests = Requests(models, flags.seed)
        if flags.only is not None:
            print(requests[flags.only])
            code, answer = ask(channel, requests[flags.only])
            print(
                f"{code.name if code else 'no answer'}: {len(answer)} bytes"
                if code is grpc.StatusCode.OK
                else f"{code}: {answer}"
            )
        report = run(channel, requests, range(flags.requests) if flags.only is None else [flags.only], server)
    print(report.table())
    if server:
        before, after = report.memory
        print(f"Resident memory of the server: {before >> 20} MiB after the warm-up, {after >> 20} MiB at the end")
    for index, fault in report.faults:
        again = f"--seed {flags.seed} --only {index}" if index >= 0 else "run"
        print(f"FAULT ({again}): {fault}")
    print(f"{sum(report.counts.values())} requests, {len(report.faults)} faults")
    return 1 if report.faults else 0


if __name__ == "__main__":
    quiet_imports()
    sys.exit(main())
