"""Semantic ids of items that come and go: each keeps its id, and new ones get theirs from the same codebooks."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_eta import SemanticIds
from keras_eta.content import ContentVectorizer
from keras_eta.quantization import ResidualKMeans
from tfx_pipeline.retrieval.items import Items

LEVELS = 3

# The logits of the last token are as many, for each beam.
_MAX_COLLISIONS = 1024

_VECTORIZER, _QUANTIZER, _IDS = "vectorizer.npz", "quantizer.npz", "semantic_ids.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class ItemTokenizer:
    """What makes semantic ids of items, and all ids that it made.

    Args:
        vectorizer: content vectors of items.
        quantizer: codes of vectors.
        issued: the ids of all items so far. Those of items that have left stay here, so that no other item gets them
            and an item that comes back has the one that it had.
    """

    vectorizer: ContentVectorizer
    quantizer: ResidualKMeans
    issued: SemanticIds

    @classmethod
    def fit(cls, items: Items, codebook_size: int, seed: int) -> ItemTokenizer:
        """Learns terms and codebooks of these items, by residual k-means of their content vectors.

        Args:
            items: and what is known of them.
            codebook_size: codes of each level.
            seed: of the vectors and of k-means.

        Raises:
            ValueError: if nothing is known of any item, or too little to tell items apart.
        """
        vectorizer = ContentVectorizer(items.text, items.categories, seed=seed).fit(items.table)
        vectors = vectorizer.vectors(items.table)
        quantizer = ResidualKMeans(LEVELS, codebook_size, seed=seed).fit(vectors)
        codes = quantizer.codes(vectors)
        most = _most_of_equal_codes(codes)
        if most > _MAX_COLLISIONS:
            raise ValueError(
                f"{most:,} items have the same codes, and at most {_MAX_COLLISIONS:,} can: what is known of them does "
                f"not tell them apart. Give more columns of an item table. Received: text={items.text}, "
                f"categories={items.categories}, codebook_size={codebook_size}"
            )
        ids = SemanticIds.from_codes(items.ids, codes, quantizer.codebook_sizes, max_collisions=most)
        return cls(vectorizer, quantizer, ids)

    def extended(self, items: Items) -> ItemTokenizer:
        """A tokenizer that knows these items as well. Ids that are there stay; new ones take the next free token.

        The last column of ids gets as many values as needed.

        Args:
            items: with the columns that `fit` saw.

        Raises:
            ValueError: if too many items, those that have left among them, would have the same codes.
        """
        rows = self.rows_of(items.ids)
        new = np.flatnonzero(rows < 0)
        if not len(new):
            return self
        codes = self.quantizer.codes(self.vectorizer.vectors(items.table.iloc[new]))
        most = _most_of_equal_codes(np.concatenate([self.issued.codes[:, :-1], codes]))
        if most > _MAX_COLLISIONS:
            raise ValueError(
                f"{most:,} items have the same codes, those that have left among them, and at most "
                f"{_MAX_COLLISIONS:,} can"
            )
        sizes = (*self.issued.sizes[:-1], max(self.issued.sizes[-1], most))
        roomy = SemanticIds(self.issued.item_ids, self.issued.codes, sizes)
        return ItemTokenizer(
            self.vectorizer, self.quantizer, roomy.extended([items.ids[place] for place in new], codes)
        )

    def ids_of(self, item_ids: Iterable[int | bytes]) -> SemanticIds:
        """The semantic ids of these items, in their order.

        Args:
            item_ids: different ids, each of an item that was fitted or extended by.
        """
        rows = self.rows_of(item_ids)
        return SemanticIds(self.issued.item_ids[rows], self.issued.codes[rows], self.issued.sizes)

    def rows_of(self, item_ids: Iterable[int | bytes]) -> np.ndarray:
        """The rows of `issued` of items [n], integers [n]; -1 of those that have no id."""
        rows = {id_: row for row, id_ in enumerate(self.issued.item_ids.tolist())}
        return np.array([rows.get(id_, -1) for id_ in item_ids])

    def save(self, folder: Path) -> None:
        """Writes three `.npz` files, of plain numbers alone.

        Args:
            folder: where to, which exists.
        """
        self.vectorizer.save(folder / _VECTORIZER)
        self.quantizer.save(folder / _QUANTIZER)
        self.issued.save(folder / _IDS)

    @classmethod
    def load(cls, folder: str) -> ItemTokenizer:
        """Reads what `save` wrote.

        Args:
            folder: where it is, local or remote.
        """

        def opened(name: str) -> io.BytesIO:
            with tf.io.gfile.GFile(os.path.join(folder, name), "rb") as file:
                return io.BytesIO(file.read())

        return cls(
            ContentVectorizer.load(opened(_VECTORIZER)),
            ResidualKMeans.load(opened(_QUANTIZER)),
            SemanticIds.load(opened(_IDS)),
        )


def _most_of_equal_codes(codes: np.ndarray) -> int:
    return int(np.unique(codes, axis=0, return_counts=True)[1].max())
