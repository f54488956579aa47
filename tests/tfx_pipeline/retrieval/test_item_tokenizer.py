"""Semantic ids of items that come and go."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tfx_pipeline.retrieval import item_tokenizer
from tfx_pipeline.retrieval.item_tokenizer import ItemTokenizer
from tfx_pipeline.retrieval.items import Items

pytestmark = pytest.mark.filterwarnings("ignore:ResidualKMeans has fewer clusters:UserWarning")


def of_brands(**brands: str) -> Items:
    return Items([name.encode() for name in brands], pd.DataFrame({"brand": brands.values()}), (), ("brand",))


def test_items_of_equal_content_are_told_apart_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    items = of_brands(i="a", j="b", k="a", m="c", n="a")
    ids = ItemTokenizer.fit(items, 4, 0).issued
    assert ids.sizes == (3, 1, 1, 3)
    assert (ids.codes[[0, 2, 4], 3].tolist(), ids.codes[[1, 3], 3].tolist()) == ([0, 1, 2], [0, 0])
    assert len({*ids.codes[:, 0].tolist()}) == 3
    monkeypatch.setattr(item_tokenizer, "_MAX_COLLISIONS", 2)
    message = "3 items have the same codes, and at most 2 can: what is known of them does not tell them apart."
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        ItemTokenizer.fit(items, 4, 0)
    ItemTokenizer.fit(of_brands(i="a", j="b", k="a", m="c"), 4, 0)


def test_items_keep_their_ids_and_new_ones_take_the_next_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ItemTokenizer.fit(of_brands(i="a", j="b", k="a", m="c"), 4, 0)
    a, b, _, c = first.issued.codes[:, :3].tolist()
    first.save(tmp_path)
    loaded = ItemTokenizer.load(str(tmp_path))
    # k has left and j is of another brand now; x, y and z are new, and nothing is known of z's.
    later = of_brands(x="a", j="c", i="a", y="b", m="c", z="new")
    second = loaded.extended(later)
    nothing = loaded.quantizer.codes(np.zeros([1, 64], np.float32))[0].tolist()
    assert nothing in (a, b, c)
    token = {str(a): 3, str(b): 2, str(c): 1}[str(nothing)]
    expected = [[*a, 2], [*b, 0], [*a, 0], [*b, 1], [*c, 0], [*nothing, token]]
    ids = second.ids_of(later.ids)
    assert ids.item_ids.tolist() == [b"x", b"j", b"i", b"y", b"m", b"z"]
    assert ids.codes.tolist() == expected
    assert first.issued.sizes == (3, 1, 1, 2)
    assert ids.sizes == (3, 1, 1, max(3, token + 1))
    # x has left and k is back.
    third = second.extended(of_brands(k="c", w="a"))
    assert third.ids_of([b"k", b"w"]).codes.tolist() == [[*a, 1], [*a, 3 + (nothing == a)]]
    assert second.extended(of_brands(k="c")) is second

    monkeypatch.setattr(item_tokenizer, "_MAX_COLLISIONS", len(second.issued))
    crowd = of_brands(**{f"n{number}": "a" for number in range(6)})
    most = 3 + (nothing == a) + len(crowd.ids)
    message = f"{most} items have the same codes, those that have left among them, and at most 7 can"
    with pytest.raises(ValueError, match=f"^{message}$"):
        second.extended(crowd)
