"""What the command lines of the benchmarks share: the sizes of the model, numbers, and the report as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def make_parser(name: str, description: str | None, items: int = 200_000) -> argparse.ArgumentParser:
    """A parser for `python -m benchmarks.name` with the model's sizes and `--json`."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog=f"python -m benchmarks.{name}",
    )
    parser.add_argument("--dim", type=int, default=64, help="D, width of embeddings (default: 64)")
    parser.add_argument("--bits", type=int, default=64, help="M, bits of a fingerprint (default: 64)")
    parser.add_argument("--top_k", type=int, default=48, help="K, behaviours retrieved (default: 48)")
    parser.add_argument("--items", type=int, default=items, help="vocabulary of items (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON there instead of printing it")
    return parser


def number(kind: Callable[[str], Any], above: float = 0, or_equal: bool = False) -> Callable[[str], Any]:
    """The type of a flag for finite numbers.

    Args:
        kind: int or float.
        above: what they must lie above.
        or_equal: whether they may be equal to it.
    """

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not (above < value < float("inf") or (or_equal and value == above)):
            kinds = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(
                f"must be {kinds} {'of at least' if or_equal else 'above'} {above}. Received: {text}"
            )
        return value

    return parse


def write_json(report: Mapping[str, object], flags: argparse.Namespace) -> None:
    """Writes or prints a report and the sizes that it was measured with."""
    settings = {name: value for name, value in vars(flags).items() if not isinstance(value, Path | None)}
    text = json.dumps({"settings": settings, **report}, indent=2)
    if flags.json:
        flags.json.write_text(text, encoding="utf-8")
    else:
        print(text)
