"""How much of what the exact scorer would attend to the first stage finds.

A ranker with full attention says which K of the L behaviours weigh most for a candidate. The recall of a first stage is
the share of these K that it retrieves (TWIN, arXiv 2302.02352, Figure 2). Every stage searches by the embeddings of the
same trained ranker, so they differ in the search alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.quality.protocols import Protocol
from benchmarks.quality.training import train
from benchmarks.quality.units import LEARNED, TOP_K, ranker_of
from keras_eta import Ranker, ops
from keras_eta.interest import ETAInterest, default_distance_edges
from keras_eta.interest.top_k import largest_k
from keras_eta.layers import SimHash

BITS = (8, 16, 32, 64, 128, 256)
_BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class Recall:
    """A first stage's recall.

    Args:
        stage: what searches: `"learned planes"`, `"fixed planes"`, `"inner product"`, `"cosine"`, `"category"`,
            `"most recent"`.
        bits: M; 0 for a stage that does not hash.
        seed: of the ranker.
        recall: mean share of the exact scorer's own K that it finds.
    """

    stage: str
    bits: int
    seed: int
    recall: float


def measure(data: Protocol, bits: Sequence[int], seed: int, max_epochs: int, max_rows: int = 4_096) -> list[Recall]:
    """Trains ETA once for each number of bits, and looks at what its attention would choose of the whole history.

    Args:
        data: the data set.
        bits: numbers of bits.
        seed: of initial weights, of planes and of the order of batches.
        max_epochs: passes over the training part at most.
        max_rows: test impressions with more than K behaviours that are looked at.
    """
    found = []
    for number in bits:
        tf.keras.utils.set_random_seed(seed)
        unit = ETAInterest(TOP_K, number, distance_edges=default_distance_edges(number), cosine=True, **LEARNED)
        model = ranker_of([unit], f"eta_{number}", data, task=True, cosine=True)
        train(model, data, seed, max_epochs)
        of_model = _recalls(model, unit, data, seed, max_rows)
        found += [Recall("learned planes", number, seed, of_model.pop("learned planes"))]
        found += [Recall("fixed planes", number, seed, of_model.pop("fixed planes"))]
        if number == max(bits):
            found += [Recall(stage, 0, seed, recall) for stage, recall in of_model.items()]
    return found


def _recalls(model: Ranker, unit: ETAInterest, data: Protocol, seed: int, max_rows: int) -> dict[str, float]:
    """Stage -> recall, by the embeddings of one trained ranker."""
    rows = np.flatnonzero(data.test.history_counts > 2 * TOP_K)
    if not len(rows):
        raise ValueError(f"No test impression has more than {2 * TOP_K} earlier behaviours: recall means nothing.")
    looked_at = data.test[rows].sample(min(max_rows, len(rows)), seed)
    fixed = SimHash(unit.num_bits, seed)

    def stages(candidate: Any, history: Any) -> dict[str, tf.Tensor]:
        """Scores [R, 1, L] by which each stage would retrieve, larger first."""
        pair = [tf.concat([x.by_name[name] for name in data.features.hashed], -1) for x in (candidate, history)]
        product, hashed = _products(pair), [fixed(vectors) for vectors in pair]
        same = candidate.ids[data.category][:, :, tf.newaxis] == history.ids[data.category][:, tf.newaxis, :]
        length = tf.shape(product)[-1]
        recent = tf.cast(-tf.range(length), tf.float32)[tf.newaxis, tf.newaxis]
        return {
            "fixed planes": -tf.cast(
                ops.hamming_distance(hashed[0][:, :, tf.newaxis], hashed[1][:, tf.newaxis]), tf.float32
            ),
            "inner product": product,
            "cosine": _products([tf.nn.l2_normalize(vectors, -1) for vectors in pair]),
            "category": tf.cast(same, tf.float32) * tf.cast(length, tf.float32) + recent,
            "most recent": recent + tf.zeros_like(product),
        }

    totals: dict[str, list[np.ndarray]] = {}
    for columns, _ in looked_at.to_dataset(data.features, _BATCH_SIZE, lookup=data.lookup):
        inputs = model.batch_columns(columns)
        embedding = model.embedding_of(unit)
        candidate, history = embedding.candidates(inputs), embedding.sequence(inputs, unit.sequence)
        mask = history.mask[:, tf.newaxis, :]
        # Without the hash's own term in the logits, which would speak for its choice.
        _, weights = unit.attend(candidate, history, tf.zeros(tf.shape(mask)))
        exact = chosen(largest_k(tf.reduce_mean(weights, axis=2), mask, TOP_K), mask)
        retrieved = {"learned planes": unit.search(candidate, history, jit_compile=False)}
        retrieved |= {name: largest_k(scores, mask, TOP_K) for name, scores in stages(candidate, history).items()}
        for name, stage in retrieved.items():
            totals.setdefault(name, []).append(share(exact, chosen(stage, mask)))
    return {name: float(np.concatenate(shares).mean()) for name, shares in totals.items()}


def _products(pair: Sequence[tf.Tensor]) -> tf.Tensor:
    """Inner products [R, 1, L] of candidates [R, 1, D] and behaviours [R, L, D]."""
    return tf.matmul(pair[0], pair[1], transpose_b=True)


def chosen(retrieved: Any, mask: tf.Tensor) -> tf.Tensor:
    """bool [R, 1, L], which behaviours were retrieved."""
    length = tf.shape(mask)[-1]
    hits = tf.one_hot(retrieved.positions, length) * tf.cast(retrieved.mask, tf.float32)[..., tf.newaxis]
    return tf.reduce_sum(hits, axis=-2) > 0


def share(exact: tf.Tensor, stage: tf.Tensor) -> np.ndarray:
    """How much of the exact choice a stage has: float64 [R] of bool [R, 1, L] each."""
    both = tf.math.count_nonzero(exact & stage, axis=-1)
    shares: np.ndarray = (both / tf.math.count_nonzero(exact, axis=-1)).numpy().ravel()
    return shares


def print_table(recalls: Sequence[Recall]) -> None:
    """A row per stage and number of bits: the mean over seeds and their spread."""
    table = Table(title=f"recall of the exact scorer's top {TOP_K}", caption="mean ± standard deviation over seeds")
    for name in ("first stage", "bits", "seeds", "recall"):
        table.add_column(name, justify="left" if name == "first stage" else "right")
    for stage, bits in dict.fromkeys((recall.stage, recall.bits) for recall in recalls):
        own = [recall.recall for recall in recalls if (recall.stage, recall.bits) == (stage, bits)]
        spread = f" ± {np.std(own, ddof=1):.3f}" if len(own) > 1 else ""
        table.add_row(stage, str(bits or ""), str(len(own)), f"{np.mean(own):.3f}{spread}")
    Console().print(table)


def draw(recalls: Sequence[Recall], path: Path) -> None:
    """Draws recall against bits; stages without bits are lines across."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    for number, stage in enumerate(dict.fromkeys(recall.stage for recall in recalls)):
        own = [recall for recall in recalls if recall.stage == stage]
        bits = sorted({recall.bits for recall in own})
        means = [float(np.mean([recall.recall for recall in own if recall.bits == of])) for of in bits]
        if bits == [0]:
            axes.axhline(means[0], color=f"C{number}", linestyle=":", label=stage)
        else:
            axes.plot(bits, means, "o-", color=f"C{number}", label=stage)
    axes.set(xscale="log", xlabel="M, bits of a fingerprint", ylabel=f"recall of the top {TOP_K}", ylim=(0, 1))
    axes.set_xticks(BITS, [str(bits) for bits in BITS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
