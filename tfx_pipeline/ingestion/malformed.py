"""Malformed rows of a log, of its spans and of its files: how many there are, and when they are too many."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tfx_pipeline.ingestion.counting import MALFORMED, ROWS_READ
from tfx_pipeline.ingestion.values import NON_INTEGER

# Fewer malformed rows than these stop no run for the share that they are of one file or span: in a file of three rows
# one is a third. They still count in the share of the whole log.
FEWEST_MALFORMED = 10
# Malformed rows that are shown, of each file and reason.
NUM_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 300

_MAX_REPORTED = 100
_MAX_NAMED = 10


class Part(NamedTuple):
    """A log, a span or a file.

    Args:
        name: of a span as `span_name` gives it, of a file its path within the data folder.
        rows_read: its rows.
        reasons: its malformed rows, by reason.
        files: those it consists of, by their paths within the data folder.
    """

    name: str
    rows_read: int
    reasons: Counter[str]
    files: tuple[str, ...]

    @property
    def malformed(self) -> int:
        """How many of its rows are malformed."""
        return self.reasons.total()

    @property
    def share(self) -> float:
        """The share of its rows that is malformed."""
        return self.malformed / max(self.rows_read, 1)

    def __str__(self) -> str:
        return f"{self.name}: {self.malformed:,} of {self.rows_read:,} rows, {self.share:.2%}"


class Parts(NamedTuple):
    """A log and what it consists of, the parts with the most malformed rows first.

    Args:
        log: all of it.
        spans: none where the pattern has no span.
        files: all of them.
    """

    log: Part
    spans: list[Part]
    files: list[Part]

    def reported(self) -> dict[str, Any]:
        """Spans and files with rows and malformed rows, those with the most of these; how many more there are."""
        found: dict[str, Any] = {}
        for name, parts in (("spans", self.spans), ("files", self.files)):
            found[f"malformed_by_{name[:-1]}"] = {
                part.name: {"rows_read": part.rows_read, "malformed": part.malformed} for part in parts[:_MAX_REPORTED]
            }
            found[f"{name}_not_listed"] = max(len(parts) - _MAX_REPORTED, 0)
        return found


def log_parts(counts: Mapping[str, int], data: str, spans: Mapping[str, str], whole: str = "the log") -> Parts:
    """The parts of a log.

    Args:
        counts: the sums of ingestion.
        data: directory of the log.
        spans: name of the span of each file that was read, by its path; empty where the pattern has none.
        whole: what messages call all of it.
    """
    rows_read: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = {path: Counter() for path in spans}
    for name, count in counts.items():
        kind, *rest = name.split("\t")
        if kind == ROWS_READ:
            (path,) = rest
            rows_read[path] += count
        elif kind == MALFORMED:
            reason, path = rest
            reasons[path][reason] += count

    def part(name: str, paths: Sequence[str]) -> Part:
        return Part(
            name,
            sum(rows_read[path] for path in paths),
            sum((reasons[path] for path in paths), start=Counter()),
            tuple(os.path.relpath(path, data) for path in paths),
        )

    by_span: dict[str, list[str]] = {}
    for path, span in spans.items():
        by_span.setdefault(span, []).append(path)
    return Parts(
        part(whole, list(spans)),
        _worst_first([part(span, paths) for span, paths in by_span.items() if span]),
        _worst_first([part(os.path.relpath(path, data), [path]) for path in spans]),
    )


def check_malformed(
    parts: Parts, examples: Mapping[str, Mapping[str, Sequence[str]]], dead_letters: str, max_bad_share: float
) -> None:
    """Refuses a log with too many malformed rows, in all, in a span or in a file.

    Args:
        parts: of the log.
        examples: path within the data folder -> reason -> some malformed rows.
        dead_letters: where all of them are.
        max_bad_share: the share that is allowed.

    Raises:
        RuntimeError: if `max_bad_share` is exceeded in all, or in a span or file with `FEWEST_MALFORMED` of them.
    """
    spans, files = (
        [part for part in some if part.share > max_bad_share and part.malformed >= FEWEST_MALFORMED]
        for some in (parts.spans, parts.files)
    )
    bad = [*([parts.log] if parts.log.share > max_bad_share else ()), *spans, *files]
    if not bad:
        return
    lines = [f"  {part}" for part in bad[:_MAX_NAMED]]
    if len(bad) > _MAX_NAMED:
        lines.append(f"  and {len(bad) - _MAX_NAMED:,} more spans and files")
    worst = (files or spans or bad)[0]
    lines.append(f"In {worst.name}:")
    for reason, count in most_first(worst.reasons).items():
        rows = [(file, row) for file in worst.files for row in examples.get(file, {}).get(reason, ())]
        shown = "; ".join(f"{file}: {row!r}" for file, row in rows[:NUM_EXAMPLES])
        lines.append(f"  {count:,} {reason}, e.g. {shown}")
    if any(reason.startswith(NON_INTEGER) for reason in worst.reasons):
        lines.append("  A feature of fractions, such as half stars, is written NAME:float32.")
    raise RuntimeError(
        f"Too many rows are malformed; `max_bad_share` allows {max_bad_share:.2%}.\n"
        + "\n".join(lines)
        + f"\nAll of them: {dead_letters}"
    )


def most_first(reasons: Mapping[str, int]) -> dict[str, int]:
    """Counts by reason, the largest first."""
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def shortened(row: str) -> str:
    """A malformed row as it is shown."""
    return row if len(row) <= _EXAMPLE_CHARACTERS else f"{row[:_EXAMPLE_CHARACTERS]}..."


def _worst_first(parts: Sequence[Part]) -> list[Part]:
    return sorted(parts, key=lambda part: (-part.malformed, part.name))
