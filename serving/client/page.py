"""The page that explains one ranking: a single HTML file that loads nothing and sends nothing."""

from __future__ import annotations

import base64
import datetime
import hashlib
import importlib.resources
import json
import math
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_eta.columns import TIMESTAMP
from keras_eta.time_units import per_second, time_unit
from serving.client.answers import Attention, Explanation
from serving.client.requests import Columns

_DATA = "__DATA__"
_SCRIPT_HASH = "__SCRIPT_HASH__"
# JavaScript's numbers are doubles.
_LARGEST_INTEGER = 2**53 - 1


def explanation_page(
    explanation: Explanation,
    candidates: Columns,
    history: Columns,
    user: Columns | None = None,
    context: Columns | None = None,
    history_length: int | None = None,
    *,
    model_name: str,
    made: datetime.datetime,
    items: Columns | None = None,
) -> str:
    """Shows one request: its candidates best first, and the behaviours that each score rests on.

    Args:
        explanation: the answer of `RankingClient.explain` to one request.
        candidates: as they were sent: by name, C values.
        history: as it was sent: by name, the behaviours, most recent first. Where both `history` and `context` have a
            `timestamp`, the page shows ages in place of the history's, and dates in UTC where the size of the context's
            tells its unit.
        user: as it was sent: by name, a value.
        context: as it was sent: by name, a value.
        history_length: how many behaviours count. Default: all.
        model_name: the model that was asked.
        made: when it was asked.
        items: what is known of items, as columns by name: first their ids, under the name that they have among the
            candidates, then e.g. their titles, which stand beside ids. A column that the request has itself is left
            out.

    Returns:
        The HTML. Its Content-Security-Policy allows the page's own script and nothing from outside.

    Raises:
        ValueError: if `explanation` is of several requests, or does not fit the columns, or `items` have no id of the
            candidates, or one twice.
    """
    if explanation.probability.ndim != 1:
        raise ValueError(
            "A page shows one request: `explanation` must have probabilities [C]. "
            f"Received: {len(explanation.probability)} requests"
        )
    _check_lengths("candidates", candidates, len(explanation.probability))
    num_behaviours = len(next(iter(history.values()), ()))
    _check_lengths("history", history, num_behaviours)
    units = {"": explanation, **explanation.others}
    furthest = max(attention.positions.max(initial=-1) for attention in units.values())
    if furthest >= num_behaviours:
        raise ValueError(
            "`history` must have every behaviour that `explanation` has positions of. "
            f"Received: {num_behaviours} behaviours, position {furthest}"
        )
    columns = dict(history)
    given = {**(user or {}), **(context or {})}
    times = None
    if TIMESTAMP in columns and TIMESTAMP in given:
        times = _times(int(given[TIMESTAMP]), [int(then) for then in columns.pop(TIMESTAMP)])
    known = _ItemTable(items, candidates)
    order = explanation.order
    of_candidates = {**candidates, **{f"{name}_count": counts for name, counts in explanation.counts.items()}}
    data = {
        "model": model_name,
        "version": explanation.model_version,
        "made": made.astimezone(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "given": [[name, _value(value)] for name, value in given.items()],
        "candidates": [
            [name, [_value(values[row]) for row in order]] for name, values in known.beside_ids(of_candidates).items()
        ],
        "scores": _numbers(explanation.probability[order]),
        "behaviours": [
            [name, [_value(value) for value in values]] for name, values in known.beside_ids(columns).items()
        ],
        "numBehaviours": num_behaviours if history_length is None else int(history_length),
        "times": times,
        "units": [
            {
                "name": name,
                "score": attention.score_label,
                "retrieved": [_retrieved(attention, row) for row in order],
            }
            for name, attention in units.items()
        ],
    }
    # "<" could end the script element, and a page in ASCII is the same in every encoding.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    template = importlib.resources.files("serving.client").joinpath("page.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)
    if script is None:
        raise RuntimeError("page.html has no script")
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    return template.replace(_SCRIPT_HASH, f"sha256-{digest}").replace(_DATA, text)


def check_page_path(path: Path) -> None:
    """Checks that a page can be written there.

    Raises:
        ValueError: if `path` is a folder, or in a folder that does not exist.
    """
    if path.is_dir():
        raise ValueError(f"The page needs the name of a file. Received a folder: {path}")
    if not path.parent.is_dir():
        raise ValueError(f"The page can't be written to {path}: there is no folder {path.parent}")


def write_page(path: Path, page: str) -> None:
    """Writes the page whole or not at all, for its owner only to read.

    Raises:
        OSError: if it can't be written. What was there before is still there then.
    """
    # In the same folder, since only there it can take the page's place at once.
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=".", delete=False) as file:
        try:
            file.write(page)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


