"""Bytes of what was deleted, on their way out: one thread, so that no call waits for a tree of a million files."""

from __future__ import annotations

import queue
import sys
import threading
import time
from contextlib import suppress
from typing import Protocol

__all__ = ["REAP_WAIT", "Reaper"]

REAP_WAIT = 5.0  # seconds that a delete waits for its bytes to be gone, so that the next create finds them free


class _Bin(Protocol):
    name: str

    def removed(self, ident: str) -> None: ...


class Reaper:
    """Removes what lies in trash/. What fails stays there, is said once, and is tried again at the next start."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[_Bin, str, threading.Event]] = queue.SimpleQueue()
        self._left = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, pool: _Bin, ident: str) -> threading.Event:
        """Have it removed; the event is set when that was tried."""
        done = threading.Event()
        with self._changed:
            self._left += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="reaper", daemon=True)
                self._thread.start()
        self._waiting.put((pool, ident, done))
        return done

    @property
    def idle(self) -> bool:
        """Whether nothing is left to remove."""
        return not self._left

    def drain(self, seconds: float) -> bool:
        """Wait until all is gone, at most so long; whether it is."""
        end = time.monotonic() + seconds
        with self._changed:
            while self._left and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            return not self._left

    def _work(self) -> None:
        while True:
            pool, ident, done = self._waiting.get()
            try:
                pool.removed(ident)
            except Exception as error:  # whatever it is: others wait for this thread
                with suppress(OSError, ValueError):
                    print(f"pool {pool.name}: trash/{ident} stays: {error}", file=sys.stderr, flush=True)
            finally:
                done.set()
                with self._changed:
                    self._left -= 1
                    self._changed.notify_all()
