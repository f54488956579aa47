from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_eta import ops
from keras_eta.layers import HammingTopK
from tests import reference
from tests.layer_check import check_layer

SHAPES = [
    # rows, candidates, length, top_k, words
    (3, 1, 20, 4, 1),
    (1, 5, 20, 4, 2),
    (3, 5, 2, 4, 1),  # fewer behaviours than K
    (3, 2, 1, 1, 8),
    (1, 1, 70, 70, 4),
]


def _search(
    rows: int, candidates: int, length: int, words: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fingerprints with many equal distances, and a mask whose rows are full, all padding, one behaviour, ..."""
    rng = np.random.default_rng(seed)
    mask = np.arange(length) < np.array([length, 0, 1, *rng.integers(0, length, rows)])[:rows, np.newaxis]
    return rng.integers(0, 8, (rows, candidates, words)), rng.integers(0, 8, (rows, length, words)), mask


def _expected(candidate: np.ndarray, history: np.ndarray, top_k: int, mask: np.ndarray) -> list[np.ndarray]:
    rows = [reference.hamming_top_k(*row[:2], top_k, row[2]) for row in zip(candidate, history, mask, strict=True)]
    return [np.stack(part) for part in zip(*rows, strict=True)]


@pytest.mark.parametrize(("rows", "candidates", "length", "top_k", "words"), SHAPES)
def test_hamming_top_k_equals_reference(rows: int, candidates: int, length: int, top_k: int, words: int) -> None:
    candidate, history, mask = _search(rows, candidates, length, words)
    found = HammingTopK(top_k)(candidate, history, mask)
    assert isinstance(found, ops.TopK)
    for actual, expected in zip(found, _expected(candidate, history, top_k, mask), strict=True):
        np.testing.assert_array_equal(actual, expected, strict=True)


def test_hamming_top_k_is_the_same_everywhere(tmp_path: Path) -> None:
    candidate, history, mask = _search(3, 5, 20, 2)
    outputs = check_layer(HammingTopK(7), {"candidate": candidate, "history": history, "mask": mask}, tmp_path)
    for actual, expected in zip(outputs, _expected(candidate, history, 7, mask), strict=True):
        np.testing.assert_array_equal(actual, expected, strict=True)


def test_without_a_mask_every_behaviour_is_real() -> None:
    candidate, history, mask = _search(3, 2, 9, 1)
    for actual, expected in zip(
        HammingTopK(4)(candidate, history), _expected(candidate, history, 4, np.ones_like(mask)), strict=True
    ):
        np.testing.assert_array_equal(actual, expected, strict=True)


def test_histories_with_several_leading_dimensions() -> None:
    candidate, history, mask = _search(6, 2, 9, 1)
    found = HammingTopK(4)(*(part.reshape(2, 3, *part.shape[1:]) for part in (candidate, history, mask)))
    for actual, expected in zip(found, _expected(candidate, history, 4, mask), strict=True):
        np.testing.assert_array_equal(actual.numpy().reshape(expected.shape), expected)


@pytest.mark.parametrize("top_k", [0, -1, 2.0, False, None])
def test_hamming_top_k_refuses_a_bad_top_k(top_k: Any) -> None:
    message = f"`top_k` must be a positive integer. Received: top_k={top_k!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        HammingTopK(top_k)
