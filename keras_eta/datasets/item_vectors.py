"""Vectors of items, as a trained ranker has them, and the files that carry them to the pipeline."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from keras_eta.datasets.columns import Column
from keras_eta.validation import check_vectors, exact_integers


def item_index(item_ids: Any) -> pd.Index:
    """Item ids as an index of int64 or str.

    Raises:
        ValueError: if they are not one-dimensional, none, neither integers nor text, or one is there twice.
    """
    ids = np.asarray(item_ids)
    if ids.dtype.kind in "SU" and not isinstance(item_ids, np.ndarray):
        # NumPy's own type of strings cuts NULs off.
        ids = np.asarray(item_ids, object)
    if ids.dtype.kind == "O":
        ids = np.array([id_.decode() if isinstance(id_, bytes) else id_ for id_ in ids.flat], object).reshape(ids.shape)
        valid = all(isinstance(id_, str) for id_ in ids.flat)
    else:
        ids = np.char.decode(ids, "utf-8") if ids.dtype.kind == "S" else ids
        valid = ids.dtype.kind == "U" or (ids.dtype.kind in "iu" and bool(exact_integers(ids).all()))
    if ids.ndim != 1 or not len(ids) or not valid:
        raise ValueError(
            "`item_ids` must hold integers of 64 bits, strings or bytes, at least one, in one dimension. "
            f"Received: shape {list(ids.shape)}, {ids.dtype}"
        )
    index = pd.Index(ids.astype("int64" if ids.dtype.kind in "iu" else object))
    if not index.is_unique:
        raise ValueError(f"`item_ids` must be different. Received twice: {index[index.duplicated()][0]!r}")
    return index


def item_rows(index: pd.Index, items: Column) -> np.ndarray:
    """Rows [n] of items in an `item_index`, -1 for those that it lacks.

    Raises:
        ValueError: if the one holds strings and the other integers.
    """
    strings = isinstance(items, pd.Categorical)
    if strings != (index.dtype == object):
        kinds = ("integers", "strings")
        raise ValueError(
            f"`item_ids` must be of the type of the log's 'item_id', {kinds[strings]}. Received: {kinds[not strings]}"
        )
    if isinstance(items, pd.Categorical):
        return index.get_indexer(items.categories)[items.codes]
    return index.get_indexer(items)


def save_item_vectors(path: str | os.PathLike[str], item_ids: Any, vectors: Any) -> None:
    """Writes items and their vectors to a `.npz` file, for `load_item_vectors` and the pipeline.

    Args:
        path: of the file.
        item_ids: different item ids [items], int64, or strings or bytes in UTF-8.
        vectors: floats [items, D].

    Raises:
        ValueError: if ids or vectors are not as `cluster_log` takes them, or an id ends with a NUL.

    Example:
        >>> ids = lookup.tables["item_id"].get_vocabulary(include_special_tokens=False)
        >>> rows = lookup.encode("item_id", ids)
        >>> save_item_vectors("items.npz", ids, model.embeddings["item_id"].embeddings.numpy()[rows])
    """
    index, vectors = item_index(item_ids), check_vectors("vectors", vectors)
    if len(index) != len(vectors):
        raise ValueError(
            f"`vectors` must have a row for each of `item_ids`. Received: {len(vectors)} rows, {len(index)} ids"
        )
    ids = index.to_numpy()
    if ids.dtype == object:
        # Bytes of one length: NumPy writes objects as pickles, and takes 4 bytes for a character.
        ids = np.array([id_.encode() for id_ in ids], "S")
        ends = [id_ for id_ in index if id_.endswith("\0")]
        if ends:
            raise ValueError(f"`item_ids` must not end with a NUL. Received: {ends[0]!r}")
    with open(path, "wb") as file:
        np.savez(file, item_id=ids, vectors=vectors)


def load_item_vectors(file: str | os.PathLike[str] | BinaryIO) -> tuple[pd.Index, np.ndarray]:
    """Reads what `save_item_vectors` wrote.

    Args:
        file: its path, or the open file.

    Returns:
        The item ids as an index of int64 or str, and the vectors float32 [items, D].
    """
    with np.load(file) as arrays:
        return item_index(arrays["item_id"]), arrays["vectors"]
