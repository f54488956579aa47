"""Every interest unit against its reference and everywhere that it runs. A new unit is one more row."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import Ranker
from keras_eta.interest import (
    MIMN,
    SDIM,
    TWIN,
    TWINV2,
    ETAInterest,
    FullInterest,
    InnerProductInterest,
    InterestUnit,
    MatchInterest,
    PoolingInterest,
    RecentInterest,
    SIMHard,
    SIMSoft,
)
from keras_eta.layers import ActivationUnit
from tests import reference
from tests.interest.unit_check import CLUSTERED, Expected, Reference, Row, check_unit, make_batch


def _attended(unit: Any, row: Row, positions: list[int], scores: Any = None, similarity: Any = None) -> Expected:
    behaviours = row.behaviour_vectors[positions]
    weights = reference.attention_weights(unit.attention)
    vector, attention = reference.target_attention(
        row.candidate_vector, behaviours, [True] * len(positions), weights, unit.attention.num_heads, similarity
    )
    return Expected(vector, positions, scores, attention)


def _recent(unit: Any, row: Row) -> Expected:
    return _attended(unit, row, list(range(min(len(row.behaviour_vectors), unit.length))))


def _din(unit: Any, row: Row) -> Expected:
    positions = list(range(min(len(row.behaviour_vectors), unit.length)))
    attention = unit.attention
    behaviours = row.behaviour_vectors[positions] @ attention.behaviour_projection.kernel.numpy()
    dense, dice = attention.hidden_layers
    layer = {
        "kernel": dense.kernel.numpy(),
        "bias": dense.bias.numpy(),
        "mean": dice.normalization.moving_mean.numpy(),
        "variance": dice.normalization.moving_variance.numpy(),
        "alpha": dice.alpha.numpy(),
        "epsilon": dice.normalization.epsilon,
    }
    vector, weights = reference.activation_unit(
        row.candidate_vector, behaviours, [True] * len(positions), [layer], *attention.weight.get_weights()
    )
    return Expected(vector, positions, None, weights[np.newaxis])


def _full(unit: Any, row: Row) -> Expected:
    return _attended(unit, row, list(range(len(row.behaviour_vectors))))


def _pooling(unit: Any, row: Row) -> Expected:
    vectors = row.behaviour_vectors
    return Expected(sum(vectors) / len(vectors) if len(vectors) else np.zeros(vectors.shape[1]))


def _eta(unit: Any, row: Row) -> Expected:
    if not len(row.behaviours["item_id"]):
        return _counted(unit, _attended(unit, row, [], []))
    planes = unit.tables["item_id"].hash.planes.numpy()
    candidate = reference.simhash(np.array([row.candidate["item_id"]]), planes)
    history = reference.simhash(row.behaviours["item_id"], planes)
    positions, distances, found = (x[0] for x in reference.hamming_top_k(candidate, history, unit.top_k))
    positions, distances = positions[found].tolist(), distances[found]
    similarity = 1.0 - 2.0 * distances / unit.num_bits if unit.similarity_bias else None
    return _counted(unit, _attended(unit, row, positions, distances.tolist(), similarity))


def _counted(unit: Any, expected: Expected) -> Expected:
    """The counts of distances behind the vector."""
    counts = reference.log_counts(expected.scores or [], unit.distance_edges)
    return expected._replace(vector=np.concatenate([expected.vector, counts]))


def _match(unit: Any, row: Row) -> Expected:
    vector: list[float] = []
    for name in ("item_id", "category_id"):
        behaviours = row.behaviour_ids[name]
        count, latest = reference.matches(row.candidate_ids[name], behaviours.tolist())
        vector += [math.log(1 + count), count / len(behaviours), 1 / (1 + latest)] if count else [0.0] * 3
        vector += row.behaviours["history_age"][latest].tolist() if count else [0.0] * 3
    return Expected(np.array(vector))


def _inner_product(unit: Any, row: Row) -> Expected:
    candidate, behaviours = row.candidate["item_id"], row.behaviours["item_id"]
    if unit.index_period is not None:
        # The snapshot was taken before the weights were set.
        table = unit.snapshot.copies["item_id"].numpy()
        candidate, behaviours = table[row.candidate_ids["item_id"]], table[row.behaviour_ids["item_id"]]
    if unit.normalize:
        candidate, behaviours = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (candidate, behaviours))
    positions, scores = reference.largest([float(candidate @ behaviour) for behaviour in behaviours], unit.top_k)
    return _attended(unit, row, positions, scores)


def _sim_hard(unit: Any, row: Row) -> Expected:
    wanted = row.candidate_ids["category_id"]
    # Row 1 is the out-of-vocabulary bucket.
    same = [i for i, category in enumerate(row.behaviour_ids["category_id"]) if category == wanted and wanted > 1]
    return _attended(unit, row, same[: unit.top_k])


def _sdim(unit: Any, row: Row) -> Expected:
    planes = unit.tables["item_id"].hash.planes.numpy()
    candidate = reference.projections(np.array([row.candidate["item_id"]]), planes)[0] > 0
    behaviours = [bits > 0 for bits in reference.projections(row.behaviours["item_id"], planes)]
    bits = [bit for bit in range(unit.num_hashes)]
    return Expected(
        reference.sdim(candidate[bits], [b[bits] for b in behaviours], row.behaviour_vectors, unit.group_size)
    )


def _random(unit: Any, row: Row) -> Expected:
    draws = [
        int((row.candidate_ids["item_id"] * 40503) ^ (i * 30011)) % 65_536 for i in range(len(row.behaviour_vectors))
    ]
    positions, scores = reference.largest(draws, unit.top_k)
    return _attended(unit, row, positions, scores)


def _unit_of_the_documentation(*arguments: Any) -> InterestUnit:
    text = (Path(__file__).parents[2] / "docs" / "interest_units.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[-1]
    assert len(code.splitlines()) < 30
    names: dict[str, Any] = {}
    exec(code, names)
    return names["RandomInterest"](*arguments)


def _sim_soft(unit: Any, row: Row) -> Expected:
    candidate, behaviours = row.candidate["item_id"], row.behaviours["item_id"]
    kernels = [unit.candidate_projection.kernel.numpy(), unit.behaviour_projection.kernel.numpy()]
    if unit.index_period is not None:
        # The snapshot was taken before the weights were set.
        table = unit.snapshot.copies["item_id"].numpy()
        candidate, behaviours = table[row.candidate_ids["item_id"]], table[row.behaviour_ids["item_id"]]
        kernels = [unit.snapshot.projections[name].numpy() for name in ("candidate", "behaviour")]
    scores, _ = reference.sim_soft(candidate, behaviours, *kernels)
    return _attended(unit, row, *reference.largest(scores, unit.top_k))


def twin_kernels(unit: Any, widths: list[int]) -> dict[str, Any]:
    """The weights of a TWIN whose cross features have these widths, as its reference reads them."""
    starts = np.cumsum([0, *widths[:-1]])
    return {
        **{name: getattr(unit, f"{name}_kernel").numpy() for name in ("query", "key", "value", "output")},
        "cross": [unit.cross_kernel.numpy()[i : i + width] for i, width in zip(starts, widths, strict=True)],
        "scale": unit.cross_scale.numpy(),
    }


def _twin(unit: Any, row: Row) -> Expected:
    cross = [row.behaviours[name] for name in ("action", "dwell", "history_age")]
    inherent = np.concatenate([row.behaviours[name] for name in row.candidate], axis=-1)
    kernels = twin_kernels(unit, [values.shape[1] for values in cross])
    sizes = row.behaviour_ids[unit.size].tolist() if isinstance(unit, TWINV2) else None
    return Expected(*reference.twin(row.candidate_vector, inherent, cross, kernels, unit.num_heads, unit.top_k, sizes))


def mimn_weights(unit: Any) -> dict[str, Any]:
    """The weights of a MIMN, as its reference reads them."""
    cell = unit.rnn.cell
    layers = {name: getattr(cell, name).get_weights() for name in ("controller", "heads", "induction")}
    return {"initial_memory": cell.initial_memory.numpy(), "rebalance": cell.rebalance.numpy(), **layers}


def _mimn(unit: Any, row: Row) -> Expected:
    vectors = np.concatenate([x for name, x in row.behaviours.items() if name != "history_age"], axis=-1)
    oldest_first = vectors[: unit.max_length][::-1]
    if not len(oldest_first):
        return Expected(np.zeros(2 * unit.num_slots * unit.memory_dim))
    state = reference.mimn(oldest_first, mimn_weights(unit), unit.induction_slots)
    return Expected(np.concatenate([state["memory"].ravel(), state["induction"].ravel()]))


UNITS: dict[str, tuple[Callable[[], InterestUnit], Reference]] = {
    "recent": (lambda: RecentInterest(3), _recent),
    "recent with DIN's attention": (lambda: RecentInterest(3, attention=ActivationUnit((5,))), _din),
    "full": (FullInterest, _full),
    "full with one head": (lambda: FullInterest(num_heads=1, key_dim=5), _full),
    "pooling": (PoolingInterest, _pooling),
    "eta": (lambda: ETAInterest(3, num_bits=16), _eta),
    "eta with bias and learned planes": (
        lambda: ETAInterest(3, num_bits=70, similarity_bias=True, trainable_planes=True),
        _eta,
    ),
    "eta with cosines and counts": (
        lambda: ETAInterest(5, num_bits=8, similarity_bias=True, cosine=True, distance_edges=(0, 1, 3, 4)),
        _eta,
    ),
    "eta with own embeddings": (lambda: ETAInterest(3, num_bits=16, own_embeddings=True), _eta),
    "match": (MatchInterest, _match),
    "inner product": (lambda: InnerProductInterest(3), _inner_product),
    "cosine": (lambda: InnerProductInterest(3, normalize=True), _inner_product),
    "inner product on a snapshot": (lambda: InnerProductInterest(3, index_period=2), _inner_product),
    "sim hard": (lambda: SIMHard(3), _sim_hard),
    "sim soft": (lambda: SIMSoft(3), _sim_soft),
    "sim soft on a snapshot": (
        lambda: SIMSoft(3, search_dim=5, auxiliary_units=(4, 3), alpha=0.5, index_period=2),
        _sim_soft,
    ),
    "twin": (lambda: TWIN(3), _twin),
    "twin with one head": (lambda: TWIN(3, num_heads=1, key_dim=6), _twin),
    "twin with projected tables": (lambda: TWIN(3, num_heads=2, projected_table=True), _twin),
    "twin v2": (lambda: TWINV2(3), _twin),
    "mimn": (lambda: MIMN(memory_dim=5, controller_units=6, max_length=4), _mimn),
    "mimn with two slots induced": (
        lambda: MIMN(3, memory_dim=4, controller_units=3, induction_slots=2, max_length=6),
        _mimn,
    ),
    "sdim": (SDIM, _sdim),
    "the unit of docs/interest_units.md": (lambda: _unit_of_the_documentation(3), _random),
    "sdim in groups of 5": (lambda: SDIM(10, group_size=5), _sdim),
}


@pytest.mark.parametrize("name", UNITS)
def test_unit(name: str, tmp_path: Path) -> None:
    make, expected = UNITS[name]
    check_unit(make, expected, tmp_path)


def test_units_in_half_precision() -> None:
    def interests() -> list[InterestUnit]:
        # All behaviours are retrieved, so that rounding moves no choice.
        return [
            SIMSoft(16),
            TWIN(16, projected_table=True),
            TWINV2(16),
            MIMN(memory_dim=4, controller_units=4),
            ETAInterest(16, cosine=True, distance_edges=(10, 64)),
        ]

    single = Ranker(CLUSTERED, interests=interests(), hidden_units=(4,))
    single.build()
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        half = Ranker(CLUSTERED, interests=interests(), hidden_units=(4,))
        half.build()
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    half.set_weights(single.get_weights())
    batch = make_batch(12, [12, 0, 5], features=CLUSTERED)
    expected, scores = single.score(batch, training=True), half.score(batch, training=True)
    assert scores.logits.dtype == tf.float32
    np.testing.assert_allclose(scores.logits, expected.logits, rtol=0.02, atol=2e-3)
    for name, interest in scores.interests.items():
        assert interest.vector.dtype == tf.float16, name
        np.testing.assert_allclose(interest.vector, expected.interests[name].vector, rtol=0.02, atol=2e-3, err_msg=name)
