"""How a retriever is judged: positives, counting, measures, gates, and what is wrong in answers."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.tfx_pipeline.retrieval.impressions import write_impressions
from tfx_pipeline.custom_layout import custom
from tfx_pipeline.evaluation import Gate
from tfx_pipeline.layouts import Label
from tfx_pipeline.retrieval import positives
from tfx_pipeline.retrieval.answers import Faults, faults
from tfx_pipeline.retrieval.counting import by_co_occurrence, by_popularity
from tfx_pipeline.retrieval.judging import LAST, THIS, ItemRows, Measures, Verdict, _found, gates, judge, measured
from tfx_pipeline.retrieval.positives import Positives, read_positives

LAYOUT = custom("log.csv", Label("clicked"), max_history_length=12)
ITEM_ID = LAYOUT.features.item_id
NONE = Faults(0, 0, 0, 0, 0)


class Finder:
    """Finds the items that it is told to, best first, in the order told, without those of the history."""

    def __init__(self, items: list[int], order: list[int]) -> None:
        self.items, self.max_history_length, self.order = np.array(items), 3, order
        self.asked: list[tuple[list[int], int]] = []

    def find(self, histories: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        items = np.zeros([len(lengths), 11], np.int64)
        log_probability = np.full(items.shape, -np.inf, np.float32)
        for row, length in enumerate(lengths):
            self.asked.append((histories[row, :length].tolist(), len(lengths)))
            found = [item for item in self.order if item not in histories[row, :length]][:11]
            items[row, : len(found)] = found
            log_probability[row, : len(found)] = -1.0 - np.arange(len(found))
        return items, log_probability


def test_positives_are_read_as_rows_of_items(tmp_path: Path) -> None:
    rows = [(10, [30, 20, 10, 20], 1), (20, [10], 0), (99, [], 1), (30, [99, 30], 1)]
    one = write_impressions(tmp_path / "a.gz", LAYOUT, rows[:2])
    other = write_impressions(tmp_path / "b.gz", LAYOUT, rows[2:])
    encode = ItemRows(np.array([30, 10, 20])).encode
    found = read_positives([str(tmp_path / "*.gz")], ITEM_ID, 3, encode)
    assert found.items.tolist() == [3, 1, 2]
    assert found.histories.tolist() == [[2, 4, 3], [0, 0, 0], [1, 2, 0]]
    assert found.lengths.tolist() == [3, 0, 2]
    assert found.total == 3
    assert read_positives([other, one], ITEM_ID, 1, encode).lengths.tolist() == [1, 0, 1]
    nothing = read_positives([str(tmp_path / "none*")], ITEM_ID, 3, encode)
    assert (nothing.histories.shape, nothing.total) == ((0, 3), 0)


def test_a_sample_of_positives_is_drawn_by_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positives, "_BATCH_SIZE", 300)
    ids = np.arange(2_000)
    path = write_impressions(tmp_path / "a.gz", LAYOUT, [(int(item), [], 1) for item in ids])
    encode = ItemRows(ids).encode
    for seed in (0, 1):
        part = read_positives([path], ITEM_ID, 2, encode, sample=400, seed=seed)
        # Those with the smallest keys of the whole file, in its order.
        drawn = np.sort(np.argsort(np.random.default_rng(seed).random(2_000))[:400])
        assert part.items.tolist() == (drawn + 2).tolist()
        assert part.total == 2_000


def test_rows_of_unknown_items_become_ids_that_are_none() -> None:
    rows = ItemRows(np.array([b"b", b"a\0"], object))
    encoded = rows.encode(np.array([[b"a\0", b"a"], [b"b", b""]], object))
    assert encoded.tolist() == [[3, 1], [2, 1]]
    assert rows.raw(encoded).tolist() == [[b"a\0", b""], [b"b", b""]]
    assert ItemRows(np.array([0])).raw(np.array([0, 1, 2])).tolist() == [-1, -1, 0]


# After 2 came 4 twice and 5 once, after 3 came 2; 4 and 5 were taken three times, 2 and 3 once. 6 is new.
TRAIN = Positives(
    np.array([4, 5, 4, 2, 4, 5, 5, 3], np.int32),
    np.array([[2, 3], [2, 0], [2, 0], [3, 2], [0, 0], [0, 0], [0, 0], [0, 0]], np.int32),
    np.array([2, 1, 1, 2, 0, 0, 0, 0], np.int32),
    8,
)


def test_counting_finds_what_is_not_in_the_history() -> None:
    histories = np.array([[2, 5], [3, 0], [0, 0], [6, 0]], np.int32)
    judged = Positives(np.zeros(4, np.int32), histories, np.array([2, 1, 0, 1], np.int32), 4)
    assert by_popularity(TRAIN, judged, 7, 3).tolist() == [[4, 3, 0], [4, 5, 2], [4, 5, 2], [4, 5, 2]]
    # 5 would be next after 2, but is in the history.
    assert by_co_occurrence(TRAIN, judged, 7, 3).tolist() == [[4, 3, 0], [2, 4, 5], [4, 5, 2], [4, 5, 2]]
    # After 5 nothing came. After 2 came 4 twice: first, though 5 was taken more often.
    more = TRAIN._replace(items=np.array([4, 5, 4, 2, 5, 5, 5, 3], np.int32))
    judged = judged._replace(histories=np.array([[2, 0], [5, 2], [0, 0], [6, 0]], np.int32))
    assert by_co_occurrence(more, judged, 7, 3)[:2].tolist() == [[4, 5, 3], [4, 3, 0]]
    # 2 and 5 came once each after 3; 5 is the more popular.
    histories = np.array([[3], [3], [0]], np.int32)
    even = Positives(np.array([2, 5, 5], np.int32), histories, np.array([1, 1, 0], np.int32), 3)
    assert by_co_occurrence(even, even, 7, 2)[0].tolist() == [5, 2]


def test_measures_of_what_was_found() -> None:
    found = np.zeros([4, 10], np.int64)
    found[0, :3], found[1, :2], found[2, :1] = [4, 2, 6], [6, 4], [1]
    wanted = np.array([2, 6, 1, 3])
    seen = np.array([False, False, True, True, True, True, False, True])
    values = measured(found, wanted, np.array([2, 3, 4, 6]), seen)
    # 2 is at rank 2 and 6 at rank 1; an unknown item is not found by another one, and as cold as 6.
    assert values == pytest.approx((2 / 4, (1 / math.log2(3) + 1) / 4, 3 / 4, 2 / 5, 1 / 2))
    nothing = measured(found[:0], wanted[:0], np.array([2]), seen)
    assert all(map(math.isnan, nothing))
    assert math.isnan(measured(found[:1], wanted[:1], np.array([2]), seen).cold_recall_10)


def values(recall: float) -> Measures:
    return Measures(recall, 0.1, 0.2, 0.3, 0.4)


def test_gates_name_both_values() -> None:
    passed = gates({THIS: values(0.2), "popularity": values(0.1), LAST: values(0.205)}, NONE, 7, 0.006)
    assert passed == [
        Gate("judged", 7, "at least 1 positive whose item is not in the history", True),
        Gate("recall_10", 0.2, "above popularity's 0.1000", True),
        Gate("recall_10", 0.2, "at most `max_recall_drop`=0.006 below the 0.2050 of the version pushed last", True),
        *(Gate(name, 0, "0", True) for name in Faults._fields),
    ]


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"popularity": values(0.2)}, [1]),
        ({THIS: values(math.nan)}, [1, 2]),
        ({"popularity": values(math.nan)}, [1]),
        ({LAST: values(0.207)}, [2]),
        ({LAST: values(math.nan)}, [2]),
        ({"judged": 0}, [0]),
        ({"wrong": NONE._replace(not_numbers=1)}, [3]),
        ({"wrong": NONE._replace(out_of_order=1, repeated_items=2)}, [4, 5]),
        ({"wrong": NONE._replace(excluded_items=1, unknown_items=1)}, [6, 7]),
    ],
)
def test_what_is_no_better_or_wrong_passes_no_gate(changes: dict[str, Any], refused: list[int]) -> None:
    changes = {"judged": 7, "wrong": NONE, **changes}
    judged, wrong = changes.pop("judged"), changes.pop("wrong")
    measures = {THIS: values(0.2), "popularity": values(0.1), LAST: values(0.205), **changes}
    found = gates(measures, wrong, judged, 0.006)
    assert [place for place, gate in enumerate(found) if not gate.passed] == refused


@pytest.mark.parametrize("text", [False, True])
def test_faults_of_answers_are_counted(text: bool) -> None:
    def ids(values: Any) -> np.ndarray:
        return np.array([[b"%d" % value for value in row] for row in values], object) if text else np.array(values)

    items = ids([[7, 8, 5], [8, 5, 0], [6, 7, 8]])
    log_probability = np.array([[-0.1, -2, -3], [-1, -1, -np.inf], [0.0, -1, -2]], np.float32)
    excluded, known = ids([[6, 9], [9, 8], [5, 9]]), ids([[5, 6, 7, 8]])[0]
    lengths = np.array([1, 1, 0])
    assert faults(items, log_probability, excluded, lengths, known) == NONE
    assert faults(items, log_probability, excluded, np.array([1, 2, 1]), known) == NONE._replace(excluded_items=1)
    # 0 counts for nothing where nothing was found.
    assert faults(items, log_probability, excluded, lengths, known[:2]) == NONE._replace(unknown_items=5)
    assert faults(items, log_probability, excluded, lengths) == NONE
    twice = ids([[7, 8, 7], [8, 5, 0], [6, 6, 6]])
    assert faults(twice, log_probability, excluded, lengths, known) == NONE._replace(repeated_items=3)
    wrong = np.array([[np.nan, -2, -1], [-1, -1, -np.inf], [0.5, -1, -2]], np.float32)
    assert faults(items, wrong, excluded, lengths, known) == NONE._replace(not_numbers=2, out_of_order=1)


def test_a_retriever_is_judged_beside_the_last_one_and_counting(tmp_path: Path) -> None:
    train = [(4, [2, 3, 98], 1), (5, [2], 1), (4, [], 1), (3, [2], 1), (9, [9], 0)]
    judged = [(6, [2, 99], 1), (3, [4], 1), (2, [4, 2], 1), (5, [], 0), (77, [], 1), (4, [8], 1)]
    files = [write_impressions(tmp_path / f"{name}.gz", LAYOUT, rows) for name, rows in (("t", train), ("e", judged))]
    model, last = Finder([2, 3, 4, 5, 6, 8], [6, 3, 5, 4, 8, 2]), Finder([2, 3, 4, 5], [3, 5])
    arguments: dict[str, Any] = {"max_history_length": 12, "max_recall_drop": 0.5, "seed": 0}
    verdict = judge(
        model,  # type: ignore[arg-type]
        last,  # type: ignore[arg-type]
        [files[0]],
        [files[1]],
        ITEM_ID,
        np.array([3, 4, 5, 9]),
        **arguments,
    )
    # The positive with 2 is one of the user's history, and 77 is unknown.
    assert verdict[:7] == Verdict(5, 4, 1, 1, 2, 6, 2, {}, [])[:7]
    assert model.asked == [([2, -1], 4), ([4], 4), ([], 4), ([8], 4)]
    ranks = [1, 2, None, 4]
    ndcg = sum(1 / math.log2(1 + rank) for rank in ranks if rank) / 4
    # Found: 5 + 5 + 6 + 5 items, of which 6 is new everywhere, and 8 but where it is in the history.
    assert verdict.measures[THIS] == pytest.approx((3 / 4, ndcg, 1, 7 / 21, 1 / 2))
    assert verdict.measures[LAST] == pytest.approx((1 / 4, 1 / 4, 2 / 4 * 4 / 6, 0, 0))
    assert verdict.measures["popularity"].recall_10 == 2 / 4
    assert all(gate.passed for gate in verdict.gates)
    assert [gate.asked for gate in verdict.gates[1:3]] == [
        "above popularity's 0.5000",
        "at most `max_recall_drop`=0.5 below the 0.2500 of the version pushed last",
    ]
    # Answers that are wrong do not pass.
    broken = SimpleNamespace(items=model.items, max_history_length=3, find=lambda *_: (_constant(4), _constant(-1.0)))
    verdict = judge(broken, None, [files[0]], [files[1]], ITEM_ID, np.array([3, 4, 5, 9]), **arguments)  # type: ignore[arg-type]
    assert {gate.metric: gate.value for gate in verdict.gates if not gate.passed} == {
        "recall_10": 1 / 4,
        "repeated_items": 40,
        "excluded_items": 1,
    }
    assert LAST not in verdict.measures


def test_where_nothing_is_found_there_is_no_item_zero() -> None:
    none = np.zeros(1, np.int32)
    judged = Positives(none, none[np.newaxis], none, 1)
    found, wrong = _found(Finder([0, 5], [5]), judged, ItemRows(np.array([0, 5])))  # type: ignore[arg-type]
    assert found.tolist() == [[3] + [0] * 9]
    assert wrong == NONE


def _constant(value: Any) -> np.ndarray:
    return np.full([4, 11], value)
