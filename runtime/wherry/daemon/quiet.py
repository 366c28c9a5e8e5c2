"""What is done when nobody has asked for anything in a while: memory that a burst of calls took goes back.

Decides when it is quiet. libc keeps what is freed for the next burst, and a daemon may wait for that one for days.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Quiet"]

_SECONDS = 5.0  # without a call


class Quiet:
    """Of one loop. `work` is begun there, and should not block it."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work, self._last = work, 0.0
        self._timer: asyncio.TimerHandle | None = None

    def stirred(self) -> None:
        """A call has ended."""
        loop = asyncio.get_running_loop()
        self._last = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(_SECONDS, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        if (left := self._last + _SECONDS - loop.time()) > 0:
            self._timer = loop.call_later(left, self._look)
        else:
            self._timer = None
            self._work()
