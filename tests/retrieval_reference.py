"""What keras_eta computes on the way to semantic ids, in plain loops. Imports nothing of keras_eta."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterable, Sequence

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


def residual_codes(vectors: np.ndarray, codebooks: Iterable[np.ndarray]) -> np.ndarray:
    """The nearest code of each level to what the codes before leave, [n, levels], in float64."""
    codebooks = list(codebooks)
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


def tf_idf(texts: Sequence[str]) -> np.ndarray:
    """Counts of words times 1 + ln((1 + texts) / (1 + texts with the word)), [texts, words]."""
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    vocabulary = sorted({word for each in words for word in each})
    result = np.zeros([len(texts), len(vocabulary)])
    for column, word in enumerate(vocabulary):
        holding = sum(word in each for each in words)
        for row, each in enumerate(words):
            result[row, column] = each.count(word) * (1 + math.log((1 + len(texts)) / (1 + holding)))
    return result


def one_hot(values: Sequence[Sequence[object]]) -> np.ndarray:
    """1 where a row holds the value of the column."""
    columns = sorted({str(value) for row in values for value in row})
    return np.array([[float(column in [str(value) for value in row]) for column in columns] for row in values])


def unit_rows(matrix: np.ndarray) -> np.ndarray:
    """Rows of length 1; those of zeros stay."""
    return np.array([row / (np.linalg.norm(row) or 1.0) for row in matrix])


def residual_quantizer(
    vectors: np.ndarray, codebooks: np.ndarray, commitment_weight: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes, sums of their vectors, and per vector the codebook and the commitment loss."""
    codes = residual_codes(vectors, codebooks)
    sums, losses = np.zeros(vectors.shape), np.zeros(len(vectors))
    for row, vector in enumerate(vectors):
        for level, codebook in enumerate(codebooks):
            code = codebook[codes[row, level]].astype(np.float64)
            losses[row] += np.sum((vector - sums[row] - code) ** 2)
            sums[row] += code
    return codes, sums, losses, commitment_weight * losses


def residual_quantizer_gradients(
    vectors: np.ndarray, codebooks: np.ndarray, commitment_weight: float, upstream: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients, for vectors and codebooks, of all losses summed and of the quantised vectors times `upstream`.

    A residual r = z - (codes before, which are constants) has the gradient of z: each level adds its own
    2 * commitment_weight * (r - e). A code is moved by 2 (e - r) of every vector that has it, and by nothing else.
    """
    codes = residual_codes(vectors, codebooks)
    of_vectors, of_codebooks = upstream.astype(np.float64), np.zeros(codebooks.shape)
    for row, vector in enumerate(vectors):
        residual = vector.astype(np.float64)
        for level, codebook in enumerate(codebooks):
            code = codebook[codes[row, level]].astype(np.float64)
            of_vectors[row] += 2 * commitment_weight * (residual - code)
            of_codebooks[level, codes[row, level]] += 2 * (code - residual)
            residual = residual - code
    return of_vectors, of_codebooks
