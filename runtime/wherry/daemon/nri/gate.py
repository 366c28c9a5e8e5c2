"""Between what comes to be and who wants to know all that is there: a lock that many share, or one has alone.

Decides that what is being made is waited for, and that nothing new is begun meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Gate"]


class Gate:
    """For threads. A thread is inside from `enter` to `leave`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: set[int] = set()
        self._still = False

    def enter(self) -> None:
        """Begin something; waits while somebody wants it still."""
        with self._changed:
            self._changed.wait_for(lambda: not self._still)
            self._inside.add(threading.get_ident())

    def leave(self) -> None:
        """It has come to be, or failed; also for a thread that is not inside."""
        with self._changed:
            self._inside.discard(threading.get_ident())
            self._changed.notify_all()

    @contextmanager
    def still(self) -> Iterator[None]:
        """Nobody is inside for the block, which may end in another thread."""
        with self._changed:
            self._changed.wait_for(lambda: not self._still)
            self._still = True
            self._changed.wait_for(lambda: not self._inside)
        try:
            yield
        finally:
            with self._changed:
                self._still = False
                self._changed.notify_all()
