from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_eta.layers import SimHash
from keras_eta.quantization import ResidualKMeans, fingerprint_codes, random_codes
from tests import reference as bits_reference
from tests import retrieval_reference as reference


def make_vectors(rows: int = 200, dim: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)


def test_codes_equal_the_reference_and_residuals_shrink() -> None:
    vectors = make_vectors()
    quantizer = ResidualKMeans(levels=3, codebook_size=8).fit(vectors)
    codes = quantizer.codes(vectors)
    np.testing.assert_array_equal(codes, reference.residual_codes(vectors, quantizer.codebooks), strict=True)
    # A level's centroids are the means of the residuals that are nearest them, as k-means ends there.
    residuals, spread = vectors, [np.square(vectors).sum()]
    for level, codebook in enumerate(quantizer.codebooks):
        for code in range(8):
            np.testing.assert_allclose(residuals[codes[:, level] == code].mean(axis=0), codebook[code], atol=1e-5)
        residuals = residuals - codebook[codes[:, level]]
        spread.append(np.square(residuals).sum())
    assert (np.diff(spread) < -0.1 * spread[0]).all()
    # New vectors are coded alike.
    other = make_vectors(50, seed=1)
    np.testing.assert_array_equal(quantizer.codes(other), reference.residual_codes(other, quantizer.codebooks))


def test_first_level_finds_separate_clusters_and_the_second_their_parts() -> None:
    centres, offsets = 100 * np.eye(3), np.array([[0, 0, -1.0], [0, 0, 1.0]])
    vectors = (centres[:, None] + offsets).reshape(6, 3).repeat(4, axis=0)
    quantizer = ResidualKMeans(levels=2, codebook_size=3, seed=1)
    with pytest.warns(UserWarning, match=r"fewer clusters than codebook_size=3.*Clusters per level: \[3, 2\]"):
        codes = quantizer.fit(vectors).codes(vectors)
    assert quantizer.codebook_sizes == (3, 2)
    first, second = codes[:, 0].reshape(3, 8), codes[:, 1].reshape(3, 2, 4)
    assert (first == first[:, :1]).all()
    assert sorted(first[:, 0]) == [0, 1, 2]
    assert (second == second[:1, :, :1]).all()
    assert sorted(second[0, :, 0]) == [0, 1]


def test_fewer_vectors_than_codes_give_fewer_clusters() -> None:
    # Five different vectors, three of them twice: a cluster each, which leaves nothing to the second level.
    vectors = make_vectors(5)[[0, 1, 2, 3, 4, 0, 1, 2]]
    quantizer = ResidualKMeans(levels=2, codebook_size=8)
    with pytest.warns(UserWarning, match=r"Clusters per level: \[5, 1\]"):
        codes = quantizer.fit(vectors).codes(vectors)
    np.testing.assert_array_equal(codes[:3], codes[5:])
    assert sorted(codes[:5, 0]) == [0, 1, 2, 3, 4]
    assert codes[:, 1].tolist() == [0] * 8
    np.testing.assert_array_equal(quantizer.codebooks[0][codes[:, 0]], vectors)
    assert quantizer.codes(vectors[:0]).shape == (0, 2)


def test_enough_vectors_give_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ResidualKMeans(levels=2, codebook_size=4).fit(make_vectors())


