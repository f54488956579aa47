"""The command line of the client: reads a request as JSON or CSV, prints tables or JSON."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving import tls
from serving.client import RankingClient
from serving.client.answers import Ranking, ServingError, Signature
from serving.client.page import check_page_path, explanation_page, write_page
from serving.client.request_files import (
    read_attributes,
    read_csv,
    read_items,
    read_json,
    read_state,
    shown_id,
    write_state,
)
from serving.client.tables import print_answer, print_metadata, print_status

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
_RECOMMEND_EXAMPLES = """\
examples:
  python -m serving.client {command} --retriever tiger --model_name eta --top 10 --request - <<'JSON'
  {{"history": {{"item_id": [318, 50], "rating": [5, 4]}}, "excluded": [318, 50, 260]}}
  JSON

  # films.csv: item_id,genre
  #            318,drama
  python -m serving.client {command} --request request.json --attributes films.csv --html recommended.html

Items of the history are left out unless `excluded` names others."""
_PLAIN_EXAMPLES = """\
examples:
  python -m serving.client {command}
  python -m serving.client {command} --target ranking.example.com:443 --tls_ca ca.pem --json"""
_EXIT_CODES = """

exit codes: 0, an answer; 1, no answer, for the reason on stderr; 2, the command can't be understood"""

_RECOMMEND = "recommend"
_EXPLAINING = ("explain", _RECOMMEND)
_RANKING = ("rank", *_EXPLAINING)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0 for an answer, 1 where there is none.
    """
    flags = _flags(argv)
    page = Path(flags.html) if flags.command in _EXPLAINING and flags.html is not None else None
    try:
        if page is not None:
            check_page_path(page)
            items = None if flags.item_names is None else read_items(flags.item_names)
        with RankingClient(
            flags.target,
            flags.model_name,
            retriever=flags.retriever if flags.command == _RECOMMEND else None,
            timeout=flags.timeout,
            credentials=tls.credentials(flags),
        ) as client:
            if flags.command in _RANKING:
                answer, request = _ranked_answer(flags, client)
                if page is not None:
                    made = datetime.datetime.now(datetime.timezone.utc)
                    shown = {"model_name": flags.model_name, "made": made, "items": items}
                    write_page(page, explanation_page(answer, **request, **shown))
                    print(f"Wrote {page}", file=sys.stderr)
                if page is None or flags.json:
                    print_answer(answer, request, flags.top, flags.json)
            elif flags.command == "user-state":
                request = read_json(flags.request or "-", command=flags.command)
                state = client.user_state(**request)
                write_state(flags.output, state)
                print(f"Wrote {flags.output}: {len(state)} by version {state.model_version}", file=sys.stderr)
            elif flags.command == "status":
                print_status(client.status(), flags.json)
            else:
                print_metadata(client.metadata(), flags.json)
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
    recommending = argparse.ArgumentParser(add_help=False)
    recommending.add_argument("--request", metavar="FILE", help="the request as JSON; -, the default: stdin")
    recommending.add_argument("--retriever", default="tiger", metavar="NAME", help="which model finds (default: tiger)")
    recommending.add_argument(
        "--attributes", metavar="FILE", help="CSV, a line for each item: item_id and what the ranker reads beside it"
    )
    recommending.add_argument("--explain", action="store_true", help="say what each score rests on; so does --html")
    recommending.add_argument("--top", type=int, metavar="N", help="print the N best items only")
    keeping = argparse.ArgumentParser(add_help=False)
    keeping.add_argument("--request", metavar="FILE", help="the history as JSON; -, the default: stdin")
    keeping.add_argument("--output", metavar="FILE", required=True, help="the .npz file to write")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, parents, text in (
        ("rank", [shared, asking, from_state], "score the candidates and print them best first"),
        ("explain", [shared, asking, showing], "rank, with the behaviours that each score rests on"),
        (_RECOMMEND, [shared, recommending, showing], "find items by a retriever, and rank or explain them"),
        ("user-state", [shared, keeping], "write what depends on the users alone to a file, for `rank --state`"),
        ("status", [shared], "print the state of every version"),
        ("metadata", [shared], "print what the signatures take and give"),
    ):
        examples = _EXAMPLES if asking in parents else _STATE_EXAMPLES if keeping in parents else _PLAIN_EXAMPLES
        examples = _RECOMMEND_EXAMPLES if recommending in parents else examples
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
    if flags.command in _RANKING and flags.top is not None and flags.top < 1:
        parser.error(f"--top must be a positive integer. Received: {flags.top}")
    if flags.command in _EXPLAINING and flags.item_names is not None and flags.html is None:
        parser.error("--item_names goes with --html.")
    if flags.command in ("rank", "explain"):
        if bool(flags.candidates) != bool(flags.history) or (flags.user + flags.context and not flags.candidates):
            parser.error("--candidates and --history go together, and --user and --context go with them.")
        if flags.command == "rank" and flags.state and flags.candidates:
            parser.error("--state goes with --request.")
        if flags.command == "rank" and flags.any_version and not flags.state:
            parser.error("--any_version goes with --state.")
        if flags.request and flags.candidates:
            parser.error("Give either --request or --candidates and --history.")
    return flags


def _ranked_answer(flags: argparse.Namespace, client: RankingClient) -> tuple[Any, dict[str, Any]]:
    """The answer to a command that ranks, and the request that it answers."""
    if flags.command == _RECOMMEND:
        return _recommended(flags, client)
    request = _read_request(flags, client)
    if flags.command == "explain":
        return client.explain(**request), request
    if flags.state:
        return client.rank_from_state(**request, state=read_state(flags.state), any_version=flags.any_version), request
    return client.rank(**request), request


def _recommended(flags: argparse.Namespace, client: RankingClient) -> tuple[Ranking, dict[str, Any]]:
    request = read_json(flags.request or "-", command=flags.command)
    attributes = None
    if flags.attributes is not None:
        signature = client.metadata().signatures.get("rank", Signature({}, {}))
        attributes = read_attributes(flags.attributes, "item_id", signature)
    found = client.recommend(**request, attributes=attributes, explain=flags.explain or flags.html is not None)
    candidates: dict[str, Any] = {"item_id": list(map(shown_id, found.item_ids.tolist()))}
    candidates |= {} if attributes is None else attributes(found.item_ids)
    request.pop("excluded", None)
    return found.ranking, {**request, "candidates": candidates}


def _read_request(flags: argparse.Namespace, client: RankingClient) -> dict[str, Any]:
    if not flags.candidates:
        from_state = flags.command == "rank" and flags.state is not None
        return read_json(flags.request or "-", command=flags.command, from_state=from_state)
    signature = client.metadata().signatures.get(flags.command, Signature({}, {}))
    return read_csv(flags.candidates, flags.history, flags.user, flags.context, signature)


if __name__ == "__main__":
    sys.exit(main())
