"""Time of one training step against other libraries: FuxiCTR's models of long histories and DeepCTR's DIN.

    make bench-peers
    .venv/bin/python -m benchmarks.peers --lengths 1024 4096 --json peers.json --plot peers.png

`make bench-peers` builds the environment that the peers need, .venv-peers. There each runs in a process of its own
(`peers_worker.py`) and trains a step when told to. All contestants of a length, ours among them, are measured in one
run, in turn, so only one of them works at a time; two steps come before each that is timed, as what a contestant uses
is cold after the turns of the others. All have the same sizes; what is no size is each library's default.

A step is what each library's own trainer does with a batch that is in memory already, up to the value of the loss:
ours `Ranker.train_step`; FuxiCTR's `fit` (forward, binary cross-entropy, backward, gradients clipped to a norm of 10,
Adam on all weights; no regulariser); DeepCTR's by Keras's `train_on_batch` (the same with L2 of 1e-6 on the embedding
tables and nothing clipped). Each uses as many threads as it takes by itself.

Before that, FuxiCTR's ETA and ours retrieve from the same random histories, given the same embeddings and planes. Both
define the same fingerprint and distance, so they must retrieve the same, but for ties at the K-th distance, which
`torch.topk` breaks as it likes. The exit code is 1 if they do not. Machines are noisy: quote ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from rich.table import Table

import keras_eta
from benchmarks.flags import make_parser, write_json
from benchmarks.timing import draw, measure, repeated, summary, table
from benchmarks.training import (
    BATCHES,
    HIDDEN_UNITS,
    NUM_HEADS,
    NUM_USERS,
    SHORT_HISTORY_LENGTH,
    make_model,
    make_step,
    random_batches,
)
from keras_eta.quiet import quiet_imports

ENVIRONMENT = Path(__file__).parents[1] / ".venv-peers"
WORKER = Path(__file__).with_name("peers_worker.py")
# The peers' steps take seconds, and only the first is slower than the others.
WARM_UP = 1
# Steps before each that is timed.
SETTLING_STEPS = 2
# Each contestant, and what it does.
CONTESTANTS = {
    "ETA": "attention over the short history and over the K nearest by Hamming distance; Adagrad on the rows of tables"
    " that a batch touches, Adam on the rest",
    "full attention": "ours, with attention over the whole history in place of the search",
    "FuxiCTR ETA": "the same two attentions; gathers and hashes all of the history; Adam on whole tables",
    "FuxiCTR SIM": "short history; searches by inner product, with a loss and an MLP of its own; Adam on whole tables",
    "FuxiCTR DIN": "weighs all of the history by an MLP of 64 units (Dice); no short history; Adam on whole tables",
    "FuxiCTR SDIM": "short history; sums what shares the candidate's bucket (one hash, 4 bits); Adam on whole tables",
    "FuxiCTR TWIN": "short history; projects all of it, attends to the top K of each head; Adam on whole tables",
    "DeepCTR DIN": "weighs all of the history by an MLP of 80 and 40 units (Dice); no short history; L2 and Adam on"
    " whole tables",
}
PEERS = tuple(CONTESTANTS)[2:]


class PeerError(RuntimeError):
    """A peer's process failed, or its environment is missing."""


