"""Semantic ids: what an item is, in a few codes, and a token that tells items of equal codes apart."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from keras_eta.byte_ids import bytes_array, join_bytes, split_bytes
from keras_eta.validation import check_positive_integers, check_vectors, exact_integers, is_integer

_NEIGHBOURS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class SemanticIds:
    """Items and their semantic ids, one row per item.

    `from_codes` makes them of codes: from `ResidualKMeans` or `fingerprint_codes` (`keras_eta.quantization`), or from
    `keras_eta.RQVAE`. Item 0 here is row 1 of a model that keeps row 0 for padding and unknown items.

    Args:
        item_ids: different ids [items]: integers, which become int64, or strings or bytes, which become bytes (of
            strings their UTF-8), as objects.
        codes: integers [items, levels + 1], which become int32: a code per level, coarsest first, then the collision
            token, 0, 1, 2, ... for items whose codes are equal. All rows are different.
        sizes: how many values each of the levels + 1 columns can take.

    Raises:
        ValueError: if an id or a semantic id is there twice, a shape or type is wrong, or a code is out of its range.

    Example:
        >>> ids = keras_eta.SemanticIds.from_codes(["a", "b", "c"], [[3, 1], [3, 1], [0, 2]], codebook_sizes=(4, 4))
        >>> ids.codes.tolist()
        [[3, 1, 0], [3, 1, 1], [0, 2, 0]]

    Reference:
        TIGER, arXiv 2305.05065, Section 3.1.
    """

    item_ids: np.ndarray
    codes: np.ndarray
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        item_ids = _item_ids(self.item_ids)
        sizes = _sizes("sizes", self.sizes, fewest=2)
        codes = _codes(self.codes, len(item_ids), sizes)
        _, first, counts = np.unique(codes, axis=0, return_index=True, return_counts=True)
        if len(counts) < len(codes):
            twice = codes[first[counts.argmax()]].tolist()
            raise ValueError(f"`codes` must be different; `from_codes` numbers equal ones. Received twice: {twice}")
        for name, value in (("item_ids", item_ids), ("codes", codes), ("sizes", sizes)):
            object.__setattr__(self, name, value)

    @classmethod
    def from_codes(
        cls, item_ids: Any, codes: Any, codebook_sizes: Sequence[int], *, max_collisions: int = 256
    ) -> SemanticIds:
        """Appends the collision token, which numbers items of equal codes in the order of the items.

        Args:
            item_ids: as above.
            codes: integers [items, levels].
            codebook_sizes: how many values the code of each level can take.
            max_collisions: how many items can share their codes: the size of the last column.

        Raises:
            ValueError: as above, or if more than `max_collisions` items share their codes.
        """
        check_positive_integers(max_collisions=max_collisions)
        item_ids, sizes = _item_ids(item_ids), _sizes("codebook_sizes", codebook_sizes)
        codes = _codes(codes, len(item_ids), sizes)
        tokens = _collision_tokens(codes, codes[:0], np.zeros(0, np.int32), max_collisions)
        return cls(item_ids, np.column_stack([codes, tokens]), (*sizes, max_collisions))

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def levels(self) -> int:
        """How many codes an id has, without the collision token."""
        return len(self.sizes) - 1

    def extended(self, item_ids: Any, codes: Any) -> SemanticIds:
        """The ids of these items, as they are, and those of new ones behind them; no model need be trained again.

        Args:
            item_ids: ids of new items [n], of the same type.
            codes: integers [n, levels], from the quantiser that the present codes are from.

        Raises:
            ValueError: as `from_codes`, or if an item is known already.
        """
        item_ids = _item_ids(item_ids)
        if item_ids.dtype != self.item_ids.dtype:
            kinds = {True: "strings or bytes", False: "integers"}
            raise ValueError(
                f"`item_ids` must be {kinds[self.item_ids.dtype == object]}, as those that are there. "
                f"Received: {kinds[item_ids.dtype == object]}"
            )
        known = set(self.item_ids.tolist()).intersection(item_ids.tolist())
        if known:
            raise ValueError(
                f"`item_ids` must be new; {len(known)} of {len(item_ids)} have an id already, which they keep. "
                f"Received: {min(known)!r}"
            )
        codes = _codes(codes, len(item_ids), self.sizes[:-1])
        tokens = _collision_tokens(codes, self.codes[:, :-1], self.codes[:, -1], self.sizes[-1])
        return SemanticIds(
            np.concatenate([self.item_ids, item_ids]),
            np.concatenate([self.codes, np.column_stack([codes, tokens])]),
            self.sizes,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `.npz` file, of plain numbers alone.

        Args:
            path: of the file, whose name is taken as it is.
        """
        ids: dict[str, np.ndarray] = {"item_ids": self.item_ids}
        if self.item_ids.dtype == object:
            ids["item_ids"], ids["item_id_lengths"] = join_bytes(self.item_ids)
        with open(path, "wb") as file:
            np.savez_compressed(file, codes=self.codes, sizes=np.array(self.sizes, np.int64), **ids)

    @classmethod
    def load(cls, file: str | os.PathLike[str] | BinaryIO) -> SemanticIds:
        """Reads what `save` wrote.

        Args:
            file: its path, or the open file.
        """
        with np.load(file) as arrays:
            ids = arrays["item_ids"]
            if "item_id_lengths" in arrays:
                ids = split_bytes(ids, arrays["item_id_lengths"])
            return cls(ids, arrays["codes"], tuple(arrays["sizes"].tolist()))

    def report(self, vectors: Any = None) -> IdReport:
        """How well the codes tell items apart, and whether items of like content share them.

        Args:
            vectors: content vectors, floats [items, D]; rows of zeros are left out. All pairs of items are compared.

        Raises:
            ValueError: if there is no row for each item, or a vector is not finite.
        """
        codes = self.codes[:, :-1]
        counts = [np.bincount(codes[:, level], minlength=size) for level, size in enumerate(self.sizes[:-1])]
        _, group_of, group_sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
        near, chance = (None, None) if vectors is None else self._prefix_sharing(vectors)
        return IdReport(
            items=len(self),
            sizes=self.sizes[:-1],
            usage=tuple(float((count > 0).mean()) for count in counts),
            perplexity=tuple(_perplexity(count) for count in counts),
            colliding=float((group_sizes[group_of.reshape(-1)] > 1).mean()),
            largest_collision=int(group_sizes.max()),
            near_sharing=near,
            chance_sharing=chance,
        )

    def _prefix_sharing(self, vectors: Any) -> tuple[float | None, float | None]:
        """Share of the nearest neighbours with an item's first code, and of all other items."""
        vectors = check_vectors("vectors", vectors)
        if len(vectors) != len(self):
            raise ValueError(f"`vectors` must have a row per item. Received: {len(vectors)} rows, {len(self)} items")
        there = vectors.any(axis=1)
        first, vectors = self.codes[there, 0], vectors[there]
        if len(first) < 2:
            return None, None
        # Takes a second, which whoever only reads ids need not wait for.
        from sklearn.neighbors import NearestNeighbors

        search = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(first) - 1), metric="cosine").fit(vectors)
        # Without an argument, no item is a neighbour of itself.
        neighbours = search.kneighbors(return_distance=False)
        counts = np.bincount(first).astype(np.float64)
        chance = (counts * (counts - 1)).sum() / (len(first) * (len(first) - 1))
        return float((first[neighbours] == first[:, np.newaxis]).mean()), float(chance)


