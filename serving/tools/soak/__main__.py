"""Keeps clients asking while versions are pushed, broken, rolled back and removed, and checks every answer.

    python -m serving.tools.soak --minutes 10 --clients 16

The embedded server runs in a process of its own. The reference model's scores tell the version that made them,
so every answer is checked against the version that it names.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from keras_eta.quiet import quiet_imports
from serving.process import ServerProcess


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the soak and prints what was seen.

    Returns:
        The exit code: 1 if anything is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m serving.tools.soak",
        description="Ask the embedded server without a pause while versions of its model come, break, go back and go.",
    )
    parser.add_argument("--minutes", type=float, default=10, help="how long, in whole rounds (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="threads that ask (default: %(default)s)")
    flags = parser.parse_args(argv)
    if flags.minutes <= 0 or flags.clients < 1:
        parser.error("--minutes and --clients must be positive")
    # TensorFlow, which takes seconds: not before the flags are known to be good.
    from serving.tools.reference_model import MODEL
    from serving.tools.soak import run

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pusher = run.Pusher(folder)
        for _ in range(2):
            pusher.place()
        poll = f"--file_system_poll_wait_seconds={run.POLL_SECONDS}"
        flags_of_server = (f"--model_name={MODEL}", f"--model_base_path={pusher.base_path}", poll)
        with ServerProcess(*flags_of_server, log=folder / "server.log") as server:
            tally = run.soak(server, pusher, 60 * flags.minutes, flags.clients)
    return 1 if run.report(tally) else 0


if __name__ == "__main__":
    quiet_imports()
    sys.exit(main())
