"""How much memory there is, and what glibc keeps of it when it is freed: the most that large requests ever took.

That looks like a leak. Other C libraries lack the functions against it; nothing happens there.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from pathlib import Path

import psutil

_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3
_LATER_SECONDS = 1.0

_CGROUP = Path("/sys/fs/cgroup")
# Of versions 2 and 1.
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")

_planned = threading.Lock()


def total() -> int:
    """Bytes that this process may use: the container's limit, or else all of the machine's."""
    least = psutil.virtual_memory().total
    for name in _LIMITS:
        # "max" where there is none.
        with contextlib.suppress(OSError, ValueError):
            least = min(least, int((_CGROUP / name).read_text(encoding="ascii")))
    return least


def limit_pools() -> None:
    """Two pools for all threads, and large blocks in none of them. To be called before TensorFlow starts threads."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 4 << 20)


def give_back() -> None:
    """Returns free memory to the system; takes milliseconds."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def give_back_later() -> None:
    """The same a second from now, once for all that ask for it until then."""

    def work() -> None:
        _planned.release()
        give_back()

    if _planned.acquire(blocking=False):
        timer = threading.Timer(_LATER_SECONDS, work)
        timer.daemon = True
        timer.start()
