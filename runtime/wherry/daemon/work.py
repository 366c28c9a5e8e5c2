"""Where engine calls are made: threads, in pools by how long a call takes, so that nothing blocks the loop and no kind
of work keeps another waiting.

Decides how many of each run at once. A caller that goes away does not end what was begun for him.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

__all__ = ["Work"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
#: look: answers from memory and small files. change: a pod or container is made, started, removed. join: the same,
#: with a plugin of CNI, which may hang. wait: somebody's
#: grace period passes. fetch: images come. rest: what nobody waits for.
_THREADS = {"look": 8, "change": 16, "join": 32, "wait": 256, "fetch": 6, "rest": 1}


class Work:
    """The pools. Threads are made when they are first needed."""

    def __init__(self) -> None:
        self._pools = {name: ThreadPoolExecutor(count, name) for name, count in _THREADS.items()}

    async def _do(self, pool: str, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pools[pool], call)

    async def look(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Something quick that changes nothing."""
        return await self._do("look", lambda: call(*args, **kwargs))

    async def change(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Something that takes milliseconds, seconds at worst."""
        return await self._do("change", lambda: call(*args, **kwargs))

    async def join(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Something that takes milliseconds, or a plugin's patience."""
        return await self._do("join", lambda: call(*args, **kwargs))

    async def wait(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Something that mostly waits."""
        return await self._do("wait", lambda: call(*args, **kwargs))

    async def fetch(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Something of registries."""
        return await self._do("fetch", lambda: call(*args, **kwargs))

    def later(self, call: Callable[[], object]) -> None:
        """Something that nobody waits for, one after the other."""
        self._pools["rest"].submit(call)

    def close(self) -> None:
        """Begin nothing more. What still waits in a thread is not waited for: it may be killed at any time."""
        self._pools["rest"].shutdown(wait=True)
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
