"""One-time tickets: who has a URL of ours may do what it was given for, once, and soon.

Decides how long a ticket is good and how many there may be. What it is for is the caller's.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from wherry.errors import Kind, WherryError

__all__ = ["Tickets"]

_T = TypeVar("_T")


class Tickets(Generic[_T]):
    """Safe to use from several threads."""

    def __init__(self, seconds: float = 60.0, most: int = 1000, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._most, self._clock = seconds, most, clock
        self._held: dict[str, tuple[float, _T]] = {}  # in the order of their end
        self._lock = threading.Lock()

    def give(self, what: _T) -> str:
        """A new ticket. EXHAUSTED while too many wait to be used."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._expire()
            if len(self._held) >= self._most:
                raise WherryError(Kind.EXHAUSTED, f"{self._most} streaming requests wait for their clients",
                                  hint=f"each may wait for {self._seconds:.0f} s")  # fmt: skip
            self._held[token] = self._clock() + self._seconds, what
        return token

    def take(self, token: str) -> _T | None:
        """What it was given for; None if there is no such ticket, or not any more."""
        with self._lock:
            self._expire()
            found = self._held.pop(token, None)
        return found[1] if found else None

    def _expire(self) -> None:
        now = self._clock()
        while self._held and next(iter(self._held.values()))[0] <= now:
            del self._held[next(iter(self._held))]
