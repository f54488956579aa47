"""Codes of items from vectors, without a network: residual k-means, cut fingerprints, and chance to compare with."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from threadpoolctl import threadpool_limits

from keras_eta.validation import check_integers_from_zero, check_positive_integers, check_vectors, is_integer

_WORD_BITS = 64
_MAX_CODE_BITS = 30


class ResidualKMeans:
    """K-means, level by level: each level clusters what the centroids of the levels before leave of the vectors.

    Args:
        levels: codes per vector.
        codebook_size: K, clusters per level. A level of fewer different residuals has as many clusters as those; `fit`
            warns, and `codebook_sizes` says how many there are.
        seed: of k-means.

    Raises:
        ValueError: if `levels` or `codebook_size` is not a positive integer, or `seed` is no integer from 0.

    Example:
        >>> quantizer = ResidualKMeans(levels=2, codebook_size=8).fit(vectors)
        >>> ids = SemanticIds.from_codes(item_ids, quantizer.codes(vectors), quantizer.codebook_sizes)

    Reference:
        GRID, arXiv 2507.22224, finds these ids as good as those of a residual-quantised autoencoder.
    """

    def __init__(self, levels: int = 3, codebook_size: int = 256, seed: int = 0) -> None:
        check_positive_integers(levels=levels, codebook_size=codebook_size)
        check_integers_from_zero(seed=seed)
        self.levels = levels
        self.codebook_size = codebook_size
        self.seed = seed
        self._codebooks: tuple[np.ndarray, ...] = ()

    @property
    def codebooks(self) -> tuple[np.ndarray, ...]:
        """Centroids of each level, float32 [clusters, D]."""
        if not self._codebooks:
            raise RuntimeError("ResidualKMeans has no codebooks yet: call `fit` or `load` first.")
        return self._codebooks

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """How many clusters each level has."""
        return tuple(len(codebook) for codebook in self.codebooks)

    def fit(self, vectors: Any) -> ResidualKMeans:
        """Finds the centroids.

        Args:
            vectors: floats [items, D], at least one.

        Returns:
            Itself.

        Raises:
            ValueError: if the shape is wrong or a vector is not finite in float32.

        Warns:
            UserWarning: if a level has fewer clusters than asked for.
        """
        residuals = check_vectors("vectors", vectors)
        if not len(residuals):
            raise ValueError(f"`vectors` must have at least one row. Received: shape {list(residuals.shape)}")
        # Takes a second, which whoever only loads codebooks need not wait for.
        from sklearn.cluster import KMeans

        codebooks: list[np.ndarray] = []
        # With one thread sums have one order, so that results do not depend on the machine's cores.
        with threadpool_limits(limits=1):
            for _ in range(self.levels):
                clusters = min(self.codebook_size, len(np.unique(residuals, axis=0)))
                kmeans = KMeans(clusters, n_init="auto", random_state=self.seed).fit(residuals.astype(np.float64))
                codebooks.append(kmeans.cluster_centers_.astype(np.float32))
                residuals = residuals - codebooks[-1][_nearest(residuals, codebooks[-1])]
        self._codebooks = tuple(codebooks)
        if min(self.codebook_sizes) < self.codebook_size:
            warnings.warn(
                f"ResidualKMeans has fewer clusters than codebook_size={self.codebook_size}, as it was given too few "
                f"different vectors. Clusters per level: {list(self.codebook_sizes)}",
                stacklevel=2,
            )
        return self

    def codes(self, vectors: Any) -> np.ndarray:
        """The nearest centroid of each level to what the levels before leave of a vector.

        Args:
            vectors: floats [items, D].

        Returns:
            int32 [items, levels].

        Raises:
            RuntimeError: if there are no codebooks yet.
            ValueError: if the shape is wrong or a vector is not finite in float32.
        """
        residuals = check_vectors("vectors", vectors)
        dim = self.codebooks[0].shape[1]
        if residuals.shape[1] != dim:
            raise ValueError(f"`vectors` must have {dim} columns. Received: shape {list(residuals.shape)}")
        codes = np.empty([len(residuals), self.levels], np.int32)
        for level, codebook in enumerate(self.codebooks):
            codes[:, level] = _nearest(residuals, codebook)
            residuals = residuals - codebook[codes[:, level]]
        return codes

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `.npz` file.

        Args:
            path: of the file, whose name is taken as it is.

        Raises:
            RuntimeError: if there are no codebooks yet.
        """
        codebooks = {f"codebook_{level}": codebook for level, codebook in enumerate(self.codebooks)}
        with open(path, "wb") as file:
            np.savez(file, config=np.array([self.levels, self.codebook_size, self.seed]), **codebooks)

    @classmethod
    def load(cls, file: str | os.PathLike[str] | BinaryIO) -> ResidualKMeans:
        """Reads what `save` wrote.

        Args:
            file: its path, or the open file.
        """
        with np.load(file) as arrays:
            quantizer = cls(*arrays["config"].tolist())
            quantizer._codebooks = tuple(arrays[f"codebook_{level}"] for level in range(quantizer.levels))
        return quantizer


