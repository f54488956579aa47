"""The command line of the client: reads a request as JSON or CSV, prints tables or JSON."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from serving import tls
from serving.client import RankingClient
from serving.client.answers import Attention, Explanation, Metadata, Ranking, ServingError, Signature, VersionStatus
from serving.client.page import check_page_path, explanation_page, write_page
from serving.client.request_files import read_csv, read_items, read_json, read_state, write_state
from serving.client.requests import shape_text

_EXAMPLES = """\
examples:
  python -m serving.client {command} --target 127.0.0.1:8500 --request - <<'JSON'
  {{
    "user": {{"user_id": 5}},
    "context": {{"hour": 20}},
    "history": {{"item_id": [318, 50], "rating": [5, 4]}},
    "candidates": {{"item_id": [260, 1193, 2571]}}
  }}
  JSON

  # candidates.csv: item_id          history.csv: item_id,rating
  #                 260                           318,5
  #                 1193                          50,4
  python -m serving.client {command} --candidates candidates.csv --history history.csv --user user_id=5 \\
      --context hour=20 --top 10

  python -m serving.client {command} --target ranking.example.com:443 --tls_ca ca.pem --request request.json --json

Columns go by the names of the data contract, those of the history without their prefix `history_`. The history has the
most recent behaviour first. For several requests at once, put a list around every value of the JSON."""
_STATE_EXAMPLES = """\
examples:
  python -m serving.client {command} --output state.npz --request - <<'JSON'
  {{"history": {{"item_id": [318, 50], "rating": [5, 4]}}}}
  JSON
  python -m serving.client rank --state state.npz --request - <<'JSON'
  {{"user": {{"user_id": 5}}, "candidates": {{"item_id": [260, 1193, 2571]}}}}
  JSON

For several users at once, put a list around every value of the JSON."""
_PLAIN_EXAMPLES = """\
examples:
  python -m serving.client {command}
  python -m serving.client {command} --target ranking.example.com:443 --tls_ca ca.pem --json"""
_EXIT_CODES = """

exit codes: 0, an answer; 1, no answer, for the reason on stderr; 2, the command can't be understood"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0 for an answer, 1 where there is none.
    """
    flags = _flags(argv)
    page = Path(flags.html) if flags.command == "explain" and flags.html is not None else None
    try:
        if page is not None:
            check_page_path(page)
            items = None if flags.item_names is None else read_items(flags.item_names)
        with RankingClient(
            flags.target, flags.model_name, timeout=flags.timeout, credentials=tls.credentials(flags)
        ) as client:
            if flags.command in ("rank", "explain"):
                request = _read_request(flags, client)
                answer: Any
                if flags.command == "explain":
                    answer = client.explain(**request)
                elif flags.state:
                    state = read_state(flags.state)
                    answer = client.rank_from_state(**request, state=state, any_version=flags.any_version)
                else:
                    answer = client.rank(**request)
                if page is not None:
                    made = datetime.datetime.now(datetime.timezone.utc)
                    shown = {"model_name": flags.model_name, "made": made, "items": items}
                    write_page(page, explanation_page(answer, **request, **shown))
                    print(f"Wrote {page}", file=sys.stderr)
                if page is None or flags.json:
                    _print_answer(answer, request, flags.top, flags.json)
            elif flags.command == "user-state":
                request = read_json(flags.request or "-", command=flags.command)
                state = client.user_state(**request)
                write_state(flags.output, state)
                print(f"Wrote {flags.output}: {len(state)} by version {state.model_version}", file=sys.stderr)
            elif flags.command == "status":
                _print_status(client.status(), flags.json)
            else:
                _print_metadata(client.metadata(), flags.json)
    except (ServingError, ValueError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m serving.client",
        description="Ask a ranking model on the embedded server or on TensorFlow Serving.",
        epilog=_EXAMPLES.format(command="rank") + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--target", default="127.0.0.1:8500", metavar="HOST:PORT", help="default: 127.0.0.1:8500")
    shared.add_argument("--model_name", default="eta", metavar="NAME", help="default: eta")
    shared.add_argument("--timeout", type=float, default=10.0, metavar="S", help="deadline in seconds (default: 10)")
    shared.add_argument("--json", action="store_true", help="print JSON instead of tables")
    tls.add_flags(shared)
    asking = argparse.ArgumentParser(add_help=False)
    asking.add_argument("--request", metavar="FILE", help="the request as JSON; -, the default: stdin")
    asking.add_argument("--candidates", metavar="FILE", help="in place of --request: CSV, a line for each candidate")
    asking.add_argument("--history", metavar="FILE", help="with it: CSV, a line for each behaviour, most recent first")
    asking.add_argument("--user", action="append", default=[], metavar="NAME=VALUE", help="with it: a user's column")
    asking.add_argument("--context", action="append", default=[], metavar="NAME=VALUE", help="with it: of the context")
    asking.add_argument("--top", type=int, metavar="N", help="print the N best candidates only")
    showing = argparse.ArgumentParser(add_help=False)
    showing.add_argument(
        "--html", metavar="FILE", help="for one request: write a page of all candidates in place of tables"
    )
    showing.add_argument(
        "--item_names",
        metavar="FILE",
        help="with it: CSV, a line for each item: its id, under its name in the request, and what to show beside it",
    )
    from_state = argparse.ArgumentParser(add_help=False)
    from_state.add_argument(
        "--state", metavar="FILE", help="with --request: user states, by `user-state`, in place of the history"
    )
    from_state.add_argument("--any_version", action="store_true", help="with it: whichever version they are of")
    keeping = argparse.ArgumentParser(add_help=False)
    keeping.add_argument("--request", metavar="FILE", help="the history as JSON; -, the default: stdin")
    keeping.add_argument("--output", metavar="FILE", required=True, help="the .npz file to write")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, parents, text in (
        ("rank", [shared, asking, from_state], "score the candidates and print them best first"),
        ("explain", [shared, asking, showing], "rank, with the behaviours that each score rests on"),
        ("user-state", [shared, keeping], "write what depends on the users alone to a file, for `rank --state`"),
        ("status", [shared], "print the state of every version"),
        ("metadata", [shared], "print what the signatures take and give"),
    ):
        examples = _EXAMPLES if asking in parents else _STATE_EXAMPLES if keeping in parents else _PLAIN_EXAMPLES
        commands.add_parser(
            name,
            parents=parents,
            help=text,
            description=text.capitalize() + ".",
            epilog=examples.format(command=name) + _EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    flags = parser.parse_args(argv)
    tls.check_flags(parser, flags)
    if flags.command in ("rank", "explain"):
        if flags.top is not None and flags.top < 1:
            parser.error(f"--top must be a positive integer. Received: {flags.top}")
        if bool(flags.candidates) != bool(flags.history) or (flags.user + flags.context and not flags.candidates):
            parser.error("--candidates and --history go together, and --user and --context go with them.")
        if flags.command == "explain" and flags.item_names is not None and flags.html is None:
            parser.error("--item_names goes with --html.")
        if flags.command == "rank" and flags.state and flags.candidates:
            parser.error("--state goes with --request.")
        if flags.command == "rank" and flags.any_version and not flags.state:
            parser.error("--any_version goes with --state.")
        if flags.request and flags.candidates:
            parser.error("Give either --request or --candidates and --history.")
    return flags


def _read_request(flags: argparse.Namespace, client: RankingClient) -> dict[str, Any]:
    if not flags.candidates:
        from_state = flags.command == "rank" and flags.state is not None
        return read_json(flags.request or "-", command=flags.command, from_state=from_state)
    signature = client.metadata().signatures.get(flags.command, Signature({}, {}))
    return read_csv(flags.candidates, flags.history, flags.user, flags.context, signature)


def _requests(answer: Ranking, request: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The answer and the columns of each request, whether one was sent or several."""
    if answer.probability.ndim == 1:
        yield answer, request
        return
    for row in range(len(answer.probability)):
        columns: dict[str, Any] = {
            role: {name: values[row] for name, values in request[role].items()}
            for role in ("candidates", "history")
            if role in request
        }
        yield _row(answer, row), columns