class Peer:
    """A contestant in a process of its own.

    Args:
        name: of the contestant.
        command: the process. It writes the line `{"ready": {...}}`, with versions, and, after the step that it trains
            for each line `step`, the line `{"done": ...}`. It ends at a line `quit`.

    Raises:
        PeerError: if the process ends before it is ready, or later instead of training a step.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self._name = name
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self._requests, self._answers = (cast("IO[str]", end) for end in (self._process.stdin, self._process.stdout))

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._requests.write("quit\n")
            self._requests.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        self._errors.close()

    def versions(self) -> dict[str, str]:
        """Waits until the model is built, and tells the versions of its libraries."""
        versions: dict[str, str] = self._answer("ready")
        return versions

    def step(self) -> None:
        """Trains one step."""
        with contextlib.suppress(BrokenPipeError):  # a process that has ended has no answer either
            self._requests.write("step\n")
            self._requests.flush()
        self._answer("done")

    def _answer(self, kind: str) -> Any:
        line = self._answers.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            raise PeerError(
                f"{self._name} ended with exit code {code}. Its error output:\n{self._errors.read()[-4000:]}"
            )
        return json.loads(line)[kind]


def command(*arguments: str, sizes: dict[str, Any]) -> list[str]:
    """The command that runs `peers_worker.py` in the peers' environment.

    Raises:
        PeerError: if there is no such environment.
    """
    if not (ENVIRONMENT / ".installed").exists():
        raise PeerError(f"The peers' environment, {ENVIRONMENT}, is missing or half made: `make bench-peers` makes it.")
    # Isolated, so that no module of this folder hides one of the peers'.
    return [str(ENVIRONMENT / "bin" / "python"), "-I", str(WORKER), *arguments, json.dumps(sizes)]


def compare_retrieved(
    distances: npt.NDArray[np.integer],
    mask: npt.NDArray[np.bool_],
    top_k: int,
    a: Sequence[Sequence[int]],
    b: Sequence[Sequence[int]],
) -> dict[str, int]:
    """Compares what two searches retrieved, up to ties at the K-th distance.

    Args:
        distances: [N, L], from the candidate of each row to each behaviour.
        mask: [N, L], false at padding.
        top_k: K. Of a history shorter than that all is to be retrieved.
        a: positions that one search retrieved, for each row.
        b: positions that the other retrieved.

    Returns:
        `rows`; `different_rows`: those where the sorted distances of what was retrieved differ, a search lacks a
        behaviour nearer than the K-th distance, or it did not retrieve K behaviours; and `other_ties`: how many
        behaviours of the remaining rows only one of the searches retrieved.
    """
    different = other_ties = 0
    for row, real, first, second in zip(distances, mask, map(list, a), map(list, b), strict=True):
        behaviours = set(np.flatnonzero(real))
        count = min(top_k, len(behaviours))
        nearer = set(np.flatnonzero(real & (row < np.sort(row[real])[count - 1])))
        same = sorted(row[first]) == sorted(row[second]) and all(
            len(found) == len(set(found)) == count and nearer <= set(found) <= behaviours for found in (first, second)
        )
        different += not same
        other_ties += len(set(first) - set(second)) if same else 0
    return {"rows": len(distances), "different_rows": different, "other_ties": other_ties}


def check_retrieval(length: int, sizes: dict[str, Any]) -> dict[str, int]:
    """Whether FuxiCTR's ETA and ours retrieve the same from random histories, given the same embeddings and planes."""
    import tensorflow as tf

    generator = np.random.default_rng(0)
    rows, items, top_k = sizes["rows"], sizes["items"], sizes["top_k"]

    def normal(*shape: int) -> npt.NDArray[np.float32]:
        # In sixteenths, so that projections are exact in float32 whatever the order of the sum, and some are 0.
        return (np.round(16 * generator.normal(size=shape)) / 16).astype(np.float32)

    embeddings, planes = normal(items, sizes["dim"]), normal(sizes["dim"], sizes["bits"])
    candidate, history = generator.integers(1, items, rows), generator.integers(1, items, (rows, length))
    mask = np.arange(length) < generator.integers(1, length + 1, (rows, 1))
    mask[0] = True

    with tempfile.TemporaryDirectory() as folder:
        given, found = f"{folder}/given.npz", f"{folder}/found.npz"
        np.savez(given, embeddings=embeddings, planes=planes, candidate=candidate, history=history, mask=mask)
        run = subprocess.run(command("retrieve", given, found, sizes=sizes), stderr=subprocess.PIPE, text=True)
        if run.returncode:
            raise PeerError(f"The retrieval of FuxiCTR's ETA failed. Its error output:\n{run.stderr[-4000:]}")
        with np.load(found) as arrays:
            theirs = [positions[real] for positions, real in zip(arrays["positions"], arrays["mask"], strict=True)]

    fingerprints = keras_eta.ops.simhash(embeddings, planes)
    result = keras_eta.ops.hamming_top_k(
        tf.gather(fingerprints, candidate)[:, tf.newaxis], tf.gather(fingerprints, history), top_k, mask
    )
    ours = [
        positions[real]
        for positions, real in zip(result.positions[:, 0].numpy(), result.mask[:, 0].numpy(), strict=True)
    ]
    bits = embeddings @ planes > 0
    distances = np.stack(
        [(bits[item] != bits[behaviours]).sum(-1) for item, behaviours in zip(candidate, history, strict=True)]
    )
    return compare_retrieved(distances, mask, top_k, ours, theirs)


