"""The command line of the client: reads a request as JSON, prints a table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from serving.client import Explanation, Metadata, Ranking, RankingClient, ServingError, VersionStatus

_ROLES = ("candidates", "history", "user", "context", "history_length")

_EXAMPLE = """\
example:
  python -m serving.client rank --target 127.0.0.1:8500 --request - <<'JSON'
  {
    "user": {"user_id": 5},
    "context": {"hour": 20},
    "history": {"item_id": [318, 50], "rating": [5, 4]},
    "candidates": {"item_id": [260, 1193, 2571]}
  }
  JSON

The history has the most recent behaviour first. For several requests at once, put a list around every value.
Exit codes: 0, an answer; 1, the server refused or can't be reached; 2, the request or the command is wrong."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0 for an answer, 1 where the server has none, 2 for a wrong request.
    """
    parser = _parser()
    flags = parser.parse_args(argv)
    if getattr(flags, "top", None) is not None and flags.top < 1:
        parser.error(f"--top must be a positive integer. Received: {flags.top}")
    try:
        with RankingClient(flags.target, flags.model_name, timeout=flags.timeout) as client:
            if flags.command in ("rank", "explain"):
                request = _read_request(flags.request)
                answer = client.rank(**request) if flags.command == "rank" else client.explain(**request)
                _print_answer(answer, request, flags.top, flags.json)
            elif flags.command == "status":
                _print_status(client.status(), flags.json)
            else:
                _print_metadata(client.metadata(), flags.json)
    except ServingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.client",
        description="Ask a ranking model on the embedded server or on TensorFlow Serving.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--target", default="127.0.0.1:8500", metavar="HOST:PORT", help="default: 127.0.0.1:8500")
    shared.add_argument("--model_name", default="eta", metavar="NAME", help="default: eta")
    shared.add_argument("--timeout", type=float, default=10.0, metavar="S", help="deadline in seconds (default: 10)")
    shared.add_argument("--json", action="store_true", help="print JSON instead of a table")
    asking = argparse.ArgumentParser(add_help=False)
    asking.add_argument("--request", default="-", metavar="FILE", help="the request as JSON; -, the default: stdin")
    asking.add_argument("--top", type=int, metavar="N", help="print the N best candidates only")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, parents, text in (
        ("rank", [shared, asking], "score the candidates and print them best first"),
        ("explain", [shared, asking], "rank, with the behaviours that each score rests on"),
        ("status", [shared], "print the state of every version"),
        ("metadata", [shared], "print what the signatures take and give"),
    ):
        commands.add_parser(
            name,
            parents=parents,
            help=text,
            description=text.capitalize() + ".",
            epilog=_EXAMPLE if asking in parents else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    return parser


def _read_request(path: str) -> dict[str, Any]:
    text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    try:
        request = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(request, dict) or not {"candidates", "history"} <= set(request) <= set(_ROLES):
        found = sorted(request) if isinstance(request, dict) else type(request).__name__
        raise ValueError(
            f"{path} must be a JSON object with `candidates` and `history`, and maybe `user`, `context` and "
            f"`history_length`. Received: {found}"
        )
    for role in _ROLES[:4]:
        if not isinstance(request.get(role, {}), dict):
            raise ValueError(f"`{role}` must be an object of columns by name. Received: {request[role]!r}")
    return request


def _requests(answer: Ranking, request: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The answer and the request's columns of each request, whether one was sent or several."""
    if answer.probability.ndim == 1:
        yield answer, request
        return
    for row in range(len(answer.probability)):
        arrays = {
            field.name: getattr(answer, field.name)[row]
            for field in dataclasses.fields(answer)
            if field.name != "model_version"
        }
        columns = {
            role: {name: values[row] for name, values in request[role].items()} for role in ("candidates", "history")
        }
        yield dataclasses.replace(answer, **arrays), columns


def _ranked(answer: Any, request: dict[str, Any], top: int | None) -> list[dict[str, Any]]:
    """The candidates best first, each with its columns, its probability and what it was retrieved from."""
    ranked = []
    for candidate in answer.order[:top]:
        entry = {name: values[candidate] for name, values in request["candidates"].items()}
        entry["probability"] = float(answer.probability[candidate])
        if isinstance(answer, Explanation):
            entry["retrieved"] = [
                {
                    "position": int(position),
                    **{name: values[position] for name, values in request["history"].items()},
                    "distance": np.asarray(distance).item(),
                    "weight": float(weight),
                }
                for position, distance, weight in zip(
                    answer.positions[candidate], answer.distances[candidate], answer.weights[candidate], strict=True
                )
                if position >= 0
            ]
        ranked.append(entry)
    return ranked


def _print_answer(answer: Ranking, request: dict[str, Any], top: int | None, as_json: bool) -> None:
    rankings = [_ranked(one, columns, top) for one, columns in _requests(answer, request)]
    if as_json:
        print(json.dumps({"model_version": answer.model_version, "rankings": rankings}))
        return
    for number, ranking in enumerate(rankings, start=1):
        title = f"version {answer.model_version}" + (f", request {number}" if len(rankings) > 1 else "")
        _print_table(title, [{key: value for key, value in entry.items() if key != "retrieved"} for entry in ranking])
        for place, entry in enumerate(ranking, start=1):
            if "retrieved" in entry:
                _print_table(f"{place}. rests on", entry["retrieved"])


def _print_status(statuses: list[VersionStatus], as_json: bool) -> None:
    rows = [dataclasses.asdict(status) for status in statuses]
    if as_json:
        print(json.dumps(rows))
    else:
        _print_table("versions", rows)


def _print_metadata(metadata: Metadata, as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(metadata)))
        return
    for name, signature in metadata.signatures.items():
        rows = [
            {"": side, "name": tensor, "dtype": spec.dtype, "shape": _shape(spec.shape)}
            for side, specs in (("in", signature.inputs), ("out", signature.outputs))
            for tensor, spec in specs.items()
        ]
        _print_table(f"{name}, version {metadata.model_version}", rows)


def _shape(shape: Sequence[int | None] | None) -> str:
    return "any" if shape is None else f"({', '.join('?' if size is None else str(size) for size in shape)})"


def _print_table(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left")
    for name in rows[0] if rows else ["nothing"]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
