"""What became of the rows of a log, and which logs no model can be trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from keras_eta.columns import TIMESTAMP
from tfx_pipeline.config import EVAL, SPLITS, TRAIN, PipelineConfig
from tfx_pipeline.ingestion import impressions, interactions, negatives, rows
from tfx_pipeline.ingestion.malformed import Parts, most_first
from tfx_pipeline.layouts import AGE_BOUNDARIES, Layout


def make_report(raw: Mapping[str, Any], parts: Parts, num_bytes: int, dead_letters: str) -> dict[str, Any]:
    """What became of the rows."""
    counts = raw["counts"]

    def by_split(name: str) -> dict[str, int]:
        return {split: counts.get(f"{name}/{split}", 0) for split in SPLITS}

    log = parts.log
    num_impressions = by_split(impressions.IMPRESSIONS)
    return {
        "files": len(parts.files),
        "rows_read": log.rows_read,
        "rows_kept": log.rows_read - log.malformed,
        "malformed": most_first(log.reasons),
        **parts.reported(),
        "dead_letters": dead_letters if log.malformed else None,
        "users": counts.get(impressions.USERS, 0),
        "items": counts[impressions.ITEMS],
        "left_out_for_short_history": counts.get(impressions.LEFT_OUT, 0),
        "sampled_negatives": counts.get(negatives.NEGATIVES, 0),
        "positives_without_candidate": counts.get(negatives.WITHOUT_CANDIDATE, 0),
        "impressions": num_impressions,
        "positives": by_split(impressions.POSITIVES),
        "split": raw["cuts"],
        "bytes": num_bytes,
        "bytes_per_impression": round(num_bytes / max(sum(num_impressions.values()), 1), 1),
    }


def check_spellings(counts: Iterable[str]) -> None:
    """Refuses a log in which one column spells its numbers in two ways: they would be different ids."""
    files: dict[str, dict[str, str]] = {}
    for name in sorted(counts):
        kind, *rest = name.split("\t", 3)
        if kind == interactions.SPELLING:
            spelling, column, path = rest
            files.setdefault(column, {}).setdefault(spelling, path)
    for column, by_spelling in files.items():
        if len(by_spelling) > 1:
            raise ValueError(
                f"The column {column!r} spells ids as integers, e.g. in {by_spelling[rows.INTEGER]}, and as "
                f"'1.0', e.g. in {by_spelling[rows.DECIMAL]}: one id would be two. Write them in one spelling, "
                "or make the feature int64, which reads both."
            )


def check_time_units(counts: Mapping[str, int], layout: Layout) -> None:
    """Refuses a log whose timestamps are moments since 1970 in several units, or in another than ages are in."""
    by_unit: dict[str, dict[str, int]] = {}
    for name, count in counts.items():
        kind, *rest = name.split("\t", 2)
        if kind == rows.TIME_UNIT:
            unit, path = rest
            by_unit.setdefault(unit, {})[path] = count
    totals = {unit: sum(files.values()) for unit, files in by_unit.items()}
    usual = max(totals, key=lambda unit: totals[unit], default="")
    # A clock of one's own may pass through numbers that look like seconds.
    if not usual:
        return
    column = layout.source(TIMESTAMP)
    age = layout.features.age
    if usual != "seconds" and age is not None and age.boundaries == AGE_BOUNDARIES:
        raise ValueError(
            f"The column {column!r} holds moments since 1970 in {usual}, but the boundaries of ages are the usual "
            f"ones, which are in seconds. Give `age_boundaries` in {usual}, or none at all."
        )
    odd = {unit: files for unit, files in by_unit.items() if unit != usual}
    if not odd:
        return
    found = "; ".join(
        f"{totals[unit]:,} {f'in {unit}' if unit else 'are no moments between 1973 and 2286'}, e.g. in {min(files)}"
        for unit, files in odd.items()
    )
    raise ValueError(
        f"The column {column!r} holds moments since 1970 in {usual}, but for some rows: {found}. Mend these, or leave "
        "them out by `first_timestamp` and `end_timestamp`, which make them malformed rows."
    )


def check_report(report: Mapping[str, Any], config: PipelineConfig) -> None:
    """Refuses data that no model can be trained and judged on."""
    if report["users"] < 2:
        raise ValueError(f"The log must hold at least two users. Found: {report['users']}")
    sizes, positives = report["impressions"], report["positives"]
    empty = [split for split in SPLITS if not sizes[split]]
    if empty:
        alone = report["positives_without_candidate"]
        without = f", and {alone:,} positives had no candidate to draw a negative from" if alone else ""
        raise ValueError(
            f"The split by time leaves {', '.join(empty)} without impressions: {sizes}, cut at {report['split']}; "
            f"{report['left_out_for_short_history']:,} interactions had fewer than `min_history`={config.min_history} "
            f"behaviours before them{without}. Use another `split` or `min_history`, or more data."
        )
    for split in (TRAIN, EVAL):
        if positives[split] in (0, sizes[split]):
            advice = f"The label is made of the column {config.layout.label.column!r}: check its rule."
            if config.layout.negatives is not None:
                advice = "No negative could be sampled: check `same`, the columns in which they agree with a positive."
            elif positives[split]:
                advice += " Where a log holds positives only, have `negatives` sampled."
            raise ValueError(
                f"All {sizes[split]:,} impressions of {split} have the label {int(positives[split] > 0)}; a model "
                f"needs both classes. {advice}"
            )