def measure_steps(
    length: int, flags: argparse.Namespace, sizes: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Times of a training step of all contestants, and the versions of the peers' libraries."""
    models = {"ETA": make_model("eta", length, flags), "full attention": make_model("full", length, flags)}
    with contextlib.ExitStack() as stack:
        contestants = {
            name: make_step(model, itertools.cycle(random_batches(model, flags.rows, length)))
            for name, model in models.items()
        }
        versions = {}
        for name in track(PEERS, description="starting the peers", transient=True):
            peer = stack.enter_context(Peer(name, command("train", name, sizes=sizes)))
            versions[name.split()[0]] = peer.versions()
            contestants[name] = peer.step

        def settle(name: str) -> None:
            # After seconds of the others, caches are cold and threads asleep, which is not what training is like.
            repeated(contestants[name], SETTLING_STEPS)()

        return summary(measure(contestants, flags.rounds, WARM_UP, before=settle), "ETA"), versions


def report(flags: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Checks and measures each length, and prints what was found."""
    import tensorflow as tf

    found: dict[str, Any] = {
        "versions": {"keras_eta": {"keras_eta": keras_eta.__version__, "tensorflow": tf.__version__}},
        "contestants": CONTESTANTS,
        "retrieval": {},
        "steps": {},
    }
    for length in flags.lengths:
        sizes = {
            "rows": flags.rows,
            "length": length,
            "dim": flags.dim,
            "bits": flags.bits,
            "top_k": flags.top_k,
            "items": flags.items,
            "users": NUM_USERS,
            "heads": NUM_HEADS,
            "hidden_units": HIDDEN_UNITS,
            "short_history": SHORT_HISTORY_LENGTH,
            "batches": BATCHES,
        }
        retrieval = check_retrieval(length, sizes)
        found["retrieval"][str(length)] = retrieval
        console.print(
            f"L={length:,}: FuxiCTR's ETA and ours retrieve differently in {retrieval['different_rows']} of"
            f" {retrieval['rows']} rows, but for {retrieval['other_ties']} ties at the K-th distance."
        )
        rows, versions = measure_steps(length, flags, sizes)
        found["steps"][str(length)] = rows
        found["versions"].update(versions)
        title = (
            f"training step, N={flags.rows} L={length:,} D={flags.dim} M={flags.bits} K={flags.top_k} V={flags.items:,}"
        )
        console.print(table(title, rows, "ETA"))
        tf.keras.backend.clear_session()
    legend = Table("contestant", "what it does", title="contestants")
    for contestant in CONTESTANTS.items():
        legend.add_row(*contestant)
    console.print(legend)
    return found


def main() -> None:
    """Measures, prints tables and JSON."""
    parser = make_parser("peers", __doc__)
    parser.add_argument("--rows", type=int, default=256, help="N, rows a batch (default: 256)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096], metavar="L", help="default: 1024 4096")
    parser.add_argument("--rounds", type=int, default=5, help="steps measured of each contestant (default: 5)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw times against L")
    flags = parser.parse_args()
    if min(flags.lengths) <= SHORT_HISTORY_LENGTH:
        # FuxiCTR's masks have wrong shapes there.
        parser.error(f"`--lengths` must be above {SHORT_HISTORY_LENGTH}, the short history. Received: {flags.lengths}")

    try:
        found = report(flags, Console())
    except PeerError as error:
        sys.exit(f"error: {error}")
    if flags.plot:
        draw({f"training step, N = {flags.rows}": found["steps"]}, flags.plot)
    write_json(found, flags)
    if any(retrieval["different_rows"] for retrieval in found["retrieval"].values()):
        sys.exit("error: FuxiCTR's ETA and ours do not retrieve the same.")


if __name__ == "__main__":
    quiet_imports()
    main()
