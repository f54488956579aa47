"""Judges a retriever by the positives of the eval part, beside counting and the version that was pushed last."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from keras_eta.columns import Feature
from keras_eta.metrics import recall_and_ndcg
from tfx_pipeline.evaluation import Gate
from tfx_pipeline.retrieval.answers import Faults, faults
from tfx_pipeline.retrieval.counting import CO_OCCURRENCE, POPULARITY, by_co_occurrence, by_popularity
from tfx_pipeline.retrieval.positives import FIRST_ROW, UNKNOWN_ROW, Positives, read_positives
from tfx_pipeline.retrieval.served import ServedRetriever
from tfx_pipeline.retriever_config import JUDGED

THIS, LAST = "this retriever", "pushed last"
RECALL = f"recall_{JUDGED}"

_MAX_JUDGED = 5_000
_REQUESTS = 64


class Measures(NamedTuple):
    """How good the first ten items are that a method found. NaN where nothing can be measured.

    Attributes:
        recall_10: share of the positives whose item is among them.
        ndcg_10: mean of 1 / log2(1 + rank) over positives, 0 beyond rank 10.
        coverage: share of the catalogue that was found for anybody.
        cold_share: share of what was found that training never saw.
        cold_recall_10: `recall_10` of the positives whose item training never saw.
    """

    recall_10: float
    ndcg_10: float
    coverage: float
    cold_share: float
    cold_recall_10: float


class Verdict(NamedTuple):
    """What is found of a retriever.

    Attributes:
        positives: of the eval part.
        judged: those that were drawn and whose item is not in the user's history, where it can't be found.
        repeats: those that were drawn and whose item is.
        unknown: of those judged, whose item the retriever can't find.
        cold: of those judged, whose item training never saw.
        items: that the retriever can find.
        cold_items: of these, that training never saw, neither as an item nor in a history that was read.
        measures: of the retriever, of the one pushed last if there is one, and of counting.
        gates: what was asked of it.
    """

    positives: int
    judged: int
    repeats: int
    unknown: int
    cold: int
    items: int
    cold_items: int
    measures: dict[str, Measures]
    gates: list[Gate]


class ItemRows:
    """Rows of raw ids: 0 is padding, 1 an unknown item.

    Args:
        ids: different ids [n], int64, or bytes as objects.
    """

    def __init__(self, ids: np.ndarray) -> None:
        self._index = pd.Index(ids)
        # Ingestion refuses negative and empty ids: neither is an item.
        nothing: Any = b"" if ids.dtype == object else -1
        self._raw = np.concatenate([np.array([nothing] * FIRST_ROW, ids.dtype), ids])

    def __len__(self) -> int:
        return len(self._raw)

    def encode(self, raw: np.ndarray) -> np.ndarray:
        """Rows, of the same shape as raw ids."""
        places = self._index.get_indexer(raw.ravel())
        return np.where(places < 0, UNKNOWN_ROW, places + FIRST_ROW).reshape(raw.shape)

    def raw(self, rows: np.ndarray) -> np.ndarray:
        """Raw ids, of the same shape as rows; of unknown items one that is no item."""
        return self._raw[rows]


def judge(
    model: ServedRetriever,
    last: ServedRetriever | None,
    train_files: list[str],
    eval_files: list[str],
    item_id: Feature,
    trained_ids: np.ndarray,
    *,
    max_history_length: int,
    max_recall_drop: float,
    seed: int,
) -> Verdict:
    """Measures and gates.

    Args:
        model: to judge.
        last: the version pushed last, whose items have ids of the same type.
        train_files: patterns of the training part's files, from which counting learns.
        eval_files: those of the eval part.
        item_id: the feature with the item's id.
        trained_ids: ids [n] of all items of impressions of the training part.
        max_history_length: behaviours in an impression, which are not to be found.
        max_recall_drop: how far recall may lie below the last one's.
        seed: of the draw, where there are more positives than are judged.
    """
    known = [trained_ids, model.items, *([] if last is None else [last.items])]
    rows = ItemRows(pd.Index(np.concatenate(known)).unique().to_numpy())
    train = read_positives(train_files, item_id, model.max_history_length, rows.encode)
    drawn = read_positives(eval_files, item_id, max_history_length, rows.encode, sample=_MAX_JUDGED, seed=seed)
    repeats = (drawn.histories == drawn.items[:, np.newaxis]).any(axis=1) & (drawn.items >= FIRST_ROW)
    judged = drawn.where(~repeats)
    seen = np.zeros(len(rows), bool)
    seen[train.items] = seen[train.histories] = True
    seen[:FIRST_ROW] = False
    catalogue = rows.encode(model.items)

    found, wrong = _found(model, judged, rows)
    compared = {THIS: found}
    if last is not None:
        compared[LAST] = _found(last, judged, rows)[0]
    compared[POPULARITY] = by_popularity(train, judged, len(rows), JUDGED)
    compared[CO_OCCURRENCE] = by_co_occurrence(train, judged, len(rows), JUDGED)
    measures = {name: measured(rows_found, judged.items, catalogue, seen) for name, rows_found in compared.items()}
    return Verdict(
        positives=drawn.total,
        judged=len(judged.items),
        repeats=int(repeats.sum()),
        unknown=int(np.count_nonzero(~np.isin(judged.items, catalogue))),
        cold=int(np.count_nonzero(~seen[judged.items])),
        items=len(catalogue),
        cold_items=int(np.count_nonzero(~seen[catalogue])),
        measures=measures,
        gates=gates(measures, wrong, len(judged.items), max_recall_drop),
    )


def measured(found: np.ndarray, wanted: np.ndarray, catalogue: np.ndarray, seen: np.ndarray) -> Measures:
    """The measures of what was found.

    Args:
        found: rows of items [n, 10], the best first; below 2 where there is none.
        wanted: rows of items [n].
        catalogue: rows of the items that could be found.
        seen: bool by row, whether training saw the item.
    """
    # An unknown item is not found by finding another one.
    wanted = np.where(wanted >= FIRST_ROW, wanted, -1)
    real = found >= FIRST_ROW
    cold = (wanted < 0) | ~seen[wanted]
    recall, ndcg = recall_and_ndcg(found, wanted, JUDGED)
    return Measures(
        recall,
        ndcg,
        coverage=len(np.intersect1d(found, catalogue)) / len(catalogue) if len(found) else float("nan"),
        cold_share=float((~seen[found[real]]).mean()) if real.any() else float("nan"),
        cold_recall_10=recall_and_ndcg(found[cold], wanted[cold], JUDGED)[0],
    )


def gates(measures: dict[str, Measures], wrong: Faults, judged: int, max_recall_drop: float) -> list[Gate]:
    """What is asked of a retriever; what is not a number passes no gate.

    Args:
        measures: by method.
        wrong: what is wrong in its answers.
        judged: positives that it was judged by.
        max_recall_drop: how far recall may lie below the last one's.
    """
    recall, popular = measures[THIS].recall_10, measures[POPULARITY].recall_10
    asked = [
        Gate("judged", judged, "at least 1 positive whose item is not in the history", judged > 0),
        Gate(RECALL, recall, f"above {POPULARITY}'s {popular:.4f}", recall > popular),
    ]
    if LAST in measures:
        before = measures[LAST].recall_10
        drop = f"at most `max_recall_drop`={max_recall_drop:g}"
        asked.append(
            Gate(
                RECALL,
                recall,
                f"{drop} below the {before:.4f} of the version pushed last",
                recall >= before - max_recall_drop,
            )
        )
    return asked + [Gate(name, count, "0", count == 0) for name, count in wrong._asdict().items()]


def _found(model: ServedRetriever, judged: Positives, rows: ItemRows) -> tuple[np.ndarray, Faults]:
    """The first ten items for each positive, int [n, 10], and what is wrong in all that was found."""
    parts, wrong = [np.zeros([0, JUDGED], np.int64)], Faults(*[0] * len(Faults._fields))
    for start in range(0, len(judged.items), _REQUESTS):
        part = slice(start, start + _REQUESTS)
        # No wider than the longest, of at least one, for which there is room in the signature.
        width = max(1, int(judged.lengths[part].max()))
        histories, lengths = rows.raw(judged.histories[part, :width]), judged.lengths[part]
        items, log_probability = model.find(histories, lengths)
        new = faults(items, log_probability, histories, lengths, model.items)
        wrong = Faults(*(before + more for before, more in zip(wrong, new, strict=True)))
        parts.append(np.where(log_probability == -np.inf, 0, rows.encode(items))[:, :JUDGED])
    return np.concatenate(parts), wrong
