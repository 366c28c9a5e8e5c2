"""Where processes in containers begin: in threads, few at once for each container.

Decides how many, because what is in a container decides how long it takes: whoever may send signals there can stop a
process before it has become the command, and its thread waits for it in vain. Others must find a thread all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from wherry.engine.running import Running

__all__ = ["Beginnings"]

_THREADS, _EACH = 64, 4


class Beginnings:
    """Threads for this alone. Of one loop."""

    def __init__(self, each: int = _EACH) -> None:
        """`each`: how many at once for one container; more wait."""
        self._pool = ThreadPoolExecutor(_THREADS, "beginning")
        self._each = each
        self._turns: dict[str, tuple[asyncio.Semaphore, set[object]]] = {}  # by container, with whom they are for

    async def begin(self, container: str, begin: Callable[[], Running], *, mortal: bool) -> Running:
        """What `begin`, which may block, gives. Who is cancelled meanwhile lets go of it, and if it is `mortal` kills
        it."""
        turns, users = self._turns.setdefault(container, (asyncio.Semaphore(self._each), set()))
        me = object()
        users.add(me)
        leave = partial(self._leave, container, me)
        try:
            await turns.acquire()
        except BaseException:
            leave()
            raise
        beginning = asyncio.get_running_loop().run_in_executor(self._pool, begin)
        beginning.add_done_callback(lambda _: turns.release())
        beginning.add_done_callback(lambda _: leave())
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(partial(self._abandon, mortal=mortal))
            raise

    def _leave(self, container: str, who: object) -> None:
        users = self._turns[container][1]
        users.discard(who)
        if not users:
            del self._turns[container]

    def _abandon(self, begun: asyncio.Future[Running], *, mortal: bool) -> None:
        if not begun.cancelled() and begun.exception() is None:
            self._pool.submit(_end, begun.result(), mortal=mortal)

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _end(begun: Running, *, mortal: bool) -> None:
    if mortal:
        begun.kill()
    begun.close()