class _ItemTable:
    """What is known of items, to be shown beside their ids.

    Args:
        items: as for `explanation_page`.
        candidates: likewise.

    Raises:
        ValueError: if `items` have no id of the candidates, or one twice, or columns of different lengths.
    """

    def __init__(self, items: Columns | None, candidates: Columns) -> None:
        self._id: str | None = None
        self._names: list[str] = []
        self._rows: dict[str, tuple[Any, ...]] = {}
        if not items:
            return
        self._id, *self._names = items
        if self._id not in candidates:
            raise ValueError(
                f"The first column of `items` must be an id of the candidates, one of {list(candidates)}. "
                f"Received: {self._id!r}"
            )
        ids = [str(_value(id_)) for id_ in items[self._id]]
        _check_lengths("items", items, len(ids))
        self._rows = {id_: tuple(items[name][row] for name in self._names) for row, id_ in enumerate(ids)}
        if len(self._rows) < len(ids):
            twice = next(id_ for id_ in ids if ids.count(id_) > 1)
            raise ValueError(f"`items[{self._id!r}]` must hold each id once. Twice: {twice!r}")

    def beside_ids(self, columns: Columns) -> dict[str, Any]:
        """The columns, with those of the table after the id; empty text for items that the table lacks."""
        result: dict[str, Any] = {}
        for name, values in columns.items():
            result[name] = values
            if name == self._id:
                rows = [self._rows.get(str(_value(id_)), ("",) * len(self._names)) for id_ in values]
                for place, added in enumerate(self._names):
                    if added not in columns:
                        result[added] = [row[place] for row in rows]
        return result


def _times(now: int, moments: Sequence[int]) -> dict[str, Any]:
    """When behaviours were: their timestamps, dates and ages in seconds; in units of the log, if it is no known one."""
    unit = time_unit(now)
    size = per_second(unit) if unit else 1
    return {
        "unit": unit,
        "now": _date(now // size) if unit else "",
        "timestamps": [_value(then) for then in moments],
        "dates": [_date(then // size) if unit else "" for then in moments],
        "ages": [(now - then) // size for then in moments],
    }


def _date(seconds: int) -> str:
    """A date and a time in UTC; empty beyond the year 9999."""
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return ""


def _check_lengths(role: str, columns: Columns, length: int) -> None:
    for name, values in columns.items():
        if len(values) != length:
            raise ValueError(f"`{role}[{name!r}]` must have {length} values. Received: {len(values)}")


def _retrieved(attention: Attention, row: int) -> list[list[Any]]:
    """Position, score and weight of what one candidate's score rests on; no score where the unit has none."""
    found = attention.positions[row] >= 0
    columns = [_numbers(array[row][found]) for array in (attention.positions, attention.weights)]
    scores = [None] * int(found.sum()) if attention.scores is None else _numbers(attention.scores[row][found])
    return [list(entry) for entry in zip(columns[0], scores, columns[1], strict=True)]


def _numbers(array: np.ndarray) -> list[float | None]:
    """The numbers, with `None` for those that JSON lacks."""
    return [number if math.isfinite(number) else None for number in array.tolist()]


def _value(value: Any) -> str | int | float:
    """A value of a column as the page shows it: text, unless it is a number that JavaScript can hold."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="backslashreplace")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    exact = abs(value) <= _LARGEST_INTEGER if isinstance(value, int) else math.isfinite(value)
    return value if exact else str(value)
