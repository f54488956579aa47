"""How much memory there is, the return of freed memory to the system, and shorter garbage collections.

glibc keeps what it frees, up to the most that large requests ever took, which looks like a leak. Other C libraries lack
the functions called here; with them, nothing happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
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
    """Limits glibc to two pools for all threads, without large blocks. Call it before TensorFlow starts threads."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 4 << 20)


def settle() -> None:
    """Takes all that there is, modules above all, out of garbage collections, during which no call is answered.

    Call it before models are loaded: their memory would never be collected.
    """
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """Returns free memory to the system; takes milliseconds."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def give_back_later() -> None:
    """Calls `give_back` a second from now, once for all requests made until then."""

    def work() -> None:
        _planned.release()
        give_back()

    if _planned.acquire(blocking=False):
        timer = threading.Timer(_LATER_SECONDS, work)
        timer.daemon = True
        timer.start()
