"""Ids of any bytes as arrays of numbers, in which NumPy saves them without pickles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def join_bytes(ids: Sequence[bytes] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All bytes in a row, uint8, and the length of each id, int64 [ids]."""
    return np.frombuffer(b"".join(ids), np.uint8), np.array([len(id_) for id_ in ids], np.int64)


def split_bytes(joined: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The ids of `join_bytes`, as objects [ids]."""
    ends = np.cumsum(lengths).tolist()
    content = joined.tobytes()
    return bytes_array(content[start:end] for start, end in zip([0, *ends], ends, strict=False))


def bytes_array(ids: Iterable[bytes]) -> np.ndarray:
    """Ids as objects [ids]; NumPy's own type of bytes would cut NULs off."""
    spelt = list(ids)
    array = np.empty(len(spelt), object)
    array[:] = spelt
    return array