@dataclasses.dataclass(frozen=True)
class IdReport:
    """What `SemanticIds.report` finds.

    Args:
        items: how many.
        sizes: of the codebooks, by level.
        usage: share of the codes of each level that an item has.
        perplexity: of each level, exp of the entropy of its codes: as many codes in even use would be as hard to guess.
        colliding: share of the items whose codes another item has.
        largest_collision: most items of equal codes.
        near_sharing: share of an item's 10 nearest items by cosine that have its first code, mean over items. `None`:
            not asked, or fewer than two items have content.
        chance_sharing: the same of items at random.
    """

    items: int
    sizes: tuple[int, ...]
    usage: tuple[float, ...]
    perplexity: tuple[float, ...]
    colliding: float
    largest_collision: int
    near_sharing: float | None = None
    chance_sharing: float | None = None

    def __str__(self) -> str:
        lines = [f"{self.items:,} items, {len(self.sizes)} levels"]
        for level, (size, usage, perplexity) in enumerate(zip(self.sizes, self.usage, self.perplexity, strict=True), 1):
            lines.append(f"level {level}: {usage:.1%} of {size:,} codes used, perplexity {perplexity:,.1f}")
        lines.append(f"{self.colliding:.1%} of items share their codes, at most {self.largest_collision:,} the same")
        if self.near_sharing is not None:
            lines.append(
                f"{self.near_sharing:.1%} of the {_NEIGHBOURS} nearest items share the first code "
                f"({self.chance_sharing:.1%} of all items)"
            )
        return "\n".join(lines)


