"""Fields of the configuration that are flags."""

from __future__ import annotations

import dataclasses
from typing import Any


def option(default: Any, meaning: str, **argument: Any) -> Any:
    """A field that is a flag: its default, its meaning, and what argparse can't tell from the default."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, "argument": argument})
