"""The client of the embedded server and of TensorFlow Serving alike, in Python and on the command line.

python -m serving.client rank --target 127.0.0.1:8500 --request request.json
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.client.answers import (
        Attention,
        Explanation,
        Metadata,
        Ranking,
        Recommendation,
        ServingError,
        StateVersionError,
        VersionStatus,
    )
    from serving.client.asyncio import AsyncRankingClient
    from serving.client.client import RankingClient
    from serving.client.states import UserState

__all__ = [
    "AsyncRankingClient",
    "Attention",
    "Explanation",
    "Metadata",
    "Ranking",
    "RankingClient",
    "Recommendation",
    "ServingError",
    "StateVersionError",
    "UserState",
    "VersionStatus",
]

_MODULES = {"AsyncRankingClient": "asyncio", "RankingClient": "client", "UserState": "states"}


def __getattr__(name: str) -> Any:
    # Imported when asked for: gRPC for asyncio is for those alone who use it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'answers')}"), name)