def _perplexity(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _collision_tokens(codes: np.ndarray, taken: np.ndarray, tokens: np.ndarray, size: int) -> np.ndarray:
    """Numbers rows of equal codes from 0, or from behind the last token that is taken.

    Args:
        codes: int32 [n, levels].
        taken: int32 [m, levels], codes of items that have tokens.
        tokens: int32 [m].
        size: how many there may be.

    Returns:
        int32 [n].
    """
    _, group = np.unique(np.concatenate([taken, codes]), axis=0, return_inverse=True)
    group = group.reshape(-1)
    next_token = np.zeros(group.max() + 1, np.int64)
    np.maximum.at(next_token, group[: len(taken)], tokens.astype(np.int64) + 1)
    group = group[len(taken) :]
    order = np.argsort(group, kind="stable")
    in_order = group[order]
    start = np.searchsorted(in_order, in_order)
    numbers = np.empty(len(codes), np.int64)
    numbers[order] = next_token[in_order] + np.arange(len(codes)) - start
    if numbers.max() >= size:
        last = numbers.argmax()
        raise ValueError(
            f"At most {size} items can share their codes, but {numbers[last] + 1} have {codes[last].tolist()}. "
            "Use more levels or larger codebooks, so that codes tell more items apart, or raise `max_collisions`. "
            f"Received: max_collisions={size}"
        )
    return numbers.astype(np.int32)


def _item_ids(item_ids: Any) -> np.ndarray:
    """Different ids as int64, or as objects of bytes."""
    ids = np.asarray(item_ids)
    if ids.dtype.kind in "SU" and not isinstance(item_ids, np.ndarray):
        # NumPy's own type of strings cuts NULs off, and takes numbers among strings for strings.
        ids = np.asarray(item_ids, object)
    values = ids.ravel().tolist()
    strings = all(isinstance(id_, (str, bytes)) for id_ in values)
    integers = not strings and ids.dtype.kind in "iu" and bool(exact_integers(ids).all())
    if ids.ndim != 1 or not len(ids) or not (strings or integers):
        raise ValueError(
            "`item_ids` must hold integers of 64 bits, strings or bytes, at least one, in one dimension. "
            f"Received: shape {list(ids.shape)}, {ids.dtype}"
        )
    if strings:
        ids = bytes_array(id_.encode() if isinstance(id_, str) else id_ for id_ in values)
    else:
        ids = ids.astype("int64")
    _, first, counts = np.unique(ids, return_index=True, return_counts=True)
    if len(first) < len(ids):
        raise ValueError(f"`item_ids` must be different. Received twice: {ids[first[counts.argmax()]]!r}")
    return ids


def _sizes(name: str, sizes: Any, fewest: int = 1) -> tuple[int, ...]:
    largest = np.iinfo(np.int32).max
    fitting = isinstance(sizes, Sequence) and all(is_integer(size, 1) and size <= largest for size in sizes)
    if not fitting or len(sizes) < fewest:
        raise ValueError(
            f"`{name}` must be a sequence of at least {fewest} positive integers that int32 holds. "
            f"Received: {name}={sizes!r}"
        )
    return tuple(sizes)


def _codes(codes: Any, items: int, sizes: tuple[int, ...]) -> np.ndarray:
    """Codes as int32 [items, len(sizes)]."""
    values = np.asarray(codes)
    if values.shape != (items, len(sizes)) or values.dtype.kind not in "iu":
        raise ValueError(
            f"`codes` must be integers of shape {[items, len(sizes)]}, a row per item and a column per size. "
            f"Received: shape {list(values.shape)}, {values.dtype}"
        )
    wrong = (values < 0) | (values >= np.array(sizes))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"`codes` must be from 0 to {sizes[column] - 1} in column {column}. "
            f"Received: {values[row, column]} in row {row}"
        )
    return values.astype(np.int32)
