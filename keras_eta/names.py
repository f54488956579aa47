"""What a column is called where its own name can't be used."""

from __future__ import annotations

import re
import zlib


def scope_name(name: str) -> str:
    """What layers, TensorFlow scopes and files call `name`: ASCII letters, digits, `_`, `.` and `-`, at most 109 long.

    A name that can be used as it is stays; any other gets a checksum, so that different names stay different:
    `"device type"` -> `"device_type_7e65f50d"`. It depends on nothing else, so it is the same in every model.
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        return name
    stem = re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip("_.-")[:100]
    return f"{stem or 'feature'}_{zlib.crc32(name.encode()):08x}"


def is_argument(name: str) -> bool:
    """Whether TensorFlow's functions can take a keyword argument of that name."""
    return re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) is not None and name != "self"
