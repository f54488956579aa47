"""What keras_eta computes on the way to semantic ids, in plain loops. Imports nothing of keras_eta."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

import numpy as np


def collision_tokens(codes: Sequence[Sequence[int]]) -> list[int]:
    """The number of each row among the rows equal to it."""
    seen: collections.Counter[tuple[int, ...]] = collections.Counter()
    tokens = []
    for row in codes:
        tokens.append(seen[tuple(row)])
        seen[tuple(row)] += 1
    return tokens


def usage_and_perplexity(codes: Sequence[int], size: int) -> tuple[float, float]:
    """Share of the codes that are there, and exp of their entropy."""
    counts = collections.Counter(codes)
    entropy = -sum(n / len(codes) * math.log(n / len(codes)) for n in counts.values())
    return len(counts) / size, math.exp(entropy)


def prefix_sharing(first: Sequence[int], vectors: np.ndarray, neighbours: int) -> tuple[float, float]:
    """Share of the nearest items by cosine with an item's first code, and of all others, means over items."""
    near, chance = [], []
    for i, vector in enumerate(vectors):
        others = [j for j in range(len(vectors)) if j != i]
        cosine = {j: vector @ vectors[j] / np.linalg.norm(vector) / np.linalg.norm(vectors[j]) for j in others}
        nearest = sorted(others, key=lambda j: -cosine[j])[:neighbours]
        near.append(np.mean([first[j] == first[i] for j in nearest]))
        chance.append(np.mean([first[j] == first[i] for j in others]))
    return float(np.mean(near)), float(np.mean(chance))


def residual_codes(vectors: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """The nearest code of each level to what the codes before leave, [n, levels], in float64."""
    codes = np.zeros([len(vectors), len(codebooks)], np.int32)
    for row, vector in enumerate(vectors):
        residual = vector.astype(np.float64)
        for level, codebook in enumerate(codebooks):
            distances = [np.sum((residual - code) ** 2) for code in codebook.astype(np.float64)]
            codes[row, level] = int(np.argmin(distances))
            residual = residual - codebook[codes[row, level]]
    return codes


def cut_bits(bits: Sequence[bool], levels: int) -> list[int]:
    """Pieces of equal length, each read from its lowest bit; bits left over are dropped."""
    width = len(bits) // levels
    return [sum(int(bits[level * width + i]) << i for i in range(width)) for level in range(levels)]
