"""What became of the requests: numbers, and whether too many were malformed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet

from tfx_pipeline.ingestion.malformed import NUM_EXAMPLES, check_malformed, log_parts, most_first, shortened
from tfx_pipeline.scoring import transform
from tfx_pipeline.scoring.files import DEAD_LETTER, Requests
from tfx_pipeline.scoring.requests import CANDIDATES


def summarize(folder: Path, requests: Requests, output: Path, max_bad_share: float) -> dict[str, Any]:
    """Counts what `ScoreFiles` wrote to a folder, and leaves there what belongs to the scores.

    Args:
        folder: where it wrote.
        requests: what it read.
        output: what the folder will be.
        max_bad_share: share of malformed requests that is allowed.

    Raises:
        RuntimeError: if more are malformed, as `check_malformed`. They are then in `<output>.dead_letter`.
    """
    counts_file = folder / transform.COUNTS_FILE
    counts: dict[str, int] = json.loads(counts_file.read_text())
    counts_file.unlink()
    paths = list(requests.row_groups)
    data = os.path.commonpath([os.path.dirname(path) for path in paths])
    parts = log_parts(counts, data, dict.fromkeys(paths, ""), "all files")
    dead_letter = folder / DEAD_LETTER
    kept = output.with_name(f"{output.name}.dead_letter")
    if not parts.log.malformed:
        shutil.rmtree(dead_letter)
    else:
        try:
            check_malformed(parts, _examples(dead_letter, data), str(kept), max_bad_share)
        except RuntimeError:
            shutil.rmtree(kept, ignore_errors=True)
            dead_letter.rename(kept)
            raise

    def by_sequence(kind: str) -> dict[str, int]:
        found = (name.split("\t") for name in counts)
        return {rest[0]: counts["\t".join([name, *rest])] for name, *rest in found if name == kind and rest[0]}

    return {
        "requests": parts.log.rows_read,
        "scored": counts.get(transform.SCORED, 0),
        "malformed": most_first(parts.log.reasons),
        "candidates": counts.get(transform.CANDIDATES_SCORED, 0),
        "rows_written": counts.get(transform.ROWS_WRITTEN, 0),
        "files_written": len(list(folder.glob(f"{transform.FILE_PREFIX}*"))),
        "without_candidates": counts.get(f"{transform.EMPTY}\t{CANDIDATES}", 0),
        "without_behaviours": by_sequence(transform.EMPTY),
        "cut": by_sequence(transform.CUT),
        "columns_left_out": list(requests.left_out),
    }


def lines(summary: Mapping[str, Any], output: Path) -> Iterator[str]:
    """A summary for people."""
    yield (
        f"{output} written: {summary['candidates']:,} candidates of {summary['scored']:,} requests scored, "
        f"{summary['rows_written']:,} rows in {summary['files_written']:,} files, {summary['seconds']:.1f} s"
    )
    malformed = summary["requests"] - summary["scored"]
    if malformed:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in summary["malformed"].items())
        yield f"  malformed: {malformed:,} of {summary['requests']:,} requests, in {output / DEAD_LETTER}: {reasons}"
    if summary["without_candidates"]:
        yield f"  without candidates: {summary['without_candidates']:,} requests"
    for sequence, count in summary["without_behaviours"].items():
        yield f"  without behaviours in {sequence}: {count:,} requests"
    for sequence, count in summary["cut"].items():
        yield f"  cut to the behaviours of {sequence} that the model reads: {count:,} requests"
    if summary["columns_left_out"]:
        yield f"  not carried over, since they hold lists: {', '.join(summary['columns_left_out'])}"


def _examples(dead_letter: Path, data: str) -> dict[str, dict[str, list[str]]]:
    """Some malformed requests, by file and reason."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted(dead_letter.iterdir()):
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    of_file = found.setdefault(os.path.relpath(row["file"], data), {})
                    examples = of_file.setdefault(row["reason"], [])
                    if len(examples) < NUM_EXAMPLES:
                        examples.append(f"row {row['row']:,}: {shortened(row['request'])}")
    return found