def fingerprint_codes(fingerprints: Any, num_bits: int, levels: int) -> np.ndarray:
    """Cuts SimHash fingerprints into codes: the first num_bits // levels bits are the first level's, and so on.

    Bit i of a code is the i-th bit of its piece; bits that are left over are not used. A code can take
    2 ** (num_bits // levels) values. Near vectors have most bits in common, but any of them may differ first.

    Args:
        fingerprints: int64 [items, W], as `keras_eta.layers.SimHash` makes them: bit j in word j // 64 at position
            j % 64.
        num_bits: M, how many bits of them to use.
        levels: codes per item.

    Returns:
        int32 [items, levels].

    Raises:
        ValueError: if fingerprints are not int64 of two dimensions or hold fewer bits than `num_bits`, or the bits of a
            code are none or more than 30.

    Example:
        >>> codes = fingerprint_codes(keras_eta.layers.SimHash(num_bits=24)(vectors), num_bits=24, levels=3)
        >>> ids = SemanticIds.from_codes(item_ids, codes, codebook_sizes=[2**8] * 3)

    Reference:
        TIGER, arXiv 2305.05065, Section 4.3, whose LSH ids these are.
    """
    words = np.asarray(fingerprints)
    check_positive_integers(num_bits=num_bits, levels=levels)
    if words.ndim != 2 or words.dtype != np.int64 or words.shape[1] * _WORD_BITS < num_bits:
        raise ValueError(
            f"`fingerprints` must be int64 of shape [items, W] with at least num_bits={num_bits} bits in W words. "
            f"Received: shape {list(words.shape)}, {words.dtype}"
        )
    width = num_bits // levels
    if not 1 <= width <= _MAX_CODE_BITS:
        raise ValueError(
            f"A code must have 1 to {_MAX_CODE_BITS} bits, num_bits // levels. "
            f"Received: num_bits={num_bits}, levels={levels}"
        )
    places = np.arange(levels * width)
    bits = (words[:, places // _WORD_BITS] >> (places % _WORD_BITS)) & 1
    codes = bits.reshape(-1, levels, width) @ (1 << np.arange(width))
    return codes.astype(np.int32)


def random_codes(items: int, codebook_sizes: Sequence[int], seed: int = 0) -> np.ndarray:
    """Codes that say nothing of the items: what any other codes must beat.

    Args:
        items: how many.
        codebook_sizes: how many values the code of each level can take.
        seed: of the draws.

    Returns:
        int32 [items, levels].

    Raises:
        ValueError: if an argument is not positive integers, or `seed` is no integer from 0.
    """
    check_positive_integers(items=items)
    check_integers_from_zero(seed=seed)
    if not len(codebook_sizes) or not all(is_integer(size, 1) for size in codebook_sizes):
        raise ValueError(f"`codebook_sizes` must be positive integers. Received: codebook_sizes={codebook_sizes!r}")
    return np.random.default_rng(seed).integers(codebook_sizes, size=[items, len(codebook_sizes)], dtype=np.int32)


def _nearest(vectors: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Position of the nearest code to each vector, the first of those as near."""
    from sklearn.metrics import pairwise_distances_argmin

    if not len(vectors):
        return np.zeros(0, np.int64)
    return pairwise_distances_argmin(vectors.astype(np.float64), codebook.astype(np.float64))