def test_fit_is_seeded_and_files_give_the_same_codes(tmp_path: Path) -> None:
    vectors = make_vectors()
    quantizers = [ResidualKMeans(2, 16, seed).fit(vectors) for seed in (3, 3, 4)]
    codes = [quantizer.codes(vectors) for quantizer in quantizers]
    np.testing.assert_array_equal(codes[0], codes[1])
    assert (codes[0] != codes[2]).any()
    quantizers[0].save(tmp_path / "k_means")
    loaded = ResidualKMeans.load(tmp_path / "k_means")
    np.testing.assert_array_equal(loaded.codes(vectors), codes[0], strict=True)
    assert (loaded.levels, loaded.codebook_size, loaded.seed, loaded.codebook_sizes) == (2, 16, 3, (16, 16))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.array([[1.0, 2.0], [np.nan, 0.0]]), "`vectors` must be finite as float32. Received at row 1: [nan  0.]"),
        (np.array([[1.0, np.inf]]), "`vectors` must be finite as float32. Received at row 0"),
        (np.array([[1.0, 1e39]]), "`vectors` must be finite as float32. Received at row 0"),
        (np.zeros([0, 2]), "`vectors` must have at least one row. Received: shape [0, 2]"),
        (np.zeros(3), "`vectors` must be floats of shape [n, D]. Received: shape [3], float64"),
    ],
)
def test_wrong_vectors_are_refused(vectors: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ResidualKMeans(2, 4).fit(vectors)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`levels` must be a positive integer. Received: levels=0"):
        ResidualKMeans(levels=0)
    with pytest.raises(ValueError, match=r"`codebook_size` must be a positive integer. Received: codebook_size=2.5"):
        ResidualKMeans(codebook_size=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`seed` must be an integer of at least 0. Received: seed=-1"):
        ResidualKMeans(seed=-1)
    with pytest.raises(RuntimeError, match=r"ResidualKMeans has no codebooks yet: call `fit` or `load` first"):
        ResidualKMeans().codes(make_vectors())
    with pytest.raises(ValueError, match=r"`vectors` must have 6 columns. Received: shape \[3, 5\]"):
        ResidualKMeans(1, 2).fit(make_vectors()).codes(make_vectors(3, 5))


@pytest.mark.parametrize(("num_bits", "levels"), [(24, 3), (64, 8), (200, 7), (30, 1), (100, 9), (5, 5)])
def test_fingerprint_codes_equal_bits_cut_one_by_one(num_bits: int, levels: int) -> None:
    fingerprints = SimHash(num_bits=num_bits)(make_vectors(20))
    codes = fingerprint_codes(fingerprints, num_bits, levels)
    bits = [bits_reference.unpack_words(words, num_bits) for words in fingerprints.numpy().tolist()]
    expected = np.array([reference.cut_bits(row, levels) for row in bits], np.int32)
    np.testing.assert_array_equal(codes, expected, strict=True)
    assert codes.max() < 2 ** (num_bits // levels)


def test_fingerprint_codes_of_the_first_bits_worked_by_hand() -> None:
    # Bits from the lowest: 1, 0, 1 | 1, 1, 0 | 1. The sign is bit 63, the highest of the last of four pieces.
    word = np.array([[0b1_011_101 - 2**63]])
    np.testing.assert_array_equal(fingerprint_codes(word, 7, 2), np.array([[0b101, 0b011]], np.int32), strict=True)
    assert fingerprint_codes(word, 64, 4)[0, 3] == 2**15


@pytest.mark.parametrize(
    ("fingerprints", "num_bits", "levels", "message"),
    [
        (
            np.zeros([2, 1], np.int64),
            65,
            13,
            "with at least num_bits=65 bits in W words. Received: shape [2, 1]",
        ),
        (np.zeros([2, 1], np.int32), 24, 3, "`fingerprints` must be int64 of shape [items, W]"),
        (np.zeros(2, np.int64), 24, 3, "Received: shape [2], int64"),
        (np.zeros([2, 1], np.int64), 2, 3, "A code must have 1 to 30 bits, num_bits // levels. Received: num_bits=2"),
        (np.zeros([2, 1], np.int64), 62, 2, "A code must have 1 to 30 bits"),
        (np.zeros([2, 1], np.int64), 0, 2, "`num_bits` must be a positive integer. Received: num_bits=0"),
    ],
)
def test_wrong_fingerprints_are_refused(fingerprints: Any, num_bits: int, levels: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        fingerprint_codes(fingerprints, num_bits, levels)


def test_random_codes_take_all_values_evenly() -> None:
    codes = random_codes(3000, (3, 5), seed=1)
    assert (codes.shape, codes.dtype) == ((3000, 2), np.int32)
    for level, size in enumerate((3, 5)):
        counts = np.bincount(codes[:, level], minlength=size)
        # Five standard errors.
        assert len(counts) == size
        np.testing.assert_allclose(counts, 3000 / size, atol=5 * np.sqrt(3000 / size))
    np.testing.assert_array_equal(codes, random_codes(3000, (3, 5), seed=1))
    assert (codes != random_codes(3000, (3, 5), seed=2)).any()
    with pytest.raises(ValueError, match=re.escape("`codebook_sizes` must be positive integers. Received")):
        random_codes(3, (4, 0))
    with pytest.raises(ValueError, match=re.escape("`items` must be a positive integer. Received: items=0")):
        random_codes(0, (4,))
