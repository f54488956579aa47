"""What the cases of a retriever expect; `test_services.py` puts them to the embedded server."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from serving.tools.reference_retriever import (
    EXCLUDED,
    EXCLUDED_LENGTHS,
    HISTORIES,
    ITEMS,
    LENGTHS,
    NUM_RESULTS,
    make_retriever,
)
from serving.tools.retriever_cases import EMPTY, GOOD, TWO_LEFT, Answer


@pytest.mark.parametrize(
    ("answer", "histories", "lengths", "excluded"),
    [
        (GOOD, HISTORIES, LENGTHS, [row[:length] for row, length in zip(EXCLUDED, EXCLUDED_LENGTHS, strict=True)]),
        (EMPTY, np.zeros((2, 1)), np.array([0, 0]), [[], []]),
        (TWO_LEFT, HISTORIES[:1], LENGTHS[:1], [ITEMS[:-2]]),
    ],
    ids=["good", "empty", "two left"],
)
def test_expected_answers_are_those_of_scoring_all_items(
    answer: Answer, histories: np.ndarray, lengths: np.ndarray, excluded: list[list[int]]
) -> None:
    model = make_retriever()
    for row, items in enumerate(excluded):
        inputs = {
            "item_id": model.lookup.encode("item_id", ITEMS),
            "history_item_id": np.tile(model.lookup.encode("item_id", histories[row].astype(int)), (len(ITEMS), 1)),
            "history_length": np.full(len(ITEMS), lengths[row]),
        }
        logits = model({name: tf.constant(values) for name, values in inputs.items()})
        targets = model.table.targets(tf.constant(inputs["item_id"])).numpy()
        scores = np.zeros(len(ITEMS))
        for level, of_level in enumerate(logits):
            scores += tf.nn.log_softmax(of_level).numpy()[np.arange(len(ITEMS)), targets[:, level]]
        scores[np.isin(ITEMS, items)] = -np.inf
        best = np.argsort(-scores)[:NUM_RESULTS]
        np.testing.assert_array_equal(np.where(np.isinf(scores[best]), 0, ITEMS[best]), answer["item_id"][row])
        np.testing.assert_allclose(scores[best], answer["log_probability"][row], atol=2e-5)
        # Far enough from each other that another order of sums changes nothing.
        assert -np.diff(np.sort(scores[np.isfinite(scores)])[::-1][: NUM_RESULTS + 1]).max() > 0.01
