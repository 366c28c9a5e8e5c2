"""The engine's events for all who wait for one: a single task follows the file while somebody listens.

Decides how soon an event is seen, and that a listener who does not keep up is let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from wherry.engine.engine import Engine
from wherry.model import Json

__all__ = ["Happenings", "Listener"]

_log = logging.getLogger("wherryd.docker")
_SECONDS = 0.05  # between two looks, each of which is two system calls
_MOST = 4096  # events that wait for one listener

Listener = asyncio.Queue[Json | None]


class Happenings:
    """Of one loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._listeners: set[Listener] = set()
        self._task: asyncio.Task[None] | None = None
        self._poked = asyncio.Event()

    @contextlib.contextmanager
    def listener(self) -> Iterator[Listener]:
        """A queue of what happens from now on; None in it: something was missed, or we stop."""
        queue: Listener = asyncio.Queue(_MOST)
        self._listeners.add(queue)
        if self._task is None:
            self._tail = self._engine.changes()
            self._task = asyncio.ensure_future(self._follow())
        try:
            yield queue
        finally:
            self._listeners.discard(queue)
            if not self._listeners and self._task is not None:
                self._task.cancel()
                self._task = None

    def poke(self) -> None:
        """Something has just happened."""
        self._poked.set()

    def stop(self) -> None:
        """End all."""
        self._tell(None)

    async def _follow(self) -> None:
        while True:
            try:
                events = self._tail.more()
            except Exception:  # whatever it is: nobody waits for us for ever
                _log.exception("events could not be read")
                self._tail.missed, events = True, []
            if self._tail.missed:
                self._tail.missed = False
                self._tell(None)
            for event in events:
                self._tell(event)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SECONDS):
                    await self._poked.wait()
            self._poked.clear()

    def _tell(self, event: Json | None) -> None:
        for queue in list(self._listeners):
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self._listeners.discard(queue)
                queue.get_nowait()
                queue.put_nowait(None)
