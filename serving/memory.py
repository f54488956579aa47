"""What glibc keeps of memory that was freed: by default the most that large requests ever took, like a leak.

Other C libraries lack these functions; nothing happens there.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading

_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3
_LATER_SECONDS = 1.0

_planned = threading.Lock()


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
