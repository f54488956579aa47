"""Work that goes on in a thread beside a measurement."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Runs work in a thread until the context ends, and raises what it raised.

    Args:
        work: is given an event, which is set when the context ends; it then returns soon.

    Raises:
        OSError: if the work does; as does ValueError.
    """
    failures: list[OSError | ValueError] = []
    over = threading.Event()

    def run() -> None:
        try:
            work(over)
        except (OSError, ValueError) as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failures:
        raise failures[0]
