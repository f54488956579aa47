"""Which directories of a model's base path are versions, by the rule of TensorFlow Serving."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Versions are int64.
HIGHEST_VERSION = 2**63 - 1


def versions(names: Iterable[str]) -> dict[int, str]:
    """The names that are versions: ASCII digits for a number of at most 2**63 - 1, with leading zeros or without.

    Args:
        names: what is in a base path. A trailing slash, by which remote file systems mark directories, does not count.

    Returns:
        The names, without that slash, by version. `max` of it is the newest version.
    """
    found = {}
    for name in sorted(name.rstrip("/") for name in names):
        if re.fullmatch("[0-9]+", name) and int(name) <= HIGHEST_VERSION:
            found[int(name)] = name
    return found
