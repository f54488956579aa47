"""Kills rounds at ten seeded moments, each in a process of its own that is forked from this one; prints what is left.

python tests/tfx_pipeline/continuous/kill_rounds.py FOLDER
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from tests.tfx_pipeline.continuous.events import make_loop, rows_of, run, write_span
from tests.tfx_pipeline.continuous.quick import make_rounds_quick, newest, trained_on
from tfx_pipeline.continuous.database import opened
from tfx_pipeline.continuous.settings import Loop

KILLS, ROWS = 10, 30


def started(loop: Loop) -> int:
    """The id of a process that runs rounds until there is nothing new."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        while run(loop) is not None:
            pass
        code = 0
    finally:
        os._exit(code)


def main(folder: Path) -> None:
    """Prints, as JSON, what was written, what the newest version was trained on, and what the ledger says."""
    make_rounds_quick(setattr)
    loop = make_loop(folder, keep=2)
    # Every event is an impression.
    loop = dataclasses.replace(loop, config=dataclasses.replace(loop.config, min_history=0))
    moments, killed, spans = random.Random(0), 0, list[int]()

    def write(span: int) -> None:
        write_span(loop, span, rows_of(span, ROWS, users=10))
        spans.append(span)

    write(1)
    start = time.monotonic()
    _, status = os.waitpid(started(loop), 0)
    round_seconds = time.monotonic() - start
    assert status == 0
    while killed < KILLS:
        # 3, 2, 5, 4, ...: every other one is late.
        count = len(spans)
        write(count + 2 if count % 2 else count)
        child = started(loop)
        time.sleep(moments.random() * round_seconds)
        os.kill(child, signal.SIGKILL)
        # One that was quicker than that is no kill.
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    write(len(spans) + 2)
    _, status = os.waitpid(started(loop), 0)
    rows = [row for span in set(spans) for row in rows_of(span, ROWS, users=10)]
    with opened(loop.database, loop.config.layout, 0) as connection:
        events = [row[0] for row in connection.execute("SELECT round FROM event")]
        rounds = connection.execute("SELECT number, status FROM round ORDER BY number").fetchall()
    found = {
        "status": status,
        "killed": killed,
        "written": sorted({tuple(map(int, row.split(",")[:3])) for row in rows}),
        "trained": trained_on(newest(loop.config.serving_dir)),
        "events": len(events),
        "rounds": rounds,
        "versions": len([path for path in Path(loop.config.serving_dir).iterdir() if path.name.isdecimal()]),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