def _row(answer: Any, row: int) -> Any:
    """One request of an answer to several."""
    fields = {}
    for field in dataclasses.fields(answer):
        value = getattr(answer, field.name)
        if isinstance(value, np.ndarray):
            fields[field.name] = value[row]
        elif isinstance(value, Mapping):
            fields[field.name] = {
                name: part[row] if isinstance(part, np.ndarray) else _row(part, row) for name, part in value.items()
            }
    return dataclasses.replace(answer, **fields)


def _ranked(answer: Any, request: dict[str, Any], top: int | None) -> list[dict[str, Any]]:
    """The candidates, best first, each with its columns, its probability and the behaviours retrieved for it."""
    ranked = []
    for candidate in answer.order[:top]:
        entry = {name: values[candidate] for name, values in request["candidates"].items()}
        entry["probability"] = float(answer.probability[candidate])
        if isinstance(answer, Explanation):
            entry |= {f"{name}_count": counts[candidate].item() for name, counts in answer.counts.items()}
            entry["retrieved"] = _retrieved(answer, candidate, request["history"])
            if answer.others:
                entry["others"] = {
                    unit: _retrieved(attention, candidate, request["history"])
                    for unit, attention in answer.others.items()
                }
        ranked.append(entry)
    return ranked


def _retrieved(attention: Attention, candidate: int, history: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The behaviours that a unit attends to for one candidate, each with its columns, its score and its weight."""
    retrieved = []
    for place, position in enumerate(attention.positions[candidate]):
        if position >= 0:
            behaviour = {"position": int(position), **{name: values[position] for name, values in history.items()}}
            if attention.scores is not None:
                behaviour[str(attention.score_label)] = attention.scores[candidate, place].item()
            retrieved.append({**behaviour, "weight": float(attention.weights[candidate, place])})
    return retrieved


def _print_answer(answer: Ranking, request: dict[str, Any], top: int | None, as_json: bool) -> None:
    rankings = [_ranked(one, columns, top) for one, columns in _requests(answer, request)]
    if as_json:
        print(json.dumps({"model_version": answer.model_version, "rankings": rankings}))
        return
    for number, ranking in enumerate(rankings, start=1):
        title = f"version {answer.model_version}" + (f", request {number}" if len(rankings) > 1 else "")
        explained = [
            (f"{place}. rests on" + (f", by {unit}" if unit else ""), retrieved)
            for place, entry in enumerate(ranking, start=1)
            for unit, retrieved in [("", entry.pop("retrieved", None)), *entry.pop("others", {}).items()]
            if retrieved is not None
        ]
        _print_table(title, ranking)
        for heading, retrieved in explained:
            _print_table(heading, retrieved)


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
    return "any" if shape is None else shape_text(shape)


def _print_table(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left")
    for name in rows[0] if rows else ["nothing"]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
