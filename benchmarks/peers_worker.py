"""What `benchmarks.peers` runs in the peers' environment: a model of FuxiCTR or DeepCTR, by its own code.

    peers_worker.py train CONTESTANT SIZES          trains one step for each line `step` on stdin, until `quit`
    peers_worker.py retrieve IN.npz OUT.npz SIZES   retrieves by the methods of FuxiCTR's ETA

SIZES is JSON. `train` answers in lines of JSON on stdout: `ready`, with versions, once the model is built, then `done`
after each step. Nothing of keras_eta is imported here.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import numpy as np


class Batches:
    """Batches in memory, over and over: the next for each line `step`, done when the trainer asks for another.

    The length is what FuxiCTR takes for steps to the next evaluation, which never comes.
    """

    def __init__(self, batches: Sequence[Any], answers: TextIO, versions: dict[str, str]) -> None:
        self._batches = batches
        self._answers = answers
        self._versions = versions

    def __len__(self) -> int:
        return sys.maxsize

    def __iter__(self) -> Iterator[Any]:
        self._answer({"ready": self._versions})
        for number, batch in enumerate(itertools.cycle(self._batches), start=1):
            if sys.stdin.readline() != "step\n":
                sys.exit()
            yield batch
            self._answer({"done": number})

    def _answer(self, message: dict[str, object]) -> None:
        print(json.dumps(message), file=self._answers, flush=True)


def fuxictr_model(kind: str, sizes: dict[str, Any]) -> Any:
    """A model of FuxiCTR's LongCTR zoo. What is no size has its default: ETA's planes are drawn once, for instance."""
    from fuxictr.features import FeatureMap
    from model_zoo import LongCTR

    features = FeatureMap("benchmark", data_dir=".")
    features.default_emb_dim = sizes["dim"]
    features.labels = ["label"]
    features.features["user_id"] = {"source": "user", "type": "categorical", "vocab_size": sizes["users"]}
    features.features["item_id"] = {"source": "item", "type": "categorical", "vocab_size": sizes["items"]}
    attention = {
        "attention_dim": sizes["dim"],
        "num_heads": sizes["heads"],
        "short_seq_len": sizes["short_history"] + 1,  # the candidate, last in the sequence, is one of them
    }
    search = {**attention, "topk": sizes["top_k"]}
    own = {"ETA": {**search, "hash_bits": sizes["bits"]}, "SIM": search, "DIN": {}, "SDIM": attention, "TWIN": search}
    return getattr(LongCTR, kind)(
        features,
        embedding_dim=sizes["dim"],
        dnn_hidden_units=sizes["hidden_units"],
        optimizer="adam",
        loss="binary_cross_entropy",
        metrics=["AUC"],
        verbose=0,
        model_root=".",
        **own[kind],
    )


def train_fuxictr(kind: str, sizes: dict[str, Any], answers: TextIO) -> None:
    """Trains by `fit`, FuxiCTR's trainer, for which the batches are the data loader."""
    import torch

    generator = np.random.default_rng(0)
    rows, length = sizes["rows"], sizes["length"]

    def batch() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
        row = {
            "user_id": torch.from_numpy(generator.integers(1, sizes["users"], rows)),
            "label": torch.from_numpy(generator.integers(0, 2, rows)),
        }
        # The history and, last, the candidate.
        items = torch.from_numpy(generator.integers(1, sizes["items"], rows * (length + 1)))
        return row, {"item_id": items}, torch.ones(rows, length)

    versions = {name: importlib.metadata.version(name) for name in ("fuxictr", "torch")}
    model = fuxictr_model(kind, sizes)
    model.fit(Batches([batch() for _ in range(sizes["batches"])], answers, versions))


def train_deepctr(sizes: dict[str, Any], answers: TextIO) -> None:
    """Trains DeepCTR's DIN by Keras's `train_on_batch`."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # DeepCTR is written for Keras 2
    import tensorflow as tf
    from deepctr.feature_column import SparseFeat, VarLenSparseFeat
    from deepctr.models import DIN

    rows, length, dim = sizes["rows"], sizes["length"], sizes["dim"]
    item = SparseFeat("hist_item_id", sizes["items"], dim, embedding_name="item_id")
    columns = [
        SparseFeat("user_id", sizes["users"], dim),
        SparseFeat("item_id", sizes["items"], dim),
        VarLenSparseFeat(item, maxlen=length),
    ]
    model = DIN(columns, ["item_id"], dnn_hidden_units=sizes["hidden_units"])
    model.compile("adam", "binary_crossentropy")
    generator = np.random.default_rng(0)

    def batch() -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        inputs = {
            "user_id": generator.integers(1, sizes["users"], rows),
            "item_id": generator.integers(1, sizes["items"], rows),
            "hist_item_id": generator.integers(1, sizes["items"], (rows, length)),
        }
        return {k: tf.constant(v, tf.int32) for k, v in inputs.items()}, tf.constant(generator.integers(0, 2, rows))

    versions = {name: importlib.metadata.version(name) for name in ("deepctr", "tensorflow", "tf-keras")}
    for inputs, labels in Batches([batch() for _ in range(sizes["batches"])], answers, versions):
        model.train_on_batch(inputs, labels)


def retrieve(inputs: str, outputs: str, sizes: dict[str, Any]) -> None:
    """Writes `positions` and `mask` [N, K] of what FuxiCTR's ETA retrieves for given embeddings and planes.

    Args:
        inputs: file with `embeddings` [V, D], `planes` [D, M], `candidate` [N], `history` [N, L] and `mask` [N, L].
        outputs: file to write.
        sizes: of the model.
    """
    import torch

    given = np.load(inputs)
    embeddings, planes, candidate, history = (given[x] for x in ("embeddings", "planes", "candidate", "history"))
    # The method returns the embeddings it retrieved. One more dimension, which the planes ignore, says where each was.
    rows, length = history.shape
    positions = np.broadcast_to(np.arange(length, dtype=np.float32)[:, np.newaxis], (rows, length, 1))
    behaviours = torch.from_numpy(np.concatenate([embeddings[history], positions], axis=-1))
    target = torch.from_numpy(np.pad(embeddings[candidate], [(0, 0), (0, 1)]))
    rotations = torch.from_numpy(np.pad(planes, [(0, 1), (0, 0)])[np.newaxis])
    mask = torch.from_numpy(given["mask"].astype(np.float32))
    model = fuxictr_model("ETA", sizes)
    with torch.no_grad():
        found, found_mask = model.topk_retrieval(rotations, target, behaviours, mask, sizes["top_k"])
    np.savez(outputs, positions=found[..., -1].numpy().astype(np.int64), mask=found_mask.numpy() > 0)


def main() -> None:
    """Runs a command."""
    command, *arguments, sizes_json = sys.argv[1:]
    sizes = json.loads(sizes_json)
    # Whatever libraries print goes to stderr: stdout is for answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if command == "retrieve":
        given, found = arguments
        retrieve(given, found, sizes)
    elif arguments == ["DeepCTR DIN"]:
        train_deepctr(sizes, answers)
    else:
        train_fuxictr(arguments[0].removeprefix("FuxiCTR "), sizes, answers)


if __name__ == "__main__":
    main()
