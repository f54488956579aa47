"""The Parquet files that scoring reads, the columns it carries over, and the directory that it writes whole or not."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from keras_eta.export import PROBABILITY
from tfx_pipeline.exclusive import exclusive
from tfx_pipeline.scoring.requests import RequestReader

# Readers of a directory of Parquet files skip names that begin so.
SUMMARY = "_summary.json"
DEAD_LETTER = "_dead_letter"

_MAX_PROBLEMS = 10


@dataclasses.dataclass(frozen=True)
class Requests:
    """Files of requests that fit a version and each other.

    Args:
        row_groups: of each file by its absolute path, the rows of its row groups.
        carried: the columns that scores have from their request, and their types.
        item_type: of the candidates' ids.
        left_out: columns of lists or structs that the model does not read, which are not carried over.
    """

    row_groups: Mapping[str, Sequence[int]]
    carried: Mapping[str, pa.DataType]
    item_type: pa.DataType
    left_out: Sequence[str]

    @property
    def num_rows(self) -> int:
        """The requests of all files."""
        return sum(map(sum, self.row_groups.values()))


def find_requests(patterns: Sequence[str], reader: RequestReader) -> Requests:
    """Opens all files and looks at their columns, before anything is scored.

    Args:
        patterns: paths with `*` and `?`; brackets are meant as they are.
        reader: of the version.

    Raises:
        FileNotFoundError: if no file fits a pattern.
        ValueError: if a file is no Parquet, lacks a column, holds one as another type, or does not go with the others;
            every such file is named, up to a limit.
    """
    paths: list[str] = []
    for pattern in patterns:
        found = [path for path in sorted(glob.glob(pattern.replace("[", "[[]"))) if os.path.isfile(path)]
        if not found:
            raise FileNotFoundError(f"No file fits --input {pattern}")
        paths += [path for path in map(os.path.abspath, found) if path not in paths]
    schemas: dict[str, pa.Schema] = {}
    row_groups: dict[str, list[int]] = {}
    problems: list[str] = []
    for path in paths:
        try:
            with pa.parquet.ParquetFile(path) as file:
                schemas[path] = file.schema_arrow
                row_groups[path] = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        except (pa.ArrowException, OSError) as error:
            problems.append(f"{path} is no Parquet file: {error}")
            continue
        problems += [f"{path}: {problem}" for problem in reader.problems(schemas[path])]
    _refuse(problems)
    read = {column.name for column in reader.columns if column.axis is not None or column.max_values is not None}
    names = [name for name in schemas[paths[0]].names if name not in read]
    nested = [name for name in names if any(_is_nested(schema, name) for schema in schemas.values())]
    carried = [name for name in names if name not in nested]
    if PROBABILITY in carried:
        raise ValueError(f"{paths[0]}: column {PROBABILITY!r} has the name of the scores. Rename it.")
    for path, schema in schemas.items():
        missing = sorted(set(names) - set(schema.names))
        more = sorted(set(schema.names) - set(names) - read)
        if missing or more:
            what = (
                f"lacks the column {missing[0]!r} of {paths[0]}" if missing else f"has a column {more[0]!r} of its own"
            )
            problems.append(f"{path} {what}: scores have one set of columns")
    _refuse(problems)
    types = {}
    for name in carried:
        types[name], more_problems = _one_type(
            name, {path: schema.field(name).type for path, schema in schemas.items()}
        )
        problems += more_problems
    items = {path: schema.field(reader.item_id).type for path, schema in schemas.items()}
    inner = {path: arrow_type.value_type for path, arrow_type in items.items() if not pa.types.is_null(arrow_type)}
    item_type, more_problems = _one_type(reader.item_id, inner)
    _refuse([*problems, *more_problems])
    return Requests(row_groups, types, item_type, nested)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = [f"and {len(problems) - _MAX_PROBLEMS:,} more"] if len(problems) > _MAX_PROBLEMS else []
        raise ValueError("\n  ".join(["These files can't be scored:", *problems[:_MAX_PROBLEMS], *more]))


def _is_nested(schema: pa.Schema, name: str) -> bool:
    return name in schema.names and pa.types.is_nested(schema.field(name).type)


def _one_type(name: str, types: Mapping[str, pa.DataType]) -> tuple[pa.DataType, list[str]]:
    """The type that a column has in all files, and which files have another; in one of nulls alone it has any."""
    decoded = {
        path: arrow_type.value_type if pa.types.is_dictionary(arrow_type) else arrow_type
        for path, arrow_type in types.items()
    }
    known = {path: arrow_type for path, arrow_type in decoded.items() if not pa.types.is_null(arrow_type)}
    first = next(iter(known), None)
    if first is None:
        return pa.null(), []
    return known[first], [
        f"{path}: column {name!r} holds {arrow_type}, and {known[first]} in {first}"
        for path, arrow_type in known.items()
        if arrow_type != known[first]
    ]


@contextlib.contextmanager
def whole_or_not_at_all(output: Path, overwrite: bool) -> Iterator[Path]:
    """A directory to write to, which becomes `output` when the context ends, unless it ends by an exception.

    It lies beside `output`, so that it becomes it by one rename. What a killed run left there is removed by the next.

    Args:
        output: where the scores appear.
        overwrite: whether they may take the place of earlier ones.

    Raises:
        FileExistsError: if `output` exists, unless it is empty, or holds earlier scores and `overwrite` is true.
        RuntimeError: if another run writes them.
    """
    check_output(output, overwrite)
    staging = output.parent / f".{output.name}.partial"
    new, old = staging / "new", staging / "old"
    with exclusive(staging):
        try:
            if old.exists() and not output.exists():
                # A run was killed between its two renames.
                old.rename(output)
            for left in (new, old):
                shutil.rmtree(left, ignore_errors=True)
            new.mkdir()
            yield new
            check_output(output, overwrite)
            if output.exists():
                output.rename(old)
            new.rename(output)
        finally:
            shutil.rmtree(staging)


def check_output(output: Path, overwrite: bool) -> None:
    """Raises FileExistsError as `whole_or_not_at_all` does."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / SUMMARY).is_file():
        raise FileExistsError(f"{output} exists and does not hold scores. Choose another --output.")
    if not overwrite:
        raise FileExistsError(f"{output} holds scores. Replace them by --overwrite, or choose another --output.")
